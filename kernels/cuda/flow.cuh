/* Products y = x W^T + b of many rows with a short inner extent, their edges fused. What bounds them is moving x and y:
 * the weights of a block of columns stay in shared memory, tiles of 64 rows stream past through a ring of slots filled
 * by tensor copies. Two warpgroups take tiles in turn, so that the epilogue of one runs beside the product of the
 * other; results leave from the slot by tensor copies that a warp of their own issues. Each block works on one block of
 * columns, row tiles first, first + step, ...
 *
 * Edges: y = x W^T + b (relu) in up to six members of its own output each, x of 64 channels perhaps normalized on the
 * way, with a member more of at most eight columns; y = r + dropout(x W^T + b);   y = r + dropout(sigmoid(g) (x W^T +
 * b)), the product kept where asked for. The member of few columns and y = r + ... may be sent, the latter in boxes of
 * rows that stay together. Where a tile has whole rows of y = r + ..., as wide as those of x, their layer norm may
 * leave with them. */
#ifndef FOLDSCALE_KERNELS_CUDA_FLOW_CUH
#define FOLDSCALE_KERNELS_CUDA_FLOW_CUH

#include "kernels/cuda/flow_mask.cuh"
#include "kernels/cuda/norm_tile.cuh"
#include "kernels/cuda/peer_send.cuh"

enum {
    FLOW_MEMBERS = 6,
    FLOW_TARGETS = PEER_RANKS /* at least as many as members */,
    FLOW_BLOCKS = 8,
    FLOW_GROUPS = 2,
    FLOW_THREADS = FLOW_GROUPS * 128 + 128
};
enum { FLOW_CHUNK = FLOW_ROWS * TENSOR_COLUMNS * 2 /* bytes of a box */ };
/* FLOW_NORMED: a plain edge, x normalized by two of the copying warps before the product; FLOW_.._NORM: y normalized
 * behind it, over x in shared memory */
enum FlowEdge { FLOW_PLAIN, FLOW_NORMED, FLOW_RESIDUAL, FLOW_GATED, FLOW_RESIDUAL_NORM, FLOW_GATED_NORM };
__host__ __device__ constexpr bool flow_is_plain(FlowEdge edge)
{
    return edge == FLOW_PLAIN || edge == FLOW_NORMED;
}
__host__ __device__ constexpr bool flow_is_gated(FlowEdge edge)
{
    return edge == FLOW_GATED || edge == FLOW_GATED_NORM;
}
__host__ __device__ constexpr bool flow_norms_y(FlowEdge edge)
{
    return edge == FLOW_RESIDUAL_NORM || edge == FLOW_GATED_NORM;
}
/* A member of few columns, an even number: the products of its block are small ones. No w: none. */
enum { FLOW_FEW = 8 };
struct FlowFew {
    const bf16 *w;
    const float *bias;
    bf16 *y;
    int columns;
};

struct FlowProblem {
    CUtensorMap x, w, y[FLOW_TARGETS], r, g, product, normal;
    int rows, columns, members;
    int start[FLOW_MEMBERS + 1]; /* columns of members, multiples of 64 */
    const float *bias[FLOW_MEMBERS];
    bool relu, keep, early;             /* keep: the product before the gate; early: w and bias before stage_wait() */
    FrontNorm norm;                     /* of x, or of y */
    FlowFew few;                        /* of a plain edge */
    int blocks, first[FLOW_BLOCKS + 1]; /* of the grid, by block of columns */
    FlowMask mask;
    PeerSend send; /* of an edge with r: y[rank]; of a plain one: few */
    int box;       /* rows that go to a rank together */
};
static_assert((int)FLOW_TARGETS >= (int)FLOW_MEMBERS, "a map each");

