/* Gradients of the outer product mean as chained products: do = dz W in both of a and b, o in that of W, never in
 * memory. */
#ifndef FOLDSCALE_KERNELS_CUDA_OUTER_CHAIN_BACK_CUH
#define FOLDSCALE_KERNELS_CUDA_OUTER_CHAIN_BACK_CUH

#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/outer_chain.cuh"
#include "kernels/cuda/outer_weights.cuh"
#include "kernels/cuda/peer_exchange.cuh"

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
