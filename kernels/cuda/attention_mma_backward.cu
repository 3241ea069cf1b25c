/* Fused attention in bf16, backward. With p = exp(s - lse), delta = sum_d do o (Dao et al. 2022; an operand, or summed
 * in front):
 *   dp = do v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q, dv = p^T do, dbias = sum over rows of ds.
 *
 * Two kernels, each recomputing p: the first owns queries (dq, dbias; it also leaves lse and delta ready for the
 * second), the second keys (dk, dv, on transposed scores, so that p^T and ds^T come out of the accumulators as operands
 * of the next product). dbias is summed over the rows of a block in registers, then over blocks in order: no atomics,
 * and no tensor of all scores. bias, mask, -lse and -delta are initial values of the accumulators; operands of the next
 * row arrive while one row is computed. */
#include "kernels/cuda/att_mma.cuh"

enum { DQ_BLOCKS = 132, PLAIN_BLOCKS = 528 };

/* --- queries: dq, dbias
 * ---------------------------------------------------------------------------------------------------- */

/* With a bias four warps share 16 queries, each with a quarter of the keys, so that dbias fits in registers. */
template <bool BIAS> struct DqShape {
    static constexpr int WARPS = BIAS ? 16 : 8, QUARTERS = BIAS ? 4 : 1, QUERIES = WARPS / QUARTERS * 16;
};

struct DqLayout {
    int padded;
    uint32_t value_at, query_at, go_at, add_at, stage_bytes; /* within a stage */
    uint32_t bias_at, sum_at, bytes;
};

static __host__ __device__ DqLayout dq_layout(int m, int d, int queries, bool bias)
{
    DqLayout l = {};
    uint32_t tile = (uint32_t)(queries * d * 2);
    l.padded = (m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    l.value_at = (uint32_t)(l.padded * d * 2);
    l.query_at = 2 * l.value_at;
    l.go_at = l.query_at + tile;
    l.add_at = l.go_at + tile;
    l.stage_bytes = l.add_at + (uint32_t)l.padded * 4;
    l.bias_at = 2 * l.stage_bytes;
    l.sum_at = l.bias_at + (bias ? (uint32_t)(queries * l.padded * 2) : 0);
    /* partial dq of the three warps that do not store: [3][queries][d + 2] floats */
    l.bytes = l.sum_at + (bias ? (uint32_t)(3 * queries * (d + 2) * 4) : 0);
    return l;
}

/* Adds the partial dq of a group's four warps in order. Has a barrier. */
template <int D>
__device__ __forceinline__ void dq_join(float (&dq)[(D + 7) / 8][4], float *sums, int queries, int query_group,
                                        int quarter)
{
    constexpr int NT = (D + 7) / 8, PITCH = D + 2;
    int lane = threadIdx.x % WARP, row = query_group * 16 + lane / 4;
    if (quarter > 0) {
        float *mine = sums + ((quarter - 1) * queries + row) * PITCH + lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            *reinterpret_cast<float2 *>(mine + t * 8) = make_float2(dq[t][0], dq[t][1]);
            *reinterpret_cast<float2 *>(mine + 8 * PITCH + t * 8) = make_float2(dq[t][2], dq[t][3]);
        }
    }
    __syncthreads();
    if (quarter > 0) return;
    for (int k = 0; k < 3; k++) {
        const float *other = sums + (k * queries + row) * PITCH + lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            float2 low = *reinterpret_cast<const float2 *>(other + t * 8);
            float2 high = *reinterpret_cast<const float2 *>(other + 8 * PITCH + t * 8);
            dq[t][0] += low.x, dq[t][1] += low.y, dq[t][2] += high.x, dq[t][3] += high.y;
        }
    }
}

/* p = 2^(s unit + shift), then ds = p dp (dp has -delta in it already): ds in place of s. */
__device__ __forceinline__ void dq_scores(float (&s)[4], const float (&dp)[4], float unit, float shift)
{
#pragma unroll
    for (int c = 0; c < 4; c++) s[c] = exp2_fast(fmaf(s[c], unit, shift)) * dp[c];
}

