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

/* x[batch, R, C] (rows `x_pitch` apart, batches `x_batch` apart) -> y[batch, C, R]: tiles of 64 x 32 through shared
 * memory. */
template <typename U>
__global__ void __launch_bounds__(256) transpose_tiles_kernel(const U *x, U *y, int rows, int columns, int64_t x_batch,
                                                              int64_t y_batch, int64_t x_pitch, int64_t y_pitch)
{
    constexpr int TILE = 64;
    __shared__ U tile[TILE][TILE + 4 / sizeof(U)];
    x += x_batch * blockIdx.z;
    y += y_batch * blockIdx.z;
    int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
    for (int k = threadIdx.x; k < TILE * TILE; k += 256) {
        int r = k / TILE, c = k % TILE;
        if (row0 + r < rows && column0 + c < columns) tile[r][c] = x[(row0 + r) * x_pitch + column0 + c];
    }
    __syncthreads();
    for (int k = threadIdx.x; k < TILE * TILE; k += 256) {
        int c = k / TILE, r = k % TILE;
        if (row0 + r < rows && column0 + c < columns) y[(column0 + c) * y_pitch + row0 + r] = tile[r][c];
    }
}

/* The same for 2-byte elements, 16 bytes per access on both sides: rows and columns multiples of 8. */
static __global__ void __launch_bounds__(256)
    transpose_halves_kernel(const uint16_t *x, uint16_t *y, int rows, int columns, int64_t x_batch, int64_t y_batch)
{
    constexpr int TILE = 64;
    __shared__ uint32_t tile[TILE][TILE / 2 + 1];
    x += x_batch * blockIdx.z;
    y += y_batch * blockIdx.z;
    int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
#pragma unroll
    for (int k = threadIdx.x; k < TILE * TILE / 8; k += 256) {
        int r = k / (TILE / 8), c = k % (TILE / 8) * 8;
        if (row0 + r >= rows || column0 + c >= columns) continue;
        uint4 v = *reinterpret_cast<const uint4 *>(x + (int64_t)(row0 + r) * columns + column0 + c);
        tile[r][c / 2] = v.x, tile[r][c / 2 + 1] = v.y, tile[r][c / 2 + 2] = v.z, tile[r][c / 2 + 3] = v.w;
    }
    __syncthreads();
#pragma unroll
    for (int k = threadIdx.x; k < TILE * TILE / 8; k += 256) {
        int c = k / (TILE / 8), r = k % (TILE / 8) * 8;
        if (row0 + r >= rows || column0 + c >= columns) continue;
        uint32_t v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t low = tile[r + 2 * j][c / 2], high = tile[r + 2 * j + 1][c / 2];
            v[j] = __byte_perm(low, high, c % 2 ? 0x7632 : 0x5410);
        }
        *reinterpret_cast<uint4 *>(y + (int64_t)(column0 + c) * rows + row0 + r) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

template <typename U>
static Status transpose_tiles_launch(const U *x, U *y, int64_t batch, int64_t rows, int64_t columns,
                                     cudaStream_t stream)
{
    if (batch > 65535) return status_fail(ERR_UNSUPPORTED, "a transpose of %lld matrices", (long long)batch);
    dim3 grid((unsigned)((columns + 63) / 64), (unsigned)((rows + 63) / 64), (unsigned)batch);
    transpose_tiles_kernel<U>
        <<<grid, 256, 0, stream>>>(x, y, (int)rows, (int)columns, rows * columns, rows * columns, columns, rows);
    return cuda_launched("transpose_tiles_kernel");
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
    permute_kernel<U><<<blocks_for(count, 256), 256, 0, stream>>>(x, y, p, (uint32_t)count);
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
    if (rank == 2) return transpose_tiles_launch(x, y, 1, dim[0], dim[1], stream);
    if (rank == 3 && order[0] == 0 && dim[0] <= 65535)
        return transpose_tiles_launch(x, y, dim[0], dim[1], dim[2], stream);
    return permute_launch(x, y, rank, dim, order, stream);
}

#endif
