/* The tables of a study (study.md), defined once for those who write them and those who read them. Column names carry
 * units: _s seconds, _bytes bytes. Readers find columns by name; a missing one is named with its file. */
#ifndef FOLDSCALE_ANALYSIS_SCHEMA_H
#define FOLDSCALE_ANALYSIS_SCHEMA_H

#include "analysis/table.h"

/* The switches that have a column of their own in runs.csv and predictions.csv (dap has its own integer column). Values
 * are text: "on" or "off", and "none", "block" or "selective" for checkpoint. */
#define SCHEMA_SWITCHES(X)                                                                                             \
    X(NONBLOCKING_LOADER, nonblocking_loader)                                                                          \
    X(GEMM_BATCHING, gemm_batching)                                                                                    \
    X(FUSED_ATTENTION, fused_attention)                                                                                \
    X(FUSED_LAYERNORM, fused_layernorm)                                                                                \
    X(FUSED_POINTWISE, fused_pointwise)                                                                                \
    X(FUSED_OPTIMIZER, fused_optimizer)                                                                                \
    X(BF16, bf16)                                                                                                      \
    X(CHECKPOINT, checkpoint)                                                                                          \
    X(COMM_OVERLAP, comm_overlap)                                                                                      \
    X(OVERLAP_CLIP, overlap_clip)                                                                                      \
    X(CUDA_GRAPH, cuda_graph)                                                                                          \
    X(ASYNC_EVAL, async_eval)                                                                                          \
    X(EVAL_CACHE, eval_cache)

enum SchemaSwitch {
#define X(id, name) SWITCH_##id,
    SCHEMA_SWITCHES(X)
#undef X
        SCHEMA_SWITCH_COUNT
};

/* The phases that add up to step_s. */
#define SCHEMA_PHASES(X)                                                                                               \
    X(DATA_WAIT, data_wait_s)                                                                                          \
    X(FORWARD_NOGRAD, forward_nograd_s)                                                                                \
    X(FORWARD, forward_s)                                                                                              \
    X(BACKWARD, backward_s)                                                                                            \
    X(COMM_EXPOSED, comm_exposed_s)                                                                                    \
    X(OPTIMIZER, optimizer_s)                                                                                          \
    X(EVAL, eval_s)                                                                                                    \
    X(OTHER, other_s)

enum SchemaPhase {
#define X(id, name) PHASE_##id,
    SCHEMA_PHASES(X)
#undef X
        SCHEMA_PHASE_COUNT
};

extern const char *const SCHEMA_SWITCH_NAMES[SCHEMA_SWITCH_COUNT];
extern const char *const SCHEMA_PHASE_NAMES[SCHEMA_PHASE_COUNT];

/* steps.csv: one row per step and rank */
typedef struct StepRow {
    int64_t step, rank, recycling;
    double loss, gradient_norm, learning_rate; /* NAN where not computed on this rank */
    double step_s;
    double phase_s[SCHEMA_PHASE_COUNT];
} StepRow;

/* runs.csv: one row per repeat of a sweep's point */
typedef struct RunRow {
    const char *run_id, *experiment, *backend, *device;
    int64_t ranks, dp, dap;
    const char *switches[SCHEMA_SWITCH_COUNT]; /* NULL writes an empty cell: not applicable */
    int64_t samples;                           /* steps x global batch over which the means were taken */
    double step_s_mean, step_s_median, step_s_p05, step_s_p95;
    double phase_s[SCHEMA_PHASE_COUNT]; /* means; NAN where not timed apart */
    double samples_per_s, peak_bytes;
    double model_flops; /* of one step, all ranks */
    double mfu;         /* fraction of the machine's peak */
    double wire_bytes;  /* sent by one rank in one step */
    double data_wait_fraction;
    const char *provenance; /* hash of run.json, 16 hexadecimal digits, or "": two rows with the same one are the same
                             * measurement */
    const char *file;       /* that it was read from, and the line there; not written */
    long line;
} RunRow;

/* ops.csv: one row per op of the profiled program */
typedef struct OpRow {
    int64_t op;
    const char *kind, *name, *stage; /* stage: forward_nograd, forward, backward, optimizer */
    double calls;                    /* per step, mean: 1.5 of an iteration without gradient that runs 0 to 3 times */
    double time_s;                   /* per step, all calls */
    double flops, bytes, wire_bytes; /* per call */
    double predicted_s;              /* per step; NAN when no machine was given */
    double flop_per_s, bytes_per_s;  /* achieved: per call x calls / time_s; NAN without a time, or in older files */
    long line;
} OpRow;

/* predictions.csv */
typedef struct PredictionRow {
    const char *machine;
    int64_t gpus, dp, dap;
    const char *switches[SCHEMA_SWITCH_COUNT];
    double step_s, lo90_s, hi90_s;
    double n_over_nmax; /* N / largest measured N */
    bool flagged;       /* beyond 8x, or another machine than the fitted one */
    double serial_s, compute_s, comm_exposed_s, straggler_s, loader_s, host_s;
    const char *note; /* why it is flagged; "" otherwise */
} PredictionRow;

/* eval.csv as far as reports need it; further columns may follow (readers find these by name) */
typedef struct EvalRow {
    int64_t step;
    double elapsed_s; /* since the start of training; NAN when the column is absent */
    const char *chain;
    double lddt_ca, seconds;
} EvalRow;

typedef struct RunTable {
    Table *table; /* owns the strings */
    RunRow *rows;
    int64_t count;
} RunTable;
typedef struct StepTable {
    Table *table;
    StepRow *rows;
    int64_t count;
} StepTable;
typedef struct OpTable {
    Table *table;
    OpRow *rows;
    int64_t count;
} OpTable;
typedef struct PredictionTable {
    Table *table;
    PredictionRow *rows;
    int64_t count;
} PredictionTable;
typedef struct EvalTable {
    Table *table;
    EvalRow *rows;
    int64_t count;
} EvalTable;

/* Readers. Numbers out of range (a negative time, ranks != dp * dap, percentiles out of order) and a last
 * row of runs.csv without an end are refused with their line; an empty cell is NAN where the comment above allows it.
 */
Status schema_read_steps(const char *path, StepTable *out);
Status schema_read_runs(const char *path, RunTable *out);
Status schema_read_ops(const char *path, OpTable *out);
Status schema_read_predictions(const char *path, PredictionTable *out);
Status schema_read_eval(const char *path, EvalTable *out);
void schema_free_steps(StepTable *table);
void schema_free_runs(RunTable *table);
void schema_free_ops(OpTable *table);
void schema_free_predictions(PredictionTable *table);
void schema_free_eval(EvalTable *table);

/* Writers; `append` as in table_writer_append (steps.csv, runs.csv), otherwise the file appears whole on close. */
Status schema_steps_writer(const char *path, bool append, TableWriter **out);
Status schema_runs_writer(const char *path, bool append, TableWriter **out);
Status schema_ops_writer(const char *path, TableWriter **out);
Status schema_predictions_writer(const char *path, TableWriter **out);
Status schema_eval_writer(const char *path, bool append, TableWriter **out);
Status schema_write_step(TableWriter *writer, const StepRow *row);
Status schema_write_run(TableWriter *writer, const RunRow *row);
Status schema_write_op(TableWriter *writer, const OpRow *row);
Status schema_write_prediction(TableWriter *writer, const PredictionRow *row);
Status schema_write_eval(TableWriter *writer, const EvalRow *row);

#endif