/* STEPS x 64 >= keys. stats[G,B,H,Np] = (-lse / scale, -delta); partial dbias [chunk][G,H,N,Mp]. */
template <int D, bool BIAS, int STEPS>
__global__ void __launch_bounds__(DqShape<BIAS>::WARPS *WARP, BIAS ? 1 : 2)
    att_dq_mma_kernel(Att a, AttOperands<bf16> x, AttPrepared prepared, float2 *stats, float *dbias_partial,
                      int rows_per_block)
{
    stage_wait();
    extern __shared__ __align__(128) char shared[];
    typedef DqShape<BIAS> S;
    constexpr int PER_STEP = 4 / S::QUARTERS; /* 16-key pieces of a step that are this warp's */
    DqLayout l = dq_layout(a.m, D, S::QUERIES, BIAS);
    uint32_t base = shared_address(shared);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, query_group = warp / S::QUARTERS,
        quarter = warp % S::QUARTERS;
    int tile0 = blockIdx.x * S::QUERIES, query0 = tile0 + query_group * 16;
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);
    int np = (a.n + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    float inverse = 1.0f / a.scale;

    auto load = [&](int row, int stage) {
        uint32_t at = base + stage * l.stage_bytes;
        int64_t k_at = a.k_block(group, row, head), q_at = a.q_block(group, row, head) + tile0 * a.pitch;
        att_load_tile<D, S::WARPS * WARP>(at, x.k + k_at, a.pitch, a.m, l.padded);
        att_load_tile<D, S::WARPS * WARP>(at + l.value_at, x.v + k_at, a.pitch, a.m, l.padded);
        att_load_tile<D, S::WARPS * WARP>(at + l.query_at, x.q + q_at, a.pitch, a.n - tile0, S::QUERIES);
        att_load_tile<D, S::WARPS * WARP>(at + l.go_at, x.go + q_at, a.pitch, a.n - tile0, S::QUERIES);
        att_load_floats(at + l.add_at, prepared.add + att_mask_index(a, group, row) * l.padded, l.padded);
        copy_commit();
    };
    if (BIAS)
        att_load_matrix(base + l.bias_at, prepared.rows + ((int64_t)group * a.h + head) * a.n * l.padded, tile0,
                        S::QUERIES, a.n, l.padded);
    load(first, 0);
    float dbias[BIAS ? STEPS : 1][2][4] = {};
    for (int row = first; row < last; row++) {
        int stage = (row - first) & 1;
        uint32_t at = base + stage * l.stage_bytes;
        int64_t stat = (((int64_t)group * a.b + row) * a.h + head) * a.n;
        bool any = prepared.any[att_mask_index(a, group, row)] != 0;
        float unit = any ? a.scale * ATT_LOG2E : 0.0f, shift = any ? 0.0f : -log2f((float)a.m), lse[2], delta[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = query0 + lane / 4 + half * 8;
            lse[half] = query >= a.n ? ATT_PAD : any ? -x.lse_in[stat + query] * inverse : 0.0f;
            delta[half] = query < a.n ? x.delta[a.delta_index(group, row, query, head, D)] : 0.0f;
        }
        copy_wait<0>();
        __syncthreads(); /* this row has arrived, and all are done with the other stage */
        if (row + 1 < last) load(row + 1, stage ^ 1);
        const float *add = reinterpret_cast<const float *>(shared + stage * l.stage_bytes + l.add_at);
        AttFragment<D> q, go;
        q.load_tile(at + l.query_at, query_group * 16);
        go.load_tile(at + l.go_at, query_group * 16);
        if (quarter == 0 && lane % 4 == 0) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = query0 + lane / 4 + half * 8;
                if (query < np)
                    stats[(((int64_t)group * a.b + row) * a.h + head) * np + query] =
                        make_float2(lse[half], -delta[half]);
            }
        }
        float dq[(D + 7) / 8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step * KEY_BLOCK >= l.padded) continue;
