/* Layer norm (statistics in f32 over the last axis, biased variance) and softmax. */
#include "kernels/cuda/reduce.cuh"

enum { NORM_THREADS = 256, NORM_BLOCKS = 528 /* four per SM; fixed, so that sums have one order everywhere */ };

/* LANES neighbouring lanes own a row of C = LANES * V * N channels: lane l holds vectors l, l + LANES, ... */
template <typename T, int LANES, int N>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_kernel(const T *__restrict__ x, const float *__restrict__ gamma, const float *__restrict__ beta,
                      T *__restrict__ y, float *mean_out, float *rstd_out, int64_t rows, float eps)
{
    constexpr int V = Pack<T>::N, C = LANES * V * N;
    int lane = threadIdx.x % LANES;
    int64_t row = ((int64_t)blockIdx.x * NORM_THREADS + threadIdx.x) / LANES;
    bool live = row < rows;
    float v[N][V], sum = 0, square = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (live) {
            load_floats<V>(x + row * C + (k * LANES + lane) * V, v[k]);
        } else {
#pragma unroll
            for (int j = 0; j < V; j++) v[k][j] = 0;
        }
#pragma unroll
        for (int j = 0; j < V; j++) sum += v[k][j];
    }
    float mean = lanes_sum<LANES>(sum) / C;
#pragma unroll
    for (int k = 0; k < N; k++)
#pragma unroll
        for (int j = 0; j < V; j++) square += (v[k][j] - mean) * (v[k][j] - mean);
    float rstd = 1.0f / sqrtf(lanes_sum<LANES>(square) / C + eps);
    if (!live) return;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float g[V], b[V];
        int channel = (k * LANES + lane) * V;
        load_floats<V>(gamma + channel, g);
        load_floats<V>(beta + channel, b);
#pragma unroll
        for (int j = 0; j < V; j++) v[k][j] = (v[k][j] - mean) * rstd * g[j] + b[j];
        store_floats<V>(y + row * C + channel, v[k]);
    }
    if (mean_out && lane == 0) {
        mean_out[row] = mean;
        rstd_out[row] = rstd;
    }
}

/* Any C: a warp per row, three passes. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_any_kernel(const T *x, const float *gamma, const float *beta, T *y, float *mean_out, float *rstd_out,
                          int64_t rows, int c, float eps)
{
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * NORM_THREADS + threadIdx.x) / WARP;
    if (row >= rows) return;
    x += row * c;
    float sum = 0, square = 0;
    for (int k = lane; k < c; k += WARP) sum += to_float(x[k]);
    float mean = lanes_sum<WARP>(sum) / c;
    for (int k = lane; k < c; k += WARP) square += (to_float(x[k]) - mean) * (to_float(x[k]) - mean);
    float rstd = 1.0f / sqrtf(lanes_sum<WARP>(square) / c + eps);
    for (int k = lane; k < c; k += WARP)
        y[row * c + k] = from_float<T>((to_float(x[k]) - mean) * rstd * gamma[k] + beta[k]);
    if (mean_out && lane == 0) {
        mean_out[row] = mean;
        rstd_out[row] = rstd;
    }
}

/* dx = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)); this block's share of dgamma = sum dy xhat, dbeta = sum dy goes
 * to partial[block][2 C]. mean == NULL: the statistics are computed again. */
