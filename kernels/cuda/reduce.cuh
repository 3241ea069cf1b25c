/* Sums over rows in a fixed order. */
#ifndef FOLDSCALE_KERNELS_CUDA_REDUCE_CUH
#define FOLDSCALE_KERNELS_CUDA_REDUCE_CUH

#include "kernels/cuda/device.cuh"

/* x[A, B, C] -> y[A, C] = sum over B, in order; one thread per output element. */
template <typename T, typename U> __global__ void sum_middle_kernel(const T *x, U *y, int64_t a, int64_t b, int64_t c)
{
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= a * c) return;
    const T *p = x + e / c * b * c + e % c;
    float sum = 0;
#pragma unroll 8
    for (int64_t k = 0; k < b; k++) sum += to_float(p[k * c]);
    y[e] = from_float<U>(sum);
}

template <typename T, typename U>
static Status sum_middle_launch(const T *x, U *y, int64_t a, int64_t b, int64_t c, cudaStream_t stream)
{
    if (a * c == 0) return OK;
    sum_middle_kernel<T, U><<<blocks_for(a * c, 128), 128, 0, stream>>>(x, y, a, b, c);
    return cuda_launched("sum_middle_kernel");
}

enum { SUM_ROWS_CHUNKS = 256 }; /* first stage: rows are cut into that many runs, whatever the device */

/* Partial sums of a run of rows: block (column tile, run); 32 column vectors x 8 row lanes, joined in lane order. */
template <int V, typename T>
__global__ void __launch_bounds__(256) sum_rows_kernel(const T *x, float *partial, int64_t rows, int64_t columns)
{
    __shared__ float shared[8][32 * V];
    int column_lane = threadIdx.x % 32, row_lane = threadIdx.x / 32;
    int64_t column = ((int64_t)blockIdx.x * 32 + column_lane) * V;
    int64_t run = (rows + gridDim.y - 1) / gridDim.y, from = run * blockIdx.y;
    int64_t to = from + run < rows ? from + run : rows;
    float sum[V] = {};
    if (column < columns) {
#pragma unroll 4
        for (int64_t row = from + row_lane; row < to; row += 8) {
            float v[V];
            load_floats<V>(x + row * columns + column, v);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++) shared[row_lane][column_lane * V + j] = sum[j];
    __syncthreads();
    for (int k = threadIdx.x; k < 32 * V; k += 256) {
        int64_t at = (int64_t)blockIdx.x * 32 * V + k;
        if (at >= columns) continue;
        float total = 0;
        for (int r = 0; r < 8; r++) total += shared[r][k];
        partial[blockIdx.y * columns + at] = total;
    }
}

/* Columns from `split` on go to `rest`. */
static __global__ void __launch_bounds__(1024)
    sum_partials_kernel(const float *partial, float *y, float *rest, int64_t split, int64_t runs, int64_t columns)
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
    /* the warp sums a column by shuffles: one tree, one order */
    float total = lanes_sum<32>(shared[column_lane][lane]);
    column = (int64_t)blockIdx.x * 32 + lane;
    if (column_lane != 0 || column >= columns) return;
    if (column < split)
        y[column] = total;
    else
        rest[column - split] = total;
}

static inline size_t sum_rows_scratch(int64_t columns)
{
    return align_up((size_t)SUM_ROWS_CHUNKS * (size_t)columns * sizeof(float));
}

static inline Status sum_partials_launch(const float *partial, float *y, int64_t runs, int64_t columns,
                                         cudaStream_t stream)
{
    sum_partials_kernel<<<blocks_for(columns, 32), 1024, 0, stream>>>(partial, y, NULL, columns, runs, columns);
    return cuda_launched("sum_partials_kernel");
}

/* partial[runs][2 C] -> a[C], b[C] */
static inline Status sum_partials_split_launch(const float *partial, float *a, float *b, int64_t runs, int64_t columns,
                                               cudaStream_t stream)
{
    sum_partials_kernel<<<blocks_for(2 * columns, 32), 1024, 0, stream>>>(partial, a, b, columns, runs, 2 * columns);
    return cuda_launched("sum_partials_kernel");
}

/* Matrices of one shape, summed over their rows in one launch: grid z is the matrix. */
enum { SUM_LIST = 6 };
template <typename T> struct SumList {
    const T *x[SUM_LIST];
    float *y[SUM_LIST];
};

