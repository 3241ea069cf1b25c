/* The gradient of what ends a triangle multiplication, sigmoid(g) y with y = norm(x) W^T and the channels of x first.
 * With s = sigmoid(g): d = dy s, dg = d y (1 - s), and dx from d W at the edge of that product (norm_edge.cuh).
 *
 * What bounds it is moving seven tensors. W stays in shared memory, tiles of 64 places stream past through a ring of
 * slots, two warpgroups take tiles in turn: dg goes over g, d over dy and, out of registers, into the product, dx over
 * x. A thread per warpgroup sends what they leave. */
#ifndef FOLDSCALE_KERNELS_CUDA_GATE_NORM_CUH
#define FOLDSCALE_KERNELS_CUDA_GATE_NORM_CUH

#include "kernels/cuda/norm_edge.cuh"
#include "kernels/cuda/peer_send.cuh"

enum { GATE_NORM_ROWS = 64, GATE_NORM_PANEL = GATE_NORM_ROWS * 128 /* bytes of 64 columns of a tile */ };
enum { GATE_NORM_GROUPS = 2, GATE_NORM_THREADS = GATE_NORM_GROUPS * 128 + 128 };
/* Blocks at most; where ops aside run beside it (PeerSend.shares): schedule_beside.c knows. */
enum { GATE_NORM_BLOCKS = 132, GATE_NORM_SHARING = GATE_NORM_BLOCKS / 2 };

struct GateNorm {
    CUtensorMap dy, g, y, x, w, dg, d, dx;
    NormEdge edge; /* no more of it than gamma, mean, rstd, partial and rows */
    int places;    /* x[groups][C][places], a multiple of 64 */
    bool early;    /* W and gamma before stage_wait() */
    PeerSend send; /* of dx: all ranks get the places, one rank's behind those of another */
    CUtensorMap sent_to[PEER_RANKS];
};

/* A slot: dy, g, y, x. */
template <int C> struct GateNormShape {
    static constexpr int PANELS = C / 64, TILE = PANELS * GATE_NORM_PANEL, SLOT = 4 * TILE;
    static constexpr int G_AT = TILE, Y_AT = 2 * TILE, X_AT = 3 * TILE;
    static constexpr int W_PANEL = C * 128, W_BYTES = PANELS * W_PANEL;
    static constexpr int GAMMA_BYTES = C * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int FIT = (MOST - W_BYTES - GAMMA_BYTES - BARRIER_BYTES) / SLOT, SLOTS = FIT < 6 ? FIT : 6;
    static constexpr int GAMMA_AT = W_BYTES + SLOTS * SLOT, BARRIERS_AT = GAMMA_AT + GAMMA_BYTES;
    static constexpr int BYTES = BARRIERS_AT + BARRIER_BYTES;
    static_assert(SLOTS >= 3, "two tiles in work and one on its way");
    static_assert(16 * C * 4 <= W_BYTES, "the sums of warps go over W");
};

/* Barriers: those of slot_barriers(); the tiles of dg and d are ready to leave (four warps). */
struct GateNormPlace {
    uint32_t w, slots, full, empty, done, ready, gated;
    int tiles;
};

/* x of a tile, channels as rows of 64 places in the 128-byte swizzle, each warp having two chunks of eight places. */
struct NormColumnTile {
    uint32_t x;
    __device__ __forceinline__ uint32_t row(int j) const
    {
        int warp = threadIdx.x % 128 / WARP, lane = threadIdx.x % WARP, r = lane % 8;
        return x + ((j + lane / 16) * 8 + r) * 128 + ((warp * 2 + lane / 8 % 2) ^ r) * 16;
    }
    __device__ __forceinline__ void get(int q, uint32_t (&words)[8]) const
    {
#pragma unroll
        for (int k = 0; k < 8; k += 4) ldmatrix4_trans(reinterpret_cast<uint32_t(&)[4]>(words[k]), row(q * 4 + k / 2));
    }
    __device__ __forceinline__ void put(int q, const uint32_t (&words)[8]) const
    {
#pragma unroll
        for (int k = 0; k < 8; k += 4)
            stmatrix4_trans(row(q * 4 + k / 2), reinterpret_cast<const uint32_t(&)[4]>(words[k]));
    }
};

/* One thread: W. */
template <int C> __device__ __forceinline__ void gate_norm_weights(const GateNorm &p, const GateNormPlace &at)
{
    typedef GateNormShape<C> S;
    barrier_expect(at.ready, S::W_BYTES);
    for (int k = 0; k < S::PANELS; k++) tensor_load(at.w + k * S::W_PANEL, &p.w, 0, k * 64, at.ready);
}

