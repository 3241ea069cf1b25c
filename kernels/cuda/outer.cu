/* The outer product mean and its parts. */
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/transpose.cuh"

/* --- outer product
 * ------------------------------------------------------------------------------------------------------ */

struct Outer {
    int64_t s, n, m, c, d;
    DType type;
};

static Outer outer_make(const Tensor *a, const Tensor *b)
{
    return {a->dim[0], a->dim[1], b->dim[1], a->dim[2], b->dim[2], a->dtype};
}
static size_t outer_bytes(const Outer &o)
{
    return align_up((size_t)(o.n * o.m * o.c * o.d) * dtype_size(o.type));
}

/* o[N, C, M, D] <-> [N, M, C, D] */
static Status outer_swap(const Outer &o, const void *x, void *y, bool to_pairs, cudaStream_t stream)
{
    Tensor t = {o.type, 4, SHARD_NONE, {o.n, to_pairs ? o.c : o.m, to_pairs ? o.m : o.c, o.d}};
    const int64_t perm[4] = {0, 2, 1, 3};
    if (dtype_size(o.type) == 2) return transpose_launch((const uint16_t *)x, (uint16_t *)y, &t, perm, stream);
    return transpose_launch((const uint32_t *)x, (uint32_t *)y, &t, perm, stream);
}

/* Rows (i, c), columns (j, d) of a product -> [i][j][c][d]. Eight columns lie in one j. */
struct PairsEpilogue {
    bf16 *y;
    uint32_t c, d, m;
    __device__ __forceinline__ void operator()(int, int row, int column, uint4 v) const
    {
        uint32_t i = (uint32_t)row / c, channel = row - i * c, j = (uint32_t)column / d, e = column - j * d;
        *reinterpret_cast<uint4 *>(y + (((int64_t)i * m + j) * c + channel) * d + e) = v;
    }
};

static int shift_of(int64_t x)
{
    int shift = 0;
    while (INT64_C(1) << shift < x) shift++;
    return INT64_C(1) << shift == x ? shift : -1;
}

/* x[rows, inner] w[columns, inner]^T on the streaming kernel, stored in groups of rows and columns; false: not run. */
static bool stream_grouped(StreamProblem *p, const void *x, const void *w, void *y, int64_t rows, int64_t columns,
                           int64_t inner, int64_t row_group, int64_t column_group)
{
    *p = {};
    p->x = (const bf16 *)x, p->w = (const bf16 *)w, p->y[0] = (bf16 *)y;
    p->rows = (int)rows, p->columns = p->start[1] = (int)columns, p->members = 1;
    p->row_shift = shift_of(row_group);
    p->column_group = (int)column_group;
    return p->row_shift >= 0 && column_group % 8 == 0 && rows >= 1024 && stream_fits(*p, inner);
}

/* o[N, M, C * D] = sum_s a[s, n, c] b[s, m, d]; spare: room for one more of its size */
static Status outer_run(CudaContext *ctx, const Outer &o, const void *a, const void *b, void *out, void *spare)
{
    /* a, b with s last in the spare room */
    int64_t rows = o.n * o.c, columns = o.m * o.d;
    uint16_t *across_a = (uint16_t *)spare, *across_b = across_a + o.s * rows;
    StreamProblem q;
    GroupedOperands g = {(const bf16 *)across_a, (const bf16 *)across_b, (bf16 *)out, o.n, o.m, o.c, o.d, o.s, true};
    bool room = o.type == DT_BF16 && o.s * (rows + columns) < rows * columns, groups = room && grouped_fits(g);
    if (groups || (room && stream_grouped(&q, across_a, across_b, out, rows, columns, o.s, o.c, o.d))) {
        TRY(transpose_tiles_launch((const uint16_t *)a, across_a, transpose_plain(1, o.s, rows), ctx->stream));
        TRY(transpose_tiles_launch((const uint16_t *)b, across_b, transpose_plain(1, o.s, columns), ctx->stream));
        if (groups) return grouped_launch(g, ctx->stream);
        q.row_high_step = o.m * o.c * o.d, q.row_step = o.d, q.column_step = o.c * o.d;
        return stream_launch(q, o.s, ctx->stream);
    }
    TileProblem p = {};
    p.a = (const bf16 *)a, p.b = (const bf16 *)b;
    p.m = (int)(o.n * o.c), p.n = (int)(o.m * o.d), p.k = (int)o.s;
    p.lda = o.n * o.c, p.ldb = o.m * o.d;
    /* long sums: the library's product and a pass over its result, 241 us against 395 for s = 1024 on an H200 */
    bool deep = o.s >= 512;
    if (!deep && o.type == DT_BF16 && o.d % 8 == 0 && tile_fits(p, false, false) && aligned16(out)) {
        PairsEpilogue e = {(bf16 *)out, (uint32_t)o.c, (uint32_t)o.d, (uint32_t)o.m};
        return tile_launch<false, false>(p, 1, e, ctx->stream);
    }
    GemmShape s = gemm_shape(o.n * o.c, o.m * o.d, o.s, true, false, o.type, o.type);
    TRY(gemm_run(ctx, &s, a, b, NULL, spare));
    return outer_swap(o, spare, out, true, ctx->stream);
}

