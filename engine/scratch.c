#include "engine/scratch.h"

#include <stdlib.h>
#include <string.h>

#include "engine/send.h"

typedef struct Areas {
    size_t compute, aside, group; /* bytes; group: of the one that is being laid out */
    size_t *slot;
    int32_t *slot_of; /* per value: slot of the collective that writes it, -1 = none */
    int32_t *unused;
    int n_unused;
} Areas;

static bool is_start(const Op *op)
{
    return op->stream == STREAM_COMM && op->kind != OP_COMM_WAIT && (op_def(op->kind)->flags & OPF_COMM);
}

void scratch_plan_free(ScratchPlan *plan)
{
    free(plan->at);
    free(plan->slot);
    *plan = (ScratchPlan){0};
}

static void take(Areas *a, ScratchPlan *plan, const Op *op, int32_t i, size_t bytes)
{
    if (op->stream != STREAM_ASIDE) a->group = 0;
    plan->slot[i] = -1;
    plan->at[i] = 0;
    if (is_start(op)) {
        int32_t slot = a->n_unused ? a->unused[--a->n_unused] : plan->slots++;
        plan->slot[i] = a->slot_of[op->out[0]] = slot;
        if (bytes > a->slot[slot]) a->slot[slot] = bytes;
    } else if (op->kind == OP_COMM_WAIT && a->slot_of[op->in[0]] >= 0) {
        plan->slot[i] = a->slot_of[op->in[0]];
        a->unused[a->n_unused++] = plan->slot[i];
        a->slot_of[op->in[0]] = -1;
    } else if (op->stream == STREAM_ASIDE) {
        plan->at[i] = a->group;
        a->group += bytes;
        if (a->group > a->aside) a->aside = a->group;
    } else if (bytes > a->compute) {
        a->compute = bytes;
    }
}

static void lay_out(Areas *a, const Program *p, ScratchPlan *plan)
{
    plan->bytes = a->compute + a->aside;
    for (int k = 0; k < plan->slots; k++) {
        size_t bytes = a->slot[k];
        a->slot[k] = plan->bytes;
        plan->bytes += bytes;
    }
    for (int32_t i = 0; i < p->n_ops; i++)
        if (plan->slot[i] >= 0)
            plan->at[i] = a->slot[plan->slot[i]];
        else if (p->op[i].stream == STREAM_ASIDE)
            plan->at[i] += a->compute;
}

Status scratch_plan_make(const Backend *backend, const Program *p, ScratchPlan *plan)
{
    size_t values = (size_t)p->n_values + 1, ops = (size_t)p->n_ops + 1;
    Areas a = {.slot = calloc(ops, sizeof *a.slot),
               .slot_of = malloc(values * sizeof *a.slot_of),
               .unused = malloc(ops * sizeof *a.unused)};
    Status status = OK;
    *plan = (ScratchPlan){.at = malloc(ops * sizeof *plan->at), .slot = malloc(ops * sizeof *plan->slot)};
    if (!a.slot || !a.slot_of || !a.unused || !plan->at || !plan->slot) {
        scratch_plan_free(plan);
        status = status_fail(ERR_MEMORY, "out of memory for the scratch memory of %d ops", p->n_ops);
    } else {
        memset(a.slot_of, -1, values * sizeof *a.slot_of);
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            size_t bytes = scratch_runs_kernel(op) ? scratch_padded(send_scratch_bytes(backend, p, op)) : 0;
            take(&a, plan, op, i, bytes);
        }
        lay_out(&a, p, plan);
    }
    free(a.slot);
    free(a.slot_of);
    free(a.unused);
    return status;
}