/* One thread: tiles as slots become free. */
template <int C> __device__ __forceinline__ void gate_norm_load(const GateNorm &p, const GateNormPlace &at)
{
    typedef GateNormShape<C> S;
    for (int i = 0, tile = blockIdx.x; tile < at.tiles; i++, tile += gridDim.x) {
        int slot = i % S::SLOTS, round = i / S::SLOTS, row = tile * GATE_NORM_ROWS;
        uint32_t full = at.full + slot * 8, to = at.slots + slot * S::SLOT;
        if (round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_expect(full, S::SLOT);
        for (int k = 0; k < S::PANELS; k++) {
            uint32_t panel = to + k * GATE_NORM_PANEL;
            tensor_load(panel, &p.dy, row, k * 64, full);
            tensor_load(panel + S::G_AT, &p.g, row, k * 64, full);
            tensor_load(panel + S::Y_AT, &p.y, row, k * 64, full);
        }
        tensor_load(to + S::X_AT, &p.x, row / p.places * C, row % p.places, full);
    }
    if (p.send.shares) stage_release();
}

/* Where the number of slots is odd, the tile before in a slot is the other warpgroup's: its turn has to be over before
 * a barrier's parity tells something about ours. */
template <int C> __device__ __forceinline__ void gate_norm_turn(const GateNormPlace &at, int slot, int round)
{
    if (GateNormShape<C>::SLOTS % GATE_NORM_GROUPS && round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
}

/* dx of a tile, first to this rank's own memory. */
template <int C>
__device__ __forceinline__ void gate_norm_send(const GateNorm &p, PeerSender *sender, uint32_t from, int row)
{
    int channel = row / p.places * C, place = row % p.places;
    if (!p.send.ranks) tensor_store(&p.dx, from, channel, place);
    for (int k = 0; k < p.send.ranks; k++) {
        int rank = (p.send.rank + k) % p.send.ranks;
        sender->meet(rank);
        tensor_store(&p.sent_to[rank], from, channel, place + (p.send.loopback ? rank : p.send.rank) * p.places);
    }
}

/* One thread per warpgroup: what is finished goes out, then slots are free. */
template <int C> __device__ __forceinline__ void gate_norm_store(const GateNorm &p, const GateNormPlace &at, int group)
{
    typedef GateNormShape<C> S;
    PeerSender sender(p.send);
    for (int i = group, tile = blockIdx.x + group * gridDim.x; tile < at.tiles;
         i += GATE_NORM_GROUPS, tile += GATE_NORM_GROUPS * gridDim.x) {
        int slot = i % S::SLOTS, round = i / S::SLOTS, row = tile * GATE_NORM_ROWS;
        uint32_t from = at.slots + slot * S::SLOT;
        gate_norm_turn<C>(at, slot, round);
        barrier_wait(at.gated + slot * 8, round & 1);
        for (int k = 0; k < S::PANELS; k++) {
            tensor_store(&p.d, from + k * GATE_NORM_PANEL, row, k * 64);
            tensor_store(&p.dg, from + S::G_AT + k * GATE_NORM_PANEL, row, k * 64);
        }
        tensor_store_commit();
        barrier_wait(at.done + slot * 8, round & 1);
        gate_norm_send<C>(p, &sender, from + S::X_AT, row);
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(at.empty + slot * 8);
    }
    tensor_store_wait();
    sender.finish(gridDim.x * GATE_NORM_GROUPS);
}

/* d and dg of a tile in their places; d as left operands of the product too. */
template <int C> __device__ __forceinline__ void gate_norm_gates(uint32_t slot, uint32_t (&d)[C / 4])
{
    typedef GateNormShape<C> S;
    NormRowTile<GATE_NORM_PANEL> dy = {slot}, g = {slot + S::G_AT}, y = {slot + S::Y_AT};
#pragma unroll
    for (int q = 0; q < C / 32; q++) {
        uint32_t of_dy[8], of_g[8], of_y[8];
        dy.get(q, of_dy), g.get(q, of_g), y.get(q, of_y);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float2 a = unpack_bf16(of_dy[k]), b = unpack_bf16(of_g[k]), c = unpack_bf16(of_y[k]);
            b.x = sigmoid_short(b.x), b.y = sigmoid_short(b.y);
            a.x *= b.x, a.y *= b.y;
            of_dy[k] = d[q * 8 + k] = pack_bf16(a.x, a.y);
            of_g[k] = pack_bf16(a.x * c.x * (1.0f - b.x), a.y * c.y * (1.0f - b.y));
        }
        dy.put(q, of_dy), g.put(q, of_g);
    }
}

template <int C>
__device__ __forceinline__ void gate_norm_work(const GateNorm &p, const GateNormPlace &at, char *shared, int group)
{
    typedef GateNormShape<C> S;
    const float *gamma = reinterpret_cast<const float *>(shared + S::GAMMA_AT);
    uint64_t w = across_descriptor(at.w, S::W_PANEL);
    NormSums<C, true> sums = {};
    NormPart<C> part = {};
    barrier_wait(at.ready, 0);
    for (int i = group, tile = blockIdx.x + group * gridDim.x; tile < at.tiles;
         i += GATE_NORM_GROUPS, tile += GATE_NORM_GROUPS * gridDim.x) {
        int slot = i % S::SLOTS, round = i / S::SLOTS;
        uint32_t here = at.slots + slot * S::SLOT, d[C / 4], words[C / 32][8];
        float acc[C / 2];
        norm_edge_begin<C>(p.edge, tile * GATE_NORM_ROWS, &part);
        gate_norm_turn<C>(at, slot, round);
        barrier_wait(at.full + slot * 8, round & 1);
        gate_norm_gates<C>(here, d);
#pragma unroll
        for (int k = 0; k < C / 2; k++) acc[k] = 0;
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < C / 16; s++) RegisterProduct<C, true>::step(acc, d + s * 4, w + s * (2048 >> 4));
        wgmma_commit();
        barrier_arrive_warp(at.gated + slot * 8);
        wgmma_wait<0>();
        wgmma_settle(acc);
        NormColumnTile x = {here + S::X_AT};
        NormLine line = norm_edge_means<C, true, true>(acc, x, gamma, part, words, &sums);
#pragma unroll
        for (int q = 0; q < C / 32; q++) norm_edge_put<C>(acc, x, q, line, words[q]);
        barrier_arrive_warp(at.done + slot * 8);
    }
    asm volatile("bar.sync 3, 256;" ::: "memory"); /* nobody reads W any more */
    norm_edge_sums<C>(p.edge, reinterpret_cast<float *>(shared), sums);
}

