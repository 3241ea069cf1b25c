/* Attention of invariant points, forward. */
#include "kernels/cuda/ipa.cuh"

enum { FORWARD_OWN = 4 }; /* rows of a thread in sums */

struct IpaForward {
    const float *q, *kv, *qp, *kvp, *bias, *w, *mask;
    float *a, *o, *op;
};

/* The warp's row of scores becomes its softmax, zero from n on. */
template <typename Sum> __device__ __forceinline__ void softmax_row(const IpaSizes &s, float *row, float *a)
{
    int lane = threadIdx.x % WARP, end = s.pitch - 4;
    float peak = -INFINITY;
    for (int j = lane; j < end; j += WARP) peak = fmaxf(peak, row[j]);
    peak = lanes_max<WARP>(peak);
    Sum sum = 0;
    for (int j = lane; j < end; j += WARP) sum += (Sum)(row[j] = expf(row[j] - peak));
    Sum share = 1 / lanes_sum<WARP>(sum);
    for (int j = lane; j < end; j += WARP) {
        row[j] = (float)((Sum)row[j] * share);
        if (a && j < s.n) a[j] = row[j];
    }
}

/* Scores of the block's rows and residue j, whose biases are where they belong. */
template <typename Sum, int V>
__device__ __forceinline__ void scores_of(const IpaSizes &s, const IpaRows &keys, const float *own, int j,
                                          Sum of_points, const float *own_mask, float mask, float *weight)
{
    Sum dot[ROWS] = {}, square[ROWS] = {};
    int key = min(j, s.n - 1), width = s.channels + s.span;
    own_products<Sum, V, false>(keys.part[0], key, own, width, dot);
    own_products<Sum, V, true>(keys.part[1], key, own + s.channels, width, square);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float *at = weight + r * s.pitch + j;
        Sum score = dot[r] * s.scalar_scale + (Sum)s.bias_scale * *at + of_points * square[r] +
                    s.inf * (own_mask[r] * mask - 1);
        *at = j < s.n ? (float)score : -INFINITY;
    }
}

/* STAGED: keys, then values come through shared memory, all on their way at once. */
template <typename Sum, int V, bool STAGED>
__global__ void __launch_bounds__(THREADS, 3) ipa_attention_kernel(IpaSizes s, IpaForward x)
{
    stage_wait();
    stage_release();
    extern __shared__ double2 shared_room[];
    __shared__ float own_mask[ROWS];
    auto *room = (IpaSums<Sum, FORWARD_OWN> *)shared_room;
    int h = blockIdx.y, i0 = blockIdx.x * ROWS, width = s.channels + s.span, warp = threadIdx.x / WARP;
    float *weight = (float *)(room + 1), *own = weight + ROWS * s.pitch, *staged = own + ROWS * width;
    IpaRows keys = key_rows(s, x.kv, x.kvp, h), values = value_rows(s, x.kv, x.kvp, h);
    if (STAGED) keys = rows_stage(s, keys, staged);
    for (int j = threadIdx.x; j < s.pitch - 4; j += THREADS) pairs_load(s, x.bias, h, i0, j, weight);
    if (threadIdx.x < ROWS) own_mask[threadIdx.x] = x.mask[min(i0 + (int)threadIdx.x, s.n - 1)];
    own_load(s, query_rows(s, x.q, x.qp, h), i0, own);
    Sum of_points = softplusf(x.w[h]) * s.point_scale;
    float mask = x.mask[min((int)threadIdx.x, s.n - 1)];
    copy_wait<0>();
    __syncthreads();
    for (int j = threadIdx.x; j < s.pitch - 4; j += THREADS) {
        if (j >= THREADS) mask = x.mask[min(j, s.n - 1)];
        scores_of<Sum, V>(s, keys, own, j, of_points, own_mask, mask, weight);
    }
    __syncthreads();
    if (STAGED) values = rows_stage(s, values, staged);
    softmax_row<Sum>(s, weight + warp * s.pitch,
                     i0 + warp < s.n ? x.a + ((int64_t)h * s.n + i0 + warp) * s.n : nullptr);
    copy_wait<0>();
    __syncthreads();
    auto out = [&](int row, bool points, int c, Sum sum) {
        if (points)
            x.op[((int64_t)row * s.heads + h) * s.value_span + c] = (float)sum;
        else
            x.o[(int64_t)row * s.step + h * s.channels + c] = (float)sum;
    };
    ipa_sums<Sum, Sum, V, FORWARD_OWN, false>(s, weight, values, nullptr, 0, room, i0, nullptr, out);
}

static Status ipa_attention(CudaContext *context, const OpCall *call)
{
    IpaSizes s = sizes_of(call);
    IpaForward x = {F32_IN(0), F32_IN(1), F32_IN(2),  F32_IN(3),  F32_IN(4),
                    F32_IN(5), F32_IN(6), F32_OUT(0), F32_OUT(1), F32_OUT(2)};
    int floats = s.pitch + s.channels + s.span, widest = s.channels + (s.span > s.value_span ? s.span : s.value_span);
    if (ipa_is_few(s))
        return ipa_launch(ipa_attention_kernel<double, 1, false>, s, x,
                          ipa_shared(sizeof(IpaSums<double, FORWARD_OWN>), floats), context->stream);
    size_t shared = ipa_shared(sizeof(IpaSums<float, FORWARD_OWN>), floats), staged;
    if (!ipa_packs(s, call->in, 4))
        return ipa_launch(ipa_attention_kernel<float, 1, false>, s, x, shared, context->stream);
    if (ipa_stages(s, shared, widest, &staged))
        return ipa_launch(ipa_attention_kernel<float, 4, true>, s, x, shared + staged, context->stream);
    return ipa_launch(ipa_attention_kernel<float, 4, false>, s, x, shared, context->stream);
}

const CudaEntry cuda_ipa_attention[] = {{OP_IPA_ATTENTION, ipa_attention, NULL},
                                        {OP_IPA_ATTENTION_BWD, ipa_attention_bwd, ipa_attention_bwd_scratch},
                                        {OP_COUNT, NULL, NULL}};
