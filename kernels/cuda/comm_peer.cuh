/* The kernel of comm_peer.cu: pieces that lie in memory. They land in the output of a rank where that lies in shared
 * memory and nothing is summed, else in its scratch memory, from which it moves or sums them. */
#ifndef FOLDSCALE_KERNELS_CUDA_COMM_PEER_CUH
#define FOLDSCALE_KERNELS_CUDA_COMM_PEER_CUH

#include "kernels/cuda/peer_exchange.cuh"

enum { PEER_THREADS = 512, PEER_UNROLL = 4 };

/* Unit e of the piece of rank r lies at r * step + e / run * stride + e % run. */
struct PeerRoute {
    uint32_t run, stride, step;
    __device__ __forceinline__ uint32_t at(uint32_t rank, uint32_t e) const
    {
        uint32_t row = e / run;
        return rank * step + row * stride + (e - row * run);
    }
};

struct PeerArguments {
    PeerExchange exchange;
    const void *in;
    void *out;
    PeerRoute send, receive, land; /* land: of the piece of a rank where it lands; = receive in the output */
    uint32_t in_units, out_units;  /* nothing is read or written beyond */
    bool direct;                   /* pieces land in the output */
};

template <typename Unit> struct PeerMemory {
    typedef Unit U;
    static constexpr int THREADS = PEER_THREADS, UNROLL = PEER_UNROLL;
    const PeerArguments &a;
    PeerPart part;

    __device__ __forceinline__ U mine(int rank, uint32_t i) const
    {
        uint32_t at = a.send.at((uint32_t)rank, part.first + i);
        return at < a.in_units ? ((const U *)a.in)[at] : U{};
    }
    __device__ __forceinline__ uint32_t land(int rank, uint32_t i) const
    {
        return a.land.at((uint32_t)rank, part.first + i);
    }
    /* in the output, the piece that a rank has for this one */
    __device__ __forceinline__ void keep_from(int rank, uint32_t i, U unit) const
    {
        uint32_t at = a.receive.at((uint32_t)rank, part.first + i);
        if (at < a.out_units) ((U *)a.out)[at] = unit;
    }
    /* of a sum */
    __device__ __forceinline__ void others() const {}
    __device__ __forceinline__ void own() const {}
    __device__ __forceinline__ void keep(uint32_t i, U unit) const { keep_from(0, i, unit); }
};

template <typename T, int V, bool SUM>
__global__ __launch_bounds__(PEER_THREADS, 2) void peer_kernel(const __grid_constant__ PeerArguments a)
{
    typedef PeerUnit<T, V> U;
    stage_wait();
    const PeerExchange &e = a.exchange;
    PeerMemory<U> memory = {a, peer_part(e, blockIdx.x)};
    if constexpr (SUM) {
        peer_exchange_sum(e, blockIdx.x, memory);
    } else {
        PeerShare<PeerMemory<U>> s = {e, memory};
        auto keep_own = [&] {
            s.move([&](uint32_t i) { return memory.mine(e.rank, i); },
                   [&](uint32_t i, U unit) { memory.keep_from(e.rank, i, unit); });
        };
        auto receive = [&] {
            for (int k = 1; k < e.ranks && !a.direct; k++) {
                int sender = (e.rank + k) % e.ranks;
                s.move([&](uint32_t i) { return s.landed(sender, i); },
                       [&](uint32_t i, U unit) { memory.keep_from(sender, i, unit); });
            }
        };
        peer_exchange(
            e, blockIdx.x, keep_own, [&](int rank) { s.send(rank); }, [] {}, receive);
    }
}

/* The ranks meet: what each of them enqueued before is done on all. One warp of few registers finds room beside any
 * other kernel. */
static __global__ __launch_bounds__(WARP) void peer_meet_kernel(const __grid_constant__ PeerExchange a)
{
    stage_wait();
    int other = (int)threadIdx.x;
    uint32_t turn = *a.turn + 1;
    __syncwarp();
    if (other < a.ranks && other != a.rank) {
        peer_raise(a.flag[other] + a.rank, turn);
        peer_await(a, a.flag[a.rank] + other, turn, other);
    }
    __syncwarp();
    if (other == 0) *a.turn = turn;
}

#endif
