/* Fused attention in bf16, backward, on Hopper's asynchronous tensor cores: one kernel for all five products,
 *   p = exp(s - lse), dp = do v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q, dv = p^T do,
 *   dbias = sum over rows of ds, delta = sum_d do o (Dao et al. 2022),
 * each computed once. Scores are transposed [keys x queries]: p^T and ds^T leave the accumulators as register operands
 * of dv and dk; only ds goes through shared memory, for dq.
 *
 * A warpgroup owns 64 keys and goes through the queries of a row 32 at a time; a block owns 128 keys of one head and
 * goes through rows of the group, so that dbias of its keys and all queries stays in registers (128 floats a thread).
 * With a bias two blocks of a cluster own the 256 keys: each sends its partial dq of the other's half of the queries
 * there. Sums over rows are joined by a second kernel in order: no atomics, and no tensor of all scores. */
#include "kernels/cuda/att_wgmma.cuh"

enum {
    BW_KEYS = 128,
    BW_STEP = 16,
    BW_THREADS = 256,
    BW_BIAS_BLOCKS = 132,
    BW_PLAIN_BLOCKS = 264,
    BW_LINE = BW_KEYS + 4
};

/* What a kernel before the main one makes of mask, lse, o and bias. Exponents are of two.
 * add[G,B,tile,128 + 4]: mask of the keys, ATT_PAD for keys that do not exist; then 1, or 0 where every key is masked
 * (the softmax of such a row is uniform: inf = 1e9 swallows the scores in f32); stats[G,B,H,queries] = (-lse, -delta);
 * bias[G,H,tile,step,thread]: eight elements in the order of a thread's accumulators. */
struct BwPrepared {
    float *add;
    float2 *stats;
    uint4 *bias;
};

template <int D, bool BIAS> struct BwShape {
    static constexpr int MACROS = BIAS ? 4 : 2; /* of 64 queries: a tile of ds */
    static constexpr int STEPS = 4 * MACROS, QUERIES = 64 * MACROS, TILES = BIAS ? 2 : 1, KEYS = TILES * BW_KEYS;
    static constexpr uint32_t ROW = D * 2, GO = QUERIES * ROW, K = 2 * GO, STAT = K + BW_KEYS * ROW,
                              ADD = STAT + QUERIES * 8, STAGE = ADD + 1024,
                              BARRIERS =
                                  ADD + 768; /* of the two stages and of partial dq, in what the first stage leaves */
    static constexpr uint32_t V = 2 * STAGE, DS = V + BW_KEYS * ROW, DS_BYTES = BW_KEYS * 128, PEER = DS + 2 * DS_BYTES,
                              PEER_BYTES = BIAS ? QUERIES / 2 * D * 4 : 0, BIAS_AT = PEER + 2 * PEER_BYTES,
                              BYTES = BIAS_AT + (BIAS ? QUERIES * BW_KEYS * 2 : 0);
};

/* --- preparation
 * -------------------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ void bw_prepare_row(const Att &a, const AttOperands<bf16> &x, const BwPrepared &out,
                                               int group, int row, int split, int splits, int keys, int queries)
{
    enum { AHEAD = 2 };
    const float *mask = a.mask ? a.mask_row(group, row) : NULL;
    int64_t at = (int64_t)group * a.b + row;
    int any = !mask;
    for (int j = threadIdx.x % WARP; mask && j < a.m; j += WARP) any |= mask[j] > 0.0f;
    any = __any_sync(0xffffffffu, any);
    if (split == 0)
        for (int e = threadIdx.x; e < keys / BW_KEYS * BW_LINE; e += BW_THREADS) {
            int j = e / BW_LINE * BW_KEYS + e % BW_LINE;
            float add = j >= a.m ? ATT_PAD : mask && any ? a.inf * ATT_LOG2E * (mask[j] - 1.0f) : 0.0f;
            out.add[at * (keys / BW_KEYS * BW_LINE) + e] = e % BW_LINE < BW_KEYS ? add : any ? 1.0f : 0.0f;
        }
    /* a chunk of 16 bytes per thread, `per` queries side by side */
    int chunks = a.h * a.d / 8, lanes = a.d / 8, per = BW_THREADS / chunks, chunk = threadIdx.x % chunks;
    int end = (split + 1) * (queries / splits), head = chunk / lanes;
    bool working = threadIdx.x / chunks < per;
    const bf16 *o_at = x.o_in + a.q_block(group, row, 0) + chunk * 8, *go_at = x.go + (o_at - x.o_in);
    const float *lse_at = x.lse_in + (at * a.h + head) * a.n;
    float2 *to = out.stats + (at * a.h + head) * queries;
    for (int first = split * (queries / splits); first < end; first += AHEAD * per) {
        int query = first + threadIdx.x / chunks;
        Pack<bf16> o[AHEAD] = {}, go[AHEAD] = {};
        float lse[AHEAD] = {};
#pragma unroll
        for (int k = 0; k < AHEAD; k++, query += per)
            if (working && query < a.n) {
                o[k] = load_pack(o_at + query * a.pitch), go[k] = load_pack(go_at + query * a.pitch);
                lse[k] = lse_at[query];
            }
        query -= AHEAD * per;
#pragma unroll
        for (int k = 0; k < AHEAD; k++, query += per) {
            float delta = 0;
#pragma unroll
            for (int e = 0; e < 8; e++) delta += to_float(o[k].v[e]) * to_float(go[k].v[e]);
            for (int step = lanes / 2; step > 0; step /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, step);
            if (!working || query >= end || chunk % lanes != 0) continue;
            float add = query >= a.n ? ATT_PAD : any ? -lse[k] * ATT_LOG2E : -log2f((float)a.m);
            to[query] = make_float2(add, -delta);
        }
    }
}

