/* Global column attention of the extra MSA stack (AlphaFold2 supplement algorithm 19): masked mean over the sequences,
 * then one query per head and residue over keys that all heads share. A block per residue. */
#include "kernels/cuda/device.cuh"

enum { MEAN_THREADS = 256, GLOBAL_THREADS = 256 };

/* y[r,c] = sum_s m x / (sum_s m + eps): channels over lanes of a row group, sequences over groups, groups joined in
 * order. */
template <typename T>
__global__ void __launch_bounds__(MEAN_THREADS)
    masked_mean_kernel(const T *x, const float *m, T *y, int s, int r, int c, float eps)
{
    extern __shared__ float shared[]; /* [groups][c + 1] */
    int residue = blockIdx.x, width = c < MEAN_THREADS ? c : MEAN_THREADS, groups = MEAN_THREADS / width;
    int group = threadIdx.x / width, lane = threadIdx.x % width;
    for (int channel = lane; channel < c; channel += width) {
        if (group >= groups) break;
        float sum = 0, count = 0;
        for (int row = group; row < s; row += groups) {
            float weight = m[(int64_t)row * r + residue];
            sum += weight * to_float(x[((int64_t)row * r + residue) * c + channel]);
            count += weight;
        }
        shared[group * (c + 1) + channel] = sum;
        if (channel == 0) shared[group * (c + 1) + c] = count;
    }
    __syncthreads();
    for (int channel = threadIdx.x; channel < c; channel += MEAN_THREADS) {
        float sum = 0, count = eps;
        for (int k = 0; k < groups; k++) sum += shared[k * (c + 1) + channel], count += shared[k * (c + 1) + c];
        y[(int64_t)residue * c + channel] = from_float<T>(sum / count);
    }
}

__global__ void __launch_bounds__(256) mask_count_kernel(const float *m, float *count, int s, int r, float eps)
{
    int residue = blockIdx.x * blockDim.x + threadIdx.x;
    if (residue >= r) return;
    float sum = 0;
    for (int row = 0; row < s; row++) sum += m[(int64_t)row * r + residue];
    count[residue] = sum + eps;
}

template <typename T>
__global__ void __launch_bounds__(256) masked_mean_bwd_kernel(const T *dy, const float *m, const float *count, T *dx,
                                                              uint32_t total, uint32_t r, uint32_t c)
{
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= total) return;
    uint32_t row = e / c, residue = row % r;
    dx[e] = from_float<T>(m[row] / count[residue] * to_float(dy[residue * c + (e - row * c)]));
}

static Status masked_mean(CudaContext *ctx, const OpCall *call)
{
    const Tensor *t = call->in_tensor[0];
    int s = (int)t->dim[0], r = (int)t->dim[1], c = (int)t->dim[2];
    int groups = c < MEAN_THREADS ? MEAN_THREADS / c : 1;
    if (r == 0) return OK;
    DISPATCH_REAL(call, t->dtype, {
        masked_mean_kernel<T><<<r, MEAN_THREADS, (size_t)groups *(c + 1) * sizeof(float), ctx->stream>>>(
            (const T *)call->in[0], (const float *)call->in[1], (T *)call->out[0], s, r, c, (float)call->op->attr.f[0]);
    });
    return cuda_launched("masked_mean_kernel");
}

static Status masked_mean_bwd(CudaContext *ctx, const OpCall *call)
{
    int s = (int)call->in_tensor[1]->dim[0], r = (int)call->in_tensor[0]->dim[0], c = (int)call->in_tensor[0]->dim[1];
    const float *m = (const float *)call->in[1];
    float *count = (float *)call->scratch;
    uint32_t total = (uint32_t)s * r * c;
    if (total == 0) return OK;
    mask_count_kernel<<<blocks_for(r, 256), 256, 0, ctx->stream>>>(m, count, s, r, (float)call->op->attr.f[0]);
    TRY(cuda_launched("mask_count_kernel"));
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        masked_mean_bwd_kernel<T><<<blocks_for(total, 256), 256, 0, ctx->stream>>>((const T *)call->in[0], m, count,
                                                                                   (T *)call->out[0], total, r, c);
    });
    return cuda_launched("masked_mean_bwd_kernel");
}

