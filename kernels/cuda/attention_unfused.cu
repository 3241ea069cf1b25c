/* Attention op by op: scores, their gradients, contexts (softmax is in norm.cu). Products in bf16 are the library's,
 * others those of contract.cuh. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/contract.cuh"
#include "kernels/cuda/gemm.h"

static ContractOperand q_operand(const Att &a)
{
    return {a.pitch, 1, {a.q_group, a.q_row, a.d}};
}
static ContractOperand k_operand(const Att &a)
{
    return {a.pitch, 1, {a.k_group, a.k_row, a.d}};
}
/* [G?,B,H,N,M] */
static ContractOperand s_operand(const Att &a)
{
    int64_t block = (int64_t)a.n * a.m;
    return {a.m, 1, {block * a.h * a.b, block * a.h, block}};
}
static ContractOperand flip(ContractOperand x)
{
    int64_t row = x.row;
    x.row = x.column;
    x.column = row;
    return x;
}
static Contract product(const Att &a, int m, int n, int k, ContractOperand x, ContractOperand y, ContractOperand z,
                        float alpha)
{
    Contract c = {m, n, k, {a.g, a.b, a.h}, x, y, z, alpha, 0};
    return c;
}

/* + inf (mask - 1) + bias, in this order: a row whose keys are all masked then rounds as the reference's does */
template <typename T> struct ScorePost {
    Att a;
    const T *bias;
    __device__ __forceinline__ float operator()(int z, int i, int j, float x) const
    {
        int head = z % a.h, rest = z / a.h, row = rest % a.b, group = rest / a.b;
        if (a.mask) x += a.inf * (a.mask_row(group, row)[j] - 1.0f);
        if (bias) x += to_float(bias[a.bias_index(group, i, j, head)]);
        return x;
    }
};

/* bf16 products that tensor cores are worth: large together, and none thinner than they are (the few keys of template
 * pointwise attention). */
static bool by_library(const Contract &c, DType type)
{
    const int THIN = 8;
    int64_t work = (int64_t)c.batch[0] * c.batch[1] * c.batch[2] * c.m * c.n * c.k;
    return type == DT_BF16 && work >= FEW_MULTIPLICATIONS && c.m >= THIN && c.n >= THIN && c.k >= THIN;
}

/* c by the library: the rows of a group in one call, head by head. */
static Status library_products(CudaContext *ctx, const Contract &c, const void *a, const void *b, const void *onto,
                               void *d)
{
    bool a_t = c.a.column != 1, b_t = c.b.column != 1;
    GemmShape s = gemm_shape(c.m, c.n, c.k, a_t, b_t, DT_BF16, DT_BF16);
    s.lda = a_t ? c.a.column : c.a.row, s.ldb = b_t ? c.b.column : c.b.row, s.ldd = c.c.row;
    s.batch = c.batch[1];
    s.stride_a = c.a.batch[1], s.stride_b = c.b.batch[1], s.stride_d = c.c.batch[1];
    for (int group = 0; group < c.batch[0]; group++)
        for (int head = 0; head < c.batch[2]; head++) {
            int64_t at_a = group * c.a.batch[0] + head * c.a.batch[2],
                    at_b = group * c.b.batch[0] + head * c.b.batch[2],
                    at_d = group * c.c.batch[0] + head * c.c.batch[2];
            TRY(gemm_run_scaled(ctx, &s, c.alpha, (const bf16 *)a + at_a, (const bf16 *)b + at_b,
                                onto ? (const bf16 *)onto + at_d : NULL, (bf16 *)d + at_d));
        }
    return OK;
}

template <typename T> static Status products(CudaContext *ctx, const Contract &c, const T *a, const T *b, T *d)
{
    if (by_library(c, sizeof(T) == sizeof(bf16) ? DT_BF16 : DT_F32)) return library_products(ctx, c, a, b, NULL, d);
    return contract_launch(a, b, d, c, ContractPlain(), ctx->stream);
}

/* What scores begin with: s[z, i, j] = post(0); z: group, row and head. */
__global__ void score_offsets_kernel(ScorePost<bf16> post, bf16 *s)
{
    stage_wait();
    const Att &a = post.a;
    uint32_t count = (uint32_t)a.n * a.m, step = gridDim.x * blockDim.x;
    for (uint32_t e = blockIdx.x * blockDim.x + threadIdx.x; e < count; e += step)
        for (int z = blockIdx.y; z < a.g * a.b * a.h; z += gridDim.y)
            s[(int64_t)z * count + e] = from_float<bf16>(post(z, e / a.m, e % a.m, 0.0f));
}

/* The library adds its product to mask and bias. Where a key is not masked that is one rounding, as in the kernel that
 * does it at once; a masked one's logit is rounded before as well, far below all that count. */
static Status library_scores(CudaContext *ctx, const Contract &c, const ScorePost<bf16> &post, const void *q,
                             const void *k, void *s)
{
    const unsigned GRID_X = 256, GRID_Y = 64;
    const Att &a = post.a;
    if (!a.mask && !post.bias) return library_products(ctx, c, q, k, NULL, s);
    unsigned blocks = blocks_for((int64_t)a.n * a.m, 256), rows = (unsigned)(a.g * a.b * a.h);
    dim3 grid(min(blocks, GRID_X), min(rows, GRID_Y));
    launch(score_offsets_kernel, grid, 256, 0, ctx->stream, post, (bf16 *)s);
    TRY(cuda_launched("score_offsets_kernel"));
    return library_products(ctx, c, q, k, s, s);
}

