/* Sums over the keys of invariant point attention in f32 (supplement algorithm 22, lines 8 and 9): o[i,h,:] = sum_m
 * p[h,i,m] z[i,m,:] */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

enum { HEAD_GROUP = 4, KEY_CHUNK = 64 };

/* a block per (query, group of heads); threads over channels; p of a chunk of keys in shared memory; for few products
 * or odd extents, sums in double */
__global__ void pair_context_kernel(int heads, int n, int m, int c, const float *p, const float *z, float *out)
{
    stage_wait();
    __shared__ float weight[HEAD_GROUP][KEY_CHUNK];
    int i = blockIdx.x, first = blockIdx.y * HEAD_GROUP;
    for (int channel = threadIdx.x; channel - (int)threadIdx.x < c; channel += blockDim.x) {
        double sum[HEAD_GROUP] = {0};
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
                double x = z[((int64_t)i * m + start + j) * c + channel];
                for (int g = 0; g < HEAD_GROUP; g++) sum[g] += weight[g][j] * x;
            }
        }
        for (int g = 0; g < HEAD_GROUP; g++)
            if (channel < c && first + g < heads) out[((int64_t)i * heads + first + g) * c + channel] = (float)sum[g];
    }
}

/* a warp per (query, key): dp[h,i,m] = do[i,h,:] . z[i,m,:] and dz[i,m,:] = sum_h p[h,i,m] do[i,h,:] */
__global__ void pair_context_bwd_kernel(int heads, int n, int m, int c, const float *d, const float *p, const float *z,
                                        const float *other, float *dp, float *dz)
{
    stage_wait();
    int64_t pair = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    int lane = threadIdx.x % WARP;
    if (pair >= (int64_t)n * m) return;
    int64_t i = pair / m, j = pair % m;
    for (int channel = lane; channel < c; channel += WARP) {
        double sum = other ? other[pair * c + channel] : 0;
        for (int h = 0; h < heads; h++)
            sum += (double)p[((int64_t)h * n + i) * m + j] * d[(i * heads + h) * c + channel];
        dz[pair * c + channel] = (float)sum;
    }
    for (int h = 0; h < heads; h++) {
        double dot = 0;
        for (int channel = lane; channel < c; channel += WARP)
            dot += (double)d[(i * heads + h) * c + channel] * z[pair * c + channel];
        dot = lanes_sum<WARP>(dot);
        if (lane == 0) dp[((int64_t)h * n + i) * m + j] = (float)dot;
    }
}

/* The same for up to 16 heads and 128 channels: a block per query reads z once; a lane has 4 channels of all heads,
 * warps take keys in turn. Weights of a chunk of keys lie in shared memory, those of a key side by side. H: heads,
 * rounded up. */
enum { PAIR_HEADS = 16, PAIR_CHANNELS = 128, PAIR_KEYS = 256, PAIR_PITCH = PAIR_HEADS + 4 };

struct PairSizes {
    int heads, n, m, c;
};