static size_t masked_mean_bwd_scratch(const OpCall *call)
{
    return (size_t)call->in_tensor[0]->dim[0] * sizeof(float);
}

struct Global {
    int s, r, h, d;
    float scale, inf;
};

static Global global_make(const Tensor *k, const OpAttr *attr)
{
    return {(int)k->dim[0], (int)k->dim[1], (int)attr->i[0], (int)k->dim[2], (float)attr->f[0], (float)attr->f[1]};
}

/* p[h][s] in shared memory: scores, then a softmax by one warp per head. q: the residue's [H][D] as floats. */
template <typename T>
__device__ void global_probabilities(const Global &g, const float *q, const T *k, const float *mask, int residue,
                                     float *p)
{
    for (int row = threadIdx.x; row < g.s; row += blockDim.x) {
        const T *key = k + ((int64_t)row * g.r + residue) * g.d;
        float add = g.inf * (mask[(int64_t)row * g.r + residue] - 1.0f);
        for (int h = 0; h < g.h; h++) {
            float sum = 0;
            for (int d = 0; d < g.d; d++) sum += q[h * g.d + d] * to_float(key[d]);
            p[h * g.s + row] = g.scale * sum + add;
        }
    }
    __syncthreads();
    int lane = threadIdx.x % WARP;
    for (int h = threadIdx.x / WARP; h < g.h; h += blockDim.x / WARP) {
        float peak = -INFINITY, sum = 0;
        for (int row = lane; row < g.s; row += WARP) peak = fmaxf(peak, p[h * g.s + row]);
        peak = lanes_max<WARP>(peak);
        for (int row = lane; row < g.s; row += WARP) sum += p[h * g.s + row] = expf(p[h * g.s + row] - peak);
        float scale = 1.0f / lanes_sum<WARP>(sum);
        for (int row = lane; row < g.s; row += WARP) p[h * g.s + row] *= scale;
    }
    __syncthreads();
}

/* out[h][d] = factor sum_s p[h][s] x[s][d]: warps in turn take (h, d), lanes the sequences */
template <typename T>
__device__ void global_weighted(const Global &g, const float *p, const T *x, int residue, float factor, T *out)
{
    int lane = threadIdx.x % WARP;
    for (int e = threadIdx.x / WARP; e < g.h * g.d; e += blockDim.x / WARP) {
        int h = e / g.d, d = e % g.d;
        float sum = 0;
        for (int row = lane; row < g.s; row += WARP)
            sum += p[h * g.s + row] * to_float(x[((int64_t)row * g.r + residue) * g.d + d]);
        sum = lanes_sum<WARP>(sum);
        if (lane == 0) out[(int64_t)residue * g.h * g.d + e] = from_float<T>(factor * sum);
    }
}

template <typename T>
__global__ void __launch_bounds__(GLOBAL_THREADS)
    global_attention_kernel(Global g, const T *q, const T *k, const T *v, const float *mask, T *o)
{
    extern __shared__ float shared[];
    float *p = shared, *query = shared + g.h * g.s;
    int residue = blockIdx.x;
    for (int e = threadIdx.x; e < g.h * g.d; e += blockDim.x) query[e] = to_float(q[(int64_t)residue * g.h * g.d + e]);
    __syncthreads();
    global_probabilities(g, query, k, mask, residue, p);
    global_weighted(g, p, v, residue, 1.0f, o);
}