/* da, db from the gradient with rows (i, c) and columns (j, d). */
static Status outer_gradients(CudaContext *ctx, const Outer &o, const void *swapped, const void *a, const void *b,
                              void *da, void *db)
{
    int64_t nc = o.n * o.c, md = o.m * o.d;
    GemmShape to_a = gemm_shape(o.s, nc, md, false, true, o.type, o.type);
    GemmShape to_b = gemm_shape(o.s, md, nc, false, false, o.type, o.type);
    TRY(gemm_run(ctx, &to_a, b, swapped, NULL, da));
    return gemm_run(ctx, &to_b, a, swapped, NULL, db);
}

static size_t outer_scratch(const OpCall *call)
{
    int at = call->op->kind == OP_OUTER_PRODUCT ? 0 : 1;
    return outer_bytes(outer_make(call->in_tensor[at], call->in_tensor[at + 1]));
}

static Status outer_product(CudaContext *ctx, const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    return outer_run(ctx, o, call->in[0], call->in[1], call->out[0], call->scratch);
}

static Status outer_product_bwd(CudaContext *ctx, const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    TRY(outer_swap(o, call->in[0], call->scratch, false, ctx->stream));
    return outer_gradients(ctx, o, call->scratch, call->in[1], call->in[2], call->out[0], call->out[1]);
}

static Status pair_count(CudaContext *ctx, const OpCall *call)
{
    const Tensor *m = call->in_tensor[0], *n = call->in_tensor[1];
    GemmShape s = gemm_shape(m->dim[1], n->dim[1], m->dim[0], true, false, m->dtype, m->dtype);
    return gemm_run(ctx, &s, call->in[0], call->in[1], NULL, call->out[0]);
}

/* (x + bias) / (n + eps) */
struct DivCount {
    AnyReal count;
    const float *bias;
    float eps;
    uint32_t channels;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        uint32_t row = first / channels, channel = first - row * channels;
        float scale = 1.0f / (count[row] + eps), add[V] = {};
        if (bias) load_floats<V>(bias + channel, add);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = (x[0][j] + add[j]) * scale;
    }
};

template <typename T>
static Status div_count_launch(const T *x, T *y, AnyReal count, const float *bias, float eps, int64_t pairs,
                               int64_t channels, cudaStream_t stream)
{
    MapArgs<T, 1, 1> a = {{x}, {y}, pairs * channels};
    DivCount f = {count, bias, eps, (uint32_t)channels};
    return map_launch(a, aligned16(bias) ? channels : 1, f, stream);
}

static Status div_count(CudaContext *ctx, const OpCall *call)
{
    int64_t pairs = tensor_count(call->in_tensor[1]);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        return div_count_launch((const T *)call->in[0], (T *)call->out[0], any_in(call, 1), NULL,
                                (float)call->op->attr.f[0], pairs, tensor_last(call->in_tensor[0]), ctx->stream);
    });
}

/* --- outer product mean: the outer product in the storage type, in scratch
 * ------------------------------------------------ */

