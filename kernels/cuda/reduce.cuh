/* Sums over rows in a fixed order. */
#ifndef FOLDSCALE_KERNELS_CUDA_REDUCE_CUH
#define FOLDSCALE_KERNELS_CUDA_REDUCE_CUH

#include "kernels/cuda/device.cuh"

/* x[A, B, C] -> y[A, C] = sum over B, in order; one thread per output element. */
template <typename T, typename U> __global__ void sum_middle_kernel(const T *x, U *y, int64_t a, int64_t b, int64_t c)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= a * c) return;
    const T *p = x + e / c * b * c + e % c;
    typename Wide<T>::Sum sum = 0;
#pragma unroll 8
    for (int64_t k = 0; k < b; k++) sum += to_float(p[k * c]);
    y[e] = from_float<U>((float)sum);
}

/* The same by blocks of COLUMNS packs x 256 / COLUMNS rows at a time. */
template <int COLUMNS, typename T, typename U>
__global__ void __launch_bounds__(256) sum_middle_packs_kernel(const T *x, U *y, int64_t b, int64_t c)
{
    stage_wait();
    constexpr int LANES = 256 / COLUMNS, V = Pack<T>::N, WIDTH = COLUMNS * V;
    typedef typename Wide<T>::Sum Sum;
    __shared__ Sum shared[LANES][WIDTH + 1];
    int column_lane = threadIdx.x % COLUMNS, row_lane = threadIdx.x / COLUMNS;
    int64_t first = (int64_t)blockIdx.x * WIDTH, column = first + column_lane * V;
    const T *p = x + (int64_t)blockIdx.y * b * c + column;
    Sum sum[V] = {};
    if (column < c) {
#pragma unroll 4
        for (int64_t row = row_lane; row < b; row += LANES) {
            float v[V];
            load_floats<V>(p + row * c, v);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++) shared[row_lane][column_lane * V + j] = sum[j];
    __syncthreads();
    for (int k = threadIdx.x; k < WIDTH && first + k < c; k += 256) {
        Sum total = 0;
        for (int l = 0; l < LANES; l++) total += shared[l][k];
        y[(int64_t)blockIdx.y * c + first + k] = from_float<U>((float)total);
    }
}

template <typename T, typename U>
static Status sum_middle_launch(const T *x, U *y, int64_t a, int64_t b, int64_t c, cudaStream_t stream)
{
    constexpr int V = Pack<T>::N;
    if (a * c == 0) return OK;
    if (c % V == 0 && aligned16(x) && b >= 64 && a <= 65535) {
        if (c <= 16 * V)
            launch(sum_middle_packs_kernel<16, T, U>, dim3(blocks_for(c, 16 * V), (unsigned)a), 256, 0, stream, x, y, b,
                   c);
        else
            launch(sum_middle_packs_kernel<32, T, U>, dim3(blocks_for(c, 32 * V), (unsigned)a), 256, 0, stream, x, y, b,
                   c);
        return cuda_launched("sum_middle_packs_kernel");
    }
    launch(sum_middle_kernel<T, U>, blocks_for(a * c, 128), 128, 0, stream, x, y, a, b, c);
    return cuda_launched("sum_middle_kernel");
}

/* --- x[rows, columns] -> y[columns] in f32: runs of rows first, joined in order; several matrices of one shape at once
 * ----- */

enum { SUM_ROWS_CHUNKS = 256 /* rows are cut into that many runs, whatever the device */, SUM_LIST = 6 };

template <typename T> struct SumList {
    const T *x[SUM_LIST];
    float *y[SUM_LIST];
};

/* Block: COLUMNS vectors of columns x 256 / COLUMNS rows at a time; grid: columns, runs, matrices. */
template <int V, int COLUMNS, typename T>
__global__ void __launch_bounds__(256) sum_rows_kernel(SumList<T> list, float *partial, int64_t rows, int64_t columns)
{
    stage_wait();
    constexpr int LANES = 256 / COLUMNS, WIDTH = COLUMNS * V;
    typedef typename Wide<T>::Sum Sum;
    __shared__ Sum shared[LANES][WIDTH + 1];
    stage_release();
    const T *x = list.x[blockIdx.z];
    partial += ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * columns;
    int column_lane = threadIdx.x % COLUMNS, row_lane = threadIdx.x / COLUMNS;
    int64_t column = ((int64_t)blockIdx.x * COLUMNS + column_lane) * V;
    int64_t run = (rows + gridDim.y - 1) / gridDim.y, from = run * blockIdx.y,
            to = from + run < rows ? from + run : rows;
    Sum sum[V] = {};
    if (column < columns) {
#pragma unroll 4
        for (int64_t row = from + row_lane; row < to; row += LANES) {
            float v[V];
            load_floats<V>(x + row * columns + column, v);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++) shared[row_lane][column_lane * V + j] = sum[j];
    __syncthreads();
    for (int k = threadIdx.x; k < WIDTH; k += 256) {
        int64_t at = (int64_t)blockIdx.x * WIDTH + k;
        if (at >= columns) continue;
        Sum total = 0;
        for (int l = 0; l < LANES; l++) total += shared[l][k];
        partial[at] = (float)total;
    }
}

/* Sum of a column over the runs of partial[runs][columns], by a block of 32 columns x 32 lanes: one tree, one order.
 * Every thread of lane group `lane` gets column blockIdx.x * 32 + lane. */
static __device__ __forceinline__ float sum_of_runs(const float *partial, int64_t runs, int64_t columns)
{
    __shared__ float shared[32][33];
    int column_lane = threadIdx.x % 32, lane = threadIdx.x / 32;
    int64_t column = (int64_t)blockIdx.x * 32 + column_lane;
    float sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (int64_t r = lane; r < runs; r += 32) sum += partial[r * columns + column];
    }
    shared[lane][column_lane] = sum;
    __syncthreads();
    return lanes_sum<32>(shared[column_lane][lane]);
}

template <typename T>
__global__ void __launch_bounds__(1024)
    sum_list_join_kernel(SumList<T> list, const float *partial, int64_t runs, int64_t columns)
{
    stage_wait();
    float total = sum_of_runs(partial + (int64_t)blockIdx.z * runs * columns, runs, columns);
    int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && column < columns) list.y[blockIdx.z][column] = total;
}

