/* Fused attention of one query over few keys (the templates of a residue pair): a thread per row and head. */
#include "kernels/cuda/attention.h"

enum { FEW_KEYS = 4, FEW_WIDTH = 16, FEW_THREADS = 128 };

template <typename T>
__global__ void __launch_bounds__(FEW_THREADS) att_few_forward_kernel(Att a, AttOperands<T> x, uint32_t count)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    constexpr int D = FEW_WIDTH;
    uint32_t id = blockIdx.x * FEW_THREADS + threadIdx.x;
    if (id >= count) return;
    int head = id % a.h, row = id / a.h % a.b, group = id / a.h / a.b;
    int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
    const float *mask = a.mask ? a.mask_row(group, row) : NULL;
    float q[D], o[D], p[FEW_KEYS], peak = -INFINITY;
    Sum sum = 0, context[D] = {};
    load_floats<D>(x.q + q_at, q);
#pragma unroll
    for (int j = 0; j < FEW_KEYS; j++) {
        p[j] = -INFINITY;
        if (j >= a.m) continue;
        float k[D];
        Sum s = 0;
        load_floats<D>(x.k + k_at + j * a.pitch, k);
#pragma unroll
        for (int d = 0; d < D; d++) s += (Sum)q[d] * k[d];
        p[j] = (float)(s * a.scale) + (mask ? a.inf * (mask[j] - 1.0f) : 0.0f);
        peak = fmaxf(peak, p[j]);
    }
#pragma unroll
    for (int j = 0; j < FEW_KEYS; j++) {
        sum += p[j] = expf(p[j] - peak);
        if (j >= a.m) continue;
        float v[D];
        load_floats<D>(x.v + k_at + j * a.pitch, v);
#pragma unroll
        for (int d = 0; d < D; d++) context[d] += (Sum)p[j] * v[d];
    }
#pragma unroll
    for (int d = 0; d < D; d++) o[d] = (float)(context[d] / sum);
    if (x.o) store_floats<D>(x.o + q_at, o);
    if (x.lse) x.lse[id] = peak + logf((float)sum); /* [G,B,H] */
    if (!x.gate) return;
    load_floats<D>(x.gate + q_at, q);
#pragma unroll
    for (int d = 0; d < D; d++) o[d] = sigmoidf(q[d]) * to_float(from_float<T>(o[d]));
    store_floats<D>(x.y + q_at, o);
}

/* with p = softmax(s), delta = sum_j p dp: ds = p (dp - delta), dq = scale sum_j ds k, dk = scale ds q, dv = p do */
template <typename T>
__global__ void __launch_bounds__(FEW_THREADS) att_few_backward_kernel(Att a, AttOperands<T> x, uint32_t count)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    constexpr int D = FEW_WIDTH;
    uint32_t id = blockIdx.x * FEW_THREADS + threadIdx.x;
    if (id >= count) return;
    int head = id % a.h, row = id / a.h % a.b, group = id / a.h / a.b;
    int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
    const float *mask = a.mask ? a.mask_row(group, row) : NULL;
    float q[D], go[D], k[FEW_KEYS][D], p[FEW_KEYS], dp[FEW_KEYS], peak = -INFINITY, sum = 0, delta = 0;
    load_floats<D>(x.q + q_at, q);
    load_floats<D>(x.go + q_at, go);
#pragma unroll
    for (int j = 0; j < FEW_KEYS; j++) {
        p[j] = -INFINITY, dp[j] = 0;
        if (j >= a.m) continue;
        float v[D];
        Sum s = 0;
        load_floats<D>(x.k + k_at + j * a.pitch, k[j]);
        load_floats<D>(x.v + k_at + j * a.pitch, v);
#pragma unroll
        for (int d = 0; d < D; d++) s += (Sum)q[d] * k[j][d], dp[j] += go[d] * v[d];
        p[j] = (float)(s * a.scale) + (mask ? a.inf * (mask[j] - 1.0f) : 0.0f);
        peak = fmaxf(peak, p[j]);
    }
#pragma unroll
    for (int j = 0; j < FEW_KEYS; j++) sum += p[j] = expf(p[j] - peak);
#pragma unroll
    for (int j = 0; j < FEW_KEYS; j++) p[j] /= sum, delta += p[j] * dp[j];
    float dq[D] = {};
#pragma unroll
    for (int j = 0; j < FEW_KEYS; j++) {
        if (j >= a.m) continue;
        float ds = p[j] * (dp[j] - delta) * a.scale, dk[D], dv[D];
#pragma unroll
        for (int d = 0; d < D; d++) dq[d] += ds * k[j][d], dk[d] = ds * q[d], dv[d] = p[j] * go[d];
        store_floats<D>(x.dk + k_at + j * a.pitch, dk);
        store_floats<D>(x.dv + k_at + j * a.pitch, dv);
    }
    store_floats<D>(x.dq + q_at, dq);
}

bool att_few_fits(const Att &a, bool bias)
{
    return !bias && a.n == 1 && a.m <= FEW_KEYS && a.d == FEW_WIDTH && (int64_t)a.g * a.b * a.h < INT32_MAX;
}

template <typename T> Status att_few_forward_launch(const Att &a, const AttOperands<T> &x, cudaStream_t stream)
{
    uint32_t count = (uint32_t)a.g * a.b * a.h;
    launch(att_few_forward_kernel<T>, blocks_for(count, FEW_THREADS), FEW_THREADS, 0, stream, a, x, count);
    return cuda_launched("att_few_forward_kernel");
}
template Status att_few_forward_launch(const Att &, const AttOperands<float> &, cudaStream_t);
template Status att_few_forward_launch(const Att &, const AttOperands<bf16> &, cudaStream_t);

template <typename T> Status att_few_backward_launch(const Att &a, const AttOperands<T> &x, cudaStream_t stream)
{
    uint32_t count = (uint32_t)a.g * a.b * a.h;
    launch(att_few_backward_kernel<T>, blocks_for(count, FEW_THREADS), FEW_THREADS, 0, stream, a, x, count);
    return cuda_launched("att_few_backward_kernel");
}
template Status att_few_backward_launch(const Att &, const AttOperands<float> &, cudaStream_t);
template Status att_few_backward_launch(const Att &, const AttOperands<bf16> &, cudaStream_t);
