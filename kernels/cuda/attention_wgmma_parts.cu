/* Backward attention on wgmma: what its kernel reads besides the operands, and the sum of dbias over its blocks. */
#include "kernels/cuda/att_backward.cuh"
#include "kernels/cuda/att_bias.cuh"

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

Status bw_join_launch(const Att &a, const float *partial, bf16 *dbias, int chunks, cudaStream_t stream)
{
    typedef BwExtent<true> E;
    dim3 pairs((a.n + 31) / 32, (a.m + 7) / 8, a.g * ((a.h + 3) / 4));
    launch(att_bw_join_kernel, pairs, BW_THREADS, 0, stream, a, partial, dbias, chunks, E::TILES * BW_KEYS, E::QUERIES);
    return cuda_launched("att_bw_join_kernel");
}
