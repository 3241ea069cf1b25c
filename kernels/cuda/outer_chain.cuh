/* The outer product mean and the gradients of its operands as chained products (chain.cuh). */
#ifndef FOLDSCALE_KERNELS_CUDA_OUTER_CHAIN_CUH
#define FOLDSCALE_KERNELS_CUDA_OUTER_CHAIN_CUH

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/norm_tile.cuh"
#include "kernels/cuda/outer_project.cuh"
#include "kernels/cuda/outer_weights.cuh"
#include "kernels/cuda/peer_exchange.cuh"
#include "kernels/cuda/transpose.cuh"

struct Outer {
    int64_t s, n, m, c, d;
    DType type;
};

static Outer outer_make(const Tensor *a, const Tensor *b)
{
    return {a->dim[0], a->dim[1], b->dim[1], a->dim[2], b->dim[2], a->dtype};
}
static size_t outer_bytes(const Outer &o)
{
    return align_up((size_t)(o.n * o.m * o.c * o.d) * dtype_size(o.type));
}

static bool opm_chains(const Outer &o, int64_t channels)
{
    return o.type == DT_BF16 && o.s == CHAIN_K && o.d == CHAIN_D && channels == CHAIN_N && chain_fits(o.n, o.c, o.m);
}

/* --- operands with another axis last */

/* x[128, columns] times its masks -> across[columns, 128] and, where asked for, plain[128, columns].
 * `swap`: columns (c, d) go to rows (d, c). */
struct Turn {
    const bf16 *x;
    bf16 *across, *plain;
    AnyReal mask; /* of (row, column / channels), or none */
    int columns, channels;
    bool swap;
};

enum { TURNS = 4, TURN_COLUMNS = 64 };
struct Turns {
    Turn turn[TURNS];
    int count;
    unsigned first[TURNS + 1]; /* block at which each begins */
};

typedef HalvesTile<CHAIN_K, TURN_COLUMNS> TurnTile;

__device__ __forceinline__ void opm_turn_tile(const Turn &t, int block, TurnTile &tile)
{
    constexpr int R = CHAIN_K, C = TURN_COLUMNS, EACH = R * C / 8 / 256;
    int column0 = block * C, groups = t.columns / t.channels;
    Pack<bf16> v[EACH];
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, r = k / (C / 8), c = column0 + k % (C / 8) * 8;
        if (c < t.columns) v[it] = load_pack(t.x + (int64_t)r * t.columns + c);
    }
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, r = k / (C / 8), c = column0 + k % (C / 8) * 8;
        if (t.mask.p && c < t.columns) {
            float m = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (j == 0 || t.channels % 8) m = t.mask[r * groups + (c + j) / t.channels];
                v[it].v[j] = from_float<bf16>(to_float(v[it].v[j]) * m);
            }
        }
        if (t.plain && c < t.columns) store_pack(t.plain + (int64_t)r * t.columns + c, v[it]);
        tile.put_row(r, c - column0, *reinterpret_cast<const uint4 *>(&v[it]));
    }
    __syncthreads();
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, c = k / (R / 8), r = k % (R / 8) * 8, row = column0 + c;
        if (row >= t.columns) continue;
        if (t.swap) row = row % t.channels * groups + row / t.channels;
        *reinterpret_cast<uint4 *>(t.across + (int64_t)row * R + r) = tile.get_column(r, c);
    }
}

/* dz = dy / (count + eps) over [pairs, 128], and the sums over the pairs of a block to partial[block][128]; 16 lanes
 * own a pair. */
struct Scale {
    const bf16 *dy;
    bf16 *dz;
    AnyReal count;
    float eps;
    int64_t pairs;
    float *partial;
};
enum { SCALE_BLOCKS = 528, SCALE_LANES = CHAIN_N / 8, SCALE_PAIRS = 256 / SCALE_LANES };

