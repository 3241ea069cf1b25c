/* What one training step asks of one rank, summed up from recorded programs: classes of like ops with their flops,
 * bytes and calls, and the collectives with the computation that may hide them. Machine-independent; a few hundred
 * classes for a model of ten thousand ops, so that pricing takes microseconds. */
#ifndef FOLDSCALE_ANALYSIS_COST_H
#define FOLDSCALE_ANALYSIS_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "analysis/machine.h"
#include "engine/arena.h"
#include "engine/program.h"

typedef enum CostStage { COST_FORWARD_NOGRAD, COST_FORWARD, COST_BACKWARD, COST_OPTIMIZER, COST_STAGE_COUNT } CostStage;
typedef enum CostRate { RATE_F32, RATE_F64, RATE_BF16, RATE_COUNT } CostRate;
typedef enum CostGroup { COST_GROUP_MODEL, COST_GROUP_DATA, COST_GROUP_ALL } CostGroup; /* DAP, data-parallel, all */

extern const char *const COST_STAGE_NAMES[COST_STAGE_COUNT]; /* "forward_nograd", "forward", ... as in ops.csv */
extern const char *const COST_RATE_NAMES[RATE_COUNT];        /* "f32", "f64", "bf16" */

typedef struct CostClass {
    const char *kind; /* op kind, as in the op table and ops.csv */
    CostStage stage;
    CostRate rate;       /* element type of the products */
    bool sharded;        /* works on a slice: shrinks with DAP */
    bool recomputed;     /* repeated for the backward pass */
    double calls;        /* per step */
    double flops, bytes; /* per call */
    bool sends;          /* what it computes, by a collective that is a class of its own */
    bool wait;           /* of the compute stream for a collective: costs what joining streams costs */
    /* collectives only */
    bool comm;
    bool aside;         /* on the stream of communication */
    const char *sender; /* kind of the op that sends what it computes; NULL: an op of its own */
    Collective collective;
    CostGroup group;
    double tensor_bytes; /* whole tensor (see MachineSample), per call */
    /* computation between start and wait that the collective may hide behind, per call; 0 when it blocks */
    double cover_flops, cover_bytes, cover_kernels;
} CostClass;

typedef struct StepCost {
    Arena arena;
    CostClass *item;
    int count, capacity;
    int64_t dap;
    double flops, bytes, wire_bytes, kernels; /* totals of a step of one rank */
    double waits;                             /* of the compute stream for collectives, not among the kernels */
    bool in_graph;                            /* kernels are launched from captured graphs */
    bool comm_left_out;                       /* one rank's share alone: of collectives, the packing is paid */
} StepCost;

Status cost_create(int64_t dap, bool in_graph, StepCost **cost_out);
void cost_destroy(StepCost **cost);

/* What the compute stream pays of a collective on the other stream, as a kind of op: "all_to_all_aside". */
extern const char *const COST_ASIDE_NAMES[COLLECTIVE_COUNT];

/* Adds a class (kind is copied), merged with an equal one. */
Status cost_add(StepCost *cost, const CostClass *item);

/* Where the tables book an op; STAGE_SYNC counts as backward. `nograd`: of the program without gradients. */
CostStage cost_stage(const Op *op, bool nograd);

/* The class of one op that runs `calls` times per step; without what covers a collective, which needs the schedule. Of
 * an op that sends, that of its computation, and that of its collective, which this computation covers; not what runs
 * beside it. */
CostClass cost_classify(const Program *program, const Op *op, double calls, bool nograd);
CostClass cost_classify_sent(const Program *program, const Op *op, double calls, bool nograd);

/* Adds a program that has gone through the passes up to schedule, run `times` times per step (the mean number of
 * no-gradient forwards, 1 for the gradient program and the optimizer). `nograd` books its forward ops as
 * COST_FORWARD_NOGRAD. The computation that hides a collective is read off the schedule: ops on the compute stream
 * between the collective and its wait, each counted for the oldest collective in flight; what an op sends, by the op
 * and by those that run beside it (Send.shares). */
Status cost_add_program(StepCost *cost, const Program *program, double times, bool nograd);

#endif