#define IN(i)  ((const T *)call->in[i])
#define OUT(i) ((T *)call->out[i])

static Status att_scores(CudaContext *ctx, const OpCall *call)
{
    const Tensor *mask = call_in(call, 2), *bias = call_in(call, 3);
    Att a = att_make(call->in_tensor[0], call->in_tensor[1], mask, mask ? call->in[2] : NULL, &call->op->attr, false);
    Contract c = product(a, a.n, a.m, a.d, q_operand(a), flip(k_operand(a)), s_operand(a), a.scale);
    DType type = call->in_tensor[0]->dtype;
    if (by_library(c, type))
        return library_scores(ctx, c, {a, bias ? (const bf16 *)call->in[3] : NULL}, call->in[0], call->in[1],
                              call->out[0]);
    DISPATCH_REAL(call, type, {
        ScorePost<T> post = {a, bias ? IN(3) : NULL};
        return contract_launch(IN(0), IN(1), OUT(0), c, post, ctx->stream);
    });
}

/* dbias[g,n,m,h] = sum over rows of ds[g,b,h,n,m], in order */
template <typename T> __global__ void bias_gradient_kernel(Att a, const T *ds, T *dbias, uint32_t count)
{
    stage_wait();
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    uint32_t j = e % a.m, rest = e / a.m, i = rest % a.n, head = rest / a.n % a.h, group = rest / a.n / a.h;
    int64_t step = (int64_t)a.h * a.n * a.m;
    const T *p = ds + (int64_t)group * a.b * step + ((int64_t)head * a.n + i) * a.m + j;
    typename Wide<T>::Sum sum = 0;
    for (int row = 0; row < a.b; row++) sum += to_float(p[row * step]);
    dbias[a.bias_index(group, i, j, head)] = from_float<T>((float)sum);
}

static Status att_scores_bwd(CudaContext *ctx, const OpCall *call)
{
    Att a = att_make(call->in_tensor[1], call->in_tensor[2], NULL, NULL, &call->op->attr, false);
    Contract to_q = product(a, a.n, a.d, a.m, s_operand(a), k_operand(a), q_operand(a), a.scale);
    Contract to_k = product(a, a.m, a.d, a.n, flip(s_operand(a)), q_operand(a), k_operand(a), a.scale);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        TRY(products(ctx, to_q, IN(0), IN(2), OUT(0)));
        TRY(products(ctx, to_k, IN(0), IN(1), OUT(1)));
        if (!call->op->attr.i[1]) return OK;
        uint32_t count = (uint32_t)a.g * a.h * a.n * a.m;
        launch(bias_gradient_kernel<T>, blocks_for(count, 256), 256, 0, ctx->stream, a, IN(0), OUT(2), count);
    });
    return cuda_launched("bias_gradient_kernel");
}

/* Sizes of a context: as if q were like v with N rows. */
static Att context_make(const Tensor *p, const Tensor *v, const OpAttr *attr)
{
    Tensor q = *v;
    q.dim[v->rank - 2] = p->dim[p->rank - 2];
    return att_make(&q, v, NULL, NULL, attr, false);
}

static bool context_is_few(const OpCall *call, const Att &a, const void *v, const void *o, const void *third)
{
    return call->in_tensor[0]->dtype == DT_F32 && context_few_fits(a) && aligned16(v) && aligned16(o) &&
           aligned16(third);
}

static Status att_context(CudaContext *ctx, const OpCall *call)
{
    Att a = context_make(call->in_tensor[0], call->in_tensor[1], &call->op->attr);
    if (context_is_few(call, a, call->in[1], call->out[0], NULL))
        return context_few_launch(a, (const float *)call->in[0], (const float *)call->in[1], (float *)call->out[0],
                                  ctx->stream);
    Contract c = product(a, a.n, a.d, a.m, s_operand(a), k_operand(a), q_operand(a), 1);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, { return products(ctx, c, IN(0), IN(1), OUT(0)); });
}

static Status att_context_bwd(CudaContext *ctx, const OpCall *call)
{
    Att a = context_make(call->in_tensor[1], call->in_tensor[2], &call->op->attr);
    if (context_is_few(call, a, call->in[2], call->in[0], call->out[1]))
        return context_few_backward_launch(a, (const float *)call->in[0], (const float *)call->in[1],
                                           (const float *)call->in[2], (float *)call->out[0], (float *)call->out[1],
                                           ctx->stream);
    Contract to_p = product(a, a.n, a.m, a.d, q_operand(a), flip(k_operand(a)), s_operand(a), 1);
    Contract to_v = product(a, a.m, a.d, a.n, flip(s_operand(a)), q_operand(a), k_operand(a), 1);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        TRY(products(ctx, to_p, IN(0), IN(2), OUT(0)));
        return products(ctx, to_v, IN(1), IN(0), OUT(1));
    });
}

const CudaEntry cuda_attention_unfused[] = {
    {OP_ATT_SCORES, att_scores, NULL},
    {OP_ATT_SCORES_BWD, att_scores_bwd, NULL},
    {OP_ATT_CONTEXT, att_context, NULL},
    {OP_ATT_CONTEXT_BWD, att_context_bwd, NULL},
    {OP_COUNT, NULL, NULL},
};
