/* Fused attention in bf16, backward. With p = exp(s - lse), delta = sum_d do o (Dao et al. 2022):
 *   dp = do v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q, dv = p^T do, dbias = sum over rows of ds.
 *
 * Two kernels, each recomputing p: the first owns queries (dq, delta, dbias), the second keys (dk, dv, on transposed
 * scores, so that p^T and ds^T come out of the accumulators as operands of the next product). dbias is summed over the
 * rows of a block in registers, then over blocks in order: no atomics, and no tensor of all scores. */
#include "kernels/cuda/att_mma.cuh"

enum {
    DQ_QUERIES = 64, /* of a block: four groups of 16 */
    DQ_WARPS = 16,   /* four per group of queries, which share its keys */
    DQ_BLOCKS = 132,
    DKV_WARPS = 8,
    DKV_KEYS = 16 * DKV_WARPS,
    DKV_BLOCKS = 264
};

/* --- queries: dq, delta, dbias
 * -------------------------------------------------------------------------------------------- */

struct DqLayout {
    int padded, bias_pitch;
    size_t value_at, bias_at, add_at, sum_at, bytes;
};

static __host__ __device__ DqLayout dq_layout(int m, int d, bool bias)
{
    DqLayout l = {};
    l.padded = (m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    l.bias_pitch = l.padded + 8;
    l.value_at = (size_t)l.padded * d * 2;
    l.bias_at = 2 * l.value_at;
    l.add_at = l.bias_at + (bias ? (size_t)DQ_QUERIES * l.bias_pitch * 2 : 0);
    l.sum_at = l.add_at + (size_t)l.padded * 4;
    /* partial dq of the three warps that do not store: [3][64][d + 2] floats */
    l.bytes = l.sum_at + (size_t)3 * DQ_QUERIES * (d + 2) * 4;
    return l;
}

struct DqRow {
    float lse[2], delta[2]; /* of rows r, r + 8; lse in units of log2 */
};

/* ds of 16 queries x 16 keys in two accumulators, from their scores s and dp: both in place of s. */
template <bool BIAS>
__device__ __forceinline__ void dq_scores(float (&s)[2][4], const float (&dp)[2][4], const DqRow &r, float scale,
                                          float bias_scale, const bf16 *bias, int pitch, const float *add, int key0)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int column = key0 + j * 8 + lane % 4 * 2;
        float2 m = *reinterpret_cast<const float2 *>(add + column);
        float extra[4] = {m.x - r.lse[0], m.y - r.lse[0], m.x - r.lse[1], m.y - r.lse[1]};
        if (BIAS) {
            float2 b0 = unpack_bf16(*reinterpret_cast<const uint32_t *>(bias + column));
            float2 b1 = unpack_bf16(*reinterpret_cast<const uint32_t *>(bias + 8 * pitch + column));
            extra[0] = fmaf(b0.x, bias_scale, extra[0]);
            extra[1] = fmaf(b0.y, bias_scale, extra[1]);
            extra[2] = fmaf(b1.x, bias_scale, extra[2]);
            extra[3] = fmaf(b1.y, bias_scale, extra[3]);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float p = exp2_fast(fmaf(s[j][c], scale, extra[c]));
            s[j][c] = p * (dp[j][c] - r.delta[c / 2]);
        }
    }
}

/* delta = sum_d do o for the rows of a fragment; all four lanes of a row get it. */
template <int D>
__device__ __forceinline__ void dq_delta(const AttFragment<D> &go, const AttFragment<D> &o, float (&delta)[2])
{
    delta[0] = delta[1] = 0;
#pragma unroll
    for (int s = 0; s < AttFragment<D>::STEPS; s++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 x = unpack_bf16(go.r[s][j]), y = unpack_bf16(o.r[s][j]);
            delta[j & 1] += x.x * y.x + x.y * y.y;
        }
    delta[0] = lanes_sum<4>(delta[0]);
    delta[1] = lanes_sum<4>(delta[1]);
}