#pragma unroll
            for (int piece = 0; piece < PER_STEP; piece++) {
                int j = S::QUARTERS == 1 ? piece : quarter, key0 = step * KEY_BLOCK + j * 16;
                float2 left = *reinterpret_cast<const float2 *>(add + key0 + lane % 4 * 2);
                float2 right = *reinterpret_cast<const float2 *>(add + key0 + 8 + lane % 4 * 2);
                uint32_t b[4] = {}, ds[4];
                float s[2][4], dp[2][4];
                if (BIAS) att_matrix_fragment(b, base + l.bias_at, query_group * 16, step * KEY_BLOCK, j, l.padded);
                att_begin<BIAS>(s[0], s[1], b, inverse, left, right, lse[0], lse[1]);
#pragma unroll
                for (int c = 0; c < 4; c++) dp[0][c] = dp[1][c] = -delta[c / 2];
                att_times_transposed<D>(s[0], s[1], q, at, key0);
                att_times_transposed<D>(dp[0], dp[1], go, at + l.value_at, key0);
                dq_scores(s[0], dp[0], unit, shift);
                dq_scores(s[1], dp[1], unit, shift);
                if (BIAS) {
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        dbias[BIAS ? step : 0][0][c] += s[0][c];
                        dbias[BIAS ? step : 0][1][c] += s[1][c];
                    }
                }
                att_as_fragment(ds, s[0], s[1]);
                att_times_rows<D>(dq, ds, at, key0);
            }
        }
        /* the next row's first barrier keeps the partial sums until they are read */
        if (S::QUARTERS > 1)
            dq_join<D>(dq, reinterpret_cast<float *>(shared + l.sum_at), S::QUERIES, query_group, quarter);
        if (quarter == 0) att_store<D>(x.dq + a.q_block(group, row, head), a.pitch, query0, a.n, dq, a.scale, a.scale);
    }
    if (!BIAS) return;
    float *out = dbias_partial + (((int64_t)blockIdx.z * a.g + group) * a.h + head) * a.n * l.padded;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step * KEY_BLOCK >= l.padded) continue;
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = query0 + lane / 4 + half * 8,
                    column = step * KEY_BLOCK + quarter * 16 + j * 8 + lane % 4 * 2;
                if (query < a.n)
                    *reinterpret_cast<float2 *>(out + (int64_t)query * l.padded + column) =
                        make_float2(dbias[BIAS ? step : 0][j][half * 2], dbias[BIAS ? step : 0][j][half * 2 + 1]);
            }
    }
}

/* dbias[g,n,m,h] = sum over chunks, in order; a thread per pair writes all heads. */
__global__ void __launch_bounds__(128)
    att_dbias_join_kernel(Att a, const float *partial, bf16 *dbias, int chunks, int padded)
{
    stage_wait();
    int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, group = blockIdx.z;
    if (j >= a.m) return;
    int64_t step = (int64_t)a.g * a.h * a.n * padded;
    for (int head = 0; head < a.h; head++) {
        const float *p = partial + (((int64_t)group * a.h + head) * a.n + i) * padded + j;
        float sum = 0;
#pragma unroll 4
        for (int k = 0; k < chunks; k++) sum += p[k * step];
        dbias[a.bias_index(group, i, j, head)] = from_float<bf16>(sum);
    }
}

/* --- keys: dk, dv
 * ----------------------------------------------------------------------------------------------------------- */

struct DkvLayout {
    int padded; /* queries */
    uint32_t go_at, stat_at, stage_bytes;
    uint32_t bias_at, bytes;
};

