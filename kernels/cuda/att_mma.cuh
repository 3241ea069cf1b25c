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

/* rows [0, extent) from global memory (pitch elements apart), zeros up to `padded` */
template <int D>
__device__ __forceinline__ void att_load_tile(uint32_t shared, const bf16 *p, int64_t pitch, int extent, int padded)
{
    constexpr int CHUNKS = D / 8;
    for (int id = threadIdx.x; id < padded * CHUNKS; id += blockDim.x) {
        int row = id / CHUNKS, chunk = id % CHUNKS;
        bool live = row < extent;
        copy16_async(shared + att_place<D>(row, chunk), live ? p + row * pitch + chunk * 8 : p, live);
    }
}

/* A fragments [16 x D] of rows r, r + 8 of this lane straight from global memory; zeros beyond the extent. */
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
};

/* B fragments for acc[16 x 16 columns] += A[16 x D] tile^T: the columns are rows column0 .. +15 of the tile. */
template <int D>
__device__ __forceinline__ void att_times_transposed(float (&acc0)[4], float (&acc1)[4], const AttFragment<D> &a,
                                                     uint32_t tile, int column0)
{
    int lane = threadIdx.x % WARP;
    if constexpr (D == 8) {
        uint32_t b[4]; /* rows column0 .. +31 would fit; lanes 16.. repeat the first 16 rows */
        ldmatrix4(b, tile + att_place<D>(column0 + (lane & 15), 0));
        mma16816(acc0, a.r[0], b[0], 0u);
        mma16816(acc1, a.r[0], b[1], 0u);
    } else {
#pragma unroll
        for (int s = 0; s < AttFragment<D>::STEPS; s++) {
            uint32_t b[4];
            int row = column0 + (lane & 7) + ((lane >> 4) << 3), chunk = s * 2 + ((lane >> 3) & 1);
            ldmatrix4(b, tile + att_place<D>(row, chunk));
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
    int lane = threadIdx.x % WARP, row = row0 + (lane & 15);
    uint32_t b[4];
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

/* Additive mask (times log2 e) of all keys of a row. False when every key is masked: the softmax of such a row is
 * uniform (inf = 1e9 swallows the scores in f32), so its scores count as zero. Has a barrier. */
__device__ __forceinline__ bool att_mask_row(float *add, const Att &a, int group, int row, int padded)
{
    const float *mask = a.mask ? a.mask_row(group, row) : NULL;
    int any = 0;
    for (int j = threadIdx.x; j < padded; j += blockDim.x) {
        float m = j < a.m ? (mask ? mask[j] : 1.0f) : 0.0f;
        any |= m > 0.0f;
        add[j] = j < a.m ? a.inf * (m - 1.0f) * ATT_LOG2E : ATT_PAD;
    }
    any = __syncthreads_or(any);
    if (any) return true;
    for (int j = threadIdx.x; j < a.m; j += blockDim.x) add[j] = 0.0f;
    __syncthreads();
    return false;
}

/* Bias of one head as matrices: [G?,N,M,H] (or [G?,M,N,H]) -> rows[G,H,N,Mp], columns[G,H,M,Np] (either may be NULL),
 * zeros in the padding. */
Status att_bias_split_launch(const Att &a, const bf16 *bias, bf16 *rows, bf16 *columns, cudaStream_t stream);

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
