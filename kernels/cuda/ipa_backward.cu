/* Gradients of the attention of invariant points: one kernel over queries, one over keys. */
#include "kernels/cuda/ipa.cuh"

enum { BACKWARD_OWN = 2 }; /* rows of a thread in sums: three blocks fit a multiprocessor */

/* ds[H,N,N], square[H,N]: scratch */
struct IpaBackward {
    const float *q, *kv, *qp, *kvp, *a, *w, *da, *d, *dp;
    float *dq, *dkv, *dqp, *dkvp, *db, *dw, *ds;
    double *square;
};

/* Those at first, first + WARP, ..., all on their way at once; zero beyond the row */
__device__ __forceinline__ void weights_load(const IpaSizes &s, const float *row, bool live, int first, float (&a)[RUN])
{
#pragma unroll
    for (int k = 0; k < RUN; k++) a[k] = live && first + k * WARP < s.n ? row[first + k * WARP] : 0.0f;
}

/* sum_j a_j da_j over a warp, and a (da - sum). In f32, as conversions to double cost more than what is behind them,
 * with what rounding takes from products and sums added up beside: sum and rest are about as good as a double. */
template <typename Sum> struct ScoreSum {
    Sum sum = 0, rest = 0;

    __device__ __forceinline__ void add(float a, float da)
    {
        if (sizeof(Sum) > sizeof(float)) {
            sum += (Sum)a * (Sum)da;
            return;
        }
        float product = __fmul_rn(a, da), before = (float)sum, after = __fadd_rn(before, product);
        float part = after - before;
        rest += (Sum)(fmaf(a, da, -product) + ((before - (after - part)) + (product - part)));
        sum = (Sum)after;
    }
    __device__ __forceinline__ void join()
    {
        double all = lanes_sum<WARP>((double)sum + (double)rest);
        sum = (Sum)all, rest = (Sum)(all - (double)sum);
    }
    __device__ __forceinline__ float gradient(float a, float da) const
    {
        return (float)((Sum)a * (((Sum)da - sum) - rest));
    }
};

/* The warp's row of gradients of weights becomes that of scores: ds = a (da - sum_j a da), zero from n on. `a` holds
 * the weights of a row that fits. */
template <typename Sum>
__device__ __forceinline__ void score_gradient_row(const IpaSizes &s, const IpaBackward &x, int64_t at, bool live,
                                                   float *row, float (&a)[RUN])
{
    int lane = threadIdx.x % WARP, end = s.pitch - 4;
    bool fits = end <= RUN * WARP;
    ScoreSum<Sum> sum;
    for (int first = lane; first < end; first += RUN * WARP) {
        if (!fits) weights_load(s, x.a + at, live, first, a);
#pragma unroll
        for (int k = 0; k < RUN; k++)
            if (first + k * WARP < end) sum.add(a[k], row[first + k * WARP]);
    }
    sum.join();
    for (int first = lane; first < end; first += RUN * WARP) {
        if (!fits) weights_load(s, x.a + at, live, first, a);
#pragma unroll
        for (int k = 0; k < RUN; k++) {
            int j = first + k * WARP;
            if (j >= end) break;
            float ds = sum.gradient(a[k], row[j]);
            row[j] = ds;
            if (live && j < s.n) x.ds[at + j] = ds, x.db[at + j] = s.bias_scale * ds;
        }
    }
}

/* The gradient of a softmax's logits sums to zero over the keys, so the sums over it cancel: short runs in Sum, their
 * sums in double. STAGED: values, then keys come through shared memory, all on their way at once. */