template <int K, int NB, FlowEdge EDGE> struct FlowShape {
    static constexpr int W_BYTES = NB * K * 2, X_BYTES = FLOW_ROWS * K * 2, Y_BYTES = FLOW_ROWS * NB * 2;
    /* a slot: x, over which y goes; or x (then y normalized), r (then y) and g (then the product) */
    static constexpr int Y_AT = flow_is_plain(EDGE) ? 0 : X_BYTES;
    static constexpr int LOADED = X_BYTES + (flow_is_plain(EDGE) ? 0 : flow_is_gated(EDGE) ? 2 * Y_BYTES : Y_BYTES);
    static constexpr int SLOT = flow_is_plain(EDGE) && Y_BYTES > X_BYTES ? Y_BYTES : LOADED;
    static constexpr int BIAS_BYTES = NB * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int MASK_BYTES = flow_is_plain(EDGE) ? 0 : FLOW_MASK_BYTES; /* behind the barriers */
    static constexpr int BESIDE = BIAS_BYTES + BARRIER_BYTES + MASK_BYTES;
    static constexpr int FIT = (MOST - W_BYTES - BESIDE) / SLOT, SLOTS = FIT < 6 ? FIT : 6;
    static constexpr int BYTES = W_BYTES + SLOTS * SLOT + BESIDE;
    static_assert(SLOTS >= 3, "two tiles in work and one on its way");
    static_assert(!flow_norms_y(EDGE) || NB <= K, "y normalized goes over x");
};

/* Shared memory and the share of the work of a thread block. */
struct FlowPlace {
    uint32_t w, slots, full, empty, done, normal, ready;
    const float *bias;
    int column0, first, step, tiles;
};

__device__ __forceinline__ int flow_member(const FlowProblem &p, int column)
{
    int k = 0;
    while (k + 1 < p.members && column >= p.start[k + 1]) k++;
    return k;
}

/* One thread: the weights. */
template <int K, int NB> __device__ __forceinline__ void flow_weights(const FlowProblem &p, const FlowPlace &at)
{
    barrier_expect(at.ready, NB * K * 2);
    for (int k = 0; k < K / 64; k++) tensor_load(at.w + k * NB * 128, &p.w, at.column0, k * 64, at.ready);
}

