/* Invariant point attention (AlphaFold2 supplement, algorithm 22) in f32. Points are [N,H*P,3], scores [H,N,N]. */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256 };

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

static bool ipa_is_few(const IpaSizes &s)
{
    return (int64_t)s.n * s.n * s.heads * (s.channels + s.span) < FEW_MULTIPLICATIONS;
}

__device__ __forceinline__ float softplusf(float w)
{
    return w > 0 ? w + log1pf(expf(-w)) : log1pf(expf(w));
}

/* A block: IPA_QUERIES queries, IPA_KEYS keys, all heads. A thread keeps a key and walks over every fourth head, V
 * channels at a time; the queries are in shared memory, channels and then points of a head side by side. Sums in Sum.
 */
enum { IPA_QUERIES = 8, IPA_KEYS = 64, IPA_HEADS_APART = THREADS / IPA_KEYS };

template <typename Sum, int V>
__global__ void __launch_bounds__(THREADS)
    ipa_scores_kernel(IpaSizes s, const float *q, const float *k, const float *qp, const float *kp, const float *bias,
                      const float *w, const float *mask, float *out)
{
    stage_wait();
    extern __shared__ float4 shared_queries[];
    float *query = (float *)shared_queries;
    int width = s.channels + s.span, row = s.heads * width, i0 = blockIdx.y * IPA_QUERIES;
    int count = min(IPA_QUERIES, s.n - i0);
    for (int e = threadIdx.x; e < IPA_QUERIES * row; e += THREADS) {
        int i = e / row, h = e % row / width, c = e % width;
        int64_t at = (int64_t)(i0 + i) * s.heads + h;
        query[e] = i >= count ? 0.0f : c < s.channels ? q[at * s.channels + c] : qp[at * s.span + c - s.channels];
    }
    __syncthreads();
    int j = blockIdx.x * IPA_KEYS + threadIdx.x % IPA_KEYS;
    if (j >= s.n) return;
    float mask_j = mask[j];
    for (int h = threadIdx.x / IPA_KEYS; h < s.heads; h += IPA_HEADS_APART) {
        const float *kj = k + ((int64_t)j * s.heads + h) * s.channels, *kpj = kp + ((int64_t)j * s.heads + h) * s.span;
        Sum dot[IPA_QUERIES] = {}, square[IPA_QUERIES] = {};
        float x[V], y[V];
        for (int c = 0; c < s.channels; c += V) {
            load_floats<V>(kj + c, x);
#pragma unroll
            for (int i = 0; i < IPA_QUERIES; i++) {
                load_floats<V>(query + i * row + h * width + c, y);
#pragma unroll
                for (int l = 0; l < V; l++) dot[i] += (Sum)y[l] * x[l];
            }
        }
        for (int c = 0; c < s.span; c += V) {
            load_floats<V>(kpj + c, x);
#pragma unroll
            for (int i = 0; i < IPA_QUERIES; i++) {
                load_floats<V>(query + i * row + h * width + s.channels + c, y);
#pragma unroll
                for (int l = 0; l < V; l++) square[i] += ((Sum)y[l] - x[l]) * ((Sum)y[l] - x[l]);
            }
        }
        float weight = softplusf(w[h]) * s.point_scale;
#pragma unroll
        for (int i = 0; i < IPA_QUERIES; i++) {
            if (i >= count) break;
            int64_t pair = (int64_t)(i0 + i) * s.n + j;
            Sum score = dot[i] * s.scalar_scale + (Sum)s.bias_scale * bias[pair * s.heads + h] + weight * square[i] +
                        s.inf * (mask[i0 + i] * mask_j - 1);
            out[(int64_t)h * s.n * s.n + pair] = (float)score;
        }
    }
}

static Status ipa_scores(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call, 0);
    dim3 grid(blocks_for(s.n, IPA_KEYS), blocks_for(s.n, IPA_QUERIES));
    size_t shared = (size_t)(IPA_QUERIES * s.heads * (s.channels + s.span)) * sizeof(float);
    bool wide = s.channels % 4 == 0 && s.span % 4 == 0 && aligned16(call->in[1]) && aligned16(call->in[3]);
    auto *kernel = ipa_is_few(s) ? ipa_scores_kernel<double, 1>
                   : wide        ? ipa_scores_kernel<float, 4>
                                 : ipa_scores_kernel<float, 1>;
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch(kernel, grid, THREADS, shared, context->stream, s, F32_IN(0), F32_IN(1), F32_IN(2), F32_IN(3), F32_IN(4),
           F32_IN(5), F32_IN(6), F32_OUT(0));
    return cuda_launched("ipa_scores_kernel");
}

