/* y = r + dropout(sigmoid(g) (x W^T + b)): the product that ends a branch; perhaps with the layer norm of y. */
#include <string.h>

#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/flow.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/small.cuh"

/* The operands of a call; what is absent is NULL. */
struct Branch {
    const Tensor *y_tensor;
    const void *r, *x, *w, *g;
    const float *bias;
    void *y, *product;
    int64_t rows, inner, out;
    DType type;
    Dropout drop;
    bool gated, kept, normed;
    NormRows norm;
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
    b.y_tensor = call->out_tensor[0];
    b.r = call->in[0], b.x = call->in[1], b.w = call->in[2];
    b.bias = (const float *)optional(call, 3), b.g = optional(call, 4);
    b.gated = call_in(call, 4) != NULL, b.kept = call->op->attr.i[2] != 0;
    b.y = call->out[0], b.product = b.kept ? call->out[1] : NULL;
    b.normed = call_in(call, 6) != NULL;
    b.rows = tensor_rows(x), b.inner = tensor_last(x), b.out = w->dim[0];
    b.type = x->dtype;
    if (b.normed) {
        NormRows &n = b.norm;
        n.x = b.y, n.gamma = (const float *)call->in[6], n.beta = (const float *)call->in[7], n.y = call->out[2];
        n.mean = (float *)call->out[3], n.rstd = (float *)call->out[4], n.eps = (float)call->op->attr.f[1];
        n.rows = b.rows, n.c = b.out, n.type = b.type;
    }
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
    o.members = 1, o.start[1] = (int)b.out;
    o.drop = b.drop;
    o.norm = {b.norm.gamma, b.norm.beta, b.norm.eps, (bf16 *)b.norm.y, b.norm.mean, b.norm.rstd};
    return o;
}

/* A small f32 product without gate and dropout takes r at its edge. */
static bool branch_is_small(const Branch &b, SmallBatch *batch)
{
    memset(batch, 0, sizeof *batch);
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
    group.type = b.type;
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
    return b.type == DT_BF16 && b.rows >= 1024 && keeps && flow_fits(o, edge_of(b, normed));
}

/* without the layer norm of y */
static Status branch_alone(CudaContext *ctx, const OpCall *call, const Branch &b)
{
    FlowOperands o = flow_operands(b);
    TRY(peer_send_of(ctx, call, &o.send));
    if (branch_flows(b, o, false)) return flow_launch(o, edge_of(b, false), ctx->stream);
    if (o.send.ranks > 0) return status_fail(ERR_INTERNAL, "linear_residual was to send and cannot");
    SmallBatch few;
    if (branch_is_small(b, &few)) return small_launch<false, true>(few, ctx->stream);
    return branch_in_two(ctx, call, b);
}

static Status linear_residual(CudaContext *ctx, const OpCall *call)
{
    Branch b = branch_of(ctx->layout, call);
    if (call->in_tensor[2]->dtype != b.type) return cuda_bad_type(call, call->in_tensor[2]->dtype);
    if (!b.normed) return branch_alone(ctx, call, b);
    if (call->in_tensor[6]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[6]->dtype);
    FlowOperands o = flow_operands(b);
    if (branch_flows(b, o, true)) return flow_launch(o, edge_of(b, true), ctx->stream);
    TRY(branch_alone(ctx, call, b));
    return norm_rows_run(ctx, call, &b.norm);
}

/* Without a layer norm, which would read y here. */
static bool linear_residual_sends(const OpCall *call)
{
    PeerRows rows;
    Branch b = branch_of(NULL, call);
    int last = b.y_tensor->rank - 1;
    bool drops_alike = !call_in(call, 5) || (call->op->attr.i[1] != last && b.y_tensor->shard != last);
    return call->op->send.output == 0 && drops_alike && !b.normed && branch_flows(b, flow_operands(b), false) &&
           peer_send_rows(call, &rows) && flow_can_send(rows);
}

/* The product, then the biases in bf16. */
static size_t linear_residual_scratch(const OpCall *call)
{
    const Tensor *y = call->out_tensor[0];
    size_t size = dtype_size(y->dtype);
    return align_up((size_t)tensor_count(y) * size) + align_up((size_t)tensor_last(y) * size);
}

const CudaEntry cuda_linear_residual[] = {
    {OP_LINEAR_RESIDUAL, linear_residual, linear_residual_scratch, linear_residual_sends},
    {OP_COUNT, NULL, NULL},
};