__device__ __forceinline__ void opm_scale_block(const Scale &s, int block, float (*shared)[CHAIN_N])
{
    int channel = threadIdx.x % SCALE_LANES * 8, own = threadIdx.x / SCALE_LANES;
    float sum[8] = {};
#pragma unroll 4
    for (int64_t pair = (int64_t)block * SCALE_PAIRS + own; pair < s.pairs; pair += SCALE_BLOCKS * SCALE_PAIRS) {
        float v[8], scale = 1.0f / (s.count[pair] + s.eps);
        load_floats<8>(s.dy + pair * CHAIN_N + channel, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= scale, sum[j] += v[j];
        store_floats<8>(s.dz + pair * CHAIN_N + channel, v);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) shared[own][channel + j] = sum[j];
    __syncthreads();
    if (threadIdx.x >= CHAIN_N) return;
    float total = 0;
    for (int k = 0; k < SCALE_PAIRS; k++) total += shared[k][threadIdx.x];
    s.partial[(int64_t)block * CHAIN_N + threadIdx.x] = total;
}

/* Blocks of the scale, if there is one, then those of the turns. */
static __global__ void __launch_bounds__(256)
    opm_prepare_kernel(const __grid_constant__ Turns turns, const __grid_constant__ Scale scale)
{
    stage_wait();
    stage_release();
    __shared__ union {
        TurnTile tile;
        float sums[SCALE_PAIRS][CHAIN_N];
    } shared;
    int block = (int)blockIdx.x - (scale.dy ? SCALE_BLOCKS : 0), which = 0;
    if (block < 0) return opm_scale_block(scale, (int)blockIdx.x, shared.sums);
    while (which + 1 < turns.count && block >= (int)turns.first[which + 1]) which++;
    opm_turn_tile(turns.turn[which], block - (int)turns.first[which], shared.tile);
}

static Status opm_prepare_launch(const Scale &scale, Turns &turns, cudaStream_t stream)
{
    for (int k = 0; k < turns.count; k++)
        turns.first[k + 1] = turns.first[k] + blocks_for(turns.turn[k].columns, TURN_COLUMNS);
    unsigned blocks = turns.first[turns.count] + (scale.dy ? SCALE_BLOCKS : 0);
    launch(opm_prepare_kernel, blocks, 256, 0, stream, turns, scale);
    return cuda_launched("opm_prepare_kernel");
}

static Turn opm_turn(const void *x, bf16 *across, int64_t groups, int64_t channels)
{
    return {(const bf16 *)x, across, NULL, {NULL, DT_F32}, (int)(groups * channels), (int)channels, false};
}

static bool opm_aligned(const OpCall *call)
{
    bool all = true;
    for (int k = 0; k < call->op->n_in; k++) all = all && (!call->in_tensor[k] || aligned16(call->in[k]));
    for (int k = 0; k < call->op->n_out; k++) all = all && (!call->out_tensor[k] || aligned16(call->out[k]));
    return all;
}

/* elements of a and b with s last */
static int64_t opm_turned(const Outer &o)
{
    return o.s * (o.n * o.c + o.m * o.d);
}

/* --- forward */

/* y[i, j, n] = (x + bias) / (count + eps), plus the residual where there is one; then the layer norm of y */
struct OpmEpilogue {
    static constexpr int PROBLEMS = 1;
    bf16 *y;
    const bf16 *residual;
    AnyReal count;
    const float *bias;
    float eps;
    int m;
    FrontNorm norm;
    /* a thread per row brings what put() will read of four j to the L2 cache */
    __device__ __forceinline__ void fetch(int i, int j0) const
    {
        if (residual) bulk_prefetch(residual + place(i, j0, 0), CHAIN_P * CHAIN_N * sizeof(bf16));
    }
    __device__ __forceinline__ void put(const float (&r)[64], int, int i, int j) const { chain_store(*this, r, i, j); }
    __device__ __forceinline__ float scale(int i, int j) const { return 1.0f / (count[(int64_t)i * m + j] + eps); }
    __device__ __forceinline__ uint32_t lower(float scale, int n, float a, float b) const
    {
        return pack_bf16((a + bias[n]) * scale, (b + bias[n + 1]) * scale);
    }
    __device__ __forceinline__ int64_t place(int i, int j, int n) const { return ((int64_t)i * m + j) * CHAIN_N + n; }
    __device__ __forceinline__ uint4 before(int i, int j, int n) const
    {
        return residual ? *reinterpret_cast<const uint4 *>(residual + place(i, j, n)) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ uint4 store(int i, int j, int n, uint4 v, uint4 r) const
    {
        if (residual) {
            v.x = add_bf16(v.x, r.x), v.y = add_bf16(v.y, r.y), v.z = add_bf16(v.z, r.z), v.w = add_bf16(v.w, r.w);
        }
        *reinterpret_cast<uint4 *>(y + place(i, j, n)) = v;
        return v;
    }
    /* Four neighbouring lanes have a row, lane t of them its runs t, 4 + t, ... of eight channels. */
    __device__ __forceinline__ void finish(int i, int j, const uint4 (&row)[CHAIN_N / 32]) const
    {
        if (!norm.gamma) return;
        constexpr int RUNS = CHAIN_N / 32;
        int lane = threadIdx.x % 4;
        float s[RUNS];
        uint32_t v[RUNS][4];
#pragma unroll
        for (int k = 0; k < RUNS; k++) {
            v[k][0] = row[k].x, v[k][1] = row[k].y, v[k][2] = row[k].z, v[k][3] = row[k].w;
            s[k] = eight_sum(v[k]);
        }
        float mean = lanes_sum<4>(pairs_sum(s)) / CHAIN_N;
#pragma unroll
        for (int k = 0; k < RUNS; k++) s[k] = eight_squares(v[k], mean);
        float rstd = 1.0f / sqrtf(lanes_sum<4>(pairs_sum(s)) / CHAIN_N + norm.eps);
#pragma unroll
        for (int k = 0; k < RUNS; k++) {
            int n = (4 * k + lane) * 8;
            eight_normalize(v[k], mean, rstd, eight_scales(norm, n));
            *reinterpret_cast<uint4 *>(norm.y + place(i, j, n)) = make_uint4(v[k][0], v[k][1], v[k][2], v[k][3]);
        }
        if (!norm.mean || lane > 0) return;
        norm.mean[(int64_t)i * m + j] = mean;
        norm.rstd[(int64_t)i * m + j] = rstd;
    }
    static __device__ __forceinline__ uint32_t add_bf16(uint32_t a, uint32_t b)
    {
        float2 x = unpack_bf16(a), y = unpack_bf16(b);
        return pack_bf16(x.x + y.x, x.y + y.y);
    }
};

static FrontNorm opm_norm(const OpCall *call)
{
    if (!call_in(call, 8)) return {};
    return {(const float *)call->in[8], (const float *)call->in[9], (float)call->op->attr.f[1],
            (bf16 *)call->out[1],       (float *)call->out[2],      (float *)call->out[3]};
}

static OpmEpilogue opm_epilogue(const OpCall *call)
{
    const bf16 *residual = call_in(call, 5) ? (const bf16 *)call->in[5] : NULL;
    return {(bf16 *)call->out[0],
            residual,
            any_in(call, 4),
            (const float *)call->in[3],
            (float)call->op->attr.f[0],
            (int)call->in_tensor[1]->dim[1],
            opm_norm(call)};
}

static Status opm_chain(CudaContext *ctx, const OpCall *call, const Outer &o)
{
    bf16 *a = (bf16 *)call->scratch, *b = a + o.s * o.n * o.c;
    Turns turns = {};
    turns.count = 2;
    turns.turn[0] = opm_turn(call->in[0], a, o.n, o.c), turns.turn[1] = opm_turn(call->in[1], b, o.m, o.d);
    turns.turn[0].mask = any_in(call, 6), turns.turn[1].mask = any_in(call, 7);
    Scale none = {};
    TRY(opm_prepare_launch(none, turns, ctx->stream));
    OpmEpilogue e = opm_epilogue(call);
    /* x_c[i, s], y_j[d, s], v_c[n, d] */
    ChainOperands p = {a, b, (const bf16 *)call->in[2], o.n, o.c, o.m, o.s, o.c * o.s};
    const int runs = 1;
    return chain_launch(&p, &runs, &e, ctx->stream);
}

/* --- gradients: do = dz W in both of a and b, o in that of W, never in memory */

static bool opm_chains_back(const Outer &o, int64_t channels)
{
    return o.type == DT_BF16 && o.s == CHAIN_N && o.c == CHAIN_D && o.d == CHAIN_D && channels == CHAIN_K &&
           chain_fits(o.n, o.m, o.c) && chain_fits(o.m, o.n, o.d) && outer_weights_fits(o.n, o.m, o.c);
}

/* sums[run][32][residues][128] -> y[128][residues][32], the runs added in order */
struct Join {
    const float *sums;
    bf16 *y;
    AnyReal mask; /* of (s, residue), or none */
    int runs, residues;
};
/* sums[runs][count] -> y[count] */
struct JoinWeights {
    const float *sums;
    float *y;
    int runs, count;
};
struct Joins {
    Join join[2];
    JoinWeights weights;
    const float *partial; /* of the scale */
    float *dbias;
};
enum { JOIN_THREADS = 256, JOIN_CHANNELS = 16 /* of dbias, a block */ };

__device__ __forceinline__ void opm_join_bias(const Joins &p, int block, float *shared)
{
    int channel = block * JOIN_CHANNELS + (int)threadIdx.x % JOIN_CHANNELS, lane = threadIdx.x / JOIN_CHANNELS;
    float sum = 0;
#pragma unroll 11
    for (int k = lane; k < SCALE_BLOCKS; k += 256 / JOIN_CHANNELS) sum += p.partial[k * CHAIN_N + channel];
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= JOIN_CHANNELS) return;
    for (int k = 1; k < 256 / JOIN_CHANNELS; k++) sum += shared[k * JOIN_CHANNELS + threadIdx.x];
    p.dbias[channel] = sum;
}

__device__ __forceinline__ void opm_join_weights(const JoinWeights &p, int block)
{
    int at = (block * 256 + (int)threadIdx.x) * 4;
    if (at >= p.count) return;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int run = 0; run < p.runs; run++) {
        float4 v = *reinterpret_cast<const float4 *>(p.sums + (int64_t)run * p.count + at);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    *reinterpret_cast<float4 *>(p.y + at) = sum;
}

typedef float JoinTile[CHAIN_N][CHAIN_D + 1];

/* Blocks of dbias, a block per residue of either, those of dW. */
__device__ __forceinline__ void opm_join_block(const Joins &joins, int block, JoinTile &tile)
{
    int at = block - CHAIN_N / JOIN_CHANNELS, second = at >= joins.join[0].residues;
    if (at < 0) return opm_join_bias(joins, block, &tile[0][0]);
    const Join &p = joins.join[second];
    at -= second ? joins.join[0].residues : 0;
    if (second && at >= p.residues) return opm_join_weights(joins.weights, at - p.residues);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int c = warp; c < CHAIN_D; c += 8) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (int run = 0; run < p.runs; run++) {
            const float *from = p.sums + (((int64_t)run * CHAIN_D + c) * p.residues + at) * CHAIN_N + lane * 4;
            float4 v = *reinterpret_cast<const float4 *>(from);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        tile[lane * 4][c] = sum.x, tile[lane * 4 + 1][c] = sum.y;
        tile[lane * 4 + 2][c] = sum.z, tile[lane * 4 + 3][c] = sum.w;
    }
    __syncthreads();
#pragma unroll
    for (int k = threadIdx.x; k < CHAIN_N * CHAIN_D / 8; k += 256) {
        int s = k / (CHAIN_D / 8), c = k % (CHAIN_D / 8) * 8;
        int64_t row = (int64_t)s * p.residues + at;
        float v[8], m = p.mask.p ? p.mask[row] : 1.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = tile[s][c + j] * m;
        store_floats<8>(p.y + row * CHAIN_D + c, v);
    }
}

