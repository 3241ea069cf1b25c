/* Global column attention of the extra MSA stack (AlphaFold2 supplement algorithm 19): masked mean over the sequences,
 * then one query per head and residue over keys that all heads share. A block per residue. */
#include "kernels/cuda/device.cuh"

enum { MEAN_THREADS = 512, GLOBAL_THREADS = 256 };

/* y[r,c] = sum_s m x / (sum_s m + eps): V channels a thread over lanes of a row group, sequences over groups, groups
 * joined in order. */
template <typename T, int V>
__global__ void __launch_bounds__(MEAN_THREADS)
    masked_mean_kernel(const T *x, const float *m, T *y, int s, int r, int c, float eps)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    extern __shared__ __align__(16) char memory[];
    Sum *shared = reinterpret_cast<Sum *>(memory); /* [groups][c + 1] */
    int residue = blockIdx.x, width = c / V < MEAN_THREADS ? c / V : MEAN_THREADS, groups = MEAN_THREADS / width;
    int group = threadIdx.x / width, lane = threadIdx.x % width;
    for (int channel = lane * V; channel < c && group < groups; channel += width * V) {
        Sum sum[V] = {}, count = 0;
#pragma unroll 4
        for (int row = group; row < s; row += groups) {
            int64_t at = (int64_t)row * r + residue;
            float weight = m[at], v[V];
            load_floats<V>(x + at * c + channel, v);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += weight * v[j];
            count += weight;
        }
#pragma unroll
        for (int j = 0; j < V; j++) shared[group * (c + 1) + channel + j] = sum[j];
        if (channel == 0) shared[group * (c + 1) + c] = count;
    }
    __syncthreads();
    for (int channel = threadIdx.x; channel < c; channel += MEAN_THREADS) {
        Sum sum = 0, count = eps;
        for (int k = 0; k < groups; k++) sum += shared[k * (c + 1) + channel], count += shared[k * (c + 1) + c];
        y[(int64_t)residue * c + channel] = from_float<T>((float)(sum / count));
    }
}

/* A warp's width of residues a block; its warps share the sequences. */
__global__ void __launch_bounds__(1024) mask_count_kernel(const float *m, float *count, int s, int r, float eps)
{
    stage_wait();
    __shared__ float part[WARP][WARP + 1];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, residue = blockIdx.x * WARP + lane;
    float sum = 0;
    for (int row = warp; row < s && residue < r; row += WARP) sum += m[(int64_t)row * r + residue];
    part[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || residue >= r) return;
    float total = eps;
    for (int k = 0; k < WARP; k++) total += part[k][lane];
    count[residue] = total;
}

/* dx = m / (sum m + eps) dy of the residue */
template <typename T, int V>
__global__ void __launch_bounds__(256) masked_mean_bwd_kernel(const T *dy, const float *m, const float *count, T *dx,
                                                              uint32_t pieces, uint32_t r, uint32_t c)
{
    stage_wait();
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= pieces) return;
    uint32_t row = e / (c / V), channel = (e - row * (c / V)) * V, residue = row % r;
    float v[V], weight = m[row] / count[residue];
    load_floats<V>(dy + residue * c + channel, v);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] *= weight;
    store_floats<V>(dx + (int64_t)row * c + channel, v);
}

/* Runs RUN(V) with the widest pieces that the channels and the addresses allow. */
#define BY_WIDTH(RUN, T, c, aligned)                                                                                   \
    if ((c) % Pack<T>::N == 0 && (aligned))                                                                            \
        RUN(Pack<T>::N)                                                                                                \
    else                                                                                                               \
        RUN(1)

template <typename T> static Status masked_mean_launch(const OpCall *call, int s, int r, int c, cudaStream_t stream)
{
#define RUN(V)                                                                                                         \
    {                                                                                                                  \
        int width = c / (V) < MEAN_THREADS ? c / (V) : MEAN_THREADS;                                                   \
        size_t shared = (size_t)(MEAN_THREADS / width) * (size_t)(c + 1) * sizeof(typename Wide<T>::Sum);              \
        launch(masked_mean_kernel<T, (V)>, r, MEAN_THREADS, shared, stream, (const T *)call->in[0],                    \
               (const float *)call->in[1], (T *)call->out[0], s, r, c, (float)call->op->attr.f[0]);                    \
    }
    BY_WIDTH(RUN, T, c, aligned16(call->in[0]))
#undef RUN
    return cuda_launched("masked_mean_kernel");
}

