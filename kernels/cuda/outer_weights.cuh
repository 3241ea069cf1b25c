/* dW of the outer product mean with the outer product in shared memory only:
 *   dw[n, (c, d)] = sum_(i, j) dz[i, j, n] o[i, j, c, d],   o[i, j, c, d] = sum_s a[s, i, c] b[s, j, d],
 * n and s of 128, d of 32. A block takes eight c, sixteen i and a run of j, two j a step. Each of two warpgroups makes
 * o of eight i from fragments of a in registers, rounded to bf16, and multiplies 64 n of dz by the o of both; it starts
 * the next o before it uses the last one, so that its tensor cores work while it rounds. Two blocks of different c are
 * a cluster: each brings half of b and dz to both. */
#ifndef FOLDSCALE_KERNELS_CUDA_OUTER_WEIGHTS_CUH
#define FOLDSCALE_KERNELS_CUDA_OUTER_WEIGHTS_CUH

#include "kernels/cuda/cluster.cuh"

enum { WEIGHTS_K = 128, WEIGHTS_D = 32, WEIGHTS_C = 8, WEIGHTS_I = 16, WEIGHTS_N = 128, WEIGHTS_CLUSTER = 2 };
enum { WEIGHTS_STAGES = 4, WEIGHTS_SLOTS = 4, WEIGHTS_GROUPS = 2, WEIGHTS_THREADS = WEIGHTS_GROUPS * 128 + 128 };
enum {
    WEIGHTS_A_BYTES = WEIGHTS_I * WEIGHTS_C * WEIGHTS_K * 2,
    WEIGHTS_B_BYTES = 2 * WEIGHTS_D * WEIGHTS_K * 2,  /* two j */
    WEIGHTS_DZ_BYTES = 2 * WEIGHTS_I * WEIGHTS_N * 2, /* sixteen i, two j */
    WEIGHTS_HALF = 8 * 2 * WEIGHTS_C * WEIGHTS_D * 2, /* o of eight i, two j */
    WEIGHTS_PANEL = WEIGHTS_HALF / 4,                 /* 64 columns (d / 8, c, d % 8) */
    WEIGHTS_SLOT = 2 * WEIGHTS_HALF,
    WEIGHTS_STAGE = WEIGHTS_B_BYTES + WEIGHTS_DZ_BYTES,
    WEIGHTS_BYTES = WEIGHTS_A_BYTES + WEIGHTS_STAGES * WEIGHTS_STAGE + WEIGHTS_SLOTS * WEIGHTS_SLOT + 1024
};

/* Axes of the maps: a: s, c, i; b: s, (j, d); dz: n, j, i. */
struct WeightsProblem {
    CUtensorMap a, b, dz;
    int groups, tiles, steps, cluster, channels; /* of c, of i, pairs of j in a run; extent of c */
    float *sums;                                 /* [run][tile][n][c][d] */
};

struct WeightsPlace {
    uint32_t a, ring, slots, full, empty, made, used, ready;
    int c0, i0, j0;
};

/* One thread: a, then its share of the stages. */
__device__ __forceinline__ void weights_load(const WeightsProblem &p, const WeightsPlace &at)
{
    int rank = (int)cluster_rank();
    uint16_t everyone = (uint16_t)((1 << p.cluster) - 1);
    barrier_expect(at.ready, WEIGHTS_A_BYTES);
    for (int q = 0; q < 4; q++)
        cube_load(at.a + q * WEIGHTS_A_BYTES / 4, &p.a, q % 2 * 64, at.c0, at.i0 + q / 2 * 8, at.ready);
    for (int step = 0; step < p.steps; step++) {
        int stage = step % WEIGHTS_STAGES, round = step / WEIGHTS_STAGES, j = at.j0 + 2 * step;
        uint32_t b = at.ring + (uint32_t)stage * WEIGHTS_STAGE, dz = b + WEIGHTS_B_BYTES, full = at.full + stage * 8;
        if (round > 0) barrier_wait(at.empty + stage * 8, (round - 1) & 1);
        barrier_expect(full, WEIGHTS_STAGE);
        for (int q = rank; q < 2; q += p.cluster) {
            tensor_load_multicast(b + q * WEIGHTS_B_BYTES / 2, &p.b, j * WEIGHTS_D, q * 64, full, everyone);
            cube_load_multicast(dz + q * WEIGHTS_DZ_BYTES / 2, &p.dz, q * 64, j, at.i0, full, everyone);
        }
    }
}