__device__ __forceinline__ void bw_prepare_bias(const Att &a, const bf16 *bias, uint4 *out, int id, int steps)
{
    int step = id % steps, tile = id / steps % 2, block = id / steps / 2;
    int head = block % a.h, group = block / a.h, lane = threadIdx.x % WARP;
    int key0 = tile * BW_KEYS + threadIdx.x / WARP * 16 + lane / 4, query0 = step * BW_STEP + lane % 4 * 2;
    __align__(16) bf16 v[8];
#pragma unroll
    for (int e = 0; e < 8; e++) {
        int key = key0 + (e >> 1 & 1) * 8, query = query0 + (e >> 2) * 8 + (e & 1);
        v[e] = key < a.m && query < a.n ? bias[a.bias_index(group, query, key, head)] : from_float<bf16>(0.0f);
    }
    out[(int64_t)id * BW_THREADS + threadIdx.x] = *reinterpret_cast<const uint4 *>(v);
}

/* Blocks: pieces of the bias, then splits of a row's queries. */
__global__ void __launch_bounds__(BW_THREADS, 4)
    att_bw_prepare_kernel(Att a, AttOperands<bf16> x, BwPrepared out, int splits, int keys, int queries)
{
    int pieces = x.bias ? a.g * a.h * (keys / BW_KEYS) * (queries / BW_STEP) : 0, id = (int)blockIdx.x - pieces;
    if (id < 0)
        bw_prepare_bias(a, x.bias, out.bias, blockIdx.x, queries / BW_STEP);
    else
        bw_prepare_row(a, x, out, id / splits / a.b, id / splits % a.b, id % splits, splits, keys, queries);
}

/* --- the products
 * ------------------------------------------------------------------------------------------------------------- */

/* Tensors as [G, B, rows, heads x d]. A box is one head's; where d = 8 it is 16 wide: the next head's columns meet
 * zeros in the register operands, or are not stored. */
struct BwMaps {
    CUtensorMap q, go, k, v;
};

template <int D, bool BIAS>
__device__ __forceinline__ void bw_load(const Att &a, const BwMaps &maps, const BwPrepared &prepared, uint32_t base,
                                        int stage, int group, int row, int head, int tile)
{
    typedef BwShape<D, BIAS> S;
    uint32_t at = base + stage * S::STAGE, barrier = base + S::BARRIERS + stage * 8;
    int64_t line = (int64_t)group * a.b + row;
    transfer_expect(barrier, S::ADD + BW_LINE * 4 + BW_KEYS * S::ROW);
    transfer_box(at, &maps.q, head * a.d, 0, row, group, barrier);
    transfer_box(at + S::GO, &maps.go, head * a.d, 0, row, group, barrier);
    transfer_box(at + S::K, &maps.k, head * a.d, tile * BW_KEYS, row, group, barrier);
    transfer_box(base + S::V, &maps.v, head * a.d, tile * BW_KEYS, row, group, barrier);
    transfer_bytes(at + S::STAT, prepared.stats + (line * a.h + head) * S::QUERIES, S::QUERIES * 8, barrier);
    transfer_bytes(at + S::ADD, prepared.add + (line * S::TILES + tile) * BW_LINE, BW_LINE * 4, barrier);
}

