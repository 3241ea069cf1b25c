/* Permutation of axes. Adjacent axes that stay together are joined first; then one of three kernels: runs of whole
 * vectors (the last axis stays), tiles through shared memory (a batch of two-dimensional transposes), or element by
 * element. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRANSPOSE_CUH
#define FOLDSCALE_KERNELS_CUDA_TRANSPOSE_CUH

#include "kernels/cuda/device.cuh"

struct Permutation {
    int rank;
    uint32_t dim[TENSOR_MAX_RANK];   /* extents of y */
    int64_t stride[TENSOR_MAX_RANK]; /* in x, of the axes of y */
};

/* One thread per element (of U) of y. */
template <typename U> __global__ void permute_kernel(const U *x, U *y, Permutation p, uint32_t count)
{
    stage_wait();
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    uint32_t rest = e;
    int64_t at = 0;
#pragma unroll
    for (int k = TENSOR_MAX_RANK - 1; k >= 0; k--) {
        if (k >= p.rank) continue;
        uint32_t up = k > 0 ? rest / p.dim[k] : 0;
        at += (rest - up * p.dim[k]) * p.stride[k];
        rest = up;
    }
    y[e] = x[at];
}

/* x[batch, rows, columns] -> y[batch, columns, rows], strides in elements */
struct TransposeShape {
    int64_t batch, rows, columns, x_batch, x_row, y_batch, y_row;
};

/* Tiles of R x C through shared memory, R C = 4096. A thread asks for all of its elements before it uses the first: of
 * few tiles each would wait for memory as often as it loads. */
template <typename U, int R, int C>
static __global__ void __launch_bounds__(256) transpose_tiles_kernel(const U *x, U *y, TransposeShape s)
{
    stage_wait();
    constexpr int EACH = R * C / 256;
    __shared__ U tile[R][C + 4 / sizeof(U)];
    x += s.x_batch * blockIdx.z;
    y += s.y_batch * blockIdx.z;
    int64_t row0 = (int64_t)blockIdx.y * R, column0 = (int64_t)blockIdx.x * C;
    U v[EACH];
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, r = k / C, c = k % C;
        if (row0 + r < s.rows && column0 + c < s.columns) v[it] = x[(row0 + r) * s.x_row + column0 + c];
    }
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x;
        tile[k / C][k % C] = v[it];
    }
    __syncthreads();
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, c = k / R, r = k % R;
        if (row0 + r < s.rows && column0 + c < s.columns) y[(column0 + c) * s.y_row + row0 + r] = tile[r][c];
    }
}

template <typename U, int R, int C>
static void transpose_tiles_by(const U *x, U *y, const TransposeShape &s, cudaStream_t stream)
{
    dim3 grid((unsigned)((s.columns + C - 1) / C), (unsigned)((s.rows + R - 1) / R), (unsigned)s.batch);
    launch(transpose_tiles_kernel<U, R, C>, grid, 256, 0, stream, x, y, s);
}

/* R rows of C 2-byte elements in shared memory, reached in runs of 8 along rows and along columns: a word more per row,
 * and one per eight rows, so that neighbouring threads find theirs in different banks. */
