/* Fused attention in bf16, backward, on Hopper's asynchronous tensor cores: one kernel for all five products,
 *   p = exp(s - lse), dp = do v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q, dv = p^T do,
 *   dbias = sum over rows of ds, delta = sum_d do o (Dao et al. 2022; an operand),
 * each computed once. Scores are transposed [keys x queries]: p^T and ds^T leave the accumulators as register operands
 * of dv and dk; only ds goes through shared memory, for dq.
 *
 * A warpgroup owns 64 keys and goes through the queries of a row 32 at a time; a block owns 128 keys of one head and
 * goes through rows of the group, so that dbias of its keys and all queries stays in registers (128 floats a thread).
 * With a bias two blocks of a cluster own the 256 keys: each sends its partial dq of the other's half of the queries
 * there. Sums over rows are joined by a second kernel in order: no atomics, and no tensor of all scores. */
#include "kernels/cuda/att_backward.cuh"
#include "kernels/cuda/att_wgmma.cuh"

enum { BW_BIAS_BLOCKS = 132, BW_PLAIN_BLOCKS = 264 };
enum { BW_PARTS = 4 }; /* of the copy of a row, each by a warp */

template <int D, bool BIAS> struct BwShape {
    static constexpr int QUERIES = BwExtent<BIAS>::QUERIES, TILES = BwExtent<BIAS>::TILES, KEYS = TILES * BW_KEYS;
    static constexpr int MACROS = QUERIES / 64, STEPS = 2 * MACROS; /* tiles of ds, and halves of them */
    static constexpr uint32_t ROW = D * 2, GO = QUERIES * ROW, K = 2 * GO, STAT = K + BW_KEYS * ROW,
                              ADD = STAT + QUERIES * 16, STAGE = ADD + 1024,
                              BARRIERS =
                                  ADD + 768; /* of the two stages and of partial dq, in what the first stage leaves */
    static constexpr uint32_t V = 2 * STAGE, DS = V + BW_KEYS * ROW, DS_BYTES = BW_KEYS * 128, PEER = DS + 2 * DS_BYTES,
                              PEER_BYTES = BIAS ? QUERIES / 2 * D * 4 : 0, BIAS_AT = PEER + 2 * PEER_BYTES,
                              BYTES = BIAS_AT + (BIAS ? QUERIES * BW_KEYS * 2 : 0);
};

/* --- the products
 * ------------------------------------------------------------------------------------------------------------- */

/* Tensors as [G, B, rows, heads x d]. A box is one head's; where d = 8 it is 16 wide: the next head's columns meet
 * zeros in the register operands, or are not stored. */
struct BwMaps {
    CUtensorMap q, go, k, v;
};

/* A block's part of the work, the row it is at, and this thread. */
struct BwPlace {
    char *shared;
    uint32_t base, at, ds; /* addresses of all, of the row's stage, of what this thread has of ds */
    int head, group, tile, turn, first, rows, row, stage, parity;
    int warp, lane, warpgroup;

    /* Compared with what a launch gives: a bound kept across the rows would be spilled. */
    __device__ __forceinline__ bool has(const Att &a, int i) const { return i < first + rows && i < a.b; }
    template <int STAGE> __device__ __forceinline__ void at_row(int i)
    {
        row = i, stage = (i - first) & 1, parity = (i - first) >> 1 & 1, at = base + stage * STAGE;
    }
};

enum { BW_FULL = 1, BW_FREE = 3, BW_GROUP = 5 }; /* barriers of the two tiles of ds, of the two warpgroups */

