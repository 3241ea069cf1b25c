/* The gradient of a gate at the edge of the product that feeds it: d = dy W never leaves the chip. With s = sigmoid(g),
 *   dx = s d,  dg = s (1 - s) x d,  delta = sums of dx x over heads of WIDTH columns, where WIDTH > 0.
 * With DROPS d is of dropout(dy), drawn over dy where it lies and stored as well.
 * What bounds it is moving rows: W's columns of a block stay in shared memory, tiles of 64 rows stream past. dy has a
 * ring of slots of its own, free again after the product; g and x share a slot, over which dg and dx go. Two warpgroups
 * take tiles in turn, so that the edge of one runs beside the product of the other. */
#ifndef FOLDSCALE_KERNELS_CUDA_PRODUCT_GATE_CUH
#define FOLDSCALE_KERNELS_CUDA_PRODUCT_GATE_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/flow_mask.cuh"

enum {
    GATE_ROWS = 64,
    GATE_GROUPS = 2,
    GATE_THREADS = GATE_GROUPS * 128 + 128,
    GATE_PANEL = GATE_ROWS * PANEL * 2 /* bytes of a box */
};

struct ProductGate {
    CUtensorMap dy, w, g, x, dg, dx, dropped;
    FlowMask mask;
    int tiles, blocks /* of columns */, rows, heads;
    float *delta;
    bool early; /* w before stage_wait() */
};

/* K: columns of dy; NB: columns of a block. */
template <int K, int NB> struct GateShape {
    static constexpr int W_PANEL = K * PANEL * 2, W_BYTES = NB / PANEL * W_PANEL;
    static constexpr int DY_BYTES = K / PANEL * GATE_PANEL, X_BYTES = NB / PANEL * GATE_PANEL;
    static constexpr int DY_SLOTS = K == 256 ? 2 : 4, PAIR_SLOTS = K == 256 ? 3 : K == 128 ? 4 : 6;
    static constexpr int DY_AT = W_BYTES, PAIRS_AT = DY_AT + DY_SLOTS * DY_BYTES;
    static constexpr int BARRIERS_AT = PAIRS_AT + PAIR_SLOTS * 2 * X_BYTES;
    static constexpr int BYTES = BARRIERS_AT + (2 * DY_SLOTS + 3 * PAIR_SLOTS + 1) * 8;
    static_assert(DY_SLOTS % GATE_GROUPS == 0, "a slot always has the same warpgroup");
    static_assert(BYTES <= 227 * 1024, "shared memory of a block");
};

/* Shared memory and the share of the work of a thread block. Barriers: of dy's slots filled and empty, of those of g
 * and x filled, empty again, results ready to leave; last that of W. */
struct GatePlace {
    uint32_t w, dy, pairs, dy_full, dy_empty, full, empty, done, ready;
    int column0, first, step;
};

template <int K, int NB> __device__ __forceinline__ GatePlace gate_place(const ProductGate &p, uint32_t base)
{
    typedef GateShape<K, NB> S;
    GatePlace at;
    at.w = base, at.dy = base + S::DY_AT, at.pairs = base + S::PAIRS_AT;
    at.dy_full = base + S::BARRIERS_AT, at.dy_empty = at.dy_full + S::DY_SLOTS * 8;
    at.full = at.dy_empty + S::DY_SLOTS * 8, at.empty = at.full + S::PAIR_SLOTS * 8;
    at.done = at.empty + S::PAIR_SLOTS * 8, at.ready = at.done + S::PAIR_SLOTS * 8;
    at.column0 = (int)blockIdx.x % p.blocks * NB; /* neighbours read the same dy */
    at.first = (int)blockIdx.x / p.blocks, at.step = (int)gridDim.x / p.blocks;
    return at;
}

/* One thread, before all are synchronized; four warps of a warpgroup leave a slot. */
template <int K, int NB> __device__ __forceinline__ void gate_barriers(const GatePlace &at)
{
    typedef GateShape<K, NB> S;
    for (int s = 0; s < S::DY_SLOTS; s++) barrier_init(at.dy_full + s * 8, 1), barrier_init(at.dy_empty + s * 8, 4);
    for (int s = 0; s < S::PAIR_SLOTS; s++) {
        barrier_init(at.full + s * 8, 1);
        barrier_init(at.empty + s * 8, 1);
        barrier_init(at.done + s * 8, 4 * WARP_ARRIVALS);
    }
    barrier_init(at.ready, 1);
    barrier_publish();
}