/* t = a b^T: rows (i, c) of eight i, columns (j, d) */
__device__ __forceinline__ void weights_outer(float (&t)[32], const uint32_t (&a)[WEIGHTS_K / 16][4], uint32_t b)
{
#pragma unroll
    for (int k = 0; k < 32; k++) t[k] = 0;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < WEIGHTS_K / 16; k++)
        RegisterProduct<64>::step(t, a[k], wgmma_descriptor(b + k / 4 * WEIGHTS_B_BYTES / 2 + k % 4 * 32));
    wgmma_commit();
}

/* Rows (i, j) of a slot, columns (d / 8, c, d % 8): a matrix of eight c is a row, so that its accesses have no bank
 * conflicts. */
__device__ __forceinline__ void weights_put(const float (&t)[32], uint32_t slot)
{
    int warp = threadIdx.x % 128 / WARP, lane = threadIdx.x % WARP, c = lane % 8;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t v[4];
#pragma unroll
            for (int q = 0; q < 4; q++) v[q] = pack_bf16(t[(4 * j + q) * 4 + 2 * h], t[(4 * j + q) * 4 + 2 * h + 1]);
            int row = (2 * warp + h) * 2 + j;
            stmatrix4(slot + lane / 8 * WEIGHTS_PANEL + row * 128 + ((c ^ (row & 7)) << 4), v);
        }
}

/* acc += dz^T o of both halves of a slot; dz: 64 n */
__device__ __forceinline__ void weights_use(float (&acc)[128], uint32_t dz, uint32_t slot)
{
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; half++)
        GroupProduct<256, true, true>::step(acc, across_descriptor(dz + half * 2048, WEIGHTS_DZ_BYTES / 2),
                                            across_descriptor(slot + half * WEIGHTS_HALF, WEIGHTS_PANEL), 1);
    wgmma_commit();
}

/* Rows n of a warpgroup. */
__device__ __forceinline__ void weights_store(const WeightsProblem &p, const WeightsPlace &at, const float (&acc)[128])
{
    int n = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, tile = (int)blockIdx.x / p.groups;
    int64_t pitch = (int64_t)p.channels * WEIGHTS_D;
    float *to = p.sums + ((int64_t)tile * WEIGHTS_N + n) * pitch + at.c0 * WEIGHTS_D + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < 32; j++) /* columns 8 j: d / 8 = j / 8, c = j % 8 */
#pragma unroll
        for (int h = 0; h < 2; h++)
            *reinterpret_cast<float2 *>(to + h * 8 * pitch + j % 8 * WEIGHTS_D + j / 8 * 8) =
                make_float2(acc[4 * j + 2 * h], acc[4 * j + 2 * h + 1]);
}