/* Adds the partial dq of a group's four warps in order and stores the sum. */
template <int D>
__device__ __forceinline__ void dq_join(float (&dq)[(D + 7) / 8][4], float *sums, int query_group, int quarter)
{
    constexpr int NT = (D + 7) / 8, PITCH = D + 2;
    int lane = threadIdx.x % WARP, row = query_group * 16 + lane / 4;
    if (quarter > 0) {
        float *mine = sums + ((quarter - 1) * DQ_QUERIES + row) * PITCH + lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            *reinterpret_cast<float2 *>(mine + t * 8) = make_float2(dq[t][0], dq[t][1]);
            *reinterpret_cast<float2 *>(mine + 8 * PITCH + t * 8) = make_float2(dq[t][2], dq[t][3]);
        }
    }
    __syncthreads();
    if (quarter > 0) return;
    for (int k = 0; k < 3; k++) {
        const float *other = sums + (k * DQ_QUERIES + row) * PITCH + lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            float2 low = *reinterpret_cast<const float2 *>(other + t * 8);
            float2 high = *reinterpret_cast<const float2 *>(other + 8 * PITCH + t * 8);
            dq[t][0] += low.x, dq[t][1] += low.y, dq[t][2] += high.x, dq[t][3] += high.y;
        }
    }
}

/* STEPS: steps of 64 keys over all four quarters; a warp's quarter is 16 keys of each step. delta_out [G,B,H,N];
 * partial dbias [chunk][G,H,N,Mp]. */
template <int D, bool BIAS, int STEPS>
__global__ void __launch_bounds__(DQ_WARPS *WARP, 1)
    att_dq_mma_kernel(Att a, AttOperands<bf16> x, const bf16 *bias_rows, float *delta_out, float *dbias_partial,
                      int rows_per_block)
{
    extern __shared__ __align__(128) char shared[];
    DqLayout l = dq_layout(a.m, D, BIAS);
    uint32_t base = shared_address(shared), keys = base, values = base + (uint32_t)l.value_at;
    float *add = reinterpret_cast<float *>(shared + l.add_at), *sums = reinterpret_cast<float *>(shared + l.sum_at);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, query_group = warp / 4, quarter = warp % 4;
    int tile0 = blockIdx.x * DQ_QUERIES, query0 = tile0 + query_group * 16;
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);

    if (BIAS) {
        const bf16 *source = bias_rows + ((int64_t)group * a.h + head) * a.n * l.padded;
        int chunks = l.padded / 8;
        for (int id = threadIdx.x; id < DQ_QUERIES * chunks; id += blockDim.x) {
            int row = id / chunks, chunk = id % chunks;
            bool live = tile0 + row < a.n;
            copy16_async(base + (uint32_t)l.bias_at + (uint32_t)(row * l.bias_pitch + chunk * 8) * 2,
                         live ? source + (int64_t)(tile0 + row) * l.padded + chunk * 8 : source, live);
        }
    }
    const bf16 *my_bias =
        reinterpret_cast<const bf16 *>(shared + l.bias_at) + (query_group * 16 + lane / 4) * l.bias_pitch;
    float dbias[BIAS ? STEPS : 1][2][4] = {};
    for (int row = first; row < last; row++) {
        int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
        att_load_tile<D>(keys, x.k + k_at, a.pitch, a.m, l.padded);
        att_load_tile<D>(values, x.v + k_at, a.pitch, a.m, l.padded);
        copy_commit();
        AttFragment<D> q, go;
        DqRow r;
        q.load(x.q + q_at, a.pitch, query0, a.n);
        go.load(x.go + q_at, a.pitch, query0, a.n);
        {
            AttFragment<D> o;
            o.load(x.o_in + q_at, a.pitch, query0, a.n);
            dq_delta<D>(go, o, r.delta);
        }
        copy_wait<0>();
        bool any = att_mask_row(add, a, group, row, l.padded);
        float scale = any ? a.scale * ATT_LOG2E : 0.0f, bias_scale = any ? ATT_LOG2E : 0.0f;
        int64_t stat = (((int64_t)group * a.b + row) * a.h + head) * a.n;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = query0 + lane / 4 + half * 8;
            bool live = at < a.n;
            r.lse[half] = !live ? 1e30f : any ? x.lse_in[stat + at] * ATT_LOG2E : log2f((float)a.m);
            if (live && quarter == 0 && lane % 4 == 0) delta_out[stat + at] = r.delta[half];
        }

        float dq[(D + 7) / 8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            int key0 = step * KEY_BLOCK + quarter * 16;
            if (step * KEY_BLOCK >= l.padded) continue;
            float s[2][4] = {}, dp[2][4] = {};
            att_times_transposed<D>(s[0], s[1], q, keys, key0);
            att_times_transposed<D>(dp[0], dp[1], go, values, key0);
            dq_scores<BIAS>(s, dp, r, scale, bias_scale, my_bias, l.bias_pitch, add, key0);
            if (BIAS) {
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int c = 0; c < 4; c++) dbias[BIAS ? step : 0][j][c] += s[j][c];
            }
            uint32_t ds[4];
            att_as_fragment(ds, s[0], s[1]);
            att_times_rows<D>(dq, ds, keys, key0);
        }
        dq_join<D>(dq, sums, query_group, quarter);
        if (quarter == 0) att_store<D>(x.dq + q_at, a.pitch, query0, a.n, dq, a.scale, a.scale);
        __syncthreads(); /* the next row overwrites keys, values, the mask and the partial sums */
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
                int at = query0 + lane / 4 + half * 8, column = step * KEY_BLOCK + quarter * 16 + j * 8 + lane % 4 * 2;
                if (at < a.n)
                    *reinterpret_cast<float2 *>(out + (int64_t)at * l.padded + column) =
                        make_float2(dbias[BIAS ? step : 0][j][half * 2], dbias[BIAS ? step : 0][j][half * 2 + 1]);
            }
    }
}

