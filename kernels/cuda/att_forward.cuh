/* Fused attention in bf16, forward, on warpgroup products: Dao et al. 2022; Shah et al. 2024 for the overlap of
 * exponentials with products. The gate sigmoid(g) o in the epilogue.
 *
 * A block owns 64 queries per warpgroup of one head and goes through rows of the group. Queries, keys, values and mask
 * of the next rows are on their way while one is computed; the bias of the block's queries stays in shared memory, in
 * the order of the accumulators. Keys come in pieces of 64: scores of the next piece (of the next row after the last)
 * are on the tensor cores while the exponentials of this one are computed; sums of probabilities come from the tensor
 * cores as well (a column of ones beside the values).
 *
 * Probabilities are relative to the maximum of the first piece, so that no sum has to be rescaled. That is as exact as
 * any other reference point unless later scores exceed it by 2^64: then the sum tells, and the row is computed again
 * relative to the maximum of all its scores. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_CUH

#include "kernels/cuda/att_mma.cuh"
#include "kernels/cuda/att_products.cuh"

#define FORWARD_LARGE 1.8446744073709552e19f /* 2^64 */

enum { PIECE_ELEMENTS = 64 * 64, FLAG_ANY = 1, FLAG_PLAIN = 2 };

/* --- mask and bias, made ready by one small kernel:
 * add[R][padded + 4]: inf (mask - 1) / scale, ATT_PAD for keys that do not exist; then flags as a float: FLAG_ANY: some
 * key is not masked (else the softmax is uniform: inf = 1e9 swallows the scores in f32), FLAG_PLAIN: all are zero;
 * bias[G][H][tiles][pieces]: 64 queries x 64 keys in the order of the accumulators of a warpgroup. */
struct ForwardPlan {
    int tiles, pieces, padded; /* tiles of 64 queries, pieces of 64 keys (even), 64 x pieces */
    int64_t mask_rows;
    size_t bias_at, bytes;
};
struct ForwardPrepared {
    float *add;
    bf16 *bias;
};

/* warpgroups of a block */
static __host__ __device__ constexpr int forward_groups(int pieces)
{
    return pieces == 4 ? 4 : 2;
}

struct ForwardProblem {
    Att a;
    AttOperands<bf16> x;
    ForwardPrepared prepared;
    int tiles, rows_per_block;
};

/* Offsets in shared memory. A stage: queries, keys, values; the masks and barriers of all stages lie at the end. */
template <int D_, bool BIAS_, int PIECES_> struct ForwardLayout {
    static constexpr int D = D_, PIECES = PIECES_;
    static constexpr bool BIAS = BIAS_;
    static constexpr int GROUPS = forward_groups(PIECES), BLOCKS = PIECES == 2 ? 2 : 1;
    static constexpr int BOX = PIECES > 4 ? PIECES * 32 : PIECES * 64; /* keys that arrive at once, at most 256 */
    static constexpr uint32_t TILE = PIECES * 64 * D * 2, KEYS = GROUPS * 64 * D * 2, VALUES = KEYS + TILE;
    static constexpr uint32_t STAGE = VALUES + TILE, STAGES_AT = BIAS ? GROUPS * PIECES * PIECE_ELEMENTS * 2 : 0;
    static constexpr uint32_t ADD = (PIECES * 64 + 4) * 4;
    static constexpr uint32_t ROOM = (227 / BLOCKS) * 1024 - STAGES_AT - (D == 8 ? 1024 : 0) - 128,
                              MOST = ROOM / (STAGE + ADD);
    static constexpr int STAGES = MOST > 4 ? 4 : MOST;
    static_assert(STAGES >= 2, "the next row arrives while this one is computed");
    static constexpr uint32_t ZERO_AT = STAGES_AT + STAGES * STAGE, ADD_AT = ZERO_AT + (D == 8 ? 1024 : 0);
    static constexpr uint32_t BARRIERS_AT = ADD_AT + STAGES * ADD, READY_AT = BARRIERS_AT + STAGES * 16;
    static constexpr uint32_t BYTES = READY_AT + 8;
};

struct ForwardMaps {
    CUtensorMap q, k, v;
};

struct ForwardPlace {
    int head, group, tile0, first, last; /* tile0: of 64 queries; rows [first, last) */
};