__device__ __forceinline__ void weights_work(const WeightsProblem &p, const WeightsPlace &at, int group)
{
    int warp = threadIdx.x % 128 / WARP, lane = threadIdx.x % WARP, row = warp * 16 + lane % 16;
    uint32_t a[WEIGHTS_K / 16][4], from = at.a + group * WEIGHTS_A_BYTES / 2 + row * 128;
    uint32_t first = (uint32_t)(lane / 16 ^ (row & 7)) << 4;
    float acc[128], t[32];
#pragma unroll
    for (int k = 0; k < 128; k++) acc[k] = 0;
    wgmma_settle(acc);
    barrier_wait(at.ready, 0);
#pragma unroll
    for (int k = 0; k < WEIGHTS_K / 16; k++)
        ldmatrix4(a[k], from + k / 4 * (WEIGHTS_A_BYTES / 4) + (first ^ (k % 4 << 5)));
    barrier_wait(at.full, 0);
    weights_outer(t, a, at.ring);
    wgmma_wait<0>();
    wgmma_settle(t);
    weights_put(t, at.slots + group * WEIGHTS_HALF);
    barrier_arrive_warp(at.made);
    for (int step = 0;; step++) {
        int next = step + 1 < p.steps ? step + 1 : step, slot = step % WEIGHTS_SLOTS;
        uint32_t dz = at.ring + (uint32_t)(step % WEIGHTS_STAGES) * WEIGHTS_STAGE + WEIGHTS_B_BYTES;
        barrier_wait(at.full + next % WEIGHTS_STAGES * 8, next / WEIGHTS_STAGES & 1);
        weights_outer(t, a, at.ring + (uint32_t)(next % WEIGHTS_STAGES) * WEIGHTS_STAGE);
        barrier_wait(at.made + slot * 8, step / WEIGHTS_SLOTS & 1);
        weights_use(acc, dz + group * (WEIGHTS_DZ_BYTES / 2), at.slots + slot * WEIGHTS_SLOT);
        wgmma_wait<1>(); /* the next o, and what used the one before */
        wgmma_settle(t);
        if (step > 0 && lane == 0) barrier_arrive(at.used + (step - 1) % WEIGHTS_SLOTS * 8);
        if (step > 0 && lane < p.cluster) barrier_arrive_at(at.empty + (step - 1) % WEIGHTS_STAGES * 8, lane);
        if (next == step) break;
        slot = next % WEIGHTS_SLOTS;
        if (next >= WEIGHTS_SLOTS) barrier_wait(at.used + slot * 8, (next / WEIGHTS_SLOTS - 1) & 1);
        weights_put(t, at.slots + slot * WEIGHTS_SLOT + group * WEIGHTS_HALF);
        barrier_arrive_warp(at.made + slot * 8);
    }
    wgmma_wait<0>();
    wgmma_settle(acc);
    weights_store(p, at, acc);
}

/* grid: runs of j x tiles of i x groups of c, the last fastest */
static __global__ void __launch_bounds__(WEIGHTS_THREADS, 1)
    outer_weights_kernel(const __grid_constant__ WeightsProblem p)
{
    extern __shared__ char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * WEIGHTS_STAGES + 2 * WEIGHTS_SLOTS + 1];
    int group = threadIdx.x / 128, tile = (int)blockIdx.x / p.groups;
    WeightsPlace at;
    at.a = (shared_address(shared) + 1023) & ~1023u, at.ring = at.a + WEIGHTS_A_BYTES;
    at.slots = at.ring + WEIGHTS_STAGES * WEIGHTS_STAGE;
    at.full = shared_address(barriers), at.empty = at.full + WEIGHTS_STAGES * 8;
    at.made = at.empty + WEIGHTS_STAGES * 8, at.used = at.made + WEIGHTS_SLOTS * 8;
    at.ready = at.used + WEIGHTS_SLOTS * 8;
    at.c0 = (int)blockIdx.x % p.groups * WEIGHTS_C, at.i0 = tile % p.tiles * WEIGHTS_I;
    at.j0 = tile / p.tiles * p.steps * 2;
    if (threadIdx.x == 0) {
        for (int s = 0; s < WEIGHTS_STAGES; s++) {
            barrier_init(at.full + s * 8, 1);
            barrier_init(at.empty + s * 8, p.cluster * WEIGHTS_GROUPS * 4);
        }
        for (int s = 0; s < WEIGHTS_SLOTS; s++) {
            barrier_init(at.made + s * 8, WEIGHTS_GROUPS * 4 * WARP_ARRIVALS);
            barrier_init(at.used + s * 8, WEIGHTS_GROUPS * 4);
        }
        barrier_init(at.ready, 1);
        barrier_publish();
    }
    __syncthreads();
    cluster_sync();
    stage_wait();
    /* registers of the idle warps go to the products */
    if (group == WEIGHTS_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == WEIGHTS_GROUPS * 128) weights_load(p, at);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        weights_work(p, at, group);
    }
    cluster_meet(); /* nobody leaves while another block writes here */
}

