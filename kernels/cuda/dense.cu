/* Linear layers: y = x W^T + b and their gradients, alone and in groups that share x. */
#include <string.h>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/flow.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/weights.cuh"

/* y (+= bias) (relu), in place: for products whose shape the tiled kernel does not take. */
template <typename T> __global__ void bias_kernel(T *y, const float *bias, int64_t count, uint32_t columns, bool relu)
{
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    float v = to_float(y[e]) + (bias ? bias[(uint32_t)(e % columns)] : 0.0f);
    y[e] = from_float<T>(relu ? fmaxf(v, 0.0f) : v);
}

static Status bias_launch(const OpCall *call, void *y, DType type, const float *bias, int64_t rows, int64_t columns,
                          bool relu, cudaStream_t stream)
{
    int64_t count = rows * columns;
    if ((!bias && !relu) || count == 0) return OK;
    DISPATCH_REAL(call, type, {
        bias_kernel<T><<<blocks_for(count, 256), 256, 0, stream>>>((T *)y, bias, count, (uint32_t)columns, relu);
    });
    return cuda_launched("bias_kernel");
}

struct BiasList {
    const float *p[GROUP_MAX];
    int count;
    int64_t width;
};

/* Biases of a batch, side by side in bf16: the type that the library's epilogue takes beside bf16 results. */
__global__ void lower_biases_kernel(BiasList list, bf16 *low)
{
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= list.width) return;
    for (int k = 0; k < list.count; k++) low[k * list.width + e] = from_float<bf16>(list.p[k][e]);
}

static int64_t element_gap(const void *from, const void *to, DType type)
{
    return ((const char *)to - (const char *)from) / (int64_t)dtype_size(type);
}

/* How many members from `first` on are one batched product: same width, a bias each or none, equal distances of weights
 * and of outputs. */
static int group_run_length(const Group *g, int first)
{
    int length = 1;
    if (first + 1 >= g->members) return 1;
    int64_t dw = element_gap(g->w[first], g->w[first + 1], g->type);
    int64_t dy = element_gap(g->y[first], g->y[first + 1], g->type);
    if (dw % 8 != 0 || dy % 8 != 0 || dy <= 0) return 1;
    while (first + length < g->members) {
        int k = first + length;
        bool alike = g->out[k] == g->out[first] && !g->bias[k] == !g->bias[first] &&
                     element_gap(g->w[k - 1], g->w[k], g->type) == dw &&
                     element_gap(g->y[k - 1], g->y[k], g->type) == dy;
        if (!alike) break;
        length++;
    }
    return length;
}

/* Members [first, first + count): one call of the library. */
static Status group_batch(CudaContext *ctx, const OpCall *call, const Group *g, int first, int count)
{
    GemmShape s = gemm_shape(g->rows, g->out[first], g->inner, false, true, g->type, g->type);
    const void *bias = g->bias[first];
    bool edges = (bias || g->relu) && g->type == DT_BF16 && g->out[first] % 8 == 0;
    s.batch = count;
    if (count > 1) {
        s.stride_b = element_gap(g->w[first], g->w[first + 1], g->type);
        s.stride_d = element_gap(g->y[first], g->y[first + 1], g->type);
    }
    if (edges) {
        s.relu = g->relu;
        s.bias = bias != NULL;
        s.stride_bias = bias && count > 1 ? g->out[first] : 0;
    }
    if (edges && bias) {
        BiasList list = {};
        list.count = count;
        list.width = g->out[first];
        for (int k = 0; k < count; k++) list.p[k] = g->bias[first + k];
        lower_biases_kernel<<<blocks_for(list.width, 128), 128, 0, ctx->stream>>>(list, (bf16 *)call->scratch);
        TRY(cuda_launched("lower_biases_kernel"));
        bias = call->scratch;
    }
    TRY(gemm_run(ctx, &s, g->x, g->w[first], bias, g->y[first]));
    for (int k = first; !edges && k < first + count; k++)
        TRY(bias_launch(call, g->y[k], g->type, g->bias[k], g->rows, g->out[k], g->relu, ctx->stream));
    return OK;
}