__device__ __forceinline__ float4 add4(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ void add_scaled4(float4 &a, float w, float4 b)
{
    a.x += w * b.x, a.y += w * b.y, a.z += w * b.z, a.w += w * b.w;
}

template <int H>
__device__ __forceinline__ void weights_load(const PairSizes &s, const float *p, int i, int start, float *weight)
{
    for (int e = threadIdx.x; e < H * PAIR_KEYS; e += THREADS) {
        int h = e / PAIR_KEYS, j = e % PAIR_KEYS;
        bool live = h < s.heads && start + j < s.m;
        weight[j * PAIR_PITCH + h] = live ? p[((int64_t)h * s.n + i) * s.m + start + j] : 0.0f;
    }
}

template <int H>
__global__ void __launch_bounds__(THREADS, 2)
    pair_context_wide_kernel(PairSizes s, const float *p, const float *z, float *out)
{
    stage_wait();
    __shared__ __align__(16) float weight[PAIR_KEYS * PAIR_PITCH];
    __shared__ float4 partial[WARPS / 2][PAIR_HEADS / 2][WARP];
    int i = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, channel = lane * 4;
    bool live = channel < s.c;
    float4 sum[H];
#pragma unroll
    for (int h = 0; h < H; h++) sum[h] = make_float4(0, 0, 0, 0);
    for (int start = 0; start < s.m; start += PAIR_KEYS) {
        __syncthreads();
        weights_load<H>(s, p, i, start, weight);
        __syncthreads();
        int end = min(PAIR_KEYS, s.m - start);
        const float *at = z + ((int64_t)i * s.m + start) * s.c + channel;
#pragma unroll 4
        for (int j = warp; j < end; j += WARPS) {
            float4 x = live ? *reinterpret_cast<const float4 *>(at + (int64_t)j * s.c) : make_float4(0, 0, 0, 0);
            float w[H];
            load_floats<H>(weight + j * PAIR_PITCH, w);
#pragma unroll
            for (int h = 0; h < H; h++) add_scaled4(sum[h], w[h], x);
        }
    }
    /* the upper half of the warps to the lower half, until one is left; half of the heads at a time */
#pragma unroll
    for (int first = 0; first < H; first += H / 2)
#pragma unroll
        for (int half = WARPS / 2; half > 0; half /= 2) {
            __syncthreads();
#pragma unroll
            for (int h = 0; h < H / 2; h++)
                if (warp >= half && warp < 2 * half) partial[warp - half][h][lane] = sum[first + h];
            __syncthreads();
#pragma unroll
            for (int h = 0; h < H / 2; h++)
                if (warp < half) sum[first + h] = add4(sum[first + h], partial[warp][h][lane]);
        }
#pragma unroll
    for (int h = 0; h < H; h++)
        if (warp == 0 && live && h < s.heads)
            *reinterpret_cast<float4 *>(out + ((int64_t)i * s.heads + h) * s.c + channel) = sum[h];
}

/* Dot products with all heads, from a lane's share of each: folded together, halves exchanged; lane 2h has that of head
 * h. */
__device__ __forceinline__ float fold_heads(float (&dot)[PAIR_HEADS], int lane)
{
#pragma unroll
    for (int half = PAIR_HEADS / 2; half > 0; half /= 2) {
        bool upper = (lane & (2 * half)) != 0; /* keeps the upper half of the heads */
#pragma unroll
        for (int k = 0; k < half; k++) {
            float keep = upper ? dot[k + half] : dot[k], give = upper ? dot[k] : dot[k + half];
            dot[k] = keep + __shfl_xor_sync(0xffffffffu, give, 2 * half);
        }
    }
    return dot[0] + __shfl_xor_sync(0xffffffffu, dot[0], 1);
}

template <int H>
__global__ void __launch_bounds__(THREADS, 2)
    pair_context_bwd_wide_kernel(PairSizes s, const float *d, const float *p, const float *z, const float *other,
                                 float *dp, float *dz)
{
    stage_wait();
    __shared__ __align__(16) float weight[PAIR_KEYS * PAIR_PITCH]; /* p of a key, then its dp */
    int i = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, channel = lane * 4;
    bool live = channel < s.c;
    float4 own[H];
#pragma unroll
    for (int h = 0; h < H; h++)
        own[h] = live && h < s.heads ? *reinterpret_cast<const float4 *>(d + ((int64_t)i * s.heads + h) * s.c + channel)
                                     : make_float4(0, 0, 0, 0);
    for (int start = 0; start < s.m; start += PAIR_KEYS) {
        __syncthreads();
        weights_load<H>(s, p, i, start, weight);
        __syncthreads();
        int end = min(PAIR_KEYS, s.m - start);
        int64_t at = ((int64_t)i * s.m + start) * s.c + channel;
#pragma unroll 2
        for (int j = warp; j < end; j += WARPS) {
            float4 x = make_float4(0, 0, 0, 0), sum = x;
            if (live) x = *reinterpret_cast<const float4 *>(z + at + (int64_t)j * s.c);
            if (live && other) sum = *reinterpret_cast<const float4 *>(other + at + (int64_t)j * s.c);
            float w[H], dot[PAIR_HEADS] = {};
            load_floats<H>(weight + j * PAIR_PITCH, w);
#pragma unroll
            for (int h = 0; h < H; h++) {
                add_scaled4(sum, w[h], own[h]);
                dot[h] = own[h].x * x.x + own[h].y * x.y + own[h].z * x.z + own[h].w * x.w;
            }
            if (live) *reinterpret_cast<float4 *>(dz + at + (int64_t)j * s.c) = sum;
            float total = fold_heads(dot, lane); /* all lanes have read w by now */
            if (lane % 2 == 0 && lane / 2 < H) weight[j * PAIR_PITCH + lane / 2] = total;
        }
        __syncthreads();
        for (int e = threadIdx.x; e < s.heads * PAIR_KEYS; e += THREADS) {
            int h = e / PAIR_KEYS, j = e % PAIR_KEYS;
            if (j < end) dp[((int64_t)h * s.n + i) * s.m + start + j] = weight[j * PAIR_PITCH + h];
        }
    }
}

static PairSizes pair_sizes(const Tensor *p, const Tensor *z)
{
    PairSizes s = {(int)p->dim[0], (int)p->dim[1], (int)p->dim[2], (int)z->dim[2]};
    return s;
}

static bool pair_is_wide(const PairSizes &s)
{
    bool few = (int64_t)s.heads * s.n * s.m * s.c < FEW_MULTIPLICATIONS;
    return !few && s.heads <= PAIR_HEADS && s.c <= PAIR_CHANNELS && s.c % 4 == 0 && s.n > 0 && s.m > 0;
}

static Status pair_context(CudaContext *context, const OpCall *call)
{
    PairSizes s = pair_sizes(call->in_tensor[0], call->in_tensor[1]);
    if (pair_is_wide(s) && aligned16(call->in[1]) && aligned16(call->out[0])) {
        auto *kernel = s.heads <= 4    ? pair_context_wide_kernel<4>
                       : s.heads <= 8  ? pair_context_wide_kernel<8>
                       : s.heads <= 12 ? pair_context_wide_kernel<12>
                                       : pair_context_wide_kernel<16>;
        launch(kernel, (unsigned)s.n, THREADS, 0, context->stream, s, F32_IN(0), F32_IN(1), F32_OUT(0));
        return cuda_launched("pair_context_wide_kernel");
    }
    dim3 grid((unsigned)s.n, blocks_for(s.heads, HEAD_GROUP));
    launch(pair_context_kernel, grid, 128, 0, context->stream, s.heads, s.n, s.m, s.c, F32_IN(0), F32_IN(1),
           F32_OUT(0));
    return cuda_launched("pair_context_kernel");
}

static Status pair_context_bwd(CudaContext *context, const OpCall *call)
{
    PairSizes s = pair_sizes(call->in_tensor[1], call->in_tensor[2]);
    const float *other = call_in(call, 3) ? F32_IN(3) : NULL;
    bool aligned = aligned16(call->in[0]) && aligned16(call->in[2]) && aligned16(other) && aligned16(call->out[1]);
    if (pair_is_wide(s) && aligned) {
        auto *kernel = s.heads <= 4    ? pair_context_bwd_wide_kernel<4>
                       : s.heads <= 8  ? pair_context_bwd_wide_kernel<8>
                       : s.heads <= 12 ? pair_context_bwd_wide_kernel<12>
                                       : pair_context_bwd_wide_kernel<16>;
        launch(kernel, (unsigned)s.n, THREADS, 0, context->stream, s, F32_IN(0), F32_IN(1), F32_IN(2), other,
               F32_OUT(0), F32_OUT(1));
        return cuda_launched("pair_context_bwd_wide_kernel");
    }
    launch(pair_context_bwd_kernel, blocks_for((int64_t)s.n * s.m * WARP, THREADS), THREADS, 0, context->stream,
           s.heads, s.n, s.m, s.c, F32_IN(0), F32_IN(1), F32_IN(2), other, F32_OUT(0), F32_OUT(1));
    return cuda_launched("pair_context_bwd_kernel");
}

const CudaEntry cuda_ipa_context[] = {
    {OP_PAIR_CONTEXT, pair_context, NULL}, {OP_PAIR_CONTEXT_BWD, pair_context_bwd, NULL}, {OP_COUNT, NULL, NULL}};
