/* Fused attention in bf16, forward, on warpgroup products: Dao et al. 2022; Shah et al. 2024 for the overlap of
 * exponentials with products. The gate sigmoid(g) o in the epilogue.
 *
 * A block owns 64 queries per warpgroup of one head and goes through rows of the group. One more warp asks for queries,
 * keys, values, gate and mask of the next rows while one is computed; the bias of the block's queries stays in
 * registers, in the order of the accumulators. Keys come in pieces of 64: scores of the next piece (of the next row
 * after the last) are on the tensor cores while the exponentials of this one are computed. Results leave from where
 * queries and gate arrived; y perhaps to other ranks.
 *
 * Probabilities are relative to no maximum: bf16 and f32 have the same range of exponents, and the sum tells whether a
 * row left it (2^-64 .. 2^64). Such a row is computed again relative to the maximum of its scores. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_FORWARD_CUH

#include "kernels/cuda/att_forward_load.cuh"
#include "kernels/cuda/att_products.cuh"

#define FORWARD_LARGE 1.8446744073709552e19f /* 2^64 */
#define FORWARD_SMALL 5.421010862427522e-20f

__device__ __forceinline__ float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
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

__device__ __forceinline__ void load_shared(float (&r)[2], uint32_t address)
{
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(r[0]), "=f"(r[1]) : "r"(address) : "memory");
}

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
        float m[2];
        load_shared(m, r.add + piece * 256 + j * 32);
#pragma unroll
        for (int k = 0; k < 4; k++) t[4 * j + k] = fmaf(t[4 * j + k], r.any, m[k & 1]);
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
__device__ __forceinline__ uint32_t gate_pair(uint32_t gate, uint32_t x)
{
    float2 g = sigmoid_pair(unpack_bf16(gate)), v = unpack_bf16(x);
    return pack_bf16(g.x * v.x, g.y * v.y);
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

/* The 16 rows of a warp leave from the places of its queries and its gate, which nobody reads any more; to: where y
 * goes that is sent (forward_target()). */
template <typename L>
__device__ __forceinline__ void forward_store(const ForwardProblem &p, const ForwardPlace &w,
                                              const ForwardMaps<L::SEND> &maps, const ForwardState<L::D> &x,
                                              uint32_t tile, int query0, int row, uint32_t to)
{
    constexpr int D = L::D;
    int lane = threadIdx.x % WARP;
    float low = reciprocal_fast(x.sum[0]), high = reciprocal_fast(x.sum[1]);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        uint32_t a = pack_bf16(x.o[4 * j] * low, x.o[4 * j + 1] * low);
        uint32_t b = pack_bf16(x.o[4 * j + 2] * high, x.o[4 * j + 3] * high);
        uint32_t at = tile + att_place<D>(lane / 4, j) + lane % 4 * 4, below = 8 * D * 2;
        if (p.x.o) shared_word_put(at, a), shared_word_put(at + below, b);
        if (!p.x.gate) continue;
        at += L::GATE;
        shared_word_put(at, gate_pair(shared_word(at), a));
        shared_word_put(at + below, gate_pair(shared_word(at + below), b));
    }
    async_fence();
    __syncwarp();
    if (lane > 0) return;
    if (p.x.o) tensor_store_box(&maps.o, tile, w.head * D, query0, row, w.group);
    if constexpr (L::SEND) {
        if (p.x.again) tensor_store_box(&maps.y, tile + L::GATE, w.head * D, query0, row, w.group);
        if (query0 < p.a.n) {
            int rank = (int)shared_word(to), id = row - w.first;
            uint32_t there = shared_word(to + 4) + id * maps.send.rows.stride;
            if (id == 0) PeerSender(maps.send).meet(rank);
            tensor_store(&maps.to[rank], tile + L::GATE, (int)there, w.head * D);
        }
    } else if (p.x.gate) {
        tensor_store_box(&maps.y, tile + L::GATE, w.head * D, query0, row, w.group);
    }
    tensor_store_commit();
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
        float flag[2];
        load_shared(flag, add + PIECES * 256);
        return {base + stage * L::STAGE, add + threadIdx.x % 4 * 8, flag[0], flag[1] != 0.0f};
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

    __device__ __forceinline__ void store_lse(const ForwardState<D> &x, const ForwardRow &r, int row) const
    {
        const Att &a = p.a;
        int lane = threadIdx.x % WARP, at = query0 + lane / 4;
        if (!p.x.lse || lane % 4 != 0) return;
        float *lse = p.x.lse + (((int64_t)w.group * a.b + row) * a.h + w.head) * a.n;
        bool any = r.any != 0.0f;
        if (at < a.n) lse[at] = any ? (x.shift[0] + log2_fast(x.sum[0])) * ATT_LN2 : -a.inf;
        if (at + 8 < a.n) lse[at + 8] = any ? (x.shift[1] + log2_fast(x.sum[1])) * ATT_LN2 : -a.inf;
    }
};

