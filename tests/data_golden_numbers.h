/* Numeric comparisons and file access shared by the sections of data_golden that check the feature pipeline. */
#ifndef FOLDSCALE_TESTS_DATA_GOLDEN_NUMBERS_H
#define FOLDSCALE_TESTS_DATA_GOLDEN_NUMBERS_H

#include "tests/data_golden.h"

/* A PASS or FAIL line with detail. */
void golden_check(Golden *golden, bool ok, const char *label, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* A FAIL line with status_text() unless OK; nothing is printed for OK. Returns whether it was OK. */
bool golden_ok(Golden *golden, Status status, const char *label);

/* Tensors of a golden file, converted; NULL (and a FAIL line) when absent. *count_out may be NULL. */
float *golden_f32(Golden *golden, const StFile *file, const char *name, Arena *arena, int64_t *count_out);
double *golden_f64(Golden *golden, const StFile *file, const char *name, Arena *arena, int64_t *count_out);
int64_t *golden_i64(Golden *golden, const StFile *file, const char *name, Arena *arena, int64_t *count_out);

/* Largest |got - want| / max(1, |want|) where `mask` (or everywhere if NULL; one mask entry covers `each` values) is
 * set, against `tolerance`; NaN equals NaN. */
void golden_match_f32(Golden *golden, const char *label, const float *got, const float *want, int64_t count,
                      double tolerance, const float *mask, int64_t each);
void golden_match_i32(Golden *golden, const char *label, const int32_t *got, const int64_t *want, int64_t count);

/* Names of the files of `folder` that start with `prefix` and end in `suffix`, sorted, as full paths. A folder that
 * does not exist has none. */
Status golden_list(const char *folder, const char *prefix, const char *suffix, Arena *arena, char ***paths_out,
                   int64_t *count_out);
/* The file name without folder and without `suffix`. */
const char *golden_stem(const char *path, const char *suffix, Arena *arena);

#endif
