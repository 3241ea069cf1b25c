/* Fused attention in f32 by tiles of 64 queries x 64 keys of one (group, row, head): products on 4 x 4 results a thread
 * from operands that lie across, [d][row], in shared memory. No tensor cores: TF32 would lose the digits that f32 is
 * asked for. Sums over a tile join the running sum as one number, so that rounding errors grow with the number of tiles
 * rather than of rows.
 *
 * Scores are (scale q.k + inf (mask - 1)) + bias in this order, and probabilities come from the row's own maximum and
 * sum: where all keys are masked, inf = 1e9 swallows the rest and the row is uniform, which a log-sum-exp of -1e9 could
 * not express. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_F32_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_F32_CUH

#include <float.h>

#include "kernels/cuda/attention.h"

enum { F32_THREADS = 256, F32_TILE = 64, F32_PITCH = F32_TILE + 4 /* eight rows at 16 bytes meet no bank twice */ };

/* Of each query: maximum of its scores, 1 / sum, delta = sum_d do o. */
struct Stat {
    float peak, inverse, delta;
};

typedef float F32Row[F32_PITCH];

/* What a block works on: grid (., heads, groups x rows). */
struct F32Place {
    int group, row, head;
    int64_t q_at, k_at, stat_at; /* first elements of this group, row and head */
    const float *mask, *bias;    /* NULL: none; bias: this head's [N, M] */
};

__device__ __forceinline__ F32Place f32_place(const Att &a, const float *bias)
{
    F32Place p;
    p.head = blockIdx.y, p.group = blockIdx.z / a.b, p.row = blockIdx.z % a.b;
    p.q_at = a.q_block(p.group, p.row, p.head), p.k_at = a.k_block(p.group, p.row, p.head);
    p.stat_at = (((int64_t)p.group * a.b + p.row) * a.h + p.head) * a.n;
    p.mask = a.mask ? a.mask_row(p.group, p.row) : NULL;
    p.bias = bias ? bias + ((int64_t)p.group * a.h + p.head) * a.n * a.m : NULL;
    return p;
}

/* rows [row0, row0 + 64) of [extent, D], zeros beyond, laid across */
template <int D>
__device__ __forceinline__ void f32_load(F32Row *tile, const float *p, int64_t pitch, int row0, int extent)
{
    for (int id = threadIdx.x; id < F32_TILE * D / 4; id += F32_THREADS) {
        int row = id % F32_TILE, piece = id / F32_TILE;
        float4 v = row0 + row < extent ? reinterpret_cast<const float4 *>(p + (int64_t)(row0 + row) * pitch)[piece]
                                       : make_float4(0, 0, 0, 0);
        tile[piece * 4][row] = v.x, tile[piece * 4 + 1][row] = v.y;
        tile[piece * 4 + 2][row] = v.z, tile[piece * 4 + 3][row] = v.w;
    }
}

/* inf (mask - 1) of the keys of a tile */
__device__ __forceinline__ void f32_load_mask(const Att &a, const float *mask, float *add, int key0)
{
    int j = threadIdx.x;
    if (j < F32_TILE) add[j] = mask && key0 + j < a.m ? a.inf * (mask[key0 + j] - 1.0f) : 0.0f;
}

/* The 4 queries and 4 keys of a thread; a warp takes 16 x 32 of them. */
__device__ __forceinline__ int f32_query()
{
    return (threadIdx.x / 64 * 4 + threadIdx.x % 32 / 8) * 4;
}
__device__ __forceinline__ int f32_key()
{
    return (threadIdx.x / 32 % 2 * 8 + threadIdx.x % 8) * 4;
}

