/* Gradients of linear layers, alone and in groups that share x. */
#include <string.h>

#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/product_norm.cuh"
#include "kernels/cuda/product_ring.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/small.cuh"
#include "kernels/cuda/weights_batch.cuh"

/* x where y > 0, else 0 */
struct ReluMask {
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[1][j] > 0 ? x[0][j] : 0.0f;
    }
};

static Status relu_mask_launch(const OpCall *call, const void *y, void *dx, cudaStream_t stream)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    DISPATCH_REAL(call, call->out_tensor[0]->dtype, {
        MapArgs<T, 2, 1> a = {{(const T *)dx, (const T *)y}, {(T *)dx}, n};
        return map_launch(a, n, ReluMask(), stream);
    });
}

/* The streaming product for `members` gradients dy_k whose matrices lie one below the other; `other` and `y` may be
 * NULL. False where it does not fit. */
static bool product_problem(const OpCall *call, int members, const void *other, const void *y, RingProduct *p,
                            ProductOperands *o, ProductEdge *edge)
{
    const Tensor *out = call->out_tensor[0];
    memset(p, 0, sizeof *p);
    memset(o, 0, sizeof *o);
    p->rows = (int)tensor_rows(out), p->columns = (int)tensor_last(out), p->dx = (bf16 *)call->out[0];
    o->members = members, o->w = (const bf16 *)call->in[members];
    p->early = call_steady(call, members, members);
    p->edge = (const bf16 *)(other ? other : y);
    *edge = other ? EDGE_OTHER : y ? EDGE_RELU : EDGE_NONE;
    if (out->dtype != DT_BF16 || members > PRODUCT_MEMBERS || (other && y)) return false;
    if (tensor_rows(out) < 1024 || tensor_rows(out) > INT32_MAX || p->columns % 8 != 0) return false;
    if (!aligned16(p->dx) || !aligned16(p->edge)) return false;
    int64_t before = 0;
    for (int k = 0; k < members; k++) {
        const Tensor *dy = call->in_tensor[k];
        if (dy->dtype != DT_BF16 || (const bf16 *)call->in[members + k] != o->w + before * p->columns) return false;
        o->dy[k] = (const bf16 *)call->in[k], o->out[k] = (int)tensor_last(dy);
        before += tensor_last(dy);
        if (o->out[k] == PRODUCT_NARROW) {
            if (*edge != EDGE_NONE || ((uintptr_t)o->dy[k] & 7)) return false;
            *edge = EDGE_NARROW;
        } else if (o->out[k] % 8 != 0 || !aligned16(o->dy[k])) {
            return false;
        }
    }
    return aligned16(o->w) && (*edge != EDGE_NARROW || members > 1);
}

/* dx (+ other) in f32 as one small product with a term for each dy_k; 0 where y <= 0 */
static bool gradient_is_small(const OpCall *call, int members, const void *other, const void *y, SmallBatch *batch)
{
    memset(batch, 0, sizeof *batch);
    batch->early = call_steady(call, members, members);
    if (call->out_tensor[0]->dtype != DT_F32) return false;
    SmallProduct p = small_product(tensor_rows(call->out_tensor[0]), tensor_last(call->out_tensor[0]));
    for (int k = 0; k < members; k++)
        if (call->in_tensor[k]->dtype != DT_F32 ||
            !small_add(&p, tensor_last(call->in_tensor[k]), call->in[k], call->in[members + k]))
            return false;
    p.c = (const float *)other, p.y = (const float *)y, p.d = (float *)call->out[0];
    batch->p[batch->count++] = p;
    return true;
}

