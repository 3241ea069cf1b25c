/* OP_TRANSITION: transition.cuh where it fits, else the parts it was made from one after the other. */
#include "kernels/cuda/transition.cuh"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/norm.h"

/* Operands by name; x, mean, rstd and hidden are NULL where nobody reads them. */
struct Transition {
    const void *r, *w1, *w2;
    const float *gamma, *beta, *b1, *b2;
    void *y, *x, *hidden;
    float *mean, *rstd;
    int64_t rows, channels, width;
    float eps;
    bool kept, early; /* all of x, mean, rstd and hidden are wanted; gamma to b2 are steady (OpCall) */
    NormRows behind;  /* of y; no gamma: none */
};

static Transition transition_of(const OpCall *call)
{
    Transition t = {};
    t.r = call->in[0], t.gamma = (const float *)call->in[1], t.beta = (const float *)call->in[2];
    t.w1 = call->in[3], t.b1 = (const float *)call->in[4];
    t.w2 = call->in[5], t.b2 = (const float *)call->in[6];
    t.early = call_steady(call, 1, 6);
    t.y = call->out[0];
    if (call->op->attr.i[0]) {
        t.kept = call->out_tensor[1] && call->out_tensor[2] && call->out_tensor[3] && call->out_tensor[4];
        t.x = call->out[1], t.mean = (float *)call->out[2], t.rstd = (float *)call->out[3];
        t.hidden = call->out[4];
    }
    t.rows = tensor_rows(call->in_tensor[0]), t.channels = tensor_last(call->in_tensor[0]);
    t.width = call->in_tensor[3]->dim[0];
    t.eps = (float)call->op->attr.f[0];
    t.behind = norm_rows_behind(call, 7, 5);
    return t;
}

static bool transition_fits(const OpCall *call, const Transition &t)
{
    bool type = call->in_tensor[0]->dtype == DT_BF16 && call->in_tensor[3]->dtype == DT_BF16;
    bool shape = (t.channels == 64 || t.channels == 128 || t.channels == 256) && t.width % 128 == 0 &&
                 t.width <= 4 * t.channels && t.rows >= 1024 && t.rows < INT32_MAX;
    return type && shape && (t.kept || !call->op->attr.i[0]) && aligned16(t.r) && aligned16(t.y) && aligned16(t.w1) &&
           aligned16(t.w2) && aligned16(t.x) && aligned16(t.hidden) && aligned16(t.behind.y) &&
           aligned16(t.behind.gamma) && aligned16(t.behind.beta);
}

template <int C, bool KEEP> static Status transition_launch(const Transition &t, cudaStream_t stream)
{
    typedef TransitionShape<C, KEEP> S;
    TransitionProblem p = {};
    p.gamma = t.gamma, p.beta = t.beta, p.b1 = t.b1, p.b2 = t.b2;
    p.mean = t.mean, p.rstd = t.rstd;
    p.eps = t.eps;
    p.behind = {t.behind.gamma, t.behind.beta, t.behind.eps, (bf16 *)t.behind.y, t.behind.mean, t.behind.rstd};
    p.rows = (int)t.rows, p.width = (int)t.width, p.early = t.early;
    TRY(tensor_map(t.r, t.rows, C, TRANSITION_ROWS, &p.r));
    TRY(tensor_map(t.y, t.rows, C, TRANSITION_ROWS, &p.y));
    if (t.behind.gamma) TRY(tensor_map(t.behind.y, t.rows, C, TRANSITION_ROWS, &p.normal));
    TRY(tensor_map(t.w1, t.width, C, TRANSITION_WIDTH, &p.w1));
    TRY(tensor_map(t.w2, C, t.width, S::N, &p.w2));
    if (KEEP) {
        TRY(tensor_map(t.x, t.rows, C, TRANSITION_ROWS, &p.x));
        TRY(tensor_map(t.hidden, t.rows, t.width, TRANSITION_ROWS, &p.hidden));
    }
    const int PROCESSORS = 132, step = TRANSITION_GROUPS * TRANSITION_ROWS;
    unsigned tiles = blocks_for(t.rows, step);
    CUDA_TRY(cudaFuncSetAttribute(transition_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES));
    launch(transition_kernel<S>, tiles < PROCESSORS ? tiles : PROCESSORS, TRANSITION_THREADS, S::BYTES, stream, p);
    return cuda_launched("transition_kernel");
}

template <int C> static Status transition_kept(const Transition &t, cudaStream_t stream)
{
    return t.kept ? transition_launch<C, true>(t, stream) : transition_launch<C, false>(t, stream);
}

/* --- in parts */