struct WeightsOperands {
    const bf16 *a, *b, *dz; /* a[(i, c), s], b[(j, d), s], dz[i, j, n] */
    int64_t n, m, c;
};

static inline bool outer_weights_fits(int64_t n, int64_t m, int64_t c)
{
    return n % WEIGHTS_I == 0 && m % 2 == 0 && c % WEIGHTS_C == 0;
}
/* runs of j: blocks for the multiprocessors */
static inline int outer_weights_runs(int64_t n, int64_t m, int64_t c)
{
    enum { PROCESSORS = 132, LEAST = 8 };
    int64_t blocks = n / WEIGHTS_I * (c / WEIGHTS_C), runs = 1;
    while (2 * runs * blocks <= PROCESSORS && m % (4 * runs) == 0 && m / (2 * runs) >= LEAST) runs *= 2;
    return (int)runs;
}
/* summands of dW */
static inline int64_t outer_weights_parts(int64_t n, int64_t m, int64_t c)
{
    return outer_weights_runs(n, m, c) * (n / WEIGHTS_I);
}

/* sums[parts][n][c][d] */
static Status outer_weights_launch(const WeightsOperands &o, float *sums, cudaStream_t stream)
{
    int runs = outer_weights_runs(o.n, o.m, o.c);
    WeightsProblem p = {};
    p.groups = (int)(o.c / WEIGHTS_C), p.tiles = (int)(o.n / WEIGHTS_I), p.steps = (int)(o.m / 2 / runs);
    p.cluster = p.groups % WEIGHTS_CLUSTER == 0 ? WEIGHTS_CLUSTER : 1;
    p.channels = (int)o.c, p.sums = sums;
    const cuuint64_t a_extent[3] = {WEIGHTS_K, (cuuint64_t)o.c, (cuuint64_t)o.n};
    const cuuint64_t a_pitch[2] = {WEIGHTS_K * sizeof(bf16), o.c * WEIGHTS_K * sizeof(bf16)};
    const cuuint32_t a_box[3] = {TENSOR_COLUMNS, WEIGHTS_C, 8};
    const cuuint64_t z_extent[3] = {WEIGHTS_N, (cuuint64_t)o.m, (cuuint64_t)o.n};
    const cuuint64_t z_pitch[2] = {WEIGHTS_N * sizeof(bf16), o.m * WEIGHTS_N * sizeof(bf16)};
    const cuuint32_t z_box[3] = {TENSOR_COLUMNS, 2, WEIGHTS_I};
    TRY(tensor_map_of(o.a, 3, a_extent, a_pitch, a_box, CU_TENSOR_MAP_SWIZZLE_128B, &p.a));
    TRY(tensor_map_of(o.dz, 3, z_extent, z_pitch, z_box, CU_TENSOR_MAP_SWIZZLE_128B, &p.dz));
    TRY(tensor_map(o.b, o.m * WEIGHTS_D, WEIGHTS_K, 2 * WEIGHTS_D, &p.b));
    CUDA_TRY(cudaFuncSetAttribute(outer_weights_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, WEIGHTS_BYTES));
    launch_clusters(outer_weights_kernel, (unsigned)(runs * p.tiles * p.groups), WEIGHTS_THREADS, WEIGHTS_BYTES,
                    p.cluster, stream, p);
    return cuda_launched("outer_weights_kernel");
}

#endif
