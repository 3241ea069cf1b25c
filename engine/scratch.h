/* Scratch memory of a program's ops, behind its arena: one area for the ops of the compute stream, one for the groups
 * beside it, in which the ops of a group follow one another, and one per collective in flight (its packed message). */
#ifndef FOLDSCALE_ENGINE_SCRATCH_H
#define FOLDSCALE_ENGINE_SCRATCH_H

#include "engine/backend.h"

typedef struct ScratchPlan {
    size_t bytes;
    size_t *at;    /* per op: where its scratch memory begins */
    int32_t *slot; /* per op: OpCall.comm_slot */
    int slots;
} ScratchPlan;

Status scratch_plan_make(const Backend *backend, const Program *program, ScratchPlan *plan);
void scratch_plan_free(ScratchPlan *plan);

/* Memory begins and ends at multiples of what vector accesses and transfers like. */
enum { SCRATCH_ALIGN = 256 };
static inline size_t scratch_padded(size_t bytes)
{
    return (bytes + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
}

/* Ops whose output is their input under another name run no kernel; waiting does. */
static inline bool scratch_runs_kernel(const Op *op)
{
    return op->kind == OP_COMM_WAIT || !(op_def(op->kind)->flags & OPF_ALIAS);
}

#endif