/* Where y of a warp goes in its first row: rank and row, in shared memory for its first lane, for registers are few. In
 * all rows it goes to the same rank, each time rows.stride further (att_mma_sends()). */
template <typename L>
__device__ __forceinline__ void forward_target(const ForwardWarp<L> &f, const PeerSend &send, uint32_t target)
{
    const Att &a = f.p.a;
    if (threadIdx.x % WARP > 0 || f.query0 >= a.n) return;
    PeerPlace to = peer_place(send, (uint32_t)((f.w.group * a.b + f.w.first) * a.n + f.query0), 0);
    shared_word_put(target, (uint32_t)to.rank), shared_word_put(target + 4, to.row);
}

template <typename L>
__device__ __forceinline__ void forward_rows(const ForwardWarp<L> &f, const ForwardMaps<L::SEND> &maps)
{
    const ForwardPlace &w = f.w;
    /* where the row before has left: to other ranks that takes longer; but this warp is not to wait for the next row,
     * which perhaps takes its place */
    constexpr int D = L::D, FREES = L::SEND ? L::PIECES - 2 : 0;
    uint32_t full = f.base + L::BARRIERS_AT, empty = full + L::STAGES * 8;
    float s0[32], s1[32];
    uint32_t probability[16];
    ForwardBias<L> bias;
    ForwardState<D> x;
    uint32_t to = f.base + L::TARGETS_AT + threadIdx.x / WARP * 8;
    if constexpr (L::SEND) {
        forward_target(f, maps.send, to);
        __syncwarp();
    }
    bias.load(f.bias_at);
    int stage = 0, parity = 0, lane = threadIdx.x % WARP;
    barrier_wait(full, 0);
    f.multiply(s0, 0, 0);
    wgmma_wait<0>();
#pragma unroll 1
    for (int row = w.first; row < w.last; row++) {
        ForwardRow r = f.row(stage);
        int from = stage, before = stage == 0 ? L::STAGES - 1 : stage - 1;
        x.shift[0] = x.shift[1] = x.sum[0] = x.sum[1] = 0;
#pragma unroll
        for (int piece = 0; piece < L::PIECES; piece++) {
            float(&now)[32] = piece & 1 ? s1 : s0, (&then)[32] = piece & 1 ? s0 : s1;
            bool last = piece + 1 == L::PIECES;
            if (last && row + 1 < w.last) {
                if (++stage == L::STAGES) stage = 0, parity ^= 1;
                barrier_wait(full + stage * 8, parity);
            }
            wgmma_wait<1>();                               /* these scores; not the values of the piece before */
            f.multiply(then, stage, last ? 0 : piece + 1); /* after the last row once in vain */
            bias.add(now, piece, f.unit);
            forward_mask(now, r, piece);
            wgmma_wait<1>();
            forward_probabilities<D>(x, probability, now);
            forward_values<D>(x, probability, f.values(from, piece), piece > 0);
            if (piece == FREES && lane == 0 && row > w.first) {
                tensor_store_wait_read();
                barrier_arrive(empty + before * 8);
            }
            __syncwarp();
        }
        x.sum[0] = lanes_sum<4>(x.sum[0]), x.sum[1] = lanes_sum<4>(x.sum[1]);
        wgmma_wait<0>(); /* nothing under way where the loop turns, or the compiler lets nothing overlap */
        bool inside = fminf(x.sum[0], x.sum[1]) > FORWARD_SMALL && fmaxf(x.sum[0], x.sum[1]) < FORWARD_LARGE;
        if (forward_vote(f.warpgroup, !inside)) {
            f.again(x, s0, r, from);
            f.multiply(s0, stage, 0);
            wgmma_wait<0>();
            forward_vote(f.warpgroup, false);
        }
        forward_store<L>(f.p, w, maps, x, r.tile + f.queries, f.query0, row, to);
        f.store_lse(x, r, row);
        if constexpr (L::SEND) __syncwarp(); /* its first lane may have waited for a rank */
    }
    if (lane == 0) tensor_store_wait();
    if constexpr (L::SEND) { /* one for all warps that store */
        static_assert(L::GROUPS == 2, "their threads; barriers 1 and 2 are of forward_vote()");
        __syncwarp();
        asm volatile("bar.sync 3, 256;" ::: "memory");
        if (threadIdx.x == 0) PeerSender(maps.send).finish(gridDim.x * gridDim.y * gridDim.z);
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
        uint32_t full = base + L::BARRIERS_AT, empty = full + L::STAGES * 8;
        for (int s = 0; s < L::STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, L::GROUPS * 4);
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
        forward_rows<L>(ForwardWarp<L>(p, w, base), maps);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        for (int row = w.first; asks && row < w.last; row++) {
            if (row > w.first) forward_load<L>(p, w, maps, base, row);
            forward_load_mask<L>(p, w, base, row);
        }
    }
}

#endif
