/* The outer product mean and its parts. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/outer_chain_back.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/transpose.cuh"

/* --- outer product
 * ------------------------------------------------------------------------------------------------------ */

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

struct PlusResidual {
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] + x[1][j];
    }
};

/* a and b times their masks, where there are any: from call->in[at] on, masks from call->in[mask] on, into `room`. */
struct MaskedSides {
    const void *a, *b;
};
static size_t opm_masked_bytes(const OpCall *call, int at, int mask)
{
    if (!call_in(call, mask)) return 0;
    return align_up(tensor_bytes(call->in_tensor[at])) + tensor_bytes(call->in_tensor[at + 1]);
}
static Status opm_mask(const OpCall *call, int side, int mask, const void *x, void *y, cudaStream_t stream)
{
    int64_t n = tensor_count(call->in_tensor[side]), inner = tensor_last(call->in_tensor[side]);
    MaskMul f = {any_in(call, mask), (uint32_t)inner};
    DISPATCH_REAL(call, call->in_tensor[side]->dtype, {
        MapArgs<T, 1, 1> a = {{(const T *)x}, {(T *)y}, n};
        return map_launch(a, inner, f, stream);
    });
}
static Status opm_masked(const OpCall *call, int at, int mask, char *room, MaskedSides *out, cudaStream_t stream)
{
    *out = {call->in[at], call->in[at + 1]};
    if (!call_in(call, mask)) return OK;
    char *b = room + align_up(tensor_bytes(call->in_tensor[at]));
    TRY(opm_mask(call, at, mask, out->a, room, stream));
    TRY(opm_mask(call, at + 1, mask + 1, out->b, b, stream));
    *out = {room, b};
    return OK;
}

static size_t opm_scratch(const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    if (opm_chains(o, call->in_tensor[2]->dim[0])) return align_up((size_t)opm_turned(o) * sizeof(bf16));
    return 2 * outer_bytes(o) + opm_masked_bytes(call, 0, 6);
}

/* For what is no chain: the outer product with its axes as they come, which the linear layer reads. */
static bool opm_projects(const Outer &o, int64_t channels)
{
    return o.type == DT_BF16 && o.d == PROJECT_D && channels == CHAIN_N && outer_project_fits(o.n, o.m, o.c);
}

