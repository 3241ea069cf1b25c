/* The kernel of comm_peer.cu. Rank s sends a piece to every rank r: block b of s takes its share of it, waits until its
 * namesake on r is there, which means that nothing on r uses the target any more, writes the share to where it belongs
 * on r, raises a flag there and waits for the flags of its namesakes. A block talks only to blocks of its own number,
 * so that no grid has to be resident as a whole.
 *
 * Pieces land in the output of r where that lies in shared memory and nothing is summed, else in r's scratch memory,
 * from which r moves or sums them. Flags count turns, two a collective, and are never reset, which lets a captured
 * graph be replayed. */
#ifndef FOLDSCALE_KERNELS_CUDA_COMM_PEER_CUH
#define FOLDSCALE_KERNELS_CUDA_COMM_PEER_CUH

#include "kernels/cuda/peer_flags.cuh"

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
    const void *in;
    void *out;
    PeerRoute send, receive, land; /* land: of the piece of a rank where it lands; = receive in the output */
    uint32_t piece, share;         /* units of a piece; of a block's part of it */
    uint32_t in_units, out_units;  /* nothing is read or written beyond */
    float factor;                  /* of sums */
    int ranks, rank;
    bool direct;                /* pieces land in the output */
    bool loopback;              /* the other ranks do not exist: what they would send is what this one sends them */
    bool arrived;               /* copy engines have moved the pieces */
    void *landing[PEER_RANKS];  /* of every rank */
    uint32_t *flag[PEER_RANKS]; /* [block][sender] */
    uint32_t *turn;             /* [block], own */
    uint32_t *failed;           /* own: nobody waits any more */
    PeerStatus *status;
};

/* What a thread moves at once: V elements of T. */
template <typename T, int V> struct alignas(sizeof(T) * V) PeerUnit {
    T v[V];
};

/* Written by others: not from the L1. */
template <typename U> __device__ __forceinline__ U peer_load(const U *p)
{
    U unit;
    if constexpr (sizeof(U) == 16)
        *(uint4 *)&unit = __ldcg((const uint4 *)p);
    else if constexpr (sizeof(U) == 4)
        *(uint32_t *)&unit = __ldcg((const uint32_t *)p);
    else
        *(uint16_t *)&unit = __ldcg((const uint16_t *)p);
    return unit;
}

/* put(i, get(i)) for i in [0, count), loads ahead of stores. */
template <typename U, typename Get, typename Put>
__device__ __forceinline__ void peer_move(uint32_t count, Get get, Put put)
{
    for (uint32_t i = threadIdx.x; i < count; i += PEER_THREADS * PEER_UNROLL) {
        U unit[PEER_UNROLL];
#pragma unroll
        for (int k = 0; k < PEER_UNROLL; k++)
            if (i + k * PEER_THREADS < count) unit[k] = get(i + k * PEER_THREADS);
#pragma unroll
        for (int k = 0; k < PEER_UNROLL; k++)
            if (i + k * PEER_THREADS < count) put(i + k * PEER_THREADS, unit[k]);
    }
}

/* A block's share: units [first, first + count) of every piece. */
template <typename T, int V> struct PeerShare {
    typedef PeerUnit<T, V> U;
    const PeerArguments &a;
    uint32_t first, count;

    __device__ __forceinline__ U mine(int rank, uint32_t i) const
    {
        uint32_t at = a.send.at((uint32_t)rank, first + i);
        return at < a.in_units ? ((const U *)a.in)[at] : U{};
    }
    __device__ __forceinline__ U landed(int sender, uint32_t i) const
    {
        if (a.loopback) return mine(sender, i);
        return peer_load((const U *)a.landing[a.rank] + a.land.at((uint32_t)sender, first + i));
    }
    __device__ __forceinline__ void keep(int rank, uint32_t i, U unit) const
    {
        uint32_t at = a.receive.at((uint32_t)rank, first + i);
        if (at < a.out_units) ((U *)a.out)[at] = unit;
    }
    __device__ __forceinline__ void send(int rank) const
    {
        U *to = (U *)a.landing[rank];
        peer_move<U>(
            count, [&](uint32_t i) { return mine(rank, i); },
            [&](uint32_t i, U unit) { to[a.land.at((uint32_t)a.rank, first + i)] = unit; });
    }
    __device__ __forceinline__ void keep_own() const
    {
        peer_move<U>(
            count, [&](uint32_t i) { return mine(a.rank, i); }, [&](uint32_t i, U unit) { keep(a.rank, i, unit); });
    }
    __device__ __forceinline__ void receive(int sender) const
    {
        peer_move<U>(
            count, [&](uint32_t i) { return landed(sender, i); }, [&](uint32_t i, U unit) { keep(sender, i, unit); });
    }
    /* In the order of ranks, in f32: the same bits in every run. */
    __device__ __forceinline__ U sum(uint32_t i) const
    {
        float total[V];
        U unit;
        for (int s = 0; s < a.ranks; s++) {
            unit = s == a.rank ? mine(s, i) : landed(s, i);
#pragma unroll
            for (int k = 0; k < V; k++) total[k] = s ? total[k] + to_float(unit.v[k]) : to_float(unit.v[k]);
        }
#pragma unroll
        for (int k = 0; k < V; k++) unit.v[k] = from_float<T>(a.factor * total[k]);
        return unit;
    }
};

template <typename T, int V, bool SUM>
__global__ __launch_bounds__(PEER_THREADS, 2) void peer_kernel(const __grid_constant__ PeerArguments a)
{
    typedef PeerUnit<T, V> U;
    stage_wait();
    uint32_t block = blockIdx.x, turn = a.turn[block], first = min(block * a.share, a.piece);
    PeerShare<T, V> s = {a, first, min(a.share, a.piece - first)};
    int other = (int)threadIdx.x;
    bool alone = a.loopback || a.arrived, speaks = !alone && other < a.ranks && other != a.rank;
    uint32_t *theirs = a.flag[speaks ? other : a.rank] + block * PEER_RANKS + a.rank,
             *own = a.flag[a.rank] + block * PEER_RANKS + other;
    if (speaks) peer_raise(theirs, turn + 1);
    if constexpr (!SUM) s.keep_own();
    if (speaks) peer_await(a, own, turn + 1, other);
    __syncthreads();
    for (int k = 1; k < a.ranks && !alone; k++) s.send((a.rank + k) % a.ranks);
    __syncthreads();
    if (speaks) {
        peer_raise(theirs, turn + 2);
        peer_await(a, own, turn + 2, other);
    }
    __syncthreads();
    if constexpr (SUM)
        peer_move<U>(
            s.count, [&](uint32_t i) { return s.sum(i); }, [&](uint32_t i, U unit) { s.keep(0, i, unit); });
    else
        for (int k = 1; k < a.ranks && !a.direct; k++) s.receive((a.rank + k) % a.ranks);
    if (threadIdx.x == 0 && !alone) a.turn[block] = turn + 2;
}

/* The ranks meet: what each of them enqueued before is done on all. One warp of few registers finds room beside any
 * other kernel. */
static __global__ __launch_bounds__(WARP) void peer_meet_kernel(const __grid_constant__ PeerArguments a)
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