/* Copies a part of a row to a stage, by one thread; the values have one place only. */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_load(const Att &a, const BwMaps &maps, const BwPrepared &prepared, const BwPlace &w,
                                        int row, int stage, int part)
{
    typedef BwShape<D, BIAS> S;
    uint32_t at = w.base + stage * S::STAGE, barrier = w.base + S::BARRIERS + stage * 8;
    int64_t line = (int64_t)w.group * a.b + row;
    if (part == 0) {
        barrier_expect(barrier, S::GO);
        tensor_load_box(at, &maps.q, w.head * a.d, 0, row, w.group, barrier);
    } else if (part == 1) {
        barrier_expect(barrier, S::GO);
        tensor_load_box(at + S::GO, &maps.go, w.head * a.d, 0, row, w.group, barrier);
    } else if (part == 2) {
        barrier_expect(barrier, 2 * BW_KEYS * S::ROW);
        tensor_load_box(at + S::K, &maps.k, w.head * a.d, w.tile * BW_KEYS, row, w.group, barrier);
        tensor_load_box(w.base + S::V, &maps.v, w.head * a.d, w.tile * BW_KEYS, row, w.group, barrier);
    } else {
        barrier_expect(barrier, S::QUERIES * 16 + BW_LINE * 4);
        bulk_load(at + S::STAT, prepared.stats + (line * a.h + w.head) * S::QUERIES, S::QUERIES * 16, barrier);
        bulk_load(at + S::ADD, prepared.add + (line * S::TILES + w.tile) * BW_LINE, BW_LINE * 4, barrier);
    }
}

template <int D, bool BIAS> __device__ __forceinline__ void bw_barriers(const BwPlace &w)
{
    if (threadIdx.x < 7)
        barrier_init(w.base + BwShape<D, BIAS>::BARRIERS + threadIdx.x * 8, threadIdx.x < 2 ? BW_PARTS : 1);
    cluster_sync();
}

/* The bias, the first row. */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_open(const Att &a, const BwMaps &maps, const BwPrepared &prepared, const BwPlace &w)
{
    typedef BwShape<D, BIAS> S;
    constexpr uint32_t BYTES = S::QUERIES * BW_KEYS * 2;
    uint32_t barrier = w.base + S::BARRIERS + 48;
    if (threadIdx.x == 0) {
        if (BIAS) {
            barrier_expect(barrier, BYTES);
            bulk_load(w.base + S::BIAS_AT, prepared.bias + (blockIdx.y * 2 + w.tile) * (BYTES / 16), BYTES, barrier);
        }
    }
    if (threadIdx.x < BW_PARTS * WARP && w.lane == 0) bw_load<D, BIAS>(a, maps, prepared, w, w.first, 0, w.warp);
    if (BIAS) barrier_wait(barrier, 0);
}

/* Where a warp leaves 16 rows x D of a result: in the tile of ds that its warpgroup used last, in one of four slots. */
template <int D, bool BIAS> __device__ __forceinline__ uint32_t bw_staging(const BwPlace &w, int slot)
{
    typedef BwShape<D, BIAS> S;
    return w.base + S::DS + w.warpgroup * S::DS_BYTES + w.warp % 4 * 4096 + slot * 1024;
}
template <int D> __device__ __forceinline__ void bw_leave(uint32_t staging, const float (&acc)[D / 2], float factor)
{
    int lane = here_again((int)threadIdx.x) % WARP;
#pragma unroll
    for (int e = 0; e < D / 16; e++) {
        uint32_t r[4];
#pragma unroll
        for (int k = 0; k < 4; k++) r[k] = pack_bf16(acc[e * 8 + k * 2] * factor, acc[e * 8 + k * 2 + 1] * factor);
        stmatrix4(staging + att_place<D>(lane & 15, e * 2 + (lane >> 4)), r);
    }
}
/* N results left in neighbouring slots -> rows [row0, extent) of their tensors in whole chunks. All are read before the
 * first is stored. */
template <int D, int N>
__device__ __forceinline__ void bw_store(bf16 *const (&to)[N], const Att &a, uint32_t staging, int row0, int extent)
{
    constexpr int CHUNKS = D / 8, ROWS = WARP / CHUNKS, PIECES = 16 / ROWS;
    int lane = here_again((int)threadIdx.x) % WARP, row = lane / CHUNKS, chunk = lane % CHUNKS;
    uint32_t v[N][PIECES][4];
    __syncwarp();
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < PIECES; k++)
            shared_chunk(staging + att_place<D>(row, chunk) + n * 1024 + k * ROWS * D * 2, v[n][k]);
    row += row0;
    int64_t pitch = here_again(a.pitch), at = row * pitch + chunk * 8;