/* One thread asks for row `row` of the block's. */
template <typename L>
__device__ __forceinline__ void forward_load(const ForwardProblem &p, const ForwardPlace &w, const ForwardMaps &maps,
                                             uint32_t base, int row)
{
    constexpr int D = L::D;
    int id = row - w.first, stage = id % L::STAGES, round = id / L::STAGES;
    uint32_t at = base + L::STAGES_AT + stage * L::STAGE, full = base + L::BARRIERS_AT + stage * 8;
    if (round > 0) barrier_wait(full + L::STAGES * 8, (round - 1) & 1);
    barrier_expect(full, L::STAGE + L::ADD);
    tensor_load_box(at, &maps.q, w.head * D, w.tile0 * 64, row, w.group, full);
#pragma unroll
    for (int key = 0; key < L::PIECES * 64; key += L::BOX) {
        tensor_load_box(at + L::KEYS + key * D * 2, &maps.k, w.head * D, key, row, w.group, full);
        tensor_load_box(at + L::VALUES + key * D * 2, &maps.v, w.head * D, key, row, w.group, full);
    }
    bulk_load(base + L::ADD_AT + stage * L::ADD,
              p.prepared.add + (int64_t)att_mask_index(p.a, w.group, row) * (L::PIECES * 64 + 4), L::ADD, full);
}

template <typename L>
__device__ __forceinline__ void forward_start(const ForwardProblem &p, const ForwardPlace &w, const ForwardMaps &maps,
                                              uint32_t base)
{
    if (L::BIAS) {
        uint32_t bytes = L::STAGES_AT, ready = base + L::READY_AT;
        int64_t tile = ((int64_t)w.group * p.a.h + w.head) * p.tiles + w.tile0;
        barrier_expect(ready, bytes);
        bulk_load(base, p.prepared.bias + tile * L::PIECES * PIECE_ELEMENTS, bytes, ready);
    }
    for (int row = w.first; row < min(w.first + L::STAGES - 1, w.last); row++) forward_load<L>(p, w, maps, base, row);
}

/* What a warp knows of a row. */
struct ForwardRow {
    uint32_t tile, add; /* queries of the stage; mask, at this lane's first column */
    float unit;         /* scores to powers of two; 0 where all keys are masked */
    bool plain;
};

template <int D> struct ForwardState {
    float o[D / 2], sum[4], peak[2];
};

__device__ __forceinline__ void load_shared(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_shared(float (&r)[2], uint32_t address)
{
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(r[0]), "=f"(r[1]) : "r"(address) : "memory");
}

/* s + bias / scale + mask, in units of 1 / scale */
template <bool BIAS>
__device__ __forceinline__ void forward_scores(float (&t)[32], const float (&s)[32], uint32_t bias, uint32_t add,
                                               bool plain, float inverse)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t word[4] = {};
        if (BIAS) load_shared(word, bias + i * 512);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float2 x = unpack_bf16(word[k]);
            int at = 8 * i + 2 * k;
            t[at] = BIAS ? fmaf(x.x, inverse, s[at]) : s[at];
            t[at + 1] = BIAS ? fmaf(x.y, inverse, s[at + 1]) : s[at + 1];
        }
    }
    if (plain) return;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float m[2];
        load_shared(m, add + j * 32);
        t[4 * j] += m[0], t[4 * j + 1] += m[1], t[4 * j + 2] += m[0], t[4 * j + 3] += m[1];
    }
}

template <int D> __device__ __forceinline__ void forward_peak(ForwardState<D> &x, const float (&t)[32])
{
    float low = fmaxf(t[0], t[1]), high = fmaxf(t[2], t[3]);
#pragma unroll
    for (int j = 1; j < 8; j++) {
        low = fmaxf(low, fmaxf(t[4 * j], t[4 * j + 1]));
        high = fmaxf(high, fmaxf(t[4 * j + 2], t[4 * j + 3]));
    }
    x.peak[0] = lanes_max<4>(low), x.peak[1] = lanes_max<4>(high);
}