/* dv = p^T do, dp = do v^T, ds = p (dp - sum p dp), dq = scale ds k, dk = scale ds^T q */
template <typename T>
__global__ void __launch_bounds__(GLOBAL_THREADS)
    global_attention_bwd_kernel(Global g, const T *go, const T *q, const T *k, const T *v, const float *mask, T *dq,
                                T *dk, T *dv)
{
    extern __shared__ float shared[];
    float *p = shared, *ds = p + g.h * g.s, *query = ds + g.h * g.s, *grad = query + g.h * g.d;
    int residue = blockIdx.x, lane = threadIdx.x % WARP;
    for (int e = threadIdx.x; e < g.h * g.d; e += blockDim.x) {
        query[e] = to_float(q[(int64_t)residue * g.h * g.d + e]);
        grad[e] = to_float(go[(int64_t)residue * g.h * g.d + e]);
    }
    __syncthreads();
    global_probabilities(g, query, k, mask, residue, p);
    for (int row = threadIdx.x; row < g.s; row += blockDim.x) {
        int64_t at = ((int64_t)row * g.r + residue) * g.d;
        for (int h = 0; h < g.h; h++) {
            float sum = 0;
            for (int d = 0; d < g.d; d++) sum += grad[h * g.d + d] * to_float(v[at + d]);
            ds[h * g.s + row] = sum;
        }
        for (int d = 0; d < g.d; d++) {
            float sum = 0;
            for (int h = 0; h < g.h; h++) sum += p[h * g.s + row] * grad[h * g.d + d];
            dv[at + d] = from_float<T>(sum);
        }
    }
    __syncthreads();
    for (int h = threadIdx.x / WARP; h < g.h; h += blockDim.x / WARP) {
        float sum = 0;
        for (int row = lane; row < g.s; row += WARP) sum += p[h * g.s + row] * ds[h * g.s + row];
        sum = lanes_sum<WARP>(sum);
        for (int row = lane; row < g.s; row += WARP) ds[h * g.s + row] = p[h * g.s + row] * (ds[h * g.s + row] - sum);
    }
    __syncthreads();
    for (int row = threadIdx.x; row < g.s; row += blockDim.x) {
        int64_t at = ((int64_t)row * g.r + residue) * g.d;
        for (int d = 0; d < g.d; d++) {
            float sum = 0;
            for (int h = 0; h < g.h; h++) sum += ds[h * g.s + row] * query[h * g.d + d];
            dk[at + d] = from_float<T>(g.scale * sum);
        }
    }
    global_weighted(g, ds, k, residue, g.scale, dq);
}

static Status global_attention(CudaContext *ctx, const OpCall *call)
{
    Global g = global_make(call->in_tensor[1], &call->op->attr);
    size_t shared = (size_t)g.h * (g.s + g.d) * sizeof(float);
    if (g.r == 0) return OK;
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        CUDA_TRY(
            cudaFuncSetAttribute(global_attention_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
        global_attention_kernel<T><<<g.r, GLOBAL_THREADS, shared, ctx->stream>>>(
            g, (const T *)call->in[0], (const T *)call->in[1], (const T *)call->in[2], (const float *)call->in[3],
            (T *)call->out[0]);
    });
    return cuda_launched("global_attention_kernel");
}

static Status global_attention_bwd(CudaContext *ctx, const OpCall *call)
{
    Global g = global_make(call->in_tensor[2], &call->op->attr);
    size_t shared = (size_t)2 * g.h * (g.s + g.d) * sizeof(float);
    if (g.r == 0) return OK;
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        CUDA_TRY(cudaFuncSetAttribute(global_attention_bwd_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared));
        global_attention_bwd_kernel<T><<<g.r, GLOBAL_THREADS, shared, ctx->stream>>>(
            g, (const T *)call->in[0], (const T *)call->in[1], (const T *)call->in[2], (const T *)call->in[3],
            (const float *)call->in[4], (T *)call->out[0], (T *)call->out[1], (T *)call->out[2]);
    });
    return cuda_launched("global_attention_bwd_kernel");
}

const CudaEntry cuda_global_attention[] = {
    {OP_MASKED_MEAN, masked_mean, NULL},
    {OP_MASKED_MEAN_BWD, masked_mean_bwd, masked_mean_bwd_scratch},
    {OP_GLOBAL_ATTENTION, global_attention, NULL},
    {OP_GLOBAL_ATTENTION_BWD, global_attention_bwd, NULL},
    {OP_COUNT, NULL, NULL},
};
