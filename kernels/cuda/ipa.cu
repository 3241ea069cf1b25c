/* Invariant point attention (AlphaFold2 supplement, algorithm 22) in f32. Points are [N,H*P,3], scores [H,N,N]. */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

/* ---- points as features
 * ----------------------------------------------------------------------------------------------- */

__global__ void point_features_kernel(int64_t count, int64_t points, float eps, const float *x, float *y)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    int64_t i = e / points, p = e % points;
    const float *v = x + 3 * e;
    float *row = y + 4 * points * i + p;
    for (int a = 0; a < 3; a++) row[a * points] = v[a];
    row[3 * points] = sqrtf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + eps);
}

static Status point_features(CudaContext *context, const OpCall *call)
{
    int64_t points = call->in_tensor[0]->dim[1], count = call->in_tensor[0]->dim[0] * points;
    launch(point_features_kernel, blocks_for(count, THREADS), THREADS, 0, context->stream, count, points,
           (float)call->op->attr.f[0], F32_IN(0), F32_OUT(0));
    return cuda_launched("point_features_kernel");
}

__global__ void point_features_bwd_kernel(int64_t count, int64_t points, float eps, const float *dy, const float *x,
                                          float *dx)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    const float *v = x + 3 * e, *row = dy + 4 * points * (e / points) + e % points;
    float norm = sqrtf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + eps);
    for (int a = 0; a < 3; a++) dx[3 * e + a] = row[a * points] + row[3 * points] * v[a] / norm;
}

static Status point_features_bwd(CudaContext *context, const OpCall *call)
{
    int64_t points = call->in_tensor[1]->dim[1], count = call->in_tensor[1]->dim[0] * points;
    launch(point_features_bwd_kernel, blocks_for(count, THREADS), THREADS, 0, context->stream, count, points,
           (float)call->op->attr.f[0], F32_IN(0), F32_IN(1), F32_OUT(0));
    return cuda_launched("point_features_bwd_kernel");
}

/* ---- scores
 * ------------------------------------------------------------------------------------------------------------ */

struct IpaSizes {
    int n, heads, channels, span;                     /* span: coordinates of a head's points, 3 P */
    float scalar_scale, bias_scale, point_scale, inf; /* sqrt(1/3C), sqrt(1/3), -sqrt(1/54P) */
};

static IpaSizes sizes_of(const OpCall *call, int first)
{
    const Tensor *q = call->in_tensor[first], *points = call->in_tensor[first + 2];
    IpaSizes s;
    s.n = (int)q->dim[0];
    s.heads = (int)call->op->attr.i[0];
    s.channels = (int)(q->dim[1] / s.heads);
    s.span = (int)(3 * points->dim[1] / s.heads);
    s.scalar_scale = (float)sqrt(1 / (3.0 * s.channels));
    s.bias_scale = (float)sqrt(1 / 3.0);
    s.point_scale = (float)-sqrt(1 / (18.0 * s.span));
    s.inf = (float)call->op->attr.f[0];
    return s;
}

__device__ __forceinline__ float softplusf(float w)
{
    return w > 0 ? w + log1pf(expf(-w)) : log1pf(expf(w));
}