/* The streaming kernel: one product for all members. */
static bool group_streams(const Group *g, StreamProblem *p)
{
    memset(p, 0, sizeof *p);
    if (g->type != DT_BF16 || g->rows < 4096) return false;
    p->x = (const bf16 *)g->x, p->w = (const bf16 *)g->w[0];
    p->rows = (int)g->rows, p->members = g->members;
    p->relu = g->relu;
    for (int k = 0; k < g->members; k++) {
        if (k > 0 && (const bf16 *)g->w[k] != (const bf16 *)g->w[k - 1] + g->out[k - 1] * g->inner) return false;
        p->y[k] = (bf16 *)g->y[k];
        p->bias[k] = g->bias[k];
        p->start[k + 1] = p->start[k] + (int)g->out[k];
    }
    p->columns = p->start[g->members];
    return stream_fits(*p, g->inner);
}

static bool group_flows(const Group *g, FlowOperands *o)
{
    memset(o, 0, sizeof *o);
    if (g->type != DT_BF16 || g->rows < 1024 || g->members > FLOW_MEMBERS) return false;
    o->x = (const bf16 *)g->x, o->w = (const bf16 *)g->w[0];
    o->rows = g->rows, o->inner = g->inner, o->members = g->members;
    o->relu = g->relu;
    for (int k = 0; k < g->members; k++) {
        if (k > 0 && (const bf16 *)g->w[k] != (const bf16 *)g->w[k - 1] + g->out[k - 1] * g->inner) return false;
        o->y[k] = (bf16 *)g->y[k];
        o->bias[k] = g->bias[k];
        o->start[k + 1] = o->start[k] + (int)g->out[k];
    }
    return flow_fits(*o, FLOW_PLAIN);
}

Status dense_group_run(CudaContext *ctx, const OpCall *call, const Group *g)
{
    StreamProblem p;
    FlowOperands o;
    if (group_flows(g, &o)) return flow_launch(o, FLOW_PLAIN, ctx->stream);
    /* alone, the library's product is faster: 13.6 us against 18.2 for [32768, 256] x 256 on an H200 */
    if (g->members > 1 && group_streams(g, &p)) return stream_launch(p, g->inner, ctx->stream);
    for (int first = 0; first < g->members;) {
        int count = group_run_length(g, first);
        TRY(group_batch(ctx, call, g, first, count));
        first += count;
    }
    return OK;
}

/* Room for the biases in bf16. */
static size_t linear_scratch(const OpCall *call)
{
    size_t bytes = 0;
    for (int k = 0; k < call->op->n_out; k++)
        if (call->out_tensor[k]) bytes += align_up((size_t)tensor_last(call->out_tensor[k]) * sizeof(bf16));
    return bytes;
}

static Status linear(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0], *w = call->in_tensor[1];
    Group g;
    memset(&g, 0, sizeof g);
    g.members = 1;
    g.rows = tensor_rows(x), g.inner = tensor_last(x), g.out[0] = w->dim[0];
    g.x = call->in[0], g.w[0] = call->in[1], g.y[0] = call->out[0];
    if (call_in(call, 2)) g.bias[0] = (const float *)call->in[2];
    g.type = x->dtype;
    g.relu = call->op->attr.i[0] != 0;
    if (w->dtype != x->dtype) return cuda_bad_type(call, w->dtype);
    return dense_group_run(ctx, call, &g);
}

static Status linear_group(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    Group g;
    memset(&g, 0, sizeof g);
    g.members = (int)call->op->attr.i[0];
    if (g.members > GROUP_MAX) return status_fail(ERR_UNSUPPORTED, "a group of %d linear layers", g.members);
    g.rows = tensor_rows(x), g.inner = tensor_last(x);
    g.x = call->in[0];
    g.type = x->dtype;
    for (int k = 0; k < g.members; k++) {
        g.w[k] = call->in[1 + 2 * k];
        g.out[k] = call->in_tensor[1 + 2 * k]->dim[0];
        if (call_in(call, 2 + 2 * k)) g.bias[k] = (const float *)call->in[2 + 2 * k];
        g.y[k] = call->out[k];
    }
    return dense_group_run(ctx, call, &g);
}

