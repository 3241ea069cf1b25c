/* Backward of fused attention in f32: the rows' maxima and sums first, then a block per (group, row, head) walks keys
 * by tiles and, for each, queries: dk and dv stay in registers, dq is summed where it lies. The bias has its own
 * blocks, which walk the rows of the group in order. */
#include "kernels/cuda/att_f32.cuh"

/* --- statistics: a block per tile of queries --- */

/* Running maximum and sum of this thread's part of its rows. */
__device__ __forceinline__ void stat_update(const float (&s)[4][4], float (&peak)[4], float (&sum)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float top = fmaxf(fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3])), peak[i]), part = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) part += expf(s[i][j] - top);
        sum[i] = fmaf(sum[i], expf(peak[i] - top), part);
        peak[i] = top;
    }
}

template <int D>
__global__ void __launch_bounds__(F32_THREADS)
    att_f32_stat_kernel(Att a, AttOperands<float> x, const float *bias, Stat *stats)
{
    stage_wait();
    __shared__ __align__(16) F32Row queries[D], keys[D];
    __shared__ float add[F32_TILE], peaks[F32_TILE][17], sums[F32_TILE][17];
    F32Place p = f32_place(a, bias);
    int query0 = blockIdx.x * F32_TILE;
    float peak[4], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) peak[i] = -FLT_MAX;
    f32_load<D>(queries, x.q + p.q_at, a.pitch, query0, a.n);
    for (int key0 = 0; key0 < a.m; key0 += F32_TILE) {
        float s[4][4];
        __syncthreads();
        f32_load<D>(keys, x.k + p.k_at, a.pitch, key0, a.m);
        f32_load_mask(a, p.mask, add, key0);
        __syncthreads();
        f32_products<D>(s, queries, keys);
        f32_scores(a, p, s, add, query0, key0);
        stat_update(s, peak, sum);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        peaks[f32_query() + i][f32_key() / 4] = peak[i];
        sums[f32_query() + i][f32_key() / 4] = sum[i];
    }
    __syncthreads();
    int row = threadIdx.x;
    if (row >= F32_TILE || query0 + row >= a.n) return;
    float top = -FLT_MAX, total = 0, delta = 0;
    for (int k = 0; k < 16; k++) top = fmaxf(top, peaks[row][k]);
    for (int k = 0; k < 16; k++) total = fmaf(sums[row][k], expf(peaks[row][k] - top), total);
    int64_t at = p.q_at + (query0 + row) * a.pitch;
    if (x.delta) delta = x.delta[at / D];
#pragma unroll
    for (int d = 0; !x.delta && d < D; d += 4) {
        float g[4], y[4];
        load_floats<4>(x.go + at + d, g);
        load_floats<4>(x.o_in + at + d, y);
        delta += (g[0] * y[0] + g[1] * y[1]) + (g[2] * y[2] + g[3] * y[3]);
    }
    stats[p.stat_at + query0 + row] = Stat{top, 1.0f / total, delta};
}

/* --- dq, dk, dv --- */

template <int D> struct BackwardTiles {
    F32Row q[D], go[D], k[D], v[D], p[F32_TILE], ds[F32_TILE];
    Stat stat[F32_TILE];
    float add[F32_TILE];
};

__device__ __forceinline__ void load_stats(Stat *stat, const Stat *from, int query0, int n)
{
    int i = threadIdx.x;
    if (i < F32_TILE) stat[i] = query0 + i < n ? from[query0 + i] : Stat{0, 0, 0}; /* 1 / sum = 0: adds nothing */
}

/* s -> p, dp -> ds; a query beyond the last one has neither. */
__device__ __forceinline__ void probabilities(float (&s)[4][4], float (&dp)[4][4], const Stat *stat)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        Stat t = stat[f32_query() + i];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            s[i][j] = t.inverse > 0 ? expf(s[i][j] - t.peak) * t.inverse : 0.0f;
            dp[i][j] = s[i][j] * (dp[i][j] - t.delta);
        }
    }
}

__device__ __forceinline__ void put_tile(F32Row *tile, const float (&x)[4][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) store_floats<4>(&tile[f32_query() + i][f32_key()], x[i]);
}

/* dq (+)= scale ds k of a tile of queries, by the thread that did so for the keys before */
template <int D>
__device__ __forceinline__ void add_query_gradient(const Att &a, float *dq, const BackwardTiles<D> &t, int query0,
                                                   bool first)
{
    typedef F32Share<D> Share;
    Share share;
    float sum[Share::ROWS][Share::COLUMNS] = {};
    f32_along<D>(sum, t.ds, t.k);
#pragma unroll
    for (int r = 0; r < Share::ROWS; r++) {
        int query = query0 + share.group + r * Share::GROUPS;
        if (query >= a.n) continue;
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) {
            float *at = dq + query * a.pitch + share.column + c * Share::TD;
            *at = first ? a.scale * sum[r][c] : fmaf(a.scale, sum[r][c], *at);
        }
    }
}