static __global__ void __launch_bounds__(JOIN_THREADS) opm_join_kernel(const __grid_constant__ Joins joins)
{
    stage_wait();
    __shared__ JoinTile tile;
    opm_join_block(joins, (int)blockIdx.x, tile);
}

/* --- the second summed over the ranks, too, each of which gets residues of its own */

struct JoinSend {
    PeerExchange exchange;
    Join join; /* y: the `residues` of this rank */
    int residues, blocks;
};
/* Units are eight channels of (residue, s); blocks have whole runs of JOIN_RUN of s. */
enum { JOIN_UNITS = CHAIN_D / 8, JOIN_RUN = WARP, JOIN_SHARED = 48 << 10 };

/* What a block has of all pieces, in shared memory. */
struct JoinPieces {
    typedef PeerUnit<bf16, 8> U;
    static constexpr int THREADS = JOIN_THREADS, UNROLL = 2;
    const JoinSend &p;
    U *unit; /* [rank][share] */
    PeerPart part;

    struct Row {
        int residue, s;
    };
    __device__ __forceinline__ Row row(uint32_t i) const
    {
        uint32_t n = (part.first + i) / JOIN_UNITS;
        return {(int)(n / CHAIN_N), (int)(n % CHAIN_N)};
    }
    /* Neighbouring threads make units of neighbouring s: not all in one bank. */
    __device__ __forceinline__ U *place(int rank, uint32_t i) const
    {
        return unit + (uint32_t)rank * p.exchange.share + (i ^ (i / (2 * JOIN_UNITS) % JOIN_UNITS));
    }
    __device__ __forceinline__ void make(int rank, uint32_t n) const
    {
        uint32_t run = n / (JOIN_RUN * JOIN_UNITS), channels = n / JOIN_RUN % JOIN_UNITS,
                 i = (run * JOIN_RUN + n % JOIN_RUN) * JOIN_UNITS + channels;
        Row r = row(i);
        int at = rank * p.residues + r.residue;
        uint32_t step = (uint32_t)p.join.residues * CHAIN_N;
        const float *from = p.join.sums + (int64_t)channels * 8 * step + at * CHAIN_N + r.s;
        float v[8] = {}, m = p.join.mask.p ? p.join.mask[(int64_t)r.s * p.join.residues + at] : 1.0f;
#pragma unroll 2
        for (uint32_t k = 0; k < (uint32_t)p.join.runs; k++)
#pragma unroll
            for (uint32_t c = 0; c < 8; c++) v[c] += from[(k * CHAIN_D + c) * step];
#pragma unroll
        for (int c = 0; c < 8; c++) v[c] *= m;
        store_floats<8>((bf16 *)place(rank, i), v);
    }
    __device__ __forceinline__ void others() const
    {
        const PeerExchange &e = p.exchange;
        uint32_t n = threadIdx.x;
        for (int k = 1; k < e.ranks; k++, n -= part.count)
            for (; n < part.count; n += THREADS) make((e.rank + k) % e.ranks, n);
    }
    __device__ __forceinline__ void own() const
    {
        for (uint32_t n = threadIdx.x; n < part.count; n += THREADS) make(p.exchange.rank, n);
    }
    __device__ __forceinline__ U mine(int rank, uint32_t i) const
    {
        return *place(rank, i);
    }
    __device__ __forceinline__ uint32_t land(int rank, uint32_t i) const
    {
        return (uint32_t)rank * p.exchange.piece + part.first + i;
    }
    __device__ __forceinline__ void keep(uint32_t i, U sum) const
    {
        Row r = row(i);
        ((U *)p.join.y)[((int64_t)r.s * p.residues + r.residue) * JOIN_UNITS + i % JOIN_UNITS] = sum;
    }
};