template <typename T, int LANES, int N>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_bwd_kernel(const T *__restrict__ dy, const T *__restrict__ x, const float *__restrict__ gamma,
                          const float *__restrict__ mean_in, const float *__restrict__ rstd_in, T *__restrict__ dx,
                          float *partial, int64_t rows, float eps)
{
    constexpr int V = Pack<T>::N, C = LANES * V * N, GROUPS = NORM_THREADS / LANES;
    __shared__ float shared[GROUPS / (WARP / LANES)][C];
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    float g[N][V], dgamma[N][V] = {}, dbeta[N][V] = {};
#pragma unroll
    for (int k = 0; k < N; k++) load_floats<V>(gamma + (k * LANES + lane) * V, g[k]);
    /* all lanes of a warp go round together: rows that do not exist count as zero */
    int64_t step = (int64_t)gridDim.x * GROUPS, rounds = (rows + step - 1) / step;
    for (int64_t r = 0; r < rounds; r++) {
        int64_t row = r * step + (int64_t)blockIdx.x * GROUPS + group;
        bool live = row < rows;
        float d[N][V], v[N][V];
#pragma unroll
        for (int k = 0; k < N; k++) {
            int64_t at = (live ? row : 0) * C + (k * LANES + lane) * V;
            load_floats<V>(dy + at, d[k]);
            load_floats<V>(x + at, v[k]);
        }
        float mean, rstd;
        if (mean_in) {
            mean = live ? mean_in[row] : 0.0f;
            rstd = live ? rstd_in[row] : 0.0f;
        } else {
            float sum = 0, square = 0;
#pragma unroll
            for (int k = 0; k < N; k++)
#pragma unroll
                for (int j = 0; j < V; j++) sum += v[k][j];
            mean = lanes_sum<LANES>(sum) / C;
#pragma unroll
            for (int k = 0; k < N; k++)
#pragma unroll
                for (int j = 0; j < V; j++) square += (v[k][j] - mean) * (v[k][j] - mean);
            rstd = 1.0f / sqrtf(lanes_sum<LANES>(square) / C + eps);
        }
        float a = 0, b = 0, on = live ? 1.0f : 0.0f;
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                float hat = (v[k][j] - mean) * rstd, dj = d[k][j] * on;
                dgamma[k][j] += dj * hat;
                dbeta[k][j] += dj;
                v[k][j] = hat;
                d[k][j] = dj * g[k][j];
                a += d[k][j];
                b += d[k][j] * hat;
            }
        a = lanes_sum<LANES>(a) / C;
        b = lanes_sum<LANES>(b) / C;
        if (!live) continue;
#pragma unroll
        for (int k = 0; k < N; k++) {
#pragma unroll
            for (int j = 0; j < V; j++) d[k][j] = rstd * (d[k][j] - a - v[k][j] * b);
            store_floats<V>(dx + row * C + (k * LANES + lane) * V, d[k]);
        }
    }
    /* groups of one warp first (by shuffles), then warps in order */
#pragma unroll
    for (int which = 0; which < 2; which++) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                float s = which ? dbeta[k][j] : dgamma[k][j];
#pragma unroll
                for (int o = LANES; o < WARP; o *= 2) s += __shfl_xor_sync(0xffffffffu, s, o);
                if (threadIdx.x % WARP < LANES) shared[threadIdx.x / WARP][(k * LANES + lane) * V + j] = s;
            }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += NORM_THREADS) {
            float total = 0;
            for (int w = 0; w < NORM_THREADS / WARP; w++) total += shared[w][c];
            partial[(int64_t)blockIdx.x * 2 * C + which * C + c] = total;
        }
    }
}

/* Any C: a block per run of rows; thread c owns channels c, c + 256, ... of dgamma and dbeta in shared memory. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_bwd_any_kernel(const T *dy, const T *x, const float *gamma, const float *mean_in, const float *rstd_in,
                              T *dx, float *partial, int64_t rows, int c, float eps)
{
    extern __shared__ float sums[]; /* dgamma[c], dbeta[c] */
    __shared__ float warp_sums[NORM_THREADS / WARP];
    for (int k = threadIdx.x; k < c; k += NORM_THREADS) sums[k] = sums[c + k] = 0; /* each belongs to one thread */
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *xr = x + row * c, *dr = dy + row * c;
        float sum = 0, square = 0, a = 0, b = 0;
        float mean, rstd;
        if (mean_in) {
            mean = mean_in[row];
            rstd = rstd_in[row];
        } else {
            for (int k = threadIdx.x; k < c; k += NORM_THREADS) sum += to_float(xr[k]);
            mean = block_sum(sum, warp_sums) / c;
            for (int k = threadIdx.x; k < c; k += NORM_THREADS)
                square += (to_float(xr[k]) - mean) * (to_float(xr[k]) - mean);
            rstd = 1.0f / sqrtf(block_sum(square, warp_sums) / c + eps);
        }
        for (int k = threadIdx.x; k < c; k += NORM_THREADS) {
            float hat = (to_float(xr[k]) - mean) * rstd, d = to_float(dr[k]);
            sums[k] += d * hat;
            sums[c + k] += d;
            a += d * gamma[k];
            b += d * gamma[k] * hat;
        }
        a = block_sum(a, warp_sums) / c;
        b = block_sum(b, warp_sums) / c;
        for (int k = threadIdx.x; k < c; k += NORM_THREADS) {
            float hat = (to_float(xr[k]) - mean) * rstd;
            dx[row * c + k] = from_float<T>(rstd * (to_float(dr[k]) * gamma[k] - a - hat * b));
        }
    }
    for (int k = threadIdx.x; k < c; k += NORM_THREADS) {
        partial[(int64_t)blockIdx.x * 2 * c + k] = sums[k];
        partial[(int64_t)blockIdx.x * 2 * c + c + k] = sums[c + k];
    }
}

