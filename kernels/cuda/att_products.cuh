/* Warpgroup products of attention forward: scores = Q K^T with both factors in shared memory, values times
 * probabilities with the probabilities in registers. Tiles are [rows][D] bf16 as boxes arrive: rows of 2 D bytes,
 * swizzled over that width. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_PRODUCTS_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_PRODUCTS_CUH

#include "kernels/cuda/hopper.cuh"

/* Descriptor of a tile of rows of 2 D bytes (PTX ISA, "Matrix Descriptor Format"): groups of eight rows 16 D bytes
 * apart; `leading`: for D = 8 bytes between the two halves of an inner extent of 16, else unused. The low half is kept
 * apart: places within a stage are added to it, the high half is a constant. */
__device__ __forceinline__ uint32_t att_low(uint32_t shared, uint32_t leading)
{
    return (shared & 0x3ffff) >> 4 | ((leading & 0x3ffff) >> 4) << 16;
}
template <int D> __device__ __forceinline__ uint64_t att_descriptor(uint32_t low)
{
    constexpr uint32_t SWIZZLE = D == 32 ? 2 : D == 16 ? 3 : 0;
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "n"((uint32_t)(16 * D >> 4) | SWIZZLE << 30));
    return d;
}

/* s[64 x 64] = A[64 x 16] B[64 x 16]^T, s not read before (wgmma_step<64> adds) */
__device__ __forceinline__ void wgmma_scores(float (&s)[32], uint64_t a, uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
                 "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : "=f"(s[0]), "=f"(s[1]), "=f"(s[2]), "=f"(s[3]), "=f"(s[4]), "=f"(s[5]), "=f"(s[6]), "=f"(s[7]),
                   "=f"(s[8]), "=f"(s[9]), "=f"(s[10]), "=f"(s[11]), "=f"(s[12]), "=f"(s[13]), "=f"(s[14]), "=f"(s[15]),
                   "=f"(s[16]), "=f"(s[17]), "=f"(s[18]), "=f"(s[19]), "=f"(s[20]), "=f"(s[21]), "=f"(s[22]),
                   "=f"(s[23]), "=f"(s[24]), "=f"(s[25]), "=f"(s[26]), "=f"(s[27]), "=f"(s[28]), "=f"(s[29]),
                   "=f"(s[30]), "=f"(s[31])
                 : "l"(a), "l"(b));
}

/* o[64 x D] (+)= A[64 x 16] B[16 x D], A in registers, B by rows of D */
template <int D>
__device__ __forceinline__ void wgmma_values(float (&o)[D / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint64_t b, int add)
{
    if constexpr (D == 32)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, "
                     "%20, p, 1, 1, 1;\n}\n"
                     : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3]), "+f"(o[4]), "+f"(o[5]), "+f"(o[6]), "+f"(o[7]),
                       "+f"(o[8]), "+f"(o[9]), "+f"(o[10]), "+f"(o[11]), "+f"(o[12]), "+f"(o[13]), "+f"(o[14]),
                       "+f"(o[15])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
    else if constexpr (D == 16)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, p, 1, 1, 1;\n}\n"
                     : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3]), "+f"(o[4]), "+f"(o[5]), "+f"(o[6]), "+f"(o[7])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, p, 1, 1, 1;\n}\n"
                     : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
}

#endif