Status linear_dx_run(CudaContext *ctx, const OpCall *call)
{
    const Tensor *dy = call->in_tensor[0], *w = call->in_tensor[1];
    const void *y = call_in(call, 3) ? call->in[3] : NULL;
    RingProduct p;
    ProductOperands o;
    ProductEdge edge;
    SmallBatch few;
    if (gradient_is_small(call, 1, call_in(call, 2) ? call->in[2] : NULL, y, &few))
        return small_launch<false, false>(&few, ctx->stream);
    /* without a mask the library's product is faster alone: 28.6 us against 30.1 for [32768, 1024] x 256 on an H200 */
    if (y && !call_in(call, 2) && product_problem(call, 1, NULL, y, &p, &o, &edge))
        return product_launch(p, o, edge, ctx->stream);
    GemmShape s =
        gemm_shape(tensor_rows(dy), w->dim[1], w->dim[0], false, false, dy->dtype, call->out_tensor[0]->dtype);
    if (call_in(call, 2))
        TRY(gemm_run_onto(ctx, &s, call->in[0], call->in[1], call->in[2], call->out[0]));
    else
        TRY(gemm_run(ctx, &s, call->in[0], call->in[1], NULL, call->out[0]));
    return y ? relu_mask_launch(call, y, call->out[0], ctx->stream) : OK;
}

/* dx = sum_k dy_k W_k: one product where the matrices are neighbours, else one after the other. */
static Status linear_group_dx(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->op->attr.i[0];
    const Tensor *dy = call->in_tensor[0];
    const void *other = call_in(call, 2 * n) ? call->in[2 * n] : NULL;
    RingProduct p;
    ProductOperands o;
    ProductEdge edge;
    SmallBatch few;
    if (gradient_is_small(call, n, other, NULL, &few)) return small_launch<false, false>(&few, ctx->stream);
    if (product_problem(call, n, other, NULL, &p, &o, &edge)) return product_launch(p, o, edge, ctx->stream);
    for (int k = 0; k < n; k++) {
        int64_t inner = call->in_tensor[n]->dim[1], out = tensor_last(call->in_tensor[k]);
        GemmShape s = gemm_shape(tensor_rows(dy), inner, out, false, false, dy->dtype, dy->dtype);
        const void *onto = k > 0 ? call->out[0] : other;
        if (onto)
            TRY(gemm_run_onto(ctx, &s, call->in[k], call->in[n + k], onto, call->out[0]));
        else
            TRY(gemm_run(ctx, &s, call->in[k], call->in[n + k], NULL, call->out[0]));
    }
    return OK;
}

/* The products alone, as LINEAR_DX or LINEAR_GROUP_DX would be called. */
static OpCall products_call(const OpCall *call, Op *op, void *d)
{
    int n = (int)call->op->attr.i[2];
    OpCall products = {};
    *op = Op{};
    op->kind = n == 1 ? OP_LINEAR_DX : OP_LINEAR_GROUP_DX;
    op->n_in = (int16_t)(2 * n), op->n_out = 1, op->attr.i[0] = n;
    products.op = op, products.steady = call->steady >> NORM_DY;
    for (int k = 0; k < 2 * n; k++)
        products.in[k] = call->in[NORM_DY + k], products.in_tensor[k] = call->in_tensor[NORM_DY + k];
    products.out[0] = d, products.out_tensor[0] = call->in_tensor[NORM_X];
    return products;
}

/* The layer norm's part alone, d: the gradient of what it made. It sends what the op sends. */
static OpCall norm_call(const OpCall *call, Op *op, void *d)
{
    OpCall norm = *call;
    *op = *call->op;
    op->kind = OP_LAYER_NORM_FUSED_BWD, op->n_in = 7;
    norm.op = op, norm.steady = 0;
    norm.in[0] = d, norm.in_tensor[0] = call->in_tensor[NORM_X];
    for (int k = 1; k < op->n_in; k++) norm.in[k] = call->in[k - 1], norm.in_tensor[k] = call->in_tensor[k - 1];
    return norm;
}

