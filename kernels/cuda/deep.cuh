/* y = r + dropout(x W^T + b) with a long inner extent: rows in tiles of 128, two warpgroups of 64 rows each, x and W
 * through a ring of stages of 64 inner columns. Two thread blocks with neighbouring rows share the weights: each loads
 * half of a stage's and sends it to both. The tiles of r are loaded beside the last stages and become y in place. */
#ifndef FOLDSCALE_KERNELS_CUDA_DEEP_CUH
#define FOLDSCALE_KERNELS_CUDA_DEEP_CUH

#include "kernels/cuda/flow.cuh"

enum { DEEP_ROWS = FLOW_GROUPS * FLOW_ROWS, DEEP_PAIRS = 66 /* of the 132 multiprocessors */ };

template <int NB> struct DeepShape {
    static constexpr int X_BYTES = DEEP_ROWS * 128, W_BYTES = NB * 128, STAGE = X_BYTES + W_BYTES;
    static constexpr int Y_BYTES = FLOW_ROWS * NB * 2; /* of a warpgroup */
    static constexpr int BIAS_BYTES = NB * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int FIT = (MOST - FLOW_GROUPS * Y_BYTES - BIAS_BYTES - BARRIER_BYTES) / STAGE;
    static constexpr int STAGES = FIT < 8 ? FIT : 8;
    static constexpr int BYTES = STAGES * STAGE + FLOW_GROUPS * Y_BYTES + BIAS_BYTES + BARRIER_BYTES;
};

struct DeepProblem {
    FlowProblem f;
    int steps;  /* stages per tile */
    int blocks; /* of columns */
    int items;  /* pairs of tiles times blocks of columns */
};

struct DeepPlace {
    uint32_t ring, y, full, empty, sum, done, gone;
    uint32_t rank;
    int first, step;
};

/* row of this block's tile and first column of an item */
__device__ __forceinline__ int deep_row(const DeepProblem &p, const DeepPlace &at, int item)
{
    return (item / p.blocks * 2 + (int)at.rank) * DEEP_ROWS;
}

template <int NB> __device__ __forceinline__ void deep_load(const DeepProblem &p, const DeepPlace &at)
{
    typedef DeepShape<NB> S;
    int n = 0;
    for (int item = at.first, i = 0; item < p.items; item += at.step, i++) {
        int row = deep_row(p, at, item), column0 = item % p.blocks * NB;
        for (int k = 0; k < p.steps; k++, n++) {
            int stage = n % S::STAGES, round = n / S::STAGES;
            uint32_t x = at.ring + stage * S::STAGE, w = x + S::X_BYTES + at.rank * (S::W_BYTES / 2);
            if (round > 0) barrier_wait(at.empty + stage * 8, (round - 1) & 1);
            barrier_expect(at.full + stage * 8, S::STAGE);
            tensor_load(x, &p.f.x, row, k * 64, at.full + stage * 8);
            tensor_load_both(w, &p.f.w, column0 + (int)at.rank * (NB / 2), k * 64, at.full + stage * 8);
        }
        for (int g = 0; g < FLOW_GROUPS; g++) {
            if (i > 0) barrier_wait(at.gone + g * 8, (i - 1) & 1);
            barrier_expect(at.sum + g * 8, S::Y_BYTES);
            for (int c = 0; c < NB / 64; c++)
                tensor_load(at.y + g * S::Y_BYTES + c * FLOW_CHUNK, &p.f.r, row + g * FLOW_ROWS, column0 + c * 64,
                            at.sum + g * 8);
        }
    }
}

template <int NB> __device__ __forceinline__ void deep_store(const DeepProblem &p, const DeepPlace &at, int group)
{
    typedef DeepShape<NB> S;
    for (int item = at.first, i = 0; item < p.items; item += at.step, i++) {
        int row = deep_row(p, at, item) + group * FLOW_ROWS, column0 = item % p.blocks * NB;
        barrier_wait(at.done + group * 8, i & 1);
        for (int c = 0; c < NB / 64; c++)
            tensor_store(&p.f.y[0], at.y + group * S::Y_BYTES + c * FLOW_CHUNK, row, column0 + c * 64);
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(at.gone + group * 8);
    }
    tensor_store_wait();
}

/* acc = x W^T over the stages n, n + 1, ... of a tile; stages are given back to both blocks. */
template <int NB>
__device__ __forceinline__ void deep_product(const DeepProblem &p, const DeepPlace &at, float (&acc)[NB / 2], int group,
                                             int &n)
{
    typedef DeepShape<NB> S;
    int lane = threadIdx.x % WARP;
    for (int k = 0; k < p.steps; k++, n++) {
        int stage = n % S::STAGES, before = (n + S::STAGES - 1) % S::STAGES;
        uint32_t x = at.ring + stage * S::STAGE;
        uint64_t a = wgmma_descriptor(x + group * FLOW_CHUNK), b = wgmma_descriptor(x + S::X_BYTES);
        barrier_wait(at.full + stage * 8, n / S::STAGES & 1);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++) wgmma_step<NB>(acc, a + j * 2, b + j * 2, k + j > 0);
        wgmma_commit();
        if (k == 0) continue;
        wgmma_wait<1>();
        if (lane < 2) barrier_arrive_at(at.empty + before * 8, lane);
    }
    wgmma_wait<0>();
    if (lane < 2) barrier_arrive_at(at.empty + (n + S::STAGES - 1) % S::STAGES * 8, lane);
}

