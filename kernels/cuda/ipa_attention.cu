/* Attention of invariant points in f32 (AlphaFold2 supplement, algorithm 22, lines 7, 8 and 10), forward in one kernel,
 * backward in one over queries and one over keys. A block has ROWS residues of one head, their weights (or gradients of
 * scores) towards all others in shared memory. */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, ROWS = THREADS / WARP, HALF = ROWS / 2, RUN = 8 };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

/* Steps lead from a residue to the next; keys come before values in each head. */
struct IpaSizes {
    int n, heads, channels, span, value_span; /* of a head: coordinates of its points of queries and of values */
    int step, kv_step, point_step, kv_point_step;
    int pitch; /* of weights in shared memory: n up to whole runs, no conflicts */
    float scalar_scale, bias_scale, point_scale, inf; /* sqrt(1/3C), sqrt(1/3), -sqrt(1/54P) */
};

/* What a head has of all residues: channels, then coordinates. NULL: zeros. */
struct IpaPart {
    const float *at;
    int step, width;
};
struct IpaRows {
    IpaPart part[2];
};

static IpaSizes sizes_of(const OpCall *call)
{
    const Tensor *q = call->in_tensor[0], *points = call->in_tensor[2], *both = call->in_tensor[3];
    IpaSizes s;
    s.n = (int)q->dim[0];
    s.heads = (int)call->op->attr.i[0];
    s.step = (int)q->dim[1], s.kv_step = 2 * s.step;
    s.point_step = (int)(3 * points->dim[1]), s.kv_point_step = (int)(3 * both->dim[1]);
    s.channels = s.step / s.heads;
    s.span = s.point_step / s.heads;
    s.value_span = s.kv_point_step / s.heads - s.span;
    s.pitch = (s.n + WARP - 1) / WARP * WARP + 4;
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

/* Of head h: queries, keys, values and what comes back for values. */
__device__ __forceinline__ IpaRows query_rows(const IpaSizes &s, const float *q, const float *qp, int h)
{
    return {{{q + h * s.channels, s.step, s.channels}, {qp + h * s.span, s.point_step, s.span}}};
}
__device__ __forceinline__ IpaRows key_rows(const IpaSizes &s, const float *kv, const float *kvp, int h)
{
    return {{{kv + 2 * h * s.channels, s.kv_step, s.channels},
             {kvp + h * (s.span + s.value_span), s.kv_point_step, s.span}}};
}
__device__ __forceinline__ IpaRows value_rows(const IpaSizes &s, const float *kv, const float *kvp, int h)
{
    return {{{kv + (2 * h + 1) * s.channels, s.kv_step, s.channels},
             {kvp + h * (s.span + s.value_span) + s.span, s.kv_point_step, s.value_span}}};
}
__device__ __forceinline__ IpaRows result_rows(const IpaSizes &s, const float *o, const float *op, int h)
{
    return {{{o ? o + h * s.channels : nullptr, s.step, s.channels},
             {op ? op + h * s.value_span : nullptr, s.heads * s.value_span, s.value_span}}};
}

/* own[ROWS][width]: residues row0.. ; zeros beyond the last */
__device__ __forceinline__ void own_load(const IpaSizes &s, const IpaRows &rows, int row0, float *own)
{
    int first = rows.part[0].width, width = first + rows.part[1].width;
    for (int e = threadIdx.x; e < ROWS * width; e += THREADS) {
        int r = e / width, c = e % width;
        const IpaPart part = c >= first ? rows.part[1] : rows.part[0];
        bool live = row0 + r < s.n && part.at;
        own[e] = live ? part.at[(int64_t)(row0 + r) * part.step + (c >= first ? c - first : c)] : 0.0f;
    }
}

/* dot[r] (or sums of squared differences, DISTANCE) of the own rows, `width` apart, and one residue's */
template <typename Sum, int V, bool DISTANCE>
__device__ __forceinline__ void own_products(const IpaPart &part, int residue, const float *own, int width,
                                             Sum (&dot)[ROWS])
{
    if (!part.at) return;
    const float *at = part.at + (int64_t)residue * part.step;
    for (int c = 0; c < part.width; c += V) {
        float x[V], y[V];
        load_floats<V>(at + c, x);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            load_floats<V>(own + r * width + c, y);
#pragma unroll
            for (int l = 0; l < V; l++) {
                Sum a = DISTANCE ? (Sum)y[l] - x[l] : (Sum)y[l];
                dot[r] += a * (DISTANCE ? a : (Sum)x[l]);
            }
        }
    }
}

