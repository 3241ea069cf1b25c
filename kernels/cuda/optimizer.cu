/* Clip, Adam, weight average: one pass over the parameter block after the norm, no host round trip. */
#include "kernels/cuda/device.cuh"

enum { SQUARE_BLOCKS = 1056, SQUARE_THREADS = 256 };

/* Squares are summed per thread in f32 over a short run, then across threads and blocks in f64: always the same order.
 */
__global__ void __launch_bounds__(SQUARE_THREADS) sum_squares_kernel(const float *g, double *partial, int64_t n)
{
    stage_wait();
    __shared__ double shared[SQUARE_THREADS];
    double total = 0;
    int64_t step = (int64_t)gridDim.x * SQUARE_THREADS, vectors = n / 4;
    int64_t first = (int64_t)blockIdx.x * SQUARE_THREADS + threadIdx.x;
#pragma unroll 4
    for (int64_t k = first; k < vectors; k += step) {
        float4 x = reinterpret_cast<const float4 *>(g)[k];
        total += (double)(x.x * x.x + x.y * x.y + (x.z * x.z + x.w * x.w));
    }
    if (first < n - vectors * 4) total += (double)g[vectors * 4 + first] * g[vectors * 4 + first];
    shared[threadIdx.x] = total;
    for (int half = SQUARE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = shared[0];
}

__global__ void sum_squares_join_kernel(const double *partial, float *s, int blocks)
{
    stage_wait();
    __shared__ double shared[SQUARE_THREADS];
    double total = 0;
    for (int k = threadIdx.x; k < blocks; k += SQUARE_THREADS) total += partial[k];
    shared[threadIdx.x] = total;
    for (int half = SQUARE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *s = (float)shared[0];
}

static Status sum_squares_launch(const float *g, int64_t n, double *partial, float *s, cudaStream_t stream)
{
    if (!aligned16(g)) return status_fail(ERR_INTERNAL, "sum_squares of a range that is not aligned to 16 bytes");
    int blocks = (int)blocks_for((n + 3) / 4, SQUARE_THREADS);
    if (blocks > SQUARE_BLOCKS) blocks = SQUARE_BLOCKS;
    launch(sum_squares_kernel, blocks, SQUARE_THREADS, 0, stream, g, partial, n);
    launch(sum_squares_join_kernel, 1, SQUARE_THREADS, 0, stream, partial, s, blocks);
    return cuda_launched("sum_squares_kernel");
}

__global__ void __launch_bounds__(SQUARE_THREADS) sum_squares_any_kernel(AnyReal g, double *partial, int64_t n)
{
    stage_wait();
    __shared__ double shared[SQUARE_THREADS];
    double total = 0;
    int64_t step = (int64_t)gridDim.x * SQUARE_THREADS;
    for (int64_t k = (int64_t)blockIdx.x * SQUARE_THREADS + threadIdx.x; k < n; k += step) total += (double)g[k] * g[k];
    shared[threadIdx.x] = total;
    for (int half = SQUARE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = shared[0];
}

static Status sum_squares(CudaContext *ctx, const OpCall *call)
{
    if (call->in_tensor[0]->dtype == DT_BF16) {
        double *partial = (double *)call->scratch;
        launch(sum_squares_any_kernel, SQUARE_BLOCKS, SQUARE_THREADS, 0, ctx->stream, any_in(call, 0), partial,
               tensor_count(call->in_tensor[0]));
        launch(sum_squares_join_kernel, 1, SQUARE_THREADS, 0, ctx->stream, partial, (float *)call->out[0],
               SQUARE_BLOCKS);
        return cuda_launched("sum_squares_any_kernel");
    }
    if (call->in_tensor[0]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[0]->dtype);
    return sum_squares_launch((const float *)call->in[0], tensor_count(call->in_tensor[0]), (double *)call->scratch,
                              (float *)call->out[0], ctx->stream);
}

static size_t sum_squares_scratch(const OpCall *)
{
    return SQUARE_BLOCKS * sizeof(double);
}

/* Each input may hold many partial sums. */
struct Squares {
    const float *s[OP_MAX_IN];
    int64_t count[OP_MAX_IN];
    int inputs;
};

__global__ void __launch_bounds__(SQUARE_THREADS)
    clip_factor_kernel(Squares squares, float max_norm, float *norm_out, float *factor_out)
{
    stage_wait();
    __shared__ double shared[SQUARE_THREADS];
    double total = 0;
    for (int k = 0; k < squares.inputs; k++)
        for (int64_t e = threadIdx.x; e < squares.count[k]; e += SQUARE_THREADS) total += squares.s[k][e];
    shared[threadIdx.x] = total;
    for (int half = SQUARE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x != 0) return;
    double norm = sqrt(shared[0]), factor = max_norm / (norm + 1e-6);
    if (norm_out) *norm_out = (float)norm;
    if (factor_out) *factor_out = isfinite(norm) ? (float)(factor < 1 ? factor : 1) : 0.0f;
}

static Status clip_factor(CudaContext *ctx, const OpCall *call)
{
    Squares squares = {};
    squares.inputs = call->op->n_in;
    for (int k = 0; k < call->op->n_in; k++) {
        squares.s[k] = (const float *)call->in[k];
        squares.count[k] = tensor_count(call->in_tensor[k]);
    }
    launch(clip_factor_kernel, 1, SQUARE_THREADS, 0, ctx->stream, squares, (float)call->op->attr.f[0],
           (float *)call->out[0], (float *)call->out[1]);
    return cuda_launched("clip_factor_kernel");
}

struct AdamArgs {
    float *p, *m, *v, *swa;
    const float *g, *factor, *hyper;
    bf16 *low;
    float beta1, beta2, rest1, rest2, eps, decay; /* rest: 1 - beta, rounded once */
    int64_t n;
};

/* Kingma and Ba 2015, algorithm 1. A factor of zero means that the norm was not finite: the step leaves no trace. */
__device__ __forceinline__ float adam_step(const AdamArgs &a, float p, float g, float *m, float *v, float factor)
{
    g *= factor;
    *m = a.beta1 * *m + a.rest1 * g;
    *v = a.beta2 * *v + a.rest2 * g * g;
    return p - a.hyper[0] * (*m / a.hyper[1]) / (sqrtf(*v / a.hyper[2]) + a.eps);
}

template <bool WITH_SWA> __global__ void __launch_bounds__(256) adam_kernel(AdamArgs a)
{
    stage_wait();
    constexpr int V = 4;
    int64_t first = ((int64_t)blockIdx.x * 256 + threadIdx.x) * V;
    float factor = *a.factor;
    if (first >= a.n || factor == 0.0f) return;
    int width = a.n - first < V ? (int)(a.n - first) : V;
    float p[V], g[V], m[V], v[V], s[V] = {};
    if (width == V) {
        load_floats<V>(a.g + first, g);
        load_floats<V>(a.p + first, p);
        load_floats<V>(a.m + first, m);
        load_floats<V>(a.v + first, v);
        if (WITH_SWA) load_floats<V>(a.swa + first, s);
    } else {
        for (int j = 0; j < V; j++) {
            int64_t at = j < width ? first + j : first;
            g[j] = a.g[at], p[j] = a.p[at], m[j] = a.m[at], v[j] = a.v[at];
            if (WITH_SWA) s[j] = a.swa[at];
        }
    }
    bool copy = WITH_SWA && a.hyper[3] == 1.0f;
#pragma unroll
    for (int j = 0; j < V; j++) {
        p[j] = adam_step(a, p[j], g[j], &m[j], &v[j], factor);
        if (WITH_SWA) s[j] = copy ? p[j] : a.decay * s[j] + (1.0f - a.decay) * p[j];
    }
    if (width == V) {
        store_floats<V>(a.p + first, p);
        store_floats<V>(a.m + first, m);
        store_floats<V>(a.v + first, v);
        if (WITH_SWA) store_floats<V>(a.swa + first, s);
        if (a.low) {
            __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(p[0], p[1]), __floats2bfloat162_rn(p[2], p[3])};
            *reinterpret_cast<uint2 *>(a.low + first) = *reinterpret_cast<uint2 *>(pair);
        }
        return;
    }
    for (int j = 0; j < width; j++) {
        a.p[first + j] = p[j], a.m[first + j] = m[j], a.v[first + j] = v[j];
        if (WITH_SWA) a.swa[first + j] = s[j];
        if (a.low) a.low[first + j] = from_float<bf16>(p[j]);
    }
}

static Status adam(CudaContext *ctx, const OpCall *call)
{
    bool fused = call->op->kind == OP_ADAM_FUSED;
    const double *f = call->op->attr.f;
    AdamArgs a = {};
    a.n = tensor_count(call->in_tensor[0]);
    a.p = (float *)call->out[0], a.m = (float *)call->out[1], a.v = (float *)call->out[2];
    a.g = (const float *)call->in[1];
    a.factor = (const float *)call->in[fused ? 5 : 4], a.hyper = (const float *)call->in[fused ? 6 : 5];
    a.beta1 = (float)f[0], a.beta2 = (float)f[1], a.eps = (float)f[2];
    a.rest1 = (float)(1.0 - f[0]), a.rest2 = (float)(1.0 - f[1]);
    if (call->in_tensor[0]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[0]->dtype);
    if (a.n == 0) return OK;
    if (fused) {
        a.swa = (float *)call->out[3];
        a.decay = (float)f[3];
        if (call->op->n_out > 4 && call->out_tensor[4]) a.low = (bf16 *)call->out[4];
        launch(adam_kernel<true>, blocks_for((a.n + 3) / 4, 256), 256, 0, ctx->stream, a);
    } else {
        launch(adam_kernel<false>, blocks_for((a.n + 3) / 4, 256), 256, 0, ctx->stream, a);
    }
    return cuda_launched("adam_kernel");
}

__global__ void swa_kernel(float *swa, const float *p, const float *factor, const float *hyper, float decay, int64_t n)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n || *factor == 0.0f) return;
    swa[e] = hyper[3] == 1.0f ? p[e] : decay * swa[e] + (1.0f - decay) * p[e];
}