/* acc[i][j] = sum_d left[d][i] right[d][j] */
template <int D>
__device__ __forceinline__ void f32_products(float (&acc)[4][4], const F32Row *left, const F32Row *right)
{
    int i0 = f32_query(), j0 = f32_key();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = 0;
#pragma unroll 8
    for (int d = 0; d < D; d++) {
        float4 l = *reinterpret_cast<const float4 *>(&left[d][i0]),
               r = *reinterpret_cast<const float4 *>(&right[d][j0]);
        float li[4] = {l.x, l.y, l.z, l.w}, rj[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[i][j] = fmaf(li[i], rj[j], acc[i][j]);
    }
}

/* q.k -> scores; -FLT_MAX for keys that do not exist. */
__device__ __forceinline__ void f32_scores(const Att &a, const F32Place &p, float (&s)[4][4], const float *add,
                                           int query0, int key0)
{
    int i0 = query0 + f32_query(), j0 = f32_key();
    bool whole = p.bias && a.m % 4 == 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float b[4] = {};
        if (p.bias && i0 + i < a.n) {
            const float *from = p.bias + (int64_t)(i0 + i) * a.m + key0 + j0;
            if (whole && key0 + j0 < a.m) {
                load_floats<4>(from, b);
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (key0 + j0 + j < a.m) b[j] = from[j];
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = key0 + j0 + j < a.m ? (s[i][j] * a.scale + add[j0 + j]) + b[j] : -FLT_MAX;
    }
}

/* How a block shares 64 rows x D: a thread has ROWS rows and COLUMNS of the D, TD apart. */
template <int D> struct F32Share {
    static constexpr int COLUMNS = D > 16 ? D / 16 : 1, TD = D / COLUMNS, GROUPS = F32_THREADS / TD,
                         ROWS = F32_TILE / GROUPS;
    int group, column;
    __device__ __forceinline__ F32Share()
    {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        group = TD == 16 ? warp / 2 * 4 + lane / 8 : warp * 4 + lane / 8;
        column = TD == 16 ? warp % 2 * 8 + lane % 8 : lane % 8;
    }
};

/* sum[r][c] += sum_i weight[i][k] x[d][i] over a tile: k = group ROWS + r, neighbours; d = column + c TD */
template <int D>
__device__ __forceinline__ void f32_down(float (&sum)[F32Share<D>::ROWS][F32Share<D>::COLUMNS], const F32Row *weight,
                                         const F32Row *x)
{
    typedef F32Share<D> Share;
    Share share;
    float part[Share::ROWS][Share::COLUMNS] = {};
#pragma unroll 4
    for (int i = 0; i < F32_TILE; i += 4) {
        float w[4][Share::ROWS], v[Share::COLUMNS][4];
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int r = 0; r < Share::ROWS; r += 2)
                *reinterpret_cast<float2 *>(&w[q][r]) =
                    *reinterpret_cast<const float2 *>(&weight[i + q][share.group * Share::ROWS + r]);
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) load_floats<4>(&x[share.column + c * Share::TD][i], v[c]);
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int r = 0; r < Share::ROWS; r++)
#pragma unroll
                for (int c = 0; c < Share::COLUMNS; c++) part[r][c] = fmaf(w[q][r], v[c][q], part[r][c]);
    }
#pragma unroll
    for (int r = 0; r < Share::ROWS; r++)
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) sum[r][c] += part[r][c];
}

/* sum[r][c] += sum_j weight[i][j] x[d][j] over a tile: i = group + r GROUPS; d = column + c TD */
template <int D>
__device__ __forceinline__ void f32_along(float (&sum)[F32Share<D>::ROWS][F32Share<D>::COLUMNS], const F32Row *weight,
                                          const F32Row *x)
{
    typedef F32Share<D> Share;
    Share share;
    float part[Share::ROWS][Share::COLUMNS] = {};
#pragma unroll 4
    for (int j = 0; j < F32_TILE; j += 4) {
        float w[Share::ROWS][4], v[Share::COLUMNS][4];
#pragma unroll
        for (int r = 0; r < Share::ROWS; r++) load_floats<4>(&weight[share.group + r * Share::GROUPS][j], w[r]);
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) load_floats<4>(&x[share.column + c * Share::TD][j], v[c]);
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int r = 0; r < Share::ROWS; r++)
#pragma unroll
                for (int c = 0; c < Share::COLUMNS; c++) part[r][c] = fmaf(w[r][q], v[c][q], part[r][c]);
    }
#pragma unroll
    for (int r = 0; r < Share::ROWS; r++)
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) sum[r][c] += part[r][c];
}

/* The bias as one matrix per head, [G, H, N, M] */
Status att_f32_bias_launch(const Att &a, const float *bias, float *copy, cudaStream_t stream);
static inline size_t att_f32_bias_bytes(const Att &a)
{
    return align_up((size_t)a.g * a.h * a.n * a.m * sizeof(float));
}

#endif