/* Sums over all residues o: out(r, c) = sum_o weight[r][o] y, y = x_o[c] of the first part and own[r][c] - x_o[c], as
 * DIFFERENCE says, of the second; square(r) = sum weight y^2 of the second. A thread has V columns of half the rows and
 * some of the residues, in runs of RUN in Run; runs and threads are added in turn in Total. */
template <typename Total> struct IpaSums {
    Total result[HALF * 4][THREADS], square[HALF][THREADS];
};

template <typename Run, typename Total, int V, bool DIFFERENCE>
__device__ __forceinline__ void ipa_partial(const IpaSizes &s, const float *weight, const IpaPart &part, bool points,
                                            const float *mine_at, int width, int c, int first, int by,
                                            Total (&sum)[HALF][V], Total (&square)[HALF])
{
    float mine[HALF][V] = {};
    if (DIFFERENCE && points)
#pragma unroll
        for (int r = 0; r < HALF; r++) load_floats<V>(mine_at + r * width, mine[r]);
    float sign = DIFFERENCE && points ? -1.0f : 1.0f;
    for (int run = first; run * RUN < s.n; run += by) {
        Run brief[HALF][V] = {}, brief_square[HALF] = {};
#pragma unroll
        for (int quad = 0; quad < RUN; quad += 4) {
            float w[HALF][4];
#pragma unroll
            for (int r = 0; r < HALF; r++) load_floats<4>(weight + r * s.pitch + run * RUN + quad, w[r]);
#pragma unroll
            for (int o = 0; o < 4; o++) {
                int residue = min(run * RUN + quad + o, s.n - 1); /* weights beyond are zero */
                float x[V];
                load_floats<V>(part.at + (int64_t)residue * part.step + c, x);
#pragma unroll
                for (int r = 0; r < HALF; r++)
#pragma unroll
                    for (int l = 0; l < V; l++) {
                        Run y = DIFFERENCE ? (Run)mine[r][l] + sign * x[l] : (Run)x[l], t = w[r][o] * y;
                        brief[r][l] += t;
                        if (DIFFERENCE) brief_square[r] += t * y;
                    }
            }
        }
#pragma unroll
        for (int r = 0; r < HALF; r++) {
#pragma unroll
            for (int l = 0; l < V; l++) sum[r][l] += (Total)brief[r][l];
            if (DIFFERENCE && points) square[r] += (Total)brief_square[r];
        }
    }
}