/* Scores -> exponents of two */
template <int D> __device__ __forceinline__ void forward_exponents(const ForwardState<D> &x, float (&t)[32], float unit)
{
    float shift[2] = {-x.peak[0] * unit, -x.peak[1] * unit};
#pragma unroll
    for (int k = 0; k < 32; k++) t[k] = fmaf(t[k], unit, shift[k >> 1 & 1]);
}

/* Probabilities as A fragments, their sums, and their products with the values of a piece. */
template <int D>
__device__ __forceinline__ void forward_values(ForwardState<D> &x, uint32_t (&p)[16], const float (&t)[32],
                                               uint64_t values, int add)
{
    constexpr uint32_t ONES = 0x3f803f80u;
#pragma unroll
    for (int k = 0; k < 16; k++) p[k] = pack_bf16(exp2_fast(t[2 * k]), exp2_fast(t[2 * k + 1]));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_values<D>(x.o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3], values + k * (16 * D * 2 >> 4),
                        k > 0 || add);
    wgmma_commit();
    if (!add) x.sum[0] = x.sum[1] = x.sum[2] = x.sum[3] = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t a[4] = {p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3]};
        mma16816(x.sum, a, ONES, ONES);
    }
}

/* sigmoid of two values with one reciprocal; 2^60 bounds the product of the denominators */
__device__ __forceinline__ float2 sigmoid_pair(float2 g)
{
    float a, b, r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(-g.x * ATT_LOG2E), "f"(60.0f));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(b) : "f"(-g.y * ATT_LOG2E), "f"(60.0f));
    a = 1.0f + exp2_fast(a), b = 1.0f + exp2_fast(b);
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a * b));
    return make_float2(r * b, r * a);
}
__device__ __forceinline__ uint32_t gate_pair(uint32_t gate, uint32_t x)
{
    float2 g = sigmoid_pair(unpack_bf16(gate)), v = unpack_bf16(x);
    return pack_bf16(g.x * v.x, g.y * v.y);
}

/* The 16 rows of a warp through the place of its queries, which nobody reads any more, out in 16-byte pieces. */
template <int D>
__device__ __forceinline__ void forward_store(const ForwardProblem &p, const ForwardState<D> &x, float sum_low,
                                              float sum_high, uint32_t tile, int64_t block, int query0)
{
    constexpr int CHUNKS = D / 8;
    int lane = threadIdx.x % WARP, row0 = threadIdx.x / WARP % 4 * 16;
    float low = 1.0f / sum_low, high = 1.0f / sum_high;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        uint32_t a = pack_bf16(x.o[4 * j] * low, x.o[4 * j + 1] * low);
        uint32_t b = pack_bf16(x.o[4 * j + 2] * high, x.o[4 * j + 3] * high);
        uint32_t at = lane % 4 * 4;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(tile + att_place<D>(row0 + lane / 4, j) + at), "r"(a) : "memory");
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(tile + att_place<D>(row0 + lane / 4 + 8, j) + at), "r"(b)
                     : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < (16 * CHUNKS + WARP - 1) / WARP; k++) {
        int id = k * WARP + lane, row = id / CHUNKS, chunk = id % CHUNKS;
        if (id >= 16 * CHUNKS || query0 + row >= p.a.n) continue;
        int64_t to = block + (query0 + row) * p.a.pitch + chunk * 8;
        uint32_t v[4];
        load_shared(v, tile + att_place<D>(row0 + row, chunk));
        if (p.x.o) *reinterpret_cast<uint4 *>(p.x.o + to) = make_uint4(v[0], v[1], v[2], v[3]);
        if (!p.x.gate) continue;
        uint4 g = *reinterpret_cast<const uint4 *>(p.x.gate + to);
        *reinterpret_cast<uint4 *>(p.x.y + to) =
            make_uint4(gate_pair(g.x, v[0]), gate_pair(g.y, v[1]), gate_pair(g.z, v[2]), gate_pair(g.w, v[3]));
    }
}

/* A vote of the warpgroup, and a barrier: its queries are not read any more. */
__device__ __forceinline__ bool forward_vote(int warpgroup, bool mine)
{
    int any;
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\nbarrier.cta.red.or.pred q, %2, 128, p;\n"
                 "selp.b32 %0, 1, 0, q;\n}"
                 : "=r"(any)
                 : "r"((int)mine), "r"(warpgroup + 1)
                 : "memory");
    return any;
}

