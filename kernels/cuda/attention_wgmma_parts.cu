/* Backward attention on wgmma: what its kernel reads besides the operands, and the sum of dbias over its blocks, and
 * over ranks. */
#include "kernels/cuda/att_backward.cuh"
#include "kernels/cuda/att_bias.cuh"
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/peer_exchange.cuh"

/* A piece of one group's bias */
template <int H>
__device__ __forceinline__ void bw_prepare_bias(const Att &a, const bf16 *bias, uint4 *out, int id, int steps)
{
    int step = id % steps, tile = id / steps % 2, group = id / steps / 2, lane = threadIdx.x % WARP;
    int key0 = tile * BW_KEYS + threadIdx.x / WARP * 16 + lane / 4, query0 = step * BW_STEP + lane % 4 * 2;
    int64_t at[8], head_step = (int64_t)2 * steps * BW_THREADS;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        int key = key0 + (e >> 1 & 1) * 8, query = query0 + (e >> 2) * 8 + (e & 1);
        at[e] = key < a.m && query < a.n ? a.bias_index(group, query, key, 0) : -1;
    }
    out += group * a.h * head_step + (int64_t)(tile * steps + step) * BW_THREADS + threadIdx.x;
    att_bias_heads<H>(a, bias, out, head_step, at);
}

/* x as the sum of three bf16, then `last` */
__device__ __forceinline__ uint2 bw_three(float x, float last)
{
    float high = to_float(from_float<bf16>(x)), middle = to_float(from_float<bf16>(x - high));
    return make_uint2(pack_bf16(high, middle), pack_bf16(x - high - middle, last));
}

__device__ __forceinline__ void bw_prepare_mask(const Att &a, float *add, const float *mask, bool any, int keys,
                                                int queries)
{
    for (int e = threadIdx.x % queries; e < keys / BW_KEYS * BW_LINE; e += queries) {
        int j = e / BW_LINE * BW_KEYS + e % BW_LINE;
        float x = j >= a.m ? ATT_PAD : mask && any ? a.inf * (mask[j] - 1.0f) / a.scale : 0.0f;
        add[e] = e % BW_LINE < BW_KEYS ? x : any ? 1.0f : 0.0f;
    }
}

/* The mask of a row, and a query of all its heads a thread: H of them, 0 for any number. */
template <int H>
__device__ __forceinline__ void bw_prepare_row(const Att &a, const AttOperands<bf16> &x, const BwPrepared &out, int id,
                                               int keys, int queries)
{
    int line = id * (BW_THREADS / queries) + threadIdx.x / queries, query = threadIdx.x % queries;
    int group = line / a.b, row = line % a.b;
    if (group >= a.g) return; /* a whole warp */
    bool live = query < a.n;
    const float *mask = a.mask ? a.mask_row(group, row) : NULL, *lse_at = x.lse_in + (int64_t)line * a.h * a.n + query;
    const float *delta_at = x.delta + a.delta_index(group, row, live ? query : 0, 0, a.d);
    __align__(16) float delta[H ? H : 1];
    float lse[H ? H : 1];
#pragma unroll
    for (int h = 0; h < H; h++) lse[h] = live ? lse_at[h * a.n] : 0.0f;
#pragma unroll
    for (int h = 0; h < H; h += 4)
        *reinterpret_cast<float4 *>(delta + h) = *reinterpret_cast<const float4 *>(delta_at + h);
    int any = !mask;
    for (int j = threadIdx.x % WARP; mask && j < a.m; j += WARP) any |= mask[j] > 0.0f;
    any = __any_sync(0xffffffffu, any);
    bw_prepare_mask(a, out.add + (int64_t)line * (keys / BW_KEYS * BW_LINE), mask, any, keys, queries);
    uint4 *to = out.stats + (int64_t)line * a.h * queries + query;
#pragma unroll
    for (int h = 0; h < (H ? H : a.h); h++) {
        if constexpr (H == 0) delta[0] = delta_at[h], lse[0] = live ? lse_at[h * a.n] : 0.0f;
        uint2 c = bw_three(!live ? ATT_PAD : any ? -lse[H ? h : 0] / a.scale : 0.0f, 1.0f);
        uint2 d = bw_three(live ? -delta[H ? h : 0] : 0.0f, 0.0f);
        to[h * queries] = make_uint4(c.x, c.y, d.x, d.y);
    }
}

