/* The device side of an op that performs a collective on its way out: what it computes goes straight to where it
 * belongs on the ranks, while it runs. A kernel that sends
 *   - calls peer_send_begin() with all threads of its first warp behind stage_wait(): what this rank ran before is
 * done, the others may write here;
 *   - meets a rank (PeerSender::meet) before a thread stores there for the first time;
 *   - ends each storing thread, or each block whose threads are synchronized, with PeerSender::finish once its stores
 *     are complete (of tensor copies: tensor_store_wait(), and not until they were read). The last one tells all
 *     ranks and waits for the other ranks, so that the kernel ends when all has landed here; what runs next needs no
 *     more than its stage_wait().
 * Waiting is for kernels of the same op on the other ranks, whose first block waits for nobody. */
#ifndef FOLDSCALE_KERNELS_CUDA_PEER_SEND_CUH
#define FOLDSCALE_KERNELS_CUDA_PEER_SEND_CUH

#include "kernels/cuda/peer_flags.cuh"

/* Where rows of this rank go. Runs of `run` rows stay together; run i goes to rank i / inner % ranks, or to all, and
 * there lies `stride` rows behind the one before, the first one `place` rows further for each rank that sends. */
struct PeerRows {
    uint32_t run, inner, stride, place;
    bool to_all;
};

struct PeerSend {
    int ranks, rank; /* ranks 0: the op does not send */
    bool loopback;   /* the other ranks do not exist: what they would send is what this one sends them */
    bool shares;     /* ops aside run beside this one (OpCall.beside): it takes fewer blocks, and calls stage_release()
                        behind the last tile that it asks for, or blocks of the next kernel would take the room */
    PeerRows rows;
    void *out[PEER_RANKS];      /* of every rank: the output, or where parts of a sum land */
    uint32_t *flag[PEER_RANKS]; /* of every rank: [turn that is here, turn that has finished][rank] */
    uint32_t *turn;             /* own: turns done, senders that have finished, those of earlier turns */
    uint32_t *failed;           /* own: nobody waits any more */
    PeerStatus *status;
};

/* A row on a rank. */
struct PeerPlace {
    int rank;
    uint32_t row;
};

/* k: which of the ranks gets the row; 0 unless all of them do. */
__device__ __forceinline__ PeerPlace peer_place(const PeerSend &s, uint32_t row, int k)
{
    const PeerRows &r = s.rows;
    uint32_t run = row / r.run, within = row - run * r.run, group = run / r.inner;
    int rank = r.to_all ? k : (int)(group % (uint32_t)s.ranks);
    uint32_t before = r.to_all ? run : group / (uint32_t)s.ranks * r.inner + run % r.inner;
    uint32_t sender = (uint32_t)(s.loopback ? rank : s.rank);
    return {rank, sender * r.place + before * r.stride + within};
}

__device__ __forceinline__ void peer_send_begin(const PeerSend &s)
{
    int other = (int)threadIdx.x;
    bool first = blockIdx.x + blockIdx.y + blockIdx.z == 0;
    if (!first || s.loopback || other >= s.ranks || other == s.rank) return;
    peer_raise(s.flag[other] + s.rank, __ldcg(s.turn) + 1);
}

/* A thread that stores to the ranks, or one of a block on behalf of all. */
struct PeerSender {
    const PeerSend &s;
    uint32_t met = 0; /* bit of a rank that is here */

    __device__ __forceinline__ explicit PeerSender(const PeerSend &send) : s(send) {}

    __device__ __forceinline__ void meet(int rank)
    {
        if (s.loopback || rank == s.rank || met >> rank & 1) return;
        peer_await(s, s.flag[s.rank] + rank, __ldcg(s.turn) + 1, rank);
        met |= 1u << rank;
    }

    /* senders: how many threads of the grid call it. They count on this GPU, and the last one tells the other ranks:
     * what it knows of the others' stores its fence covers too (causality order of PTX is transitive). One flag a rank
     * takes 2 us less than each sender's own fence across the system and count over there. */
    __device__ __forceinline__ void finish(uint32_t senders) const
    {
        if (s.loopback || s.ranks == 0) return;
        uint32_t before = __ldcg(s.turn + 2), turn = __ldcg(s.turn) + 1;
        peer_fence_here();
        if (atomicAdd(s.turn + 1, 1u) != before + senders - 1) return;
        peer_fence();
        for (int k = 1; k < s.ranks; k++) peer_tell(s.flag[(s.rank + k) % s.ranks] + PEER_RANKS + s.rank, turn);
        for (int k = 1; k < s.ranks; k++) {
            int other = (s.rank + k) % s.ranks;
            peer_await(s, s.flag[s.rank] + PEER_RANKS + other, turn, other);
        }
        s.turn[0] = turn;
        s.turn[2] = before + senders;
    }
};

/* Where a row of that many bytes goes, not to all. */
__device__ __forceinline__ char *peer_row(PeerSender *sender, uint32_t row, uint32_t bytes)
{
    PeerPlace to = peer_place(sender->s, row, 0);
    sender->meet(to.rank);
    return (char *)sender->s.out[to.rank] + (int64_t)to.row * bytes;
}

/* By plain stores: the columns from this one on that a U holds, of a row of `width` T. */
template <typename T, typename U>
__device__ __forceinline__ void peer_put(PeerSender *sender, uint32_t row, uint32_t width, uint32_t column, U value)
{
    const PeerSend &s = sender->s;
    for (int k = 0; k < (s.rows.to_all ? s.ranks : 1); k++) {
        PeerPlace to = peer_place(s, row, k);
        sender->meet(to.rank);
        *reinterpret_cast<U *>((T *)s.out[to.rank] + (int64_t)to.row * width + column) = value;
    }
}

/* Behind the last store of plain instructions of all threads of a block. */
__device__ __forceinline__ void peer_finish_all(const PeerSend &s)
{
    __syncthreads();
    if (threadIdx.x == 0) PeerSender(s).finish(gridDim.x * gridDim.y * gridDim.z);
}

#endif