/* One kernel for all but the joining of sums. False where it does not fit. */
static bool norm_problem(CudaContext *ctx, const OpCall *call, const PeerSend &send, ProductNorm *p, ProductOperands *o)
{
    Op op;
    OpCall products = products_call(call, &op, call->out[0]);
    ProductEdge edge;
    memset((void *)p, 0, sizeof *p);
    if (!product_problem(&products, (int)call->op->attr.i[2], NULL, NULL, &p->product, o, &edge)) return false;
    p->edge = norm_edge_of(ctx, call, 3), p->send = send;
    p->early = p->product.early && call_steady(call, NORM_GAMMA, 1);
    int64_t inner = 0;
    for (int k = 0; k < o->members; k++) inner += o->out[k];
    /* products and layer norm one after the other are faster where blocks have few tiles and much to multiply: 54.5 us
     * against 61 for [32768, 1024] x 256 on an H200, the reverse for 64 in place of 1024 (29.8, 27.3) or 128 columns */
    bool gains = p->product.columns < 256 || inner <= 512;
    return gains && norm_edge_fits(call, p->edge) && product_norm_fits(*p);
}

static Status linear_norm_dx_in_parts(CudaContext *ctx, const OpCall *call)
{
    Op op;
    const Tensor *x = call->in_tensor[NORM_X];
    size_t room = align_up((size_t)tensor_count(x) * dtype_size(x->dtype));
    OpCall products = products_call(call, &op, call->scratch);
    TRY(op.kind == OP_LINEAR_DX ? linear_dx_run(ctx, &products) : linear_group_dx(ctx, &products));
    OpCall norm = norm_call(call, &op, call->scratch);
    norm.scratch = (char *)call->scratch + room;
    return norm_backward_run(ctx, &norm);
}

Status linear_norm_dx_run(CudaContext *ctx, const OpCall *call)
{
    ProductNorm p;
    ProductOperands o;
    PeerSend send;
    TRY(peer_send_of(ctx, call, &send));
    if (!norm_problem(ctx, call, send, &p, &o)) return linear_norm_dx_in_parts(ctx, call);
    const bf16 *x = (const bf16 *)call->in[NORM_X];
    float *dgamma = (float *)call->out[1], *dbeta = (float *)call->out[2];
    if (p.product.columns == 256) return product_norm_launch<256>(p, x, o, dgamma, dbeta, ctx->stream);
    if (p.product.columns == 128) return product_norm_launch<128>(p, x, o, dgamma, dbeta, ctx->stream);
    return product_norm_launch<64>(p, x, o, dgamma, dbeta, ctx->stream);
}

/* One kernel or its parts, both can where the latter can: addresses may decide which it is. */
static bool linear_norm_dx_sends(const OpCall *call)
{
    Op op;
    OpCall norm = norm_call(call, &op, NULL);
    return norm_backward_sends(&norm);
}

/* For the parts: addresses, known when it runs, may want them. */
size_t linear_norm_dx_scratch(const OpCall *call)
{
    const Tensor *x = call->in_tensor[NORM_X];
    return align_up((size_t)tensor_count(x) * dtype_size(x->dtype)) + norm_backward_scratch(tensor_last(x));
}

/* All of them in f32 as small products in one launch. */
static bool weights_are_small(const OpCall *call, int members, int biases, SmallBatch *batch)
{
    memset(batch, 0, sizeof *batch);
    const Tensor *x = call->in_tensor[members];
    if (x->dtype != DT_F32 || members > SMALL_PRODUCTS) return false;
    for (int k = 0; k < members; k++) {
        SmallProduct p = small_product(tensor_last(call->in_tensor[k]), tensor_last(x));
        if (call->in_tensor[k]->dtype != DT_F32 || !small_add(&p, tensor_rows(x), call->in[k], call->in[members]))
            return false;
        p.d = (float *)call->out[k];
        if (biases >> k & 1) p.sums = (float *)call->out[members + k];
        batch->p[batch->count++] = p;
    }
    return true;
}