/* own_points[ROWS][span]; out(row, second part, column, sum); square_out[row] where wanted */
template <typename Run, typename Total, int V, bool DIFFERENCE, typename Out>
__device__ __forceinline__ void ipa_sums(const IpaSizes &s, const float *weight, const IpaRows &rows,
                                         const float *own_points, int own_width, IpaSums<Total> *room, int row0,
                                         double *square_out, const Out &out)
{
    int first = rows.part[0].width / V, slots = first + rows.part[1].width / V, thread = threadIdx.x;
    double squares = 0;
    for (int base = 0; base < 2 * slots; base += THREADS) {
        int items = min(2 * slots - base, (int)THREADS), parts = THREADS / items;
        int slot = (base + thread % items) % slots, half = (base + thread % items) / slots * HALF;
        bool points = slot >= first;
        const IpaPart part = points ? rows.part[1] : rows.part[0];
        int c = (points ? slot - first : slot) * V;
        Total sum[HALF][V] = {}, square[HALF] = {};
        if (thread < items * parts && part.at)
            ipa_partial<Run, Total, V, DIFFERENCE>(s, weight + half * s.pitch, part, points,
                                                   own_points + half * own_width + c, own_width, c, thread / items,
                                                   parts, sum, square);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < HALF; r++) {
#pragma unroll
            for (int l = 0; l < V; l++) room->result[r * V + l][thread] = sum[r][l];
            if (DIFFERENCE) room->square[r][thread] = square[r];
        }
        __syncthreads();
        for (int e = thread; e < items * HALF * V; e += THREADS) {
            int item = base + e % items, r = e / items / V, l = e / items % V;
            Total total = room->result[e / items][e % items];
            for (int k = 1; k < parts; k++) total += room->result[e / items][k * items + e % items];
            bool second = item % slots >= first;
            int row = row0 + item / slots * HALF + r;
            if (row < s.n) out(row, second, (item % slots - (second ? first : 0)) * V + l, total);
        }
        /* a warp per row */
        for (int k = thread % WARP; DIFFERENCE && square_out && k < items * parts; k += WARP)
            if ((base + k % items) / slots == thread / WARP / HALF)
                squares += (double)room->square[thread / WARP % HALF][k];
    }
    if (!DIFFERENCE || !square_out) return;
    squares = lanes_sum<WARP>(squares);
    if (thread % WARP == 0 && row0 + thread / WARP < s.n) square_out[row0 + thread / WARP] = squares;
}

struct IpaForward {
    const float *q, *kv, *qp, *kvp, *bias, *w, *mask;
    float *a, *o, *op;
};

/* The warp's row of scores becomes its softmax, zero from n on. */
__device__ __forceinline__ void softmax_row(const IpaSizes &s, float *row, float *a)
{
    int lane = threadIdx.x % WARP, end = s.pitch - 4;
    float peak = -INFINITY;
    for (int j = lane; j < end; j += WARP) peak = fmaxf(peak, row[j]);
    peak = lanes_max<WARP>(peak);
    double sum = 0;
    for (int j = lane; j < end; j += WARP) sum += (double)(row[j] = expf(row[j] - peak));
    double share = 1 / lanes_sum<WARP>(sum);
    for (int j = lane; j < end; j += WARP) {
        row[j] = (float)((double)row[j] * share);
        if (a && j < s.n) a[j] = row[j];
    }
}

template <typename Sum, int V>
__global__ void __launch_bounds__(THREADS, 3) ipa_attention_kernel(IpaSizes s, IpaForward x)
{
    stage_wait();
    extern __shared__ double2 shared_room[];
    IpaSums<Sum> *room = (IpaSums<Sum> *)shared_room;
    float *weight = (float *)(room + 1), *own = weight + ROWS * s.pitch;
    int h = blockIdx.y, i0 = blockIdx.x * ROWS, width = s.channels + s.span, warp = threadIdx.x / WARP;
    own_load(s, query_rows(s, x.q, x.qp, h), i0, own);
    __syncthreads();
    IpaRows keys = key_rows(s, x.kv, x.kvp, h);
    Sum of_points = softplusf(x.w[h]) * s.point_scale;
    for (int j = threadIdx.x; j < s.pitch - 4; j += THREADS) {
        Sum dot[ROWS] = {}, square[ROWS] = {};
        int key = min(j, s.n - 1);
        own_products<Sum, V, false>(keys.part[0], key, own, width, dot);
        own_products<Sum, V, true>(keys.part[1], key, own + s.channels, width, square);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int i = min(i0 + r, s.n - 1);
            Sum score = dot[r] * s.scalar_scale + (Sum)s.bias_scale * x.bias[((int64_t)h * s.n + i) * s.n + key] +
                        of_points * square[r] + s.inf * (x.mask[i] * x.mask[key] - 1);
            weight[r * s.pitch + j] = j < s.n ? (float)score : -INFINITY;
        }
    }
    __syncthreads();
    softmax_row(s, weight + warp * s.pitch, i0 + warp < s.n ? x.a + ((int64_t)h * s.n + i0 + warp) * s.n : nullptr);
    __syncthreads();
    auto out = [&](int row, bool points, int c, Sum sum) {
        if (points)
            x.op[((int64_t)row * s.heads + h) * s.value_span + c] = (float)sum;
        else
            x.o[(int64_t)row * s.step + h * s.channels + c] = (float)sum;
    };
    ipa_sums<Sum, Sum, V, false>(s, weight, value_rows(s, x.kv, x.kvp, h), nullptr, 0, room, i0, nullptr, out);
}