template <typename L> struct ForwardWarp {
    static constexpr int D = L::D, PIECES = L::PIECES;
    const ForwardProblem &p;
    const ForwardPlace &w;
    uint32_t base;
    int warpgroup, query0;
    uint32_t bias; /* this lane's first elements */
    float inverse;

    __device__ __forceinline__ uint32_t tile(int stage) const { return base + L::STAGES_AT + stage * L::STAGE; }
    __device__ __forceinline__ ForwardRow row(int stage) const
    {
        uint32_t add = base + L::ADD_AT + stage * L::ADD;
        float flag[2];
        load_shared(flag, add + PIECES * 256);
        int flags = (int)flag[0];
        return {tile(stage), add + threadIdx.x % 4 * 8, flags & FLAG_ANY ? p.a.scale * ATT_LOG2E : 0.0f,
                (flags & FLAG_PLAIN) != 0};
    }
    __device__ __forceinline__ uint32_t queries(uint32_t tile) const { return tile + warpgroup * 64 * D * 2; }
    /* queries times keys of a piece; D = 8: the second half of the inner extent is zero in the queries, anything finite
     * in the keys */
    __device__ __forceinline__ void multiply(float (&s)[32], uint32_t tile, int piece) const
    {
        uint32_t q = queries(tile), k = tile + L::KEYS + piece * 64 * D * 2;
        uint64_t from_q = att_tile<D>(q, D == 8 ? base + L::ZERO_AT - q : 16);
        uint64_t from_k = att_tile<D>(k, D == 8 ? 0 : 16);
        wgmma_fence();
        wgmma_scores(s, from_q, from_k);
        if constexpr (D == 32) wgmma_step<64>(s, from_q + 2, from_k + 2, 1);
        wgmma_commit();
    }
    __device__ __forceinline__ void finish(float (&t)[32], const float (&s)[32], const ForwardRow &r, int piece) const
    {
        forward_scores<L::BIAS>(t, s, bias + piece * 8192, r.add + piece * 256, r.plain, inverse);
    }
    __device__ __forceinline__ uint64_t values(const ForwardRow &r, int piece) const
    {
        return att_tile<D>(r.tile + L::VALUES + piece * 64 * D * 2, 128);
    }

    /* The row again with the maximum of all its scores. */
    __device__ __forceinline__ void again(ForwardState<D> &x, const ForwardRow &r) const
    {
        float s[32], t[32];
        uint32_t probability[16];
        ForwardState<D> y;
        float peak[2] = {ATT_PAD, ATT_PAD};
        for (int piece = 0; piece < 2 * L::PIECES; piece++) {
            int at = piece % L::PIECES;
            multiply(s, r.tile, at);
            wgmma_wait<0>();
            finish(t, s, r, at);
            if (piece < L::PIECES) {
                forward_peak<D>(y, t);
                peak[0] = fmaxf(peak[0], y.peak[0]), peak[1] = fmaxf(peak[1], y.peak[1]);
            } else {
                y.peak[0] = peak[0], y.peak[1] = peak[1];
                forward_exponents<D>(y, t, r.unit);
                forward_values<D>(y, probability, t, values(r, at), at > 0);
                wgmma_wait<0>();
            }
        }
        x = y;
    }

    __device__ __forceinline__ void store(const ForwardState<D> &x, const ForwardRow &r, int row) const
    {
        const Att &a = p.a;
        int lane = threadIdx.x % WARP;
        bool any = r.unit != 0.0f;
        float low = any ? x.sum[0] : (float)a.m, high = any ? x.sum[2] : (float)a.m; /* without the padding */
        forward_store<D>(p, x, low, high, queries(r.tile), a.q_block(w.group, row, w.head), query0);
        if (!p.x.lse || lane % 4 != 0) return;
        float *lse = p.x.lse + (((int64_t)w.group * a.b + row) * a.h + w.head) * a.n;
        int at = query0 + lane / 4;
        if (at < a.n) lse[at] = any ? (x.peak[0] * r.unit + log2f(low)) * ATT_LN2 : -a.inf;
        if (at + 8 < a.n) lse[at + 8] = any ? (x.peak[1] * r.unit + log2f(high)) * ATT_LN2 : -a.inf;
    }
};