/* y[i, j, n] = (x + bias) / (count + eps), plus the residual where there is one */
struct OpmEpilogue {
    bf16 *y;
    const bf16 *residual;
    AnyReal count;
    const float *bias;
    float eps;
    int m;
    __device__ __forceinline__ float scale(int i, int j) const { return 1.0f / (count[(int64_t)i * m + j] + eps); }
    __device__ __forceinline__ uint32_t lower(float scale, int n, float a, float b) const
    {
        return pack_bf16((a + bias[n]) * scale, (b + bias[n + 1]) * scale);
    }
    __device__ __forceinline__ int64_t place(int i, int j, int n) const { return ((int64_t)i * m + j) * CHAIN_N + n; }
    __device__ __forceinline__ uint4 before(int i, int j, int n) const
    {
        return residual ? *reinterpret_cast<const uint4 *>(residual + place(i, j, n)) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void store(int i, int j, int n, uint4 v, uint4 r) const
    {
        if (residual) {
            v.x = add_bf16(v.x, r.x), v.y = add_bf16(v.y, r.y), v.z = add_bf16(v.z, r.z), v.w = add_bf16(v.w, r.w);
        }
        *reinterpret_cast<uint4 *>(y + place(i, j, n)) = v;
    }
    static __device__ __forceinline__ uint32_t add_bf16(uint32_t a, uint32_t b)
    {
        float2 x = unpack_bf16(a), y = unpack_bf16(b);
        return pack_bf16(x.x + y.x, x.y + y.y);
    }
};

struct PlusResidual {
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] + x[1][j];
    }
};

static bool opm_chains(const Outer &o, int64_t channels)
{
    return o.type == DT_BF16 && o.s == CHAIN_K && o.c % 2 == 0 && o.d == CHAIN_D && channels == CHAIN_N &&
           o.n % CHAIN_ROWS == 0 && o.m % CHAIN_P == 0;
}

static size_t opm_scratch(const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    int64_t channels = call->in_tensor[2]->dim[0], packed = o.s * (o.n * o.c + o.m * o.d) + channels * o.c * o.d;
    return opm_chains(o, channels) ? align_up((size_t)packed * sizeof(bf16)) : 2 * outer_bytes(o);
}

/* Operands of the chain from those of the op, into x, y, v. */
static Status opm_pack(const OpCall *call, const Outer &o, bf16 *x, bf16 *y, bf16 *v, cudaStream_t stream)
{
    ChainPacks packs = {};
    ChainPack &a = packs.pack[0], &b = packs.pack[1], &w = packs.pack[2];
    /* x_c[i, s] = a[s, i, c] */
    a.from = (const bf16 *)call->in[0], a.to = x;
    a.rows = a.row_group = CHAIN_ROWS, a.halves = CHAIN_K / 64;
    a.tiles = (int)(o.n / CHAIN_ROWS * o.c), a.minor = (int)o.c;
    a.major_step = CHAIN_ROWS * o.c, a.minor_step = 1;
    a.row_low = o.c;
    a.k_group = CHAIN_K, a.k_low = o.n * o.c;
    a.minor_first = true;
    /* y_j[d, s] = b[s, j, d], two j together */
    b.from = (const bf16 *)call->in[1], b.to = y;
    b.rows = b.row_group = 2 * CHAIN_D, b.halves = CHAIN_K / 64;
    b.tiles = (int)(o.m / 2), b.minor = 1;
    b.major_step = 2 * o.d;
    b.row_low = 1;
    b.k_group = CHAIN_K, b.k_low = o.m * o.d;
    /* v_c[n, d] = w[n, c, d], two c together */
    w.from = (const bf16 *)call->in[2], w.to = v;
    w.rows = w.row_group = CHAIN_N, w.halves = 1;
    w.tiles = (int)(o.c / 2), w.minor = 1;
    w.major_step = 2 * o.d;
    w.row_low = o.c * o.d;
    w.k_group = 2 * CHAIN_D, w.k_low = 1;
    return chain_pack_launch(packs, stream);
}

/* The whole op as two chained products; the operands packed in scratch. */
static Status opm_chain(CudaContext *ctx, const OpCall *call, const Outer &o)
{
    bf16 *x = (bf16 *)call->scratch, *y = x + o.s * o.n * o.c, *v = y + o.s * o.m * o.d;
    TRY(opm_pack(call, o, x, y, v, ctx->stream));
    ChainProblem p = {x, y, v, (int)o.n, (int)(o.c / 2), (int)o.m};
    const bf16 *residual = call_in(call, 5) ? (const bf16 *)call->in[5] : NULL;
    OpmEpilogue e = {(bf16 *)call->out[0],       residual, any_in(call, 4), (const float *)call->in[3],
                     (float)call->op->attr.f[0], (int)o.m};
    return chain_launch(p, e, ctx->stream);
}

