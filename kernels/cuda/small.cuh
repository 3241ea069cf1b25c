/* Products of small f32 matrices, where the library's kernels leave most of the device idle: blocks of 32 x 32 in one
 * pass, so that a few hundred of them fill it. D = A B (+ C) (+ bias) (relu) (0 where y <= 0), f32 throughout, every
 * element summed in one order: four quarters of a block take eight of every 32 inner elements each. */
#ifndef FOLDSCALE_KERNELS_CUDA_SMALL_CUH
#define FOLDSCALE_KERNELS_CUDA_SMALL_CUH

#include "kernels/cuda/mma.cuh"

enum { SMALL_TILE = 32, SMALL_PITCH = SMALL_TILE + 4, SMALL_STAGES = 4, SMALL_THREADS = 256 };
enum { SMALL_ROWS = 4, SMALL_COLUMNS = 4 /* of a thread */ };

struct SmallProduct {
    int m, n, k;
    const float *a, *b;        /* [m, k] or, transposed, [k, m]; [k, n] or, transposed, [n, k] */
    const float *c, *bias, *y; /* [m, n], [n], [m, n]; NULL = none */
    float *d, *sums;           /* sums[m] over k of A; NULL = not wanted */
    bool relu;
};

/* A tile of 32 rows (or columns) x 32 inner elements, stored as it lies in memory: inner elements side by side (ALONG)
 * or rows side by side. */
template <bool ALONG>
__device__ __forceinline__ void small_load(float *tile, const float *p, int rows, int k, int row0, int k0)
{
    int major = threadIdx.x / 8, minor = threadIdx.x % 8 * 4, ld = ALONG ? k : rows;
    int at_major = (ALONG ? row0 : k0) + major, at_minor = (ALONG ? k0 : row0) + minor;
    bool live = at_major < (ALONG ? rows : k);
    const float *from = p + (int64_t)at_major * ld + at_minor;
    uint32_t to = shared_address(tile + major * SMALL_PITCH + minor);
    if (ld % 4 == 0) {
        live = live && at_minor < ld;
        copy16_async(to, live ? from : p, live);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bool one = live && at_minor + j < ld;
        copy4_async(to + j * 4, one ? from + j : p, one);
    }
}

/* COUNT rows of four inner elements from k on; row r of thread t: t + r STEP where inner elements lie side by side,
 * else t COUNT + r, so that neither way of reading meets bank conflicts. */
template <bool ALONG, int COUNT, int STEP>
__device__ __forceinline__ void small_fragment(float (&f)[COUNT][4], const float *tile, int t, int k)
{
    if (ALONG) {
#pragma unroll
        for (int r = 0; r < COUNT; r++)
            *reinterpret_cast<float4 *>(f[r]) =
                *reinterpret_cast<const float4 *>(tile + (t + r * STEP) * SMALL_PITCH + k);
    } else {
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int r = 0; r < COUNT; r++) f[r][q] = tile[(k + q) * SMALL_PITCH + t * COUNT + r];
    }
}

/* The second to fourth quarter hand their sums to the first, which adds them in order; true there. */
template <typename Sum>
__device__ __forceinline__ bool small_join(Sum *shared, int quarter, Sum (&acc)[SMALL_ROWS][SMALL_COLUMNS],
                                           Sum (&sums)[SMALL_ROWS])
{
    constexpr int RESULTS = SMALL_ROWS * (SMALL_COLUMNS + 1);
    Sum *place = shared + threadIdx.x % 64;
#pragma unroll
    for (int r = 0; quarter > 0 && r < SMALL_ROWS; r++) {
        Sum *to = place + ((quarter - 1) * RESULTS + r * (SMALL_COLUMNS + 1)) * 64;
        to[SMALL_COLUMNS * 64] = sums[r];
#pragma unroll
        for (int c = 0; c < SMALL_COLUMNS; c++) to[c * 64] = acc[r][c];
    }
    __syncthreads();
    if (quarter > 0) return false;
#pragma unroll
    for (int q = 0; q < 3; q++)
#pragma unroll
        for (int r = 0; r < SMALL_ROWS; r++) {
            const Sum *from = place + (q * RESULTS + r * (SMALL_COLUMNS + 1)) * 64;
            sums[r] += from[SMALL_COLUMNS * 64];
#pragma unroll
            for (int c = 0; c < SMALL_COLUMNS; c++) acc[r][c] += from[c * 64];
        }
    return true;
}

__device__ __forceinline__ float small_edges(const SmallProduct &p, float v, int row, int column)
{
    int64_t at = (int64_t)row * p.n + column;
    if (p.bias) v += p.bias[column];
    if (p.c) v += p.c[at];
    if (p.relu) v = fmaxf(v, 0.0f);
    return p.y && !(p.y[at] > 0.0f) ? 0.0f : v;
}