/* a block per (query, head), a thread per key, V channels at a time */
template <int V>
__global__ void ipa_scores_kernel(IpaSizes s, const float *q, const float *k, const float *qp, const float *kp,
                                  const float *bias, const float *w, const float *mask, float *out)
{
    stage_wait();
    extern __shared__ float query[]; /* channels, then span */
    int i = blockIdx.x, h = blockIdx.y;
    for (int c = threadIdx.x; c < s.channels; c += blockDim.x)
        query[c] = q[((int64_t)i * s.heads + h) * s.channels + c];
    for (int c = threadIdx.x; c < s.span; c += blockDim.x)
        query[s.channels + c] = qp[((int64_t)i * s.heads + h) * s.span + c];
    __syncthreads();
    float weight = softplusf(w[h]) * s.point_scale;
    for (int j = threadIdx.x; j < s.n; j += blockDim.x) {
        const float *kj = k + ((int64_t)j * s.heads + h) * s.channels, *kpj = kp + ((int64_t)j * s.heads + h) * s.span;
        float dot = 0, square = 0;
        for (int c = 0; c < s.channels; c += V) {
            float x[V];
            load_floats<V>(kj + c, x);
#pragma unroll
            for (int l = 0; l < V; l++) dot += query[c + l] * x[l];
        }
        for (int c = 0; c < s.span; c += V) {
            float x[V];
            load_floats<V>(kpj + c, x);
#pragma unroll
            for (int l = 0; l < V; l++) {
                float d = query[s.channels + c + l] - x[l];
                square += d * d;
            }
        }
        out[((int64_t)h * s.n + i) * s.n + j] = dot * s.scalar_scale +
                                                s.bias_scale * bias[((int64_t)i * s.n + j) * s.heads + h] +
                                                weight * square + s.inf * (mask[i] * mask[j] - 1);
    }
}

static Status ipa_scores(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call, 0);
    dim3 grid((unsigned)s.n, (unsigned)s.heads);
    size_t shared = (size_t)(s.channels + s.span) * sizeof(float);
    bool wide = s.channels % 4 == 0 && s.span % 4 == 0 && aligned16(call->in[1]) && aligned16(call->in[3]);
    auto *kernel = wide ? ipa_scores_kernel<4> : ipa_scores_kernel<1>;
    launch(kernel, grid, 128, shared, context->stream, s, F32_IN(0), F32_IN(1), F32_IN(2), F32_IN(3), F32_IN(4),
           F32_IN(5), F32_IN(6), F32_OUT(0));
    return cuda_launched("ipa_scores_kernel");
}

/* One side of the gradient: `own` are the rows whose gradient is wanted (queries, or keys with ds read by columns),
 * `other` the rows they met. A block per (row, head); lanes run over channels and coordinates, warps over the other
 * rows; the partial sums of the warps are added in order. The gradient of a softmax's logits sums to zero over the
 * keys, so these sums cancel: they are taken in double. square[h n + i] (or NULL) = sum_j ds_ij |p_i - p_j|^2. */
__global__ void ipa_side_bwd_kernel(IpaSizes s, int64_t row_step, int64_t column_step, const float *ds,
                                    const float *other, const float *own_points, const float *other_points,
                                    const float *w, float *down, float *down_points, double *square)
{
    stage_wait();
    __shared__ double partial[WARPS][WARP];
    __shared__ double partial_square[WARPS][WARP];
    int i = blockIdx.x, h = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const float *d = ds + (int64_t)h * s.n * s.n + i * row_step;
    double of_points = 2 * (double)softplusf(w[h]) * (double)s.point_scale, squares = 0;
    int width = s.channels + s.span;
    for (int first = 0; first < width; first += WARP) {
        int c = first + lane, p = c - s.channels;
        bool point = p >= 0 && c < width, channel = c < s.channels;
        int64_t step = (int64_t)s.heads * (channel ? s.channels : s.span);
        const float *at = channel ? other + (int64_t)h * s.channels + c : other_points + (int64_t)h * s.span + p;
        double sum = 0, mine = point ? (double)own_points[((int64_t)i * s.heads + h) * s.span + p] : 0, part = 0;
        double sign = point ? -1 : 1;
        /* a batch of rows: the lanes fetch their ds side by side, then every row is visited by all lanes */
        for (int start = warp; start < s.n; start += WARPS * WARP) {
            int own_row = start + lane * WARPS, count = min(WARP, (s.n - start + WARPS - 1) / WARPS);
            float ds_lane = own_row < s.n ? d[own_row * column_step] : 0;
            if (!channel && !point) at = other; /* idle lanes read something, add nothing */
#pragma unroll 8
            for (int k = 0; k < count; k++) {
                double dj = (double)__shfl_sync(0xffffffffu, ds_lane, k);
                double x = mine + sign * (double)at[(channel || point) ? (start + k * WARPS) * step : 0];
                sum += dj * x;
                part += dj * x * x;
            }
        }
        if (!point) part = 0;
        __syncthreads();
        partial[warp][lane] = sum;
        partial_square[warp][lane] = part;
        __syncthreads();
        if (warp == 0) {
            sum = part = 0;
            for (int k = 0; k < WARPS; k++) {
                sum += partial[k][lane];
                part += partial_square[k][lane];
            }
            if (channel) down[((int64_t)i * s.heads + h) * s.channels + c] = (float)(sum * (double)s.scalar_scale);
            if (point) down_points[((int64_t)i * s.heads + h) * s.span + p] = (float)(sum * of_points);
            for (int step = WARP / 2; step > 0; step /= 2) part += __shfl_xor_sync(0xffffffffu, part, step);
            squares += part;
        }
    }
    if (square && threadIdx.x == 0) square[(int64_t)h * s.n + i] = squares;
}

