/* Layer norm (statistics in f32 over the last axis, biased variance) and softmax. */
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/reduce.cuh"

enum { NORM_THREADS = 256, NORM_BLOCKS = 256 /* two per SM; fixed, so that sums have one order everywhere */ };

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

/* dx = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)) (+ what arrives at x on another way); this block's share of
 * dgamma = sum dy xhat, dbeta = sum dy goes to partial[block][2 C]. mean == NULL: the statistics are computed again. */
template <typename T> struct NormBackward {
    const T *dy, *x, *other; /* other: NULL = none */
    const float *gamma, *mean, *rstd;
    T *dx, *dropped; /* dropped: dropout(dx), NULL = not wanted */
    Dropout dropout;
    float *partial, *dgamma, *dbeta;
    int64_t rows;
    int c;
    float eps;
    /* rows of a block: block * block_step + (0 .. rows at a time) + round * round_step */
    int64_t block_step, round_step;
    int rounds;
    bool one_mask; /* all rows of a thread meet the same elements of the mask */
};

/* Rows on their way: every thread copies its own vectors into its own places of a ring, so that several rounds are
 * under way without registers or barriers; the first lane of a row's group copies the statistics too. */
template <typename T, int LANES, int N> struct NormRing {
    static constexpr int STAGES = N == 1 ? 4 : 2, GROUPS = NORM_THREADS / LANES;
    uint4 row[STAGES][3][N][NORM_THREADS]; /* dy, x, other */
    float statistic[STAGES][2][GROUPS];

    __device__ __forceinline__ void load(int stage, const NormBackward<T> &p, int64_t row_index)
    {
        constexpr int V = Pack<T>::N, C = LANES * V * N;
        int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
        if (row_index < p.rows) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                int64_t at = row_index * C + (k * LANES + lane) * V;
                copy16_async(shared_address(&row[stage][0][k][threadIdx.x]), p.dy + at, true);
                copy16_async(shared_address(&row[stage][1][k][threadIdx.x]), p.x + at, true);
                if (p.other) copy16_async(shared_address(&row[stage][2][k][threadIdx.x]), p.other + at, true);
            }
            if (p.mean && lane == 0) {
                copy4_async(shared_address(&statistic[stage][0][group]), p.mean + row_index, true);
                copy4_async(shared_address(&statistic[stage][1][group]), p.rstd + row_index, true);
            }
        }
        copy_commit();
    }
    __device__ __forceinline__ void read(int stage, int operand, float (&v)[N][Pack<T>::N]) const
    {
#pragma unroll
        for (int k = 0; k < N; k++)
            load_floats<Pack<T>::N>(reinterpret_cast<const T *>(&row[stage][operand][k][threadIdx.x]), v[k]);
    }
};

template <int LANES, int N, int V>
__device__ __forceinline__ void norm_statistics(const float (&v)[N][V], float eps, float *mean, float *rstd)
{
    constexpr int C = LANES * V * N;
    float sum = 0, square = 0;
#pragma unroll
    for (int k = 0; k < N; k++)
#pragma unroll
        for (int j = 0; j < V; j++) sum += v[k][j];
    *mean = lanes_sum<LANES>(sum) / C;
#pragma unroll
    for (int k = 0; k < N; k++)
#pragma unroll
        for (int j = 0; j < V; j++) square += (v[k][j] - *mean) * (v[k][j] - *mean);
    *rstd = 1.0f / sqrtf(lanes_sum<LANES>(square) / C + eps);
}

/* Factors of the dropout at this thread's part of a row. */
template <typename T, int LANES, int N>
__device__ __forceinline__ void norm_factors(const NormBackward<T> &p, int64_t row, int lane, float (&f)[N][Pack<T>::N])
{
    constexpr int V = Pack<T>::N, C = LANES * V * N;
#pragma unroll
    for (int k = 0; k < N; k++) p.dropout.template factors<V>((uint32_t)(row * C + (k * LANES + lane) * V), f[k]);
}

