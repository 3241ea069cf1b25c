/* Products y_k = x W_k^T + b_k of many rows with few columns, at most 64 in all, x being normalized on the way. What
 * bounds them is reading x: a warp takes 16 rows straight into the registers of its products. Lane 4 g + t holds the
 * chunks t, t + 4, ... of eight channels of rows g and g + 8; that is a permutation of the summed index, and the
 * fragments of W follow it. */
#ifndef FOLDSCALE_KERNELS_CUDA_NARROW_CUH
#define FOLDSCALE_KERNELS_CUDA_NARROW_CUH

#include "kernels/cuda/norm_tile.cuh"
#include "kernels/cuda/peer_send.cuh"

enum { NARROW_MEMBERS = 6, NARROW_COLUMNS = 64, NARROW_THREADS = 128, NARROW_ROWS = 16 /* of a warp */ };

struct NarrowProblem {
    const bf16 *x, *w;
    bf16 *y[NARROW_MEMBERS];
    const float *bias[NARROW_MEMBERS];
    int rows, members, start[NARROW_MEMBERS + 1]; /* columns of members, multiples of 8 but for the end */
    FrontNorm norm;
    PeerSend send; /* of the only member */
};

/* Rows g and g + 8, normalized in place and kept where a gradient wants them. */
template <int K>
__device__ __forceinline__ void narrow_norm(const NarrowProblem &p, uint32_t (&v)[2][K / 32][4], const int (&row)[2])
{
    constexpr int CHUNKS = K / 32;
    int t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float s[CHUNKS];
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) s[i] = eight_sum(v[h][i]);
        float mean = lanes_sum<4>(pairs_sum(s)) / K;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) s[i] = eight_squares(v[h][i], mean);
        float rstd = 1.0f / sqrtf(lanes_sum<4>(pairs_sum(s)) / K + p.norm.eps);
        bool live = row[h] < p.rows;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            int channel = (t + 4 * i) * 8;
            eight_normalize(v[h][i], mean, rstd, eight_scales(p.norm, channel));
            if (p.norm.y && live)
                *reinterpret_cast<uint4 *>(p.norm.y + (int64_t)row[h] * K + channel) =
                    make_uint4(v[h][i][0], v[h][i][1], v[h][i][2], v[h][i][3]);
        }
        if (!p.norm.mean || t > 0 || !live) continue;
        p.norm.mean[row[h]] = mean;
        p.norm.rstd[row[h]] = rstd;
    }
}

/* Columns [column, column + 8) of rows g and g + 8. */
template <int K>
__device__ __forceinline__ void narrow_block(const NarrowProblem &p, const uint32_t (&v)[2][K / 32][4],
                                             const int (&row)[2], int column, PeerSender *sender)
{
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, columns = p.start[p.members], k = 0;
    float acc[4] = {};
#pragma unroll
    for (int i = 0; i < K / 32; i++) {
        uint4 w = make_uint4(0, 0, 0, 0);
        if (column + g < columns)
            w = __ldg(reinterpret_cast<const uint4 *>(p.w + (int64_t)(column + g) * K + (t + 4 * i) * 8));
        const uint32_t low[4] = {v[0][i][0], v[1][i][0], v[0][i][1], v[1][i][1]};
        const uint32_t high[4] = {v[0][i][2], v[1][i][2], v[0][i][3], v[1][i][3]};
        mma16816(acc, low, w.x, w.y);
        mma16816(acc, high, w.z, w.w);
    }
    while (k + 1 < p.members && column >= p.start[k + 1]) k++;
    int width = p.start[k + 1] - p.start[k], at = column - p.start[k] + 2 * t;
    if (at >= width) return;
    float2 b = p.bias[k] ? *reinterpret_cast<const float2 *>(p.bias[k] + at) : make_float2(0, 0);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t y = pack_bf16(acc[2 * h] + b.x, acc[2 * h + 1] + b.y);
        if (row[h] >= p.rows) continue;
        if (p.send.ranks)
            peer_put<bf16>(sender, (uint32_t)row[h], (uint32_t)width, (uint32_t)at, y);
        else
            *reinterpret_cast<uint32_t *>(p.y[k] + (int64_t)row[h] * width + at) = y;
    }
}

template <int K>
__global__ void __launch_bounds__(NARROW_THREADS) narrow_kernel(const __grid_constant__ NarrowProblem p)
{
    stage_wait();
    peer_send_begin(p.send);
    PeerSender sender(p.send);
    int lane = threadIdx.x % WARP, warp = (int)((blockIdx.x * NARROW_THREADS + threadIdx.x) / WARP);
    const int row[2] = {warp * NARROW_ROWS + lane / 4, warp * NARROW_ROWS + lane / 4 + 8};
    uint32_t v[2][K / 32][4];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < K / 32; i++) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (row[h] < p.rows)
                x = __ldg(reinterpret_cast<const uint4 *>(p.x + (int64_t)row[h] * K) + lane % 4 + 4 * i);
            v[h][i][0] = x.x, v[h][i][1] = x.y, v[h][i][2] = x.z, v[h][i][3] = x.w;
        }
    narrow_norm<K>(p, v, row);
#pragma unroll 1
    for (int column = 0; column < p.start[p.members]; column += 8) narrow_block<K>(p, v, row, column, &sender);
    if (p.send.ranks) peer_finish_all(p.send);
}

static inline bool narrow_fits(const NarrowProblem &p, int64_t inner)
{
    bool fits = (inner == 64 || inner == 128) && aligned16(p.x) && aligned16(p.w) && aligned16(p.norm.y);
    int columns = p.start[p.members];
    fits = fits && columns <= NARROW_COLUMNS && columns % 2 == 0;
    for (int k = 0; k < p.members; k++)
        fits = fits && ((uintptr_t)p.y[k] & 3) == 0 && ((uintptr_t)p.bias[k] & 7) == 0 && p.start[k] % 8 == 0;
    return fits;
}

static inline Status narrow_launch(const NarrowProblem &p, int64_t inner, cudaStream_t stream)
{
    unsigned blocks = blocks_for((int64_t)(p.rows + NARROW_ROWS - 1) / NARROW_ROWS * WARP, NARROW_THREADS);
    if (inner == 64)
        launch(narrow_kernel<64>, blocks, NARROW_THREADS, 0, stream, p);
    else
        launch(narrow_kernel<128>, blocks, NARROW_THREADS, 0, stream, p);
    return cuda_launched("narrow_kernel");
}

#endif
