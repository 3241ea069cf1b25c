/* Fused attention in bf16, forward, on warpgroup products: Dao et al. 2022; Shah et al. 2024 for the overlap of
 * exponentials with products. The gate sigmoid(g) o in the epilogue.
 *
 * A block owns 64 queries per warpgroup of one head and goes through rows of the group. One more warp asks for queries,
 * keys, values, gate and mask of the next rows while one is computed; the bias of the block's queries stays in
 * registers, in the order of the accumulators. Keys come in pieces of 64: scores of the next piece (of the next row
 * after the last) are on the tensor cores while the exponentials of this one are computed. Results are left where
 * queries and gate arrived; a warp per warpgroup sends them from there, y perhaps to other ranks.
 *
 * Probabilities are relative to no maximum: bf16 and f32 have the same range of exponents, and the sum tells whether a
 * row left it (2^-64 .. 2^64). Such a row is computed again relative to the maximum of its scores. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_CUH

#include "kernels/cuda/att_forward_load.cuh"
#include "kernels/cuda/att_products.cuh"
#include "kernels/cuda/att_wgmma.cuh"

#define FORWARD_LARGE 1.8446744073709552e19f /* 2^64 */
#define FORWARD_SMALL 5.421010862427522e-20f

__device__ __forceinline__ float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* volatile, or the compiler moves it into the branch of the lanes that store it */
__device__ __forceinline__ float log2_fast(float x)
{
    float y;
    asm volatile("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* What a warp knows of a row. */
struct ForwardRow {
    uint32_t tile, add; /* queries of the stage; mask, at this lane's first column */
    float any;          /* 0 where all keys are masked */
    bool plain;
};

/* shift: what probabilities are relative to, a power of two */
template <int D> struct ForwardState {
    float o[D / 2], sum[2], shift[2];
};

/* The bias of a warp's queries: times log2(e), or as it was read where that takes too many registers. */
template <typename L> struct ForwardBias {
    static constexpr int READ = L::BIAS ? L::PIECES - L::READY : 0, READY = L::BIAS ? L::READY : 0;
    float ready[READY ? READY : 1][32];
    uint32_t read[READ ? READ : 1][16];

    __device__ __forceinline__ void load(const bf16 *from) /* this lane's first elements */
    {
#pragma unroll
        for (int piece = 0; piece < READY + READ; piece++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint4 x = *reinterpret_cast<const uint4 *>(from + piece * PIECE_ELEMENTS + i * 256);
                uint32_t word[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    if (piece >= READY) {
                        read[piece - READY][4 * i + k] = word[k];
                        continue;
                    }
                    float2 y = unpack_bf16(word[k]);
                    ready[piece][8 * i + 2 * k] = y.x * ATT_LOG2E, ready[piece][8 * i + 2 * k + 1] = y.y * ATT_LOG2E;
                }
            }
    }
    /* scores of a piece -> exponents of two */
    __device__ __forceinline__ void add(float (&s)[32], int piece, float unit) const
    {
#pragma unroll
        for (int k = 0; k < 32; k++) {
            if (piece < READY) {
                s[k] = fmaf(s[k], unit, ready[piece][k]);
                continue;
            }
            s[k] *= unit;
            if (READ == 0) continue;
            float2 x = unpack_bf16(read[piece - READY][k / 2]);
            s[k] = fmaf(k & 1 ? x.y : x.x, ATT_LOG2E, s[k]);
        }
    }
};

/* The same for a piece whose bias is read now. */
template <bool BIAS> __device__ __forceinline__ void forward_exponents(float (&s)[32], const bf16 *bias, float unit)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x[8] = {};
        if (BIAS) load_floats<8>(bias + i * 256, x);
#pragma unroll
        for (int k = 0; k < 8; k++) s[8 * i + k] = fmaf(x[k], ATT_LOG2E, s[8 * i + k] * unit);
    }
}

/* exponents + mask of the columns */
__device__ __forceinline__ void forward_mask(float (&t)[32], const ForwardRow &r, int piece)
{
    if (r.plain) return;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float2 m = shared_floats(r.add + piece * 256 + j * 32);
#pragma unroll
        for (int k = 0; k < 4; k++) t[4 * j + k] = fmaf(t[4 * j + k], r.any, k & 1 ? m.y : m.x);
    }
}