static Status swa_update(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->in_tensor[0]);
    if (n == 0) return OK;
    launch(swa_kernel, blocks_for(n, 256), 256, 0, ctx->stream, (float *)call->out[0], (const float *)call->in[1],
           (const float *)call->in[2], (const float *)call->in[3], (float)call->op->attr.f[0], n);
    return cuda_launched("swa_kernel");
}

__global__ void param_lower_kernel(const float *p, bf16 *low, int64_t n)
{
    stage_wait();
    int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= n) return;
    if (first + 8 <= n) {
        float x[8];
        load_floats<8>(p + first, x);
        store_floats<8>(low + first, x);
        return;
    }
    for (int64_t e = first; e < n; e++) low[e] = from_float<bf16>(p[e]);
}

static Status param_lower(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->in_tensor[0]);
    if (n == 0) return OK;
    launch(param_lower_kernel, blocks_for((n + 7) / 8, 256), 256, 0, ctx->stream, (const float *)call->in[0],
           (bf16 *)call->out[0], n);
    return cuda_launched("param_lower_kernel");
}

const CudaEntry cuda_optimizer[] = {
    {OP_SUM_SQUARES, sum_squares, sum_squares_scratch},
    {OP_CLIP_FACTOR, clip_factor, NULL},
    {OP_ADAM, adam, NULL},
    {OP_SWA_UPDATE, swa_update, NULL},
    {OP_PARAM_LOWER, param_lower, NULL},
    {OP_ADAM_FUSED, adam, NULL},
    {OP_COUNT, NULL, NULL},
};