static Status linear_dx(CudaContext *ctx, const OpCall *call)
{
    const Tensor *dy = call->in_tensor[0], *w = call->in_tensor[1];
    GemmShape s =
        gemm_shape(tensor_rows(dy), w->dim[1], w->dim[0], false, false, dy->dtype, call->out_tensor[0]->dtype);
    return gemm_run(ctx, &s, call->in[0], call->in[1], NULL, call->out[0]);
}

/* dW = dy^T x, db = sum of dy over rows */
static Status weight_gradient(CudaContext *ctx, const OpCall *call, const Tensor *dy, const void *dy_at,
                              const Tensor *x, const void *x_at, void *dw, DType dw_type, void *db)
{
    int64_t rows = tensor_rows(dy), out = tensor_last(dy);
    GemmShape s = gemm_shape(out, tensor_last(x), rows, true, false, dy->dtype, dw_type);
    TRY(gemm_run(ctx, &s, dy_at, x_at, NULL, dw));
    if (!db) return OK;
    /* few rows: the second stage of the sum alone */
    if (dy->dtype == DT_F32 && rows <= 2048) {
        SumList<float> list = {{NULL}, {(float *)db}};
        sum_list_join_kernel<<<blocks_for(out, 32), 1024, 0, ctx->stream>>>(list, (const float *)dy_at, rows, out);
        return cuda_launched("sum_list_join_kernel");
    }
    DISPATCH_REAL(call, dy->dtype,
                  { return sum_rows_launch((const T *)dy_at, (float *)db, rows, out, call->scratch, ctx->stream); });
}

/* The one-pass kernel for `members` gradients dy_k beside x; false where it does not fit or where products of the
 * library and a pass for the biases are faster (measured: x wider than 128 with outputs wider than 64). */
static bool weights_problem(const OpCall *call, int members, int biases, WeightsProblem *p)
{
    const Tensor *x = call->in_tensor[members];
    memset(p, 0, sizeof *p);
    if (members > WEIGHTS_MEMBERS || x->dtype != DT_BF16 || tensor_last(x) % 8 != 0) return false;
    if (tensor_rows(x) < 4096 || tensor_rows(x) > INT32_MAX || !aligned16(call->in[members])) return false;
    p->members = members;
    p->rows = (int)tensor_rows(x), p->in = (int)tensor_last(x);
    p->x = (const bf16 *)call->in[members];
    int64_t widest = 0;
    for (int k = 0; k < members; k++) {
        const Tensor *dy = call->in_tensor[k];
        if (dy->dtype != DT_BF16 || call->out_tensor[k]->dtype != DT_F32) return false;
        if (!aligned16(call->in[k]) || !aligned16(call->out[k])) return false;
        p->out[k] = (int)tensor_last(dy);
        p->dy[k] = (const bf16 *)call->in[k];
        p->dw[k] = (float *)call->out[k];
        if (biases >> k & 1) p->db[k] = (float *)call->out[members + k];
        if (tensor_last(dy) > widest) widest = tensor_last(dy);
    }
    return widest <= 64 ? p->in <= 1024 : p->in <= 128 && widest <= 1024;
}

static Status linear_dw(CudaContext *ctx, const OpCall *call)
{
    bool bias = call->op->attr.i[0] != 0;
    WeightsProblem p;
    if (weights_problem(call, 1, bias, &p)) return weights_launch(p, call->scratch, ctx->stream);
    return weight_gradient(ctx, call, call->in_tensor[0], call->in[0], call->in_tensor[1], call->in[1], call->out[0],
                           call->out_tensor[0]->dtype, bias ? call->out[1] : NULL);
}

static size_t weight_gradient_scratch(const OpCall *call)
{
    int64_t widest = 0;
    int members = call->op->kind == OP_LINEAR_DW ? 1 : (int)call->op->attr.i[0];
    for (int k = 0; k < call->op->n_in; k++)
        if (call->in_tensor[k] && tensor_last(call->in_tensor[k]) > widest) widest = tensor_last(call->in_tensor[k]);
    size_t bytes = sum_rows_scratch(widest) * (size_t)(members > 1 ? SUM_LIST : 1), one_pass = 0;
    WeightsProblem p;
    if (weights_problem(call, members, 0, &p)) one_pass = weights_scratch(p);
    return bytes > one_pass ? bytes : one_pass;
}