/* The blocks that exchange, then those of the other sums; joins.join[1] has no residues. */
static __global__ void __launch_bounds__(JOIN_THREADS)
    opm_join_send_kernel(const __grid_constant__ Joins joins, const __grid_constant__ JoinSend send)
{
    stage_wait();
    extern __shared__ __align__(16) char shared[];
    int block = (int)blockIdx.x - send.blocks;
    if (block >= 0) return opm_join_block(joins, block, *(JoinTile *)shared);
    JoinPieces pieces = {send, (PeerUnit<bf16, 8> *)shared, peer_part(send.exchange, blockIdx.x)};
    peer_exchange_sum(send.exchange, blockIdx.x, pieces);
}

static size_t join_send_bytes(const JoinSend &s, int64_t ranks)
{
    return (size_t)ranks * s.exchange.share * 16;
}

/* All of it but what a kernel knows of the ranks; the same on all of them. false: the residues cannot be shared out so.
 */
static bool join_send_of(const OpCall *call, JoinSend *s)
{
    const Send *send = &call->op->send;
    const Tensor *x = call->out_tensor[1], *y = call->send_tensor;
    if (send->output != 1 || send->kind != OP_REDUCE_SCATTER || send->attr.i[0] != 1 || y->dim[1] == 0) return false;
    *s = {};
    s->residues = (int)y->dim[1];
    int64_t runs = y->dim[1] * (CHAIN_N / JOIN_RUN), units = JOIN_RUN * JOIN_UNITS, ranks = x->dim[1] / y->dim[1];
    s->exchange.piece = (uint32_t)(runs * units);
    s->exchange.share = (uint32_t)((runs + PEER_BLOCKS - 1) / PEER_BLOCKS * units);
    s->blocks = (int)((s->exchange.piece + s->exchange.share - 1) / s->exchange.share);
    return ranks <= PEER_RANKS && join_send_bytes(*s, ranks) <= JOIN_SHARED;
}

