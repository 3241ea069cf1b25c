/* The linear layer of the outer product mean on the outer product as a plain product leaves it, o[(i, c), (j, d)], d of
 * 32: z[i, j, n] = sum_(c, d) o[i, c, j, d] w[n, c, d], n of 128. 64 pairs of one i and one c are a box of 64-byte
 * rows, so that nothing is permuted in memory. A block takes four such runs of pairs at a time, two per warpgroup; what
 * bounds it is reading o. */
#ifndef FOLDSCALE_KERNELS_CUDA_OUTER_PROJECT_CUH
#define FOLDSCALE_KERNELS_CUDA_OUTER_PROJECT_CUH

#include "kernels/cuda/chain.cuh"

enum { PROJECT_RUN = 64, PROJECT_RUNS = 4, PROJECT_D = 32, PROJECT_STAGES = 4, PROJECT_THREADS = 384 };
enum {
    PROJECT_RUN_BYTES = PROJECT_RUN * PROJECT_D * 2,
    PROJECT_X_BYTES = PROJECT_RUNS * PROJECT_RUN_BYTES, /* of one c */
    PROJECT_W_BYTES = CHAIN_N * 2 * PROJECT_D * 2,      /* of two c */
    PROJECT_STAGE = 2 * PROJECT_X_BYTES + PROJECT_W_BYTES,
    PROJECT_BYTES = PROJECT_STAGES * PROJECT_STAGE + 1024
};

/* Axes of the maps: x: d, j, c, i; w: (c, d), n. */
struct ProjectProblem {
    CUtensorMap x, w;
    int tiles, columns, steps; /* columns: extent of j; steps: pairs of c */
};

/* 64-byte swizzle: the 16-byte chunk c of row r at c ^ (r / 2 & 3); 8 rows 512 bytes apart */
__device__ __forceinline__ uint64_t project_descriptor(uint32_t shared)
{
    return (uint64_t)((shared & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(512 >> 4) << 32 | (uint64_t)2 << 62;
}

__device__ __forceinline__ void project_load(const ProjectProblem &p, uint32_t ring, uint32_t full, uint32_t empty)
{
    int s = 0;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x)
        for (int step = 0; step < p.steps; step++, s++) {
            int stage = s % PROJECT_STAGES, round = s / PROJECT_STAGES;
            uint32_t to = ring + (uint32_t)stage * PROJECT_STAGE, ready = full + stage * 8;
            if (round > 0) barrier_wait(empty + stage * 8, (round - 1) & 1);
            barrier_expect(ready, PROJECT_STAGE);
            tensor_load(to + 2 * PROJECT_X_BYTES, &p.w, 0, step * 2 * PROJECT_D, ready);
            for (int q = 0; q < 2 * PROJECT_RUNS; q++) {
                int pair = (tile * PROJECT_RUNS + q % PROJECT_RUNS) * PROJECT_RUN;
                tensor_load_box(to + q * PROJECT_RUN_BYTES, &p.x, 0, pair % p.columns, 2 * step + q / PROJECT_RUNS,
                                pair / p.columns, ready);
            }
        }
}

/* Rows are j of one i where chain_store() has i of one j. */
template <typename Epilogue> struct ProjectEdge {
    const Epilogue &e;
    __device__ __forceinline__ float scale(int j, int i) const { return e.scale(i, j); }
    __device__ __forceinline__ uint32_t lower(float scale, int n, float a, float b) const
    {
        return e.lower(scale, make_float2(e.bias[n], e.bias[n + 1]), a, b);
    }
    __device__ __forceinline__ uint4 before(int j, int i, int n) const
    {
        return e.residual ? *reinterpret_cast<const uint4 *>(e.residual + e.place(i, j, n)) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ uint4 store(int j, int i, int n, uint4 v, uint4 r) const
    {
        return e.store(i, j, n, v, r, e.residual);
    }
    __device__ __forceinline__ void finish(int j, int i, const uint4 (&rows)[2][CHAIN_N / 32]) const
    {
        if (!e.norm.gamma) return;
        e.finish((int64_t)i * e.m + j, 8, rows, [&](int n) { return eight_scales(e.norm, n); });
    }
};

template <typename Epilogue>
__device__ __forceinline__ void project_work(const ProjectProblem &p, const Epilogue &epilogue, uint32_t ring,
                                             uint32_t full, uint32_t empty)
{
    int group = threadIdx.x / 128, lane = threadIdx.x % WARP, s = 0;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        float acc[2][CHAIN_N / 2];
#pragma unroll
        for (int k = 0; k < CHAIN_N / 2; k++) acc[0][k] = acc[1][k] = 0;
        wgmma_settle(acc[0]), wgmma_settle(acc[1]);
        for (int step = 0; step < p.steps; step++, s++) {
            int stage = s % PROJECT_STAGES;
            uint32_t x = ring + (uint32_t)stage * PROJECT_STAGE, w = x + 2 * PROJECT_X_BYTES;
            barrier_wait(full + stage * 8, s / PROJECT_STAGES & 1);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    uint32_t at = x + k / 2 * PROJECT_X_BYTES + (2 * group + m) * PROJECT_RUN_BYTES + k % 2 * 32;
                    wgmma_step<CHAIN_N>(acc[m], project_descriptor(at), wgmma_descriptor(w + k * 32), 1);
                }
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0 && lane == 0) barrier_arrive(empty + (s - 1) % PROJECT_STAGES * 8);
        }
        wgmma_wait<0>();
        wgmma_settle(acc[0]), wgmma_settle(acc[1]);
        if (lane == 0) barrier_arrive(empty + (s - 1) % PROJECT_STAGES * 8);
        ProjectEdge<Epilogue> edge = {epilogue};
#pragma unroll
        for (int m = 0; m < 2; m++) {
            int pair = (tile * PROJECT_RUNS + 2 * group + m) * PROJECT_RUN;
            chain_store(edge, acc[m], pair % p.columns + threadIdx.x % 128 / WARP * 16 + lane / 4, pair / p.columns);
        }
    }
}

