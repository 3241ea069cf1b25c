/* Blocks that work together (clusters), and warpgroup products whose operands may be stored along either axis (PTX ISA,
 * "Asynchronous Warpgroup Level Matrix Instructions"). Tiles are panels of 64 elements (128 bytes) per row in the
 * 128-byte swizzle, as tensor copies leave them. */
#ifndef FOLDSCALE_KERNELS_CUDA_CLUSTER_CUH
#define FOLDSCALE_KERNELS_CUDA_CLUSTER_CUH

#include "kernels/cuda/hopper.cuh"

enum { PANEL = TENSOR_COLUMNS };

/* Frees a slot that warpgroup products have read. No memory written by this thread is handed over: a release at cluster
 * scope would wait for all of its accesses at every step. */
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address(barrier, rank)) : "memory");
}
__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
/* All threads of all blocks; what they wrote before is seen after it. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/* The same without handing memory over: nobody waits for its stores. In two: what is between them is not waited for. */
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_meet()
{
    cluster_arrive();
    cluster_wait();
}
__device__ __forceinline__ float4 cluster_load(uint32_t at)
{
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}

/* tensor_load into every block of the cluster whose rank has a bit in `mask`, at the same places. */
__device__ __forceinline__ void tensor_load_multicast(uint32_t shared, const CUtensorMap *map, int row, int column,
                                                      uint32_t barrier, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(shared),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask)
                 : "memory");
}

/* The box of a map of three axes at these coordinates. */
__device__ __forceinline__ void cube_load(uint32_t shared, const CUtensorMap *map, int x, int y, int z,
                                          uint32_t barrier)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(shared),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
        : "memory");
}
/* the same into every block of the cluster whose rank has a bit in `mask` */
__device__ __forceinline__ void cube_load_multicast(uint32_t shared, const CUtensorMap *map, int x, int y, int z,
                                                    uint32_t barrier, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(mask)
                 : "memory");
}

/* --- warpgroup products */
/* Operand stored along its own axis (m or n): rows are k; panels of 64 m (or n) lie `panel_bytes` apart, eight rows k
 * 1024 bytes apart. */
__device__ __forceinline__ uint64_t across_descriptor(uint32_t shared, uint32_t panel_bytes)
{
    return (uint64_t)((shared & 0x3ffff) >> 4) | (uint64_t)(panel_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}
/* [8 x 16] of one value, so that the order does not matter: 256 bytes */
__device__ __forceinline__ uint64_t constant_descriptor(uint32_t shared)
{
    return (uint64_t)((shared & 0x3ffff) >> 4) | (uint64_t)(128 >> 4) << 16 | (uint64_t)(128 >> 4) << 32;
}

#endif