/* One thread: tiles as slots become free. */
template <int K, int NB, FlowEdge EDGE> __device__ __forceinline__ void flow_load(const FlowProblem &p, FlowPlace at)
{
    typedef FlowShape<K, NB, EDGE> S;
    for (int i = 0, tile = at.first; tile < at.tiles; i++, tile += at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS, row = tile * FLOW_ROWS;
        uint32_t target = at.slots + slot * S::SLOT, full = at.full + slot * 8;
        if (round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_expect(full, S::LOADED);
        for (int k = 0; k < K / 64; k++) tensor_load(target + k * FLOW_CHUNK, &p.x, row, k * 64, full);
        for (int c = 0; !flow_is_plain(EDGE) && c < NB / 64; c++) {
            uint32_t chunk = target + S::Y_AT + c * FLOW_CHUNK;
            tensor_load(chunk, &p.r, row, at.column0 + c * 64, full);
            if (flow_is_gated(EDGE)) tensor_load(chunk + S::Y_BYTES, &p.g, row, at.column0 + c * 64, full);
        }
    }
}

/* A finished tile goes to where its rows belong. */
template <int NB>
__device__ __forceinline__ void flow_send(const FlowProblem &p, PeerSender *sender, uint32_t from, int row, int column)
{
    for (int b = 0; b < FLOW_ROWS && row + b < p.rows; b += p.box) {
        PeerPlace to = peer_place(p.send, (uint32_t)(row + b), 0);
        sender->meet(to.rank);
        for (int c = 0; c < NB / 64; c++)
            tensor_store(&p.y[to.rank], from + c * FLOW_CHUNK + b * 128, (int)to.row, column + c * 64);
    }
}

/* A thread: finished tiles from the first-th on, each BY-th, go out, then their slots are free. */
template <int K, int NB, FlowEdge EDGE, int BY>
__device__ __forceinline__ void flow_store(const FlowProblem &p, FlowPlace at, int first)
{
    typedef FlowShape<K, NB, EDGE> S;
    PeerSender sender(p.send);
    bool sends = !flow_is_plain(EDGE) && p.send.ranks > 0;
    for (int i = first, tile = at.first + first * at.step; tile < at.tiles; i += BY, tile += BY * at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS, row = tile * FLOW_ROWS;
        uint32_t x = at.slots + slot * S::SLOT, from = x + S::Y_AT;
        /* an odd number of slots: the tile before in this one is the other warpgroup's, perhaps still at work */
        if (S::SLOTS % BY && round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_wait(at.done + slot * 8, round & 1);
        if (sends) flow_send<NB>(p, &sender, from, row, at.column0);
        for (int c = 0; c < NB / 64; c++) {
            int column = at.column0 + c * 64, k = flow_member(p, column);
            if (column >= p.columns) break;
            if (!sends) tensor_store(&p.y[k], from + c * FLOW_CHUNK, row, column - p.start[k]);
            if (flow_is_gated(EDGE) && p.keep)
                tensor_store(&p.product, from + S::Y_BYTES + c * FLOW_CHUNK, row, column);
            if (flow_norms_y(EDGE)) tensor_store(&p.normal, x + c * FLOW_CHUNK, row, column);
        }
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(at.empty + slot * 8);
    }
    tensor_store_wait();
    if (sends) sender.finish(gridDim.x * BY);
}

/* This lane's row of a warp's 16 rows x 16 columns 8 j .. (j even) of a tile in the layout of a tensor copy, for
 * ldmatrix4() and stmatrix4(): eight neighbours take different 16-byte chunks, so that banks do not conflict. */
__device__ __forceinline__ uint32_t flow_matrix_at(uint32_t tile, int j)
{
    int thread = threadIdx.x % 128, lane = thread % WARP, row = thread / WARP * 16 + lane % 16;
    return tile + row * 128 + j / 8 * FLOW_CHUNK + ((uint32_t)(j % 8 ^ lane / 16 ^ lane % 8) << 4);
}

/* y = r + f sigmoid(g) v of two columns, of an edge with r; g becomes the product before the gate. */
template <bool GATED> __device__ __forceinline__ uint32_t flow_sum(float2 v, float2 f, uint32_t r, uint32_t *g)
{
    float2 sum = unpack_bf16(r);
    if constexpr (GATED) {
        float2 gate = unpack_bf16(*g);
        *g = pack_bf16(v.x, v.y);
        v.x *= sigmoid_short(gate.x), v.y *= sigmoid_short(gate.y);
    }
    return pack_bf16(fmaf(f.x, v.x, sum.x), fmaf(f.y, v.y, sum.y));
}

/* This thread's share of a tile: rows row and row + 8, columns 8 j + 2 (lane % 4) and the next; acc in the layout of a
 * warpgroup's accumulators. Four steps of columns at a time: what is read does not wait for what was written. */
template <int NB, FlowEdge EDGE>
__device__ __forceinline__ void flow_edge(const FlowProblem &p, const float *bias, float (&acc)[NB / 2], uint32_t y,
                                          const FlowKept &kept)
{
    constexpr int TOGETHER = 4, GATE_AT = FLOW_ROWS * NB * 2;
    constexpr bool PLAIN = flow_is_plain(EDGE), GATED = flow_is_gated(EDGE);
    bool drops = !PLAIN && p.mask.drop.rng, bounded = PLAIN && p.relu;
    const float *bias_at = bias + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j0 = 0; j0 < NB / 8; j0 += TOGETHER) {
        float2 b[TOGETHER];
        uint32_t r[TOGETHER / 2][4], g[TOGETHER / 2][4];
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) b[k] = *reinterpret_cast<const float2 *>(bias_at + (j0 + k) * 8);
#pragma unroll
        for (int k = 0; k < TOGETHER / 2; k++) {
            if (!PLAIN) ldmatrix4(r[k], flow_matrix_at(y, j0 + 2 * k));
            if (GATED) ldmatrix4(g[k], flow_matrix_at(y, j0 + 2 * k) + GATE_AT);
        }
#pragma unroll
        for (int k = 0; k < TOGETHER; k++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int j = j0 + k;
                float2 v = make_float2(acc[4 * j + 2 * h] + b[k].x, acc[4 * j + 2 * h + 1] + b[k].y), f = {1, 1};
                uint32_t &of_r = r[k / 2][k % 2 * 2 + h], &of_g = g[k / 2][k % 2 * 2 + h];
                if (drops) {
                    f.x = kept.row[h][0] >> 2 * j & 1 ? p.mask.drop.keep_scale : 0.0f;
                    f.y = kept.row[h][1] >> 2 * j & 1 ? p.mask.drop.keep_scale : 0.0f;
                }
                of_r = PLAIN ? pack_bf16(v.x, v.y) : flow_sum<GATED>(v, f, of_r, &of_g);
                if (bounded) of_r = relu_bf16(of_r);
            }
#pragma unroll
        for (int k = 0; k < TOGETHER / 2; k++) {
            stmatrix4(flow_matrix_at(y, j0 + 2 * k), r[k]);
            if (GATED && p.keep) stmatrix4(flow_matrix_at(y, j0 + 2 * k) + GATE_AT, g[k]);
        }
    }
}

