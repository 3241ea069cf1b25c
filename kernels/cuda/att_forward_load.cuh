/* Fused attention in bf16, forward: the shared memory of a block of att_forward.cuh, and what it asks for. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_LOAD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_LOAD_CUH

#include "kernels/cuda/att_mma.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/peer_send.cuh"

enum {
    PIECE_ELEMENTS = 64 * 64,
    FORWARD_GROUPS = 2, /* warpgroups of a block */
    FORWARD_BOX = 16    /* queries of a warp, which leave together */
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
    static constexpr uint32_t ROOM = 227 * 1024 - (D == 8 ? 1024 : 0) - 128, MOST = ROOM / (STAGE + ADD);
    static constexpr int STAGES = MOST > 6 ? 6 : MOST;
    static_assert(STAGES >= 2, "the next row arrives while this one is computed");
    static constexpr uint32_t ZERO_AT = STAGES * STAGE, ADD_AT = ZERO_AT + (D == 8 ? 1024 : 0);
    static constexpr uint32_t BARRIERS_AT = ADD_AT + STAGES * ADD, TARGETS_AT = BARRIERS_AT + STAGES * 16;
    static constexpr uint32_t BYTES = TARGETS_AT + (SEND ? GROUPS * 4 * 8 : 0);
    static_assert(BYTES <= 227 * 1024, "what a block can have");
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
    if (round > 0) barrier_wait(full + L::STAGES * 8, (round - 1) & 1);
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

#endif