/* dbias[i,j,h] = bias_scale ds[h,i,j] */
__global__ void ipa_bias_bwd_kernel(IpaSizes s, const float *ds, float *dbias)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pairs = (int64_t)s.n * s.n;
    if (e >= pairs) return;
    for (int h = 0; h < s.heads; h++) dbias[e * s.heads + h] = s.bias_scale * ds[h * pairs + e];
}

/* dw[h] = point_scale sigmoid(w) sum_i square: softplus' is the sigmoid; a warp per head */
__global__ void ipa_weight_bwd_kernel(IpaSizes s, const double *square, const float *w, float *dw)
{
    stage_wait();
    int h = blockIdx.x;
    double sum = 0;
    for (int i = threadIdx.x; i < s.n; i += WARP) sum += square[(int64_t)h * s.n + i];
    for (int step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x == 0) dw[h] = (float)(sum * (double)s.point_scale / (1 + exp(-(double)w[h])));
}

static Status ipa_scores_bwd(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call, 1);
    dim3 grid((unsigned)s.n, (unsigned)s.heads);
    double *square = (double *)call->scratch;
    const float *ds = F32_IN(0), *q = F32_IN(1), *k = F32_IN(2), *qp = F32_IN(3), *kp = F32_IN(4), *w = F32_IN(5);
    launch(ipa_side_bwd_kernel, grid, THREADS, 0, context->stream, s, s.n, 1, ds, k, qp, kp, w, F32_OUT(0), F32_OUT(2),
           square);
    launch(ipa_side_bwd_kernel, grid, THREADS, 0, context->stream, s, 1, s.n, ds, q, kp, qp, w, F32_OUT(1), F32_OUT(3),
           nullptr);
    launch(ipa_bias_bwd_kernel, blocks_for((int64_t)s.n * s.n, THREADS), THREADS, 0, context->stream, s, ds,
           F32_OUT(4));
    launch(ipa_weight_bwd_kernel, s.heads, WARP, 0, context->stream, s, square, w, F32_OUT(5));
    return cuda_launched("ipa_scores_bwd");
}

static size_t ipa_scores_bwd_scratch(const OpCall *call)
{
    return (size_t)(call->in_tensor[0]->dim[0] * call->in_tensor[0]->dim[1]) * sizeof(double);
}

/* ---- pair context: o[i,h,:] = sum_m p[h,i,m] z[i,m,:]
 * ---------------------------------------------------------------------- */

enum { HEAD_GROUP = 4, KEY_CHUNK = 64 };