/* The member of few columns, rows of a tile at x by warps of 16. */
template <int K>
__device__ __forceinline__ void flow_few(const FlowFew &few, PeerSender *sender, uint32_t x, int row0, int rows)
{
    int warp = threadIdx.x % 128 / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int row = warp * 16 + lane % 16;
    uint32_t at = x + row * 128, first = (uint32_t)(lane / 16 ^ (row & 7)) << 4;
    const uint32_t *w = reinterpret_cast<const uint32_t *>(few.w + g * K) + t;
    bool live = g < few.columns;
    float acc[4] = {};
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        uint32_t a[4];
        ldmatrix4(a, at + k / 4 * FLOW_CHUNK + (first ^ (k % 4 << 5)));
        mma16816(acc, a, live ? __ldg(w + k * 8) : 0, live ? __ldg(w + k * 8 + 4) : 0);
    }
    if (2 * t >= few.columns) return;
    float2 b = few.bias ? *reinterpret_cast<const float2 *>(few.bias + 2 * t) : make_float2(0, 0);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int y_row = row0 + warp * 16 + g + 8 * h;
        uint32_t y = pack_bf16(acc[2 * h] + b.x, acc[2 * h + 1] + b.y);
        if (y_row >= rows) continue;
        if (sender->s.ranks)
            peer_put<bf16>(sender, (uint32_t)y_row, (uint32_t)few.columns, 2 * t, y);
        else
            *reinterpret_cast<uint32_t *>(few.y + (int64_t)y_row * few.columns + 2 * t) = y;
    }
}

/* Starts; wgmma_wait<0>() ends. */
template <int K, int NB, int N>
__device__ __forceinline__ void flow_product(float (&acc)[N / 2], uint32_t x, uint32_t w)
{
    uint64_t a = wgmma_descriptor(x), b = wgmma_descriptor(w);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K / 16; k++)
        wgmma_step<N>(acc, a + k / 4 * (FLOW_CHUNK >> 4) + k % 4 * 2, b + k / 4 * (NB * 128 >> 4) + k % 4 * 2, k > 0);
    wgmma_commit();
}