static __host__ __device__ DkvLayout dkv_layout(int n, int d, int warps, bool bias)
{
    DkvLayout l = {};
    l.padded = (n + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    l.go_at = (uint32_t)(l.padded * d * 2);
    l.stat_at = 2 * l.go_at;
    l.stage_bytes = l.stat_at + (uint32_t)l.padded * 8;
    l.bias_at = 2 * l.stage_bytes;
    l.bytes = l.bias_at + (bias ? (uint32_t)(warps * 16 * l.padded * 2) : 0);
    return l;
}

__device__ __forceinline__ void prefetch_l2(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* Keys of this warp; transposed scores [16 keys x 16 queries] at a time. */
template <int D, bool BIAS, int WARPS>
__global__ void __launch_bounds__(WARPS *WARP, WARPS == 16 ? 1 : 2)
    att_dkv_mma_kernel(Att a, AttOperands<bf16> x, AttPrepared prepared, const float2 *stats, int rows_per_block)
{
    stage_wait();
    extern __shared__ __align__(128) char shared[];
    constexpr int NT = (D + 7) / 8;
    DkvLayout l = dkv_layout(a.n, D, WARPS, BIAS);
    uint32_t base = shared_address(shared);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tile0 = blockIdx.x * WARPS * 16, key0 = tile0 + warp * 16, my_key = key0 + lane / 4;
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);
    int mp = (a.m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    float inverse = 1.0f / a.scale;

    auto load = [&](int row, int stage) {
        uint32_t at = base + stage * l.stage_bytes;
        int64_t q_at = a.q_block(group, row, head);
        att_load_tile<D, WARPS * WARP>(at, x.q + q_at, a.pitch, a.n, l.padded);
        att_load_tile<D, WARPS * WARP>(at + l.go_at, x.go + q_at, a.pitch, a.n, l.padded);
        const float2 *source = stats + (((int64_t)group * a.b + row) * a.h + head) * l.padded;
        att_load_floats(at + l.stat_at, reinterpret_cast<const float *>(source), 2 * l.padded);
        copy_commit();
        int64_t mine = a.k_block(group, row, head) + my_key * a.pitch;
        if (lane % 4 == 0 && my_key < a.m) prefetch_l2(x.k + mine), prefetch_l2(x.v + mine);
        if (lane % 4 == 1 && my_key + 8 < a.m)
            prefetch_l2(x.k + mine + 8 * a.pitch), prefetch_l2(x.v + mine + 8 * a.pitch);
    };
    if (BIAS)
        att_load_matrix(base + l.bias_at, prepared.columns + ((int64_t)group * a.h + head) * a.m * l.padded, tile0,
                        WARPS * 16, a.m, l.padded);
    load(first, 0);
    for (int row = first; row < last; row++) {
        int stage = (row - first) & 1;
        uint32_t at = base + stage * l.stage_bytes;
        int64_t k_at = a.k_block(group, row, head), mask_at = att_mask_index(a, group, row);
        AttFragment<D> k, v;
        k.load(x.k + k_at, a.pitch, key0, a.m);
        v.load(x.v + k_at, a.pitch, key0, a.m);
        bool any = prepared.any[mask_at] != 0;
        float unit = any ? a.scale * ATT_LOG2E : 0.0f, shift = any ? 0.0f : -log2f((float)a.m);
        float add_low = my_key < mp ? prepared.add[mask_at * mp + my_key] : ATT_PAD;
        float add_high = my_key + 8 < mp ? prepared.add[mask_at * mp + my_key + 8] : ATT_PAD;
        copy_wait<0>();
        __syncthreads(); /* this row has arrived, and all are done with the other stage */
        if (row + 1 < last) load(row + 1, stage ^ 1);
        const float2 *stat = reinterpret_cast<const float2 *>(shared + stage * l.stage_bytes + l.stat_at);

        float dk[NT][4] = {}, dv[NT][4] = {};
        for (int block0 = 0; block0 < l.padded; block0 += KEY_BLOCK)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int query0 = block0 + j * 16;
                float4 left =
                    *reinterpret_cast<const float4 *>(stat + query0 + lane % 4 * 2); /* lse, delta of two queries */
                float4 right = *reinterpret_cast<const float4 *>(stat + query0 + 8 + lane % 4 * 2);
                uint32_t b[4] = {}, p[4], ds[4];
                float s[2][4], dp[2][4] = {{left.y, left.w, left.y, left.w}, {right.y, right.w, right.y, right.w}};
                if (BIAS) att_matrix_fragment(b, base + l.bias_at, warp * 16, block0, j, l.padded);
                att_begin<BIAS>(s[0], s[1], b, inverse, make_float2(left.x, left.z), make_float2(right.x, right.z),
                                add_low, add_high);
                att_times_transposed<D>(s[0], s[1], k, at, query0);
                att_times_transposed<D>(dp[0], dp[1], v, at + l.go_at, query0);
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        s[j][c] = exp2_fast(fmaf(s[j][c], unit, shift));
                        dp[j][c] *= s[j][c];
                    }
                att_as_fragment(p, s[0], s[1]);
                att_as_fragment(ds, dp[0], dp[1]);
                att_times_rows<D>(dv, p, at + l.go_at, query0);
                att_times_rows<D>(dk, ds, at, query0);
            }
        att_store<D>(x.dv + k_at, a.pitch, key0, a.m, dv, 1.0f, 1.0f);
        att_store<D>(x.dk + k_at, a.pitch, key0, a.m, dk, a.scale, a.scale);
    }
}