/* By the warpgroups that multiply. */
template <int C> __device__ __forceinline__ void gate_norm_gamma(const GateNorm &p, float *gamma)
{
    for (int c = threadIdx.x; c < C; c += GATE_NORM_GROUPS * 128) gamma[c] = p.edge.gamma[c];
    static_assert(GATE_NORM_GROUPS == 2, "their threads");
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

template <int C>
__global__ void __launch_bounds__(GATE_NORM_THREADS, 1) gate_norm_kernel(const __grid_constant__ GateNorm p)
{
    typedef GateNormShape<C> S;
    extern __shared__ __align__(1024) char shared[];
    float *gamma = reinterpret_cast<float *>(shared + S::GAMMA_AT);
    int group = threadIdx.x / 128, warp = threadIdx.x / WARP % 4;
    GateNormPlace at;
    at.w = shared_address(shared), at.slots = at.w + S::W_BYTES, at.tiles = p.edge.rows / GATE_NORM_ROWS;
    at.gated = at.w + S::BARRIERS_AT;
    for (int s = 0; threadIdx.x == 0 && s < S::SLOTS; s++) barrier_init(at.gated + s * 8, 4 * WARP_ARRIVALS);
    slot_barriers<S::SLOTS>(&at, at.gated + S::SLOTS * 8);
    if (threadIdx.x == 0 && p.early) gate_norm_weights<C>(p, at);
    __syncthreads();
    if (p.early && group < GATE_NORM_GROUPS) gate_norm_gamma<C>(p, gamma);
    stage_wait();
    if (!p.send.shares) stage_release();
    if (threadIdx.x == 0 && !p.early) gate_norm_weights<C>(p, at);
    peer_send_begin(p.send);
    /* registers of the copying warps go to the products */
    if (group == GATE_NORM_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x % WARP == 0 && warp == 0) gate_norm_load<C>(p, at);
        if (threadIdx.x % WARP == 0 && warp > 0 && warp <= GATE_NORM_GROUPS) gate_norm_store<C>(p, at, warp - 1);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        if (!p.early) gate_norm_gamma<C>(p, gamma);
        gate_norm_work<C>(p, at, shared, group);
    }
}

#endif