/* ds[H,N,N], square[H,N]: scratch */
struct IpaBackward {
    const float *q, *kv, *qp, *kvp, *a, *w, *da, *d, *dp;
    float *dq, *dkv, *dqp, *dkvp, *db, *dw, *ds;
    double *square;
};

/* The warp's row of gradients of weights becomes that of scores: ds = a (da - sum_j a da), zero from n on. */
__device__ __forceinline__ void score_gradient_row(const IpaSizes &s, const IpaBackward &x, int64_t at, bool live,
                                                   float *row)
{
    int lane = threadIdx.x % WARP;
    double sum = 0;
    for (int j = lane; live && j < s.n; j += WARP) sum += (double)x.a[at + j] * (double)row[j];
    sum = lanes_sum<WARP>(sum);
    for (int j = lane; j < s.pitch - 4; j += WARP) {
        bool here = live && j < s.n;
        float ds = here ? (float)((double)x.a[at + j] * ((double)row[j] - sum)) : 0.0f;
        row[j] = ds;
        if (here) x.ds[at + j] = ds, x.db[at + j] = s.bias_scale * ds;
    }
}

/* The gradient of a softmax's logits sums to zero over the keys, so the sums over it cancel: short runs in Sum, their
 * sums in double. */
template <typename Sum, int V>
__global__ void __launch_bounds__(THREADS, 2) ipa_query_bwd_kernel(IpaSizes s, IpaBackward x)
{
    stage_wait();
    extern __shared__ double2 shared_room[];
    IpaSums<double> *room = (IpaSums<double> *)shared_room;
    int h = blockIdx.y, i0 = blockIdx.x * ROWS, width = s.channels + s.value_span, warp = threadIdx.x / WARP;
    float *weight = (float *)(room + 1), *own = weight + ROWS * s.pitch, *own_points = own + ROWS * width;
    IpaRows queries = query_rows(s, x.q, x.qp, h), values = value_rows(s, x.kv, x.kvp, h);
    own_load(s, result_rows(s, x.d, x.dp, h), i0, own);
    own_load(s, {{{nullptr, 0, 0}, queries.part[1]}}, i0, own_points);
    __syncthreads();
    for (int j = threadIdx.x; j < s.pitch - 4; j += THREADS) {
        Sum dot[ROWS] = {};
        int key = min(j, s.n - 1);
        own_products<Sum, V, false>(values.part[0], key, own, width, dot);
        own_products<Sum, V, false>(values.part[1], key, own + s.channels, width, dot);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int64_t pair = ((int64_t)h * s.n + min(i0 + r, s.n - 1)) * s.n + key;
            weight[r * s.pitch + j] = (float)(dot[r] + (x.da ? (Sum)x.da[pair] : (Sum)0));
        }
    }
    __syncthreads();
    bool live = i0 + warp < s.n;
    score_gradient_row(s, x, ((int64_t)h * s.n + i0 + warp) * s.n, live, weight + warp * s.pitch);
    __syncthreads();
    double of_points = 2 * (double)softplusf(x.w[h]) * (double)s.point_scale;
    auto out = [&](int row, bool points, int c, double sum) {
        if (points)
            x.dqp[(int64_t)row * s.point_step + h * s.span + c] = (float)(sum * of_points);
        else
            x.dq[(int64_t)row * s.step + h * s.channels + c] = (float)(sum * (double)s.scalar_scale);
    };
    ipa_sums<Sum, double, V, true>(s, weight, key_rows(s, x.kv, x.kvp, h), own_points, s.span, room, i0,
                                   x.square + (int64_t)h * s.n, out);
}

