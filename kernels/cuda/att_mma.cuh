/* Shared by the tensor core kernels of attention: tiles of [rows][D] in shared memory and their fragments.
 *
 * A row of D = 32, 16 or 8 bf16 is 4, 2 or 1 chunks of 16 bytes; the chunk's place is XORed with bits of the row so
 * that eight neighbouring rows of one chunk column fill all 32 banks. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_MMA_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_MMA_CUH

#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.cuh"

enum { KEY_BLOCK = 64 }; /* keys (or queries) per step of a warp; tiles are padded to a multiple of it */
#define ATT_LOG2E 1.4426950408889634f
#define ATT_LN2   0.6931471805599453f
#define ATT_PAD   (-1e30f) /* additive mask of keys that do not exist */

static inline int att_padded(int rows)
{
    return (rows + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
}

template <int D> __device__ __forceinline__ uint32_t att_place(int row, int chunk)
{
    if (D == 32) return (uint32_t)(row * 4 + (chunk ^ ((row >> 1) & 3))) * 16;
    if (D == 16) return (uint32_t)(row * 2 + (chunk ^ ((row >> 2) & 1))) * 16;
    return (uint32_t)row * 16;
}

/* rows [0, extent) from global memory (pitch elements apart), zeros up to `padded`. A thread's rows are a multiple of
 * 16 apart, so that its chunk keeps its place in a row. */
template <int D, int THREADS>
__device__ __forceinline__ void att_load_tile(uint32_t shared, const bf16 *p, int64_t pitch, int extent, int padded)
{
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const bf16 *source = p + row * pitch + chunk * 8;
    shared += att_place<D>(row, chunk);
    for (; row < padded; row += STEP) {
        bool live = row < extent;
        copy16_async(shared, live ? source : p, live);
        shared += STEP * D * 2;
        source += STEP * pitch;
    }
}

/* rows row0 .. row0 + 15 of the tile, by one warp */
template <int D>
__device__ __forceinline__ void att_load_tile_warp(uint32_t shared, const bf16 *p, int64_t pitch, int row0,
                                                   int global_row0, int extent)
{
    constexpr int CHUNKS = D / 8;
    for (int id = threadIdx.x % WARP; id < 16 * CHUNKS; id += WARP) {
        int row = id / CHUNKS, chunk = id % CHUNKS, at = global_row0 + row;
        bool live = at < extent;
        copy16_async(shared + att_place<D>(row0 + row, chunk), live ? p + at * pitch + chunk * 8 : p, live);
    }
}

/* A fragments [16 x D] of rows r, r + 8 of this lane: straight from global memory, zeros beyond the extent, or from a
 * tile. */
template <int D> struct AttFragment {
    static constexpr int STEPS = (D + 15) / 16;
    uint32_t r[STEPS][4];
    __device__ __forceinline__ void load(const bf16 *p, int64_t pitch, int row0, int extent)
    {
        int lane = threadIdx.x % WARP, row = row0 + lane / 4, column = lane % 4 * 2;
#pragma unroll
        for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = row + (j & 1) * 8, d = s * 16 + column + (j >> 1) * 8;
                r[s][j] = at < extent && d < D ? *reinterpret_cast<const uint32_t *>(p + at * pitch + d) : 0u;
            }
    }
    __device__ __forceinline__ void load_tile(uint32_t tile, int row0)
    {
        int lane = threadIdx.x % WARP, row = row0 + (lane & 15);
        if constexpr (D == 8) {
            uint32_t x[4];
            ldmatrix4(x, tile + att_place<D>(row, 0));
            r[0][0] = x[0], r[0][1] = x[1], r[0][2] = r[0][3] = 0;
        } else {
#pragma unroll
            for (int s = 0; s < STEPS; s++) ldmatrix4(r[s], tile + att_place<D>(row, s * 2 + (lane >> 4)));
        }
    }
};

/* B fragments for acc[16 x 16 columns] += A[16 x D] tile^T: the columns are rows column0 .. +15 of the tile, column0 a
 * multiple of 16: what depends on the lane alone stays out of the loops around. */
