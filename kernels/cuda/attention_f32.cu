/* Fused attention in f32 (no tensor cores: TF32 would lose the digits that f32 is asked for), forward and backward.
 *
 * A thread owns a query (or a key) with its row of D elements in registers; the other side passes through shared memory
 * and is read by all threads at once. Products are summed in chunks of CHUNK terms before they join the running sum, so
 * that rounding errors grow with the number of chunks. Scores are (scale q.k + inf (mask - 1)) + bias in this order,
 * and probabilities come from the row's own maximum and sum: where all keys are masked, inf = 1e9 swallows the rest and
 * the row is uniform, which a log-sum-exp of -1e9 could not express. */
#include "kernels/cuda/attention.h"

enum { THREADS = 128, TILE = 64, CHUNK = 8, PAIRS = 64, PAIR_ROWS = 16 };

/* rows [row0, row0 + TILE) of [extent, D], zeros beyond */
template <int D>
__device__ __forceinline__ void load_rows(float4 (*tile)[D / 4], const float *p, int64_t pitch, int row0, int extent)
{
    for (int id = threadIdx.x; id < TILE * D / 4; id += THREADS) {
        int row = id / (D / 4), piece = id % (D / 4);
        tile[row][piece] = row0 + row < extent
                               ? reinterpret_cast<const float4 *>(p + (int64_t)(row0 + row) * pitch)[piece]
                               : make_float4(0, 0, 0, 0);
    }
}

template <int D> struct AttRow {
    float4 v[D / 4];
    __device__ __forceinline__ void load(const float *p)
    {
#pragma unroll
        for (int k = 0; k < D / 4; k++) v[k] = p ? reinterpret_cast<const float4 *>(p)[k] : make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void store(float *p, float factor) const
    {
#pragma unroll
        for (int k = 0; k < D / 4; k++)
            reinterpret_cast<float4 *>(p)[k] =
                make_float4(v[k].x * factor, v[k].y * factor, v[k].z * factor, v[k].w * factor);
    }
    __device__ __forceinline__ void gate(const AttRow &g)
    {
#pragma unroll
        for (int k = 0; k < D / 4; k++) {
            v[k].x *= sigmoidf(g.v[k].x), v[k].y *= sigmoidf(g.v[k].y);
            v[k].z *= sigmoidf(g.v[k].z), v[k].w *= sigmoidf(g.v[k].w);
        }
    }
    __device__ __forceinline__ float dot(const float4 *row) const
    {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < D / 4; k++) {
            float4 r = row[k];
            sum.x = fmaf(v[k].x, r.x, sum.x), sum.y = fmaf(v[k].y, r.y, sum.y);
            sum.z = fmaf(v[k].z, r.z, sum.z), sum.w = fmaf(v[k].w, r.w, sum.w);
        }
        return (sum.x + sum.y) + (sum.z + sum.w);
    }
    /* this = this * decay + sum_c w[c] rows[c] */
    __device__ __forceinline__ void accumulate(float decay, const float (&w)[CHUNK], const float4 (*rows)[D / 4])
    {
#pragma unroll
        for (int k = 0; k < D / 4; k++) {
            float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int c = 0; c < CHUNK; c++) {
                float4 r = rows[c][k];
                sum.x = fmaf(w[c], r.x, sum.x), sum.y = fmaf(w[c], r.y, sum.y);
                sum.z = fmaf(w[c], r.z, sum.z), sum.w = fmaf(w[c], r.w, sum.w);
            }
            v[k].x = fmaf(v[k].x, decay, sum.x), v[k].y = fmaf(v[k].y, decay, sum.y);
            v[k].z = fmaf(v[k].z, decay, sum.z), v[k].w = fmaf(v[k].w, decay, sum.w);
        }
    }
};

/* What a block works on: grid (queries or keys / THREADS, heads, groups x rows). */
struct AttPlace {
    int group, row, head, at;
    int64_t q_at, k_at, stat_at; /* first elements of this group, row and head */
    const float *mask;           /* NULL: none */
};
__device__ __forceinline__ AttPlace place_of(const Att &a)
{
    AttPlace p;
    p.head = blockIdx.y, p.group = blockIdx.z / a.b, p.row = blockIdx.z % a.b;
    p.at = blockIdx.x * THREADS + threadIdx.x;
    p.q_at = a.q_block(p.group, p.row, p.head), p.k_at = a.k_block(p.group, p.row, p.head);
    p.stat_at = (((int64_t)p.group * a.b + p.row) * a.h + p.head) * a.n;
    p.mask = a.mask ? a.mask_row(p.group, p.row) : NULL;
    return p;
}