template <typename Epilogue>
__global__ void __launch_bounds__(PROJECT_THREADS, 1)
    outer_project_kernel(const __grid_constant__ ProjectProblem p, const __grid_constant__ Epilogue epilogue)
{
    extern __shared__ char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * PROJECT_STAGES];
    uint32_t ring = (shared_address(shared) + 1023) & ~1023u;
    uint32_t full = shared_address(barriers), empty = full + PROJECT_STAGES * 8;
    if (threadIdx.x == 0) {
        for (int s = 0; s < PROJECT_STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, 8);
        }
        barrier_publish();
    }
    __syncthreads();
    stage_wait();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 256) project_load(p, ring, full, empty);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        project_work(p, epilogue, ring, full, empty);
    }
}

static inline bool outer_project_fits(int64_t n, int64_t m, int64_t c)
{
    return m % PROJECT_RUN == 0 && n * m % (PROJECT_RUNS * PROJECT_RUN) == 0 && c % 2 == 0;
}

/* x[n, c, m, 32], w[128, c, 32] */
template <typename Epilogue>
static Status outer_project_launch(const bf16 *x, const bf16 *w, int64_t n, int64_t m, int64_t c,
                                   const Epilogue &epilogue, cudaStream_t stream)
{
    enum { PROCESSORS = 132 };
    ProjectProblem p = {};
    p.tiles = (int)(n * m / (PROJECT_RUNS * PROJECT_RUN)), p.columns = (int)m, p.steps = (int)(c / 2);
    const cuuint64_t extent[4] = {PROJECT_D, (cuuint64_t)m, (cuuint64_t)c, (cuuint64_t)n};
    const cuuint64_t row = PROJECT_D * sizeof(bf16), pitch[3] = {row, m * row, c * m * row};
    const cuuint32_t box[4] = {PROJECT_D, PROJECT_RUN, 1, 1};
    TRY(tensor_map_of(x, 4, extent, pitch, box, CU_TENSOR_MAP_SWIZZLE_64B, &p.x));
    TRY(tensor_map(w, CHAIN_N, c * PROJECT_D, CHAIN_N, &p.w));
    CUDA_TRY(cudaFuncSetAttribute(outer_project_kernel<Epilogue>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  PROJECT_BYTES));
    launch(outer_project_kernel<Epilogue>, p.tiles < PROCESSORS ? p.tiles : PROCESSORS, PROJECT_THREADS, PROJECT_BYTES,
           stream, p, epilogue);
    return cuda_launched("outer_project_kernel");
}

#endif
