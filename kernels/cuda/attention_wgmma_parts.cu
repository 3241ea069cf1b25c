/* Backward attention on wgmma: what its kernel reads besides the operands, and the sum of dbias over its blocks. */
#include "kernels/cuda/att_backward.cuh"

/* x as the sum of three bf16, then `last` */
__device__ __forceinline__ uint2 bw_three(float x, float last)
{
    float high = to_float(from_float<bf16>(x)), middle = to_float(from_float<bf16>(x - high));
    return make_uint2(pack_bf16(high, middle), pack_bf16(x - high - middle, last));
}

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
            float add = j >= a.m ? ATT_PAD : mask && any ? a.inf * (mask[j] - 1.0f) / a.scale : 0.0f;
            out.add[at * (keys / BW_KEYS * BW_LINE) + e] = e % BW_LINE < BW_KEYS ? add : any ? 1.0f : 0.0f;
        }
    /* a chunk of 16 bytes per thread, `per` queries side by side */
    int chunks = a.h * a.d / 8, lanes = a.d / 8, per = BW_THREADS / chunks, chunk = threadIdx.x % chunks;
    int end = (split + 1) * (queries / splits), head = chunk / lanes;
    bool working = threadIdx.x / chunks < per;
    const bf16 *o_at = x.o_in + a.q_block(group, row, 0) + chunk * 8, *go_at = x.go + (o_at - x.o_in);
    const float *lse_at = x.lse_in + (at * a.h + head) * a.n;
    uint4 *to = out.stats + (at * a.h + head) * queries;
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
            float add = query >= a.n ? ATT_PAD : any ? -lse[k] / a.scale : 0.0f;
            uint2 c = bw_three(add, 1.0f), d = bw_three(-delta, 0.0f);
            to[query] = make_uint4(c.x, c.y, d.x, d.y);
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
    stage_wait();
    int pieces = x.bias ? a.g * a.h * (keys / BW_KEYS) * (queries / BW_STEP) : 0, id = (int)blockIdx.x - pieces;
    if (id < 0)
        bw_prepare_bias(a, x.bias, out.bias, blockIdx.x, queries / BW_STEP);
    else
        bw_prepare_row(a, x, out, id / splits / a.b, id / splits % a.b, id % splits, splits, keys, queries);
}

Status bw_prepare_launch(const Att &a, const AttOperands<bf16> &x, const BwPrepared &out, cudaStream_t stream)
{
    enum { SPLITS = 4 };
    int tiles = x.bias ? BwExtent<true>::TILES : BwExtent<false>::TILES,
        queries = x.bias ? BwExtent<true>::QUERIES : BwExtent<false>::QUERIES;
    int rows = a.g * a.b * SPLITS, pieces = x.bias ? a.g * a.h * tiles * (queries / BW_STEP) : 0;
    launch(att_bw_prepare_kernel, rows + pieces, BW_THREADS, 0, stream, a, x, out, SPLITS, tiles * BW_KEYS, queries);
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