/* The bias as one matrix per head: by_key[G,H,M,N] for threads that own queries, by_query[G,H,N,M] for those of keys.
 */
struct BiasCopies {
    float *by_key, *by_query;
};

__global__ void __launch_bounds__(THREADS) att_bias_copy_kernel(Att a, const float *bias, BiasCopies copies)
{
    stage_wait();
    int column = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y, group = blockIdx.z;
    for (int head = 0; head < a.h; head++) {
        int64_t matrix = (int64_t)group * a.h + head;
        if (row < a.m && column < a.n)
            copies.by_key[(matrix * a.m + row) * a.n + column] = bias[a.bias_index(group, column, row, head)];
        if (copies.by_query && row < a.n && column < a.m)
            copies.by_query[(matrix * a.n + row) * a.m + column] = bias[a.bias_index(group, row, column, head)];
    }
}

/* --- queries
 * ------------------------------------------------------------------------------------------------------------- */

/* Scores of CHUNK keys from `key0` on; -infinity for keys that do not exist. bias: of this query, keys n apart. */
template <int D>
__device__ __forceinline__ void chunk_scores(const Att &a, const AttRow<D> &q, const float4 (*keys)[D / 4],
                                             const float *add, const float *bias, int key0, float (&s)[CHUNK])
{
#pragma unroll
    for (int c = 0; c < CHUNK; c++) {
        float score = q.dot(keys[c]) * a.scale + add[c];
        if (bias && key0 + c < a.m) score += bias[(int64_t)(key0 + c) * a.n];
        s[c] = key0 + c < a.m ? score : -INFINITY;
    }
}

__device__ __forceinline__ void load_mask(const Att &a, const float *mask, float *add, int key0)
{
    if (threadIdx.x < TILE)
        add[threadIdx.x] = mask && key0 + (int)threadIdx.x < a.m ? a.inf * (mask[key0 + threadIdx.x] - 1.0f) : 0.0f;
}

/* Running maximum and sum of a row: s becomes exp(s - maximum); returns what older sums are to be multiplied with. */
__device__ __forceinline__ float chunk_softmax(float (&s)[CHUNK], float *peak, float *sum)
{
    float top = *peak, part = 0;
#pragma unroll
    for (int c = 0; c < CHUNK; c++) top = fmaxf(top, s[c]);
    float decay = expf(*peak - top);
#pragma unroll
    for (int c = 0; c < CHUNK; c++) part += s[c] = expf(s[c] - top);
    *peak = top;
    *sum = fmaf(*sum, decay, part);
    return decay;
}

template <int D>
__global__ void __launch_bounds__(THREADS) att_f32_forward_kernel(Att a, AttOperands<float> x, const float *by_key)
{
    stage_wait();
    __shared__ float4 keys[TILE][D / 4], values[TILE][D / 4];
    __shared__ float add[TILE];
    AttPlace p = place_of(a);
    bool live = p.at < a.n;
    const float *bias = by_key && live ? by_key + ((int64_t)p.group * a.h + p.head) * a.m * a.n + p.at : NULL;
    AttRow<D> q, o;
    q.load(live ? x.q + p.q_at + p.at * a.pitch : NULL);
    o.load(NULL);
    float peak = -INFINITY, sum = 0;
    for (int tile0 = 0; tile0 < a.m; tile0 += TILE) {
        __syncthreads();
        load_rows<D>(keys, x.k + p.k_at, a.pitch, tile0, a.m);
        load_rows<D>(values, x.v + p.k_at, a.pitch, tile0, a.m);
        load_mask(a, p.mask, add, tile0);
        __syncthreads();
#pragma unroll 1
        for (int c0 = 0; c0 < TILE && tile0 + c0 < a.m; c0 += CHUNK) {
            float s[CHUNK];
            chunk_scores<D>(a, q, keys + c0, add + c0, bias, tile0 + c0, s);
            float decay = chunk_softmax(s, &peak, &sum);
            o.accumulate(decay, s, values + c0);
        }
    }
    if (!live) return;
    int64_t mine = p.q_at + p.at * a.pitch;
    if (x.o) o.store(x.o + mine, 1.0f / sum);
    if (x.lse) x.lse[p.stat_at + p.at] = peak + logf(sum);
    if (!x.gate) return;
    q.load(x.gate + mine);
    o.gate(q);
    o.store(x.y + mine, 1.0f / sum);
}

/* Of each query: maximum of its scores, 1 / sum, delta = sum_d do o. */
struct Stat {
    float peak, inverse, delta;
};

