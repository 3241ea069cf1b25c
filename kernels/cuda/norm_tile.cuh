/* Layer norm of rows on their way into a product or out of one, with the bits of layer_norm_kernel: channels are summed
 * in the same order, eight neighbours one after the other, then the sums in pairs that lie half of them apart, a
 * quarter, ... */
#ifndef FOLDSCALE_KERNELS_CUDA_NORM_TILE_CUH
#define FOLDSCALE_KERNELS_CUDA_NORM_TILE_CUH

#include "kernels/cuda/hopper.cuh"

enum { NORM_TILE_ROWS = 64, NORM_TILE_CHUNK = NORM_TILE_ROWS * TENSOR_COLUMNS * 2 /* bytes of a box */ };

/* A layer norm in front or behind; no gamma: none. What a gradient wants: y[rows, K], NULL where nobody does, mean and
 * rstd, both or none. */
struct FrontNorm {
    const float *gamma, *beta;
    float eps;
    bf16 *y;
    float *mean, *rstd;
};
/* Kernels read and write 16 bytes at a time. */
static inline bool norm_aligned(const FrontNorm &n)
{
    return aligned16(n.y) && aligned16(n.gamma) && aligned16(n.beta);
}

/* Sum of N terms, a power of two, in the order of lanes_sum(). */
template <int N> __device__ __forceinline__ float pairs_sum(float (&s)[N])
{
#pragma unroll
    for (int step = N / 2; step > 0; step /= 2)
#pragma unroll
        for (int k = 0; k < step; k++) s[k] += s[k + step];
    return s[0];
}

__device__ __forceinline__ void unpack_eight(const uint32_t (&v)[4], float (&x)[8])
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float2 f = unpack_bf16(v[j]);
        x[2 * j] = f.x, x[2 * j + 1] = f.y;
    }
}

/* Of eight channels: the sum, and that of the squares around the mean. */
__device__ __forceinline__ float eight_sum(const uint32_t (&v)[4])
{
    float x[8], sum = 0;
    unpack_eight(v, x);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += x[j];
    return sum;
}
__device__ __forceinline__ float eight_squares(const uint32_t (&v)[4], float mean)
{
    float x[8], square = 0;
    unpack_eight(v, x);
#pragma unroll
    for (int j = 0; j < 8; j++) square += (x[j] - mean) * (x[j] - mean);
    return square;
}

/* gamma and beta of eight channels, and these normalized. */
struct EightScales {
    float g[8], b[8];
};
__device__ __forceinline__ EightScales eight_scales(const FrontNorm &n, int channel)
{
    EightScales s;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        *reinterpret_cast<float4 *>(s.g + 4 * k) = __ldg(reinterpret_cast<const float4 *>(n.gamma + channel) + k);
        *reinterpret_cast<float4 *>(s.b + 4 * k) = __ldg(reinterpret_cast<const float4 *>(n.beta + channel) + k);
    }
    return s;
}
__device__ __forceinline__ void eight_normalize(uint32_t (&v)[4], float mean, float rstd, const EightScales &s)
{
    float x[8];
    unpack_eight(v, x);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = (x[j] - mean) * rstd * s.g[j] + s.b[j];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = pack_bf16(x[2 * j], x[2 * j + 1]);
}

/* Sums of N values each over LANES neighbouring lanes, in the order of lanes_sum(): LANES / N of them, from lane
 * k LANES / N on, get that of s[k]. */
template <int LANES, int N> __device__ __forceinline__ float rows_sum(const float (&s)[N])
{
    if constexpr (N == 1) {
        return lanes_sum<LANES>(s[0]);
    } else {
        bool upper = threadIdx.x & LANES / 2;
        float half[N / 2];
#pragma unroll
        for (int k = 0; k < N / 2; k++)
            half[k] =
                (upper ? s[k + N / 2] : s[k]) + __shfl_xor_sync(0xffffffffu, upper ? s[k] : s[k + N / 2], LANES / 2);
        return rows_sum<LANES / 2>(half);
    }
}

