/* Step times of configurations nobody ran, and time to train. */
#ifndef FOLDSCALE_ANALYSIS_PREDICT_H
#define FOLDSCALE_ANALYSIS_PREDICT_H

#include "analysis/fit.h"
#include "analysis/opprice.h"
#include "analysis/schema.h"

/* Shape of dp x dap ranks of `machine` from a program's cost: work = priced computation relative to reference_s (the
 * priced computation of the fitted reference configuration on the fitted machine), communication from the collective
 * model with the overlap of the schedule. price_out may be NULL. */
Status predict_shape(const OpPrices *prices, const Machine *machine, const StepCost *cost, int64_t dp,
                     double reference_s, StepShape *shape_out, StepPrice *price_out);

/* The same without a recorded program: computation divides by dap, one all-reduce of `gradient_bytes` over the
 * data-parallel ranks and `model_collectives` collectives of `model_bytes` each (whole tensors) over the DAP group. */
typedef struct PlainStep {
    double gradient_bytes;
    double model_collectives, model_bytes;
    Collective model_kind;
    bool in_graph;
} PlainStep;
Status predict_plain_shape(const Machine *machine, const PlainStep *step, int64_t dp, int64_t dap,
                           StepShape *shape_out);

typedef struct PredictRequest {
    const Machine *machine;
    bool other_machine; /* not the one the fit was made on: flagged, and the spread of its ceilings is added */
    int64_t dp, dap;
    const char *switches[SCHEMA_SWITCH_COUNT];
    StepShape shape;
    double extra_sd;     /* of unmeasured kernels (StepPrice.sd); 0 for configurations that were measured */
    const char *outside; /* further reasons why it lies outside of what was fitted; NULL or "": none */
} PredictRequest;

/* One row of predictions.csv; `note` is allocated in arena. Every extrapolation is flagged with its reason. */
Status predict_row(const FitModel *fit, const PredictRequest *request, Arena *arena, PredictionRow *row_out);

/* --- time to train
 * ---------------------------------------------------------------------------------------------------- */

typedef struct TrainPlan {
    double samples_to_target; /* training samples when the target is reached */
    double samples_sd;        /* log standard deviation between seeds */
    double global_batch;
    double startup_s;      /* clock start to first step */
    double warmup_extra_s; /* first cycle beyond the others */
    int64_t eval_every;    /* steps between evaluations; 0: none */
    double eval_s;         /* of one evaluation */
    double first_gap_s;    /* training stands still after the first cycle */
    double gap_s;          /* ... after the later ones (hand-over, or the evaluation itself when synchronous) */
    bool async_eval;       /* evaluation on other GPUs: only the gap stops training, and the deciding evaluation
                              ends eval_s after its cycle */
} TrainPlan;

typedef struct TrainTime {
    double total_s, lo90_s, hi90_s;
    double startup_s, steps_s, warmup_s, gaps_s, eval_s; /* parts of total_s */
    double steps;
    int64_t evaluations;
} TrainTime;

/* step_s is the point estimate; draws (may be NULL: lo = hi = step) are step-time draws as of fit_predict_draws. */
Status predict_train_time(const TrainPlan *plan, double step_s, const double *draws, int count, uint64_t seed,
                          TrainTime *out);

#endif