/* dbias[g,n,m,h] = sum over chunks, in order; a thread per pair writes all heads. */
__global__ void att_dbias_join_kernel(Att a, const float *partial, bf16 *dbias, int chunks, int padded)
{
    int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, group = blockIdx.z;
    if (j >= a.m) return;
    int64_t step = (int64_t)a.g * a.h * a.n * padded;
    for (int head = 0; head < a.h; head++) {
        const float *p = partial + (((int64_t)group * a.h + head) * a.n + i) * padded + j;
        float sum = 0;
        for (int k = 0; k < chunks; k++) sum += p[k * step];
        dbias[a.bias_index(group, i, j, head)] = from_float<bf16>(sum);
    }
}

/* --- keys: dk, dv
 * ----------------------------------------------------------------------------------------------------------- */

struct DkvLayout {
    int padded, bias_pitch; /* queries */
    size_t go_at, bias_at, stat_at, add_at, bytes;
};

static __host__ __device__ DkvLayout dkv_layout(int n, int m, int d, bool bias)
{
    DkvLayout l = {};
    l.padded = (n + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    l.bias_pitch = l.padded + 8;
    l.go_at = (size_t)l.padded * d * 2;
    l.bias_at = 2 * l.go_at;
    l.stat_at = l.bias_at + (bias ? (size_t)DKV_KEYS * l.bias_pitch * 2 : 0);
    l.add_at = l.stat_at + (size_t)l.padded * 8;
    l.bytes = l.add_at + (size_t)((m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK) * 4;
    return l;
}

/* Transposed scores [16 keys x 16 queries]: s -> p, dp -> ds. stats: (lse in log2, delta) of each query. */
template <bool BIAS>
__device__ __forceinline__ void dkv_scores(float (&s)[2][4], float (&dp)[2][4], float add_low, float add_high,
                                           float scale, float bias_scale, const bf16 *bias, int pitch,
                                           const float2 *stats, int query0)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int column = query0 + j * 8 + lane % 4 * 2;
        float4 pair = *reinterpret_cast<const float4 *>(stats + column); /* lse, delta of two queries */
        float extra[4] = {add_low - pair.x, add_low - pair.z, add_high - pair.x, add_high - pair.z};
        if (BIAS) {
            float2 b0 = unpack_bf16(*reinterpret_cast<const uint32_t *>(bias + column));
            float2 b1 = unpack_bf16(*reinterpret_cast<const uint32_t *>(bias + 8 * pitch + column));
            extra[0] = fmaf(b0.x, bias_scale, extra[0]);
            extra[1] = fmaf(b0.y, bias_scale, extra[1]);
            extra[2] = fmaf(b1.x, bias_scale, extra[2]);
            extra[3] = fmaf(b1.y, bias_scale, extra[3]);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            s[j][c] = exp2_fast(fmaf(s[j][c], scale, extra[c]));
            dp[j][c] = s[j][c] * (dp[j][c] - (c % 2 ? pair.w : pair.y));
        }
    }
}