template <int D>
__device__ __forceinline__ void store_key_gradient(const Att &a, float *out, float factor, int key0,
                                                   const float (&sum)[F32Share<D>::ROWS][F32Share<D>::COLUMNS])
{
    typedef F32Share<D> Share;
    Share share;
#pragma unroll
    for (int r = 0; r < Share::ROWS; r++) {
        int key = key0 + share.group * Share::ROWS + r;
        if (key >= a.m) continue;
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) out[key * a.pitch + share.column + c * Share::TD] = factor * sum[r][c];
    }
}

template <int D>
__global__ void __launch_bounds__(F32_THREADS, 2)
    att_f32_backward_kernel(Att a, AttOperands<float> x, const float *bias, const Stat *stats)
{
    stage_wait();
    typedef F32Share<D> Share;
    extern __shared__ __align__(16) char memory[];
    BackwardTiles<D> &t = *reinterpret_cast<BackwardTiles<D> *>(memory);
    F32Place p = f32_place(a, bias);
    for (int key0 = 0; key0 < a.m; key0 += F32_TILE) {
        float dk[Share::ROWS][Share::COLUMNS] = {}, dv[Share::ROWS][Share::COLUMNS] = {};
        for (int query0 = 0; query0 < a.n; query0 += F32_TILE) {
            float s[4][4], dp[4][4];
            __syncthreads();
            if (query0 == 0) {
                f32_load<D>(t.k, x.k + p.k_at, a.pitch, key0, a.m);
                f32_load<D>(t.v, x.v + p.k_at, a.pitch, key0, a.m);
                f32_load_mask(a, p.mask, t.add, key0);
            }
            f32_load<D>(t.q, x.q + p.q_at, a.pitch, query0, a.n);
            f32_load<D>(t.go, x.go + p.q_at, a.pitch, query0, a.n);
            load_stats(t.stat, stats + p.stat_at, query0, a.n);
            __syncthreads();
            f32_products<D>(s, t.q, t.k);
            f32_products<D>(dp, t.go, t.v);
            f32_scores(a, p, s, t.add, query0, key0);
            probabilities(s, dp, t.stat);
            put_tile(t.p, s);
            put_tile(t.ds, dp);
            __syncthreads();
            f32_down<D>(dv, t.p, t.go);
            f32_down<D>(dk, t.ds, t.q);
            add_query_gradient<D>(a, x.dq + p.q_at, t, query0, key0 == 0);
        }
        store_key_gradient<D>(a, x.dv + p.k_at, 1.0f, key0, dv);
        store_key_gradient<D>(a, x.dk + p.k_at, a.scale, key0, dk);
    }
}

/* --- bias: a block owns a tile of a head and walks a run of the group's rows in order; runs are joined in order --- */

enum { SUM_ROWS = 16 /* that join the running sum as one number */, MOST_RUNS = 8 };

static int runs_of(const Att &a)
{
    int runs = (a.b + SUM_ROWS - 1) / SUM_ROWS;
    return runs < MOST_RUNS ? runs : (int)MOST_RUNS;
}

template <int D>
__global__ void __launch_bounds__(F32_THREADS)
    att_f32_dbias_kernel(Att a, AttOperands<float> x, const float *bias, const Stat *stats, float *partial, int runs)
{
    stage_wait();
    __shared__ __align__(16) F32Row q[D], k[D], go[D], v[D];
    __shared__ Stat stat[F32_TILE];
    __shared__ float add[F32_TILE];
    int tiles = (a.m + F32_TILE - 1) / F32_TILE, group = blockIdx.z / runs, run = blockIdx.z % runs, head = blockIdx.y;
    int length = (a.b + runs - 1) / runs, end = min(a.b, (run + 1) * length);
    int query0 = blockIdx.x / tiles * F32_TILE, key0 = blockIdx.x % tiles * F32_TILE;
    F32Place p = {};
    int64_t matrix = ((int64_t)group * a.h + head) * a.n * a.m;
    p.bias = bias + matrix;
    partial += (int64_t)run * a.g * a.h * a.n * a.m + matrix;
    float sum[4][4] = {}, part[4][4] = {};
    for (int row = run * length; row < end; row++) {
        int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
        float s[4][4], dp[4][4];
        __syncthreads();
        f32_load<D>(q, x.q + q_at, a.pitch, query0, a.n);
        f32_load<D>(go, x.go + q_at, a.pitch, query0, a.n);
        f32_load<D>(k, x.k + k_at, a.pitch, key0, a.m);
        f32_load<D>(v, x.v + k_at, a.pitch, key0, a.m);
        load_stats(stat, stats + (((int64_t)group * a.b + row) * a.h + head) * a.n, query0, a.n);
        f32_load_mask(a, a.mask ? a.mask_row(group, row) : NULL, add, key0);
        __syncthreads();
        f32_products<D>(s, q, k);
        f32_products<D>(dp, go, v);
        f32_scores(a, p, s, add, query0, key0);
        probabilities(s, dp, stat);
        bool join = (row + 1) % SUM_ROWS == 0 || row + 1 == end;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                part[i][j] += dp[i][j];
                if (join) sum[i][j] += part[i][j], part[i][j] = 0;
            }
    }
    int i0 = query0 + f32_query(), j0 = key0 + f32_key();
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if (i0 + i < a.n && j0 + j < a.m) partial[(int64_t)(i0 + i) * a.m + j0 + j] = sum[i][j];
}