static Status opm(CudaContext *ctx, const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    int64_t pairs = o.n * o.m, channels = call->in_tensor[2]->dim[0];
    char *product = (char *)call->scratch;
    bool aligned = aligned16(call->out[0]) && (!call_in(call, 5) || aligned16(call->in[5]));
    if (opm_chains(o, channels) && !aligned) return status_fail(ERR_INTERNAL, "opm: an operand between 16-byte units");
    if (opm_chains(o, channels)) return opm_chain(ctx, call, o);
    TRY(outer_run(ctx, o, call->in[0], call->in[1], product, product + outer_bytes(o)));
    GemmShape s = gemm_shape(pairs, channels, o.c * o.d, false, true, o.type, o.type);
    TRY(gemm_run(ctx, &s, product, call->in[2], NULL, call->out[0]));
    DISPATCH_REAL(call, o.type, {
        TRY(div_count_launch((const T *)call->out[0], (T *)call->out[0], any_in(call, 4), (const float *)call->in[3],
                             (float)call->op->attr.f[0], pairs, channels, ctx->stream));
        if (!call_in(call, 5)) return OK;
        MapArgs<T, 2, 1> sum = {
            {(const T *)call->out[0], (const T *)call->in[5]}, {(T *)call->out[0]}, pairs * channels};
        return map_launch(sum, pairs * channels, PlusResidual(), ctx->stream);
    });
}

enum { SCALE_THREADS = 256, SCALE_BLOCKS = 528 };

/* dz = dy / (count + eps) over [pairs, C], and this block's share of its sums over the pairs to partial[block][C]; C /
 * 8 lanes own a pair. */