/* Keys j0.. of [n, n]: to[ROWS][pitch] over the queries, zero from n on */
__device__ __forceinline__ void columns_load(const IpaSizes &s, const float *from, int j0, float *to)
{
    for (int e = threadIdx.x; e < ROWS * (s.pitch - 4); e += THREADS) {
        int r = e % ROWS, i = e / ROWS;
        to[r * s.pitch + i] = i < s.n && j0 + r < s.n ? from[(int64_t)i * s.n + j0 + r] : 0.0f;
    }
}

/* dw[h] = point_scale sigmoid(w) sum_i square, as softplus' is the sigmoid; by a warp */
__device__ __forceinline__ void head_weight_bwd(const IpaSizes &s, const IpaBackward &x, int h)
{
    double sum = 0;
    for (int i = threadIdx.x; i < s.n; i += WARP) sum += x.square[(int64_t)h * s.n + i];
    sum = lanes_sum<WARP>(sum);
    if (threadIdx.x == 0) x.dw[h] = (float)(sum * (double)s.point_scale / (1 + exp(-(double)x.w[h])));
}

template <typename Sum, int V>
__global__ void __launch_bounds__(THREADS, 2) ipa_key_bwd_kernel(IpaSizes s, IpaBackward x)
{
    stage_wait();
    extern __shared__ double2 shared_room[];
    IpaSums<double> *room = (IpaSums<double> *)shared_room;
    float *weight = (float *)(room + 1), *share = weight + ROWS * s.pitch, *own_points = share + ROWS * s.pitch;
    int h = blockIdx.y, j0 = blockIdx.x * ROWS;
    int64_t pairs = (int64_t)s.n * s.n, point_at = (int64_t)h * (s.span + s.value_span);
    own_load(s, {{{nullptr, 0, 0}, key_rows(s, x.kv, x.kvp, h).part[1]}}, j0, own_points);
    columns_load(s, x.ds + h * pairs, j0, weight);
    columns_load(s, x.a + h * pairs, j0, share);
    __syncthreads();
    double of_points = 2 * (double)softplusf(x.w[h]) * (double)s.point_scale;
    auto to_keys = [&](int row, bool points, int c, double sum) {
        if (points)
            x.dkvp[(int64_t)row * s.kv_point_step + point_at + c] = (float)(sum * of_points);
        else
            x.dkv[(int64_t)row * s.kv_step + 2 * h * s.channels + c] = (float)(sum * (double)s.scalar_scale);
    };
    ipa_sums<Sum, double, V, true>(s, weight, query_rows(s, x.q, x.qp, h), own_points, s.span, room, j0, nullptr,
                                   to_keys);
    auto to_values = [&](int row, bool points, int c, Sum sum) {
        if (points)
            x.dkvp[(int64_t)row * s.kv_point_step + point_at + s.span + c] = (float)sum;
        else
            x.dkv[(int64_t)row * s.kv_step + (2 * h + 1) * s.channels + c] = (float)sum;
    };
    ipa_sums<Sum, Sum, V, false>(s, share, result_rows(s, x.d, x.dp, h), nullptr, 0, (IpaSums<Sum> *)room, j0, nullptr,
                                 to_values);
    if (blockIdx.x == 0 && threadIdx.x < WARP) head_weight_bwd(s, x, h);
}

/* Four numbers at a time: extents of heads, and addresses. */
static bool ipa_packs(const IpaSizes &s, const void *const *at, int count)
{
    bool packs = s.channels % 4 == 0 && s.span % 4 == 0 && s.value_span % 4 == 0;
    for (int k = 0; k < count; k++) packs = packs && aligned16(at[k]);
    return packs;
}