/* Runs RUN(LANES, N) for the channel sizes with a vector kernel; V = elements of a pack. */
#define NORM_SIZES(RUN, V, c)                                                                                          \
    if ((c) == 8 * (V))                                                                                                \
        RUN(8, 1)                                                                                                      \
    else if ((c) == 16 * (V))                                                                                          \
        RUN(16, 1)                                                                                                     \
    else if ((c) == 32 * (V))                                                                                          \
        RUN(32, 1)                                                                                                     \
    else if ((c) == 48 * (V))                                                                                          \
        RUN(16, 3)                                                                                                     \
    else if ((c) == 64 * (V))                                                                                          \
        RUN(32, 2)                                                                                                     \
    else if ((c) == 96 * (V))                                                                                          \
    RUN(32, 3)

template <typename T>
static Status layer_norm_launch(const T *x, const float *gamma, const float *beta, T *y, float *mean, float *rstd,
                                int64_t rows, int c, float eps, cudaStream_t stream)
{
#define RUN(LANES, N)                                                                                                  \
    layer_norm_kernel<T, LANES, N><<<blocks_for(rows *LANES, NORM_THREADS), NORM_THREADS, 0, stream>>>(                \
        x, gamma, beta, y, mean, rstd, rows, eps);
    NORM_SIZES(RUN, Pack<T>::N, c)
    else layer_norm_any_kernel<T><<<blocks_for(rows * WARP, NORM_THREADS), NORM_THREADS, 0, stream>>>(
        x, gamma, beta, y, mean, rstd, rows, c, eps);
#undef RUN
    return cuda_launched("layer_norm_kernel");
}

template <typename T>
static Status layer_norm_bwd_launch(const T *dy, const T *x, const float *gamma, const float *mean, const float *rstd,
                                    T *dx, float *partial, int64_t rows, int c, float eps, cudaStream_t stream)
{
#define RUN(LANES, N)                                                                                                  \
    layer_norm_bwd_kernel<T, LANES, N>                                                                                 \
        <<<NORM_BLOCKS, NORM_THREADS, 0, stream>>>(dy, x, gamma, mean, rstd, dx, partial, rows, eps);
    NORM_SIZES(RUN, Pack<T>::N, c)
    else layer_norm_bwd_any_kernel<T><<<NORM_BLOCKS, NORM_THREADS, 2 * (size_t)c * sizeof(float), stream>>>(
        dy, x, gamma, mean, rstd, dx, partial, rows, c, eps);
#undef RUN
    return cuda_launched("layer_norm_bwd_kernel");
}

static Status layer_norm(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    int64_t rows = tensor_rows(x);
    bool stats = call->op->kind == OP_LAYER_NORM_FUSED;
    const float *gamma = (const float *)call->in[1], *beta = (const float *)call->in[2];
    float *mean = stats ? (float *)call->out[1] : NULL, *rstd = stats ? (float *)call->out[2] : NULL;
    if (rows == 0) return OK;
    if (call->in_tensor[1]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[1]->dtype);
    DISPATCH_REAL(call, x->dtype, {
        return layer_norm_launch((const T *)call->in[0], gamma, beta, (T *)call->out[0], mean, rstd, rows,
                                 (int)tensor_last(x), (float)call->op->attr.f[0], ctx->stream);
    });
}

