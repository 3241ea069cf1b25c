/* From the runs of a sweep to points of a fit, and the checks that such a set must pass. */
#ifndef FOLDSCALE_ANALYSIS_POINTS_H
#define FOLDSCALE_ANALYSIS_POINTS_H

#include "analysis/fit.h"
#include "analysis/schema.h"

/* Refuses (ERR_INPUT with the lines) runs of different backends or devices in one fit, and two rows of one measurement
 * (equal provenance). */
Status points_check(const RunRow *rows, int64_t count);

/* Times of a run without evaluation: computation (all forwards, backward, optimizer), exposed communication, loader,
 * rest as host overhead. Phases of a row that leaves them empty are NAN. The shape is the caller's (predict_shape,
 * predict_plain_shape). */
void points_fill(const RunRow *row, FitPoint *out);

/* Prior of FIT_NOISE from per-rank step times: for each step the spread of the ranks' own computation (forwards,
 * backward, optimizer) around their mean. ERR_INPUT with fewer than 2 ranks or 10 steps. */
Status points_noise_prior(const StepRow *steps, int64_t count, FitPrior *out);

#endif
