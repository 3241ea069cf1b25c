/* Other people's AlphaFold2 codes: one published step of each calibrates, its others are predicted. */
#ifndef FOLDSCALE_EXPERIMENTS_VALIDATE_CODES_H
#define FOLDSCALE_EXPERIMENTS_VALIDATE_CODES_H

#include "analysis/validate.h"

enum { VALIDATE_CODES_ROWS = 16 };

/* Rows of the set "other codes" into rows_out[VALIDATE_CODES_ROWS]. These codes differ from the recorded program in
 * ways that nobody published (what is recomputed, which ops stay in float32, chunking), so the set is scored apart. */
Status validate_codes(Arena *arena, ValidationRow *rows_out, int *count_out);

#endif