template <typename Sum, int V, bool STAGED>
__global__ void __launch_bounds__(THREADS, 3) ipa_query_bwd_kernel(IpaSizes s, IpaBackward x)
{
    stage_wait();
    stage_release();
    extern __shared__ double2 shared_room[];
    auto *room = (IpaSums<double, BACKWARD_OWN> *)shared_room;
    int h = blockIdx.y, i0 = blockIdx.x * ROWS, width = s.channels + s.value_span, warp = threadIdx.x / WARP;
    float *weight = (float *)(room + 1), *own = weight + ROWS * s.pitch, *own_points = own + ROWS * width;
    float *staged = own_points + ROWS * s.span;
    IpaRows queries = query_rows(s, x.q, x.qp, h), values = value_rows(s, x.kv, x.kvp, h);
    IpaRows keys = key_rows(s, x.kv, x.kvp, h);
    if (STAGED) values = rows_stage(s, values, staged);
    for (int j = threadIdx.x; x.da && j < s.pitch - 4; j += THREADS) pairs_load(s, x.da, h, i0, j, weight);
    own_load(s, result_rows(s, x.d, x.dp, h), i0, own);
    own_load(s, {{{nullptr, 0, 0}, queries.part[1]}}, i0, own_points);
    copy_wait<0>();
    __syncthreads();
    for (int j = threadIdx.x; j < s.pitch - 4; j += THREADS) {
        Sum dot[ROWS] = {};
        int key = min(j, s.n - 1);
        own_products<Sum, V, false>(values.part[0], key, own, width, dot);
        own_products<Sum, V, false>(values.part[1], key, own + s.channels, width, dot);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float *at = weight + r * s.pitch + j;
            *at = (float)(dot[r] + (x.da ? (Sum)*at : (Sum)0));
        }
    }
    bool live = i0 + warp < s.n;
    int64_t at = ((int64_t)h * s.n + i0 + warp) * s.n;
    float a[RUN];
    weights_load(s, x.a + at, live, threadIdx.x % WARP, a);
    __syncthreads();
    if (STAGED) keys = rows_stage(s, keys, staged);
    score_gradient_row<Sum>(s, x, at, live, weight + warp * s.pitch, a);
    double of_points = 2 * (double)softplusf(x.w[h]) * (double)s.point_scale;
    copy_wait<0>();
    __syncthreads();
    auto out = [&](int row, bool points, int c, double sum) {
        if (points)
            x.dqp[(int64_t)row * s.point_step + h * s.span + c] = (float)(sum * of_points);
        else
            x.dq[(int64_t)row * s.step + h * s.channels + c] = (float)(sum * (double)s.scalar_scale);
    };
    ipa_sums<Sum, double, V, BACKWARD_OWN, true>(s, weight, keys, own_points, s.span, room, i0,
                                                 x.square + (int64_t)h * s.n, out);
}

/* Keys j0.. of [n, n]: to[ROWS][pitch] over the queries, zero from n on */
__device__ __forceinline__ void columns_load(const IpaSizes &s, const float *from, int j0, float *to)
{
    for (int e = threadIdx.x; e < ROWS * (s.pitch - 4); e += THREADS) {
        int r = e % ROWS, i = e / ROWS;
        bool live = i < s.n && j0 + r < s.n;
        copy4_async(shared_address(to + r * s.pitch + i), live ? from + (int64_t)i * s.n + j0 + r : from, live);
    }
    copy_commit();
}

/* dw[h] = point_scale sigmoid(w) sum_i square, as softplus' is the sigmoid; by a warp */
__device__ __forceinline__ void head_weight_bwd(const IpaSizes &s, const IpaBackward &x, int h)
{
    double sum = 0;
    for (int i = threadIdx.x; i < s.n; i += WARP) sum += x.square[(int64_t)h * s.n + i];
    sum = lanes_sum<WARP>(sum);
    if (threadIdx.x == 0) x.dw[h] = (float)(sum * (double)s.point_scale / (1 + exp(-(double)x.w[h])));
}

/* What the sums over values need of the room of those over keys: the rest is free for what they stage. */
template <typename Sum> static size_t key_bwd_room(const IpaSizes &s, bool staged)
{
    size_t keys = sizeof(IpaSums<double, BACKWARD_OWN>), values = sizeof(IpaSums<Sum, BACKWARD_OWN>);
    if (staged) keys += (size_t)s.n * (size_t)staged_pitch(s.channels + s.span) * sizeof(float);
    if (staged) values += (size_t)s.n * (size_t)staged_pitch(s.channels + s.value_span) * sizeof(float);
    return keys > values ? keys : values;
}

