/* Layer norm (biased variance over the last axis) and softmax; sums in a type wider than the operands'. */
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/norm_backward.cuh"

/* The kernel behind one of that many blocks, two rounds of them on an H200, is let in early. Measured: one rank's share
 * of a DAP 2 step (2,048 blocks of 16,384 rows) 134.2 -> 133.2 ms; with 4,096 blocks a step 212.8 -> 213.5 ms. */
enum { NORM_FEW_BLOCKS = 2112 };

/* LANES neighbouring lanes own a row of C = LANES * V * N channels: lane l holds vectors l, l + LANES, ... */
template <typename T, int LANES, int N>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_kernel(const T *__restrict__ x, const float *__restrict__ gamma, const float *__restrict__ beta,
                      T *__restrict__ y, float *mean_out, float *rstd_out, int64_t rows, float eps)
{
    stage_wait();
    if (gridDim.x <= NORM_FEW_BLOCKS) stage_release();
    typedef typename Wide<T>::Sum Sum;
    constexpr int V = Pack<T>::N, C = LANES * V * N;
    int lane = threadIdx.x % LANES;
    int64_t row = ((int64_t)blockIdx.x * NORM_THREADS + threadIdx.x) / LANES;
    bool live = row < rows;
    float v[N][V];
    Sum sum = 0, square = 0;
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
    Sum mean = lanes_sum<LANES>(sum) / C;
#pragma unroll
    for (int k = 0; k < N; k++)
#pragma unroll
        for (int j = 0; j < V; j++) square += (v[k][j] - mean) * (v[k][j] - mean);
    Sum rstd = 1 / sqrt(lanes_sum<LANES>(square) / C + eps);
    if (!live) return;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float g[V], b[V];
        int channel = (k * LANES + lane) * V;
        load_floats<V>(gamma + channel, g);
        load_floats<V>(beta + channel, b);
#pragma unroll
        for (int j = 0; j < V; j++) v[k][j] = (float)((v[k][j] - mean) * rstd * g[j] + b[j]);
        store_floats<V>(y + row * C + channel, v[k]);
    }
    if (mean_out && lane == 0) {
        mean_out[row] = (float)mean;
        rstd_out[row] = (float)rstd;
    }
}

/* The plain form, for any C: a warp per row, three passes. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_plain_kernel(const T *x, const float *gamma, const float *beta, T *y, float *mean_out, float *rstd_out,
                            int64_t rows, int c, float eps)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * NORM_THREADS + threadIdx.x) / WARP;
    if (row >= rows) return;
    x += row * c;
    Sum sum = 0, square = 0;
    for (int k = lane; k < c; k += WARP) sum += to_float(x[k]);
    Sum mean = lanes_sum<WARP>(sum) / c;
    for (int k = lane; k < c; k += WARP) square += (to_float(x[k]) - mean) * (to_float(x[k]) - mean);
    Sum rstd = 1 / sqrt(lanes_sum<WARP>(square) / c + eps);
    for (int k = lane; k < c; k += WARP)
        y[row * c + k] = from_float<T>((float)((to_float(x[k]) - mean) * rstd * gamma[k] + beta[k]));
    if (mean_out && lane == 0) {
        mean_out[row] = (float)mean;
        rstd_out[row] = (float)rstd;
    }
}

template <typename T> static Status layer_norm_plain_launch(const NormRows &n, cudaStream_t stream)
{
    launch(layer_norm_plain_kernel<T>, blocks_for(n.rows * WARP, NORM_THREADS), NORM_THREADS, 0, stream, (const T *)n.x,
           n.gamma, n.beta, (T *)n.y, n.mean, n.rstd, n.rows, (int)n.c, n.eps);
    return cuda_launched("layer_norm_plain_kernel");
}

template <typename T> static Status layer_norm_launch(const NormRows &n, cudaStream_t stream)
{
#define RUN(LANES, N)                                                                                                  \
    launch(layer_norm_kernel<T, LANES, N>, blocks_for(n.rows *LANES, NORM_THREADS), NORM_THREADS, 0, stream,           \
           (const T *)n.x, n.gamma, n.beta, (T *)n.y, n.mean, n.rstd, n.rows, n.eps);
    NORM_SIZES(RUN, Pack<T>::N, n.c)
    else return layer_norm_plain_launch<T>(n, stream);
#undef RUN
    return cuda_launched("layer_norm_kernel");
}

NormRows norm_rows_behind(const OpCall *call, int gamma, int out)
{
    NormRows n = {};
    if (!call_in(call, gamma)) return n;
    const Tensor *y = call->out_tensor[0];
    n.x = call->out[0], n.y = call->out[out];
    n.gamma = (const float *)call->in[gamma], n.beta = (const float *)call->in[gamma + 1];
    n.mean = (float *)call->out[out + 1], n.rstd = (float *)call->out[out + 2], n.eps = (float)call->op->attr.f[1];
    n.rows = tensor_rows(y), n.c = tensor_last(y), n.type = y->dtype;
    return n;
}

Status norm_rows_run(CudaContext *ctx, const OpCall *call, const NormRows *n)
{
    DISPATCH_REAL(call, n->type, { return layer_norm_launch<T>(*n, ctx->stream); });
    return OK;
}

static Status layer_norm(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    bool fused = call->op->kind == OP_LAYER_NORM_FUSED;
    NormRows n = {};
    n.x = call->in[0], n.gamma = (const float *)call->in[1], n.beta = (const float *)call->in[2], n.y = call->out[0];
    n.mean = fused ? (float *)call->out[1] : NULL, n.rstd = fused ? (float *)call->out[2] : NULL;
    n.eps = (float)call->op->attr.f[0];
    n.rows = tensor_rows(x), n.c = tensor_last(x), n.type = x->dtype;
    if (n.rows == 0) return OK;
    if (call->in_tensor[1]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[1]->dtype);
    if (fused) return norm_rows_run(ctx, call, &n);
    DISPATCH_REAL(call, n.type, { return layer_norm_plain_launch<T>(n, ctx->stream); });
    return OK;
}

Status norm_backward_run(CudaContext *ctx, const OpCall *call)
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
        TRY(peer_send_of(ctx, call, &p.send));
        p.rows = tensor_rows(x), p.c = (int)tensor_last(x), p.eps = (float)call->op->attr.f[0];
        return layer_norm_bwd_launch(p, norm_bwd_blocks(p.rows), ctx->stream);
    });
}

size_t norm_backward_scratch(int64_t c)
{
    return (size_t)NORM_BLOCKS * 2 * (size_t)c * sizeof(float);
}

static size_t layer_norm_bwd_scratch(const OpCall *call)
{
    const Tensor *x = call->in_tensor[1];
    size_t found = call->op->kind == OP_LAYER_NORM_BWD ? (size_t)tensor_rows(x) * 2 * sizeof(float) : 0;
    return norm_backward_scratch(tensor_last(x)) + found;
}

/* The vector kernel does, where no dropout reads dx again. */
bool norm_backward_sends(const OpCall *call)
{
    const Tensor *x = call->in_tensor[1];
    PeerRows rows;
    int64_t c = tensor_last(x), v = Pack<bf16>::N;
    bool vectors = c == 8 * v || c == 16 * v || c == 32 * v || c == 48 * v || c == 64 * v || c == 96 * v;
    return x->dtype == DT_BF16 && vectors && !call_in(call, 6) && call->op->send.output == 0 &&
           peer_send_rows(call, &rows) && !rows.to_all;
}

