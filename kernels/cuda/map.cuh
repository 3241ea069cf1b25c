/* Elementwise kernels: a functor gets one element of every input and gives one of every output. Vectors of 16 bytes per
 * input where extents allow it. */
#ifndef FOLDSCALE_KERNELS_CUDA_MAP_CUH
#define FOLDSCALE_KERNELS_CUDA_MAP_CUH

#include "kernels/cuda/device.cuh"

template <typename T, int N_IN, int N_OUT> struct MapArgs {
    const T *in[N_IN > 0 ? N_IN : 1];
    T *out[N_OUT];
    int64_t count;
};

/* f(first, j, x, y): element first + j, first a multiple of V; x[N_IN] -> y[N_OUT]. What depends on `first` alone is
 * computed once per vector, since the loop over j is unrolled. */
template <int V, typename T, int N_IN, int N_OUT, typename F>
__global__ void __launch_bounds__(256) map_kernel(MapArgs<T, N_IN, N_OUT> a, F f)
{
    stage_wait();
    uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (first >= a.count) return;
    float x[N_IN > 0 ? N_IN : 1][V], y[N_OUT][V];
#pragma unroll
    for (int k = 0; k < N_IN; k++) load_floats<V>(a.in[k] + first, x[k]);
    f.template apply<V>(first, x, y);
#pragma unroll
    for (int k = 0; k < N_OUT; k++) store_floats<V>(a.out[k] + first, y[k]);
}

/* inner: the functor may treat V consecutive elements alike when V divides it. */
template <typename T, int N_IN, int N_OUT, typename F>
static Status map_launch(const MapArgs<T, N_IN, N_OUT> &a, int64_t inner, const F &f, cudaStream_t stream)
{
    constexpr int V = 8;
    if (a.count == 0) return OK;
    if (a.count >= INT64_C(0xffff0000))
        return status_fail(ERR_UNSUPPORTED, "an elementwise op on %lld elements", (long long)a.count);
    bool wide = a.count % V == 0 && inner % V == 0;
    for (int k = 0; k < N_IN; k++) wide = wide && aligned16(a.in[k]);
    for (int k = 0; k < N_OUT; k++) wide = wide && aligned16(a.out[k]);
    if (wide)
        launch(map_kernel<V, T, N_IN, N_OUT, F>, blocks_for(a.count / V, 256), 256, 0, stream, a, f);
    else
        launch(map_kernel<1, T, N_IN, N_OUT, F>, blocks_for(a.count, 256), 256, 0, stream, a, f);
    return cuda_launched("map_kernel");
}

struct MaskMul {
    AnyReal mask;
    uint32_t inner;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float m = mask[first / inner];
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = m * x[0][j];
    }
};

#endif