/* dW = dy^T x, db = sum of dy over rows */
static Status weight_gradient(CudaContext *ctx, const OpCall *call, const Tensor *dy, const void *dy_at,
                              const Tensor *x, const void *x_at, void *dw, DType dw_type, void *db)
{
    int64_t rows = tensor_rows(dy), out = tensor_last(dy);
    GemmShape s = gemm_shape(out, tensor_last(x), rows, true, false, dy->dtype, dw_type);
    TRY(gemm_run(ctx, &s, dy_at, x_at, NULL, dw));
    if (!db) return OK;
    DISPATCH_REAL(call, dy->dtype,
                  { return sum_rows_launch((const T *)dy_at, (float *)db, rows, out, call->scratch, ctx->stream); });
}

/* How gradients of weights are computed: by the library and a pass for the biases, or by one of the kernels that take
 * all members and biases in one pass. */
enum WeightsWay { WEIGHTS_LIBRARY, WEIGHTS_PASS, WEIGHTS_RING };

static bool weights_problem(const OpCall *call, int members, int biases, WeightsProblem *p)
{
    const Tensor *x = call->in_tensor[members];
    memset(p, 0, sizeof *p);
    if (members > WEIGHTS_MEMBERS || x->dtype != DT_BF16 || tensor_last(x) % 8 != 0) return false;
    if (tensor_rows(x) < 4096 || tensor_rows(x) > INT32_MAX || !aligned16(call->in[members])) return false;
    p->members = members;
    p->rows = (int)tensor_rows(x), p->in = (int)tensor_last(x);
    p->x = (const bf16 *)call->in[members];
    for (int k = 0; k < members; k++) {
        const Tensor *dy = call->in_tensor[k];
        if (dy->dtype != DT_BF16 || call->out_tensor[k]->dtype != DT_F32) return false;
        if (!aligned16(call->in[k]) || !aligned16(call->out[k])) return false;
        p->out[k] = (int)tensor_last(dy);
        p->dy[k] = (const bf16 *)call->in[k];
        p->dw[k] = (float *)call->out[k];
        if (biases >> k & 1) p->db[k] = (float *)call->out[members + k];
    }
    return true;
}

static bool ring_fits(const WeightsProblem &p)
{
    int narrow = 0;
    bool copies = p.in % PANEL == 0;
    for (int k = 0; k < p.members; k++) {
        narrow += p.out[k] == RING_NARROW;
        copies = copies && (p.out[k] % 8 == 0 || p.out[k] == RING_NARROW);
    }
    return copies && narrow <= 1 && narrow < p.members;
}

/* As measured on an H200: the ring from 512 x 128 weights on; below, x wider than 128 with outputs wider than 64 is the
 * library's. In company the ring takes all it can. */
static WeightsWay weights_way(const OpCall *call, int members, int biases, bool company, WeightsProblem *p)
{
    if (!weights_problem(call, members, biases, p)) return WEIGHTS_LIBRARY;
    int64_t elements = 0;
    int widest = 0;
    for (int k = 0; k < members; k++) {
        elements += (int64_t)p->out[k] * p->in;
        widest = p->out[k] > widest ? p->out[k] : widest;
    }
    bool alone = members == 1 && !biases; /* the library: 11 us against 20 for [256, 256] x 32768 */
    if (ring_fits(*p) && (company || (!alone && elements >= 512 * 128))) return WEIGHTS_RING;
    bool one_pass = widest <= 64 ? p->in <= 1024 : p->in <= 128 && widest <= 1024;
    return one_pass ? WEIGHTS_PASS : WEIGHTS_LIBRARY;
}

Status weights_flush(CudaContext *ctx)
{
    WeightsBatch *batch = ctx->batch;
    TRY(batch_run(*batch, ctx->stream));
    batch->problems = 0;
    return OK;
}

Status weights_batch_create(WeightsBatch **batch_out)
{
    *batch_out = (WeightsBatch *)calloc(1, sizeof **batch_out);
    return *batch_out ? OK : status_fail(ERR_MEMORY, "no memory for weight gradients");
}