template <int D>
__device__ __forceinline__ void att_times_transposed(float (&acc0)[4], float (&acc1)[4], const AttFragment<D> &a,
                                                     uint32_t tile, int column0)
{
    int lane = threadIdx.x % WARP;
    if constexpr (D == 8) {
        uint32_t b[4]; /* lanes 16.. repeat the first 16 rows */
        ldmatrix4(b, tile + att_place<D>(lane & 15, 0) + column0 * D * 2);
        mma16816(acc0, a.r[0], b[0], 0u);
        mma16816(acc1, a.r[0], b[1], 0u);
    } else {
#pragma unroll
        for (int s = 0; s < AttFragment<D>::STEPS; s++) {
            uint32_t b[4];
            int row = (lane & 7) + ((lane >> 4) << 3), chunk = s * 2 + ((lane >> 3) & 1);
            ldmatrix4(b, tile + att_place<D>(row, chunk) + column0 * D * 2);
            mma16816(acc0, a.r[s], b[0], b[1]);
            mma16816(acc1, a.r[s], b[2], b[3]);
        }
    }
}

/* acc[16 x D] += A[16 x 16] (rows row0 .. +15 of the tile) */
template <int D>
__device__ __forceinline__ void att_times_rows(float (&acc)[(D + 7) / 8][4], const uint32_t (&a)[4], uint32_t tile,
                                               int row0)
{
    int lane = threadIdx.x % WARP, row = lane & 15;
    uint32_t b[4];
    tile += row0 * D * 2;
    if constexpr (D == 8) {
        ldmatrix4_trans(b, tile + att_place<D>(row, 0));
        mma16816(acc[0], a, b[0], b[1]);
    } else {
#pragma unroll
        for (int s = 0; s < D / 16; s++) {
            ldmatrix4_trans(b, tile + att_place<D>(row, s * 2 + (lane >> 4)));
            mma16816(acc[s * 2], a, b[0], b[1]);
            mma16816(acc[s * 2 + 1], a, b[2], b[3]);
        }
    }
}

