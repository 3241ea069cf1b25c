/* Triangle multiplications with their channels first: what gates the factors writes them so, the product is one matrix
 * product per channel as the operands lie, and the layer norm behind it reads channels first. Nothing is transposed in
 * memory, forward or backward. */
#include <stdlib.h>

#include "engine/passes/edit.h"
#include "engine/passes/fuse.h"
#include "engine/passes/replay.h"

/* The op that computes v, NULL when v is persistent, an output or not read exactly once. */
static const Op *source(const Program *p, const int32_t *uses, Val v)
{
    if (v == VAL_NONE || uses[v] != 1 || p->value[v].output || p->value[v].def_op < 0) return NULL;
    return &p->op[p->value[v].def_op];
}

/* The mark behind a product whose factors are sharded along the summed axis: the sum of the ranks' products, by rows.
 */
static const Op *mark_of(const Program *p, const int32_t *uses, Val v)
{
    const Op *op = source(p, uses, v);
    return op && op->kind == OP_RESHARD ? op : NULL;
}

/* The LINEAR_GATES whose gated pair `which` becomes v, maybe made whole on the way. */
static const Op *gates_of(const Program *p, const int32_t *uses, Val v, int *which_out)
{
    const Op *op = source(p, uses, v);
    if (op && op->kind == OP_RESHARD && op->attr.i[0] == SHARD_NONE) {
        v = op->in[0];
        op = source(p, uses, v);
    }
    if (!op || op->kind != OP_LINEAR_GATES || op->attr.i[1] != 2) return NULL;
    for (int k = 0; k < 2; k++)
        if (op->out[k] == v) {
            *which_out = k;
            return op;
        }
    return NULL;
}

/* first[op]: channels come first in it */
static void mark(const Program *p, const int32_t *uses, bool *first)
{
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *norm = &p->op[i], *product = NULL;
        if (norm->stage != STAGE_FORWARD || norm->kind != OP_LAYER_NORM_FUSED) continue;
        const Op *sum = mark_of(p, uses, norm->in[0]);
        product = source(p, uses, sum ? sum->in[0] : norm->in[0]);
        if (!product || product->kind != OP_TRI_PRODUCT) continue;
        int a = 0, b = 0;
        const Op *gates = gates_of(p, uses, product->in[0], &a);
        if (!gates || gates != gates_of(p, uses, product->in[1], &b) || a == b) continue;
        first[i] = first[product - p->op] = first[gates - p->op] = true;
        if (sum) first[sum - p->op] = true;
    }
}

static Op with_channels_first(const Op *op)
{
    Op made = *op;
    if (op->kind == OP_LAYER_NORM_FUSED) made.kind = OP_LAYER_NORM_CHANNELS;
    if (op->kind == OP_TRI_PRODUCT) made.attr.i[2] = 1;
    if (op->kind == OP_LINEAR_GATES) made.attr.i[3] = 1;
    if (op->kind == OP_RESHARD) made.attr.i[0]++; /* its axis is one of the matrix */
    return made;
}

Status fuse_triangle(const Program *in, Program **out)
{
    Replay replay;
    TRY(replay_begin(in, &replay));
    int32_t *uses = edit_count_uses(in);
    bool *first = calloc((size_t)in->n_ops + 1, sizeof *first);
    Status status = OK;
    if (uses && first) {
        mark(in, uses, first);
        for (int32_t i = 0; i < in->n_ops && replay.out->status == OK; i++) {
            Op op = first[i] ? with_channels_first(&in->op[i]) : in->op[i];
            Val inputs[OP_MAX_IN];
            replay_inputs(&replay, &op, inputs);
            replay_op(&replay, &op, inputs);
        }
    } else {
        status = status_fail(ERR_MEMORY, "out of memory for the triangle products of %d ops", in->n_ops);
    }
    free(uses);
    free(first);
    return replay_end(&replay, status, out);
}
