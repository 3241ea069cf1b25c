/* One self-contained HTML file, with its plots, their scripts and their CSVs beside it, from the tables of a study. */
#ifndef FOLDSCALE_ANALYSIS_REPORT_H
#define FOLDSCALE_ANALYSIS_REPORT_H

#include "analysis/fit.h"
#include "analysis/predict.h"
#include "analysis/schema.h"

/* A point of somebody else's curve. */
typedef struct PublishedPoint {
    const char *label; /* what the legend says: code, GPU, DAP */
    double gpus, step_s;
    double batch; /* samples of a step over all GPUs */
} PublishedPoint;

/* Everything is optional: a plot whose data are missing is left out and the report says so. Borrowed pointers. */
typedef struct ReportInput {
    const char *title;
    const RunRow *runs; /* runs.csv */
    int64_t run_count;
    const PredictionRow *predictions; /* predictions.csv */
    int64_t prediction_count;
    const OpRow *ops; /* ops.csv */
    int64_t op_count;
    const Machine *machine; /* of the ops, for the roofline */
    CostRate rate;          /* element type of the profiled products */
    const FitModel *fit;
    const FitPoint *points; /* what was fitted */
    int point_count;
    const PublishedPoint *published;
    int published_count;
    const StepRow *steps; /* one run's steps.csv */
    int64_t step_count;
    const StepRow *steps_blocking; /* the same with the ordered loader; steps: ready-first */
    int64_t step_blocking_count;
    const StepRow *curve_steps; /* the run whose loss and lDDT-Ca are shown; NULL: steps */
    int64_t curve_step_count;
    const EvalRow *evals;
    int64_t eval_count;
    const TrainTime *train_times; /* [train_time_count], one bar each */
    const char *const *train_labels;
    int train_time_count;
} ReportInput;

/* Writes FOLDER/report.html and the plots. The folder must exist. */
Status report_write(const char *folder, const ReportInput *input);

/* The paragraph of plain conclusions: what limits at which count, what to switch on first, where more GPUs stop paying.
 * Every sentence is computed from the input. NULL when out of memory. */
char *report_conclusions(const ReportInput *input, Arena *arena);

#endif