/* Accumulators [16 x 16] as an A fragment. */
__device__ __forceinline__ void att_as_fragment(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4])
{
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

/* acc[16 x D] times factors of rows r, r + 8 -> global memory */
template <int D>
__device__ __forceinline__ void att_store(bf16 *p, int64_t pitch, int row0, int extent,
                                          const float (&acc)[(D + 7) / 8][4], float low, float high)
{
    int lane = threadIdx.x % WARP, row = row0 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < (D + 7) / 8; s++) {
        if (row < extent)
            *reinterpret_cast<uint32_t *>(p + row * pitch + s * 8 + column) =
                pack_bf16(acc[s][0] * low, acc[s][1] * low);
        if (row + 8 < extent)
            *reinterpret_cast<uint32_t *>(p + (row + 8) * pitch + s * 8 + column) =
                pack_bf16(acc[s][2] * high, acc[s][3] * high);
    }
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* What the kernels read besides the operands, made by one small kernel: scores are kept in units of 1 / scale, so that
 * bias and mask are the initial value of the accumulators: add[R, Mp] = inf (mask - 1) / scale, ATT_PAD for keys that
 * do not exist; R rows by the rank of the mask any[R] = 0 where every key is masked: the softmax of such a row is
 * uniform (inf = 1e9 swallows the scores in f32) rows[G,H,N,Mp], columns[G,H,M,Np]: the bias of one head as matrices */
struct AttPrepared {
    float *add;
    int *any;
    bf16 *rows, *columns;
};
struct AttPreparedPlan {
    size_t add_at, any_at, rows_at, columns_at, bytes;
};
AttPreparedPlan att_prepared_plan(const Att &a, bool rows, bool columns);
Status att_prepare_launch(const Att &a, const bf16 *bias, const AttPreparedPlan &plan, char *scratch, bool columns,
                          AttPrepared *out, cudaStream_t stream);

__device__ __forceinline__ int64_t att_mask_index(const Att &a, int group, int row)
{
    return a.mask_rank < 2 ? 0 : a.mask_rank == 2 ? row : (int64_t)group * a.b + row;
}

/* A matrix of `columns` (a multiple of 64) bf16 in shared memory, chunks of a row XORed with the row. */
__device__ __forceinline__ uint32_t att_matrix_place(int row, int chunk, int columns)
{
    return (uint32_t)(row * (columns / 8) + (chunk ^ (row & 7))) * 16;
}
__device__ __forceinline__ void att_load_matrix(uint32_t shared, const bf16 *p, int row0, int rows, int extent,
                                                int columns)
{
    int chunks = columns / 8;
    for (int id = threadIdx.x; id < rows * chunks; id += blockDim.x) {
        int row = id / chunks, chunk = id % chunks;
        bool live = row0 + row < extent;
        copy16_async(shared + att_matrix_place(row, chunk, columns),
                     live ? p + (int64_t)(row0 + row) * columns + chunk * 8 : p, live);
    }
}
/* 16 x 16 elements in the places of two accumulators side by side: piece j (16 columns) of the 64 from column0 on */
__device__ __forceinline__ void att_matrix_fragment(uint32_t (&r)[4], uint32_t shared, int row0, int column0, int j,
                                                    int columns)
{
    int lane = threadIdx.x % WARP;
    ldmatrix4(r, shared + att_matrix_place(row0 + (lane & 15), 2 * j + (lane >> 4), columns) + column0 * 2);
}

/* count floats, a multiple of four */
__device__ __forceinline__ void att_load_floats(uint32_t shared, const float *p, int count)
{
    for (int id = threadIdx.x; id < count / 4; id += blockDim.x) copy16_async(shared + id * 16, p + id * 4, true);
}

/* Accumulators of 16 x 16 scores before the product: bias / scale + add of the column. */
template <bool BIAS>
__device__ __forceinline__ void att_begin(float (&left)[4], float (&right)[4], const uint32_t (&bias)[4], float inverse,
                                          float2 add_left, float2 add_right)
{
    if (BIAS) {
        float2 b0 = unpack_bf16(bias[0]), b1 = unpack_bf16(bias[1]), b2 = unpack_bf16(bias[2]),
               b3 = unpack_bf16(bias[3]);
        left[0] = fmaf(b0.x, inverse, add_left.x), left[1] = fmaf(b0.y, inverse, add_left.y);
        left[2] = fmaf(b1.x, inverse, add_left.x), left[3] = fmaf(b1.y, inverse, add_left.y);
        right[0] = fmaf(b2.x, inverse, add_right.x), right[1] = fmaf(b2.y, inverse, add_right.y);
        right[2] = fmaf(b3.x, inverse, add_right.x), right[3] = fmaf(b3.y, inverse, add_right.y);
    } else {
        left[0] = left[2] = add_left.x, left[1] = left[3] = add_left.y;
        right[0] = right[2] = add_right.x, right[1] = right[3] = add_right.y;
    }
}

/* Accumulators of 16 x 16 scores before the product: the same + a constant of the row. */
template <bool BIAS>
__device__ __forceinline__ void att_begin(float (&left)[4], float (&right)[4], const uint32_t (&bias)[4], float inverse,
                                          float2 add_left, float2 add_right, float low, float high)
{
    if (BIAS) {
        float2 b0 = unpack_bf16(bias[0]), b1 = unpack_bf16(bias[1]), b2 = unpack_bf16(bias[2]),
               b3 = unpack_bf16(bias[3]);
        left[0] = fmaf(b0.x, inverse, add_left.x + low), left[1] = fmaf(b0.y, inverse, add_left.y + low);
        left[2] = fmaf(b1.x, inverse, add_left.x + high), left[3] = fmaf(b1.y, inverse, add_left.y + high);
        right[0] = fmaf(b2.x, inverse, add_right.x + low), right[1] = fmaf(b2.y, inverse, add_right.y + low);
        right[2] = fmaf(b3.x, inverse, add_right.x + high), right[3] = fmaf(b3.y, inverse, add_right.y + high);
    } else {
        left[0] = add_left.x + low, left[1] = add_left.y + low, left[2] = add_left.x + high,
        left[3] = add_left.y + high;
        right[0] = add_right.x + low, right[1] = add_right.y + low;
        right[2] = add_right.x + high, right[3] = add_right.y + high;
    }
}

/* Rows of a group that one block goes through: about 264 blocks in all (two per SM of an H100), whatever the device, so
 * that sums over rows have one order everywhere. */
static inline int att_rows_per_block(const Att &a, int tiles, int blocks)
{
    int chunks = blocks / (tiles * a.g * a.h);
    if (chunks < 1) chunks = 1;
    if (chunks > a.b) chunks = a.b;
    return (a.b + chunks - 1) / chunks;
}

#endif
