/* The gradient of a gate behind a product's: one kernel (product_gate.cuh), or in its two parts. What the kernel does
 * not take of a dropout in front and of sums over heads behind runs by itself. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/pointwise.h"
#include "kernels/cuda/product_gate.cuh"

enum { DY, W, G, X, RNG };
enum { DG, DX, DELTA, DROPPED };

/* Sums over heads of dx x, where they are asked for. */
static Status gate_delta(CudaContext *ctx, const OpCall *call)
{
    int64_t heads = call->op->attr.i[2];
    if (!heads) return OK;
    int64_t count = tensor_count(call->out_tensor[DELTA]), width = tensor_last(call->out_tensor[DX]) / heads;
    DISPATCH_REAL(call, call->out_tensor[DX]->dtype, {
        return att_delta_launch((const T *)call->out[DX], (const T *)call->in[X], (float *)call->out[DELTA], count,
                                (int)width, ctx->stream);
    });
}

/* dropout(dy) by itself; then takes the place of dy in the call. */
static Status gate_drop_apart(CudaContext *ctx, OpCall *call)
{
    Op op = {};
    op.kind = OP_DROPOUT, op.n_in = 2, op.n_out = 1, op.attr = call->op->attr;
    OpCall drop = *call;
    drop.op = &op;
    drop.in[1] = call->in[RNG], drop.in_tensor[1] = call->in_tensor[RNG];
    drop.out[0] = call->out[DROPPED], drop.out_tensor[0] = call->out_tensor[DROPPED];
    TRY(dropout_run(ctx, &drop));
    call->in[DY] = call->out[DROPPED];
    return OK;
}

static bool gate_operands(const RankLayout *layout, const OpCall *call, GateOperands *o)
{
    const Tensor *dy = call->in_tensor[DY], *w = call->in_tensor[W];
    o->dy = call->in[DY], o->w = call->in[W], o->g = call->in[G], o->x = call->in[X];
    o->dg = call->out[DG], o->dx = call->out[DX], o->early = call_steady(call, W, 1);
    o->rows = tensor_rows(dy), o->inner = w->dim[0], o->columns = w->dim[1];
    o->heads = (int)call->op->attr.i[2], o->delta = o->heads ? (float *)call->out[DELTA] : NULL;
    o->drop = {}, o->dropped = NULL;
    if (call_in(call, RNG)) {
        dropout_make(layout, dy, call->op->attr.i[0], (int)call->op->attr.i[1], call->op->attr.f[0],
                     (const int32_t *)call->in[RNG], &o->drop);
        o->dropped = call->out[DROPPED];
    }
    for (int k = DY; k <= X; k++)
        if (call->in_tensor[k]->dtype != DT_BF16) return false;
    return gate_fits(*o);
}

/* dy W in the place of dx, then the gate. */
static Status gate_in_parts(CudaContext *ctx, const OpCall *call)
{
    Op op = {};
    op.kind = OP_LINEAR_DX, op.n_in = 2, op.n_out = 1;
    OpCall product = *call;
    product.op = &op;
    product.out[0] = call->out[DX], product.out_tensor[0] = call->out_tensor[DX];
    TRY(linear_dx_run(ctx, &product));
    op.kind = OP_GATE_BWD, op.n_in = 3, op.n_out = 2;
    OpCall gate = *call;
    gate.op = &op;
    gate.in[0] = call->out[DX], gate.in_tensor[0] = call->out_tensor[DX];
    gate.in[1] = call->in[G], gate.in_tensor[1] = call->in_tensor[G];
    gate.in[2] = call->in[X], gate.in_tensor[2] = call->in_tensor[X];
    TRY(gate_bwd_run(ctx, &gate));
    return gate_delta(ctx, call);
}

static Status linear_gate_dx(CudaContext *ctx, const OpCall *call)
{
    GateOperands o;
    OpCall rest = *call;
    bool fits = gate_operands(ctx->layout, call, &o);
    if (o.dropped && !(fits && gate_drops(o))) {
        TRY(gate_drop_apart(ctx, &rest));
        o.dy = rest.in[DY], o.dropped = NULL;
    }
    if (!fits) return gate_in_parts(ctx, &rest);
    TRY(gate_launch(o, ctx->stream));
    return gate_sums(o) ? OK : gate_delta(ctx, call);
}

const CudaEntry cuda_linear_gate_dx[] = {
    {OP_LINEAR_GATE_DX, linear_gate_dx, NULL},
    {OP_COUNT, NULL, NULL},
};
