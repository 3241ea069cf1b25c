/* Channel-first tensors [groups, c, pairs]: their shape, and tiles of them. */
#ifndef FOLDSCALE_KERNELS_CUDA_CHANNELS_CUH
#define FOLDSCALE_KERNELS_CUDA_CHANNELS_CUH

#include "kernels/cuda/transpose.cuh"

enum { CHANNELS_THREADS = 256, CHANNELS_TILE = 8192 /* elements */ };
enum { SQUARE = 32, SQUARE_ROWS = CHANNELS_THREADS / SQUARE /* at a time */ };

/* x[groups, c, pairs] */
struct Channels {
    int64_t groups, c, pairs;
};

static inline Channels channels_of(const Tensor *x)
{
    int off = x->rank - 3;
    Channels s = {1, x->dim[off], x->dim[off + 1] * x->dim[off + 2]};
    for (int axis = 0; axis < off; axis++) s.groups *= x->dim[axis];
    return s;
}

__device__ __forceinline__ void unpack8(uint4 v, float (&x)[8])
{
    const Pack<bf16> p = *reinterpret_cast<const Pack<bf16> *>(&v);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = to_float(p.v[j]);
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8])
{
    Pack<bf16> p;
#pragma unroll
    for (int j = 0; j < 8; j++) p.v[j] = from_float<bf16>(x[j]);
    return *reinterpret_cast<const uint4 *>(&p);
}
__device__ __forceinline__ uint4 load16(const bf16 *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}
__device__ __forceinline__ void store16(bf16 *p, uint4 v)
{
    *reinterpret_cast<uint4 *>(p) = v;
}

#endif
