/* Context of stored weights in f32, few channels a head: products so small that blocks of a few rows fill the device.
 */
#include "kernels/cuda/attention.h"

enum { THREADS = 256, ROWS = 16, ROWS_PITCH = ROWS + 4, CHUNK = 128, CHANNELS = 32 };

/* One head of one row of a group: out[r, :] = sum_k weight(r, k) value[k, :], weights with steps of their own. */
struct ContextSum {
    const float *weight, *value;
    float *out;
    int rows, inner, d;
    int64_t row_step, inner_step, pitch; /* of weights; of values and out */
};

/* By a block: ROWS rows from row0 on. Threads: a row and four channels each, the inner elements in as many parts as
 * there are threads for. */
__device__ void context_sum(const ContextSum &s, int row0)
{
    __shared__ __align__(16) float weight[CHUNK * ROWS_PITCH], value[CHUNK * CHANNELS];
    int quads = s.d / 4, row = threadIdx.x % ROWS, quad = threadIdx.x / ROWS % quads;
    int part = threadIdx.x / (ROWS * quads), parts = THREADS / (ROWS * quads);
    bool works = part < parts;
    float sum[4] = {};
    for (int start = 0; start < s.inner; start += CHUNK) {
        int count = min(CHUNK, s.inner - start);
        __syncthreads();
        for (int e = threadIdx.x; e < CHUNK * ROWS; e += THREADS) {
            /* neighbours in memory to neighbouring lanes */
            int r = s.inner_step == 1 ? e / CHUNK : e % ROWS, k = s.inner_step == 1 ? e % CHUNK : e / ROWS;
            bool live = row0 + r < s.rows && k < count;
            weight[k * ROWS_PITCH + r] = live ? s.weight[(row0 + r) * s.row_step + (start + k) * s.inner_step] : 0.0f;
        }
        for (int e = threadIdx.x; e < count * quads; e += THREADS)
            *reinterpret_cast<float4 *>(value + e * 4) =
                *reinterpret_cast<const float4 *>(s.value + (start + e / quads) * s.pitch + e % quads * 4);
        __syncthreads();
#pragma unroll 8
        for (int k = works ? part : count; k < count; k += parts) {
            float w = weight[k * ROWS_PITCH + row], x[4];
            load_floats<4>(value + k * s.d + quad * 4, x);
#pragma unroll
            for (int l = 0; l < 4; l++) sum[l] += w * x[l];
        }
    }
    __syncthreads();
    float *partial = weight; /* [threads, 4] */
    store_floats<4>(partial + threadIdx.x * 4, sum);
    __syncthreads();
    if (part > 0 || row0 + row >= s.rows) return;
    for (int q = 1; q < parts; q++) {
        float x[4];
        load_floats<4>(partial + (threadIdx.x + q * ROWS * quads) * 4, x);
#pragma unroll
        for (int l = 0; l < 4; l++) sum[l] += x[l];
    }
    store_floats<4>(s.out + (row0 + row) * s.pitch + quad * 4, sum);
}

struct ContextHead {
    int64_t weights, queries, keys; /* where it starts in p, in o and in v */
};
__device__ __forceinline__ ContextHead context_head(const Att &a)
{
    int head = blockIdx.y, row = blockIdx.z % a.b, group = blockIdx.z / a.b;
    return {(((int64_t)group * a.b + row) * a.h + head) * a.n * a.m, a.q_block(group, row, head),
            a.k_block(group, row, head)};
}

__global__ void __launch_bounds__(THREADS) context_few_kernel(Att a, const float *p, const float *v, float *o)
{
    stage_wait();
    ContextHead at = context_head(a);
    context_sum({p + at.weights, v + at.keys, o + at.queries, a.n, a.m, a.d, a.m, 1, a.pitch}, blockIdx.x * ROWS);
}

/* dp of ROWS queries and a key a thread: the key's values in registers, do of the queries in shared memory */
__device__ void context_dp(const Att &a, const ContextHead &at, const float *go, const float *v, float *dp, int block)
{
    __shared__ __align__(16) float query[ROWS * CHANNELS];
    int tiles = (a.n + ROWS - 1) / ROWS, i0 = block % tiles * ROWS, j = block / tiles * THREADS + threadIdx.x;
    int quads = a.d / 4, count = min(ROWS, a.n - i0);
    for (int e = threadIdx.x; e < count * quads; e += THREADS)
        *reinterpret_cast<float4 *>(query + e * 4) =
            *reinterpret_cast<const float4 *>(go + at.queries + (i0 + e / quads) * a.pitch + e % quads * 4);
    __syncthreads();
    if (j >= a.m) return;
    float sum[ROWS] = {};
    for (int q = 0; q < quads; q++) {
        float x[4], y[4];
        load_floats<4>(v + at.keys + j * a.pitch + q * 4, x);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            load_floats<4>(query + r * a.d + q * 4, y);
#pragma unroll
            for (int l = 0; l < 4; l++) sum[r] += x[l] * y[l];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (r < count) dp[at.weights + (int64_t)(i0 + r) * a.m + j] = sum[r];
}

/* The first blocks dv, the others dp. */
__global__ void __launch_bounds__(THREADS)
    context_few_bwd_kernel(Att a, const float *go, const float *p, const float *v, float *dp, float *dv)
{
    stage_wait();
    ContextHead at = context_head(a);
    int of_dv = (a.m + ROWS - 1) / ROWS;
    if ((int)blockIdx.x < of_dv)
        context_sum({p + at.weights, go + at.queries, dv + at.keys, a.m, a.n, a.d, 1, a.m, a.pitch}, blockIdx.x * ROWS);
    else
        context_dp(a, at, go, v, dp, blockIdx.x - of_dv);
}

/* Still fewer are left to the kernel that sums them in double. */
bool context_few_fits(const Att &a)
{
    if (att_is_few(a)) return false;
    return a.d % 4 == 0 && a.d <= CHANNELS && a.n > 0 && a.m > 0 && a.h <= 65535 && (int64_t)a.g * a.b <= 65535;
}

Status context_few_launch(const Att &a, const float *p, const float *v, float *o, cudaStream_t stream)
{
    dim3 grid(blocks_for(a.n, ROWS), (unsigned)a.h, (unsigned)(a.g * a.b));
    launch(context_few_kernel, grid, THREADS, 0, stream, a, p, v, o);
    return cuda_launched("context_few_kernel");
}

Status context_few_backward_launch(const Att &a, const float *go, const float *p, const float *v, float *dp, float *dv,
                                   cudaStream_t stream)
{
    unsigned of_dv = blocks_for(a.m, ROWS), of_dp = blocks_for(a.n, ROWS) * blocks_for(a.m, THREADS);
    dim3 grid(of_dv + of_dp, (unsigned)a.h, (unsigned)(a.g * a.b));
    launch(context_few_bwd_kernel, grid, THREADS, 0, stream, a, go, p, v, dp, dv);
    return cuda_launched("context_few_bwd_kernel");
}