/* where the sums of all three lie */
struct OpmSums {
    int runs_a, runs_b, runs_w;
    int64_t of_a, of_b, of_w; /* elements */
};
static OpmSums opm_sums(const Outer &o)
{
    OpmSums s;
    s.runs_a = chain_runs(o.n, o.m, o.c), s.runs_b = chain_runs(o.m, o.n, o.d);
    s.runs_w = (int)outer_weights_parts(o.n, o.m, o.c);
    s.of_a = (int64_t)s.runs_a * o.c * o.n * CHAIN_N, s.of_b = (int64_t)s.runs_b * o.d * o.m * CHAIN_N;
    s.of_w = (int64_t)s.runs_w * CHAIN_N * o.c * o.d;
    return s;
}
static size_t opm_sums_room(const Outer &o)
{
    OpmSums s = opm_sums(o);
    return align_up((size_t)(s.of_a + s.of_b + s.of_w) * sizeof(float));
}

/* a_across[(i, c), s], b_across[(j, d), s]; a, b as the op has them, but masked; w_of_c[(c, d), n], w_of_d[(d, c), n]
 */
struct OpmBack {
    const bf16 *a, *b, *a_across, *b_across, *w_of_c, *w_of_d;
};
static size_t opm_back_room(const Outer &o)
{
    return align_up((size_t)(2 * opm_turned(o) + 2 * o.c * o.d * CHAIN_K) * sizeof(bf16));
}