#pragma unroll
    for (int k = 0; k < PIECES; k++, row += ROWS, at += ROWS * pitch) {
        bool live = row < extent && (D > 16 || chunk * 8 < a.d);
#pragma unroll
        for (int n = 0; n < N; n++) store_chunk_where(live, to[n] + at, v[n][k]);
    }
}

/* What a warpgroup keeps of a row. */
template <int D> struct BwRow {
    AttFragment<D> k, v;
    uint32_t for_s[4], for_dp[4];            /* what meets the columns of `stats` */
    uint32_t q_tile, go_tile, k_tile, stats; /* of descriptors */
    float unit, bias_unit, shift;            /* exponent = unit s + bias_unit bias + shift */
    float s[16], dp[16], dk[D / 2], dv[D / 2];
    uint32_t p_low[2][4], ds_low[2][4];
};

/* What a warpgroup has of a row in registers, once it has arrived. */
template <int D, bool BIAS> __device__ __forceinline__ void bw_enter(BwRow<D> &r, const Att &a, const BwPlace &w)
{
    typedef BwShape<D, BIAS> S;
    const uint32_t ONE = 0x3f80, part = w.lane % 4;
    barrier_wait(w.base + S::BARRIERS + w.stage * 8, w.parity);
    int key = here_again(w.warp * 16); /* of 16 */
    const float *add_at = reinterpret_cast<const float *>(w.shared + w.stage * S::STAGE + S::ADD) + key + w.lane / 4;
    float add[] = {add_at[0], add_at[8]};
    if (D == 16) r.k.load_tile(w.at + S::K, key);
    r.v.load_tile(w.base + S::V, key);
    if (D == 16 && a.d == 8) r.k.r[0][2] = r.k.r[0][3] = r.v.r[0][2] = r.v.r[0][3] = 0;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        uint32_t masked = pack_bf16(1.0f, add[e]);
        r.for_s[e] = part == 0 ? ONE << 16 | ONE : part == 1 ? masked : 0u, r.for_s[e + 2] = 0;
        r.for_dp[e] = part == 2 ? ONE << 16 | ONE : part == 3 ? ONE : 0u, r.for_dp[e + 2] = 0;
    }
    if (BIAS && threadIdx.x % 128 == 0)
        barrier_expect(w.base + S::BARRIERS + 16 + (w.stage * 2 + w.warpgroup) * 8, S::PEER_BYTES / 2);
}

/* What is the same for all of its threads, made again in each row: kept from the row before it would take registers of
 * every thread. */
template <int D, bool BIAS> __device__ __forceinline__ void bw_uniform(BwRow<D> &r, const Att &a, const BwPlace &w)
{
    typedef BwShape<D, BIAS> S;
    bool any = *reinterpret_cast<const float *>(w.shared + w.stage * S::STAGE + S::ADD + BW_KEYS * 4) != 0.0f;
    r.bias_unit = any ? ATT_LOG2E : 0.0f, r.unit = r.bias_unit * a.scale;
    r.shift = any ? 0.0f : -log2f((float)here_again(a.m));
    r.q_tile = att_tile<D * 2>(w.at), r.go_tile = att_tile<D * 2>(w.at + S::GO), r.stats = (w.at + S::STAT) >> 4;
    r.k_tile = att_tile<D * 2>(w.at + S::K + w.warpgroup * 64 * D * 2);
}

/* s = k q^T + mask - lse / scale, dp = v do^T - delta: 64 keys x 32 queries. The sums with mask, lse and delta are a
 * product of 16 more columns: (1, 1, 1, mask, 0 ..) and (0, 0, 0, 0, 1, 1, 1, 0 ..) times the columns of `stats`. */