template <int D, bool BIAS>
__global__ void __launch_bounds__(DKV_WARPS *WARP, 2)
    att_dkv_mma_kernel(Att a, AttOperands<bf16> x, const bf16 *bias_columns, const float *delta, int rows_per_block)
{
    extern __shared__ __align__(128) char shared[];
    constexpr int NT = (D + 7) / 8;
    DkvLayout l = dkv_layout(a.n, a.m, D, BIAS);
    uint32_t base = shared_address(shared), queries = base, gos = base + (uint32_t)l.go_at;
    float2 *stats = reinterpret_cast<float2 *>(shared + l.stat_at);
    float *add = reinterpret_cast<float *>(shared + l.add_at);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tile0 = blockIdx.x * DKV_KEYS, key0 = tile0 + warp * 16;
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);
    int padded_keys = (a.m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;

    if (BIAS) {
        const bf16 *source = bias_columns + ((int64_t)group * a.h + head) * a.m * l.padded;
        int chunks = l.padded / 8;
        for (int id = threadIdx.x; id < DKV_KEYS * chunks; id += blockDim.x) {
            int row = id / chunks, chunk = id % chunks;
            bool live = tile0 + row < a.m;
            copy16_async(base + (uint32_t)l.bias_at + (uint32_t)(row * l.bias_pitch + chunk * 8) * 2,
                         live ? source + (int64_t)(tile0 + row) * l.padded + chunk * 8 : source, live);
        }
    }
    const bf16 *my_bias = reinterpret_cast<const bf16 *>(shared + l.bias_at) + (warp * 16 + lane / 4) * l.bias_pitch;
    for (int row = first; row < last; row++) {
        int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
        att_load_tile<D>(queries, x.q + q_at, a.pitch, a.n, l.padded);
        att_load_tile<D>(gos, x.go + q_at, a.pitch, a.n, l.padded);
        copy_commit();
        AttFragment<D> k, v;
        k.load(x.k + k_at, a.pitch, key0, a.m);
        v.load(x.v + k_at, a.pitch, key0, a.m);
        bool any = att_mask_row(add, a, group, row, padded_keys);
        int64_t stat = (((int64_t)group * a.b + row) * a.h + head) * a.n;
        for (int i = threadIdx.x; i < l.padded; i += blockDim.x) {
            bool live = i < a.n; /* queries that do not exist: p = 0 */
            stats[i] = make_float2(!live ? 1e30f
                                   : any ? x.lse_in[stat + i] * ATT_LOG2E
                                         : log2f((float)a.m),
                                   live ? delta[stat + i] : 0.0f);
        }
        copy_wait<0>();
        __syncthreads();
        float scale = any ? a.scale * ATT_LOG2E : 0.0f, bias_scale = any ? ATT_LOG2E : 0.0f;
        int low = key0 + lane / 4;
        float add_low = low < padded_keys ? add[low] : ATT_PAD,
              add_high = low + 8 < padded_keys ? add[low + 8] : ATT_PAD;

        float dk[NT][4] = {}, dv[NT][4] = {};
#pragma unroll 2
        for (int query0 = 0; query0 < l.padded; query0 += 16) {
            float s[2][4] = {}, dp[2][4] = {};
            att_times_transposed<D>(s[0], s[1], k, queries, query0);
            att_times_transposed<D>(dp[0], dp[1], v, gos, query0);
            dkv_scores<BIAS>(s, dp, add_low, add_high, scale, bias_scale, my_bias, l.bias_pitch, stats, query0);
            uint32_t p[4], ds[4];
            att_as_fragment(p, s[0], s[1]);
            att_as_fragment(ds, dp[0], dp[1]);
            att_times_rows<D>(dv, p, gos, query0);
            att_times_rows<D>(dk, ds, queries, query0);
        }
        att_store<D>(x.dv + k_at, a.pitch, key0, a.m, dv, 1.0f, 1.0f);
        att_store<D>(x.dk + k_at, a.pitch, key0, a.m, dk, a.scale, a.scale);
        __syncthreads();
    }
}

/* --- launches
 * ----------------------------------------------------------------------------------------------------------------- */

typedef struct BackwardScratch {
    size_t rows_at, columns_at, delta_at, partial_at, bytes;
    int dq_rows, dq_chunks; /* rows of a group per block, blocks along the rows */
} BackwardScratch;