template <int D>
__global__ void __launch_bounds__(THREADS)
    att_f32_dq_kernel(Att a, AttOperands<float> x, const float *by_key, Stat *stats)
{
    stage_wait();
    __shared__ float4 keys[TILE][D / 4], values[TILE][D / 4];
    __shared__ float add[TILE];
    AttPlace p = place_of(a);
    bool live = p.at < a.n;
    const float *bias = by_key && live ? by_key + ((int64_t)p.group * a.h + p.head) * a.m * a.n + p.at : NULL;
    int64_t mine = p.q_at + p.at * a.pitch;
    AttRow<D> q, go, dq;
    q.load(live ? x.q + mine : NULL);
    float sum = 0;
    Stat stat = {-INFINITY, 0, 0};
    for (int tile0 = 0; tile0 < a.m; tile0 += TILE) {
        __syncthreads();
        load_rows<D>(keys, x.k + p.k_at, a.pitch, tile0, a.m);
        load_mask(a, p.mask, add, tile0);
        __syncthreads();
#pragma unroll 1
        for (int c0 = 0; c0 < TILE && tile0 + c0 < a.m; c0 += CHUNK) {
            float s[CHUNK];
            chunk_scores<D>(a, q, keys + c0, add + c0, bias, tile0 + c0, s);
            chunk_softmax(s, &stat.peak, &sum);
        }
    }
    stat.inverse = 1.0f / sum;
    go.load(live ? x.go + mine : NULL);
    dq.load(live ? x.o_in + mine : NULL);
    stat.delta = go.dot(dq.v);
    dq.load(NULL);
    for (int tile0 = 0; tile0 < a.m; tile0 += TILE) {
        __syncthreads();
        load_rows<D>(keys, x.k + p.k_at, a.pitch, tile0, a.m);
        load_rows<D>(values, x.v + p.k_at, a.pitch, tile0, a.m);
        load_mask(a, p.mask, add, tile0);
        __syncthreads();
#pragma unroll 1
        for (int c0 = 0; c0 < TILE && tile0 + c0 < a.m; c0 += CHUNK) {
            float s[CHUNK];
            chunk_scores<D>(a, q, keys + c0, add + c0, bias, tile0 + c0, s);
#pragma unroll
            for (int c = 0; c < CHUNK; c++)
                s[c] = expf(s[c] - stat.peak) * stat.inverse * (go.dot(values[c0 + c]) - stat.delta);
            dq.accumulate(1.0f, s, keys + c0);
        }
    }
    if (!live) return;
    dq.store(x.dq + mine, a.scale);
    stats[p.stat_at + p.at] = stat;
}

/* --- keys
 * ---------------------------------------------------------------------------------------------------------------- */

template <int D>
__global__ void __launch_bounds__(THREADS)
    att_f32_dkv_kernel(Att a, AttOperands<float> x, const float *by_query, const Stat *stats)
{
    stage_wait();
    __shared__ float4 queries[TILE][D / 4], gradients[TILE][D / 4];
    __shared__ Stat stat[TILE];
    AttPlace p = place_of(a);
    bool live = p.at < a.m;
    const float *bias = by_query && live ? by_query + ((int64_t)p.group * a.h + p.head) * a.n * a.m + p.at : NULL;
    float add = p.mask && live ? a.inf * (p.mask[p.at] - 1.0f) : 0.0f;
    int64_t mine = p.k_at + p.at * a.pitch;
    AttRow<D> k, v, dk, dv;
    k.load(live ? x.k + mine : NULL);
    v.load(live ? x.v + mine : NULL);
    dk.load(NULL);
    dv.load(NULL);
    for (int tile0 = 0; tile0 < a.n; tile0 += TILE) {
        __syncthreads();
        load_rows<D>(queries, x.q + p.q_at, a.pitch, tile0, a.n);
        load_rows<D>(gradients, x.go + p.q_at, a.pitch, tile0, a.n);
        if (threadIdx.x < TILE && tile0 + threadIdx.x < a.n) stat[threadIdx.x] = stats[p.stat_at + tile0 + threadIdx.x];
        __syncthreads();
#pragma unroll 1
        for (int c0 = 0; c0 < TILE && tile0 + c0 < a.n; c0 += CHUNK) {
            float w[CHUNK], ds[CHUNK];
#pragma unroll
            for (int c = 0; c < CHUNK; c++) {
                int i = tile0 + c0 + c;
                if (i >= a.n) {
                    w[c] = ds[c] = 0;
                    continue;
                }
                float score = k.dot(queries[c0 + c]) * a.scale + add;
                if (bias) score += bias[(int64_t)i * a.m];
                w[c] = expf(score - stat[c0 + c].peak) * stat[c0 + c].inverse;
                ds[c] = w[c] * (v.dot(gradients[c0 + c]) - stat[c0 + c].delta);
            }
            dv.accumulate(1.0f, w, gradients + c0);
            dk.accumulate(1.0f, ds, queries + c0);
        }
    }
    if (!live) return;
    dv.store(x.dv + mine, 1.0f);
    dk.store(x.dk + mine, a.scale);
}