template <int D> __device__ __forceinline__ void bw_scores(BwRow<D> &r, int query)
{
    uint64_t stats = att_rows_descriptor(r.stats, query * 16);
    uint32_t rows = query * D * 2;
    wgmma_fence();
    wgmma_from_registers<false>(r.s, r.for_s, stats, 0);
#pragma unroll
    for (int e = 0; e < D / 16; e++)
        if (D == 32) /* k from shared memory: registers are short */
            wgmma_columns(r.s, att_descriptor<D * 2>(r.k_tile, e * 32), att_descriptor<D * 2>(r.q_tile, rows + e * 32),
                          1);
        else
            wgmma_from_registers<false>(r.s, r.k.r[e], att_descriptor<D * 2>(r.q_tile, rows + e * 32), 1);
    wgmma_from_registers<false>(r.dp, r.for_dp, stats, 0);
#pragma unroll
    for (int e = 0; e < D / 16; e++)
        wgmma_from_registers<false>(r.dp, r.v.r[e], att_descriptor<D * 2>(r.go_tile, rows + e * 32), 1);
    wgmma_commit();
}

/* s -> p, dp -> ds. bias: 16 elements */
template <int D, bool BIAS> __device__ __forceinline__ void bw_softmax(BwRow<D> &r, const uint4 (&bias)[2])
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint4 &b = bias[j / 2];
        float t[4] = {r.shift, r.shift, r.shift, r.shift};
        if (BIAS) {
            float2 low = unpack_bf16(j % 2 ? b.z : b.x), high = unpack_bf16(j % 2 ? b.w : b.y);
            t[0] = fmaf(low.x, r.bias_unit, r.shift), t[1] = fmaf(low.y, r.bias_unit, r.shift);
            t[2] = fmaf(high.x, r.bias_unit, r.shift), t[3] = fmaf(high.y, r.bias_unit, r.shift);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float p = exp2_fast(fmaf(r.s[j * 4 + c], r.unit, t[c]));
            r.s[j * 4 + c] = p;
            r.dp[j * 4 + c] *= p;
        }
    }
}

/* Accumulators of 16 keys x 32 queries of a warp as two register operands. */
__device__ __forceinline__ void bw_pack(uint32_t (&r)[2][4], const float (&x)[16])
{
#pragma unroll
    for (int e = 0; e < 2; e++)
#pragma unroll
        for (int k = 0; k < 4; k++) r[e][k] = pack_bf16(x[e * 8 + k * 2], x[e * 8 + k * 2 + 1]);
}

/* p and ds of 64 keys x 32 queries, half `half` of the i-th tile of ds; to dbias and to that tile. */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_elements(BwRow<D> &r, float (&dbias)[16], const BwPlace &w, int i, int half)
{
    typedef BwShape<D, BIAS> S;
    int buffer = i & 1, step = (i ^ w.turn) * 2 + half;
    uint4 bias[2] = {};
    if (BIAS) {
        const uint4 *source = reinterpret_cast<const uint4 *>(w.shared + S::BIAS_AT) + step * 2 * BW_THREADS +
                              here_again((int)threadIdx.x);
        bias[0] = source[0], bias[1] = source[BW_THREADS];
    }
    wgmma_wait<0>();
    wgmma_arrived(r.s);
    wgmma_arrived(r.dp);
    bw_softmax<D, BIAS>(r, bias);
    if (BIAS) {
#pragma unroll
        for (int c = 0; c < 16; c++) dbias[c] += r.dp[c];
    }
    bw_pack(r.p_low, r.s);
    bw_pack(r.ds_low, r.dp);
    if (half == 0 && (i >= 2 || w.row > w.first) && w.warpgroup != buffer) threads_sync<BW_THREADS>(BW_FREE + buffer);
#pragma unroll
    for (int e = 0; e < 2; e++) stmatrix4((w.ds ^ (half * 64 + e * 32)) + buffer * S::DS_BYTES, r.ds_low[e]);
    if (half == 0) return;
    async_fence();
    if (w.warpgroup != buffer) threads_arrive<BW_THREADS>(BW_FULL + buffer);
}

/* dv += p^T do, dk += ds^T q of 32 queries */
template <int D> __device__ __forceinline__ void bw_gradients(BwRow<D> &r, int query, bool first)
{
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < 2; e++) {
        uint32_t rows = (query + e * 16) * D * 2;
        wgmma_from_registers<true>(r.dv, r.p_low[e], att_descriptor<D * 2>(r.go_tile, rows), !first || e > 0);
        wgmma_from_registers<true>(r.dk, r.ds_low[e], att_descriptor<D * 2>(r.q_tile, rows), !first || e > 0);
    }
    wgmma_commit();
}