/* Accumulators of 16 rows x D times a factor -> global memory in whole chunks, by way of 32 D bytes at `staging`. */
template <int D>
__device__ __forceinline__ void bw_store(bf16 *p, const Att &a, int row0, int extent, const float (&acc)[D / 2],
                                         float factor, char *staging)
{
    constexpr int CHUNKS = D / 8, ROWS = WARP / CHUNKS;
    int lane = threadIdx.x % WARP, row = lane / CHUNKS, chunk = lane % CHUNKS;
#pragma unroll
    for (int e = 0; e < D / 16; e++) {
        uint32_t r[4];
#pragma unroll
        for (int k = 0; k < 4; k++) r[k] = pack_bf16(acc[e * 8 + k * 2] * factor, acc[e * 8 + k * 2 + 1] * factor);
        stmatrix4(shared_address(staging) + att_place<D>(lane & 15, e * 2 + (lane >> 4)), r);
    }
    __syncwarp();
    bf16 *to = p + (row0 + row) * a.pitch + chunk * 8;
#pragma unroll
    for (int k = 0; k < 16 / ROWS; k++) {
        uint4 v = *reinterpret_cast<const uint4 *>(staging + att_place<D>(row, chunk) + k * ROWS * D * 2);
        if (row0 + row + k * ROWS < extent && (D > 16 || chunk * 8 < a.d))
            *reinterpret_cast<uint4 *>(to + k * ROWS * a.pitch) = v;
    }
}

/* s = k q^T, dp = v do^T: 64 keys x 32 queries */
template <int D>
__device__ __forceinline__ void bw_scores(float (&s)[16], float (&dp)[16], const AttFragment<D> &k,
                                          const AttFragment<D> &v, uint64_t q, uint64_t go)
{
#pragma unroll
    for (int e = 0; e < D / 16; e++) wgmma_from_registers<false>(s, k.r[e], q + e * 2, e > 0);
#pragma unroll
    for (int e = 0; e < D / 16; e++) wgmma_from_registers<false>(dp, v.r[e], go + e * 2, e > 0);
    wgmma_commit();
}