/* Exponents -> probabilities as A fragments, and their sums over this lane's columns */
template <int D>
__device__ __forceinline__ void forward_probabilities(ForwardState<D> &x, uint32_t (&p)[16], float (&t)[32])
{
#pragma unroll
    for (int k = 0; k < 16; k++) {
        float a = exp2_fast(t[2 * k]), b = exp2_fast(t[2 * k + 1]);
        p[k] = pack_bf16(a, b);
        x.sum[k & 1] += a, x.sum[k & 1] += b;
    }
}
/* times the values of a piece */
template <int D>
__device__ __forceinline__ void forward_values(ForwardState<D> &x, const uint32_t (&p)[16], uint32_t values, int add)
{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_values<D>(x.o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
                        att_descriptor<D>(values + k * (16 * D * 2 >> 4)), k > 0 || add);
    wgmma_commit();
}

/* sigmoid of two values with one reciprocal; 2^60 bounds the product of the denominators */
__device__ __forceinline__ float2 sigmoid_pair(float2 g)
{
    float a, b;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(-g.x * ATT_LOG2E), "f"(60.0f));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(b) : "f"(-g.y * ATT_LOG2E), "f"(60.0f));
    a = 1.0f + exp2_fast(a), b = 1.0f + exp2_fast(b);
    float r = reciprocal_fast(a * b);
    return make_float2(r * b, r * a);
}

/* 16 rows of a warp in the order of the accumulators: word k is of accumulators 2 k and 2 k + 1. */
template <int D> struct ForwardTile {
    static constexpr int PARTS = D / 16; /* of 16 columns; rows of D = 8 are in the order of the lanes */
    uint32_t word[D / 4];

    static __device__ __forceinline__ uint32_t place(int part) /* of this lane */
    {
        int lane = threadIdx.x % WARP;
        return D == 8 ? lane * 4 : att_place<D>(lane & 15, part * 2 + (lane >> 4));
    }
    __device__ __forceinline__ void load(uint32_t tile)
    {
        if (D == 8) word[0] = shared_word(tile + place(0)), word[1] = shared_word(tile + place(0) + 128);
#pragma unroll
        for (int e = 0; e < PARTS; e++) ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(word[4 * e]), tile + place(e));
    }
    __device__ __forceinline__ void store(uint32_t tile) const
    {
        if (D == 8) shared_word_put(tile + place(0), word[0]), shared_word_put(tile + place(0) + 128, word[1]);
#pragma unroll
        for (int e = 0; e < PARTS; e++) stmatrix4(tile + place(e), reinterpret_cast<const uint32_t(&)[4]>(word[4 * e]));
    }
};

/* The gate's sigmoids, in the order of the accumulators */
template <int D> __device__ __forceinline__ void forward_gates(float (&gate)[D / 2], uint32_t tile)
{
    ForwardTile<D> g;
    g.load(tile);
#pragma unroll
    for (int k = 0; k < D / 4; k++) {
        float2 y = sigmoid_pair(unpack_bf16(g.word[k]));
        gate[2 * k] = y.x, gate[2 * k + 1] = y.y;
    }
}

/* A vote of the warpgroup, and a barrier: nobody reads the gate any more, nor queries for scores that are wanted. */
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

/* The 16 rows of a warp to the places of its queries and its gate, which nobody reads any more: forward_leave(). */
template <typename L>
__device__ __forceinline__ void forward_store(const ForwardProblem &p, const ForwardState<L::D> &x,
                                              const float (&gate)[L::D / 2], uint32_t tile, uint32_t done)
{
    constexpr int D = L::D;
    float factor[2] = {reciprocal_fast(x.sum[0]), reciprocal_fast(x.sum[1])};
    ForwardTile<D> out;
#pragma unroll
    for (int k = 0; k < D / 4; k++) out.word[k] = pack_bf16(x.o[2 * k] * factor[k & 1], x.o[2 * k + 1] * factor[k & 1]);
    if (p.x.o) out.store(tile);
    if (p.x.gate) {
#pragma unroll
        for (int k = 0; k < D / 4; k++) {
            float2 o = unpack_bf16(out.word[k]);
            out.word[k] = pack_bf16(gate[2 * k] * o.x, gate[2 * k + 1] * o.y);
        }
        out.store(tile + L::GATE);
    }
    barrier_arrive_warp(done);
}