/* dq of the i-th tile of ds, by the warpgroup whose tile it is: sent to the other block or, with what that sent, stored
 */
template <int D, bool BIAS> __device__ __forceinline__ void bw_queries(const Att &a, bf16 *to, const BwPlace &w, int i)
{
    typedef BwShape<D, BIAS> S;
    float dq[D / 2];
    int buffer = i & 1;
    uint32_t ds_tile = att_tile<128>(w.base + S::DS + buffer * S::DS_BYTES), k_tile = att_tile<D * 2>(w.at + S::K);
    threads_sync<BW_THREADS>(BW_FULL + buffer);
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < BW_KEYS / 16; e++)
        wgmma_rows(dq, att_descriptor<128>(ds_tile, e * 16 * 128), att_descriptor<D * 2>(k_tile, e * 16 * D * 2),
                   e > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_arrived(dq);
    if (i + 2 < S::MACROS) threads_arrive<BW_THREADS>(BW_FREE + buffer);
    uint32_t place =
                 S::PEER + w.stage * S::PEER_BYTES + (buffer * (D / 8) * 128 + here_again((int)threadIdx.x) % 128) * 16,
             barrier = w.base + S::BARRIERS + 16 + (w.stage * 2 + buffer) * 8;
    if (BIAS && i < S::MACROS / 2) {
        uint32_t there = cluster_address(w.base + place, w.tile ^ 1), signal = cluster_address(barrier, w.tile ^ 1);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            cluster_store(there + j * 128 * 16, signal, dq[j * 4], dq[j * 4 + 1], dq[j * 4 + 2], dq[j * 4 + 3]);
        return;
    }
    if (BIAS) {
        barrier_wait(barrier, w.parity);
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            float4 other = *reinterpret_cast<const float4 *>(w.shared + place + j * 128 * 16);
            dq[j * 4] += other.x, dq[j * 4 + 1] += other.y, dq[j * 4 + 2] += other.z, dq[j * 4 + 3] += other.w;
        }
    }
    threads_sync<128>(BW_GROUP + buffer); /* all are done with this tile of ds */
    uint32_t staging = bw_staging<D, BIAS>(w, 0);
    bw_leave<D>(staging, dq, a.scale);
    bw_store<D, 1>({to}, a, staging, (i ^ w.turn) * 64 + w.warp % 4 * 16, a.n);
}

/* Partial dbias of a block, [keys, queries] */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_store_bias(float *out, const float (&dbias)[BwShape<D, BIAS>::STEPS][16],
                                              const BwPlace &w)
{
    typedef BwShape<D, BIAS> S;
    out += (w.tile * BW_KEYS + w.warp * 16 + w.lane / 4) * S::QUERIES + w.lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < S::STEPS; step++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float *d = &dbias[step][j * 4];
            float *to = out + (step / 2 ^ w.turn) * 64 + step % 2 * 32 + j * 8;
            *reinterpret_cast<float2 *>(to) = make_float2(d[0], d[1]);
            *reinterpret_cast<float2 *>(to + 8 * S::QUERIES) = make_float2(d[2], d[3]);
        }
}

