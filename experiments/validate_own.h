/* This engine's measured steps on GPUs, predicted from op times of a few settings on one GPU and from the collective
 * benchmark. */
#ifndef FOLDSCALE_EXPERIMENTS_VALIDATE_OWN_H
#define FOLDSCALE_EXPERIMENTS_VALIDATE_OWN_H

#include "analysis/validate.h"

/* Rows of the set "own" for the measurements in FOLDER (own.h, and machine.yaml where `foldscale calibrate` ran there;
 * else the shipped h200x2). Steps whose op times are in op_table.csv are the fitted ones. Steps that cannot be compared
 * (another state of the code, a precision without op times, a single repeat) make no row; *note_out says how many and
 * why, "" for none. */
Status validate_own(const char *folder, Arena *arena, ValidationRow **rows_out, int *count_out, char **note_out);

/* experiments/results/h200/validation beside the sources; NULL when it has no op table. */
const char *validate_own_default(void);

#endif