template <typename Sum, bool A_T, bool B_T>
__global__ void __launch_bounds__(SMALL_THREADS) small_product_kernel(SmallProduct p)
{
    stage_wait();
    constexpr int TILE_FLOATS = SMALL_TILE * SMALL_PITCH, QUARTER = SMALL_TILE / 4;
    __shared__ __align__(16) float tiles[SMALL_STAGES][2][TILE_FLOATS];
    int row0 = blockIdx.y * SMALL_TILE, column0 = blockIdx.x * SMALL_TILE;
    int quarter = threadIdx.x / 64, tm = threadIdx.x % 64 / 8, tn = threadIdx.x % 8;
    int steps = (p.k + SMALL_TILE - 1) / SMALL_TILE;
    auto load = [&](int step) {
        if (step < steps) {
            small_load<!A_T>(tiles[step % SMALL_STAGES][0], p.a, p.m, p.k, row0, step * SMALL_TILE);
            small_load<B_T>(tiles[step % SMALL_STAGES][1], p.b, p.n, p.k, column0, step * SMALL_TILE);
        }
        copy_commit();
    };
    Sum acc[SMALL_ROWS][SMALL_COLUMNS] = {}, sums[SMALL_ROWS] = {};
#pragma unroll
    for (int s = 0; s < SMALL_STAGES - 1; s++) load(s);
    for (int step = 0; step < steps; step++) {
        copy_wait<SMALL_STAGES - 2>();
        __syncthreads();
        load(step + SMALL_STAGES - 1);
        const float(&tile)[2][TILE_FLOATS] = tiles[step % SMALL_STAGES];
#pragma unroll
        for (int k = quarter * QUARTER; k < (quarter + 1) * QUARTER; k += 4) {
            float a[SMALL_ROWS][4], b[SMALL_COLUMNS][4];
            small_fragment<!A_T, SMALL_ROWS, 8>(a, tile[0], tm, k);
            small_fragment<B_T, SMALL_COLUMNS, 8>(b, tile[1], tn, k);
#pragma unroll
            for (int q = 0; q < 4; q++)
#pragma unroll
                for (int r = 0; r < SMALL_ROWS; r++) {
                    sums[r] += a[r][q];
#pragma unroll
                    for (int c = 0; c < SMALL_COLUMNS; c++) acc[r][c] = fma((Sum)a[r][q], (Sum)b[c][q], acc[r][c]);
                }
        }
    }
    copy_wait<0>();
    __syncthreads();
    if (!small_join(reinterpret_cast<Sum *>(&tiles[0][0][0]), quarter, acc, sums)) return;
    bool sums_here = p.sums && column0 == 0 && tn == 0;
#pragma unroll
    for (int r = 0; r < SMALL_ROWS; r++) {
        int row = row0 + (A_T ? tm * SMALL_ROWS + r : tm + r * 8);
        if (row >= p.m) continue;
        if (sums_here) p.sums[row] = (float)sums[r];
#pragma unroll
        for (int c = 0; c < SMALL_COLUMNS; c++) {
            int column = column0 + (B_T ? tn + c * 8 : tn * SMALL_COLUMNS + c);
            if (column < p.n) p.d[(int64_t)row * p.n + column] = small_edges(p, (float)acc[r][c], row, column);
        }
    }
}

/* Up to [256, 432] x 384 this is faster than the library on an H200, [256, 2112] x 384 is slower. */
static inline bool small_fits(const SmallProduct &p)
{
    return p.m > 0 && p.n > 0 && (int64_t)p.m * p.n * p.k <= INT64_C(256) * 432 * 512 && p.k <= 512 && aligned16(p.a) &&
           aligned16(p.b);
}

/* A^T B of matrices whose rows the library reads element by element: [14, 2056] x [2056, 128] takes it 610 us. */
static inline bool small_is_odd(const SmallProduct &p)
{
    bool odd = p.m % 4 != 0 || p.n % 4 != 0;
    return odd && (int64_t)p.m * p.n * p.k < FEW_MULTIPLICATIONS && aligned16(p.a) && aligned16(p.b);
}

template <bool A_T, bool B_T> static Status small_launch(const SmallProduct &p, cudaStream_t stream)
{
    dim3 grid(blocks_for(p.n, SMALL_TILE), blocks_for(p.m, SMALL_TILE));
    bool few = (int64_t)p.m * p.n * p.k < FEW_MULTIPLICATIONS;
    auto *kernel = few ? small_product_kernel<double, A_T, B_T> : small_product_kernel<float, A_T, B_T>;
    launch(kernel, grid, SMALL_THREADS, 0, stream, p);
    return cuda_launched("small_product_kernel");
}

#endif