static Turns opm_back_turns(const OpCall *call, const Outer &o, void *room, OpmBack *out)
{
    int64_t of_a = o.s * o.n * o.c, of_b = o.s * o.m * o.d;
    bf16 *a = (bf16 *)room, *b = a + of_a, *w_of_c = b + of_b, *w_of_d = w_of_c + o.c * o.d * CHAIN_K;
    bf16 *a_plain = w_of_d + o.c * o.d * CHAIN_K, *b_plain = a_plain + of_a;
    Turns turns = {};
    turns.count = 4;
    turns.turn[0] = opm_turn(call->in[1], a, o.n, o.c), turns.turn[1] = opm_turn(call->in[2], b, o.m, o.d);
    turns.turn[2] = opm_turn(call->in[3], w_of_c, o.c, o.d), turns.turn[3] = opm_turn(call->in[3], w_of_d, o.c, o.d);
    turns.turn[3].swap = true;
    bool masked = call_in(call, 5);
    turns.turn[0].mask = any_in(call, 5), turns.turn[1].mask = any_in(call, 6);
    if (masked) turns.turn[0].plain = a_plain, turns.turn[1].plain = b_plain;
    *out = {masked ? a_plain : (const bf16 *)call->in[1],
            masked ? b_plain : (const bf16 *)call->in[2],
            a,
            b,
            w_of_c,
            w_of_d};
    return turns;
}