/* Blocks: pieces of the bias, then rows, as many as make a block. */
template <int H>
__global__ void __launch_bounds__(BW_THREADS)
    att_bw_prepare_kernel(Att a, AttOperands<bf16> x, BwPrepared out, int pieces, int keys, int queries)
{
    stage_wait();
    stage_release(); /* what else the attention reads is complete */
    int id = (int)blockIdx.x - pieces;
    if (id < 0)
        bw_prepare_bias<H>(a, x.bias, out.bias, blockIdx.x, queries / BW_STEP);
    else
        bw_prepare_row<H>(a, x, out, id, keys, queries);
}

Status bw_prepare_launch(const Att &a, const AttOperands<bf16> &x, const BwPrepared &out, cudaStream_t stream)
{
    int tiles = x.bias ? BwExtent<true>::TILES : BwExtent<false>::TILES,
        queries = x.bias ? BwExtent<true>::QUERIES : BwExtent<false>::QUERIES, per = BW_THREADS / queries;
    int rows = (a.g * a.b + per - 1) / per, pieces = x.bias ? a.g * tiles * (queries / BW_STEP) : 0;
    bool whole = aligned16(x.delta) && aligned16(x.bias);
    auto kernel = whole && a.h == 8   ? att_bw_prepare_kernel<8>
                  : whole && a.h == 4 ? att_bw_prepare_kernel<4>
                                      : att_bw_prepare_kernel<0>;
    launch(kernel, pieces + rows, BW_THREADS, 0, stream, a, x, out, pieces, tiles * BW_KEYS, queries);
    return cuda_launched("att_bw_prepare_kernel");
}

/* dbias[g,n,m,h] = sum over chunks of partial[chunk][G,H,keys,queries], in order. A warp: 8 queries x 4 keys, up to
 * four heads, so that reads and writes come in whole sectors. */
