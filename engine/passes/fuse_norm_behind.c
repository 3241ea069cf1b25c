/* Layer norms move into the op that computes what they normalize: it has whole rows at hand, which then are not read
 * again. After differentiation, so that gradients are those of the two apart, and after sharding: a layer norm of what
 * a collective has brought has no such op in front. */
#include <stdlib.h>

#include "engine/passes/edit.h"
#include "engine/passes/fuse.h"

enum { NORM_OUTPUTS = 3 /* normalized, mean, rstd */ };

/* Where a kind takes gamma, beta right behind it, and gives what a layer norm gives; its eps is f[1]. channels: of rows
 * that a block of threads of a GPU holds whole (kernels/cuda/flow.cuh, transition.cuh, outer_chain.cuh). */
typedef struct Behind {
    OpKind kind;
    int gamma, out, channels;
} Behind;
static const Behind kinds[] = {{OP_LINEAR_RESIDUAL, 6, 2, 128}, {OP_TRANSITION, 7, 5, 256}, {OP_OPM, 8, 1, 128}};

static const Behind *behind_of(const Op *op)
{
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
        if (kinds[k].kind == op->kind) return &kinds[k];
    return NULL;
}

/* The op that takes in op `at`, a layer norm; NULL when there is none. */
static Op *taker_of(const Program *p, int32_t at)
{
    const Op *norm = &p->op[at];
    if (norm->kind != OP_LAYER_NORM_FUSED || norm->stage != STAGE_FORWARD) return NULL;
    const Value *x = &p->value[norm->in[0]];
    if (x->def_op < 0 || x->place != PLACE_ARENA || x->alias != VAL_NONE) return NULL;
    Op *op = &p->op[x->def_op];
    const Behind *behind = behind_of(op);
    bool alike = op->stage == norm->stage && op->block == norm->block && op->full_precision == norm->full_precision;
    if (!behind || !alike || op->out[0] != norm->in[0] || tensor_last(&x->t) > behind->channels) return NULL;
    if (op->n_in > behind->gamma && op->in[behind->gamma] != VAL_NONE) return NULL; /* has one */
    for (int k = 1; k <= 2; k++)
        if (p->value[norm->in[k]].def_op >= x->def_op) return NULL;
    return op;
}

static void take(Op *op, const Op *norm)
{
    const Behind *behind = behind_of(op);
    while (op->n_in < behind->gamma + 2) op->in[op->n_in++] = VAL_NONE;
    while (op->n_out < behind->out + NORM_OUTPUTS) op->out[op->n_out++] = VAL_NONE;
    for (int k = 0; k < 2; k++) op->in[behind->gamma + k] = norm->in[1 + k];
    for (int k = 0; k < NORM_OUTPUTS; k++) op->out[behind->out + k] = norm->out[k];
    op->attr.f[1] = norm->attr.f[0];
}

Status fuse_norm_behind(Program *p)
{
    bool *gone = calloc((size_t)p->n_ops + 1, sizeof *gone);
    if (!gone) return status_fail(ERR_MEMORY, "out of memory for the layer norms of %d ops", p->n_ops);
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *taker = taker_of(p, i);
        if (!taker) continue;
        take(taker, &p->op[i]);
        gone[i] = true;
    }
    edit_close_gaps(p, gone);
    free(gone);
    return OK;
}