/* --- launches
 * ----------------------------------------------------------------------------------------------------------------- */

typedef struct BackwardPlan {
    AttPreparedPlan prepared;
    size_t stat_at, partial_at, bytes;
    int dq_queries, dq_rows, dq_chunks; /* of a block; rows of a group per block; blocks along the rows */
} BackwardPlan;

static BackwardPlan backward_plan(const Att &a, bool bias)
{
    BackwardPlan s = {};
    size_t heads = (size_t)a.g * a.h;
    s.dq_queries = bias ? DqShape<true>::QUERIES : DqShape<false>::QUERIES;
    int tiles = (a.n + s.dq_queries - 1) / s.dq_queries;
    s.dq_rows = att_rows_per_block(a, tiles, bias ? DQ_BLOCKS : PLAIN_BLOCKS);
    s.dq_chunks = (a.b + s.dq_rows - 1) / s.dq_rows;
    s.prepared = att_prepared_plan(a, bias, bias);
    s.stat_at = align_up(s.prepared.bytes);
    s.partial_at = s.stat_at + align_up(heads * a.b * att_padded(a.n) * sizeof(float2));
    s.bytes = s.partial_at + (bias ? align_up(heads * s.dq_chunks * a.n * att_padded(a.m) * 4) : 0);
    return s;
}

static size_t backward_bytes(const Att &a, bool bias)
{
    return align_up(att_wgmma_fits(a, bias) ? att_wgmma_backward_scratch(a, bias) : backward_plan(a, bias).bytes);
}
static int64_t delta_count(const Att &a)
{
    return (int64_t)a.g * a.b * a.n * a.h;
}

size_t att_mma_backward_scratch(const Att &a, bool bias, bool delta)
{
    return backward_bytes(a, bias) + (delta ? 0 : (size_t)delta_count(a) * sizeof(float));
}

template <int D, bool BIAS, int STEPS>
static Status dq_launch(const Att &a, const AttOperands<bf16> &x, const BackwardPlan &s, const AttPrepared &p,
                        char *scratch, cudaStream_t stream)
{
    DqLayout l = dq_layout(a.m, D, s.dq_queries, BIAS);
    dim3 grid((a.n + s.dq_queries - 1) / s.dq_queries, a.g * a.h, s.dq_chunks);
    CUDA_TRY(cudaFuncSetAttribute(att_dq_mma_kernel<D, BIAS, STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)l.bytes));
    launch(att_dq_mma_kernel<D, BIAS, STEPS>, grid, DqShape<BIAS>::WARPS * WARP, l.bytes, stream, a, x, p,
           (float2 *)(scratch + s.stat_at), (float *)(scratch + s.partial_at), s.dq_rows);
    return cuda_launched("att_dq_mma_kernel");
}

