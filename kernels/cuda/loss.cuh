/* Shared by the loss kernels: sums in double in a fixed order. Losses are few numbers over many terms: rows are summed
 * by blocks or warps into scratch, a single block adds the rows. What the same op goes on with is let in early: such
 * kernels take less time than their launch. */
#ifndef FOLDSCALE_KERNELS_CUDA_LOSS_CUH
#define FOLDSCALE_KERNELS_CUDA_LOSS_CUH

#include "kernels/cuda/device.cuh"

enum { LOSS_THREADS = 256, LOSS_WARPS = LOSS_THREADS / WARP, SUM_THREADS = 1024 };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])
#define I32_IN(k)  ((const int32_t *)call->in[k])

/* Sum over the block, the same bits in every thread; `shared` holds a double per warp. */
__device__ __forceinline__ double block_sum_double(double x, double *shared)
{
    x = lanes_sum<WARP>(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    double total = 0;
    for (unsigned w = 0; w < (blockDim.x + WARP - 1) / WARP; w++) total += shared[w];
    return total;
}

/* sum of x[first], x[first + step], ... by the whole block */
template <typename T>
__device__ __forceinline__ double array_sum(const T *x, int64_t n, double *shared, int64_t step = 1)
{
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += (double)x[i * step];
    return block_sum_double(sum, shared);
}

/* Both sums of pairs x[0], x[1], ... by the whole block, and of one pair a thread; `shared` as above for each */
__device__ __forceinline__ double2 block_sum_pair(double2 x, double2 *shared)
{
    x = make_double2(lanes_sum<WARP>(x.x), lanes_sum<WARP>(x.y));
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    double2 total = {0, 0};
    for (unsigned w = 0; w < (blockDim.x + WARP - 1) / WARP; w++) total.x += shared[w].x, total.y += shared[w].y;
    return total;
}
__device__ __forceinline__ double2 array_sum_pair(const double2 *x, int64_t n, double2 *shared)
{
    double2 sum = {0, 0};
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum.x += x[i].x, sum.y += x[i].y;
    return block_sum_pair(sum, shared);
}

/* A row of logits in eight neighbouring lanes, so that a warp has four rows under way: V in the registers of each lane,
 * -inf behind the end; V = 0: rows of any length, read again for each use. A row that is not wanted has no logits. */
enum { ROW_LANES = 8, LOSS_ROWS = LOSS_THREADS / ROW_LANES };

template <int V> struct LogitRow {
    float v[V];
    __device__ __forceinline__ LogitRow(const float *x, int n, bool wanted)
    {
#pragma unroll
        for (int j = 0; j < V; j++) {
            int k = (int)(threadIdx.x % ROW_LANES) + ROW_LANES * j;
            v[j] = wanted && k < n ? x[k] : -INFINITY;
        }
    }
    __device__ __forceinline__ int count() const
    {
        return V;
    }
    __device__ __forceinline__ float at(int j) const
    {
        return v[j];
    }
};
template <> struct LogitRow<0> {
    const float *x;
    int n;
    __device__ __forceinline__ LogitRow(const float *x_, int n_, bool wanted) : x(x_), n(wanted ? n_ : 0) {}
    __device__ __forceinline__ int count() const { return (n + ROW_LANES - 1) / ROW_LANES; }
    __device__ __forceinline__ float at(int j) const
    {
        int k = (int)(threadIdx.x % ROW_LANES) + ROW_LANES * j;
        return k < n ? x[k] : -INFINITY;
    }
};

/* log of the sum of exponentials, in every lane of the row; by whole warps */
template <int V> __device__ __forceinline__ float row_norm(const LogitRow<V> &row)
{
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < row.count(); j++) top = fmaxf(top, row.at(j));
    top = lanes_max<ROW_LANES>(top);
#pragma unroll
    for (int j = 0; j < row.count(); j++) sum += expf(row.at(j) - top);
    return top + logf(lanes_sum<ROW_LANES>(sum));
}

/* Gradient of scale times the cross entropy of a row. */
template <int V>
__device__ __forceinline__ void row_store_bwd(const LogitRow<V> &row, int n, float norm, int target, float scale,
                                              float *dx)
{
#pragma unroll
    for (int j = 0; j < (V ? V : (n + ROW_LANES - 1) / ROW_LANES); j++) {
        int k = (int)(threadIdx.x % ROW_LANES) + ROW_LANES * j;
        if (k < n) dx[k] = scale == 0 ? 0.0f : scale * (expf(row.at(j) - norm) - (k == target));
    }
}

/* Runs the statement with V = registers a lane of rows of n logits. */
#define DISPATCH_ROW(n, ...)                                                                                           \
    do {                                                                                                               \
        if ((n) <= 4 * ROW_LANES) {                                                                                    \
            constexpr int V = 4;                                                                                       \
            __VA_ARGS__                                                                                                \
        } else if ((n) <= 8 * ROW_LANES) {                                                                             \
            constexpr int V = 8;                                                                                       \
            __VA_ARGS__                                                                                                \
        } else {                                                                                                       \
            constexpr int V = 0;                                                                                       \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

/* -log softmax(x)[target] by a warp; the log of the sum of exponentials comes back too */
__device__ __forceinline__ float warp_cross_entropy(const float *x, int n, int target, float *norm_out)
{
    int lane = threadIdx.x % WARP;
    float top = -INFINITY, sum = 0;
    for (int k = lane; k < n; k += WARP) top = fmaxf(top, x[k]);
    top = lanes_max<WARP>(top);
    for (int k = lane; k < n; k += WARP) sum += expf(x[k] - top);
    *norm_out = top + logf(lanes_sum<WARP>(sum));
    return *norm_out - x[target];
}

__device__ __forceinline__ void warp_cross_entropy_bwd(const float *x, int n, int target, float scale, float *dx)
{
    int lane = threadIdx.x % WARP;
    float norm = 0;
    if (scale != 0) warp_cross_entropy(x, n, target, &norm);
    for (int k = lane; k < n; k += WARP) dx[k] = scale == 0 ? 0.0f : scale * (expf(x[k] - norm) - (k == target));
}

/* Index of this warp in the grid. */
__device__ __forceinline__ int64_t global_warp()
{
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
}

#endif