/* s -> p, dp -> ds. bias: 16 elements; stat: (-lse, -delta) of this thread's queries, 8 queries apart */
template <bool BIAS>
__device__ __forceinline__ void bw_softmax(float (&s)[16], float (&dp)[16], const uint4 (&bias)[2],
                                           const float4 (&stat)[4], const float (&add)[2], float unit, float bias_unit)
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float4 &q = stat[j]; /* lse, delta of two queries */
        float t[4] = {add[0] + q.x, add[0] + q.z, add[1] + q.x, add[1] + q.z};
        if (BIAS) {
            const uint4 &b = bias[j / 2];
            float2 low = unpack_bf16(j % 2 ? b.z : b.x), high = unpack_bf16(j % 2 ? b.w : b.y);
            t[0] = fmaf(low.x, bias_unit, t[0]), t[1] = fmaf(low.y, bias_unit, t[1]);
            t[2] = fmaf(high.x, bias_unit, t[2]), t[3] = fmaf(high.y, bias_unit, t[3]);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float p = exp2_fast(fmaf(s[j * 4 + c], unit, t[c]));
            s[j * 4 + c] = p;
            dp[j * 4 + c] = p * (dp[j * 4 + c] + (c & 1 ? q.w : q.y));
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

template <int D, bool BIAS>
__global__ void __launch_bounds__(BW_THREADS, BIAS ? 1 : 2)
    att_bw_kernel(Att a, AttOperands<bf16> x, const __grid_constant__ BwMaps maps, BwPrepared prepared, float *partial,
                  int rows_per_block)
{
    typedef BwShape<D, BIAS> S;
    extern __shared__ __align__(1024) char shared[];
    enum { FULL = 1, FREE = 3, GROUP = 5 }; /* barriers of the two tiles of ds, of the two warpgroups */
    uint32_t base = shared_address(shared);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h, tile = blockIdx.x;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warpgroup = __shfl_sync(0xffffffffu, warp / 4, 0);
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);
    /* the other block's half of the queries first */
    int turn = BIAS && tile == 0 ? S::MACROS / 2 : 0;

    if (threadIdx.x < 7) transfer_init(base + S::BARRIERS + threadIdx.x * 8);
    cluster_sync();
    if (threadIdx.x == 0) {
        constexpr uint32_t BYTES = S::QUERIES * BW_KEYS * 2;
        if (BIAS) {
            uint32_t barrier = base + S::BARRIERS + 48;
            transfer_expect(barrier, BYTES);
            transfer_bytes(base + S::BIAS_AT, prepared.bias + (blockIdx.y * 2 + tile) * (BYTES / 16), BYTES, barrier);
        }
        bw_load<D, BIAS>(a, maps, prepared, base, 0, group, first, head, tile);
    }

    if (BIAS) transfer_wait(base + S::BARRIERS + 48, 0);
    float dbias[BIAS ? S::STEPS / 2 : 1][16] = {};
    for (int row = first; row < last; row++) {
        int stage = (row - first) & 1;
        uint32_t at = base + stage * S::STAGE;
        const char *here = shared + stage * S::STAGE;
        transfer_wait(base + S::BARRIERS + stage * 8, (row - first) >> 1 & 1);
        AttFragment<D> k, v;
        k.load_tile(at + S::K, warp * 16);
        v.load_tile(base + S::V, warp * 16);
        if (D == 16 && a.d == 8) k.r[0][2] = k.r[0][3] = v.r[0][2] = v.r[0][3] = 0;
        const float *add_at = reinterpret_cast<const float *>(here + S::ADD);
        float add[2] = {add_at[warp * 16 + lane / 4], add_at[warp * 16 + lane / 4 + 8]};
        float bias_unit = add_at[BW_KEYS] * ATT_LOG2E, unit = bias_unit * a.scale;
        uint64_t q_tile = att_descriptor<D * 2>(at), go_tile = att_descriptor<D * 2>(at + S::GO);

        char *stage_of = shared + S::DS + warpgroup * S::DS_BYTES + warp % 4 * 4096; /* for results, in the last ds */
        if (BIAS && threadIdx.x % 128 == 0)
            transfer_expect(base + S::BARRIERS + 16 + (stage * 2 + warpgroup) * 8, S::PEER_BYTES / 2);

        float dk[D / 2], dv[D / 2], s[16], dp[16];
        uint32_t p_low[2][4], ds_low[2][4];

        /* dq of a tile of ds, by one warpgroup */
        auto make_dq = [&](int i) {
            float dq[D / 2];
            int buffer = i & 1, thread = threadIdx.x % 128;
            uint64_t ds_tile = att_descriptor<128>(base + S::DS + buffer * S::DS_BYTES),
                     k_tile = att_descriptor<D * 2>(at + S::K);
            barrier_sync<BW_THREADS>(FULL + buffer);
            /* the other warpgroup is in this row: all are done with the last one and have the values */
            if (i == 0 && threadIdx.x == 0 && row + 1 < last)
                bw_load<D, BIAS>(a, maps, prepared, base, stage ^ 1, group, row + 1, head, tile);
            wgmma_fence();
#pragma unroll
            for (int e = 0; e < BW_KEYS / 16; e++)
                wgmma_rows(dq, ds_tile + e * (16 * 128 >> 4), k_tile + e * (16 * D * 2 >> 4), e > 0);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_arrived(dq);
            if (i + 2 < S::MACROS) barrier_arrive<BW_THREADS>(FREE + buffer);
            uint32_t place = S::PEER + stage * S::PEER_BYTES + (buffer * (D / 8) * 128 + thread) * 16,
                     barrier = base + S::BARRIERS + 16 + (stage * 2 + buffer) * 8;
            if (BIAS && i < S::MACROS / 2) {
                uint32_t there = cluster_address(base + place, tile ^ 1), signal = cluster_address(barrier, tile ^ 1);
#pragma unroll
                for (int j = 0; j < D / 8; j++)
                    cluster_store(there + j * 128 * 16, signal, dq[j * 4], dq[j * 4 + 1], dq[j * 4 + 2], dq[j * 4 + 3]);
                return;
            }
            if (BIAS) {
                transfer_wait(barrier, (row - first) >> 1 & 1);
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    float4 other = *reinterpret_cast<const float4 *>(shared + place + j * 128 * 16);
                    dq[j * 4] += other.x, dq[j * 4 + 1] += other.y;
                    dq[j * 4 + 2] += other.z, dq[j * 4 + 3] += other.w;
                }
            }
            barrier_sync<128>(GROUP + buffer); /* all are done with this tile of ds */
            bw_store<D>(x.dq + a.q_block(group, row, head), a, (i ^ turn) * 64 + warp % 4 * 16, a.n, dq, a.scale,
                        stage_of);
        };

        auto scores = [&](int step) {
            uint64_t query0 = ((step / 2 ^ turn) * 2 + step % 2) * 32 * (D * 2 >> 4);
            wgmma_fence();
            bw_scores<D>(s, dp, k, v, q_tile + query0, go_tile + query0);
        };
        scores(0);
#pragma unroll
        for (int step = 0; step < S::STEPS / 2; step++) {
            int i = step / 2, half = step % 2, query0 = (i ^ turn) * 64 + half * 32;
            uint4 bias[2] = {};
            if (BIAS) {
                const uint4 *source =
                    reinterpret_cast<const uint4 *>(shared + S::BIAS_AT) + query0 / 16 * BW_THREADS + threadIdx.x;
                bias[0] = source[0], bias[1] = source[BW_THREADS];
            }
            const float4 *stat_at = reinterpret_cast<const float4 *>(here + S::STAT) + query0 / 2 + lane % 4;
            float4 stat[4] = {stat_at[0], stat_at[4], stat_at[8], stat_at[12]};
            wgmma_wait<0>();
            wgmma_arrived(s);
            wgmma_arrived(dp);
            bw_softmax<BIAS>(s, dp, bias, stat, add, unit, bias_unit);
            if (BIAS) {
#pragma unroll
                for (int c = 0; c < 16; c++) dbias[BIAS ? step : 0][c] += dp[c];
            }
            bw_pack(p_low, s);
            bw_pack(ds_low, dp);
            if (half == 0 && (i >= 2 || row > first) && warpgroup != (i & 1)) barrier_sync<BW_THREADS>(FREE + (i & 1));
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int key = warp * 16 + (lane & 15), chunk = half * 4 + e * 2 + (lane >> 4);
                stmatrix4(base + S::DS + (i & 1) * S::DS_BYTES + key * 128 + (chunk ^ (key & 7)) * 16, ds_low[e]);
            }
            if (half == 1) {
                fence_async_proxy();
                if (warpgroup != (i & 1)) barrier_arrive<BW_THREADS>(FULL + (i & 1));
            }
            wgmma_fence();
            if (BIAS && step + 1 < S::STEPS / 2) scores(step + 1);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint64_t rows = (query0 + e * 16) * (D * 2 >> 4);
                wgmma_from_registers<true>(dv, p_low[e], go_tile + rows, step > 0 || e > 0);
                wgmma_from_registers<true>(dk, ds_low[e], q_tile + rows, step > 0 || e > 0);
            }
            wgmma_commit();
            if (!BIAS) {
                wgmma_wait<0>();
                wgmma_arrived(dk);
                wgmma_arrived(dv);
                if (step + 1 < S::STEPS / 2) scores(step + 1);
            }
            if (half == 0 && i > 0 && warpgroup == ((i - 1) & 1)) make_dq(i - 1);
        }
        if (warpgroup == ((S::MACROS - 1) & 1)) make_dq(S::MACROS - 1);
        wgmma_wait<0>();
        wgmma_arrived(dk);
        wgmma_arrived(dv);
        int64_t k_at = a.k_block(group, row, head);
        bw_store<D>(x.dv + k_at, a, tile * BW_KEYS + warp * 16, a.m, dv, 1.0f, stage_of + 1024);
        bw_store<D>(x.dk + k_at, a, tile * BW_KEYS + warp * 16, a.m, dk, a.scale, stage_of + 2048);
        barrier_arrive<BW_THREADS>(FREE + warpgroup);
    }
    if (!BIAS) return;
    int key = tile * BW_KEYS + warp * 16 + lane / 4;
    float *out = partial + (((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * S::KEYS + key) * S::QUERIES;
#pragma unroll
    for (int step = 0; step < S::STEPS / 2; step++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float *d = &dbias[BIAS ? step : 0][j * 4];
            float *to = out + (step / 2 ^ turn) * 64 + step % 2 * 32 + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2 *>(to) = make_float2(d[0], d[1]);
            *reinterpret_cast<float2 *>(to + 8 * S::QUERIES) = make_float2(d[2], d[3]);
        }
}

/* dbias[g,n,m,h] = sum over chunks of partial[chunk][G,H,keys,queries], in order. A warp: 8 queries x 4 keys, up to
 * four heads, so that reads and writes come in whole sectors. */
__global__ void __launch_bounds__(BW_THREADS)
    att_bw_join_kernel(Att a, const float *partial, bf16 *dbias, int chunks, int keys, int queries)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quads = (a.h + 3) / 4;
    int i = blockIdx.x * 32 + warp % 4 * 8 + lane % 8, j = blockIdx.y * 8 + warp / 4 * 4 + lane / 8;
    int head0 = blockIdx.z % quads * 4, group = blockIdx.z / quads;
    if (i >= a.n || j >= a.m) return;
    int64_t matrix = (int64_t)keys * queries, step = (int64_t)a.g * a.h * matrix;
    const float *p = partial + ((int64_t)group * a.h + head0) * matrix + (int64_t)j * queries + i;
    float sum[4] = {};
#pragma unroll 4
    for (int k = 0; k < chunks; k++)
#pragma unroll
        for (int head = 0; head < 4; head++)
            if (head0 + head < a.h) sum[head] += p[k * step + head * matrix];
    bf16 *to = dbias + a.bias_index(group, i, j, head0);
    if (a.h % 4 == 0)
        *reinterpret_cast<uint2 *>(to) = make_uint2(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]));
    else
        for (int head = 0; head0 + head < a.h; head++) to[head] = from_float<bf16>(sum[head]);
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
    p.bias_at = p.stats_at + align_up(heads * a.b * p.queries * sizeof(float2));
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
static Status bw_launch(const Att &a, const AttOperands<bf16> &x, char *scratch, cudaStream_t stream)
{
    typedef BwShape<D, BIAS> S;
    BwPlan p = bw_plan(a, BIAS);
    BwPrepared prepared = {(float *)(scratch + p.add_at), (float2 *)(scratch + p.stats_at),
                           (uint4 *)(scratch + p.bias_at)};
    float *partial = (float *)(scratch + p.partial_at);
    int splits = 4, rows = a.g * a.b * splits, pieces = BIAS ? a.g * a.h * S::TILES * S::STEPS : 0;
    att_bw_prepare_kernel<<<rows + pieces, BW_THREADS, 0, stream>>>(a, x, prepared, splits, S::KEYS, S::QUERIES);
    TRY(cuda_launched("att_bw_prepare_kernel"));

    BwMaps maps;
    TRY(bw_map(&maps.q, x.q, a, a.n, a.q_row, a.q_group, D, S::QUERIES));
    TRY(bw_map(&maps.go, x.go, a, a.n, a.q_row, a.q_group, D, S::QUERIES));
    TRY(bw_map(&maps.k, x.k, a, a.m, a.k_row, a.k_group, D, BW_KEYS));
    TRY(bw_map(&maps.v, x.v, a, a.m, a.k_row, a.k_group, D, BW_KEYS));
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = S::TILES, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(S::TILES, a.g * a.h, p.chunks);
    config.blockDim = dim3(BW_THREADS);
    config.dynamicSmemBytes = S::BYTES;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    CUDA_TRY(cudaFuncSetAttribute(att_bw_kernel<D, BIAS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::BYTES));
    CUDA_TRY(cudaLaunchKernelEx(&config, att_bw_kernel<D, BIAS>, a, x, maps, prepared, partial, p.rows));
    if (!BIAS) return OK;
    dim3 pairs((a.n + 31) / 32, (a.m + 7) / 8, a.g * ((a.h + 3) / 4));
    att_bw_join_kernel<<<pairs, BW_THREADS, 0, stream>>>(a, partial, x.dbias, p.chunks, S::KEYS, S::QUERIES);
    return cuda_launched("att_bw_join_kernel");
}

Status att_wgmma_backward_launch(const Att &a, const AttOperands<bf16> &x, void *scratch, cudaStream_t stream)
{
    if (a.d == 32)
        return x.bias ? bw_launch<32, true>(a, x, (char *)scratch, stream)
                      : bw_launch<32, false>(a, x, (char *)scratch, stream);
    return x.bias ? bw_launch<16, true>(a, x, (char *)scratch, stream)
                  : bw_launch<16, false>(a, x, (char *)scratch, stream);
}
