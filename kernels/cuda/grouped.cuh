/* Products x w^T whose rows and columns are pairs of indices, stored with the indices in another order: runs of 32
 * columns of a row tile are boxes of a tensor with four axes. 256 rows of w stay in shared memory, tiles of 64 rows of
 * x stream past; what bounds such a product is writing its result. As gates.cuh otherwise. */
#ifndef FOLDSCALE_KERNELS_CUDA_GROUPED_CUH
#define FOLDSCALE_KERNELS_CUDA_GROUPED_CUH

#include "kernels/cuda/gates.cuh"

enum { GROUPED_K = 128, GROUPED_RUN = 32, GROUPED_RUN_BYTES = GATES_ROWS * GROUPED_RUN * 2, GROUPED_SLOTS = 4 };
enum {
    GROUPED_W_BYTES = GATES_COLUMNS * GROUPED_K * 2,
    GROUPED_X_BYTES = GATES_ROWS * GROUPED_K * 2,
    GROUPED_SLOT = GATES_ROWS * GATES_COLUMNS * 2, /* x, over which the result goes */
    GROUPED_BYTES = GROUPED_W_BYTES + GROUPED_SLOTS * GROUPED_SLOT + 256
};

/* y[i][j][c][d] or [i][c][j][d], d of 32, as axes d, j, c, i of the map. Rows are (i, c) and columns (j, d), or rows
 * (i, j) and columns (c, d); `inner`: extent of the second index of a row. */
struct GroupedProblem {
    CUtensorMap x, w, y;
    int rows, columns, inner, along;
    bool rows_of_channels;
};

__device__ __forceinline__ void grouped_send(const GroupedProblem &p, uint32_t from, int row, int column)
{
    int run = column / GROUPED_RUN, low = row % p.inner;
    int j = p.rows_of_channels ? run : low, c = p.rows_of_channels ? low : run;
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&p.y),
                 "r"(0), "r"(j), "r"(c), "r"(row / p.inner), "r"(from)
                 : "memory");
}

__device__ __forceinline__ void grouped_load(const GroupedProblem &p, const GatesPlace &at)
{
    barrier_expect(at.ready, GROUPED_W_BYTES);
    for (int k = 0; k < GROUPED_K / 64; k++)
        tensor_load(at.w + k * GATES_COLUMNS * 128, &p.w, at.column0, k * 64, at.ready);
    for (int i = 0, tile = at.first; tile < at.tiles; i++, tile += at.step) {
        int slot = i % GROUPED_SLOTS, round = i / GROUPED_SLOTS;
        uint32_t full = at.full + slot * 8;
        if (round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_expect(full, GROUPED_X_BYTES);
        for (int k = 0; k < GROUPED_K / 64; k++)
            tensor_load(at.slots + slot * GROUPED_SLOT + k * GATES_CHUNK, &p.x, tile * GATES_ROWS, k * 64, full);
    }
}

__device__ __forceinline__ void grouped_store(const GroupedProblem &p, const GatesPlace &at, int group)
{
    for (int i = group, tile = at.first + group * at.step; tile < at.tiles;
         i += GATES_GROUPS, tile += GATES_GROUPS * at.step) {
        int slot = i % GROUPED_SLOTS;
        barrier_wait(at.done + slot * 8, i / GROUPED_SLOTS & 1);
        for (int q = 0; q < GATES_COLUMNS / GROUPED_RUN; q++)
            grouped_send(p, at.slots + slot * GROUPED_SLOT + q * GROUPED_RUN_BYTES, tile * GATES_ROWS,
                         at.column0 + q * GROUPED_RUN);
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(at.empty + slot * 8);
    }
    tensor_store_wait();
}

/* Rows of 64 bytes: the 16-byte chunk c of row r lies at c ^ (r / 2 & 3), the 64-byte swizzle. */
__device__ __forceinline__ void grouped_put(const float (&acc)[GATES_COLUMNS / 2], uint32_t y)
{
    int thread = threadIdx.x % 128, lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < GATES_COLUMNS / 8; j++) {
        uint32_t at = y + j / 4 * GROUPED_RUN_BYTES + row * 64 + ((j % 4 ^ (row / 2 & 3)) << 4) + lane % 4 * 4;
        shared_word_put(at, pack_bf16(acc[4 * j], acc[4 * j + 1]));
        shared_word_put(at + 8 * 64, pack_bf16(acc[4 * j + 2], acc[4 * j + 3]));
    }
}