template <int R, int C> struct HalvesTile {
    static constexpr int PITCH = C / 2 + 1, WORDS = R * PITCH + R / 8;
    uint32_t word[WORDS];

    __device__ __forceinline__ uint32_t *at(int r, int c) { return word + r * PITCH + r / 8 + c / 2; }
    __device__ __forceinline__ void put_row(int r, int c, uint4 v)
    {
        uint32_t *p = at(r, c);
        p[0] = v.x, p[1] = v.y, p[2] = v.z, p[3] = v.w;
    }
    __device__ __forceinline__ uint4 get_row(int r, int c)
    {
        const uint32_t *p = at(r, c);
        return make_uint4(p[0], p[1], p[2], p[3]);
    }
    /* rows r .. r + 7, r a multiple of 8 */
    __device__ __forceinline__ uint4 get_column(int r, int c)
    {
        const uint32_t *p = at(r, c);
        uint32_t out[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            out[j] = __byte_perm(p[2 * j * PITCH], p[(2 * j + 1) * PITCH], c % 2 ? 0x7632 : 0x5410);
        return make_uint4(out[0], out[1], out[2], out[3]);
    }
    __device__ __forceinline__ void put_column(int r, int c, uint4 v)
    {
        uint16_t *p = reinterpret_cast<uint16_t *>(at(r, c)) + c % 2;
        const uint32_t from[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 8; j++) p[j * 2 * PITCH] = (uint16_t)(from[j / 2] >> j % 2 * 16);
    }
};

/* 16 bytes per access on both sides; tiles of R x C with R C = 8192, long along the contiguous axis of the result.
 * Rows, columns and strides are multiples of 8. */
template <int R, int C>
static __global__ void __launch_bounds__(256) transpose_halves_kernel(const uint16_t *x, uint16_t *y, TransposeShape s)
{
    stage_wait();
    __shared__ HalvesTile<R, C> tile;
    x += s.x_batch * blockIdx.z;
    y += s.y_batch * blockIdx.z;
    int64_t row0 = (int64_t)blockIdx.y * R, column0 = (int64_t)blockIdx.x * C;
    uint4 v[R * C / 8 / 256];
#pragma unroll
    for (int it = 0; it < R * C / 8 / 256; it++) {
        int k = it * 256 + threadIdx.x, r = k / (C / 8), c = k % (C / 8) * 8;
        if (row0 + r < s.rows && column0 + c < s.columns)
            v[it] = *reinterpret_cast<const uint4 *>(x + (row0 + r) * s.x_row + column0 + c);
    }
#pragma unroll
    for (int it = 0; it < R * C / 8 / 256; it++) {
        int k = it * 256 + threadIdx.x, r = k / (C / 8), c = k % (C / 8) * 8;
        tile.put_row(r, c, v[it]);
    }
    __syncthreads();
#pragma unroll
    for (int it = 0; it < R * C / 8 / 256; it++) {
        int k = it * 256 + threadIdx.x, c = k / (R / 8), r = k % (R / 8) * 8;
        if (row0 + r >= s.rows || column0 + c >= s.columns) continue;
        *reinterpret_cast<uint4 *>(y + (column0 + c) * s.y_row + row0 + r) = tile.get_column(r, c);
    }
}

template <typename U>
static Status transpose_tiles_launch(const U *x, U *y, const TransposeShape &s, cudaStream_t stream)
{
    if (s.batch > 65535 || (s.rows + 63) / 64 > 65535)
        return status_fail(ERR_UNSUPPORTED, "a transpose of %lld matrices of %lld rows", (long long)s.batch,
                           (long long)s.rows);
    if constexpr (sizeof(U) == 2) {
        int64_t all = s.rows | s.columns | s.x_batch | s.x_row | s.y_batch | s.y_row;
        if (all % 8 == 0 && aligned16(x) && aligned16(y)) {
            if (s.rows >= s.columns) {
                dim3 grid((unsigned)((s.columns + 31) / 32), (unsigned)((s.rows + 255) / 256), (unsigned)s.batch);
                launch(transpose_halves_kernel<256, 32>, grid, 256, 0, stream, x, y, s);
            } else {
                dim3 grid((unsigned)((s.columns + 63) / 64), (unsigned)((s.rows + 127) / 128), (unsigned)s.batch);
                launch(transpose_halves_kernel<128, 64>, grid, 256, 0, stream, x, y, s);
            }
            return cuda_launched("transpose_halves_kernel");
        }
    }
    if (s.columns <= 16)
        transpose_tiles_by<U, 256, 16>(x, y, s, stream);
    else if (s.rows <= 16)
        transpose_tiles_by<U, 16, 256>(x, y, s, stream);
    else
        transpose_tiles_by<U, 64, 64>(x, y, s, stream);
    return cuda_launched("transpose_tiles_kernel");
}

static inline TransposeShape transpose_plain(int64_t batch, int64_t rows, int64_t columns)
{
    return {batch, rows, columns, rows * columns, columns, rows * columns, rows};
}

/* Joins axes that stay neighbours: dim/perm of the shorter problem; returns its rank. */
static inline int transpose_join(const Tensor *x, const int64_t *perm, int64_t *dim, int *order)
{
    int start[TENSOR_MAX_RANK], length[TENSOR_MAX_RANK], groups = 0;
    for (int k = 0; k < x->rank; k++) {
        bool follows = k > 0 && perm[k] == perm[k - 1] + 1;
        if (follows) {
            length[groups - 1]++;
        } else {
            start[groups] = (int)perm[k];
            length[groups++] = 1;
        }
    }
    int place[TENSOR_MAX_RANK];
    for (int g = 0; g < groups; g++) {
        place[g] = 0;
        for (int other = 0; other < groups; other++) place[g] += start[other] < start[g];
        int64_t extent = 1;
        for (int k = 0; k < length[g]; k++) extent *= x->dim[start[g] + k];
        dim[place[g]] = extent;
        order[g] = place[g];
    }
    return groups;
}

template <typename U>
static Status permute_launch(const U *x, U *y, int rank, const int64_t *dim, const int *order, cudaStream_t stream)
{
    Permutation p = {};
    int64_t stride[TENSOR_MAX_RANK], count = 1;
    for (int k = rank - 1; k >= 0; k--) stride[k] = count, count *= dim[k];
    p.rank = rank;
    for (int k = 0; k < rank; k++) p.dim[k] = (uint32_t)dim[order[k]], p.stride[k] = stride[order[k]];
    launch(permute_kernel<U>, blocks_for(count, 256), 256, 0, stream, x, y, p, (uint32_t)count);
    return cuda_launched("permute_kernel");
}

template <typename U>
static Status transpose_launch(const U *x, U *y, const Tensor *t, const int64_t *perm, cudaStream_t stream)
{
    int64_t dim[TENSOR_MAX_RANK], count = tensor_count(t);
    int order[TENSOR_MAX_RANK];
    if (count == 0) return OK;
    if (count >= INT64_C(0xffff0000))
        return status_fail(ERR_UNSUPPORTED, "a transpose of %lld elements", (long long)count);
    int rank = transpose_join(t, perm, dim, order);
    if (rank <= 1)
        return cuda_check(cudaMemcpyAsync(y, x, (size_t)count * sizeof(U), cudaMemcpyDeviceToDevice, stream),
                          "copy of a transpose");
    constexpr int64_t per16 = 16 / sizeof(U);
    int last = rank - 1;
    if (order[last] == last && dim[last] % per16 == 0 && aligned16(x) && aligned16(y)) {
        dim[last] /= per16;
        return permute_launch((const uint4 *)x, (uint4 *)y, rank, dim, order, stream);
    }
    if (rank == 2) return transpose_tiles_launch(x, y, transpose_plain(1, dim[0], dim[1]), stream);
    if (rank == 3 && order[0] == 0 && dim[0] <= 65535)
        return transpose_tiles_launch(x, y, transpose_plain(dim[0], dim[1], dim[2]), stream);
    return permute_launch(x, y, rank, dim, order, stream);
}

#endif
