/* y = r + dropout(sigmoid(g) (x W^T + b)): the product that ends a branch; perhaps of the layer norm of a channel-first
 * x, perhaps with the layer norm of y. */
#include <string.h>

#include "kernels/cuda/channels.h"
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/flow_channels.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/small.cuh"

/* Of the layer norm in front. */
enum { GAMMA = 8, BETA, NORMAL = 5 /* output; mean, rstd */ };

/* The operands of a call; what is absent is NULL. */
struct Branch {
    const Tensor *y_tensor;
    const void *r, *x, *w, *g;
    const float *bias;
    void *y, *product;
    int64_t rows, inner, out;
    DType type;
    Dropout drop;
    bool gated, kept, early; /* early: w, bias and the layer norm in front are steady (OpCall) */
    bool channels;           /* x[rows / places, inner, places], its layer norm in front */
    FrontNorm front;
    int64_t places;
    bool normed;
    NormRows norm; /* behind */
};

static const void *optional(const OpCall *call, int k)
{
    return call_in(call, k) ? call->in[k] : NULL;
}

/* Without layout dropout is left out: for questions of shape. */
static Branch branch_of(const RankLayout *layout, const OpCall *call)
{
    const Tensor *x = call->in_tensor[1], *w = call->in_tensor[2];
    Branch b = {};
    b.channels = call_in(call, GAMMA) != NULL;
    if (b.channels) {
        b.front.gamma = (const float *)call->in[GAMMA], b.front.beta = (const float *)call->in[BETA];
        b.front.eps = (float)call->op->attr.f[2];
        if (call->out_tensor[NORMAL]) b.front.y = (bf16 *)call->out[NORMAL];
        if (call->out_tensor[NORMAL + 1]) b.front.mean = (float *)call->out[NORMAL + 1];
        if (call->out_tensor[NORMAL + 2]) b.front.rstd = (float *)call->out[NORMAL + 2];
        b.places = x->dim[x->rank - 2] * x->dim[x->rank - 1];
    }
    b.y_tensor = call->out_tensor[0];
    b.r = call->in[0], b.x = call->in[1], b.w = call->in[2],
    b.early = call_steady(call, 2, 2) && call_steady(call, GAMMA, 2);
    b.bias = (const float *)optional(call, 3), b.g = optional(call, 4);
    b.gated = call_in(call, 4) != NULL, b.kept = call->op->attr.i[2] != 0;
    b.y = call->out[0], b.product = b.kept ? call->out[1] : NULL;
    b.normed = call_in(call, 6) != NULL;
    b.rows = tensor_rows(b.y_tensor), b.inner = w->dim[1], b.out = w->dim[0];
    b.type = x->dtype;
    b.norm = norm_rows_behind(call, 6, 2);
    const int32_t *rng = (const int32_t *)optional(call, 5);
    if (rng && layout)
        dropout_make(layout, b.y_tensor, call->op->attr.i[0], (int)call->op->attr.i[1], call->op->attr.f[0], rng,
                     &b.drop);
    return b;
}

static FlowOperands flow_operands(const Branch &b)
{
    FlowOperands o = {};
    o.x = (const bf16 *)b.x, o.w = (const bf16 *)b.w, o.r = (const bf16 *)b.r, o.g = (const bf16 *)b.g;
    o.y[0] = (bf16 *)b.y, o.product = (bf16 *)b.product;
    o.bias[0] = b.bias;
    o.rows = b.rows, o.inner = b.inner;
    o.members = 1, o.start[1] = (int)b.out, o.early = b.early;
    o.drop = b.drop;
    o.norm = {b.norm.gamma, b.norm.beta, b.norm.eps, (bf16 *)b.norm.y, b.norm.mean, b.norm.rstd};
    return o;
}

/* A small f32 product without gate and dropout takes r at its edge. */
static bool branch_is_small(const Branch &b, SmallBatch *batch)
{
    memset(batch, 0, sizeof *batch);
    batch->early = b.early;
    if (b.type != DT_F32 || b.g || b.drop.rng || b.product) return false;
    SmallProduct p = small_product(b.rows, b.out);
    if (!small_add(&p, b.inner, b.x, b.w)) return false;
    p.bias = b.bias, p.c = (const float *)b.r, p.d = (float *)b.y;
    batch->p[batch->count++] = p;
    return true;
}

/* y = r + f sigmoid(g) p, in a pass of its own */
struct BranchEnd {
    Dropout d;
    bool gated;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float f[V];
#pragma unroll
        for (int j = 0; j < V; j++) f[j] = 1.0f;
        if (d.rng) d.factors<V>(first, f);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] + x[1][j] * f[j] * (gated ? sigmoidf(x[2][j]) : 1.0f);
    }
};

/* The product as a kernel of its own, then the edge. */
static Status branch_in_two(CudaContext *ctx, const OpCall *call, const Branch &b)
{
    int64_t n = tensor_count(b.y_tensor);
    OpCall product = *call;
    Group group = {};
    void *p = b.product ? b.product : call->scratch;
    product.scratch = (char *)call->scratch + align_up((size_t)n * dtype_size(b.type));
    group.members = 1;
    group.rows = b.rows, group.inner = b.inner, group.out[0] = b.out;
    group.x = b.x, group.w[0] = b.w, group.y[0] = p, group.bias[0] = b.bias;
    group.type = b.type, group.early = b.early;
    TRY(dense_group_run(ctx, &product, &group));
    BranchEnd end = {b.drop, b.gated};
    int64_t inner = b.drop.rng ? b.drop.inner : n;
    DISPATCH_REAL(call, b.type, {
        const void *gate = b.gated ? b.g : p;
        MapArgs<T, 3, 1> a = {{(const T *)b.r, (const T *)p, (const T *)gate}, {(T *)b.y}, n};
        return map_launch(a, inner, end, ctx->stream);
    });
    return OK;
}

