/* The gradient of a transition: one kernel (transition_backward.cuh), or in its two parts. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/transition_backward.cuh"

enum { W2 = NORM_DY + 1, HIDDEN, W1 };
enum { DH = 3, DROPPED };

static bool gradient_fits(const OpCall *call, const NormEdge &edge)
{
    const Tensor *x = call->in_tensor[NORM_X], *h = call->in_tensor[HIDDEN];
    bool fits = x->dtype == DT_BF16 && call->in_tensor[W1]->dtype == DT_BF16 && call->in_tensor[W2]->dtype == DT_BF16;
    fits = fits && tensor_rows(x) >= 1024 && tensor_rows(x) <= INT32_MAX - 128 && tensor_last(h) % 128 == 0;
    for (int k = NORM_DY; k <= W1; k++) fits = fits && aligned16(call->in[k]);
    return fits && aligned16(call->out[DH]) && norm_edge_fits(call, edge);
}

template <int C> static Status gradient_launch(const OpCall *call, const NormEdge &edge, cudaStream_t stream)
{
    typedef GradientShape<C> S;
    enum { PROCESSORS = 132, ROWS = TRANSITION_GROUPS * TRANSITION_ROWS };
    int64_t width = tensor_last(call->in_tensor[HIDDEN]), rows = edge.rows;
    TransitionGradient p = {};
    p.edge = edge, p.width = (int)width,
    p.early = call_steady(call, W2, 1) && call_steady(call, W1, 1) && call_steady(call, NORM_GAMMA, 1);
    int tiles = (edge.rows + ROWS - 1) / ROWS, blocks = tiles < PROCESSORS ? tiles : PROCESSORS;
    if (edge.dropped) p.edge.mask = norm_mask(edge.drop, blocks, ROWS);
    TRY(tensor_map(call->in[NORM_DY], rows, C, TRANSITION_ROWS, &p.dy));
    TRY(tensor_map(call->in[NORM_X], rows, C, TRANSITION_ROWS, &p.x));
    TRY(tensor_map(call->in[HIDDEN], rows, width, TRANSITION_ROWS, &p.h));
    TRY(tensor_map(call->out[DH], rows, width, TRANSITION_ROWS, &p.dh));
    TRY(tensor_map(call->in[W2], C, width, S::FIRST_ROWS, &p.w2));
    TRY(tensor_map(call->in[W1], width, C, 64, &p.w1));
    CUDA_TRY(
        cudaFuncSetAttribute(transition_backward_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES));
    launch(transition_backward_kernel<S>, blocks, TRANSITION_THREADS, S::BYTES, stream, p);
    TRY(cuda_launched("transition_backward_kernel"));
    return sum_partials_split_launch(edge.partial, (float *)call->out[1], (float *)call->out[2], blocks, C, stream);
}

static Status gradient_in_parts(CudaContext *ctx, const OpCall *call)
{
    Op op = {};
    op.kind = OP_LINEAR_DX, op.n_in = 4, op.n_out = 1;
    OpCall hidden = {};
    hidden.op = &op;
    hidden.in[0] = call->in[NORM_DY], hidden.in[1] = call->in[W2], hidden.in[3] = call->in[HIDDEN];
    hidden.in_tensor[0] = call->in_tensor[NORM_DY], hidden.in_tensor[1] = call->in_tensor[W2];
    hidden.in_tensor[3] = call->in_tensor[HIDDEN];
    hidden.out[0] = call->out[DH], hidden.out_tensor[0] = call->in_tensor[HIDDEN];
    TRY(linear_dx_run(ctx, &hidden));
    op = *call->op;
    op.kind = OP_LINEAR_NORM_DX, op.n_in = NORM_DY + 2, op.attr.i[2] = 1;
    OpCall norm = *call;
    norm.op = &op, norm.steady = 0;
    norm.in[NORM_DY] = call->out[DH], norm.in[NORM_DY + 1] = call->in[W1];
    norm.in_tensor[NORM_DY] = call->in_tensor[HIDDEN], norm.in_tensor[NORM_DY + 1] = call->in_tensor[W1];
    norm.out[3] = call->out[DROPPED], norm.out_tensor[3] = call->out_tensor[DROPPED];
    return linear_norm_dx_run(ctx, &norm);
}

static Status transition_dx(CudaContext *ctx, const OpCall *call)
{
    NormEdge edge = norm_edge_of(ctx, call, DROPPED);
    if (!gradient_fits(call, edge)) return gradient_in_parts(ctx, call);
    int64_t channels = tensor_last(call->in_tensor[NORM_X]);
    if (channels == 256) return gradient_launch<256>(call, edge, ctx->stream);
    if (channels == 128) return gradient_launch<128>(call, edge, ctx->stream);
    return gradient_launch<64>(call, edge, ctx->stream);
}

const CudaEntry cuda_transition_backward[] = {
    {OP_TRANSITION_DX, transition_dx, linear_norm_dx_scratch}, /* as for its second part */
    {OP_COUNT, NULL, NULL},
};