/* STAGED: queries, then what comes back for values come through shared memory, behind the room of their sums. */
template <typename Sum, int V, bool STAGED>
__global__ void __launch_bounds__(THREADS, 3) ipa_key_bwd_kernel(IpaSizes s, IpaBackward x)
{
    stage_wait();
    stage_release();
    extern __shared__ double2 shared_room[];
    float *weight = (float *)shared_room, *share = weight + ROWS * s.pitch, *own_points = share + ROWS * s.pitch;
    auto *room = (IpaSums<double, BACKWARD_OWN> *)(own_points + ROWS * s.span);
    auto *value_room = (IpaSums<Sum, BACKWARD_OWN> *)room;
    int h = blockIdx.y, j0 = blockIdx.x * ROWS;
    int64_t pairs = (int64_t)s.n * s.n, point_at = (int64_t)h * (s.span + s.value_span);
    float head_weight = x.w[h];
    IpaRows queries = query_rows(s, x.q, x.qp, h), results = result_rows(s, x.d, x.dp, h);
    columns_load(s, x.ds + h * pairs, j0, weight);
    columns_load(s, x.a + h * pairs, j0, share);
    if (STAGED) queries = rows_stage(s, queries, (float *)(room + 1));
    own_load(s, {{{nullptr, 0, 0}, key_rows(s, x.kv, x.kvp, h).part[1]}}, j0, own_points);
    copy_wait<0>();
    __syncthreads();
    double of_points = 2 * (double)softplusf(head_weight) * (double)s.point_scale;
    auto to_keys = [&](int row, bool points, int c, double sum) {
        if (points)
            x.dkvp[(int64_t)row * s.kv_point_step + point_at + c] = (float)(sum * of_points);
        else
            x.dkv[(int64_t)row * s.kv_step + 2 * h * s.channels + c] = (float)(sum * (double)s.scalar_scale);
    };
    ipa_sums<Sum, double, V, BACKWARD_OWN, true>(s, weight, queries, own_points, s.span, room, j0, nullptr, to_keys);
    if (STAGED) {
        __syncthreads();
        results = rows_stage(s, results, (float *)(value_room + 1));
        copy_wait<0>();
        __syncthreads();
    }
    auto to_values = [&](int row, bool points, int c, Sum sum) {
        if (points)
            x.dkvp[(int64_t)row * s.kv_point_step + point_at + s.span + c] = (float)sum;
        else
            x.dkv[(int64_t)row * s.kv_step + (2 * h + 1) * s.channels + c] = (float)sum;
    };
    ipa_sums<Sum, Sum, V, BACKWARD_OWN, false>(s, share, results, nullptr, 0, value_room, j0, nullptr, to_values);
    if (blockIdx.x == 0 && threadIdx.x < WARP) head_weight_bwd(s, x, h);
}

template <typename Sum, int V, bool STAGED>
static Status ipa_backward_launch(const IpaSizes &s, const IpaBackward &x, size_t query_shared, cudaStream_t stream)
{
    size_t key_shared = ipa_shared(key_bwd_room<Sum>(s, STAGED), 2 * s.pitch + s.span);
    TRY(ipa_launch(ipa_query_bwd_kernel<Sum, V, STAGED>, s, x, query_shared, stream));
    return ipa_launch(ipa_key_bwd_kernel<Sum, V, STAGED>, s, x, key_shared, stream);
}

Status ipa_attention_bwd(CudaContext *context, const OpCall *call)
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
    int wide = s.span > s.value_span ? s.span : s.value_span;
    size_t shared = ipa_shared(sizeof(IpaSums<double, BACKWARD_OWN>), s.pitch + s.channels + s.value_span + s.span);
    size_t staged;
    if (ipa_is_few(s)) return ipa_backward_launch<double, 1, false>(s, x, shared, context->stream);
    if (!ipa_packs(s, at, 6)) return ipa_backward_launch<float, 1, false>(s, x, shared, context->stream);
    if (ipa_stages(s, shared, s.channels + wide, &staged))
        return ipa_backward_launch<float, 4, true>(s, x, shared + staged, context->stream);
    return ipa_backward_launch<float, 4, false>(s, x, shared, context->stream);
}

size_t ipa_attention_bwd_scratch(const OpCall *call)
{
    int64_t rows = call->in_tensor[4]->dim[0] * call->in_tensor[4]->dim[1];
    return (size_t)rows * sizeof(double) + (size_t)tensor_count(call->in_tensor[4]) * sizeof(float);
}
