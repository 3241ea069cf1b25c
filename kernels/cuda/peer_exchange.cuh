/* How the blocks of a kernel exchange pieces with their namesakes on the other ranks. A rank has a piece for every rank
 * r, and a block its share of each: it waits until its namesake on r is there, which means that nothing on r uses the
 * target any more, writes the share to where it belongs on r, raises a flag there and waits for the flags of its
 * namesakes. A block talks only to blocks of its own number, so that no grid has to be resident as a whole.
 *
 * Flags count turns, two an exchange, and are never reset, which lets a captured graph be replayed. Kernels that
 * exchange through the same flags follow one another on one stream, in the same order on all ranks. */
#ifndef FOLDSCALE_KERNELS_CUDA_PEER_EXCHANGE_CUH
#define FOLDSCALE_KERNELS_CUDA_PEER_EXCHANGE_CUH

#include "kernels/cuda/peer_flags.cuh"

struct PeerExchange {
    uint32_t piece, share; /* units of a piece; of a block's part of it */
    float factor;          /* of sums */
    int ranks, rank;
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
    typedef T Element;
    static constexpr int N = V;
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

/* put(i, get(i)) for i in [0, count) by the threads of a block, `UNROLL` loads of each ahead of stores. */
template <int THREADS, int UNROLL, typename U, typename Get, typename Put>
__device__ __forceinline__ void peer_move(uint32_t count, Get get, Put put)
{
    for (uint32_t i = threadIdx.x; i < count; i += THREADS * UNROLL) {
        U unit[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
            if (i + k * THREADS < count) unit[k] = get(i + k * THREADS);
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
            if (i + k * THREADS < count) put(i + k * THREADS, unit[k]);
    }
}

/* One exchange, by all threads of a block behind stage_wait(). `before` runs while the block may still wait for its
 * namesakes, send(rank) once they are there, `meanwhile` while what was sent is on its way, `take` when all is here;
 * each sees what all threads did in those before it. */
template <typename Before, typename Send, typename Meanwhile, typename Take>
__device__ __forceinline__ void peer_exchange(const PeerExchange &a, uint32_t block, Before before, Send send,
                                              Meanwhile meanwhile, Take take)
{
    uint32_t turn = a.turn[block];
    int other = (int)threadIdx.x;
    bool alone = a.loopback || a.arrived, speaks = !alone && other < a.ranks && other != a.rank;
    uint32_t *theirs = a.flag[speaks ? other : a.rank] + block * PEER_RANKS + a.rank,
             *own = a.flag[a.rank] + block * PEER_RANKS + other;
    if (speaks) peer_raise(theirs, turn + 1);
    before();
    if (speaks) peer_await(a, own, turn + 1, other);
    __syncthreads();
    for (int k = 1; k < a.ranks && !alone; k++) send((a.rank + k) % a.ranks);
    __syncthreads();
    if (speaks) peer_raise(theirs, turn + 2);
    meanwhile();
    if (speaks) peer_await(a, own, turn + 2, other);
    __syncthreads();
    take();
    if (threadIdx.x == 0 && !alone) a.turn[block] = turn + 2;
}

/* What a block exchanges of every piece: units [first, first + count). */
struct PeerPart {
    uint32_t first, count;
};
__device__ __forceinline__ PeerPart peer_part(const PeerExchange &a, uint32_t block)
{
    uint32_t first = min(block * a.share, a.piece);
    return {first, min(a.share, a.piece - first)};
}

/* A block's part of the pieces, units counted from its first one. Source:
 *   U, THREADS, UNROLL: a unit, and how those of a block are moved;
 *   part;
 *   mine(rank, i): of this rank's piece for a rank;
 *   land(rank, i): where that of a rank for another one lands there, in units. */
template <typename Source> struct PeerShare {
    typedef typename Source::U U;
    const PeerExchange &a;
    const Source &source;

    template <typename Get, typename Put> __device__ __forceinline__ void move(Get get, Put put) const
    {
        peer_move<Source::THREADS, Source::UNROLL, U>(source.part.count, get, put);
    }
    __device__ __forceinline__ U landed(int sender, uint32_t i) const
    {
        if (a.loopback) return source.mine(sender, i);
        return peer_load((const U *)a.landing[a.rank] + source.land(sender, i));
    }
    __device__ __forceinline__ void send(int rank) const
    {
        U *to = (U *)a.landing[rank];
        move([&](uint32_t i) { return source.mine(rank, i); },
             [&](uint32_t i, U unit) { to[source.land(a.rank, i)] = unit; });
    }
    /* In the order of ranks, in f32: the same bits in every run. */
    __device__ __forceinline__ U sum(uint32_t i) const
    {
        typedef typename U::Element T;
        float total[U::N];
        U unit;
        for (int s = 0; s < a.ranks; s++) {
            unit = s == a.rank ? source.mine(s, i) : landed(s, i);
#pragma unroll
            for (int k = 0; k < U::N; k++) total[k] = s ? total[k] + to_float(unit.v[k]) : to_float(unit.v[k]);
        }
#pragma unroll
        for (int k = 0; k < U::N; k++) unit.v[k] = from_float<T>(a.factor * total[k]);
        return unit;
    }
};

/* Every rank gets the sums over the ranks of what they have for it: source.keep(i, unit). A source that computes its
 * pieces makes those of the other ranks in others() and its own in own(), while this block would only wait. */
template <typename Source>
__device__ __forceinline__ void peer_exchange_sum(const PeerExchange &a, uint32_t block, const Source &source)
{
    typedef typename Source::U U;
    PeerShare<Source> s = {a, source};
    peer_exchange(
        a, block, [&] { source.others(); }, [&](int rank) { s.send(rank); }, [&] { source.own(); },
        [&] { s.move([&](uint32_t i) { return s.sum(i); }, [&](uint32_t i, U unit) { source.keep(i, unit); }); });
}

#endif
