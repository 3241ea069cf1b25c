/* Flags by which the ranks of a host tell each other how far they are. They count turns and are never reset, which lets
 * a captured graph be replayed. */
#ifndef FOLDSCALE_KERNELS_CUDA_PEER_FLAGS_CUH
#define FOLDSCALE_KERNELS_CUDA_PEER_FLAGS_CUH

#include "kernels/cuda/device.cuh"

enum {
    PEER_RANKS = 8,
    PEER_BLOCKS = 132 /* of a channel at most; beside a computation fewer (comm_peer.cu) */
};

/* What the host sees of the device's waiting, in mapped memory. */
struct PeerStatus {
    volatile uint32_t lost;    /* 1 + rank that did not answer */
    volatile uint32_t abort;   /* set by the host: waiting is pointless */
    volatile uint32_t seconds; /* before a rank counts as lost */
};

__device__ __forceinline__ void peer_raise(uint32_t *flag, uint32_t turn)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(turn) : "memory");
}

/* What this thread and those it is synchronized with stored, tensor copies that were waited for among it, is there
 * before what it tells or raises from now on. Not __threadfence_system(), a membar.sys: that puts fences of all threads
 * into one order (fence.sc in PTX), which no flag here needs and which takes longer. */
__device__ __forceinline__ void peer_fence()
{
    asm volatile("fence.acq_rel.sys;" ::: "memory");
}

/* For threads of this GPU, one of which will tell the others behind a peer_fence() of its own. */
__device__ __forceinline__ void peer_fence_here()
{
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

/* Ordered behind peer_fence(). */
__device__ __forceinline__ void peer_tell(uint32_t *flag, uint32_t turn)
{
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(turn) : "memory");
}

__device__ __forceinline__ uint32_t peer_look(const uint32_t *flag)
{
    uint32_t turn;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(turn) : "l"(flag) : "memory");
    return turn;
}

__device__ __forceinline__ uint64_t peer_clock()
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

/* a: what has `failed` (own: nobody waits any more) and `status`. */
template <typename Arguments>
__device__ __forceinline__ void peer_await(const Arguments &a, const uint32_t *flag, uint32_t turn, int sender)
{
    uint64_t start = 0;
    for (uint32_t look = 1; (int32_t)(peer_look(flag) - turn) < 0; look++) {
        if (look % 1024) continue;
        uint64_t now = peer_clock();
        if (!start) start = now;
        if (*(volatile uint32_t *)a.failed) return;
        bool late = now - start > (uint64_t)a.status->seconds * 1000000000u;
        if (late && !a.status->lost) a.status->lost = 1 + (uint32_t)sender;
        if (!late && !a.status->abort) continue;
        __threadfence_system();
        *(volatile uint32_t *)a.failed = 1;
        return;
    }
}

#endif