template <int C>
static __global__ void __launch_bounds__(SCALE_THREADS)
    opm_scale_kernel(const bf16 *dy, bf16 *dz, AnyReal count, float eps, int64_t pairs, float *partial)
{
    stage_wait();
    constexpr int LANES = C / 8, PAIRS = SCALE_THREADS / LANES;
    __shared__ float shared[PAIRS][C];
    int channel = threadIdx.x % LANES * 8, own = threadIdx.x / LANES;
    float sum[8] = {};
#pragma unroll 4
    for (int64_t pair = (int64_t)blockIdx.x * PAIRS + own; pair < pairs; pair += (int64_t)gridDim.x * PAIRS) {
        float v[8], scale = 1.0f / (count[pair] + eps);
        load_floats<8>(dy + pair * C + channel, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= scale, sum[j] += v[j];
        store_floats<8>(dz + pair * C + channel, v);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) shared[own][channel + j] = sum[j];
    __syncthreads();
    if (threadIdx.x >= C) return;
    float total = 0;
    for (int k = 0; k < PAIRS; k++) total += shared[k][threadIdx.x];
    partial[(int64_t)blockIdx.x * C + threadIdx.x] = total;
}

/* dz of the linear layer's output and the gradient of its bias. */
static Status opm_scale(const OpCall *call, DType type, void *dz, void *sums, cudaStream_t stream)
{
    int64_t channels = tensor_last(call->in_tensor[0]), pairs = tensor_count(call->in_tensor[0]) / channels;
    float eps = (float)call->op->attr.f[0], *dbias = (float *)call->out[3];
    if (type == DT_BF16 && channels == CHAIN_N && aligned16(call->in[0]) && aligned16(dz)) {
        launch(opm_scale_kernel<CHAIN_N>, SCALE_BLOCKS, SCALE_THREADS, 0, stream, (const bf16 *)call->in[0], (bf16 *)dz,
               any_in(call, 4), eps, pairs, (float *)sums);
        TRY(cuda_launched("opm_scale_kernel"));
        SumList<float> join = {{NULL}, {dbias}};
        launch(sum_list_join_kernel<float>, blocks_for(channels, 32), 1024, 0, stream, join, (const float *)sums,
               (int64_t)SCALE_BLOCKS, channels);
        return cuda_launched("sum_list_join_kernel");
    }
    DISPATCH_REAL(call, type, {
        TRY(div_count_launch((const T *)call->in[0], (T *)dz, any_in(call, 4), NULL, eps, pairs, channels, stream));
        return sum_rows_launch((const T *)dz, dbias, pairs, channels, sums, stream);
    });
}

struct OpmBwdScratch {
    size_t spare_at, dz_at, sum_at, bytes;
};

static OpmBwdScratch opm_bwd_plan(const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    OpmBwdScratch s = {};
    s.spare_at = outer_bytes(o);
    s.dz_at = 2 * outer_bytes(o);
    s.sum_at = s.dz_at + align_up(tensor_bytes(call->in_tensor[0]));
    size_t sums = sum_rows_scratch(tensor_last(call->in_tensor[0])), blocks = SCALE_BLOCKS * CHAIN_N * sizeof(float);
    s.bytes = s.sum_at + (sums > blocks ? sums : blocks);
    return s;
}
static size_t opm_bwd_scratch(const OpCall *call)
{
    return opm_bwd_plan(call).bytes;
}

/* Rows (i, j), columns (c, d) of a product -> [i][c][j][d]. */
struct RowsEpilogue {
    bf16 *y;
    uint32_t c, d, m;
    __device__ __forceinline__ void operator()(int, int row, int column, uint4 v) const
    {
        uint32_t i = (uint32_t)row / m, j = row - i * m, channel = (uint32_t)column / d, e = column - channel * d;
        *reinterpret_cast<uint4 *>(y + (((int64_t)i * c + channel) * m + j) * d + e) = v;
    }
};

/* d(outer) = dz W with rows (i, c), columns (j, d) */
static Status opm_product_gradient(CudaContext *ctx, const Outer &o, const void *dz, const void *w, int64_t channels,
                                   void *out, void *spare)
{
    /* w with its output channels last in the spare room */
    int64_t pairs = o.n * o.m, columns = o.c * o.d;
    StreamProblem q;
    GroupedOperands g = {(const bf16 *)dz, (const bf16 *)spare, (bf16 *)out, o.n, o.m, o.c, o.d, channels, false};
    bool room = o.type == DT_BF16 && channels < pairs, groups = room && grouped_fits(g);
    if (groups || (room && stream_grouped(&q, dz, spare, out, pairs, columns, channels, o.m, o.d))) {
        TRY(transpose_tiles_launch((const uint16_t *)w, (uint16_t *)spare, transpose_plain(1, channels, columns),
                                   ctx->stream));
        if (groups) return grouped_launch(g, ctx->stream);
        q.row_high_step = o.c * o.m * o.d, q.row_step = o.d, q.column_step = o.m * o.d;
        return stream_launch(q, channels, ctx->stream);
    }
    TileProblem p = {};
    p.a = (const bf16 *)dz, p.b = (const bf16 *)w;
    p.m = (int)(o.n * o.m), p.n = (int)(o.c * o.d), p.k = (int)channels;
    p.lda = channels, p.ldb = o.c * o.d;
    if (o.type == DT_BF16 && o.d % 8 == 0 && tile_fits(p, true, false) && aligned16(out)) {
        RowsEpilogue e = {(bf16 *)out, (uint32_t)o.c, (uint32_t)o.d, (uint32_t)o.m};
        return tile_launch<true, false>(p, 1, e, ctx->stream);
    }
    GemmShape s = gemm_shape(p.m, p.n, p.k, false, false, o.type, o.type);
    TRY(gemm_run(ctx, &s, dz, w, NULL, spare));
    return outer_swap(o, spare, out, false, ctx->stream);
}

static Status opm_bwd(CudaContext *ctx, const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    OpmBwdScratch plan = opm_bwd_plan(call);
    int64_t pairs = o.n * o.m, channels = tensor_last(call->in_tensor[0]);
    char *product = (char *)call->scratch, *spare = product + plan.spare_at, *dz = product + plan.dz_at;
    TRY(opm_scale(call, o.type, dz, product + plan.sum_at, ctx->stream));
    TRY(outer_run(ctx, o, call->in[1], call->in[2], product, spare));
    GemmShape dw = gemm_shape(channels, o.c * o.d, pairs, true, false, o.type, call->out_tensor[2]->dtype);
    TRY(gemm_run(ctx, &dw, dz, product, NULL, call->out[2]));
    TRY(opm_product_gradient(ctx, o, dz, call->in[3], channels, product, spare));
    return outer_gradients(ctx, o, product, call->in[1], call->in[2], call->out[0], call->out[1]);
}

const CudaEntry cuda_outer[] = {
    {OP_OUTER_PRODUCT, outer_product, outer_scratch},
    {OP_OUTER_PRODUCT_BWD, outer_product_bwd, outer_scratch},
    {OP_PAIR_COUNT, pair_count, NULL},
    {OP_DIV_COUNT, div_count, NULL},
    {OP_OPM, opm, opm_scratch},
    {OP_OPM_BWD, opm_bwd, opm_bwd_scratch},
    {OP_COUNT, NULL, NULL},
};