/* A warp normalizes 16 rows of a tile, as a tensor copy left it at x, into y, laid out alike, perhaps x itself. A lane
 * has the same eight channels of several rows, eight at most at a time, so that gamma and beta are read once. from: the
 * first row within the tile, row0 that of the tile; statistics: whether this block keeps them. */
template <int K>
__device__ __forceinline__ void norm_tile(const FrontNorm &n, const EightScales &scales, uint32_t x, uint32_t y,
                                          int from, int row0, int rows, bool statistics)
{
    constexpr int LANES = K / 8, SIDE = WARP / LANES, ROWS = SIDE > 2 ? 16 / SIDE : 8, SHARE = LANES / ROWS;
    int lane = threadIdx.x % WARP, chunk = lane % LANES, base = lane - chunk;
#pragma unroll 1
    for (int batch = 0; batch < 16; batch += ROWS * SIDE) {
        int first = from + batch + lane / LANES;
        uint32_t at = chunk / 8 * NORM_TILE_CHUNK + first * 128, v[ROWS][4];
        float s[ROWS], mean[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++)
            shared_chunk(x + at + k * SIDE * 128 + ((chunk % 8 ^ (first + k * SIDE) % 8) << 4), v[k]);
#pragma unroll
        for (int k = 0; k < ROWS; k++) s[k] = eight_sum(v[k]);
        float own_mean = rows_sum<LANES>(s) / K;
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            mean[k] = __shfl_sync(0xffffffffu, own_mean, base + k * SHARE);
            s[k] = eight_squares(v[k], mean[k]);
        }
        float own_rstd = 1.0f / sqrtf(rows_sum<LANES>(s) / K + n.eps);
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            eight_normalize(v[k], mean[k], __shfl_sync(0xffffffffu, own_rstd, base + k * SHARE), scales);
            shared_chunk_put(y + at + k * SIDE * 128 + ((chunk % 8 ^ (first + k * SIDE) % 8) << 4), v[k]);
        }
        int row = row0 + first + chunk / SHARE * SIDE;
        if (!statistics || !n.mean || chunk % SHARE || row >= rows) continue;
        n.mean[row] = own_mean;
        n.rstd[row] = own_rstd;
    }
}

/* One of `workers` warps that normalize the tiles of a ring as they come, ahead of the products. */
template <int K, int SLOTS, typename Place>
__device__ __forceinline__ void norm_tiles(const FrontNorm &n, const Place &at, uint32_t slot_bytes, int rows,
                                           bool statistics, int worker, int workers)
{
    EightScales scales = eight_scales(n, threadIdx.x % (K / 8) * 8);
    for (int i = 0, tile = at.first; tile < at.tiles; i++, tile += at.step) {
        int slot = i % SLOTS;
        barrier_wait(at.full + slot * 8, i / SLOTS & 1);
        for (int from = worker * 16; from < NORM_TILE_ROWS; from += workers * 16) {
            uint32_t x = at.slots + slot * slot_bytes;
            norm_tile<K>(n, scales, x, x, from, tile * NORM_TILE_ROWS, rows, statistics);
            barrier_arrive_warp(at.normal + slot * 8);
        }
    }
}

/* Of a normalized tile's columns, those whose turn it is among the `blocks` that work on it leave by way of `map`,
 * while it is multiplied: a warpgroup's first thread sends them, and waits before others go there. */
template <int K>
__device__ __forceinline__ void norm_send(const FrontNorm &n, const CUtensorMap *map, uint32_t x, int row0, int block,
                                          int blocks)
{
    if (!n.y || threadIdx.x % 128 > 0) return;
    for (int c = block; c < K / TENSOR_COLUMNS; c += blocks)
        tensor_store(map, x + c * NORM_TILE_CHUNK, row0, c * TENSOR_COLUMNS);
    tensor_store_commit();
}
__device__ __forceinline__ void norm_sent(const FrontNorm &n)
{
    if (n.y && threadIdx.x % 128 == 0) tensor_store_wait_read();
}

#endif
