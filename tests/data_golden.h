/* data_golden: the data pipeline against folders of expected numbers (formats: README.md of the golden data).
 * Each section is one file data_golden_NAME.c and one line of the table in tool_data_golden.c. */
#ifndef FOLDSCALE_TESTS_DATA_GOLDEN_H
#define FOLDSCALE_TESTS_DATA_GOLDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/arena.h"
#include "engine/safetensors.h"

typedef struct Golden {
    const char *golden, *real; /* the two folders */
    const char *section;
    long passed, failed, skipped;
} Golden;

/* One line per check: "PASS section name" or "FAIL section name: why". */
void golden_pass(Golden *golden, const char *format, ...) __attribute__((format(printf, 2, 3)));
void golden_fail(Golden *golden, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
void golden_skip(Golden *golden, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* PATH below one of the two folders, in the arena. */
char *golden_path(Arena *arena, const char *folder, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool golden_exists(const char *path);

/* The first element where a tensor differs from our values, as text in `why`; true when all are equal. Floats are equal
 * when their values are (NaN equals NaN). */
bool golden_equal_f32(const StTensor *tensor, const float *ours, int64_t count, char why[256]);
bool golden_equal_i32(const StTensor *tensor, const int32_t *ours, int64_t count, char why[256]);
bool golden_equal_u8(const StTensor *tensor, const uint8_t *ours, int64_t count, char why[256]);

/* The arrays of parsers/ and msa/: stored rows exactly, all rows by checksum. */
struct Msa;
bool golden_msa_matches(const StFile *file, const struct Msa *msa, char why[256]);

/* A CSV file with a header line. */
typedef struct GoldenTable {
    int64_t rows, columns;
    char **cell; /* [rows + 1, columns]; row 0 is the header */
} GoldenTable;
bool golden_table_read(Golden *golden, const char *path, Arena *arena, GoldenTable *table_out);
/* "" when there is no such column. */
const char *golden_cell(const GoldenTable *table, int64_t row, const char *column);

void golden_mmcif(Golden *golden);
void golden_parsers(Golden *golden);
void golden_msa(Golden *golden);
void golden_hits(Golden *golden);
void golden_caches(Golden *golden);
void golden_transforms(Golden *golden);
void golden_batch(Golden *golden);
void golden_sampler(Golden *golden);
void golden_metrics(Golden *golden);
void golden_templates(Golden *golden);

#endif