/* N columns of a tile at x: the product and its edge; scales: of y normalized. */
template <int K, int NB, int N, FlowEdge EDGE>
__device__ __forceinline__ void flow_tile(const FlowProblem &p, const FlowPlace &at, int row0, uint32_t x,
                                          const FlowKept &kept, const EightScales &scales, PeerSender *sender)
{
    uint32_t y = x + FlowShape<K, NB, EDGE>::Y_AT;
    float acc[N / 2];
    flow_product<K, NB, N>(acc, x, at.w);
    if (flow_is_plain(EDGE) && p.few.w && at.column0 == 0) flow_few<K>(p.few, sender, x, row0, p.rows);
    wgmma_wait<0>();
    if (flow_is_plain(EDGE)) { /* y goes over x */
        if (EDGE == FLOW_NORMED) norm_sent(p.norm);
        asm volatile("bar.sync %0, 128;" ::"r"((int)threadIdx.x / 128 + 1) : "memory");
    }
    flow_edge<N, EDGE>(p, at.bias, acc, y, kept);
    if constexpr (flow_norms_y(EDGE)) { /* over x, which the whole warpgroup has multiplied */
        asm volatile("bar.sync %0, 128;" ::"r"((int)threadIdx.x / 128 + 1) : "memory");
        norm_tile<N>(p.norm, scales, y, x, threadIdx.x % 128 / WARP * 16, row0, p.rows, true);
    }
}