template <int D, bool BIAS, int WARPS>
static Status dkv_launch(const Att &a, const AttOperands<bf16> &x, const AttPrepared &p, const float2 *stats,
                         cudaStream_t stream)
{
    DkvLayout l = dkv_layout(a.n, D, WARPS, BIAS);
    int tiles = (a.m + WARPS * 16 - 1) / (WARPS * 16),
        rows = att_rows_per_block(a, tiles, WARPS == 16 ? 132 : PLAIN_BLOCKS);
    dim3 grid(tiles, a.g * a.h, (a.b + rows - 1) / rows);
    CUDA_TRY(cudaFuncSetAttribute(att_dkv_mma_kernel<D, BIAS, WARPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)l.bytes));
    launch(att_dkv_mma_kernel<D, BIAS, WARPS>, grid, WARPS * WARP, l.bytes, stream, a, x, p, stats, rows);
    return cuda_launched("att_dkv_mma_kernel");
}

template <int D, bool BIAS>
static Status backward_launch(const Att &a, const AttOperands<bf16> &x, char *scratch, cudaStream_t stream)
{
    BackwardPlan s = backward_plan(a, BIAS);
    AttPrepared p;
    const float2 *stats = (const float2 *)(scratch + s.stat_at);
    TRY(att_prepare_launch(a, x.bias, s.prepared, scratch, true, &p, stream));
    if (att_padded(a.m) <= 4 * KEY_BLOCK)
        TRY((dq_launch<D, BIAS, 4>(a, x, s, p, scratch, stream)));
    else
        TRY((dq_launch < D, BIAS, BIAS ? 6 : 8 > (a, x, s, p, scratch, stream)));
    if (!BIAS) return dkv_launch<D, BIAS, 8>(a, x, p, stats, stream);
    if (a.m > 128 && a.n <= 256)
        TRY((dkv_launch < D, BIAS, BIAS ? 16 : 8 > (a, x, p, stats, stream)));
    else
        TRY((dkv_launch<D, BIAS, 8>(a, x, p, stats, stream)));
    dim3 pairs((a.m + 127) / 128, a.n, a.g);
    launch(att_dbias_join_kernel, pairs, 128, 0, stream, a, (const float *)(scratch + s.partial_at), x.dbias,
           s.dq_chunks, att_padded(a.m));
    return cuda_launched("att_dbias_join_kernel");
}

template <bool BIAS>
static Status backward_by_width(const Att &a, const AttOperands<bf16> &x, char *scratch, cudaStream_t stream)
{
    if (a.d == 32) return backward_launch<32, BIAS>(a, x, scratch, stream);
    if (a.d == 16) return backward_launch<16, BIAS>(a, x, scratch, stream);
    return backward_launch<8, BIAS>(a, x, scratch, stream);
}

Status att_mma_backward_launch(const CudaContext *ctx, const OpCall *call, const Att &a,
                               const AttOperands<bf16> &operands)
{
    AttOperands<bf16> x = operands;
    char *scratch = (char *)call->scratch;
    cudaStream_t stream = ctx->stream;
    if (!x.delta) {
        float *delta = (float *)(scratch + backward_bytes(a, x.bias != NULL));
        TRY(att_delta_launch(x.go, x.o_in, delta, delta_count(a), a.d, stream));
        x.delta = delta;
    }
    if (att_wgmma_fits(a, x.bias != NULL)) return att_wgmma_backward_launch(ctx, call, a, x);
    return x.bias ? backward_by_width<true>(a, x, scratch, stream) : backward_by_width<false>(a, x, scratch, stream);
}