struct StoreEpilogue {
    bf16 *y;
    int64_t ld;
    __device__ __forceinline__ void operator()(int, int row, int column, uint4 v) const
    {
        *reinterpret_cast<uint4 *>(y + row * ld + column) = v;
    }
};

/* dx = sum_k dy_k W_k: one product over the joined columns where the members are alike, else one after the other. */
static Status linear_group_dx(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->op->attr.i[0];
    const Tensor *dy = call->in_tensor[0];
    int64_t rows = tensor_rows(dy), out = tensor_last(dy), inner = call->in_tensor[n]->dim[1];
    bool alike = dy->dtype == DT_BF16 && n <= GROUP_MAX && rows >= 1024;
    TileProblem p;
    memset(&p, 0, sizeof p);
    for (int k = 0; alike && k < n; k++) {
        alike = tensor_last(call->in_tensor[k]) == out && aligned16(call->in[k]) &&
                (const bf16 *)call->in[n + k] == (const bf16 *)call->in[n] + k * out * inner;
        p.a_list[k] = (const bf16 *)call->in[k];
    }
    p.a = p.a_list[0], p.b = (const bf16 *)call->in[n];
    p.m = (int)rows, p.n = (int)inner, p.k = (int)(out * n);
    p.lda = out, p.ldb = inner;
    p.segment = (int)out;
    if (alike && tile_fits(p, true, false) && aligned16(call->out[0])) {
        StoreEpilogue e = {(bf16 *)call->out[0], inner};
        return tile_launch<true, false>(p, 1, e, ctx->stream);
    }
    for (int k = 0; k < n; k++) {
        GemmShape s = gemm_shape(rows, inner, tensor_last(call->in_tensor[k]), false, false, dy->dtype, dy->dtype);
        s.accumulate = k > 0;
        TRY(gemm_run(ctx, &s, call->in[k], call->in[n + k], NULL, call->out[0]));
    }
    return OK;
}

/* All bias gradients of one width in one launch; the others one by one. */
static Status group_biases(CudaContext *ctx, const OpCall *call, int n, int biases)
{
    const Tensor *first = NULL;
    SumList<bf16> list = {};
    int count = 0;
    for (int k = 0; k < n; k++) {
        const Tensor *dy = call->in_tensor[k];
        if (!(biases >> k & 1)) continue;
        if (!first) first = dy;
        bool alike = dy->dtype == DT_BF16 && tensor_last(dy) == tensor_last(first) && tensor_last(dy) % 8 == 0 &&
                     aligned16(call->in[k]) && count < SUM_LIST;
        if (alike) {
            list.x[count] = (const bf16 *)call->in[k];
            list.y[count++] = (float *)call->out[n + k];
            continue;
        }
        DISPATCH_REAL(call, dy->dtype, {
            TRY(sum_rows_launch((const T *)call->in[k], (float *)call->out[n + k], tensor_rows(dy), tensor_last(dy),
                                call->scratch, ctx->stream));
        });
    }
    if (count == 0) return OK;
    return sum_rows_list_launch(list, count, tensor_rows(first), tensor_last(first), call->scratch, ctx->stream);
}

static Status linear_group_dw(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->op->attr.i[0], biases = (int)call->op->attr.i[1];
    WeightsProblem p;
    if (weights_problem(call, n, biases, &p)) return weights_launch(p, call->scratch, ctx->stream);
    for (int k = 0; k < n; k++)
        TRY(weight_gradient(ctx, call, call->in_tensor[k], call->in[k], call->in_tensor[n], call->in[n], call->out[k],
                            call->out_tensor[k]->dtype, NULL));
    return group_biases(ctx, call, n, biases);
}

const CudaEntry cuda_dense[] = {
    {OP_LINEAR, linear, linear_scratch},
    {OP_LINEAR_DX, linear_dx, NULL},
    {OP_LINEAR_DW, linear_dw, weight_gradient_scratch},
    {OP_LINEAR_GROUP, linear_group, linear_scratch},
    {OP_LINEAR_GROUP_DX, linear_group_dx, NULL},
    {OP_LINEAR_GROUP_DW, linear_group_dw, weight_gradient_scratch},
    {OP_COUNT, NULL, NULL},
};