static Status opm_join_launch(const CudaContext *ctx, const OpCall *call, const Outer &o, const OpmSums &plan,
                              const float *sums, const float *partial)
{
    const float *sums_b = sums + plan.of_a, *sums_w = sums_b + plan.of_b;
    Joins joins = {{{sums, (bf16 *)call->out[0], any_in(call, 5), plan.runs_a, (int)o.n},
                    {sums_b, (bf16 *)call->out[1], any_in(call, 6), plan.runs_b, (int)o.m}},
                   {sums_w, (float *)call->out[2], plan.runs_w, (int)(CHAIN_N * o.c * o.d)},
                   partial,
                   (float *)call->out[3]};
    unsigned blocks = (unsigned)(CHAIN_N / JOIN_CHANNELS + o.n) + blocks_for(joins.weights.count, 1024);
    if (!call->op->send.active) {
        launch(opm_join_kernel, blocks + (unsigned)o.m, JOIN_THREADS, 0, ctx->stream, joins);
        return cuda_launched("opm_join_kernel");
    }
    JoinSend send;
    if (!join_send_of(call, &send)) return status_fail(ERR_INTERNAL, "opm_bwd was to send and cannot");
    TRY(peer_sum_of(ctx, call, send.exchange.piece, send.exchange.share, &send.exchange));
    send.join = joins.join[1];
    joins.join[1].residues = 0;
    size_t pieces = join_send_bytes(send, send.exchange.ranks);
    launch(opm_join_send_kernel, (unsigned)send.blocks + blocks, JOIN_THREADS,
           pieces > sizeof(JoinTile) ? pieces : sizeof(JoinTile), ctx->stream, joins, send);
    return cuda_launched("opm_join_send_kernel");
}

/* room: of opm_back_room(); dz[i, j, n] */
static Status opm_bwd_chain(CudaContext *ctx, const OpCall *call, const Outer &o, char *sums_at, char *room, bf16 *dz,
                            float *partial)
{
    OpmBack back;
    OpmSums plan = opm_sums(o);
    Turns turns = opm_back_turns(call, o, room, &back);
    Scale scale = {(const bf16 *)call->in[0], dz, any_in(call, 4), (float)call->op->attr.f[0], o.n * o.m, partial};
    TRY(opm_prepare_launch(scale, turns, ctx->stream));
    float *sums = (float *)sums_at, *sums_b = sums + plan.of_a, *sums_w = sums_b + plan.of_b;
    TRY(outer_weights_launch({back.a_across, back.b_across, dz, o.n, o.m, o.c}, sums_w, ctx->stream));
    const ChainSums to[2] = {{sums, (int)o.n, (int)o.c}, {sums_b, (int)o.m, (int)o.d}};
    /* x_j[i, n], y_c[d, n], v_j[s, d]; x_i[j, n], y_d[c, n], v_i[s, c] */
    const ChainOperands from[2] = {{dz, back.w_of_c, back.b, o.n, o.m, o.c, CHAIN_K, o.m * CHAIN_K},
                                   {dz, back.w_of_d, back.a, o.m, o.n, o.d, o.m * CHAIN_K, CHAIN_K}};
    const int runs[2] = {plan.runs_a, plan.runs_b};
    TRY(chain_launch(from, runs, to, ctx->stream));
    return opm_join_launch(ctx, call, o, plan, sums, partial);
}

#endif