template <typename X>
static Status ipa_launch(void (*kernel)(IpaSizes, X), const IpaSizes &s, const X &x, size_t room, int floats,
                         cudaStream_t stream)
{
    static const size_t MOST = 227 * 1024; /* shared memory of a block of an H100 */
    size_t shared = room + (size_t)ROWS * (size_t)floats * sizeof(float);
    if (shared > MOST)
        return status_fail(ERR_UNSUPPORTED, "attention of invariant points between %d residues needs %zu bytes of %zu",
                           (int)s.n, shared, MOST);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch(kernel, dim3(blocks_for(s.n, ROWS), (unsigned)s.heads), THREADS, shared, stream, s, x);
    return cuda_launched("ipa_attention");
}

static Status ipa_attention(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call);
    IpaForward x = {F32_IN(0), F32_IN(1), F32_IN(2),  F32_IN(3),  F32_IN(4),
                    F32_IN(5), F32_IN(6), F32_OUT(0), F32_OUT(1), F32_OUT(2)};
    int floats = s.pitch + s.channels + s.span;
    if (ipa_is_few(s))
        return ipa_launch(ipa_attention_kernel<double, 1>, s, x, sizeof(IpaSums<double>), floats, context->stream);
    auto *kernel = ipa_packs(s, call->in, 4) ? ipa_attention_kernel<float, 4> : ipa_attention_kernel<float, 1>;
    return ipa_launch(kernel, s, x, sizeof(IpaSums<float>), floats, context->stream);
}

static Status ipa_attention_bwd(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call);
    IpaBackward x = {};
    x.q = F32_IN(0), x.kv = F32_IN(1), x.qp = F32_IN(2), x.kvp = F32_IN(3), x.a = F32_IN(4), x.w = F32_IN(5);
    x.dq = F32_OUT(0), x.dkv = F32_OUT(1), x.dqp = F32_OUT(2), x.dkvp = F32_OUT(3), x.db = F32_OUT(4);
    x.dw = F32_OUT(5);
    if (call_in(call, 6)) x.da = F32_IN(6);
    if (call_in(call, 7)) x.d = F32_IN(7);
    if (call_in(call, 8)) x.dp = F32_IN(8);
    x.square = (double *)call->scratch;
    x.ds = (float *)(x.square + (int64_t)s.heads * s.n);
    const void *at[] = {x.q, x.kv, x.qp, x.kvp, x.d, x.dp};
    bool few = ipa_is_few(s), packs = ipa_packs(s, at, 6);
    auto *queries = few     ? ipa_query_bwd_kernel<double, 1>
                    : packs ? ipa_query_bwd_kernel<float, 4>
                            : ipa_query_bwd_kernel<float, 1>;
    auto *keys = few     ? ipa_key_bwd_kernel<double, 1>
                 : packs ? ipa_key_bwd_kernel<float, 4>
                         : ipa_key_bwd_kernel<float, 1>;
    TRY(ipa_launch(queries, s, x, sizeof(IpaSums<double>), s.pitch + s.channels + s.value_span + s.span,
                   context->stream));
    return ipa_launch(keys, s, x, sizeof(IpaSums<double>), 2 * s.pitch + s.span, context->stream);
}

static size_t ipa_attention_bwd_scratch(const OpCall *call)
{
    int64_t rows = call->in_tensor[4]->dim[0] * call->in_tensor[4]->dim[1];
    return (size_t)rows * sizeof(double) + (size_t)tensor_count(call->in_tensor[4]) * sizeof(float);
}

const CudaEntry cuda_ipa_attention[] = {{OP_IPA_ATTENTION, ipa_attention, NULL},
                                        {OP_IPA_ATTENTION_BWD, ipa_attention_bwd, ipa_attention_bwd_scratch},
                                        {OP_COUNT, NULL, NULL}};