void weights_batch_destroy(WeightsBatch **batch)
{
    free(*batch);
    *batch = NULL;
}

/* All members and biases in one pass where a kernel can: *done. With company the pass is left to weights_flush(). */
static Status joint_gradients(CudaContext *ctx, const OpCall *call, int members, int biases, bool *done)
{
    WeightsBatch alone = {};
    WeightsBatch *batch = ctx->batch ? ctx->batch : &alone;
    WeightsProblem p;
    WeightsWay way = weights_way(call, members, biases, ctx->batch != NULL, &p);
    *done = way != WEIGHTS_LIBRARY;
    if (way == WEIGHTS_PASS) return weights_launch(p, call->scratch, ctx->stream);
    if (way == WEIGHTS_LIBRARY) return OK;
    if (batch->problems == RING_BATCH) TRY(weights_flush(ctx));
    batch->problem[batch->problems] = p;
    batch->scratch[batch->problems++] = call->scratch;
    return ctx->batch ? OK : batch_run(alone, ctx->stream);
}

static Status linear_dw(CudaContext *ctx, const OpCall *call)
{
    bool bias = call->op->attr.i[0] != 0, done;
    SmallBatch few;
    if (weights_are_small(call, 1, bias, &few)) return small_launch<true, false>(&few, ctx->stream);
    TRY(joint_gradients(ctx, call, 1, bias, &done));
    if (done) return OK;
    return weight_gradient(ctx, call, call->in_tensor[0], call->in[0], call->in_tensor[1], call->in[1], call->out[0],
                           call->out_tensor[0]->dtype, bias ? call->out[1] : NULL);
}

static size_t weight_gradient_scratch(const OpCall *call)
{
    int64_t widest = 0;
    int members = call->op->kind == OP_LINEAR_DW ? 1 : (int)call->op->attr.i[0];
    for (int k = 0; k < call->op->n_in; k++)
        if (call->in_tensor[k] && tensor_last(call->in_tensor[k]) > widest) widest = tensor_last(call->in_tensor[k]);
    int biases = (int)call->op->attr.i[call->op->kind == OP_LINEAR_DW ? 0 : 1];
    WeightsProblem p;
    WeightsWay way = weights_way(call, members, biases, call->op->stream == STREAM_ASIDE, &p);
    /* addresses, known when it runs, may send it to the library after all */
    size_t library = sum_rows_scratch(widest) * (size_t)(members > 1 ? SUM_LIST : 1);
    size_t ring = way == WEIGHTS_RING ? ring_scratch(p) : 0, pass = way == WEIGHTS_LIBRARY ? 0 : weights_scratch(p);
    size_t bytes = ring > pass ? ring : pass; /* what has company here may run alone, in a line */
    return bytes > library ? bytes : library;
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
    bool done;
    SmallBatch few;
    if (weights_are_small(call, n, biases, &few)) return small_launch<true, false>(&few, ctx->stream);
    TRY(joint_gradients(ctx, call, n, biases, &done));
    if (done) return OK;
    for (int k = 0; k < n; k++)
        TRY(weight_gradient(ctx, call, call->in_tensor[k], call->in[k], call->in_tensor[n], call->in[n], call->out[k],
                            call->out_tensor[k]->dtype, NULL));
    return group_biases(ctx, call, n, biases);
}

const CudaEntry cuda_dense_backward[] = {
    {OP_LINEAR_DX, linear_dx_run, NULL},
    {OP_LINEAR_DW, linear_dw, weight_gradient_scratch},
    {OP_LINEAR_GROUP_DX, linear_group_dx, NULL},
    {OP_LINEAR_NORM_DX, linear_norm_dx_run, linear_norm_dx_scratch, linear_norm_dx_sends},
    {OP_LINEAR_GROUP_DW, linear_group_dw, weight_gradient_scratch},
    {OP_COUNT, NULL, NULL},
};