template <typename L> __device__ __forceinline__ void forward_rows(const ForwardWarp<L> &f, const ForwardMaps &maps)
{
    const ForwardProblem &p = f.p;
    const ForwardPlace &w = f.w;
    constexpr int D = L::D;
    uint32_t full = f.base + L::BARRIERS_AT, empty = full + L::STAGES * 8;
    float s0[32], s1[32], t[32];
    uint32_t probability[16];
    ForwardState<D> x;
    int stage = 0, parity = 0;
    if (L::BIAS) barrier_wait(f.base + L::READY_AT, 0);
    barrier_wait(full, 0);
    f.multiply(s0, f.tile(0), 0);
    wgmma_wait<0>();
    for (int row = w.first; row < w.last; row++) {
        ForwardRow r = f.row(stage);
        int from = stage;
#pragma unroll 1
        for (int pair = 0; pair < L::PIECES; pair += 2) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float(&now)[32] = half ? s1 : s0, (&then)[32] = half ? s0 : s1;
                int piece = pair + half;
                bool last = half == 1 && piece + 1 == L::PIECES;
                if (last && row + 1 < w.last) {
                    if (++stage == L::STAGES) stage = 0, parity ^= 1;
                    barrier_wait(full + stage * 8, parity);
                }
                wgmma_wait<1>(); /* these scores; not the values of the piece before */
                f.multiply(then, f.tile(stage), last ? 0 : piece + 1); /* after the last row once in vain */
                f.finish(t, now, r, piece);
                if (piece == 0) forward_peak<D>(x, t);
                forward_exponents<D>(x, t, r.unit);
                wgmma_wait<1>();
                forward_values<D>(x, probability, t, f.values(r, piece), piece > 0);
                if (piece == 0 && threadIdx.x == 0 && row + L::STAGES - 1 < w.last)
                    forward_load<L>(p, w, maps, f.base, row + L::STAGES - 1);
                __syncwarp();
            }
            wgmma_wait<0>(); /* nothing under way where the loop turns, or the compiler lets nothing overlap */
        }
        bool over = !(x.sum[0] < FORWARD_LARGE && x.sum[2] < FORWARD_LARGE);
        if (forward_vote(f.warpgroup, over)) {
            f.again(x, r);
            forward_vote(f.warpgroup, false);
        }
        f.store(x, r, row);
        async_fence(); /* the next queries arrive where results went */
        __syncwarp();
        if (threadIdx.x % WARP == 0) barrier_arrive(empty + from * 8);
    }
}

/* grid: query tiles of 64 L::GROUPS, heads of groups, row chunks */
template <typename L>
__global__ void __launch_bounds__(L::GROUPS * 128, L::BLOCKS)
    att_forward_tc_kernel(const __grid_constant__ ForwardProblem p, const __grid_constant__ ForwardMaps maps)
{
    stage_wait();
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    int warp = __shfl_sync(0xffffffffu, threadIdx.x / WARP, 0);
    ForwardPlace w;
    w.head = blockIdx.y % p.a.h, w.group = blockIdx.y / p.a.h;
    w.tile0 = blockIdx.x * L::GROUPS;
    w.first = blockIdx.z * p.rows_per_block, w.last = min(w.first + p.rows_per_block, p.a.b);
    if (threadIdx.x == 0) {
        uint32_t full = base + L::BARRIERS_AT, empty = full + L::STAGES * 8;
        for (int s = 0; s < L::STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, L::GROUPS * 4);
        }
        barrier_init(empty + L::STAGES * 8, 1);
        barrier_publish();
    }
    if (L::D == 8) {
        for (int k = threadIdx.x; k < 256; k += L::GROUPS * 128)
            reinterpret_cast<float *>(shared + L::ZERO_AT)[k] = 0.0f;
        async_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) forward_start<L>(p, w, maps, base);
    __syncwarp();
    uint32_t bias = base + (warp / 4 * L::PIECES * 4 + warp % 4) * 2048 + threadIdx.x % WARP * 16;
    ForwardWarp<L> f = {p, w, base, warp / 4, w.tile0 * 64 + warp * 16, bias, 1.0f / p.a.scale};
    forward_rows<L>(f, maps);
}

#endif