/* a block per (query, group of heads); threads over channels; p of a chunk of keys in shared memory */
__global__ void pair_context_kernel(int heads, int n, int m, int c, const float *p, const float *z, float *out)
{
    stage_wait();
    __shared__ float weight[HEAD_GROUP][KEY_CHUNK];
    int i = blockIdx.x, first = blockIdx.y * HEAD_GROUP;
    for (int channel = threadIdx.x; channel - (int)threadIdx.x < c; channel += blockDim.x) {
        float sum[HEAD_GROUP] = {0};
        for (int start = 0; start < m; start += KEY_CHUNK) {
            __syncthreads();
            for (int e = threadIdx.x; e < HEAD_GROUP * KEY_CHUNK; e += blockDim.x) {
                int h = first + e / KEY_CHUNK, j = start + e % KEY_CHUNK;
                weight[e / KEY_CHUNK][e % KEY_CHUNK] = h < heads && j < m ? p[((int64_t)h * n + i) * m + j] : 0;
            }
            __syncthreads();
            if (channel >= c) continue;
            int end = m - start < KEY_CHUNK ? m - start : KEY_CHUNK;
            for (int j = 0; j < end; j++) {
                float x = z[((int64_t)i * m + start + j) * c + channel];
                for (int g = 0; g < HEAD_GROUP; g++) sum[g] += weight[g][j] * x;
            }
        }
        for (int g = 0; g < HEAD_GROUP; g++)
            if (channel < c && first + g < heads) out[((int64_t)i * heads + first + g) * c + channel] = sum[g];
    }
}

static Status pair_context(CudaContext *context, const OpCall *call)
{
    const Tensor *p = call->in_tensor[0];
    int heads = (int)p->dim[0], n = (int)p->dim[1], m = (int)p->dim[2], c = (int)call->in_tensor[1]->dim[2];
    dim3 grid((unsigned)n, (unsigned)((heads + HEAD_GROUP - 1) / HEAD_GROUP));
    launch(pair_context_kernel, grid, 128, 0, context->stream, heads, n, m, c, F32_IN(0), F32_IN(1), F32_OUT(0));
    return cuda_launched("pair_context_kernel");
}

/* a warp per (query, key): dp[h,i,m] = do[i,h,:] . z[i,m,:] and dz[i,m,:] = sum_h p[h,i,m] do[i,h,:] */
__global__ void pair_context_bwd_kernel(int heads, int n, int m, int c, const float *d, const float *p, const float *z,
                                        float *dp, float *dz)
{
    stage_wait();
    int64_t pair = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    int lane = threadIdx.x % WARP;
    if (pair >= (int64_t)n * m) return;
    int64_t i = pair / m, j = pair % m;
    for (int channel = lane; channel < c; channel += WARP) {
        float sum = 0;
        for (int h = 0; h < heads; h++) sum += p[((int64_t)h * n + i) * m + j] * d[(i * heads + h) * c + channel];
        dz[pair * c + channel] = sum;
    }
    for (int h = 0; h < heads; h++) {
        float dot = 0;
        for (int channel = lane; channel < c; channel += WARP)
            dot += d[(i * heads + h) * c + channel] * z[pair * c + channel];
        dot = lanes_sum<WARP>(dot);
        if (lane == 0) dp[((int64_t)h * n + i) * m + j] = dot;
    }
}

/* The same for up to 16 heads and 128 channels: a warp keeps do of its query in registers (4 channels a lane) and runs
 * over keys; the 16 dot products are folded together, halves exchanged. */