/* A warp per row; the row is read three times, twice from the cache. */

template <typename T> __global__ void __launch_bounds__(256) softmax_kernel(const T *x, T *y, int64_t rows, int64_t c)
{
    stage_wait();
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * 256 + threadIdx.x) / WARP;
    if (row >= rows) return;
    x += row * c;
    y += row * c;
    float peak = -INFINITY;
    typename Wide<T>::Sum sum = 0;
    for (int64_t k = lane; k < c; k += WARP) peak = fmaxf(peak, to_float(x[k]));
    peak = lanes_max<WARP>(peak);
    for (int64_t k = lane; k < c; k += WARP) sum += expf(to_float(x[k]) - peak);
    auto scale = 1 / lanes_sum<WARP>(sum);
    for (int64_t k = lane; k < c; k += WARP) y[k] = from_float<T>((float)(expf(to_float(x[k]) - peak) * scale));
}

/* dx = y (dy - sum dy y) */
template <typename T>
__global__ void __launch_bounds__(256) softmax_bwd_kernel(const T *dy, const T *y, T *dx, int64_t rows, int64_t c)
{
    stage_wait();
    int lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * 256 + threadIdx.x) / WARP;
    if (row >= rows) return;
    typedef typename Wide<T>::Sum Sum;
    Sum sum = 0;
    for (int64_t k = lane; k < c; k += WARP) sum += (Sum)to_float(dy[row * c + k]) * (Sum)to_float(y[row * c + k]);
    sum = lanes_sum<WARP>(sum);
    for (int64_t k = lane; k < c; k += WARP)
        dx[row * c + k] = from_float<T>((float)(to_float(y[row * c + k]) * (to_float(dy[row * c + k]) - sum)));
}

static Status softmax(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    int64_t rows = tensor_rows(x), c = tensor_last(x);
    if (rows == 0) return OK;
    DISPATCH_REAL(call, x->dtype, {
        launch(softmax_kernel<T>, blocks_for(rows * WARP, 256), 256, 0, ctx->stream, (const T *)call->in[0],
               (T *)call->out[0], rows, c);
    });
    return cuda_launched("softmax_kernel");
}

static Status softmax_bwd(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    int64_t rows = tensor_rows(x), c = tensor_last(x);
    if (rows == 0) return OK;
    DISPATCH_REAL(call, x->dtype, {
        launch(softmax_bwd_kernel<T>, blocks_for(rows * WARP, 256), 256, 0, ctx->stream, (const T *)call->in[0],
               (const T *)call->in[1], (T *)call->out[0], rows, c);
    });
    return cuda_launched("softmax_bwd_kernel");
}

const CudaEntry cuda_norm[] = {
    {OP_LAYER_NORM, layer_norm, NULL},
    {OP_LAYER_NORM_BWD, norm_backward_run, layer_norm_bwd_scratch},
    {OP_LAYER_NORM_FUSED, layer_norm, NULL},
    {OP_LAYER_NORM_FUSED_BWD, norm_backward_run, layer_norm_bwd_scratch, norm_backward_sends},
    {OP_SOFTMAX, softmax, NULL},
    {OP_SOFTMAX_BWD, softmax_bwd, NULL},
    {OP_COUNT, NULL, NULL},
};
