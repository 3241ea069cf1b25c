/* A study's fit put to use: the step of an experiment on any machine. Shared by predict, simulate, advise. */
#ifndef FOLDSCALE_EXPERIMENTS_PREDICTOR_H
#define FOLDSCALE_EXPERIMENTS_PREDICTOR_H

#include "experiments/pricing.h"

/* Members that are NULL stand for what the study's folder holds. */
typedef struct PredictorOptions {
    const char *folder;
    const char *fit, *experiment, *target, *machine, *ops;
    const TextList *overrides; /* of the predicted experiment */
} PredictorOptions;

typedef struct Predictor Predictor;

Status predictor_open(const PredictorOptions *options, Predictor **predictor_out);
void predictor_close(Predictor **predictor);

/* Whether what is predicted may be written to `out`, before any work (output_check, of the study's own files too).
 * `machines` may be NULL. */
Status predictor_check_output(const char *what, const char *out, const PredictorOptions *options,
                              const TextList *machines);

/* The experiment whose step is predicted. */
const Config *predictor_config(const Predictor *predictor);

/* Takes the DAP degrees over which that step cannot be split out of the list, each with a note on standard error. */
Status predictor_keep_degrees(const Predictor *predictor, int64_t *dap, int *count);

/* What predictor_row predicts from: the fit that holds for the machine (borrowed, until the next call for another
 * machine), the shape of the configuration and the log standard deviation of what was not measured there. */
Status predictor_shape(Predictor *predictor, const Machine *machine, const SwitchSection *switches, int64_t gpus,
                       int64_t dap, const FitModel **fit_out, StepShape *shape_out, double *extra_sd_out);

/* Text of the row is allocated in `arena`. */
Status predictor_row(Predictor *predictor, const Machine *machine, const SwitchSection *switches, int64_t gpus,
                     int64_t dap, Arena *arena, PredictionRow *row_out);

#endif