/* --- bias: a block owns PAIRS x PAIRS (query, key) of a head and walks the rows of the group in order
 * -------------------------------------------------------------------------------------------------------------------
 */

/* rows [row0, row0 + PAIRS) of [extent, D], element d of all rows together */
template <int D>
__device__ __forceinline__ void load_across(float (*tile)[PAIRS], const float *p, int64_t pitch, int row0, int extent)
{
    for (int id = threadIdx.x; id < PAIRS * D / 4; id += 256) {
        int row = id % PAIRS, piece = id / PAIRS;
        float4 v = row0 + row < extent ? reinterpret_cast<const float4 *>(p + (int64_t)(row0 + row) * pitch)[piece]
                                       : make_float4(0, 0, 0, 0);
        tile[piece * 4][row] = v.x, tile[piece * 4 + 1][row] = v.y;
        tile[piece * 4 + 2][row] = v.z, tile[piece * 4 + 3][row] = v.w;
    }
}

/* acc[i][j] = sum_d left[d][i] right[d][j] */
template <int D>
__device__ __forceinline__ void products(float (&acc)[4][4], const float (*left)[PAIRS], const float (*right)[PAIRS],
                                         int i0, int j0)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = 0;
#pragma unroll 8
    for (int d = 0; d < D; d++) {
        float4 l = *reinterpret_cast<const float4 *>(&left[d][i0]),
               r = *reinterpret_cast<const float4 *>(&right[d][j0]);
        float li[4] = {l.x, l.y, l.z, l.w}, rj[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[i][j] = fmaf(li[i], rj[j], acc[i][j]);
    }
}

template <int D>
__global__ void __launch_bounds__(256) att_f32_dbias_kernel(Att a, AttOperands<float> x, const Stat *stats)
{
    stage_wait();
    __shared__ __align__(16) float q[D][PAIRS], k[D][PAIRS], go[D][PAIRS], v[D][PAIRS];
    __shared__ Stat stat[PAIRS];
    __shared__ float add[PAIRS];
    int tiles = (a.m + PAIRS - 1) / PAIRS, group = blockIdx.z, head = blockIdx.y;
    int query0 = blockIdx.x / tiles * PAIRS, key0 = blockIdx.x % tiles * PAIRS;
    int i0 = threadIdx.x / 16 * 4, j0 = threadIdx.x % 16 * 4;
    float bias[4][4], sum[4][4] = {}, part[4][4] = {};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            bool live = query0 + i0 + i < a.n && key0 + j0 + j < a.m;
            bias[i][j] = live ? x.bias[a.bias_index(group, query0 + i0 + i, key0 + j0 + j, head)] : 0.0f;
        }
    for (int row = 0; row < a.b; row++) {
        int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
        const float *mask = a.mask ? a.mask_row(group, row) : NULL;
        const Stat *from = stats + (((int64_t)group * a.b + row) * a.h + head) * a.n + query0;
        __syncthreads();
        load_across<D>(q, x.q + q_at, a.pitch, query0, a.n);
        load_across<D>(go, x.go + q_at, a.pitch, query0, a.n);
        load_across<D>(k, x.k + k_at, a.pitch, key0, a.m);
        load_across<D>(v, x.v + k_at, a.pitch, key0, a.m);
        if (threadIdx.x < PAIRS) {
            int at = threadIdx.x;
            stat[at] = query0 + at < a.n ? from[at] : Stat{0, 0, 0}; /* 1 / sum = 0: adds nothing */
            add[at] = mask && key0 + at < a.m ? a.inf * (mask[key0 + at] - 1.0f) : 0.0f;
        }
        __syncthreads();
        float s[4][4], dp[4][4];
        products<D>(s, q, k, i0, j0);
        products<D>(dp, go, v, i0, j0);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                Stat t = stat[i0 + i];
                float p = expf(s[i][j] * a.scale + add[j0 + j] + bias[i][j] - t.peak) * t.inverse;
                if (t.inverse > 0) part[i][j] = fmaf(p, dp[i][j] - t.delta, part[i][j]);
            }
        if ((row + 1) % PAIR_ROWS != 0 && row + 1 < a.b) continue;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] += part[i][j], part[i][j] = 0;
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if (query0 + i0 + i < a.n && key0 + j0 + j < a.m)
                x.dbias[a.bias_index(group, query0 + i0 + i, key0 + j0 + j, head)] = sum[i][j];
}