__device__ __forceinline__ void grouped_work(const GatesPlace &at, int group)
{
    barrier_wait(at.ready, 0);
    for (int i = group, tile = at.first + group * at.step; tile < at.tiles;
         i += GATES_GROUPS, tile += GATES_GROUPS * at.step) {
        int slot = i % GROUPED_SLOTS;
        uint32_t x = at.slots + slot * GROUPED_SLOT;
        float acc[GATES_COLUMNS / 2];
        barrier_wait(at.full + slot * 8, i / GROUPED_SLOTS & 1);
        gates_product<GROUPED_K, GATES_COLUMNS>(acc, x, at.w);
        asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); /* results go over x */
        grouped_put(acc, x);
        barrier_arrive_warp(at.done + slot * 8);
    }
}

static __global__ void __launch_bounds__(GATES_THREADS, 1) grouped_kernel(const __grid_constant__ GroupedProblem p)
{
    extern __shared__ __align__(1024) char shared[];
    int group = threadIdx.x / 128;
    GatesPlace at = {};
    at.w = shared_address(shared), at.slots = at.w + GROUPED_W_BYTES;
    at.column0 = (int)blockIdx.x / p.along * GATES_COLUMNS;
    at.first = (int)blockIdx.x % p.along, at.step = p.along, at.tiles = p.rows / GATES_ROWS;
    slot_barriers<GROUPED_SLOTS>(&at, at.slots + GROUPED_SLOTS * GROUPED_SLOT);
    __syncthreads();
    stage_wait();
    stage_release();
    /* registers of the copying warps go to the products */
    if (group == GATES_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        int warp = threadIdx.x / WARP % 4;
        if (threadIdx.x % WARP == 0 && warp == 0) grouped_load(p, at);
        if (threadIdx.x % WARP == 0 && warp > 0 && warp <= GATES_GROUPS) grouped_store(p, at, warp - 1);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        grouped_work(at, group);
    }
}

/* x[rows, 128] w[columns, 128]^T; n, m, c: extents of i, j, c. */
struct GroupedOperands {
    const bf16 *x, *w;
    bf16 *y;
    int64_t n, m, c, d, inner;
    bool rows_of_channels; /* rows (i, c), y[i][j][c][d]; else rows (i, j), y[i][c][j][d] */
};

static inline bool grouped_fits(const GroupedOperands &o)
{
    int64_t low = o.rows_of_channels ? o.c : o.m, high = o.rows_of_channels ? o.m : o.c;
    bool tiles = low % GATES_ROWS == 0 || (o.rows_of_channels && GATES_ROWS % low == 0);
    return o.inner == GROUPED_K && o.d == GROUPED_RUN && tiles && o.n * low % GATES_ROWS == 0 &&
           high * o.d % GATES_COLUMNS == 0 && o.n * low < INT32_MAX && aligned16(o.x) && aligned16(o.w) &&
           aligned16(o.y);
}

static Status grouped_launch(const GroupedOperands &o, cudaStream_t stream)
{
    enum { PROCESSORS = 132 };
    GroupedProblem p = {};
    int64_t low = o.rows_of_channels ? o.c : o.m, high = o.rows_of_channels ? o.m : o.c;
    p.rows = (int)(o.n * low), p.columns = (int)(high * o.d), p.inner = (int)low;
    p.rows_of_channels = o.rows_of_channels;
    int blocks = p.columns / GATES_COLUMNS, tiles = p.rows / GATES_ROWS;
    p.along = PROCESSORS / blocks > 1 ? PROCESSORS / blocks : 1;
    if (p.along > tiles) p.along = tiles;
    TRY(tensor_map(o.x, p.rows, GROUPED_K, GATES_ROWS, &p.x));
    TRY(tensor_map(o.w, p.columns, GROUPED_K, GATES_COLUMNS, &p.w));
    int64_t j_step = o.rows_of_channels ? o.c * o.d : o.d, c_step = o.rows_of_channels ? o.d : o.m * o.d;
    const cuuint64_t extent[4] = {(cuuint64_t)o.d, (cuuint64_t)o.m, (cuuint64_t)o.c, (cuuint64_t)o.n};
    const cuuint64_t pitch[3] = {j_step * sizeof(bf16), c_step * sizeof(bf16), o.m * o.c * o.d * sizeof(bf16)};
    cuuint32_t box[4] = {GROUPED_RUN, 1, 1, 1}, rows = low < GATES_ROWS ? (cuuint32_t)low : (cuuint32_t)GATES_ROWS;
    box[o.rows_of_channels ? 2 : 1] = rows;
    box[3] = GATES_ROWS / rows;
    TRY(tensor_map_of(o.y, 4, extent, pitch, box, CU_TENSOR_MAP_SWIZZLE_64B, &p.y));
    CUDA_TRY(cudaFuncSetAttribute(grouped_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GROUPED_BYTES));
    launch(grouped_kernel, (unsigned)(blocks * p.along), GATES_THREADS, GROUPED_BYTES, stream, p);
    return cuda_launched("grouped_kernel");
}

#endif
