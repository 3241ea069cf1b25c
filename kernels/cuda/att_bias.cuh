/* The bias of attention [G?,N,M,H] in the order in which a kernel's accumulators want it: what the kernels that prepare
 * it have in common. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_BIAS_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_BIAS_CUH

#include "kernels/cuda/att_mma.cuh"

/* Eight pairs of query and key: all heads of each are read at once (H of them, 0 for any number), and those of a head
 * go to out[head * head_step] together. at: of a pair's first head, -1 for none (zeros). */
template <int H>
__device__ __forceinline__ void att_bias_heads(const Att &a, const bf16 *bias, uint4 *out, int64_t head_step,
                                               const int64_t (&at)[8])
{
    __align__(16) bf16 x[8][H ? H : 1];
#pragma unroll
    for (int e = 0; e < 8; e++)
        if constexpr (H == 8)
            *reinterpret_cast<uint4 *>(x[e]) =
                at[e] < 0 ? make_uint4(0, 0, 0, 0) : *reinterpret_cast<const uint4 *>(bias + at[e]);
        else if constexpr (H == 4)
            *reinterpret_cast<uint2 *>(x[e]) =
                at[e] < 0 ? make_uint2(0, 0) : *reinterpret_cast<const uint2 *>(bias + at[e]);
#pragma unroll
    for (int head = 0; head < (H ? H : a.h); head++) {
        __align__(16) bf16 v[8];
#pragma unroll
        for (int e = 0; e < 8; e++)
            if constexpr (H > 0)
                v[e] = x[e][head];
            else
                v[e] = at[e] < 0 ? from_float<bf16>(0.0f) : bias[at[e] + head];
        out[head * head_step] = *reinterpret_cast<const uint4 *>(v);
    }
}

#endif
