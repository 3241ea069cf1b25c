/* Fused attention in bf16, forward: the shared memory of a block of att_forward.cuh, what it asks for and how results
 * leave. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_LOAD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_LOAD_CUH

#include "kernels/cuda/att_mma.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/peer_send.cuh"

enum {
    PIECE_ELEMENTS = 64 * 64,
    FORWARD_GROUPS = 2, /* warpgroups of a block */
    FORWARD_BOX = 16    /* queries that go to a rank together */
};

/* --- mask and bias, made ready by one small kernel:
 * add[R][padded + 4]: log2(e) inf (mask - 1), ATT_PAD for keys that do not exist; then two flags: some key is not
 * masked (else the softmax is uniform: inf = 1e9 swallows the scores in f32), all are zero; bias[G][H][tiles][pieces]:
 * 64 queries x 64 keys in the order of the accumulators of a warpgroup. */
struct ForwardPlan {
    int tiles, pieces, padded; /* tiles of 64 queries, pieces of 64 keys (even), 64 x pieces */
    int64_t mask_rows;
    size_t bias_at, bytes;
};
struct ForwardPrepared {
    float *add;
    bf16 *bias;
};

struct ForwardProblem {
    Att a;
    AttOperands<bf16> x;
    ForwardPrepared prepared;
    int tiles, rows_per_block;
};

/* Offsets in shared memory. A stage: queries, keys, values, gate; the masks and barriers of all stages lie at the end.
 */
template <int D_, bool BIAS_, int PIECES_, bool SEND_ = false> struct ForwardLayout {
    static constexpr int D = D_, PIECES = PIECES_;
    static constexpr bool BIAS = BIAS_, SEND = SEND_; /* SEND: y goes to the ranks */
    static constexpr int GROUPS = FORWARD_GROUPS, THREADS = (GROUPS + 1) * 128;
    static constexpr int READY = PIECES > 4 ? 0 : PIECES > 2 ? 3 : 2;  /* pieces of the bias that are kept ready */
    static constexpr int BOX = PIECES > 4 ? PIECES * 32 : PIECES * 64; /* keys that arrive at once, at most 256 */
    static constexpr uint32_t TILE = PIECES * 64 * D * 2, QUERIES = GROUPS * 64 * D * 2, VALUES = QUERIES + TILE;
    static constexpr uint32_t GATE = VALUES + TILE, STAGE = GATE + QUERIES, ADD = (PIECES * 64 + 4) * 4;
    static constexpr uint32_t ROOM = 227 * 1024 - (D == 8 ? 1024 : 0) - 192, MOST = ROOM / (STAGE + ADD);
    static constexpr int STAGES = MOST > 6 ? 6 : MOST;
    static_assert(STAGES >= 2, "the next row arrives while this one is computed");
    static constexpr uint32_t ZERO_AT = STAGES * STAGE, ADD_AT = ZERO_AT + (D == 8 ? 1024 : 0);
    /* barriers of each stage: all has arrived; all has left; results of a warpgroup are ready to leave */
    static constexpr uint32_t BARRIERS_AT = ADD_AT + STAGES * ADD, EMPTY_AT = BARRIERS_AT + STAGES * 8;
    static constexpr uint32_t BYTES = EMPTY_AT + STAGES * 8 * (1 + GROUPS);
    static_assert(BYTES <= 227 * 1024, "what a block can have");
    static __device__ __forceinline__ uint32_t done_at(int warpgroup)
    {
        return EMPTY_AT + STAGES * 8 * (1 + warpgroup);
    }
};

template <bool SEND> struct ForwardMaps {
    CUtensorMap q, k, v, gate, o, y;
};
/* y: what stays, if anything; the output of every rank, a matrix of its rows. */
template <> struct ForwardMaps<true> : ForwardMaps<false> {
    CUtensorMap to[PEER_RANKS];
    PeerSend send;
};

struct ForwardPlace {
    int head, group, tile0, first, last; /* tile0: of 64 queries; rows [first, last) */
};