__global__ void __launch_bounds__(F32_THREADS)
    att_f32_dbias_join_kernel(Att a, const float *partial, float *dbias, int runs)
{
    stage_wait();
    int64_t count = (int64_t)a.g * a.h * a.n * a.m, e = (int64_t)blockIdx.x * F32_THREADS + threadIdx.x;
    if (e >= count) return;
    int j = (int)(e % a.m), i = (int)(e / a.m % a.n), head = (int)(e / a.m / a.n % a.h),
        group = (int)(e / a.m / a.n / a.h);
    float sum = 0;
    for (int run = 0; run < runs; run++) sum += partial[run * count + e];
    dbias[a.bias_index(group, i, j, head)] = sum;
}

/* --- launches --- */

size_t att_f32_backward_scratch(const Att &a, bool bias)
{
    return align_up((size_t)a.g * a.b * a.h * a.n * sizeof(Stat)) +
           (bias ? (1 + runs_of(a)) * att_f32_bias_bytes(a) : 0);
}

template <int D>
static Status backward_launch(const Att &a, const AttOperands<float> &x, float *bias, Stat *stats, cudaStream_t stream)
{
    const int bytes = (int)sizeof(BackwardTiles<D>);
    dim3 rows(1, (unsigned)a.h, (unsigned)(a.g * a.b)), tiles(blocks_for(a.n, F32_TILE), rows.y, rows.z);
    launch(att_f32_stat_kernel<D>, tiles, F32_THREADS, 0, stream, a, x, (const float *)bias, stats);
    TRY(cuda_launched("att_f32_stat_kernel"));
    CUDA_TRY(cudaFuncSetAttribute(att_f32_backward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    launch(att_f32_backward_kernel<D>, rows, F32_THREADS, bytes, stream, a, x, (const float *)bias,
           (const Stat *)stats);
    TRY(cuda_launched("att_f32_backward_kernel"));
    if (!bias) return OK;
    int runs = runs_of(a);
    float *partial = (float *)((char *)bias + att_f32_bias_bytes(a));
    dim3 pairs(blocks_for(a.n, F32_TILE) * blocks_for(a.m, F32_TILE), (unsigned)a.h, (unsigned)(a.g * runs));
    launch(att_f32_dbias_kernel<D>, pairs, F32_THREADS, 0, stream, a, x, (const float *)bias, (const Stat *)stats,
           partial, runs);
    TRY(cuda_launched("att_f32_dbias_kernel"));
    launch(att_f32_dbias_join_kernel, blocks_for((int64_t)a.g * a.h * a.n * a.m, F32_THREADS), F32_THREADS, 0, stream,
           a, (const float *)partial, x.dbias, runs);
    return cuda_launched("att_f32_dbias_join_kernel");
}

Status att_f32_backward_launch(const Att &a, const AttOperands<float> &x, void *scratch, cudaStream_t stream)
{
    Stat *stats = (Stat *)scratch;
    float *bias = NULL;
    if (x.bias) {
        bias = (float *)((char *)scratch + align_up((size_t)a.g * a.b * a.h * a.n * sizeof(Stat)));
        TRY(att_f32_bias_launch(a, x.bias, bias, stream));
    }
    if (a.d == 32) return backward_launch<32>(a, x, bias, stats, stream);
    if (a.d == 16) return backward_launch<16>(a, x, bias, stats, stream);
    return backward_launch<8>(a, x, bias, stats, stream);
}