static BackwardScratch backward_scratch(const Att &a, bool bias)
{
    BackwardScratch s = {};
    int tiles = (a.n + DQ_QUERIES - 1) / DQ_QUERIES;
    s.dq_rows = att_rows_per_block(a, tiles, bias ? DQ_BLOCKS : 8 * DQ_BLOCKS);
    s.dq_chunks = (a.b + s.dq_rows - 1) / s.dq_rows;
    size_t heads = (size_t)a.g * a.h;
    s.columns_at = s.rows_at + (bias ? align_up(heads * a.n * att_padded(a.m) * 2) : 0);
    s.delta_at = s.columns_at + (bias ? align_up(heads * a.m * att_padded(a.n) * 2) : 0);
    s.partial_at = s.delta_at + align_up(heads * a.b * a.n * 4);
    s.bytes = s.partial_at + (bias ? align_up(heads * s.dq_chunks * a.n * att_padded(a.m) * 4) : 0);
    return s;
}

size_t att_mma_backward_scratch(const Att &a, bool bias)
{
    return backward_scratch(a, bias).bytes;
}

template <int D, bool BIAS, int STEPS>
static Status dq_launch(const Att &a, const AttOperands<bf16> &x, const BackwardScratch &s, char *scratch,
                        cudaStream_t stream)
{
    DqLayout l = dq_layout(a.m, D, BIAS);
    dim3 grid((a.n + DQ_QUERIES - 1) / DQ_QUERIES, a.g * a.h, s.dq_chunks);
    CUDA_TRY(cudaFuncSetAttribute(att_dq_mma_kernel<D, BIAS, STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)l.bytes));
    att_dq_mma_kernel<D, BIAS, STEPS><<<grid, DQ_WARPS * WARP, l.bytes, stream>>>(
        a, x, (const bf16 *)(scratch + s.rows_at), (float *)(scratch + s.delta_at), (float *)(scratch + s.partial_at),
        s.dq_rows);
    return cuda_launched("att_dq_mma_kernel");
}

template <int D, bool BIAS>
static Status backward_launch(const Att &a, const AttOperands<bf16> &x, char *scratch, cudaStream_t stream)
{
    BackwardScratch s = backward_scratch(a, BIAS);
    DkvLayout l = dkv_layout(a.n, a.m, D, BIAS);
    bf16 *columns = (bf16 *)(scratch + s.columns_at);
    if (BIAS) TRY(att_bias_split_launch(a, x.bias, (bf16 *)(scratch + s.rows_at), columns, stream));
    if (att_padded(a.m) <= 4 * KEY_BLOCK)
        TRY((dq_launch<D, BIAS, 4>(a, x, s, scratch, stream)));
    else
        TRY((dq_launch<D, BIAS, 6>(a, x, s, scratch, stream)));
    int tiles = (a.m + DKV_KEYS - 1) / DKV_KEYS;
    int rows = att_rows_per_block(a, tiles, BIAS ? DKV_BLOCKS : 8 * DKV_BLOCKS);
    dim3 grid(tiles, a.g * a.h, (a.b + rows - 1) / rows);
    CUDA_TRY(
        cudaFuncSetAttribute(att_dkv_mma_kernel<D, BIAS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)l.bytes));
    att_dkv_mma_kernel<D, BIAS>
        <<<grid, DKV_WARPS * WARP, l.bytes, stream>>>(a, x, columns, (const float *)(scratch + s.delta_at), rows);
    TRY(cuda_launched("att_dkv_mma_kernel"));
    if (!BIAS) return OK;
    dim3 pairs((a.m + 127) / 128, a.n, a.g);
    att_dbias_join_kernel<<<pairs, 128, 0, stream>>>(a, (const float *)(scratch + s.partial_at), x.dbias, s.dq_chunks,
                                                     att_padded(a.m));
    return cuda_launched("att_dbias_join_kernel");
}

template <bool BIAS>
static Status backward_by_width(const Att &a, const AttOperands<bf16> &x, char *scratch, cudaStream_t stream)
{
    if (a.d == 32) return backward_launch<32, BIAS>(a, x, scratch, stream);
    if (a.d == 16) return backward_launch<16, BIAS>(a, x, scratch, stream);
    return backward_launch<8, BIAS>(a, x, scratch, stream);
}

Status att_mma_backward_launch(const Att &a, const AttOperands<bf16> &x, void *scratch, cudaStream_t stream)
{
    return x.bias ? backward_by_width<true>(a, x, (char *)scratch, stream)
                  : backward_by_width<false>(a, x, (char *)scratch, stream);
}