template <typename T, int LANES, int N, int RESIDENT, bool DROPS>
__global__ void __launch_bounds__(NORM_THREADS, RESIDENT) layer_norm_bwd_kernel(NormBackward<T> p)
{
    constexpr int V = Pack<T>::N, C = LANES * V * N, GROUPS = NORM_THREADS / LANES;
    typedef NormRing<T, LANES, N> Ring;
    extern __shared__ __align__(16) char memory[];
    Ring &ring = *reinterpret_cast<Ring *>(memory);
    stage_release();
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    float g[N][V], dgamma[N][V] = {}, dbeta[N][V] = {};
#pragma unroll
    for (int k = 0; k < N; k++) load_floats<V>(p.gamma + (k * LANES + lane) * V, g[k]);
    /* all lanes of a warp go round together: rows that do not exist count as zero */
    const int64_t step = p.round_step;
    int64_t row = blockIdx.x * p.block_step + group;
    float f[N][V];
    if (DROPS && p.one_mask) norm_factors<T, LANES, N>(p, row, lane, f);
#pragma unroll
    for (int s = 0; s < Ring::STAGES - 1; s++) ring.load(s, p, row + s * step);
    for (int r = 0; r < p.rounds; r++, row += step) {
        int stage = r % Ring::STAGES;
        copy_wait<Ring::STAGES - 2>();
        __syncwarp();
        float d[N][V], hat[N][V], a = 0, b = 0, mean, rstd;
        bool live = row < p.rows;
        ring.read(stage, 0, d);
        ring.read(stage, 1, hat);
        if (p.mean)
            mean = ring.statistic[stage][0][group], rstd = ring.statistic[stage][1][group];
        else
            norm_statistics<LANES, N, V>(hat, p.eps, &mean, &rstd);
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (!live) d[k][j] = hat[k][j] = 0; /* what the ring holds there is no number */
                hat[k][j] = live ? (hat[k][j] - mean) * rstd : 0.0f;
                dgamma[k][j] += d[k][j] * hat[k][j];
                dbeta[k][j] += d[k][j];
                d[k][j] *= g[k][j];
                a += d[k][j];
                b += d[k][j] * hat[k][j];
            }
        a = lanes_sum<LANES>(a) / C;
        b = lanes_sum<LANES>(b) / C;
        float o[N][V];
        if (p.other) ring.read(stage, 2, o);
        ring.load((r + Ring::STAGES - 1) % Ring::STAGES, p, row + (Ring::STAGES - 1) * step);
        if (!live) continue;
        if (DROPS && !p.one_mask) norm_factors<T, LANES, N>(p, row, lane, f);
#pragma unroll
        for (int k = 0; k < N; k++) {
            int64_t at = row * C + (k * LANES + lane) * V;
#pragma unroll
            for (int j = 0; j < V; j++) {
                d[k][j] = rstd * (d[k][j] - a - hat[k][j] * b);
                if (p.other) d[k][j] += o[k][j];
            }
            store_floats<V>(p.dx + at, d[k]);
            if (DROPS) {
                float dropped[V];
#pragma unroll
                for (int j = 0; j < V; j++) dropped[j] = to_float(from_float<T>(d[k][j])) * f[k][j];
                store_floats<V>(p.dropped + at, dropped);
            }
        }
    }
    copy_wait<0>();
    __syncthreads();
    float(&shared)[GROUPS / (WARP / LANES)][C] = *reinterpret_cast<float(*)[GROUPS / (WARP / LANES)][C]>(memory);
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
            p.partial[(int64_t)blockIdx.x * 2 * C + which * C + c] = total;
        }
    }
}

