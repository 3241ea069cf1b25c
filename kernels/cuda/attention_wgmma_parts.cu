/* Backward attention on wgmma: the bias in the order of its kernel, and the sum of dbias over its blocks. */
#include "kernels/cuda/att_backward.cuh"

/* All heads of eight pairs: H of them, 0 for any number. */
template <int H>
__device__ __forceinline__ void bw_prepare_heads(const Att &a, const bf16 *bias, uint4 *out, int64_t head_step,
                                                 const int64_t (&at)[8])
{
    __align__(16) bf16 x[8][H ? H : 1];
#pragma unroll
    for (int e = 0; e < 8; e++)
        if constexpr (H == 8)
            *reinterpret_cast<uint4 *>(x[e]) =
                at[e] < 0 ? make_uint4(0, 0, 0, 0) : *reinterpret_cast<const uint4 *>(bias + at[e]);
        else if constexpr (H == 4)
            *reinterpret_cast<uint2 *>(x[e]) =
                at[e] < 0 ? make_uint2(0, 0) : *reinterpret_cast<const uint2 *>(bias + at[e]);
#pragma unroll
    for (int head = 0; head < (H ? H : a.h); head++) {
        __align__(16) bf16 v[8];
#pragma unroll
        for (int e = 0; e < 8; e++)
            if constexpr (H > 0)
                v[e] = x[e][head];
            else
                v[e] = at[e] < 0 ? from_float<bf16>(0.0f) : bias[at[e] + head];
        out[head * head_step] = *reinterpret_cast<const uint4 *>(v);
    }
}

/* A block: a piece of one group's bias, all heads. */
__global__ void __launch_bounds__(BW_THREADS) att_bw_prepare_kernel(Att a, const bf16 *bias, uint4 *out, int steps)
{
    stage_wait();
    stage_release(); /* what else the attention reads is complete */
    int step = (int)blockIdx.x % steps, tile = (int)blockIdx.x / steps % 2, group = (int)blockIdx.x / steps / 2;
    int lane = threadIdx.x % WARP;
    int key0 = tile * BW_KEYS + threadIdx.x / WARP * 16 + lane / 4, query0 = step * BW_STEP + lane % 4 * 2;
    int64_t at[8], head_step = (int64_t)2 * steps * BW_THREADS;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        int key = key0 + (e >> 1 & 1) * 8, query = query0 + (e >> 2) * 8 + (e & 1);
        at[e] = key < a.m && query < a.n ? a.bias_index(group, query, key, 0) : -1;
    }
    out += group * a.h * head_step + (int64_t)(tile * steps + step) * BW_THREADS + threadIdx.x;
    if (a.h == 8)
        bw_prepare_heads<8>(a, bias, out, head_step, at);
    else if (a.h == 4)
        bw_prepare_heads<4>(a, bias, out, head_step, at);
    else
        bw_prepare_heads<0>(a, bias, out, head_step, at);
}

Status bw_prepare_launch(const Att &a, const bf16 *bias, uint4 *out, cudaStream_t stream)
{
    typedef BwExtent<true> E;
    int steps = E::QUERIES / BW_STEP;
    launch(att_bw_prepare_kernel, a.g * E::TILES * steps, BW_THREADS, 0, stream, a, bias, out, steps);
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
