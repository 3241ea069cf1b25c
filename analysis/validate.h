/* Predictions beside the truth. A row enters as either fitted or held out; only held-out rows are scored. */
#ifndef FOLDSCALE_ANALYSIS_VALIDATE_H
#define FOLDSCALE_ANALYSIS_VALIDATE_H

#include <stdio.h>

#include "analysis/fit.h"
#include "analysis/opprice.h"
#include "analysis/predict.h"

typedef struct ValidationRow {
    const char
        *set; /* "measured", "published", "single run" (one seed of a published job: its luck is not ours to know) */
    const char *what; /* configuration and quantity, with unit */
    bool fitted;      /* went into the fit: shown, not scored */
    double predicted, low, high, truth;
    double naive;      /* Amdahl-only fit to the same points; NAN where there is none */
    double naive2;     /* Amdahl + (N - 1), the other naive fit of the literature; NAN likewise */
    const char *basis; /* what the prediction rests on */
} ValidationRow;

typedef struct ValidationScore {
    int rows;
    double mean_error, max_error; /* |predicted / truth - 1| */
    double coverage;              /* share of truths inside the interval; NAN without rows */
    double naive_mean_error, naive2_mean_error;
} ValidationScore;

/* Scores the held-out rows of a set (NULL: all). */
ValidationScore validate_score(const ValidationRow *rows, int count, const char *set);

/* A table with errors, the scores of each set, and the fitted rows marked as such. */
Status validate_print(const ValidationRow *rows, int count, FILE *stream);
Status validate_write(const ValidationRow *rows, int count, const char *path);

/* Measured points: fits those with fitted[i], predicts all others. extra_sd[i] (NULL: 0) is the log standard deviation
 * of kernels that no fitted point ran (StepPrice.sd). rows_out[i] for each point; strings in arena. */
Status validate_points(const FitPoint *point, int count, const bool *fitted, const double *extra_sd,
                       const FitOptions *options, Arena *arena, ValidationRow *rows_out);

/* One published configuration calibrates the kernels of its code (opprice_calibrate: one factor on the time above
 * overheads, after communication, stragglers and the wait for data are taken off); the other configurations of that
 * code are predicted from their programs' costs. Row 0 is the fitted one. Prices are changed. */
typedef struct TransferCase {
    const char *what;
    const StepCost *cost;
    int64_t dp;
    double step_s;   /* published */
    double loader_s; /* published wait for data, NAN if unknown */
    double gain;     /* published factor of what neither program has, on the whole step (0: none) */
    double spread;   /* log standard deviation of what is known of this case alone (gain, launches) */
} TransferCase;
Status validate_transfer(OpPrices *prices, const Machine *machine, const TransferCase *cases, int count,
                         const FitOptions *options, Arena *arena, ValidationRow *rows_out);

/* Time to train of the MLPerf HPC v3.0 OpenFold submissions from parts, out of mlperf_hpc_v3_openfold.csv. For each
 * submission one row for the published score (mean without fastest and slowest run) from the medians of the parts, and
 * one per run whose parts are the medians of the other runs of its submission; the samples to the target are drawn with
 * the spread of those others. step_s > 0 replaces the logged step of the given submission by a predicted one. */
typedef struct TrainStep {
    const char *submission; /* "strong", "weak" */
    double step_s, sd;      /* predicted step and its log standard deviation */
} TrainStep;
Status validate_time_to_train(const char *csv_path, const TrainStep *steps, int step_count, Arena *arena,
                              ValidationRow **rows_out, int *count_out);

#endif