template <typename L> struct ForwardWarp {
    static constexpr int D = L::D, PIECES = L::PIECES;
    const ForwardProblem &p;
    const ForwardPlace &w;
    const bf16 *bias_at;                    /* this lane's first elements */
    uint32_t base, queries, from_q, from_k; /* the warp's queries in a stage; descriptors of the first stage */
    int warpgroup, query0;
    float unit; /* scores to powers of two */

    __device__ __forceinline__ ForwardWarp(const ForwardProblem &problem, const ForwardPlace &place, uint32_t shared)
        : p(problem), w(place), base(shared)
    {
        int warp = __shfl_sync(0xffffffffu, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
        warpgroup = warp / 4, query0 = w.tile0 * 64 + warp * 16, unit = p.a.scale * ATT_LOG2E;
        uint32_t tile = base + warpgroup * 64 * D * 2;
        queries = warp * 16 * D * 2;
        from_q = att_low(tile, D == 8 ? base + L::ZERO_AT - tile : 16);
        from_k = att_low(base + L::QUERIES, D == 8 ? 0 : 16);
        int64_t first = ((int64_t)w.group * p.a.h + w.head) * p.tiles + w.tile0 + warpgroup;
        bias_at = p.prepared.bias + first * PIECES * PIECE_ELEMENTS + warp % 4 * 1024 + lane * 8;
    }
    __device__ __forceinline__ ForwardRow row(int stage) const
    {
        uint32_t add = base + L::ADD_AT + stage * L::ADD;
        float2 flag = shared_floats(add + PIECES * 256);
        return {base + stage * L::STAGE, add + threadIdx.x % 4 * 8, flag.x, flag.y != 0.0f};
    }
    /* queries times keys of a piece; D = 8: the second half of the inner extent is zero in the queries, anything finite
     * in the keys */
    __device__ __forceinline__ void multiply(float (&s)[32], int stage, int piece) const
    {
        uint32_t at = stage * (L::STAGE >> 4), q = from_q + at, k = from_k + at + piece * (64 * D * 2 >> 4);
        if (D == 8) q -= at << 16;
        wgmma_fence();
        wgmma_scores(s, att_descriptor<D>(q), att_descriptor<D>(k));
        if constexpr (D == 32) wgmma_step<64>(s, att_descriptor<D>(q + 2), att_descriptor<D>(k + 2), 1);
        wgmma_commit();
    }
    __device__ __forceinline__ uint32_t values(int stage, int piece) const
    {
        return att_low(base + L::VALUES, 128) + stage * (L::STAGE >> 4) + piece * (64 * D * 2 >> 4);
    }

    /* The row again relative to the maximum of its scores; s: registers for them. */
    __device__ __forceinline__ void again(ForwardState<D> &x, float (&s)[32], const ForwardRow &r, int stage) const
    {
        float peak[2] = {ATT_PAD, ATT_PAD};
        uint32_t probability[16];
#pragma unroll 1
        for (int step = 0; step < 2 * PIECES; step++) {
            int piece = step % PIECES;
            multiply(s, stage, piece);
            wgmma_wait<0>();
            forward_exponents<L::BIAS>(s, bias_at + piece * PIECE_ELEMENTS, unit);
            forward_mask(s, r, piece);
#pragma unroll
            for (int k = 0; k < 32; k++)
                if (step < PIECES)
                    peak[k >> 1 & 1] = fmaxf(peak[k >> 1 & 1], s[k]);
                else
                    s[k] -= x.shift[k >> 1 & 1];
            if (step < PIECES) {
                x.shift[0] = lanes_max<4>(peak[0]), x.shift[1] = lanes_max<4>(peak[1]);
                continue;
            }
            if (step == PIECES) x.sum[0] = x.sum[1] = 0;
            forward_probabilities<D>(x, probability, s);
            forward_values<D>(x, probability, values(stage, piece), step > PIECES);
            wgmma_wait<0>();
        }
        x.sum[0] = lanes_sum<4>(x.sum[0]), x.sum[1] = lanes_sum<4>(x.sum[1]);
    }

    __device__ __forceinline__ void lse(float (&y)[2], const ForwardState<D> &x, const ForwardRow &r) const
    {
#pragma unroll
        for (int k = 0; k < 2; k++) y[k] = r.any != 0.0f ? (x.shift[k] + log2_fast(x.sum[k])) * ATT_LN2 : -p.a.inf;
    }
    __device__ __forceinline__ void store_lse(const float (&y)[2], int row) const
    {
        const Att &a = p.a;
        int lane = threadIdx.x % WARP, at = query0 + lane / 4;
        if (!p.x.lse || lane % 4 != 0) return;
        float *to = p.x.lse + (int64_t)((w.group * a.b + row) * a.h + w.head) * a.n;
        if (at < a.n) to[at] = y[0];
        if (at + 8 < a.n) to[at + 8] = y[1];
    }
};

template <typename L> __device__ __forceinline__ void forward_rows(const ForwardWarp<L> &f)
{
    const ForwardPlace &w = f.w;
    constexpr int D = L::D;
    uint32_t full = f.base + L::BARRIERS_AT, done = f.base + L::done_at(f.warpgroup);
    float s0[32], s1[32];
    uint32_t probability[16];
    ForwardBias<L> bias;
    ForwardState<D> x;
    bias.load(f.bias_at);
    int stage = 0, parity = 0, end = __shfl_sync(0xffffffffu, w.last - 1, 0); /* last row, in a uniform register */
    barrier_wait(full, 0);
    f.multiply(s0, 0, 0);
    wgmma_wait<0>();
#pragma unroll 1
    for (int row = w.first; row <= end; row++) {
        ForwardRow r = f.row(stage);
        int from = stage;
        bool more = row < end;
        if (more && ++stage == L::STAGES) stage = 0, parity ^= 1;
        x.shift[0] = x.shift[1] = x.sum[0] = x.sum[1] = 0;
#pragma unroll
        for (int piece = 0; piece < L::PIECES; piece++) {
            float(&now)[32] = piece & 1 ? s1 : s0, (&then)[32] = piece & 1 ? s0 : s1;
            bool last = piece + 1 == L::PIECES;
            if (last && more) barrier_wait(full + stage * 8, parity);
            wgmma_wait<1>(); /* these scores; not the values of the piece before */
            f.multiply(then, last ? stage : from, last ? 0 : piece + 1); /* after the last row in vain */
            bias.add(now, piece, f.unit);
            forward_mask(now, r, piece);
            wgmma_wait<1>();
            forward_probabilities<D>(x, probability, now);
            forward_values<D>(x, probability, f.values(from, piece), piece > 0);
        }
        x.sum[0] = lanes_sum<4>(x.sum[0]), x.sum[1] = lanes_sum<4>(x.sum[1]);
        bool inside = fminf(x.sum[0], x.sum[1]) > FORWARD_SMALL && fmaxf(x.sum[0], x.sum[1]) < FORWARD_LARGE;
        float gate[D / 2] = {}; /* while the last product is under way */
        if (f.p.x.gate) forward_gates<D>(gate, r.tile + f.queries + L::GATE);
        bool far = forward_vote(f.warpgroup, !inside);
        wgmma_wait<0>(); /* nothing under way where the loop turns, or the compiler lets nothing overlap */
        if (far) {
            f.again(x, s0, r, from);
            f.multiply(s0, stage, 0);
            wgmma_wait<0>();
            forward_vote(f.warpgroup, false);
        }
        float lse[2];
        f.lse(lse, x, r);
        forward_store<L>(f.p, x, gate, r.tile + f.queries, done + from * 8);
        f.store_lse(lse, row);
    }
}

/* grid: query tiles of 64 L::GROUPS, heads of groups, row chunks. Only mask and bias come from the kernel before, which
 * lets this one start when all before it are complete: what else the first row reads need not wait. Its mask goes
 * before the other rows: the copies of a block arrive in turn. */
template <typename L>
__global__ void __launch_bounds__(L::THREADS, 1)
    att_forward_tc_kernel(const __grid_constant__ ForwardProblem p, const __grid_constant__ ForwardMaps<L::SEND> maps)
{
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    ForwardPlace w;
    w.head = blockIdx.y % p.a.h, w.group = blockIdx.y / p.a.h;
    w.tile0 = blockIdx.x * L::GROUPS;
    w.first = blockIdx.z * p.rows_per_block, w.last = min(w.first + p.rows_per_block, p.a.b);
    bool asks = threadIdx.x == L::GROUPS * 128;
    if (asks) {
        for (int s = 0; s < L::STAGES; s++) {
            barrier_init(base + L::BARRIERS_AT + s * 8, 1);
            barrier_init(base + L::EMPTY_AT + s * 8, L::GROUPS);
            for (int g = 0; g < L::GROUPS; g++) barrier_init(base + L::done_at(g) + s * 8, 4 * WARP_ARRIVALS);
        }
        barrier_publish();
        forward_load<L>(p, w, maps, base, w.first); /* early: it is complete */
    }
    if (L::D == 8) {
        for (int k = threadIdx.x; k < 256; k += L::THREADS) reinterpret_cast<float *>(shared + L::ZERO_AT)[k] = 0.0f;
        async_fence();
    }
    __syncthreads();
    stage_wait();
    if constexpr (L::SEND) peer_send_begin(maps.send);
    if (threadIdx.x < L::GROUPS * 128) {
        /* 168 registers a thread at the start: 240 here, 24 there */
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        forward_rows<L>(ForwardWarp<L>(p, w, base));
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        int group = (int)(threadIdx.x / WARP) - L::GROUPS * 4 - 1; /* whose results this warp sends */
        for (int row = w.first; asks && row < w.last; row++) {
            /* the others would arrive beside the bias, which is waited for */
            if (L::BIAS && row == w.first + 1) barrier_wait(base + L::BARRIERS_AT, 0);
            if (row > w.first) forward_load<L>(p, w, maps, base, row);
            forward_load_mask<L>(p, w, base, row);
        }
        if (group >= 0 && group < L::GROUPS) forward_leave<L>(p, w, maps, base, group);
    }
}

#endif
