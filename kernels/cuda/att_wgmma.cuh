/* Asynchronous tensor core products (wgmma, sm_90a) on tiles [rows][D] in shared memory, D = 32 or 16 bf16: a row is
 * half or a quarter of the 128 bytes of a full swizzle, and att_place() is the 64- or 32-byte swizzle, so that one tile
 * serves as the operand whose rows are columns of the result (k-major) and as the one whose rows are summed over. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_WGMMA_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_WGMMA_CUH

#include "kernels/cuda/att_mma.cuh"
#include "kernels/cuda/hopper.cuh"

/* Descriptor of a swizzled operand (PTX ISA, "wgmma matrix descriptor"): `swizzle` bytes a row, groups of eight rows
 * one after the other. The operands here are one swizzle wide, so that the other stride is not used. The low half is
 * kept apart: places within a tile are added to it, the high half is a constant. */
template <int SWIZZLE> __device__ __forceinline__ uint32_t att_tile(uint32_t shared)
{
    return (shared & 0x3ffff) >> 4 | (uint32_t)(SWIZZLE * 8 >> 4) << 16;
}
template <int SWIZZLE> __device__ __forceinline__ uint64_t att_descriptor(uint32_t tile, uint32_t bytes)
{
    constexpr uint32_t HIGH = SWIZZLE * 8 >> 4 | (SWIZZLE == 128 ? 1u : SWIZZLE == 64 ? 2u : 3u) << 30;
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(tile + (bytes >> 4)), "n"(HIGH));
    return d;
}

/* Rows of 16 bytes one after the other, no swizzle: eight columns, which the product of 16 reads twice. `tile`: address
 * >> 4. */
__device__ __forceinline__ uint64_t att_rows_descriptor(uint32_t tile, uint32_t bytes)
{
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(tile + (bytes >> 4)), "n"(128 >> 4));
    return d;
}

/* Keeps uses of accumulators behind the wait before this, and what made them before the wait after this. */
template <int N> __device__ __forceinline__ void wgmma_arrived(float (&d)[N])
{
#pragma unroll
    for (int k = 0; k < N; k++) asm volatile("" : "+f"(d[k]));
}

/* d[64 x 32] (+)= A[64 x 16] in registers times B; ROWS_SUMMED: rows of B's tile are the 16 summed over, else columns
 * of d. add = 0: d starts from zero. */
template <bool ROWS_SUMMED>
__device__ __forceinline__ void wgmma_from_registers(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1, %22;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(ROWS_SUMMED ? 1 : 0));
}
/* the same, 16 columns */
template <bool ROWS_SUMMED>
__device__ __forceinline__ void wgmma_from_registers(float (&d)[8], const uint32_t (&a)[4], uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, %14;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(ROWS_SUMMED ? 1 : 0));
}
/* d[64 x 16] (+)= A B^T: rows of both tiles are rows and columns of d */
__device__ __forceinline__ void wgmma_columns(float (&d)[8], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, 1, 1, 0, 0;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "l"(a), "l"(b), "r"(add));
}
/* d[64 x 32] (+)= A B^T: rows of both tiles are rows and columns of d */
__device__ __forceinline__ void wgmma_columns(float (&d)[16], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, p, 1, 1, 0, 0;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b), "r"(add));
}
/* d (+)= A B, the 16 rows of both tiles summed over */
__device__ __forceinline__ void wgmma_rows(float (&d)[16], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, p, 1, 1, 1, 1;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void wgmma_rows(float (&d)[8], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, 1, 1, 1, 1;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "l"(a), "l"(b), "r"(add));
}

/* What is made of it is not kept in registers across the rows of a block, where it would be spilled. */
__device__ __forceinline__ int here_again(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}
__device__ __forceinline__ int64_t here_again(int64_t x)
{
    asm volatile("" : "+l"(x));
    return x;
}

/* 16 bytes to global memory where `live`: no branch, into which loads of what is stored would be moved. */
__device__ __forceinline__ void store_chunk_where(bool live, void *to, const uint32_t (&v)[4])
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.v4.b32 [%1], {%2,%3,%4,%5};\n}\n" ::"r"((int)live),
        "l"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
        : "memory");
}

/* Barriers 1.. of the block: `arrive` does not wait. */
template <int THREADS> __device__ __forceinline__ void threads_arrive(int id)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
template <int THREADS> __device__ __forceinline__ void threads_sync(int id)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

/* --- between the blocks of a cluster: stores that count their bytes on a barrier of the block that gets them */

__device__ __forceinline__ void cluster_store(uint32_t address, uint32_t barrier, float x, float y, float z, float w)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(address),
        "f"(x), "f"(y), "f"(z), "f"(w), "r"(barrier)
        : "memory");
}
/* all blocks of the cluster (which may be one); after barrier_init */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile(
        "fence.mbarrier_init.release.cluster;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::
            : "memory");
}

#endif