template <int D, bool BIAS>
__global__ void __launch_bounds__(BW_THREADS, BIAS ? 1 : 2)
    att_bw_kernel(Att a, AttOperands<bf16> x, const __grid_constant__ BwMaps maps, BwPrepared prepared, float *partial,
                  int rows_per_block)
{
    typedef BwShape<D, BIAS> S;
    extern __shared__ __align__(1024) char shared[];
    BwPlace w = {shared, shared_address(shared)};
    w.head = blockIdx.y % a.h, w.group = blockIdx.y / a.h, w.tile = blockIdx.x;
    w.turn = BIAS && w.tile == 0 ? S::MACROS / 2 : 0; /* the other block's half of the queries first */
    w.first = blockIdx.z * rows_per_block, w.rows = rows_per_block;
    w.warp = threadIdx.x / WARP, w.lane = threadIdx.x % WARP;
    w.warpgroup = __shfl_sync(0xffffffffu, w.warp / 4, 0);
    w.ds = w.base + S::DS + (w.warp * 16 + (w.lane & 15)) * 128 + ((w.lane >> 4) ^ (w.lane & 7)) * 16;
    bw_barriers<D, BIAS>(w);
    stage_wait();
    bw_open<D, BIAS>(a, maps, prepared, w);

    float dbias[S::STEPS][16] = {};
    int64_t k_at = a.k_block(w.group, w.first, w.head), q_at = a.q_block(w.group, w.first, w.head);
    BwRow<D> r;
    w.at_row<S::STAGE>(w.first);
    bw_enter<D, BIAS>(r, a, w);
    for (int row = w.first; w.has(a, row); row++, k_at += a.k_row, q_at += a.q_row) {
        w.at_row<S::STAGE>(row);
        bw_uniform<D, BIAS>(r, a, w);
        bw_scores<D>(r, w.turn * 64);
#pragma unroll
        for (int step = 0; step < S::STEPS; step++) {
            int i = step / 2, half = step % 2, next = ((step + 1) / 2 ^ w.turn) * 64 + (step + 1) % 2 * 32;
            bw_elements<D, BIAS>(r, dbias[step], w, i, half);
            if (BIAS && step + 1 < S::STEPS) bw_scores<D>(r, next);
            bw_gradients<D>(r, (i ^ w.turn) * 64 + half * 32, step == 0);
            if (!BIAS) { /* two blocks per multiprocessor hide the wait, and there are registers for one at a time */
                wgmma_wait<0>();
                wgmma_arrived(r.dk);
                wgmma_arrived(r.dv);
                if (step + 1 < S::STEPS) bw_scores<D>(r, next);
            }
            if (half == 0 && i > 0 && w.warpgroup == ((i - 1) & 1)) {
                bw_queries<D, BIAS>(a, x.dq + q_at, w, i - 1);
                /* the other warpgroup is in this row: all are done with the last one and have the values */
                static_assert(BW_PARTS == 4, "warps of the warpgroup whose turn this is");
                if (i == 1 && w.has(a, row + 1) && w.lane == 0)
                    bw_load<D, BIAS>(a, maps, prepared, w, row + 1, w.stage ^ 1, w.warp);
            }
        }
        if (w.has(a, row + 1)) { /* while the last products of this row go on */
            BwPlace next = w;
            next.at_row<S::STAGE>(row + 1);
            bw_enter<D, BIAS>(r, a, next);
        }
        if (w.warpgroup == ((S::MACROS - 1) & 1)) bw_queries<D, BIAS>(a, x.dq + q_at, w, S::MACROS - 1);
        wgmma_wait<0>();
        wgmma_arrived(r.dk);
        wgmma_arrived(r.dv);
        uint32_t staging = bw_staging<D, BIAS>(w, 1);
        bw_leave<D>(staging, r.dv, 1.0f);
        bw_leave<D>(staging + 1024, r.dk, a.scale);
        bw_store<D, 2>({x.dv + k_at, x.dk + k_at}, a, staging, w.tile * BW_KEYS + w.warp * 16, a.m);
        threads_arrive<BW_THREADS>(BW_FREE + w.warpgroup);
    }
    if (BIAS)
        bw_store_bias<D, BIAS>(partial + ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * S::KEYS * S::QUERIES, dbias,
                               w);
}

/* --- launches
 * ----------------------------------------------------------------------------------------------------------------- */

struct BwPlan {
    size_t add_at, stats_at, bias_at, partial_at, bytes;
    int keys, queries, rows, chunks; /* padded; rows of a group per block, blocks along the rows */
};