/* Any C: a block per run of rows; thread c owns channels c, c + 256, ... of dgamma and dbeta in shared memory. */
template <typename T> __global__ void __launch_bounds__(NORM_THREADS) layer_norm_bwd_any_kernel(NormBackward<T> p)
{
    extern __shared__ float sums[]; /* dgamma[c], dbeta[c] */
    __shared__ float warp_sums[NORM_THREADS / WARP];
    const int c = p.c;
    for (int k = threadIdx.x; k < c; k += NORM_THREADS) sums[k] = sums[c + k] = 0; /* each belongs to one thread */
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const T *xr = p.x + row * c, *dr = p.dy + row * c;
        float sum = 0, square = 0, a = 0, b = 0;
        float mean, rstd;
        if (p.mean) {
            mean = p.mean[row];
            rstd = p.rstd[row];
        } else {
            for (int k = threadIdx.x; k < c; k += NORM_THREADS) sum += to_float(xr[k]);
            mean = block_sum(sum, warp_sums) / c;
            for (int k = threadIdx.x; k < c; k += NORM_THREADS)
                square += (to_float(xr[k]) - mean) * (to_float(xr[k]) - mean);
            rstd = 1.0f / sqrtf(block_sum(square, warp_sums) / c + p.eps);
        }
        for (int k = threadIdx.x; k < c; k += NORM_THREADS) {
            float hat = (to_float(xr[k]) - mean) * rstd, d = to_float(dr[k]);
            sums[k] += d * hat;
            sums[c + k] += d;
            a += d * p.gamma[k];
            b += d * p.gamma[k] * hat;
        }
        a = block_sum(a, warp_sums) / c;
        b = block_sum(b, warp_sums) / c;
        for (int k = threadIdx.x; k < c; k += NORM_THREADS) {
            float hat = (to_float(xr[k]) - mean) * rstd, dx = rstd * (to_float(dr[k]) * p.gamma[k] - a - hat * b);
            p.dx[row * c + k] = from_float<T>(p.other ? dx + to_float(p.other[row * c + k]) : dx);
        }
    }
    for (int k = threadIdx.x; k < c; k += NORM_THREADS) {
        p.partial[(int64_t)blockIdx.x * 2 * c + k] = sums[k];
        p.partial[(int64_t)blockIdx.x * 2 * c + c + k] = sums[c + k];
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

/* A block has 8 to 32 rows at a time: several rounds each, so that the partial sums stay few. */
static int norm_bwd_blocks(int64_t rows)
{
    int64_t blocks = (rows + 31) / 32;
    blocks = (blocks + 15) / 16 * 16;
    return (int)(blocks < NORM_BLOCKS ? blocks : (int64_t)NORM_BLOCKS);
}

/* Which rows a block takes. Masks that rows share are drawn once per thread where the rounds can be laid that way: by
 * strides of whole rows of the shared axis, or, where the shared axis is the one before the channels, by neighbours. */
template <typename T> static void norm_bwd_rounds(NormBackward<T> *p, int blocks, int at_a_time)
{
    const Dropout &d = p->dropout;
    p->rounds = (int)((p->rows + (int64_t)blocks * at_a_time - 1) / ((int64_t)blocks * at_a_time));
    p->block_step = at_a_time, p->round_step = (int64_t)blocks * at_a_time;
    if (!p->dropped || d.rank < 3) return;
    int64_t chunk = (int64_t)p->rounds * at_a_time, below = p->rows / d.local[0];
    if (d.stride[0] == 0 && p->round_step % below == 0) {
        p->one_mask = true;
    } else if (d.stride[d.rank - 2] == 0 && d.local[d.rank - 2] % chunk == 0) {
        p->one_mask = true;
        p->block_step = chunk, p->round_step = at_a_time;
    }
}

template <typename T, int LANES, int N>
static Status layer_norm_bwd_run(NormBackward<T> p, int blocks, cudaStream_t stream)
{
    constexpr int BYTES = (int)sizeof(NormRing<T, LANES, N>), RESIDENT = N == 1 ? 3 : 1;
    const auto kernel = p.dropped ? layer_norm_bwd_kernel<T, LANES, N, RESIDENT, true>
                                  : layer_norm_bwd_kernel<T, LANES, N, RESIDENT, false>;
    norm_bwd_rounds(&p, blocks, NORM_THREADS / LANES);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    kernel<<<blocks, NORM_THREADS, BYTES, stream>>>(p);
    return OK;
}

/* dropout(dx) by a kernel of its own: channels that the vector kernel does not take, masks shared along them. */
template <typename T> static Status dropped_launch(const NormBackward<T> &p, int64_t count, cudaStream_t stream)
{
    MapArgs<T, 1, 1> a = {{p.dx}, {p.dropped}, count};
    return map_launch(a, p.dropout.inner, PlainDropout{p.dropout}, stream);
}

template <typename T> static Status layer_norm_bwd_launch(NormBackward<T> p, int blocks, cudaStream_t stream)
{
    T *dropped = p.dropped;
    bool inside = p.dropout.inner % Pack<T>::N == 0;
    if (!inside) p.dropped = NULL;
#define RUN(LANES, N) TRY((layer_norm_bwd_run<T, LANES, N>(p, blocks, stream)));
    NORM_SIZES(RUN, Pack<T>::N, p.c)
    else
    {
        layer_norm_bwd_any_kernel<T><<<blocks, NORM_THREADS, 2 * (size_t)p.c * sizeof(float), stream>>>(p);
        inside = false;
    }
#undef RUN
    TRY(cuda_launched("layer_norm_bwd_kernel"));
    p.dropped = dropped;
    if (dropped && !inside) TRY(dropped_launch(p, p.rows * p.c, stream));
    return sum_partials_split_launch(p.partial, p.dgamma, p.dbeta, blocks, p.c, stream);
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
    bool fused = call->op->kind == OP_LAYER_NORM_FUSED_BWD;
    DISPATCH_REAL(call, x->dtype, {
        NormBackward<T> p = {};
        p.dy = (const T *)call->in[0], p.x = (const T *)call->in[1], p.gamma = (const float *)call->in[2];
        if (fused) p.mean = (const float *)call->in[3], p.rstd = (const float *)call->in[4];
        if (fused && call_in(call, 5)) p.other = (const T *)call->in[5];
        if (fused && call_in(call, 6)) {
            p.dropped = (T *)call->out[3];
            dropout_make(ctx->layout, x, call->op->attr.i[0], (int)call->op->attr.i[1], call->op->attr.f[0],
                         (const int32_t *)call->in[6], &p.dropout);
        }
        p.dx = (T *)call->out[0], p.dgamma = (float *)call->out[1], p.dbeta = (float *)call->out[2];
        p.partial = (float *)call->scratch;
        p.rows = tensor_rows(x), p.c = (int)tensor_last(x), p.eps = (float)call->op->attr.f[0];
        return layer_norm_bwd_launch(p, norm_bwd_blocks(p.rows), ctx->stream);
    });
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