/* --- launches
 * ----------------------------------------------------------------------------------------------------------------- */

/* Few products are left to the kernels that sum them in double. */
bool att_f32_fits(const Att &a)
{
    if ((int64_t)a.g * a.b * a.h * a.n * a.m * a.d < FEW_MULTIPLICATIONS) return false;
    return (a.d == 8 || a.d == 16 || a.d == 32) && a.h <= 65535 && (int64_t)a.g * a.b <= 65535 && a.n <= 65535 &&
           a.m <= 65535;
}

static size_t bias_bytes(const Att &a)
{
    return align_up((size_t)a.g * a.h * a.n * a.m * sizeof(float));
}

size_t att_f32_forward_scratch(const Att &a, bool bias)
{
    return bias ? bias_bytes(a) : 0;
}

size_t att_f32_backward_scratch(const Att &a, bool bias)
{
    return align_up((size_t)a.g * a.b * a.h * a.n * sizeof(Stat)) + (bias ? 2 * bias_bytes(a) : 0);
}

static Status bias_copy_launch(const Att &a, const float *bias, BiasCopies copies, cudaStream_t stream)
{
    int side = a.n > a.m ? a.n : a.m;
    dim3 grid(blocks_for(side, THREADS), (unsigned)side, (unsigned)a.g);
    launch(att_bias_copy_kernel, grid, THREADS, 0, stream, a, bias, copies);
    return cuda_launched("att_bias_copy_kernel");
}

static dim3 thread_grid(const Att &a, int extent)
{
    return dim3(blocks_for(extent, THREADS), (unsigned)a.h, (unsigned)(a.g * a.b));
}

template <int D>
static Status forward_launch(const Att &a, const AttOperands<float> &x, const float *by_key, cudaStream_t stream)
{
    launch(att_f32_forward_kernel<D>, thread_grid(a, a.n), THREADS, 0, stream, a, x, by_key);
    return cuda_launched("att_f32_forward_kernel");
}

template <int D>
static Status backward_launch(const Att &a, const AttOperands<float> &x, BiasCopies copies, Stat *stats,
                              cudaStream_t stream)
{
    launch(att_f32_dq_kernel<D>, thread_grid(a, a.n), THREADS, 0, stream, a, x, copies.by_key, stats);
    TRY(cuda_launched("att_f32_dq_kernel"));
    launch(att_f32_dkv_kernel<D>, thread_grid(a, a.m), THREADS, 0, stream, a, x, copies.by_query, stats);
    TRY(cuda_launched("att_f32_dkv_kernel"));
    if (!x.bias) return OK;
    dim3 grid(blocks_for(a.n, PAIRS) * blocks_for(a.m, PAIRS), (unsigned)a.h, (unsigned)a.g);
    launch(att_f32_dbias_kernel<D>, grid, 256, 0, stream, a, x, stats);
    return cuda_launched("att_f32_dbias_kernel");
}

Status att_f32_forward_launch(const Att &a, const AttOperands<float> &x, void *scratch, cudaStream_t stream)
{
    float *by_key = x.bias ? (float *)scratch : NULL;
    if (x.bias) TRY(bias_copy_launch(a, x.bias, {by_key, NULL}, stream));
    if (a.d == 32) return forward_launch<32>(a, x, by_key, stream);
    if (a.d == 16) return forward_launch<16>(a, x, by_key, stream);
    return forward_launch<8>(a, x, by_key, stream);
}

Status att_f32_backward_launch(const Att &a, const AttOperands<float> &x, void *scratch, cudaStream_t stream)
{
    BiasCopies copies = {NULL, NULL};
    Stat *stats = (Stat *)scratch;
    if (x.bias) {
        char *at = (char *)scratch + align_up((size_t)a.g * a.b * a.h * a.n * sizeof(Stat));
        copies = {(float *)at, (float *)(at + bias_bytes(a))};
        TRY(bias_copy_launch(a, x.bias, copies, stream));
    }
    if (a.d == 32) return backward_launch<32>(a, x, copies, stats, stream);
    if (a.d == 16) return backward_launch<16>(a, x, copies, stats, stream);
    return backward_launch<8>(a, x, copies, stats, stream);
}
