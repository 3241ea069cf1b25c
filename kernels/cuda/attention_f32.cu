/* Fused attention in f32: a block per tile of queries of a (group, row, head) walks the keys with a running maximum. */
#include "kernels/cuda/att_f32.cuh"

/* bias[G?, N, M, H] or, transposed, [G?, M, N, H] -> [G, H, N, M]; grid (keys, queries, groups) */
__global__ void __launch_bounds__(F32_THREADS) att_f32_bias_kernel(Att a, const float *bias, float *copy)
{
    stage_wait();
    int key = blockIdx.x * F32_THREADS + threadIdx.x, query = blockIdx.y, group = blockIdx.z;
    if (key >= a.m) return;
    for (int head = 0; head < a.h; head++)
        copy[(((int64_t)group * a.h + head) * a.n + query) * a.m + key] = bias[a.bias_index(group, query, key, head)];
}

Status att_f32_bias_launch(const Att &a, const float *bias, float *copy, cudaStream_t stream)
{
    dim3 grid(blocks_for(a.m, F32_THREADS), (unsigned)a.n, (unsigned)a.g);
    launch(att_f32_bias_kernel, grid, F32_THREADS, 0, stream, a, bias, copy);
    return cuda_launched("att_f32_bias_kernel");
}

/* Eight neighbouring lanes share a row of scores with those of another warp. */
template <int D> struct ForwardTiles {
    F32Row q[D], k[D], v[D], p[F32_TILE];
    float add[F32_TILE], peak[F32_TILE][2], decay[F32_TILE]; /* peak: of either half of the keys */
};

/* The rows' new maxima, what older sums are to be multiplied with, and exp(s - maximum) to the tile. */
template <int D>
__device__ __forceinline__ void softmax_step(ForwardTiles<D> &t, float (&s)[4][4], float (&peak)[4], float (&sum)[4])
{
    int half = threadIdx.x / 32 % 2, i0 = f32_query();
    bool first = threadIdx.x % 8 == 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float top = lanes_max<8>(fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3])));
        if (first) t.peak[i0 + i][half] = top;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float top = fmaxf(peak[i], fmaxf(t.peak[i0 + i][0], t.peak[i0 + i][1])), part = 0, decay = expf(peak[i] - top);
#pragma unroll
        for (int j = 0; j < 4; j++) part += s[i][j] = expf(s[i][j] - top);
        sum[i] = fmaf(sum[i], decay, part);
        peak[i] = top;
        if (first && half == 0) t.decay[i0 + i] = decay;
        store_floats<4>(&t.p[i0 + i][f32_key()], s[i]);
    }
    __syncthreads();
}

/* Joins the sums of a row's threads: 1 / sum of each row to t.decay, the log-sum-exp where it is wanted. */
template <int D>
__device__ __forceinline__ void softmax_end(const Att &a, ForwardTiles<D> &t, const float (&peak)[4],
                                            const float (&sum)[4], float *lse, int query0)
{
    int half = threadIdx.x / 32 % 2, i0 = f32_query();
    bool first = threadIdx.x % 8 == 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float total = lanes_sum<8>(sum[i]);
        if (first) t.peak[i0 + i][half] = total;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float total = t.peak[i0 + i][0] + t.peak[i0 + i][1];
        if (!first || half == 1) continue;
        t.decay[i0 + i] = 1.0f / total;
        if (lse && query0 + i0 + i < a.n) lse[query0 + i0 + i] = peak[i] + logf(total);
    }
    __syncthreads();
}

template <int D>
__global__ void __launch_bounds__(F32_THREADS, 3) att_f32_forward_kernel(Att a, AttOperands<float> x, const float *bias)
{
    stage_wait();
    typedef F32Share<D> Share;
    __shared__ __align__(16) ForwardTiles<D> t;
    F32Place p = f32_place(a, bias);
    Share share;
    int query0 = blockIdx.x * F32_TILE;
    float o[Share::ROWS][Share::COLUMNS] = {}, peak[4], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) peak[i] = -FLT_MAX;
    f32_load<D>(t.q, x.q + p.q_at, a.pitch, query0, a.n);
    for (int key0 = 0; key0 < a.m; key0 += F32_TILE) {
        float s[4][4];
        __syncthreads();
        f32_load<D>(t.k, x.k + p.k_at, a.pitch, key0, a.m);
        f32_load<D>(t.v, x.v + p.k_at, a.pitch, key0, a.m);
        f32_load_mask(a, p.mask, t.add, key0);
        __syncthreads();
        f32_products<D>(s, t.q, t.k);
        f32_scores(a, p, s, t.add, query0, key0);
        softmax_step(t, s, peak, sum);
#pragma unroll
        for (int r = 0; r < Share::ROWS; r++)
#pragma unroll
            for (int c = 0; c < Share::COLUMNS; c++) o[r][c] *= t.decay[share.group + r * Share::GROUPS];
        f32_along<D>(o, t.p, t.v);
    }
    softmax_end(a, t, peak, sum, x.lse ? x.lse + p.stat_at : NULL, query0);
#pragma unroll
    for (int r = 0; r < Share::ROWS; r++) {
        int row = share.group + r * Share::GROUPS;
        if (query0 + row >= a.n) continue;
#pragma unroll
        for (int c = 0; c < Share::COLUMNS; c++) {
            int64_t at = p.q_at + (query0 + row) * a.pitch + share.column + c * Share::TD;
            float y = o[r][c] * t.decay[row];
            if (x.o) x.o[at] = y;
            if (x.gate) x.y[at] = sigmoidf(x.gate[at]) * y;
        }
    }
}

/* --- launches --- */

/* Few products are left to the kernels that sum them in double. */
bool att_f32_fits(const Att &a)
{
    if (att_is_few(a)) return false;
    return (a.d == 8 || a.d == 16 || a.d == 32) && a.h <= 65535 && (int64_t)a.g * a.b <= 65535 && a.n <= 65535 &&
           a.m <= 65535;
}

size_t att_f32_forward_scratch(const Att &a, bool bias)
{
    return bias ? att_f32_bias_bytes(a) : 0;
}

template <int D>
static Status forward_launch(const Att &a, const AttOperands<float> &x, const float *bias, cudaStream_t stream)
{
    dim3 grid(blocks_for(a.n, F32_TILE), (unsigned)a.h, (unsigned)(a.g * a.b));
    launch(att_f32_forward_kernel<D>, grid, F32_THREADS, 0, stream, a, x, bias);
    return cuda_launched("att_f32_forward_kernel");
}

Status att_f32_forward_launch(const Att &a, const AttOperands<float> &x, void *scratch, cudaStream_t stream)
{
    float *bias = x.bias ? (float *)scratch : NULL;
    if (bias) TRY(att_f32_bias_launch(a, x.bias, bias, stream));
    if (a.d == 32) return forward_launch<32>(a, x, bias, stream);
    if (a.d == 16) return forward_launch<16>(a, x, bias, stream);
    return forward_launch<8>(a, x, bias, stream);
}