template <int K, int NB, FlowEdge EDGE>
__device__ __forceinline__ void flow_work(const FlowProblem &p, FlowPlace at, int group, uint4 *mask)
{
    typedef FlowShape<K, NB, EDGE> S;
    bool drops = !flow_is_plain(EDGE) && p.mask.drop.rng, stays = drops && flow_mask_stays(p.mask, at.step);
    DropoutDraw draw = drops ? p.mask.drop.draw() : DropoutDraw{};
    FlowKept kept = {};
    if (stays) flow_draw_together(p.mask, draw, at.first * FLOW_ROWS, at.column0, mask, &kept);
    EightScales scales = flow_norms_y(EDGE) ? eight_scales(p.norm, threadIdx.x % (NB / 8) * 8) : EightScales{};
    PeerSender sender(p.send);
    bool narrow = NB == 256 && p.columns - at.column0 <= 128;
    barrier_wait(at.ready, 0);
    for (int i = group, tile = at.first + group * at.step; tile < at.tiles;
         i += FLOW_GROUPS, tile += FLOW_GROUPS * at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS;
        uint32_t x = at.slots + slot * S::SLOT;
        if (drops && !stays)
            flow_draw(p.mask, draw, tile * FLOW_ROWS + threadIdx.x % 128 / WARP * 16, at.column0, &kept);
        if (S::SLOTS % FLOW_GROUPS && round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_wait((EDGE == FLOW_NORMED ? at.normal : at.full) + slot * 8, round & 1);
        if (EDGE == FLOW_NORMED) norm_send<K>(p.norm, &p.normal, x, tile * FLOW_ROWS, at.column0 / NB, p.blocks);
        if (narrow)
            flow_tile<K, NB, 128, EDGE>(p, at, tile * FLOW_ROWS, x, kept, scales, &sender);
        else
            flow_tile<K, NB, NB, EDGE>(p, at, tile * FLOW_ROWS, x, kept, scales, &sender);
        barrier_arrive_warp(at.done + slot * 8);
    }
    if (EDGE == FLOW_NORMED) tensor_store_wait();
    if (!flow_is_plain(EDGE) || !p.send.ranks || at.column0 > 0) return;
    __syncwarp();
    if (threadIdx.x % WARP == 0) sender.finish((uint32_t)p.first[1] * (FLOW_GROUPS * 128 / WARP));
}

/* The warps beside the products when x is normalized: one brings tiles, one sends results, two normalize. */
template <int K, int NB> __device__ __forceinline__ void flow_carry_normed(const FlowProblem &p, FlowPlace at)
{
    typedef FlowShape<K, NB, FLOW_NORMED> S;
    int warp = threadIdx.x / WARP % 4;
    if (warp >= 2)
        norm_tiles<K, S::SLOTS>(p.norm, at, S::SLOT, p.rows, at.column0 == 0, warp - 2, 2);
    else if (threadIdx.x % WARP == 0 && warp == 0)
        flow_load<K, NB, FLOW_NORMED>(p, at);
    else if (threadIdx.x % WARP == 0)
        flow_store<K, NB, FLOW_NORMED, 1>(p, at, 0);
}

/* The biases of a block's columns, by the warpgroups that multiply. */
template <int NB> __device__ __forceinline__ void flow_biases(const FlowProblem &p, int column0, float *bias)
{
    for (int c = threadIdx.x; c < NB; c += FLOW_GROUPS * 128) {
        int column = column0 + c, k = flow_member(p, column);
        bias[c] = column < p.columns && p.bias[k] ? p.bias[k][column - p.start[k]] : 0.0f;
    }
    static_assert(FLOW_GROUPS == 2, "their threads");
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

template <int K, int NB, FlowEdge EDGE>
__global__ void __launch_bounds__(FLOW_THREADS, 1) flow_kernel(const __grid_constant__ FlowProblem p)
{
    typedef FlowShape<K, NB, EDGE> S;
    extern __shared__ __align__(1024) char shared[];
    float *bias = reinterpret_cast<float *>(shared + S::W_BYTES + S::SLOTS * S::SLOT);
    uint4 *mask = reinterpret_cast<uint4 *>(shared + S::BYTES - S::MASK_BYTES);
    int group = threadIdx.x / 128, block = 0;
    while (block + 1 < p.blocks && (int)blockIdx.x >= p.first[block + 1]) block++;
    FlowPlace at;
    at.w = shared_address(shared), at.slots = at.w + S::W_BYTES;
    at.bias = bias, at.column0 = block * NB, at.first = blockIdx.x - p.first[block];
    at.step = p.first[block + 1] - p.first[block], at.tiles = (p.rows + FLOW_ROWS - 1) / FLOW_ROWS;
    uint32_t barriers = shared_address(bias) + S::BIAS_BYTES;
    at.normal = barriers + (3 * S::SLOTS + 1) * 8;
    for (int s = 0; EDGE == FLOW_NORMED && threadIdx.x == 0 && s < S::SLOTS; s++)
        barrier_init(at.normal + s * 8, 4 * WARP_ARRIVALS);
    slot_barriers<S::SLOTS>(&at, barriers);
    if (threadIdx.x == 0) {
        tensor_prefetch(&p.x);
        if (!flow_is_plain(EDGE)) flow_mask_prefetch(p.mask);
        if (p.early) flow_weights<K, NB>(p, at);
    }
    __syncthreads();
    if (p.early && group < FLOW_GROUPS) flow_biases<NB>(p, at.column0, bias);
    stage_wait();
    stage_release();
    if (threadIdx.x == 0 && !p.early) flow_weights<K, NB>(p, at);
    peer_send_begin(p.send);
    if (EDGE == FLOW_NORMED) {
        if (group == FLOW_GROUPS) return flow_carry_normed<K, NB>(p, at);
        if (!p.early) flow_biases<NB>(p, at.column0, bias);
        flow_work<K, NB, EDGE>(p, at, group, mask);
    } else if (group == FLOW_GROUPS) { /* registers of the copying warps go to the products */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        int warp = threadIdx.x / WARP % 4;
        if (threadIdx.x % WARP == 0 && warp == 0) flow_load<K, NB, EDGE>(p, at);
        if (threadIdx.x % WARP == 0 && warp > 0 && warp <= FLOW_GROUPS)
            flow_store<K, NB, EDGE, FLOW_GROUPS>(p, at, warp - 1);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        if (!p.early) flow_biases<NB>(p, at.column0, bias);
        flow_work<K, NB, EDGE>(p, at, group, mask);
    }
}

#endif