/* z, and its layer norm where a kernel holds whole rows */
static Status opm_rows(CudaContext *ctx, const OpCall *call, bool *normed)
{
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    int64_t pairs = o.n * o.m, channels = call->in_tensor[2]->dim[0];
    char *product = (char *)call->scratch;
    bool chains = opm_chains(o, channels), projects = opm_projects(o, channels);
    if ((chains || projects) && !opm_aligned(call))
        return status_fail(ERR_INTERNAL, "opm: an operand between 16-byte units");
    *normed = chains || projects;
    if (chains) return opm_chain(ctx, call, o);
    MaskedSides x;
    TRY(opm_masked(call, 0, 6, product + 2 * outer_bytes(o), &x, ctx->stream));
    if (projects) {
        GemmShape s = gemm_shape(o.n * o.c, o.m * o.d, o.s, true, false, o.type, o.type);
        TRY(gemm_run(ctx, &s, x.a, x.b, NULL, product));
        return outer_project_launch((const bf16 *)product, (const bf16 *)call->in[2], o.n, o.m, o.c, opm_epilogue(call),
                                    ctx->stream);
    }
    TRY(outer_run(ctx, o, x.a, x.b, product, product + outer_bytes(o)));
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

static Status opm(CudaContext *ctx, const OpCall *call)
{
    bool normed = false;
    TRY(opm_rows(ctx, call, &normed));
    if (normed || !call_in(call, 8)) return OK;
    NormRows n = norm_rows_behind(call, 8, 1);
    return norm_rows_run(ctx, call, &n);
}

/* dz of the linear layer's output and the gradient of its bias. */
static Status opm_scale(const OpCall *call, DType type, void *dz, void *sums, cudaStream_t stream)
{
    int64_t channels = tensor_last(call->in_tensor[0]), pairs = tensor_count(call->in_tensor[0]) / channels;
    float eps = (float)call->op->attr.f[0], *dbias = (float *)call->out[3];
    if (type == DT_BF16 && channels == CHAIN_N && aligned16(call->in[0]) && aligned16(dz)) {
        Scale scale = {(const bf16 *)call->in[0], (bf16 *)dz, any_in(call, 4), eps, pairs, (float *)sums};
        Turns none = {};
        TRY(opm_prepare_launch(scale, none, stream));
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
    size_t spare_at, dz_at, sum_at, masked_at, bytes;
};

static OpmBwdScratch opm_bwd_plan(const OpCall *call)
{
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    int64_t channels = tensor_last(call->in_tensor[0]);
    bool chains = opm_chains_back(o, channels);
    OpmBwdScratch s = {};
    s.spare_at = chains ? opm_sums_room(o) : outer_bytes(o);
    s.dz_at = s.spare_at + (chains ? opm_back_room(o) : outer_bytes(o));
    s.sum_at = s.dz_at + align_up(tensor_bytes(call->in_tensor[0]));
    size_t sums = sum_rows_scratch(channels), blocks = SCALE_BLOCKS * CHAIN_N * sizeof(float);
    s.masked_at = s.sum_at + align_up(sums > blocks ? sums : blocks);
    s.bytes = s.masked_at + (chains ? 0 : opm_masked_bytes(call, 1, 5));
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
    int64_t channels = tensor_last(call->in_tensor[0]);
    char *product = (char *)call->scratch, *spare = product + plan.spare_at, *dz = product + plan.dz_at;
    if (opm_chains_back(o, channels) && !opm_aligned(call))
        return status_fail(ERR_INTERNAL, "opm_bwd: an operand between 16-byte units");
    if (opm_chains_back(o, channels))
        return opm_bwd_chain(ctx, call, o, product, spare, (bf16 *)dz, (float *)(product + plan.sum_at));
    TRY(opm_scale(call, o.type, dz, product + plan.sum_at, ctx->stream));
    MaskedSides x;
    TRY(opm_masked(call, 1, 5, product + plan.masked_at, &x, ctx->stream));
    TRY(outer_run(ctx, o, x.a, x.b, product, spare));
    GemmShape dw = gemm_shape(channels, o.c * o.d, o.n * o.m, true, false, o.type, call->out_tensor[2]->dtype);
    TRY(gemm_run(ctx, &dw, dz, product, NULL, call->out[2]));
    TRY(opm_product_gradient(ctx, o, dz, call->in[3], channels, product, spare));
    TRY(outer_gradients(ctx, o, product, x.a, x.b, call->out[0], call->out[1]));
    if (!call_in(call, 5)) return OK;
    TRY(opm_mask(call, 1, 5, call->out[0], call->out[0], ctx->stream));
    return opm_mask(call, 2, 6, call->out[1], call->out[1], ctx->stream);
}

/* The gradient of b, summed over the ranks. */
static bool opm_bwd_sends(const OpCall *call)
{
    JoinSend send;
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    return opm_chains_back(o, tensor_last(call->in_tensor[0])) && join_send_of(call, &send);
}

const CudaEntry cuda_outer[] = {
    {OP_OUTER_PRODUCT, outer_product, outer_scratch},
    {OP_OUTER_PRODUCT_BWD, outer_product_bwd, outer_scratch},
    {OP_PAIR_COUNT, pair_count, NULL},
    {OP_DIV_COUNT, div_count, NULL},
    {OP_OPM, opm, opm_scratch},
    {OP_OPM_BWD, opm_bwd, opm_bwd_scratch, opm_bwd_sends},
    {OP_COUNT, NULL, NULL},
};