static BwPlan bw_plan(const Att &a, bool bias)
{
    BwPlan p = {};
    size_t heads = (size_t)a.g * a.h, tiles = bias ? 2 : 1;
    p.keys = (int)tiles * BW_KEYS;
    p.queries = bias ? 256 : 128;
    p.rows = att_rows_per_block(a, (int)tiles, bias ? BW_BIAS_BLOCKS : BW_PLAIN_BLOCKS);
    p.chunks = (a.b + p.rows - 1) / p.rows;
    p.stats_at = align_up((size_t)a.g * a.b * tiles * BW_LINE * sizeof(float));
    p.bias_at = p.stats_at + align_up(heads * a.b * p.queries * sizeof(uint4));
    p.partial_at = p.bias_at + (bias ? align_up(heads * p.keys * p.queries * 2) : 0);
    p.bytes = p.partial_at + (bias ? align_up(heads * p.chunks * p.keys * p.queries * 4) : 0);
    return p;
}

bool att_wgmma_fits(const Att &a, bool bias)
{
    int most = bias ? 256 : 128;
    return a.n <= most && a.m <= most && a.n > most / 2 && a.m > most / 2;
}

size_t att_wgmma_backward_scratch(const Att &a, bool bias)
{
    return bw_plan(a, bias).bytes;
}

/* box: `rows` rows of one head, in the swizzle of att_place() */
static Status bw_map(CUtensorMap *map, const bf16 *p, const Att &a, int extent, int64_t row_step, int64_t group_step,
                     int width, int rows)
{
    void *entry = NULL;
    cudaDriverEntryPointQueryResult found;
    CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) return status_fail(ERR_UNSUPPORTED, "the driver has no tensor maps");
    cuuint64_t size[] = {(cuuint64_t)a.h * a.d, (cuuint64_t)extent, (cuuint64_t)a.b, (cuuint64_t)a.g};
    cuuint64_t step[] = {(cuuint64_t)a.pitch * 2, (cuuint64_t)row_step * 2, (cuuint64_t)group_step * 2};
    cuuint32_t box[] = {(cuuint32_t)width, (cuuint32_t)rows, 1, 1}, each[] = {1, 1, 1, 1};
    CUresult result = ((decltype(&cuTensorMapEncodeTiled))entry)(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)p, size, step, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
        width == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return status_fail(ERR_INTERNAL, "tensor map of attention: driver error %d", (int)result);
    return OK;
}

template <int D, bool BIAS>
static Status bw_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const AttOperands<bf16> &x)
{
    typedef BwShape<D, BIAS> S;
    char *scratch = (char *)call->scratch;
    cudaStream_t stream = ctx->stream;
    BwPlan p = bw_plan(a, BIAS);
    BwPrepared prepared = {(float *)(scratch + p.add_at), (uint4 *)(scratch + p.stats_at),
                           (uint4 *)(scratch + p.bias_at)};
    float *partial = (float *)(scratch + p.partial_at);
    TRY(bw_prepare_launch(a, x, prepared, stream));

    BwMaps maps;
    TRY(bw_map(&maps.q, x.q, a, a.n, a.q_row, a.q_group, D, S::QUERIES));
    TRY(bw_map(&maps.go, x.go, a, a.n, a.q_row, a.q_group, D, S::QUERIES));
    TRY(bw_map(&maps.k, x.k, a, a.m, a.k_row, a.k_group, D, BW_KEYS));
    TRY(bw_map(&maps.v, x.v, a, a.m, a.k_row, a.k_group, D, BW_KEYS));
    CUDA_TRY(cudaFuncSetAttribute(att_bw_kernel<D, BIAS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::BYTES));
    launch_clusters(att_bw_kernel<D, BIAS>, dim3(S::TILES, a.g * a.h, p.chunks), BW_THREADS, S::BYTES, S::TILES, stream,
                    a, x, maps, prepared, partial, p.rows);
    TRY(cuda_launched("att_bw_kernel"));
    return BIAS ? bw_join_launch(ctx, call, a, partial, x.dbias, p.chunks) : OK;
}

Status att_wgmma_backward_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const AttOperands<bf16> &x)
{
    if (a.d == 32) return x.bias ? bw_launch<32, true>(ctx, call, a, x) : bw_launch<32, false>(ctx, call, a, x);
    return x.bias ? bw_launch<16, true>(ctx, call, a, x) : bw_launch<16, false>(ctx, call, a, x);
}