static inline size_t sum_rows_scratch(int64_t columns)
{
    return align_up((size_t)SUM_ROWS_CHUNKS * (size_t)columns * sizeof(float));
}

/* scratch: count times sum_rows_scratch() */
template <typename T>
static Status sum_rows_list_launch(const SumList<T> &list, int count, int64_t rows, int64_t columns, void *scratch,
                                   cudaStream_t stream)
{
    constexpr int V = Pack<T>::N;
    float *partial = (float *)scratch;
    bool wide = columns % V == 0;
    for (int k = 0; k < count; k++) wide = wide && aligned16(list.x[k]);
    int64_t runs = (rows + 63) / 64;
    if (runs > SUM_ROWS_CHUNKS) runs = SUM_ROWS_CHUNKS;
    if (runs < 1) runs = 1;
    dim3 grid(1, (unsigned)runs, (unsigned)count);
    if (wide && columns <= 8 * V) {
        launch(sum_rows_kernel<V, 8, T>, grid, 256, 0, stream, list, partial, rows, columns);
    } else if (wide && columns <= 16 * V) {
        launch(sum_rows_kernel<V, 16, T>, grid, 256, 0, stream, list, partial, rows, columns);
    } else {
        grid.x = blocks_for(columns, wide ? 32 * V : 32);
        if (wide)
            launch(sum_rows_kernel<V, 32, T>, grid, 256, 0, stream, list, partial, rows, columns);
        else
            launch(sum_rows_kernel<1, 32, T>, grid, 256, 0, stream, list, partial, rows, columns);
    }
    TRY(cuda_launched("sum_rows_kernel"));
    launch(sum_list_join_kernel<T>, dim3(blocks_for(columns, 32), 1, (unsigned)count), 1024, 0, stream, list, partial,
           runs, columns);
    return cuda_launched("sum_list_join_kernel");
}

template <typename T>
static Status sum_rows_launch(const T *x, float *y, int64_t rows, int64_t columns, void *scratch, cudaStream_t stream)
{
    SumList<T> list = {{x}, {y}};
    return sum_rows_list_launch(list, 1, rows, columns, scratch, stream);
}

/* partial[runs][2 C] -> a[C], b[C] */
static __global__ void __launch_bounds__(1024)
    sum_split_kernel(const float *partial, float *a, float *b, int64_t runs, int64_t columns)
{
    stage_wait();
    float total = sum_of_runs(partial, runs, 2 * columns);
    int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.x / 32;
    if (threadIdx.x % 32 != 0 || column >= 2 * columns) return;
    if (column < columns)
        a[column] = total;
    else
        b[column - columns] = total;
}

static inline Status sum_partials_split_launch(const float *partial, float *a, float *b, int64_t runs, int64_t columns,
                                               cudaStream_t stream)
{
    launch(sum_split_kernel, blocks_for(2 * columns, 32), 1024, 0, stream, partial, a, b, runs, columns);
    return cuda_launched("sum_split_kernel");
}

#endif