/* One thread asks for row `row` of the block's, all but its mask; then for its mask. */
template <typename L>
__device__ __forceinline__ void forward_load(const ForwardProblem &p, const ForwardPlace &w,
                                             const ForwardMaps<false> &maps, uint32_t base, int row)
{
    constexpr int D = L::D;
    int id = row - w.first, stage = id % L::STAGES, round = id / L::STAGES;
    uint32_t at = base + stage * L::STAGE, full = base + L::BARRIERS_AT + stage * 8;
    if (round > 0) barrier_wait(base + L::EMPTY_AT + stage * 8, (round - 1) & 1);
    barrier_expect(full, (p.x.gate ? L::STAGE : L::GATE) + L::ADD);
    tensor_load_box(at, &maps.q, w.head * D, w.tile0 * 64, row, w.group, full);
#pragma unroll
    for (int key = 0; key < L::PIECES * 64; key += L::BOX) {
        tensor_load_box(at + L::QUERIES + key * D * 2, &maps.k, w.head * D, key, row, w.group, full);
        tensor_load_box(at + L::VALUES + key * D * 2, &maps.v, w.head * D, key, row, w.group, full);
    }
    if (p.x.gate) tensor_load_box(at + L::GATE, &maps.gate, w.head * D, w.tile0 * 64, row, w.group, full);
}
template <typename L>
__device__ __forceinline__ void forward_load_mask(const ForwardProblem &p, const ForwardPlace &w, uint32_t base,
                                                  int row)
{
    int stage = (row - w.first) % L::STAGES;
    bulk_load(base + L::ADD_AT + stage * L::ADD,
              p.prepared.add + (int64_t)att_mask_index(p.a, w.group, row) * (L::PIECES * 64 + 4), L::ADD,
              base + L::BARRIERS_AT + stage * 8);
}

/* By a warp, whose first lane sends the results of a warpgroup row by row, from the places of queries and gate. */
template <typename L>
__device__ __forceinline__ void forward_leave(const ForwardProblem &p, const ForwardPlace &w,
                                              const ForwardMaps<L::SEND> &maps, uint32_t base, int warpgroup)
{
    constexpr int D = L::D;
    int lane = threadIdx.x % WARP, query0 = (w.tile0 + warpgroup) * 64;
    for (int row = w.first; lane == 0 && row < w.last; row++) {
        int id = row - w.first, stage = id % L::STAGES;
        uint32_t tile = base + stage * L::STAGE + warpgroup * 64 * D * 2;
        barrier_wait(base + L::done_at(warpgroup) + stage * 8, id / L::STAGES & 1);
        if (p.x.o) tensor_store_box(&maps.o, tile, w.head * D, query0, row, w.group);
        if (L::SEND ? p.x.again : p.x.gate) tensor_store_box(&maps.y, tile + L::GATE, w.head * D, query0, row, w.group);
        if constexpr (L::SEND)
            for (int query = query0; query < min(query0 + 64, p.a.n); query += FORWARD_BOX) {
                PeerPlace to = peer_place(maps.send, (uint32_t)((w.group * p.a.b + row) * p.a.n + query), 0);
                if (id == 0) PeerSender(maps.send).meet(to.rank); /* the same in all rows: att_mma_sends() */
                tensor_store(&maps.to[to.rank], tile + L::GATE + (query - query0) * D * 2, (int)to.row, w.head * D);
            }
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(base + L::EMPTY_AT + stage * 8);
    }
    if (lane == 0) tensor_store_wait();
    if constexpr (L::SEND) { /* one for all that send */
        __syncwarp();
        asm volatile("bar.sync 3, %0;" ::"n"(L::GROUPS * WARP) : "memory"); /* 1 and 2 are of forward_vote() */
        if (warpgroup == 0 && lane == 0) PeerSender(maps.send).finish(gridDim.x * gridDim.y * gridDim.z);
    }
}

#endif
