/* What to run, and what to measure next. */
#ifndef FOLDSCALE_ANALYSIS_ADVISE_H
#define FOLDSCALE_ANALYSIS_ADVISE_H

#include "analysis/predict.h"

typedef struct AdviseOption {
    const PredictionRow *row;
    TrainTime time;
    double gpu_hours, gpu_hours_high; /* at the estimate and at the upper end of the interval */
    bool fits;                        /* upper end within the limit */
} AdviseOption;

/* Time to train of every prediction: `plan` is for one global batch; each row's batch is its dp times
 * samples_per_replica, and the samples to the target grow with the batch as batch^batch_exponent beyond
 * plan->global_batch (0: samples do not depend on the batch; 1: steps do not). options[i] belongs to rows[i]. */
Status advise_times(const PredictionRow *rows, int64_t count, const TrainPlan *plan, double samples_per_replica,
                    double batch_exponent, uint64_t seed, AdviseOption *options);

/* Index of the cheapest option (GPU hours) whose upper end meets the deadline, -1 if none; marks `fits`. */
int64_t advise_cheapest(AdviseOption *options, int64_t count, double deadline_s);

/* Index of the fastest option whose upper end stays within the budget of GPU hours, -1 if none; marks `fits`. */
int64_t advise_fastest(AdviseOption *options, int64_t count, double budget_gpu_hours);

/* Expected effect of measuring a configuration `repeats` times on the interval at `target`: the draws of the fit give
 * the joint distribution of both log times; conditioning on one (normal approximation to their 90 % intervals, repeat
 * noise included) leaves var - cov^2 / (var + noise^2 / repeats) of the other. A configuration's lack of fit is its
 * own: it is in both variances, which no number of repeats elsewhere takes away, and in the covariance of a
 * configuration with itself. `extra_sd` as in fit_predict: what is not known of a machine that was not measured is
 * common to all configurations there, so that one run on it teaches much. */
typedef struct AdviseRun {
    int candidate;         /* index into candidates */
    double width_now;      /* hi90 / lo90 at the target, without repeat noise, with lack of fit */
    double width_expected; /* after the measurement */
} AdviseRun;
/* Sorted by width_expected, the best first. */
Status advise_next_run(const FitModel *fit, const StepShape *candidates, int count, const StepShape *target,
                       double extra_sd, int repeats, AdviseRun *out);

#endif
