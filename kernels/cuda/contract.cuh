/* Products of strided matrices without tensor cores: C[z](i, j) = post(alpha sum_k A[z](i, k) B[z](k, j)). Any strides,
 * three batch axes; blocks of 64 x 64, 4 x 4 results a thread. For f32 and for shapes that the tensor core kernels do
 * not take. */
#ifndef FOLDSCALE_KERNELS_CUDA_CONTRACT_CUH
#define FOLDSCALE_KERNELS_CUDA_CONTRACT_CUH

#include "kernels/cuda/device.cuh"

enum { CONTRACT_TILE = 64, CONTRACT_K = 16 };

/* Strides in elements: of the row and column index, then of the batch axes. */
struct ContractOperand {
    int64_t row, column, batch[3];
};

struct Contract {
    int m, n, k;
    int batch[3];
    ContractOperand a, b, c;
    float alpha;
    int first; /* batch of block z = 0 */
};

__device__ __forceinline__ int64_t contract_offset(const Contract &p, const ContractOperand &o, int z)
{
    int z2 = z % p.batch[2], rest = z / p.batch[2], z1 = rest % p.batch[1], z0 = rest / p.batch[1];
    return z0 * o.batch[0] + z1 * o.batch[1] + z2 * o.batch[2];
}

/* [64][16] or [16][64] elements; the index with stride one varies fastest over threads. */
template <typename T, typename Sum>
__device__ __forceinline__ void contract_load(Sum (*tile)[CONTRACT_TILE + 1], const T *p, int64_t stride_out,
                                              int64_t stride_k, int out0, int out_extent, int k0, int k_extent)
{
    for (int id = threadIdx.x; id < CONTRACT_TILE * CONTRACT_K; id += 256) {
        int out, k;
        if (stride_k == 1)
            k = id % CONTRACT_K, out = id / CONTRACT_K;
        else
            out = id % CONTRACT_TILE, k = id / CONTRACT_TILE;
        bool live = out0 + out < out_extent && k0 + k < k_extent;
        tile[k][out] = live ? to_float(p[(out0 + out) * stride_out + (k0 + k) * stride_k]) : 0.0f;
    }
}

/* post(z, i, j, x) -> what is stored; sums in Sum */
template <typename Sum, typename TA, typename TB, typename TC, typename Post>
__global__ void __launch_bounds__(256) contract_kernel(const TA *a, const TB *b, TC *c, Contract p, Post post)
{
    stage_wait();
    __shared__ Sum ta[CONTRACT_K][CONTRACT_TILE + 1], tb[CONTRACT_K][CONTRACT_TILE + 1];
    int z = p.first + blockIdx.z, i0 = blockIdx.y * CONTRACT_TILE, j0 = blockIdx.x * CONTRACT_TILE;
    a += contract_offset(p, p.a, z);
    b += contract_offset(p, p.b, z);
    c += contract_offset(p, p.c, z);
    int ti = threadIdx.x / 16, tj = threadIdx.x % 16;
    Sum sum[4][4] = {};
    for (int k0 = 0; k0 < p.k; k0 += CONTRACT_K) {
        __syncthreads();
        contract_load(ta, a, p.a.row, p.a.column, i0, p.m, k0, p.k);
        contract_load(tb, b, p.b.column, p.b.row, j0, p.n, k0, p.k);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < CONTRACT_K; k++) {
            Sum x[4], y[4];
#pragma unroll
            for (int r = 0; r < 4; r++) x[r] = ta[k][ti + 16 * r], y[r] = tb[k][tj + 16 * r];
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int s = 0; s < 4; s++) sum[r][s] += x[r] * y[s];
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int s = 0; s < 4; s++) {
            int i = i0 + ti + 16 * r, j = j0 + tj + 16 * s;
            if (i < p.m && j < p.n)
                c[i * p.c.row + j * p.c.column] = from_float<TC>(post(z, i, j, (float)(p.alpha * sum[r][s])));
        }
}

struct ContractPlain {
    __device__ __forceinline__ float operator()(int, int, int, float x) const { return x; }
};

template <typename TA, typename TB, typename TC, typename Post>
static Status contract_launch(const TA *a, const TB *b, TC *c, Contract p, const Post &post, cudaStream_t stream)
{
    const int64_t GRID_Z = 65535;
    int64_t batch = (int64_t)p.batch[0] * p.batch[1] * p.batch[2];
    if (p.m == 0 || p.n == 0 || batch == 0) return OK;
    dim3 grid((p.n + CONTRACT_TILE - 1) / CONTRACT_TILE, (p.m + CONTRACT_TILE - 1) / CONTRACT_TILE);
    if (grid.y > GRID_Z) return status_fail(ERR_UNSUPPORTED, "a product with %d rows", p.m);
    bool few = batch * p.m * p.n * p.k < FEW_MULTIPLICATIONS;
    auto *kernel =
        few ? contract_kernel<typename Wide<TA>::Sum, TA, TB, TC, Post> : contract_kernel<float, TA, TB, TC, Post>;
    for (int64_t first = 0; first < batch; first += GRID_Z) {
        grid.z = (unsigned)(batch - first < GRID_Z ? batch - first : GRID_Z);
        p.first = (int)first;
        launch(kernel, grid, 256, 0, stream, a, b, c, p, post);
    }
    return cuda_launched("contract_kernel");
}

#endif