static FlowEdge edge_of(const Branch &b, bool normed)
{
    if (normed) return b.gated ? FLOW_GATED_NORM : FLOW_RESIDUAL_NORM;
    return b.gated ? FLOW_GATED : FLOW_RESIDUAL;
}

static bool branch_flows(const Branch &b, const FlowOperands &o, bool normed)
{
    bool keeps = b.gated || !b.kept; /* without a gate nobody asks for the product */
    if (b.type != DT_BF16 || b.rows < 1024) return false;
    return b.channels ? b.gated && flow_channels_fits(o, b.front, b.places) : keeps && flow_fits(o, edge_of(b, normed));
}

/* Room for the product, for the biases in bf16, for the result of a layer norm in front. */
static size_t product_room(const OpCall *call)
{
    const Tensor *y = call->out_tensor[0];
    size_t size = dtype_size(y->dtype);
    return align_up((size_t)tensor_count(y) * size) + align_up((size_t)tensor_last(y) * size);
}
static size_t linear_residual_scratch(const OpCall *call)
{
    const Tensor *x = call->in_tensor[1];
    bool made = call_in(call, GAMMA) && !call->out_tensor[NORMAL];
    return product_room(call) + (made ? align_up((size_t)tensor_count(x) * dtype_size(x->dtype)) : 0);
}

/* The layer norm in front as a kernel of its own; its result becomes x. */
static Status branch_front(CudaContext *ctx, const OpCall *call, Branch *b)
{
    Op op = {};
    OpCall norm = {};
    op.kind = OP_LAYER_NORM_CHANNELS, op.n_in = 3, op.n_out = 3, op.attr.f[0] = call->op->attr.f[2];
    norm.op = &op;
    norm.in[0] = b->x, norm.in_tensor[0] = call->in_tensor[1];
    for (int k = 0; k < 2; k++)
        norm.in[1 + k] = call->in[GAMMA + k], norm.in_tensor[1 + k] = call->in_tensor[GAMMA + k];
    norm.out[0] = b->front.y ? (void *)b->front.y : (char *)call->scratch + product_room(call);
    norm.out[1] = b->front.mean, norm.out[2] = b->front.rstd;
    TRY(layer_norm_channels_run(ctx, &norm));
    b->x = norm.out[0];
    b->channels = false, b->front = {}, b->places = 0;
    return OK;
}

/* without the layer norm of y */
static Status branch_alone(CudaContext *ctx, const OpCall *call, const Branch &b)
{
    FlowOperands o = flow_operands(b);
    TRY(peer_send_of(ctx, call, &o.send));
    if (branch_flows(b, o, false)) return flow_launch(o, edge_of(b, false), ctx->stream);
    if (o.send.ranks > 0) return status_fail(ERR_INTERNAL, "linear_residual was to send and cannot");
    SmallBatch few;
    if (branch_is_small(b, &few)) return small_launch<false, true>(&few, ctx->stream);
    return branch_in_two(ctx, call, b);
}

static Status linear_residual(CudaContext *ctx, const OpCall *call)
{
    Branch b = branch_of(ctx->layout, call);
    if (call->in_tensor[2]->dtype != b.type) return cuda_bad_type(call, call->in_tensor[2]->dtype);
    if (b.normed && call->in_tensor[6]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[6]->dtype);
    if (b.channels) {
        FlowOperands o = flow_operands(b);
        TRY(peer_send_of(ctx, call, &o.send));
        if (branch_flows(b, o, b.normed)) return flow_channels_launch(o, b.front, b.places, ctx->stream);
        TRY(branch_front(ctx, call, &b));
    }
    if (!b.normed) return branch_alone(ctx, call, b);
    if (call->op->send.active) return status_fail(ERR_INTERNAL, "linear_residual was to send and cannot");
    FlowOperands o = flow_operands(b);
    if (branch_flows(b, o, true)) return flow_launch(o, edge_of(b, true), ctx->stream);
    TRY(branch_alone(ctx, call, b));
    return norm_rows_run(ctx, call, &b.norm);
}

/* A layer norm behind reads y here, unless the kernel makes it on the way. */
static bool linear_residual_sends(const OpCall *call)
{
    PeerRows rows;
    Branch b = branch_of(NULL, call);
    int last = b.y_tensor->rank - 1;
    bool drops_alike = !call_in(call, 5) || (call->op->attr.i[1] != last && b.y_tensor->shard != last);
    return call->op->send.output == 0 && drops_alike && (b.channels || !b.normed) &&
           branch_flows(b, flow_operands(b), b.normed) && peer_send_rows(call, &rows) && flow_can_send(rows);
}

const CudaEntry cuda_linear_residual[] = {
    {OP_LINEAR_RESIDUAL, linear_residual, linear_residual_scratch, linear_residual_sends},
    {OP_COUNT, NULL, NULL},
};