static Status masked_mean(CudaContext *ctx, const OpCall *call)
{
    const Tensor *t = call->in_tensor[0];
    int s = (int)t->dim[0], r = (int)t->dim[1], c = (int)t->dim[2];
    if (r == 0) return OK;
    DISPATCH_REAL(call, t->dtype, { return masked_mean_launch<T>(call, s, r, c, ctx->stream); });
}

template <typename T>
static Status masked_mean_bwd_launch(const OpCall *call, const float *count, uint32_t total, int r, int c,
                                     cudaStream_t stream)
{
#define RUN(V)                                                                                                         \
    {                                                                                                                  \
        uint32_t pieces = total / (V);                                                                                 \
        launch(masked_mean_bwd_kernel<T, (V)>, blocks_for(pieces, 256), 256, 0, stream, (const T *)call->in[0],        \
               (const float *)call->in[1], count, (T *)call->out[0], pieces, r, c);                                    \
    }
    BY_WIDTH(RUN, T, c, aligned16(call->in[0]) && aligned16(call->out[0]))
#undef RUN
    return cuda_launched("masked_mean_bwd_kernel");
}

static Status masked_mean_bwd(CudaContext *ctx, const OpCall *call)
{
    int s = (int)call->in_tensor[1]->dim[0], r = (int)call->in_tensor[0]->dim[0], c = (int)call->in_tensor[0]->dim[1];
    float *count = (float *)call->scratch;
    uint32_t total = (uint32_t)s * r * c;
    if (total == 0) return OK;
    launch(mask_count_kernel, blocks_for(r, WARP), 1024, 0, ctx->stream, (const float *)call->in[1], count, s, r,
           (float)call->op->attr.f[0]);
    TRY(cuda_launched("mask_count_kernel"));
    DISPATCH_REAL(call, call->in_tensor[0]->dtype,
                  { return masked_mean_bwd_launch<T>(call, count, total, r, c, ctx->stream); });
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

/* Keys or values of one residue: row s at s * step. In memory a row lies R D elements from the next, so that every
 * access of a few bytes would fetch a sector of its own: they are read once, into shared memory, where they fit. */
template <typename T> struct GlobalRows {
    const T *p;
    int64_t step;
    __device__ __forceinline__ float at(int row, int d) const { return to_float(p[row * step + d]); }
};

template <typename T> __device__ GlobalRows<T> global_rows(const Global &g, const T *x, int residue, T *staged)
{
    const T *first = x + (int64_t)residue * g.d;
    int64_t step = (int64_t)g.r * g.d;
    if (!staged) return {first, step};
    int piece = 16 / (int)sizeof(T);
    if (g.d % piece == 0 && (((uintptr_t)first | (uintptr_t)staged) & 15) == 0) {
        int per_row = g.d / piece;
        for (int e = threadIdx.x; e < g.s * per_row; e += blockDim.x)
            reinterpret_cast<uint4 *>(staged)[e] =
                *reinterpret_cast<const uint4 *>(first + e / per_row * step + e % per_row * piece);
    } else {
        for (int e = threadIdx.x; e < g.s * g.d; e += blockDim.x) staged[e] = first[e / g.d * step + e % g.d];
    }
    return {staged, g.d};
}

/* p[h][s]: scores, then a softmax by one warp per head. q: the residue's [H][D] as floats. */
template <typename T>
__device__ void global_probabilities(const Global &g, const float *q, GlobalRows<T> k, const float *mask, int residue,
                                     float *p)
{
    typedef typename Wide<T>::Sum Sum;
    for (int row = threadIdx.x; row < g.s; row += blockDim.x) {
        float add = g.inf * (mask[(int64_t)row * g.r + residue] - 1.0f);
        for (int h = 0; h < g.h; h++) {
            Sum sum = 0;
            for (int d = 0; d < g.d; d++) sum += (Sum)q[h * g.d + d] * k.at(row, d);
            p[h * g.s + row] = (float)(g.scale * sum) + add;
        }
    }
    __syncthreads();
    int lane = threadIdx.x % WARP;
    for (int h = threadIdx.x / WARP; h < g.h; h += blockDim.x / WARP) {
        float peak = -INFINITY;
        Sum sum = 0;
        for (int row = lane; row < g.s; row += WARP) peak = fmaxf(peak, p[h * g.s + row]);
        peak = lanes_max<WARP>(peak);
        for (int row = lane; row < g.s; row += WARP) sum += p[h * g.s + row] = expf(p[h * g.s + row] - peak);
        Sum scale = 1 / lanes_sum<WARP>(sum);
        for (int row = lane; row < g.s; row += WARP) p[h * g.s + row] = (float)(p[h * g.s + row] * scale);
    }
    __syncthreads();
}

/* out[h][d] = factor sum_s p[h][s] x[s][d]: warps in turn take (h, d), lanes the sequences */
template <typename T>
__device__ void global_weighted(const Global &g, const float *p, GlobalRows<T> x, int residue, float factor, T *out)
{
    int lane = threadIdx.x % WARP;
    for (int e = threadIdx.x / WARP; e < g.h * g.d; e += blockDim.x / WARP) {
        int h = e / g.d, d = e % g.d;
        typename Wide<T>::Sum sum = 0;
        for (int row = lane; row < g.s; row += WARP) sum += (typename Wide<T>::Sum)p[h * g.s + row] * x.at(row, d);
        sum = lanes_sum<WARP>(sum);
        if (lane == 0) out[(int64_t)residue * g.h * g.d + e] = from_float<T>((float)(factor * sum));
    }
}

/* Where a block has what it keeps of each key and head, [H][S] floats: the first `kept` of these arrays in shared
 * memory in front of all else, the others in memory, where there are too many sequences (fine-tuning: 5120). */
struct GlobalScores {
    float *room; /* [residue][array] of those in memory */
    int arrays, kept;
    bool staged; /* keys and values in shared memory, too */
    __device__ __forceinline__ float *array(const Global &g, float *shared, int n) const
    {
        int64_t size = (int64_t)g.h * g.s;
        return n < kept ? shared + n * size : room + ((int64_t)blockIdx.x * (arrays - kept) + n - kept) * size;
    }
};

template <typename T>
__global__ void __launch_bounds__(GLOBAL_THREADS)
    global_attention_kernel(Global g, GlobalScores scores, const T *q, const T *k, const T *v, const float *mask, T *o)
{
    stage_wait();
    extern __shared__ float shared[];
    float *p = scores.array(g, shared, 0), *query = shared + scores.kept * g.h * g.s;
    bool staged = scores.staged;
    T *rows = staged ? (T *)(query + g.h * g.d) : NULL;
    int residue = blockIdx.x;
    GlobalRows<T> keys = global_rows(g, k, residue, rows);
    GlobalRows<T> values = global_rows(g, v, residue, staged ? rows + g.s * g.d : rows);
    for (int e = threadIdx.x; e < g.h * g.d; e += blockDim.x) query[e] = to_float(q[(int64_t)residue * g.h * g.d + e]);
    __syncthreads();
    global_probabilities(g, query, keys, mask, residue, p);
    global_weighted(g, p, values, residue, 1.0f, o);
}

/* dv = p^T do, dp = do v^T, ds = p (dp - sum p dp), dq = scale ds k, dk = scale ds^T q */
template <typename T>
__global__ void __launch_bounds__(GLOBAL_THREADS)
    global_attention_bwd_kernel(Global g, GlobalScores scores, const T *go, const T *q, const T *k, const T *v,
                                const float *mask, T *dq, T *dk, T *dv)
{
    stage_wait();
    extern __shared__ float shared[];
    float *p = scores.array(g, shared, 0), *ds = scores.array(g, shared, 1);
    float *query = shared + scores.kept * g.h * g.s, *grad = query + g.h * g.d;
    bool staged = scores.staged;
    T *rows = staged ? (T *)(grad + g.h * g.d) : NULL;
    int residue = blockIdx.x, lane = threadIdx.x % WARP;
    GlobalRows<T> keys = global_rows(g, k, residue, rows);
    GlobalRows<T> values = global_rows(g, v, residue, staged ? rows + g.s * g.d : rows);
    for (int e = threadIdx.x; e < g.h * g.d; e += blockDim.x) {
        query[e] = to_float(q[(int64_t)residue * g.h * g.d + e]);
        grad[e] = to_float(go[(int64_t)residue * g.h * g.d + e]);
    }
    __syncthreads();
    global_probabilities(g, query, keys, mask, residue, p);
    for (int row = threadIdx.x; row < g.s; row += blockDim.x) {
        int64_t at = ((int64_t)row * g.r + residue) * g.d;
        for (int h = 0; h < g.h; h++) {
            float sum = 0;
            for (int d = 0; d < g.d; d++) sum += grad[h * g.d + d] * values.at(row, d);
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
        typename Wide<T>::Sum sum = 0;
        for (int row = lane; row < g.s; row += WARP) sum += (typename Wide<T>::Sum)p[h * g.s + row] * ds[h * g.s + row];
        sum = lanes_sum<WARP>(sum);
        for (int row = lane; row < g.s; row += WARP)
            ds[h * g.s + row] = (float)(p[h * g.s + row] * (ds[h * g.s + row] - sum));
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
    global_weighted(g, ds, keys, residue, g.scale, dq);
}

/* As much in shared memory as there is room for: scores, then keys and values. *shared_out: its bytes. */
static GlobalScores global_scores(const Global &g, DType type, int arrays, size_t *shared_out)
{
    enum { MOST = 227 * 1024, MOST_STAGED = 200 * 1024 };
    GlobalScores scores = {NULL, arrays, 0, false};
    size_t array = (size_t)g.h * (size_t)g.s * sizeof(float), rows = (size_t)2 * g.s * g.d * dtype_size(type);
    size_t shared = (size_t)arrays * g.h * g.d * sizeof(float); /* queries; gradients of what they get */
    for (; scores.kept < arrays && shared + array <= MOST; shared += array) scores.kept++;
    scores.staged = scores.kept == arrays && shared + rows <= MOST_STAGED;
    *shared_out = shared + (scores.staged ? rows : 0);
    return scores;
}

static size_t global_room(const Tensor *k, const Op *op, int arrays)
{
    size_t shared;
    Global g = global_make(k, &op->attr);
    GlobalScores scores = global_scores(g, k->dtype, arrays, &shared);
    return (size_t)(arrays - scores.kept) * (size_t)g.r * (size_t)g.h * (size_t)g.s * sizeof(float);
}

enum { FORWARD_ARRAYS = 1 /* p */, BACKWARD_ARRAYS = 2 /* p, ds */ };

static Status global_attention(CudaContext *ctx, const OpCall *call)
{
    size_t shared;
    Global g = global_make(call->in_tensor[1], &call->op->attr);
    GlobalScores scores = global_scores(g, call->in_tensor[1]->dtype, FORWARD_ARRAYS, &shared);
    scores.room = (float *)call->scratch;
    if (g.r == 0) return OK;
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        CUDA_TRY(
            cudaFuncSetAttribute(global_attention_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
        launch(global_attention_kernel<T>, g.r, GLOBAL_THREADS, shared, ctx->stream, g, scores, (const T *)call->in[0],
               (const T *)call->in[1], (const T *)call->in[2], (const float *)call->in[3], (T *)call->out[0]);
    });
    return cuda_launched("global_attention_kernel");
}

static size_t global_attention_scratch(const OpCall *call)
{
    return global_room(call->in_tensor[1], call->op, FORWARD_ARRAYS);
}

static Status global_attention_bwd(CudaContext *ctx, const OpCall *call)
{
    size_t shared;
    Global g = global_make(call->in_tensor[2], &call->op->attr);
    GlobalScores scores = global_scores(g, call->in_tensor[2]->dtype, BACKWARD_ARRAYS, &shared);
    scores.room = (float *)call->scratch;
    if (g.r == 0) return OK;
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        CUDA_TRY(cudaFuncSetAttribute(global_attention_bwd_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared));
        launch(global_attention_bwd_kernel<T>, g.r, GLOBAL_THREADS, shared, ctx->stream, g, scores,
               (const T *)call->in[0], (const T *)call->in[1], (const T *)call->in[2], (const T *)call->in[3],
               (const float *)call->in[4], (T *)call->out[0], (T *)call->out[1], (T *)call->out[2]);
    });
    return cuda_launched("global_attention_bwd_kernel");
}

static size_t global_attention_bwd_scratch(const OpCall *call)
{
    return global_room(call->in_tensor[2], call->op, BACKWARD_ARRAYS);
}

const CudaEntry cuda_global_attention[] = {
    {OP_MASKED_MEAN, masked_mean, NULL},
    {OP_MASKED_MEAN_BWD, masked_mean_bwd, masked_mean_bwd_scratch},
    {OP_GLOBAL_ATTENTION, global_attention, global_attention_scratch},
    {OP_GLOBAL_ATTENTION_BWD, global_attention_bwd, global_attention_bwd_scratch},
    {OP_COUNT, NULL, NULL},
};