enum { PAIR_HEADS = 16, PAIR_CHANNELS = 128, PAIR_KEYS = 32 };
__global__ void __launch_bounds__(THREADS)
    pair_context_bwd_wide_kernel(int heads, int n, int m, int c, const float *d, const float *p, const float *z,
                                 float *dp, float *dz)
{
    stage_wait();
    int i = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, channel = lane * 4;
    bool live = channel < c;
    float4 own[PAIR_HEADS];
#pragma unroll
    for (int h = 0; h < PAIR_HEADS; h++)
        own[h] = live && h < heads ? *reinterpret_cast<const float4 *>(d + ((int64_t)i * heads + h) * c + channel)
                                   : make_float4(0, 0, 0, 0);
    int end = min(m, (int)(blockIdx.y + 1) * PAIR_KEYS);
    for (int j = blockIdx.y * PAIR_KEYS + warp; j < end; j += WARPS) {
        int64_t pair = (int64_t)i * m + j;
        float weight = lane < heads ? p[((int64_t)lane * n + i) * m + j] : 0;
        float4 x = live ? *reinterpret_cast<const float4 *>(z + pair * c + channel) : make_float4(0, 0, 0, 0);
        float4 sum = make_float4(0, 0, 0, 0);
        float dot[PAIR_HEADS];
#pragma unroll
        for (int h = 0; h < PAIR_HEADS; h++) {
            float w = __shfl_sync(0xffffffffu, weight, h);
            sum.x += w * own[h].x, sum.y += w * own[h].y, sum.z += w * own[h].z, sum.w += w * own[h].w;
            dot[h] = own[h].x * x.x + own[h].y * x.y + own[h].z * x.z + own[h].w * x.w;
        }
        if (live) *reinterpret_cast<float4 *>(dz + pair * c + channel) = sum;
#pragma unroll
        for (int half = PAIR_HEADS / 2; half > 0; half /= 2) {
            bool upper = (lane & (2 * half)) != 0; /* keeps the upper half of the heads */
#pragma unroll
            for (int k = 0; k < half; k++) {
                float keep = upper ? dot[k + half] : dot[k], give = upper ? dot[k] : dot[k + half];
                dot[k] = keep + __shfl_xor_sync(0xffffffffu, give, 2 * half);
            }
        }
        float total = dot[0] + __shfl_xor_sync(0xffffffffu, dot[0], 1);
        int h = lane / 2;
        if (lane % 2 == 0 && h < heads) dp[((int64_t)h * n + i) * m + j] = total;
    }
}

static Status pair_context_bwd(CudaContext *context, const OpCall *call)
{
    const Tensor *p = call->in_tensor[1];
    int heads = (int)p->dim[0], n = (int)p->dim[1], m = (int)p->dim[2], c = (int)call->in_tensor[2]->dim[2];
    bool wide = heads <= PAIR_HEADS && c <= PAIR_CHANNELS && c % 4 == 0 && aligned16(call->in[0]) &&
                aligned16(call->in[2]) && aligned16(call->out[1]);
    if (wide && n > 0 && m > 0) {
        dim3 grid((unsigned)n, (unsigned)((m + PAIR_KEYS - 1) / PAIR_KEYS));
        launch(pair_context_bwd_wide_kernel, grid, THREADS, 0, context->stream, heads, n, m, c, F32_IN(0), F32_IN(1),
               F32_IN(2), F32_OUT(0), F32_OUT(1));
        return cuda_launched("pair_context_bwd_wide_kernel");
    }
    launch(pair_context_bwd_kernel, blocks_for((int64_t)n * m * WARP, THREADS), THREADS, 0, context->stream, heads, n,
           m, c, F32_IN(0), F32_IN(1), F32_IN(2), F32_OUT(0), F32_OUT(1));
    return cuda_launched("pair_context_bwd_kernel");
}

const CudaEntry cuda_ipa[] = {{OP_POINT_FEATURES, point_features, NULL},
                              {OP_POINT_FEATURES_BWD, point_features_bwd, NULL},
                              {OP_IPA_SCORES, ipa_scores, NULL},
                              {OP_IPA_SCORES_BWD, ipa_scores_bwd, ipa_scores_bwd_scratch},
                              {OP_PAIR_CONTEXT, pair_context, NULL},
                              {OP_PAIR_CONTEXT_BWD, pair_context_bwd, NULL},
                              {OP_COUNT, NULL, NULL}};
