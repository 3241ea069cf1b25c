/* Shared by the loss kernels: sums in double in a fixed order. Losses are few numbers over many terms: rows are summed
 * by blocks or warps into scratch, a single block adds the rows. */
#ifndef FOLDSCALE_KERNELS_CUDA_LOSS_CUH
#define FOLDSCALE_KERNELS_CUDA_LOSS_CUH

#include "kernels/cuda/device.cuh"

enum { LOSS_THREADS = 256, LOSS_WARPS = LOSS_THREADS / WARP, SUM_THREADS = 1024 };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])
#define I32_IN(k)  ((const int32_t *)call->in[k])

__device__ __forceinline__ double warp_sum_double(double x)
{
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* Sum over the block, the same bits in every thread; `shared` holds a double per warp. */
__device__ __forceinline__ double block_sum_double(double x, double *shared)
{
    x = warp_sum_double(x);
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