template <int V, typename T>
__global__ void __launch_bounds__(256)
    sum_rows_list_kernel(SumList<T> list, float *partial, int64_t rows, int64_t columns)
{
    __shared__ float shared[8][32 * V];
    const T *x = list.x[blockIdx.z];
    partial += (int64_t)blockIdx.z * gridDim.y * columns;
    int column_lane = threadIdx.x % 32, row_lane = threadIdx.x / 32;
    int64_t column = ((int64_t)blockIdx.x * 32 + column_lane) * V;
    int64_t run = (rows + gridDim.y - 1) / gridDim.y, from = run * blockIdx.y,
            to = from + run < rows ? from + run : rows;
    float sum[V] = {};
    if (column < columns) {
#pragma unroll 4
        for (int64_t row = from + row_lane; row < to; row += 8) {
            float v[V];
            load_floats<V>(x + row * columns + column, v);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++) shared[row_lane][column_lane * V + j] = sum[j];
    __syncthreads();
    for (int k = threadIdx.x; k < 32 * V; k += 256) {
        int64_t at = (int64_t)blockIdx.x * 32 * V + k;
        if (at >= columns) continue;
        float total = 0;
        for (int l = 0; l < 8; l++) total += shared[l][k];
        partial[blockIdx.y * columns + at] = total;
    }
}

template <typename T>
static __global__ void __launch_bounds__(1024)
    sum_list_join_kernel(SumList<T> list, const float *partial, int64_t runs, int64_t columns)
{
    __shared__ float shared[32][33];
    int column_lane = threadIdx.x % 32, lane = threadIdx.x / 32;
    int64_t column = (int64_t)blockIdx.x * 32 + column_lane;
    float sum = 0;
    partial += (int64_t)blockIdx.z * runs * columns;
    if (column < columns) {
#pragma unroll 8
        for (int64_t r = lane; r < runs; r += 32) sum += partial[r * columns + column];
    }
    shared[lane][column_lane] = sum;
    __syncthreads();
    float total = lanes_sum<32>(shared[column_lane][lane]);
    column = (int64_t)blockIdx.x * 32 + lane;
    if (column_lane == 0 && column < columns) list.y[blockIdx.z][column] = total;
}

template <typename T>
static Status sum_rows_list_launch(const SumList<T> &list, int count, int64_t rows, int64_t columns, void *scratch,
                                   cudaStream_t stream)
{
    constexpr int V = Pack<T>::N;
    int64_t runs = (rows + 63) / 64;
    if (runs > SUM_ROWS_CHUNKS) runs = SUM_ROWS_CHUNKS;
    dim3 grid(blocks_for(columns, 32 * V), (unsigned)runs, (unsigned)count);
    sum_rows_list_kernel<V><<<grid, 256, 0, stream>>>(list, (float *)scratch, rows, columns);
    TRY(cuda_launched("sum_rows_list_kernel"));
    sum_list_join_kernel<<<dim3(blocks_for(columns, 32), 1, (unsigned)count), 1024, 0, stream>>>(
        list, (const float *)scratch, runs, columns);
    return cuda_launched("sum_list_join_kernel");
}

/* x[rows, columns] -> y[columns] in f32, two stages, always the same order. scratch: sum_rows_scratch(). */
template <typename T>
static Status sum_rows_launch(const T *x, float *y, int64_t rows, int64_t columns, void *scratch, cudaStream_t stream)
{
    constexpr int V = Pack<T>::N;
    int64_t runs = (rows + 63) / 64;
    if (runs > SUM_ROWS_CHUNKS) runs = SUM_ROWS_CHUNKS;
    if (runs < 1) runs = 1;
    float *partial = (float *)scratch;
    if (columns % V == 0 && aligned16(x)) {
        dim3 grid(blocks_for(columns, 32 * V), (unsigned)runs);
        sum_rows_kernel<V><<<grid, 256, 0, stream>>>(x, partial, rows, columns);
    } else {
        dim3 grid(blocks_for(columns, 32), (unsigned)runs);
        sum_rows_kernel<1><<<grid, 256, 0, stream>>>(x, partial, rows, columns);
    }
    TRY(cuda_launched("sum_rows_kernel"));
    return sum_partials_launch(partial, y, runs, columns, stream);
}

#endif
