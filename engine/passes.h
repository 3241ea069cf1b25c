/* Passes: each takes a program and makes another one; the input is left alone. passes_run() runs them in order with
 * prog_verify() after each.
 *
 *   record -> fuse -> shard -> precision -> autodiff -> remat -> schedule -> plan
 *
 * Adding a switch is a line of switch_list.def and the pass that reads it. */
#ifndef FOLDSCALE_ENGINE_PASSES_H
#define FOLDSCALE_ENGINE_PASSES_H

#include "engine/program.h"

typedef enum Precision { PRECISION_F32, PRECISION_F64, PRECISION_BF16 } Precision;
typedef enum Checkpointing { CHECKPOINT_NONE, CHECKPOINT_BLOCK, CHECKPOINT_SELECTIVE } Checkpointing;

/* The optimizations of a training step. Loader and evaluation switches live with the loader and the runner. */
typedef struct Switches {
#define SWITCH(name) bool name;
#include "engine/switch_list.def"
#undef SWITCH
    Precision precision; /* bf16 switch: PRECISION_BF16; PRECISION_F64 is for checks */
    Checkpointing checkpoint;
    int dap; /* 1, 2, 4, 8 */
    int dp;  /* data-parallel replicas: gradients are averaged over them */
} Switches;

typedef enum PassStage {
    PASS_RECORD,
    PASS_FUSE,
    PASS_SHARD,
    PASS_PRECISION,
    PASS_AUTODIFF,
    PASS_REMAT,
    PASS_SCHEDULE,
    PASS_PLAN,
    PASS_COUNT
} PassStage;

const char *pass_name(PassStage stage);                        /* "record", "fuse", ... */
Status pass_from_name(const char *name, PassStage *stage_out); /* ERR_USAGE listing the names */

Status pass_fuse(const Program *in, const Switches *switches, Program **out);
/* Lowers the RESHARD marks for groups of switches->dap ranks (1: removes them). ERR_INPUT naming the value and the axis
 * when an extent does not divide. */
Status pass_shard(const Program *in, const Switches *switches, Program **out);
Status pass_precision(const Program *in, const Switches *switches, Program **out);
/* If the program has a loss: appends the backward ops (STAGE_BACKWARD), every parameter's gradient in PLACE_GRAD (zero
 * where none arrives), then the gradient all-reduces (STAGE_SYNC) when dp * dap > 1: sum over the DAP group for
 * parameters of sharded ops, mean over the data-parallel group for all. With a loss or without, layer norms then move
 * into the ops that compute what they normalize. */
Status pass_autodiff(const Program *in, const Switches *switches, Program **out);
Status pass_remat(const Program *in, const Switches *switches, Program **out);
Status pass_schedule(const Program *in, const Switches *switches, Program **out);
Status pass_plan(const Program *in, const Switches *switches, Program **out);

/* Removes ops whose outputs nobody reads (outputs, persistent places and OPF_EFFECT ops are kept). */
Status pass_prune(const Program *in, Program **out);

/* Runs the passes up to and including `last`. */
Status passes_run(const Program *recorded, const Switches *switches, PassStage last, Program **out);

/* ERR_INTERNAL naming the op: a value read before it is written or written twice, shapes or dtypes that differ from
 * infer's, shard axes that do not fit, a replicated value with gradient that feeds a sharded op without a mark, overlap
 * of live temporaries after plan, a COMM_WAIT without its start. */
Status prog_verify(const Program *program, PassStage after);

#endif