/* One thread: W. */
template <int K, int NB> __device__ __forceinline__ void gate_weights(const ProductGate &p, const GatePlace &at)
{
    typedef GateShape<K, NB> S;
    barrier_expect(at.ready, S::W_BYTES);
    for (int c = 0; c < NB / PANEL; c++) tensor_load(at.w + c * S::W_PANEL, &p.w, 0, at.column0 + c * PANEL, at.ready);
}

/* One thread: tiles of dy as slots become free. */
template <int K, int NB> __device__ __forceinline__ void gate_load_dy(const ProductGate &p, const GatePlace &at)
{
    typedef GateShape<K, NB> S;
    for (int i = 0, tile = at.first; tile < p.tiles; i++, tile += at.step) {
        int slot = i % S::DY_SLOTS, round = i / S::DY_SLOTS;
        uint32_t full = at.dy_full + slot * 8, to = at.dy + slot * S::DY_BYTES;
        if (round > 0) barrier_wait(at.dy_empty + slot * 8, (round - 1) & 1);
        barrier_expect(full, S::DY_BYTES);
        for (int k = 0; k < K / PANEL; k++) tensor_load(to + k * GATE_PANEL, &p.dy, tile * GATE_ROWS, k * PANEL, full);
    }
}

/* Another: tiles of g and x. */
template <int K, int NB> __device__ __forceinline__ void gate_load_pairs(const ProductGate &p, const GatePlace &at)
{
    typedef GateShape<K, NB> S;
    for (int i = 0, tile = at.first; tile < p.tiles; i++, tile += at.step) {
        int slot = i % S::PAIR_SLOTS, round = i / S::PAIR_SLOTS, row = tile * GATE_ROWS;
        uint32_t full = at.full + slot * 8, to = at.pairs + slot * 2 * S::X_BYTES;
        if (round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_expect(full, 2 * S::X_BYTES);
        for (int c = 0; c < NB / PANEL; c++) {
            tensor_load(to + c * GATE_PANEL, &p.g, row, at.column0 + c * PANEL, full);
            tensor_load(to + S::X_BYTES + c * GATE_PANEL, &p.x, row, at.column0 + c * PANEL, full);
        }
    }
}

/* Another: finished tiles go out in their order, then their slots are free. */
template <int K, int NB> __device__ __forceinline__ void gate_store(const ProductGate &p, const GatePlace &at)
{
    typedef GateShape<K, NB> S;
    for (int i = 0, tile = at.first; tile < p.tiles; i++, tile += at.step) {
        int slot = i % S::PAIR_SLOTS, round = i / S::PAIR_SLOTS, row = tile * GATE_ROWS;
        uint32_t from = at.pairs + slot * 2 * S::X_BYTES;
        barrier_wait(at.done + slot * 8, round & 1);
        for (int c = 0; c < NB / PANEL; c++) {
            tensor_store(&p.dg, from + c * GATE_PANEL, row, at.column0 + c * PANEL);
            tensor_store(&p.dx, from + S::X_BYTES + c * GATE_PANEL, row, at.column0 + c * PANEL);
        }
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(at.empty + slot * 8);
    }
    tensor_store_wait();
}

/* Products of two rows and the columns of a head, summed over a lane's own -> over the four lanes of the rows: lane l
 * has those of row l % 2, all heads of one, else half of them by l / 2 % 2. */
template <int HEADS>
__device__ __forceinline__ void gate_sum_heads(const float (&own)[2][HEADS], float (&sum)[(HEADS + 1) / 2])
{
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    float row[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        row[h] = (odd ? own[1][h] : own[0][h]) + __shfl_xor_sync(0xffffffffu, odd ? own[0][h] : own[1][h], 1);
    if constexpr (HEADS == 1) {
        sum[0] = row[0] + __shfl_xor_sync(0xffffffffu, row[0], 2);
    } else {
#pragma unroll
        for (int h = 0; h < HEADS / 2; h++) {
            float kept = upper ? row[HEADS / 2 + h] : row[h], other = upper ? row[h] : row[HEADS / 2 + h];
            sum[h] = kept + __shfl_xor_sync(0xffffffffu, other, 2);
        }
    }
}

/* The sums of 32 columns, from `column` on, of this warp's rows from `row0` on */
template <int WIDTH>
__device__ __forceinline__ void gate_store_sums(const ProductGate &p, const float (&own)[2][32 / WIDTH], int row0,
                                                int column)
{
    constexpr int HEADS = 32 / WIDTH, EACH = (HEADS + 1) / 2;
    float sum[EACH];
    gate_sum_heads<HEADS>(own, sum);
    int lane = threadIdx.x % WARP, row = row0 + lane / 4 + lane % 2 * 8, upper = lane / 2 % 2;
    if (row >= p.rows || (HEADS == 1 && upper)) return;
    float *to = p.delta + (int64_t)row * p.heads + column / WIDTH + upper * EACH;
#pragma unroll
    for (int h = 0; h < EACH; h++) to[h] = sum[h];
}

/* d in the layout of a warpgroup's accumulators; g and x as tensor copies leave them: a thread has columns 8 j +
 * 2 (lane % 4) and the next of two rows, and neighbours in a row keep their 16-byte chunk: no bank conflicts. */
template <int NB, int WIDTH>
__device__ __forceinline__ void gate_edge(const ProductGate &p, const float (&d)[NB / 2], uint32_t g, uint32_t x,
                                          int row0, int column0)
{
    constexpr int HEADS = WIDTH ? 32 / WIDTH : 1;
    int thread = threadIdx.x % 128, lane = thread % WARP;
    uint32_t base = (thread / WARP * 16 + lane / 4) * 128 + lane % 4 * 4;
#pragma unroll
    for (int q = 0; q < NB / 32; q++) {
        uint32_t at[8], gates[8], values[8];
        float own[2][HEADS] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) { /* all loads before the first use */
            int j = q * 4 + k / 2;
            at[k] = base + j / 8 * GATE_PANEL + ((j % 8 ^ lane / 4) << 4) + k % 2 * 1024;
            gates[k] = shared_word(g + at[k]), values[k] = shared_word(x + at[k]);
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float *e = d + (q * 4 + k / 2) * 4 + k % 2 * 2;
            float2 u = unpack_bf16(gates[k]), v = unpack_bf16(values[k]);
            float s = sigmoid_short(u.x), t = sigmoid_short(u.y), a = s * e[0], b = t * e[1];
            uint32_t result = pack_bf16(a, b);
            shared_word_put(x + at[k], result);
            shared_word_put(g + at[k], pack_bf16(a * v.x * (1.0f - s), b * v.y * (1.0f - t)));
            if (WIDTH == 0) continue;
            float2 rounded = unpack_bf16(result);
            float &sum = own[k % 2][k / 2 * HEADS / 4];
            sum = fmaf(rounded.x, v.x, fmaf(rounded.y, v.y, sum));
        }
        if constexpr (WIDTH > 0) gate_store_sums<WIDTH>(p, own, row0 + thread / WARP * 16, column0 + q * 32);
    }
}

/* The dropout of a tile of dy, and its way out; a barrier of the warpgroup, which multiplies it next. */
template <int K>
__device__ __forceinline__ void gate_drop(const ProductGate &p, const FlowKept (&kept)[K / 128], uint32_t dy, int row0,
                                          bool stores)
{
    int thread = threadIdx.x % 128, lane = thread % WARP;
    uint32_t base = dy + (thread / WARP * 16 + lane / 4) * 128 + lane % 4 * 4;
#pragma unroll
    for (int q = 0; q < K / 32; q++) {
        uint32_t at[8], values[8];
#pragma unroll
        for (int k = 0; k < 8; k++) { /* all loads before the first use */
            int j = q * 4 + k / 2;
            at[k] = base + j / 8 * GATE_PANEL + ((j % 8 ^ lane / 4) << 4) + k % 2 * 1024;
            values[k] = shared_word(at[k]);
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const uint32_t *row = kept[q / 4].row[k % 2];
            int bit = 2 * ((q * 4 + k / 2) % 16);
            float2 v = unpack_bf16(values[k]);
            v.x *= row[0] >> bit & 1 ? p.mask.drop.keep_scale : 0.0f;
            v.y *= row[1] >> bit & 1 ? p.mask.drop.keep_scale : 0.0f;
            shared_word_put(at[k], pack_bf16(v.x, v.y));
        }
    }
    async_fence();
    asm volatile("bar.sync %0, 128;" ::"r"((int)threadIdx.x / 128 + 1) : "memory");
    if (thread > 0 || !stores) return;
    for (int k = 0; k < K / PANEL; k++) tensor_store(&p.dropped, dy + k * GATE_PANEL, row0, k * PANEL);
    tensor_store_commit();
}

/* A warpgroup: every second tile. */
template <int K, int NB, int WIDTH, bool DROPS>
__device__ __forceinline__ void gate_work(const ProductGate &p, const GatePlace &at)
{
    typedef GateShape<K, NB> S;
    int group = threadIdx.x / 128, tile = at.first + group * at.step;
    uint64_t w = across_descriptor(at.w, S::W_PANEL);
    DropoutDraw draw = DROPS ? p.mask.drop.draw() : DropoutDraw{};
    FlowKept kept[DROPS ? K / 128 : 1];
    barrier_wait(at.ready, 0);
    for (int i = group; tile < p.tiles; i += GATE_GROUPS, tile += GATE_GROUPS * at.step) {
        int slot = i % S::DY_SLOTS, pair = i % S::PAIR_SLOTS, round = i / S::PAIR_SLOTS;
        uint32_t g = at.pairs + pair * 2 * S::X_BYTES;
        uint64_t dy = wgmma_descriptor(at.dy + slot * S::DY_BYTES);
        float d[NB / 2];
        if constexpr (DROPS)
#pragma unroll
            for (int c = 0; c < K / 128; c++)
                flow_draw(p.mask, draw, tile * GATE_ROWS + threadIdx.x % 128 / WARP * 16, c * 128, &kept[c]);
        barrier_wait(at.dy_full + slot * 8, i / S::DY_SLOTS & 1);
        if constexpr (DROPS) gate_drop<K>(p, kept, at.dy + slot * S::DY_BYTES, tile * GATE_ROWS, at.column0 == 0);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < K / 16; k++)
            GroupProduct<NB, false, true>::step(d, dy + k / 4 * (GATE_PANEL >> 4) + k % 4 * 2, w + k * (2048 >> 4),
                                                k > 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(d);
        if (DROPS && threadIdx.x % 128 == 0) tensor_store_wait_read();
        if (threadIdx.x % WARP == 0) barrier_arrive(at.dy_empty + slot * 8);
        /* an odd number of slots: the tile before in this one is the other warpgroup's, perhaps still at work; once
         * that is done, `full` tells of this tile */
        if (S::PAIR_SLOTS % GATE_GROUPS && round > 0) barrier_wait(at.done + pair * 8, (round - 1) & 1);
        barrier_wait(at.full + pair * 8, round & 1);
        gate_edge<NB, WIDTH>(p, d, g, g + S::X_BYTES, tile * GATE_ROWS, at.column0);
        barrier_arrive_warp(at.done + pair * 8);
    }
    if (DROPS && threadIdx.x % 128 == 0) tensor_store_wait();
}

template <int K, int NB, int WIDTH, bool DROPS>
__global__ void __launch_bounds__(GATE_THREADS, 1) product_gate_kernel(const __grid_constant__ ProductGate p)
{
    extern __shared__ __align__(1024) char shared[];
    GatePlace at = gate_place<K, NB>(p, shared_address(shared));
    if (threadIdx.x == 0) {
        gate_barriers<K, NB>(at);
        if (p.early) gate_weights<K, NB>(p, at);
    }
    stage_wait();
    stage_release();
    if (threadIdx.x == 0 && !p.early) gate_weights<K, NB>(p, at);
    __syncthreads();
    if (threadIdx.x < GATE_GROUPS * 128) {
        gate_work<K, NB, WIDTH, DROPS>(p, at);
        return;
    }
    int warp = threadIdx.x / WARP % 4;
    if (threadIdx.x % WARP > 0) return;
    if (warp == 0) gate_load_dy<K, NB>(p, at);
    if (warp == 1) gate_load_pairs<K, NB>(p, at);
    if (warp == 2) gate_store<K, NB>(p, at);
}

/* --- host */

/* dy, dropped[rows, inner] W[inner, columns]; g, x, dg, dx [rows, columns]; delta[rows, heads] */
struct GateOperands {
    const void *dy, *w, *g, *x;
    void *dg, *dx;
    float *delta; /* NULL without heads */
    Dropout drop;
    void *dropped; /* NULL without dropout */
    int64_t rows, inner, columns;
    int heads;
    bool early; /* w is steady (OpCall) */
};

static inline bool gate_fits(const GateOperands &o)
{
    bool fits = o.inner == 64 ? o.columns == 64 : (o.inner == 128 || o.inner == 256) && o.columns % 128 == 0;
    fits = fits && o.columns <= 1024 && o.rows >= 1024 && o.rows <= INT32_MAX - GATE_ROWS;
    fits = fits && aligned16(o.dy) && aligned16(o.w) && aligned16(o.g) && aligned16(o.x);
    return fits && aligned16(o.dg) && aligned16(o.dx);
}

/* Whether the kernel leaves delta too, of heads of 32 channels or, with few columns, less. */
static inline bool gate_sums(const GateOperands &o)
{
    int64_t width = o.heads ? o.columns / o.heads : 0;
    return o.inner == 64 ? width == 16 || width == 8 : width == 32;
}

/* Whether it takes the dropout. */
static inline bool gate_drops(const GateOperands &o)
{
    bool fits = o.inner >= 128 && gate_sums(o) && o.drop.inner == (uint32_t)o.inner && aligned16(o.dropped);
    return fits && o.rows * o.inner < INT64_C(0xffff0000);
}

template <int K, int NB, int WIDTH, bool DROPS = false>
static Status gate_launch_shape(const GateOperands &o, cudaStream_t stream)
{
    enum { PROCESSORS = 132 };
    constexpr int BYTES = GateShape<K, NB>::BYTES;
    ProductGate p = {};
    p.early = o.early;
    p.tiles = (int)((o.rows + GATE_ROWS - 1) / GATE_ROWS), p.blocks = (int)(o.columns / NB);
    p.rows = (int)o.rows, p.heads = o.heads, p.delta = o.delta;
    int share = PROCESSORS / p.blocks < p.tiles ? PROCESSORS / p.blocks : p.tiles;
    TRY(tensor_map(o.dy, o.rows, K, GATE_ROWS, &p.dy));
    TRY(tensor_map(o.w, K, o.columns, K, &p.w));
    TRY(tensor_map(o.g, o.rows, o.columns, GATE_ROWS, &p.g));
    TRY(tensor_map(o.x, o.rows, o.columns, GATE_ROWS, &p.x));
    TRY(tensor_map(o.dg, o.rows, o.columns, GATE_ROWS, &p.dg));
    TRY(tensor_map(o.dx, o.rows, o.columns, GATE_ROWS, &p.dx));
    p.mask = flow_mask(o.drop);
    if (DROPS) TRY(tensor_map(o.dropped, o.rows, K, GATE_ROWS, &p.dropped));
    auto kernel = product_gate_kernel<K, NB, WIDTH, DROPS>;
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(kernel, share * p.blocks, GATE_THREADS, BYTES, stream, p);
    return cuda_launched("product_gate_kernel");
}

static inline Status gate_launch(const GateOperands &o, cudaStream_t stream)
{
    int64_t width = gate_sums(o) ? o.columns / o.heads : 0;
    if (o.inner == 64)
        return width == 16  ? gate_launch_shape<64, 64, 16>(o, stream)
               : width == 8 ? gate_launch_shape<64, 64, 8>(o, stream)
                            : gate_launch_shape<64, 64, 0>(o, stream);
    if (o.dropped)
        return o.inner == 128 ? gate_launch_shape<128, 128, 32, true>(o, stream)
                              : gate_launch_shape<256, 128, 32, true>(o, stream);
    if (o.inner == 128)
        return width ? gate_launch_shape<128, 128, 32>(o, stream) : gate_launch_shape<128, 128, 0>(o, stream);
    return width ? gate_launch_shape<256, 128, 32>(o, stream) : gate_launch_shape<256, 128, 0>(o, stream);
}

#endif