/* x and its statistics where they are not outputs, the hidden layer likewise; then what the products need. */
static size_t room_for(const OpCall *call, size_t *hidden_at, size_t *rest_at)
{
    const Tensor *r = call->in_tensor[0];
    size_t size = dtype_size(r->dtype), rows = (size_t)tensor_rows(r), width = (size_t)call->in_tensor[3]->dim[0];
    *hidden_at = align_up((size_t)tensor_count(r) * size) + 2 * align_up(rows * sizeof(float));
    *rest_at = *hidden_at + align_up(rows * width * size);
    return *rest_at;
}

static Status part(CudaContext *ctx, const CudaEntry *table, const Op *op, OpCall *call)
{
    call->op = op;
    for (; table->run; table++)
        if (table->kind == op->kind) return table->run(ctx, call);
    return status_fail(ERR_INTERNAL, "cuda: a transition has no kernel for a part of it");
}

static Status transition_in_parts(CudaContext *ctx, const OpCall *call, const Transition &t)
{
    size_t hidden_at, rest_at;
    room_for(call, &hidden_at, &rest_at);
    char *room = (char *)call->scratch;
    const Tensor *r = call->in_tensor[0];
    Tensor hidden = *r;
    hidden.dim[hidden.rank - 1] = t.width;
    void *x = t.x ? t.x : room, *h = t.hidden ? t.hidden : room + hidden_at;
    char *statistics = room + hidden_at - 2 * align_up((size_t)t.rows * sizeof(float));
    void *mean = t.mean ? (void *)t.mean : statistics,
         *rstd = t.rstd ? (void *)t.rstd : statistics + align_up((size_t)t.rows * sizeof(float));

    Op op = {};
    op.kind = OP_LAYER_NORM_FUSED, op.n_in = 3, op.n_out = 3, op.attr.f[0] = call->op->attr.f[0];
    OpCall norm = {};
    norm.in[0] = t.r, norm.in[1] = t.gamma, norm.in[2] = t.beta;
    norm.in_tensor[0] = r, norm.in_tensor[1] = call->in_tensor[1], norm.in_tensor[2] = call->in_tensor[2];
    norm.out[0] = x, norm.out[1] = mean, norm.out[2] = rstd;
    norm.out_tensor[0] = r;
    TRY(part(ctx, cuda_norm, &op, &norm));

    op = {};
    op.kind = OP_LINEAR, op.n_in = 3, op.n_out = 1, op.attr.i[0] = 1;
    OpCall up = {};
    up.scratch = room + rest_at;
    up.in[0] = x, up.in[1] = t.w1, up.in[2] = t.b1;
    up.in_tensor[0] = r, up.in_tensor[1] = call->in_tensor[3], up.in_tensor[2] = call->in_tensor[4];
    up.out[0] = h, up.out_tensor[0] = &hidden;
    TRY(part(ctx, cuda_dense, &op, &up));

    op = {};
    op.kind = OP_LINEAR_RESIDUAL, op.n_in = 4, op.n_out = 1;
    OpCall down = {};
    down.scratch = room + rest_at;
    down.in[0] = t.r, down.in[1] = h, down.in[2] = t.w2, down.in[3] = t.b2;
    down.in_tensor[0] = r, down.in_tensor[1] = &hidden, down.in_tensor[2] = call->in_tensor[5],
    down.in_tensor[3] = call->in_tensor[6];
    down.out[0] = t.y, down.out_tensor[0] = r;
    TRY(part(ctx, cuda_linear_residual, &op, &down));
    return t.behind.gamma ? norm_rows_run(ctx, call, &t.behind) : OK;
}

static size_t transition_scratch(const OpCall *call)
{
    size_t hidden_at, rest_at, size = dtype_size(call->in_tensor[0]->dtype);
    Transition t = transition_of(call);
    if (transition_fits(call, t)) return 0; /* addresses, which are not known yet, are multiples of 256 */
    size_t biases = align_up((size_t)t.width * sizeof(bf16)), y = align_up((size_t)(t.rows * t.channels) * size);
    return room_for(call, &hidden_at, &rest_at) + biases + y + align_up((size_t)t.channels * size);
}

static Status transition(CudaContext *ctx, const OpCall *call)
{
    Transition t = transition_of(call);
    if (call->in_tensor[3]->dtype != call->in_tensor[0]->dtype) return cuda_bad_type(call, call->in_tensor[3]->dtype);
    if (!transition_fits(call, t)) return transition_in_parts(ctx, call, t);
    if (t.channels == 256) return transition_kept<256>(t, ctx->stream);
    if (t.channels == 128) return transition_kept<128>(t, ctx->stream);
    return transition_kept<64>(t, ctx->stream);
}

const CudaEntry cuda_transition[] = {
    {OP_TRANSITION, transition, transition_scratch},
    {OP_COUNT, NULL, NULL},
};
