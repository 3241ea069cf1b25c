/* One golden file of transforms/ being checked, and what its checks share. */
#ifndef FOLDSCALE_TESTS_DATA_GOLDEN_CASE_H
#define FOLDSCALE_TESTS_DATA_GOLDEN_CASE_H

#include "tests/data_golden_numbers.h"

typedef struct Case {
    Golden *golden;
    StFile *file;
    Arena arena;
    const char *name; /* file name without ending */
} Case;

const char *case_label(Case *c, const char *what);
float *case_floats(Case *c, const char *name, int64_t *count_out);
int64_t *case_integers(Case *c, const char *name, int64_t *count_out);
int64_t case_extent(Case *c, const char *name, int axis); /* 0 when there is none */
void *case_take(Case *c, int64_t count, size_t size);     /* zeroed, with room for vector loads past the end */

/* Compares with the golden tensor `name`; `got` must have as many elements. */
void case_match_f32(Case *c, const char *name, const float *got, const float *mask, int64_t each);
void case_match_i32(Case *c, const char *name, const int32_t *got);

void case_check_structure(Case *c);
void case_check_templates(Case *c);
/* transforms/09_*.json; returns the number of cases. */
int64_t golden_crop_cases(Golden *golden);

#endif
