/* Op prices out of this engine's own measurements (own.h). */
#ifndef FOLDSCALE_EXPERIMENTS_OWN_PRICES_H
#define FOLDSCALE_EXPERIMENTS_OWN_PRICES_H

#include "experiments/own.h"

extern const double OWN_RUNS[OWN_PROGRAMS]; /* of each program in a mean step: recycling 0 to 3 */

/* What the tables of ops tell. A clock's marks keep ops apart that follow one another closely in a graph: what that
 * adds to an op is the constant with which the ops of a table add up to its whole step. */
typedef struct OwnPrices {
    const OwnData *data;
    const Machine *machine;
    double *mark_s;       /* [tables] */
    double mark_drift;    /* variance of a mark, per octave of the mean length of ops between settings */
    double time_drift;    /* of the logarithm of one shape's time, per switch or octave of ranks between settings */
    double gap_s, host_s; /* OpPrices */
} OwnPrices;

/* ERR_INPUT when a table has no whole step. Borrows data and machine. */
Status own_prices_open(const OwnData *data, const Machine *machine, OwnPrices *out);
void own_prices_close(OwnPrices *prices);

/* Prices for a step like `step`: a shape that was measured in several settings goes by those most like it. `except`: a
 * table that stays out of the fit, -1 for none. ERR_INPUT when none is left. */
Status own_prices_fit(const OwnPrices *prices, const OwnStep *step, int except, OpPrices **prices_out);

/* Log standard deviation of a step of `ops` ops and step_s seconds by what the marks of settings unlike it leave open.
 */
double own_prices_mark_sd(const OwnPrices *prices, double ops, double step_s);

/* Switches that differ and octaves of ranks between two settings. */
double own_distance(const OwnStep *a, const OwnStep *b);

#endif