template <int NB>
__device__ __forceinline__ void deep_work(const DeepProblem &p, const DeepPlace &at, const float *bias, char *y,
                                          int group)
{
    typedef DeepShape<NB> S;
    DropoutDraw draw = {};
    if (p.f.drop.rng) draw = p.f.drop.draw();
    int n = 0;
    for (int item = at.first, i = 0; item < p.items; item += at.step, i++) {
        float acc[NB / 2];
        deep_product<NB>(p, at, acc, group, n);
        barrier_wait(at.sum + group * 8, i & 1);
        int column0 = item % p.blocks * NB, tile = deep_row(p, at, item) / FLOW_ROWS + group;
        flow_edge<NB, FLOW_RESIDUAL>(p.f, bias + column0, acc, y, column0, tile, draw);
        async_fence();
        __syncwarp();
        if (threadIdx.x % WARP == 0) barrier_arrive(at.done + group * 8);
    }
}

template <int NB>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(FLOW_THREADS, 1)
    deep_kernel(const __grid_constant__ DeepProblem p)
{
    typedef DeepShape<NB> S;
    extern __shared__ __align__(1024) char shared[];
    DeepPlace at;
    at.ring = shared_address(shared), at.y = at.ring + S::STAGES * S::STAGE;
    at.full = at.y + FLOW_GROUPS * S::Y_BYTES, at.empty = at.full + S::STAGES * 8, at.sum = at.empty + S::STAGES * 8;
    at.done = at.sum + FLOW_GROUPS * 8, at.gone = at.done + FLOW_GROUPS * 8;
    at.rank = cluster_rank(), at.first = blockIdx.x / 2, at.step = gridDim.x / 2;
    float *bias =
        reinterpret_cast<float *>(shared + S::STAGES * S::STAGE + FLOW_GROUPS * S::Y_BYTES + S::BARRIER_BYTES);
    int group = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            barrier_init(at.full + s * 8, 1);
            barrier_init(at.empty + s * 8, 2 * FLOW_GROUPS * 4); /* the warps of both blocks */
        }
        for (int g = 0; g < FLOW_GROUPS; g++) {
            barrier_init(at.sum + g * 8, 1);
            barrier_init(at.done + g * 8, 4);
            barrier_init(at.gone + g * 8, 1);
        }
        barrier_publish();
    }
    for (int c = threadIdx.x; c < p.f.columns; c += FLOW_THREADS) bias[c] = p.f.bias[0] ? p.f.bias[0][c] : 0.0f;
    __syncthreads();
    cluster_sync();
    if (group == FLOW_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        int warp = threadIdx.x / WARP % 4;
        if (threadIdx.x % WARP == 0 && warp == 0) deep_load<NB>(p, at);
        if (threadIdx.x % WARP == 0 && warp > 0 && warp <= FLOW_GROUPS) deep_store<NB>(p, at, warp - 1);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        deep_work<NB>(p, at, bias, shared + S::STAGES * S::STAGE + group * S::Y_BYTES, group);
    }
    cluster_sync(); /* neither block leaves while the other may write or signal here */
}

enum { DEEP_COLUMNS = 256 /* at most: room for the biases */ };

static inline bool deep_fits(const FlowOperands &o)
{
    int columns = o.start[1];
    bool fits = o.inner % 64 == 0 && o.inner >= 512 && columns % 64 == 0 && columns <= DEEP_COLUMNS && o.members == 1;
    fits = fits && o.rows * columns < INT64_C(0xffff0000) && (!o.drop.rng || o.drop.inner == (uint32_t)columns);
    return fits && aligned16(o.x) && aligned16(o.w) && aligned16(o.y[0]) && aligned16(o.r);
}

template <int NB> static Status deep_launch_shape(const FlowOperands &o, cudaStream_t stream)
{
    constexpr int BYTES = DeepShape<NB>::BYTES + (DEEP_COLUMNS - NB) * 4;
    DeepProblem p = {};
    flow_problem(o, &p.f);
    int tiles = (int)((o.rows + DEEP_ROWS - 1) / DEEP_ROWS);
    p.steps = (int)(o.inner / 64), p.blocks = p.f.columns / NB;
    p.items = (tiles + 1) / 2 * p.blocks;
    TRY(tensor_map(o.x, o.rows, o.inner, DEEP_ROWS, &p.f.x));
    TRY(tensor_map(o.w, p.f.columns, o.inner, NB / 2, &p.f.w));
    TRY(tensor_map(o.y[0], o.rows, p.f.columns, FLOW_ROWS, &p.f.y[0]));
    TRY(tensor_map(o.r, o.rows, p.f.columns, FLOW_ROWS, &p.f.r));
    CUDA_TRY(cudaFuncSetAttribute(deep_kernel<NB>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    deep_kernel<NB><<<2 * (p.items < DEEP_PAIRS ? p.items : DEEP_PAIRS), FLOW_THREADS, BYTES, stream>>>(p);
    return cuda_launched("deep_kernel");
}

/* The widest blocks of columns that give every multiprocessor a tile. */
static inline Status deep_launch(const FlowOperands &o, cudaStream_t stream)
{
    int columns = o.start[1];
    int64_t tiles = (o.rows + DEEP_ROWS - 1) / DEEP_ROWS;
    if (columns % 256 == 0 && tiles * (columns / 256) >= 2 * DEEP_PAIRS) return deep_launch_shape<256>(o, stream);
    if (columns % 128 == 0 && tiles * (columns / 128) >= 2 * DEEP_PAIRS) return deep_launch_shape<128>(o, stream);
    return deep_launch_shape<64>(o, stream);
}

#endif