/* One side of the gradient: `own` are the rows whose gradient is wanted (queries, or keys with ds read by columns),
 * `other` the rows they met. */
struct IpaSide {
    int64_t row_step, column_step; /* of ds in a head */
    const float *other, *own_points, *other_points;
    float *down, *down_points;
    double *square; /* [heads, n] sum over the others of ds |p - p'|^2; NULL = not wanted */
};
struct IpaSides {
    IpaSide side[2];
};

/* A block: SIDE_ROWS rows of a head and of a side; lanes run over channels and coordinates, each warp over a part of
 * the others. The gradient of a softmax's logits sums to zero over the keys, so these sums cancel: short runs in Sum,
 * their sums in double. */
enum { SIDE_ROWS = 8, SIDE_PITCH = SIDE_ROWS + 4, SIDE_OTHERS = 32, SIDE_RUN = 8, SIDE_PARTS = THREADS / WARP };

template <typename Sum>
__global__ void __launch_bounds__(THREADS)
    ipa_side_bwd_kernel(IpaSizes s, const float *ds, const float *w, IpaSides both)
{
    stage_wait();
    __shared__ __align__(16) float weight[SIDE_PARTS][SIDE_OTHERS][SIDE_PITCH];
    __shared__ double partial[SIDE_PARTS][SIDE_ROWS][WARP + 1], partial_square[SIDE_PARTS][SIDE_ROWS][WARP + 1];
    const IpaSide side = both.side[blockIdx.z];
    int h = blockIdx.y, row0 = blockIdx.x * SIDE_ROWS, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int width = s.channels + s.span, others = (s.n + SIDE_PARTS - 1) / SIDE_PARTS;
    int begin = warp * others, end = min(s.n, begin + others);
    const float *d = ds + (int64_t)h * s.n * s.n;
    double of_points = 2 * (double)softplusf(w[h]) * (double)s.point_scale, squares = 0;
    for (int first = 0; first < width; first += WARP) {
        int c = first + lane, p = c - s.channels;
        bool channel = c < s.channels, point = !channel && c < width;
        int64_t step = (int64_t)s.heads * (channel ? s.channels : s.span);
        const float *at =
            channel ? side.other + (int64_t)h * s.channels + c : side.other_points + (int64_t)h * s.span + p;
        float mine[SIDE_ROWS];
        double sum[SIDE_ROWS] = {}, square[SIDE_ROWS] = {};
#pragma unroll
        for (int r = 0; r < SIDE_ROWS; r++)
            mine[r] = point && row0 + r < s.n ? side.own_points[((int64_t)(row0 + r) * s.heads + h) * s.span + p] : 0;
        float sign = point ? -1.0f : 1.0f;
        for (int start = begin; start < end; start += SIDE_OTHERS) {
            __syncwarp();
            for (int e = lane; e < SIDE_ROWS * SIDE_OTHERS; e += WARP) {
                /* neighbours in memory to neighbouring lanes */
                int r = side.column_step == 1 ? e / SIDE_OTHERS : e % SIDE_ROWS;
                int o = side.column_step == 1 ? e % SIDE_OTHERS : e / SIDE_ROWS;
                bool live = row0 + r < s.n && start + o < end;
                weight[warp][o][r] = live ? d[(row0 + r) * side.row_step + (start + o) * side.column_step] : 0.0f;
            }
            __syncwarp();
            int count = min(SIDE_OTHERS, end - start);
            for (int run = 0; run < count; run += SIDE_RUN) {
                Sum short_sum[SIDE_ROWS] = {}, short_square[SIDE_ROWS] = {};
#pragma unroll
                for (int o = 0; o < SIDE_RUN; o++) {
                    bool live = (channel || point) && run + o < count;
                    float x = live ? sign * at[(start + run + o) * step] : 0.0f, each[SIDE_ROWS];
                    load_floats<SIDE_ROWS>(weight[warp][run + o], each);
#pragma unroll
                    for (int r = 0; r < SIDE_ROWS; r++) {
                        Sum y = (Sum)mine[r] + x, t = each[r] * y;
                        short_sum[r] += t;
                        short_square[r] += t * y;
                    }
                }
#pragma unroll
                for (int r = 0; r < SIDE_ROWS; r++)
                    sum[r] += (double)short_sum[r], square[r] += (double)short_square[r];
            }
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < SIDE_ROWS; r++) {
            partial[warp][r][lane] = sum[r];
            partial_square[warp][r][lane] = point ? square[r] : 0;
        }
        __syncthreads();
        /* a warp per row from here on */
        double total = 0, part = 0;
        for (int k = 0; k < SIDE_PARTS; k++) total += partial[k][warp][lane], part += partial_square[k][warp][lane];
        int64_t row = ((int64_t)row0 + warp) * s.heads + h;
        if (row0 + warp < s.n && channel) side.down[row * s.channels + c] = (float)(total * (double)s.scalar_scale);
        if (row0 + warp < s.n && point) side.down_points[row * s.span + p] = (float)(total * of_points);
        for (int half = WARP / 2; half > 0; half /= 2) part += __shfl_xor_sync(0xffffffffu, part, half);
        squares += part;
    }
    if (side.square && lane == 0 && row0 + warp < s.n) side.square[(int64_t)h * s.n + row0 + warp] = squares;
}