static Status layer_norm_bwd(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[1];
    int c = (int)tensor_last(x);
    bool stats = call->op->kind == OP_LAYER_NORM_FUSED_BWD;
    const float *gamma = (const float *)call->in[2];
    const float *mean = stats ? (const float *)call->in[3] : NULL, *rstd = stats ? (const float *)call->in[4] : NULL;
    float *partial = (float *)call->scratch;
    DISPATCH_REAL(call, x->dtype, {
        TRY(layer_norm_bwd_launch((const T *)call->in[0], (const T *)call->in[1], gamma, mean, rstd, (T *)call->out[0],
                                  partial, tensor_rows(x), c, (float)call->op->attr.f[0], ctx->stream));
    });
    return sum_partials_split_launch(partial, (float *)call->out[1], (float *)call->out[2], NORM_BLOCKS, c,
                                     ctx->stream);
}

static size_t layer_norm_bwd_scratch(const OpCall *call)
{
    return (size_t)NORM_BLOCKS * 2 * (size_t)tensor_last(call->in_tensor[1]) * sizeof(float);
}

/* A warp per row; the row is read three times, twice from the cache. */

template <typename T> __global__ void __launch_bounds__(256) softmax_kernel(const T *x, T *y, int64_t rows, int64_t c)
{
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * 256 + threadIdx.x) / WARP;
    if (row >= rows) return;
    x += row * c;
    y += row * c;
    float peak = -INFINITY, sum = 0;
    for (int64_t k = lane; k < c; k += WARP) peak = fmaxf(peak, to_float(x[k]));
    peak = lanes_max<WARP>(peak);
    for (int64_t k = lane; k < c; k += WARP) sum += expf(to_float(x[k]) - peak);
    float scale = 1.0f / lanes_sum<WARP>(sum);
    for (int64_t k = lane; k < c; k += WARP) y[k] = from_float<T>(expf(to_float(x[k]) - peak) * scale);
}

/* dx = y (dy - sum dy y) */
template <typename T>
__global__ void __launch_bounds__(256) softmax_bwd_kernel(const T *dy, const T *y, T *dx, int64_t rows, int64_t c)
{
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * 256 + threadIdx.x) / WARP;
    if (row >= rows) return;
    float sum = 0;
    for (int64_t k = lane; k < c; k += WARP) sum += to_float(dy[row * c + k]) * to_float(y[row * c + k]);
    sum = lanes_sum<WARP>(sum);
    for (int64_t k = lane; k < c; k += WARP)
        dx[row * c + k] = from_float<T>(to_float(y[row * c + k]) * (to_float(dy[row * c + k]) - sum));
}

static Status softmax(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    int64_t rows = tensor_rows(x), c = tensor_last(x);
    if (rows == 0) return OK;
    DISPATCH_REAL(call, x->dtype, {
        softmax_kernel<T>
            <<<blocks_for(rows * WARP, 256), 256, 0, ctx->stream>>>((const T *)call->in[0], (T *)call->out[0], rows, c);
    });
    return cuda_launched("softmax_kernel");
}

static Status softmax_bwd(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    int64_t rows = tensor_rows(x), c = tensor_last(x);
    if (rows == 0) return OK;
    DISPATCH_REAL(call, x->dtype, {
        softmax_bwd_kernel<T><<<blocks_for(rows * WARP, 256), 256, 0, ctx->stream>>>(
            (const T *)call->in[0], (const T *)call->in[1], (T *)call->out[0], rows, c);
    });
    return cuda_launched("softmax_bwd_kernel");
}

const CudaEntry cuda_norm[] = {
    {OP_LAYER_NORM, layer_norm, NULL},
    {OP_LAYER_NORM_BWD, layer_norm_bwd, layer_norm_bwd_scratch},
    {OP_LAYER_NORM_FUSED, layer_norm, NULL},
    {OP_LAYER_NORM_FUSED_BWD, layer_norm_bwd, layer_norm_bwd_scratch},
    {OP_SOFTMAX, softmax, NULL},
    {OP_SOFTMAX_BWD, softmax_bwd, NULL},
    {OP_COUNT, NULL, NULL},
};