__global__ void __launch_bounds__(BW_THREADS)
    att_bw_join_kernel(Att a, const float *partial, bf16 *dbias, int chunks, int keys, int queries)
{
    stage_wait();
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

/* --- the same, summed over the ranks
 * ---------------------------------------------------------------------------------------------- */

enum { SPREAD_THREADS = 512, SPREAD_QUERIES = 5, SPREAD_KEYS = 3, SPREAD_LEAST_KEYS = 1 /* of a tile, as shifts */ };
enum { SPREAD_SHARED = 48 << 10 };

/* A rank's piece of dbias has extent[0] x extent[1] pairs of a group, and begins rank * step further, along the axes of
 * pairs as they are stored. It goes tile by tile, so that blocks read whole lines of the partial sums: queries are next
 * to each other there, and heads here. */
struct BwSpread {
    PeerExchange exchange;
    int extent[2], step[2];
    uint32_t down, across; /* tiles of a group */
    int tile[2], line;     /* as shifts: pairs of a tile; units of its lines, along the last axis of pairs */
};

/* What a block has of all pieces, in shared memory: lines as they will be stored, a unit apart, which keeps stores of
 * neighbouring queries out of one bank. */
template <int H> struct BwPieces {
    typedef PeerUnit<bf16, 8> U;
    typedef BwExtent<true> E;
    static constexpr int THREADS = SPREAD_THREADS, UNROLL = 1;
    const Att &a;
    const BwSpread &s;
    const float *partial;
    bf16 *dbias;
    int chunks;
    U *lines; /* [rank][line] */
    PeerPart part;

    struct Tile {
        int group, at0, at1; /* first pair, within the piece */
    };
    __device__ __forceinline__ Tile tile(uint32_t n) const
    {
        uint32_t row = n / s.across, column = n - row * s.across, group = a.g > 1 ? row / s.down : 0;
        return {(int)group, (int)((row - group * s.down) << s.tile[0]), (int)(column << s.tile[1])};
    }
    __device__ __forceinline__ U *line(int rank, uint32_t n) const
    {
        return lines + ((uint32_t)rank * (s.exchange.share >> s.line) + n) * ((1u << s.line) + 1);
    }

    /* Two heads of a pair, item n of what this block has of the piece of a rank. */
    __device__ __forceinline__ void make(int rank, uint32_t n) const
    {
        constexpr int MATRIX = E::TILES * BW_KEYS * E::QUERIES;
        uint32_t i = n & ((1u << SPREAD_QUERIES) - 1), rest = n >> SPREAD_QUERIES, heads = rest % (H / 2);
        int keys = a.bias_t ? s.tile[0] : s.tile[1];
        uint32_t pair = rest / (H / 2), t = pair >> keys, j = pair - (t << keys);
        Tile w = tile((part.first >> (s.tile[0] + s.line)) + t);
        int at0 = w.at0 + rank * s.step[0], at1 = w.at1 + rank * s.step[1];
        int query = (a.bias_t ? at1 : at0) + (int)i, key = (a.bias_t ? at0 : at1) + (int)j;
        const float *p = partial + ((int64_t)w.group * H + heads * 2) * MATRIX + key * E::QUERIES + query;
        /* chunks times it fit in 32 bits: there is more than one only where that makes no more blocks than SMs */
        uint32_t step = (uint32_t)a.g * H * MATRIX;
        float sum[2] = {};
#pragma unroll 8
        for (uint32_t k = 0; k < (uint32_t)chunks; k++) {
            const float *from = p + k * step;
            sum[0] += from[0], sum[1] += from[MATRIX];
        }
        uint32_t row = a.bias_t ? j : i, column = a.bias_t ? i : j;
        uint32_t *to = reinterpret_cast<uint32_t *>(line(rank, (t << s.tile[0]) + row));
        to[column * (H / 2) + heads] = pack_bf16(sum[0], sum[1]);
    }
    __device__ __forceinline__ void others() const
    {
        const PeerExchange &e = s.exchange;
        uint32_t items = part.count * 4, n = threadIdx.x;
        for (int k = 1; k < e.ranks; k++, n -= items) {
            int rank = e.rank + k < e.ranks ? e.rank + k : e.rank + k - e.ranks;
            for (; n < items; n += SPREAD_THREADS) make(rank, n);
        }
    }
    __device__ __forceinline__ void own() const
    {
        for (uint32_t n = threadIdx.x; n < part.count * 4; n += SPREAD_THREADS) make(s.exchange.rank, n);
    }

    __device__ __forceinline__ U mine(int rank, uint32_t i) const
    {
        uint32_t n = i >> s.line;
        return line(rank, n)[i - (n << s.line)];
    }
    __device__ __forceinline__ uint32_t land(int rank, uint32_t i) const
    {
        return (uint32_t)rank * s.exchange.piece + part.first + i;
    }
    __device__ __forceinline__ void keep(uint32_t i, U unit) const
    {
        uint32_t n = (part.first + i) >> s.line, t = n >> s.tile[0], row = n - (t << s.tile[0]);
        Tile w = tile(t);
        int64_t pair = ((int64_t)w.group * s.extent[0] + w.at0 + row) * s.extent[1] + w.at1;
        reinterpret_cast<U *>(dbias + pair * H)[part.first + i - (n << s.line)] = unit;
    }
};

template <int H>
__global__ void __launch_bounds__(SPREAD_THREADS, 2)
    att_bw_join_send_kernel(Att a, const __grid_constant__ BwSpread s, const float *partial, bf16 *dbias, int chunks)
{
    stage_wait();
    extern __shared__ __align__(16) char shared[];
    BwPieces<H> pieces = {a, s, partial, dbias, chunks, (PeerUnit<bf16, 8> *)shared, peer_part(s.exchange, blockIdx.x)};
    peer_exchange_sum(s.exchange, blockIdx.x, pieces);
}

static size_t spread_bytes(const BwSpread &s, int64_t ranks)
{
    return (size_t)ranks * (s.exchange.share >> s.line) * ((1u << s.line) + 1) * 16;
}

/* All of it but what a kernel knows of the ranks; the same on all of them. false: dbias cannot be shared out so. */
static bool spread_of(const Att &a, const OpCall *call, BwSpread *s)
{
    const Send *send = &call->op->send;
    const Tensor *x = call->out_tensor[send->output], *y = call->send_tensor;
    int axis = (int)send->attr.i[0], cut = axis - (x->rank - 3), of_queries = a.bias_t ? 1 : 0;
    if (send->kind != OP_REDUCE_SCATTER || cut < 0 || cut > 1 || (a.h != 4 && a.h != 8)) return false;
    *s = {};
    for (int k = 0; k < 2; k++) {
        s->extent[k] = (int)y->dim[y->rank - 3 + k];
        s->step[k] = k == cut ? s->extent[k] : 0;
    }
    int queries = s->extent[of_queries], keys = s->extent[1 - of_queries], tile = SPREAD_KEYS;
    if (queries % (1 << SPREAD_QUERIES) || keys % (1 << tile) || queries == 0 || keys == 0) return false;
    int64_t lines = (int64_t)a.g * keys * (queries >> SPREAD_QUERIES), ranks = x->dim[axis] / y->dim[axis];
    while (tile > SPREAD_LEAST_KEYS && (lines >> tile) * 2 <= PEER_BLOCKS) tile--;
    s->tile[of_queries] = SPREAD_QUERIES, s->tile[1 - of_queries] = tile;
    s->down = (uint32_t)(s->extent[0] >> s->tile[0]), s->across = (uint32_t)(s->extent[1] >> s->tile[1]);
    s->line = s->tile[1] - (a.h == 4); /* a unit is a pair of 8 heads or two of 4 */
    int64_t tiles = lines >> tile, units = INT64_C(1) << (s->tile[0] + s->line);
    s->exchange.piece = (uint32_t)(tiles * units);
    s->exchange.share = (uint32_t)((tiles + PEER_BLOCKS - 1) / PEER_BLOCKS * units);
    return ranks <= PEER_RANKS && spread_bytes(*s, ranks) <= SPREAD_SHARED;
}

bool att_wgmma_sends(const Att &a, const OpCall *call)
{
    BwSpread s;
    return att_wgmma_fits(a, call_in(call, 5) != NULL) && spread_of(a, call, &s);
}

static Status spread_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const float *partial, bf16 *dbias,
                            int chunks)
{
    BwSpread s;
    if (!spread_of(a, call, &s)) return status_fail(ERR_INTERNAL, "attention_bwd was to send and cannot");
    uint32_t piece = s.exchange.piece, share = s.exchange.share;
    TRY(peer_sum_of(ctx, call, piece, share, &s.exchange));
    auto kernel = a.h == 8 ? att_bw_join_send_kernel<8> : att_bw_join_send_kernel<4>;
    launch(kernel, (piece + share - 1) / share, SPREAD_THREADS, spread_bytes(s, s.exchange.ranks), ctx->stream, a, s,
           partial, dbias, chunks);
    return cuda_launched("att_bw_join_send_kernel");
}

Status bw_join_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const float *partial, bf16 *dbias,
                      int chunks)
{
    typedef BwExtent<true> E;
    if (call->op->send.active) return spread_launch(ctx, call, a, partial, dbias, chunks);
    dim3 pairs((a.n + 31) / 32, (a.m + 7) / 8, a.g * ((a.h + 3) / 4));
    launch(att_bw_join_kernel, pairs, BW_THREADS, 0, ctx->stream, a, partial, dbias, chunks, E::TILES * BW_KEYS,
           E::QUERIES);
    return cuda_launched("att_bw_join_kernel");
}