/* dbias[i,j,h] = bias_scale ds[h,i,j]; by the last blocks, one per head: dw[h] = point_scale sigmoid(w) sum_i square,
 * as softplus' is the sigmoid */
__global__ void ipa_bias_bwd_kernel(IpaSizes s, int64_t bias_blocks, const float *ds, const double *square,
                                    const float *w, float *dbias, float *dw)
{
    stage_wait();
    int64_t pairs = (int64_t)s.n * s.n, e = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (blockIdx.x < bias_blocks) {
        for (int h = 0; h < s.heads && e < pairs; h++) dbias[e * s.heads + h] = s.bias_scale * ds[h * pairs + e];
        return;
    }
    if (threadIdx.x >= WARP) return;
    int h = blockIdx.x - (int)bias_blocks;
    double sum = 0;
    for (int i = threadIdx.x; i < s.n; i += WARP) sum += square[(int64_t)h * s.n + i];
    for (int step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x == 0) dw[h] = (float)(sum * (double)s.point_scale / (1 + exp(-(double)w[h])));
}

static Status ipa_scores_bwd(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call, 1);
    double *square = (double *)call->scratch;
    const float *ds = F32_IN(0), *q = F32_IN(1), *k = F32_IN(2), *qp = F32_IN(3), *kp = F32_IN(4), *w = F32_IN(5);
    IpaSides both = {
        {{s.n, 1, k, qp, kp, F32_OUT(0), F32_OUT(2), square}, {1, s.n, q, kp, qp, F32_OUT(1), F32_OUT(3), nullptr}}};
    dim3 grid(blocks_for(s.n, SIDE_ROWS), (unsigned)s.heads, 2);
    launch(ipa_is_few(s) ? ipa_side_bwd_kernel<double> : ipa_side_bwd_kernel<float>, grid, THREADS, 0, context->stream,
           s, ds, w, both);
    int64_t bias_blocks = blocks_for((int64_t)s.n * s.n, THREADS);
    launch(ipa_bias_bwd_kernel, (unsigned)(bias_blocks + s.heads), THREADS, 0, context->stream, s, bias_blocks, ds,
           square, w, F32_OUT(4), F32_OUT(5));
    return cuda_launched("ipa_scores_bwd");
}

static size_t ipa_scores_bwd_scratch(const OpCall *call)
{
    return (size_t)(call->in_tensor[0]->dim[0] * call->in_tensor[0]->dim[1]) * sizeof(double);
}

const CudaEntry cuda_ipa[] = {{OP_POINT_FEATURES, point_features, NULL},
                              {OP_POINT_FEATURES_BWD, point_features_bwd, NULL},
                              {OP_IPA_SCORES, ipa_scores, NULL},
                              {OP_IPA_SCORES_BWD, ipa_scores_bwd, ipa_scores_bwd_scratch},
                              {OP_COUNT, NULL, NULL}};
