/* Ops at the edges of channel-first triangle products: gates that write [G?,C,.,.], their gradients from there, layer
 * norm of it. Tiles go through shared memory, so that both sides move 16 bytes per access; f32 and odd extents element
 * by element. */
#include "kernels/cuda/channels.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/transpose.cuh"

enum { CHANNELS_THREADS = 256, CHANNELS_TILE = 8192 /* elements */, CHANNELS_BLOCKS = 264 /* two per SM */ };

/* x[groups, c, pairs] */
struct Channels {
    int64_t groups, c, pairs;
};

static Channels channels_of(const Tensor *x)
{
    int off = x->rank - 3;
    Channels s = {1, x->dim[off], x->dim[off + 1] * x->dim[off + 2]};
    for (int axis = 0; axis < off; axis++) s.groups *= x->dim[axis];
    return s;
}

__device__ __forceinline__ void unpack8(uint4 v, float (&x)[8])
{
    const Pack<bf16> p = *reinterpret_cast<const Pack<bf16> *>(&v);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = to_float(p.v[j]);
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8])
{
    Pack<bf16> p;
#pragma unroll
    for (int j = 0; j < 8; j++) p.v[j] = from_float<bf16>(x[j]);
    return *reinterpret_cast<const uint4 *>(&p);
}
__device__ __forceinline__ uint4 load16(const bf16 *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}
__device__ __forceinline__ void store16(bf16 *p, uint4 v)
{
    *reinterpret_cast<uint4 *>(p) = v;
}

/* --- gates: a_k[g, c, p] = m sigmoid(gate_k) value_k --- */

/* grid (c / 64, pairs / 128, groups * count) */
static __global__ void __launch_bounds__(CHANNELS_THREADS)
    gate_channels_kernel(GateChannels p, Channels s, AnyReal mask)
{
    stage_wait();
    enum { R = 128, C = 64, STEPS = CHANNELS_TILE / 8 / CHANNELS_THREADS };
    __shared__ HalvesTile<R, C> tile;
    int which = blockIdx.z % p.count, group = blockIdx.z / p.count;
    const bf16 *value = (const bf16 *)p.value[which], *gate = (const bf16 *)p.gate[which];
    bf16 *a = (bf16 *)p.a[which] + group * s.c * s.pairs;
    int64_t pair0 = (int64_t)blockIdx.y * R, channel0 = (int64_t)blockIdx.x * C;
    uint4 v[STEPS], g[STEPS];
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (C / 8), c = k % (C / 8) * 8;
        int64_t at = (group * s.pairs + pair0 + r) * s.c + channel0 + c;
        bool live = pair0 + r < s.pairs && channel0 + c < s.c;
        v[it] = g[it] = make_uint4(0, 0, 0, 0);
        if (live) v[it] = load16(value + at), g[it] = load16(gate + at);
    }
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (C / 8), c = k % (C / 8) * 8;
        float x[8], y[8], m = pair0 + r < s.pairs ? mask[group * s.pairs + pair0 + r] : 0.0f;
        unpack8(v[it], x), unpack8(g[it], y);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] *= m * sigmoid_short(y[j]);
        tile.put_row(r, c, pack8(x));
    }
    __syncthreads();
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, c = k / (R / 8), r = k % (R / 8) * 8;
        if (pair0 + r >= s.pairs || channel0 + c >= s.c) continue;
        store16(a + (channel0 + c) * s.pairs + pair0 + r, tile.get_column(r, c));
    }
}

/* A thread per element of a. */
template <typename T> static __global__ void gate_channels_any_kernel(GateChannels p, Channels s, AnyReal mask)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pair = e % s.pairs, row = e / s.pairs;
    if (e >= s.groups * s.c * s.pairs) return;
    int64_t position = row / s.c * s.pairs + pair, from = position * s.c + row % s.c;
    int which = blockIdx.y;
    float gate = to_float(((const T *)p.gate[which])[from]), value = to_float(((const T *)p.value[which])[from]);
    ((T *)p.a[which])[e] = from_float<T>(sigmoidf(gate) * value * mask[position]);
}

Status gate_channels_launch(const OpCall *call, const GateChannels &p, const Tensor *a, AnyReal mask,
                            cudaStream_t stream)
{
    Channels s = channels_of(a);
    int64_t count = tensor_count(a);
    if (count == 0) return OK;
    bool wide = a->dtype == DT_BF16 && s.c % 8 == 0 && s.pairs % 8 == 0 && s.groups * p.count <= 65535;
    for (int k = 0; k < p.count; k++) wide = wide && aligned16(p.value[k]) && aligned16(p.gate[k]) && aligned16(p.a[k]);
    if (wide && (s.pairs + 127) / 128 <= 65535) {
        dim3 grid((unsigned)((s.c + 63) / 64), (unsigned)((s.pairs + 127) / 128), (unsigned)(s.groups * p.count));
        launch(gate_channels_kernel, grid, CHANNELS_THREADS, 0, stream, p, s, mask);
        return cuda_launched("gate_channels_kernel");
    }
    DISPATCH_REAL(call, a->dtype, {
        launch(gate_channels_any_kernel<T>, dim3(blocks_for(count, 256), (unsigned)p.count), 256, 0, stream, p, s,
               mask);
    });
    return cuda_launched("gate_channels_any_kernel");
}

/* dy[g, c, p], the rest channel-last: dg = dy m x s (1 - s), dx = dy m s. grid (c / 64, pairs / 128, groups) */
static __global__ void __launch_bounds__(CHANNELS_THREADS, 3)
    gate_channels_bwd_kernel(const bf16 *dy, const bf16 *g, const bf16 *x, AnyReal mask, bf16 *dg, bf16 *dx, Channels s)
{
    stage_wait();
    enum { R = 64, C = 128, STEPS = CHANNELS_TILE / 8 / CHANNELS_THREADS };
    __shared__ HalvesTile<R, C> tile;
    int64_t group = blockIdx.z, pair0 = (int64_t)blockIdx.y * C, channel0 = (int64_t)blockIdx.x * R;
    uint4 d[STEPS];
    dy += group * s.c * s.pairs;
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (C / 8), c = k % (C / 8) * 8;
        d[it] = make_uint4(0, 0, 0, 0);
        if (channel0 + r < s.c && pair0 + c < s.pairs) d[it] = load16(dy + (channel0 + r) * s.pairs + pair0 + c);
    }
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (C / 8), c = k % (C / 8) * 8;
        tile.put_row(r, c, d[it]);
    }
    __syncthreads();
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, c = k / (R / 8), r = k % (R / 8) * 8;
        if (channel0 + r >= s.c || pair0 + c >= s.pairs) continue;
        int64_t position = group * s.pairs + pair0 + c, at = position * s.c + channel0 + r;
        float dv[8], gv[8], xv[8], m = mask[position];
        unpack8(load16(g + at), gv), unpack8(load16(x + at), xv), unpack8(tile.get_column(r, c), dv);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float sigmoid = sigmoid_short(gv[j]);
            dv[j] *= m * sigmoid;
            gv[j] = dv[j] * xv[j] * (1.0f - sigmoid);
        }
        store16(dg + at, pack8(gv));
        store16(dx + at, pack8(dv));
    }
}

template <typename T>
static __global__ void gate_channels_bwd_any_kernel(const T *dy, const T *g, const T *x, AnyReal mask, T *dg, T *dx,
                                                    Channels s)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pair = e % s.pairs, row = e / s.pairs;
    if (e >= s.groups * s.c * s.pairs) return;
    int64_t position = row / s.c * s.pairs + pair, at = position * s.c + row % s.c;
    float sigmoid = sigmoidf(to_float(g[at])), d = to_float(dy[e]) * mask[position];
    dg[at] = from_float<T>(d * to_float(x[at]) * sigmoid * (1.0f - sigmoid));
    dx[at] = from_float<T>(d * sigmoid);
}

static Status gate_channels_bwd(CudaContext *ctx, const OpCall *call)
{
    Channels s = channels_of(call->in_tensor[0]);
    int64_t count = tensor_count(call->in_tensor[0]);
    DType type = call->in_tensor[0]->dtype;
    if (count == 0) return OK;
    bool wide = type == DT_BF16 && s.c % 8 == 0 && s.pairs % 8 == 0 && s.groups <= 65535 && s.pairs / 128 < 65535;
    for (int k = 0; k < 3; k++) wide = wide && aligned16(call->in[k]);
    if (wide && aligned16(call->out[0]) && aligned16(call->out[1])) {
        dim3 grid((unsigned)((s.c + 63) / 64), (unsigned)((s.pairs + 127) / 128), (unsigned)s.groups);
        launch(gate_channels_bwd_kernel, grid, CHANNELS_THREADS, 0, ctx->stream, (const bf16 *)call->in[0],
               (const bf16 *)call->in[1], (const bf16 *)call->in[2], any_in(call, 3), (bf16 *)call->out[0],
               (bf16 *)call->out[1], s);
        return cuda_launched("gate_channels_bwd_kernel");
    }
    DISPATCH_REAL(call, type, {
        launch(gate_channels_bwd_any_kernel<T>, blocks_for(count, 256), 256, 0, ctx->stream, (const T *)call->in[0],
               (const T *)call->in[1], (const T *)call->in[2], any_in(call, 3), (T *)call->out[0], (T *)call->out[1],
               s);
    });
    return cuda_launched("gate_channels_bwd_any_kernel");
}

/* --- layer norm: a tile of all channels by 8192 / C pairs; C / 8 neighbouring lanes own a pair --- */

struct NormChannels {
    const void *x, *dy;
    const float *gamma, *beta, *mean_in, *rstd_in;
    void *y;
    float *mean, *rstd, *partial;
    Channels s;
    float eps;
};

/* x of a tile: into registers, from there into shared memory */
template <int C> struct NormTile {
    static constexpr int PAIRS = CHANNELS_TILE / C, STEPS = CHANNELS_TILE / 8 / CHANNELS_THREADS;
    uint4 v[STEPS];
    __device__ __forceinline__ void load(const bf16 *x, int64_t pairs, int64_t pair0)
    {
#pragma unroll
        for (int it = 0; it < STEPS; it++) {
            int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (PAIRS / 8), c = k % (PAIRS / 8) * 8;
            v[it] = make_uint4(0, 0, 0, 0);
            if (pair0 + c < pairs) v[it] = load16(x + r * pairs + pair0 + c);
        }
    }
    __device__ __forceinline__ void put(HalvesTile<C, PAIRS> &tile) const
    {
#pragma unroll
        for (int it = 0; it < STEPS; it++) {
            int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (PAIRS / 8), c = k % (PAIRS / 8) * 8;
            tile.put_row(r, c, v[it]);
        }
    }
};

/* grid (tiles of pairs, groups) */
template <int C> static __global__ void __launch_bounds__(CHANNELS_THREADS) layer_norm_channels_kernel(NormChannels p)
{
    stage_wait();
    constexpr int PAIRS = CHANNELS_TILE / C, LANES = C / 8, STEPS = CHANNELS_TILE / 8 / CHANNELS_THREADS;
    __shared__ HalvesTile<C, PAIRS> tile;
    int64_t group = blockIdx.y, pair0 = (int64_t)blockIdx.x * PAIRS;
    int channel = threadIdx.x % LANES * 8;
    NormTile<C> x;
    x.load((const bf16 *)p.x + group * C * p.s.pairs, p.s.pairs, pair0);
    float gamma[8], beta[8];
    load_floats<8>(p.gamma + channel, gamma);
    load_floats<8>(p.beta + channel, beta);
    x.put(tile);
    __syncthreads();
#pragma unroll
    for (int it = 0; it < STEPS; it++) {
        int pair = (it * CHANNELS_THREADS + threadIdx.x) / LANES;
        float v[8], sum = 0, square = 0;
        unpack8(tile.get_column(channel, pair), v);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j];
        float mean = lanes_sum<LANES>(sum) / C;
#pragma unroll
        for (int j = 0; j < 8; j++) square += (v[j] - mean) * (v[j] - mean);
        float rstd = 1.0f / sqrtf(lanes_sum<LANES>(square) / C + p.eps);
        if (pair0 + pair >= p.s.pairs) continue;
        int64_t row = group * p.s.pairs + pair0 + pair;
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = (v[j] - mean) * rstd * gamma[j] + beta[j];
        store16((bf16 *)p.y + row * C + channel, pack8(v));
        if (channel == 0) p.mean[row] = mean, p.rstd[row] = rstd;
    }
}

/* A thread per pair. One sum after another needs more than f32: elsewhere lanes share it. */
template <typename T> static __global__ void layer_norm_channels_any_kernel(NormChannels p)
{
    stage_wait();
    int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pairs = p.s.pairs;
    if (row >= p.s.groups * pairs) return;
    const T *x = (const T *)p.x + row / pairs * p.s.c * pairs + row % pairs;
    double sum = 0, square = 0;
    for (int64_t k = 0; k < p.s.c; k++) sum += to_float(x[k * pairs]);
    double mean = sum / p.s.c;
    for (int64_t k = 0; k < p.s.c; k++) square += (to_float(x[k * pairs]) - mean) * (to_float(x[k * pairs]) - mean);
    double rstd = 1 / sqrt(square / p.s.c + p.eps);
    for (int64_t k = 0; k < p.s.c; k++) {
        double y = (to_float(x[k * pairs]) - mean) * rstd * p.gamma[k] + p.beta[k];
        ((T *)p.y)[row * p.s.c + k] = from_float<T>((float)y);
    }
    p.mean[row] = (float)mean, p.rstd[row] = (float)rstd;
}

static bool norm_is_wide(const Channels &s, DType type, const void *x, const void *y, const void *dy)
{
    return type == DT_BF16 && (s.c == 64 || s.c == 128) && s.pairs % 8 == 0 && s.groups <= 65535 && aligned16(x) &&
           aligned16(y) && aligned16(dy);
}

static Status layer_norm_channels(CudaContext *ctx, const OpCall *call)
{
    DType type = call->in_tensor[0]->dtype;
    NormChannels p = {};
    p.s = channels_of(call->in_tensor[0]);
    p.x = call->in[0], p.y = call->out[0];
    p.gamma = (const float *)call->in[1], p.beta = (const float *)call->in[2];
    p.mean = (float *)call->out[1], p.rstd = (float *)call->out[2];
    p.eps = (float)call->op->attr.f[0];
    if (tensor_count(call->in_tensor[0]) == 0) return OK;
    if (norm_is_wide(p.s, type, p.x, p.y, NULL) && aligned16(p.gamma) && aligned16(p.beta)) {
        int64_t tile = CHANNELS_TILE / p.s.c;
        dim3 grid((unsigned)((p.s.pairs + tile - 1) / tile), (unsigned)p.s.groups);
        if (p.s.c == 64)
            launch(layer_norm_channels_kernel<64>, grid, CHANNELS_THREADS, 0, ctx->stream, p);
        else
            launch(layer_norm_channels_kernel<128>, grid, CHANNELS_THREADS, 0, ctx->stream, p);
        return cuda_launched("layer_norm_channels_kernel");
    }
    DISPATCH_REAL(call, type, {
        launch(layer_norm_channels_any_kernel<T>, blocks_for(p.s.groups * p.s.pairs, 128), 128, 0, ctx->stream, p);
    });
    return cuda_launched("layer_norm_channels_any_kernel");
}

/* This block's sums over its pairs, groups of lanes of a warp first, then warps in order, to partial[block][2 C]. */
template <int C>
__device__ __forceinline__ void norm_sums(const float (&dgamma)[8], const float (&dbeta)[8], float (*shared)[C],
                                          float *partial)
{
    constexpr int LANES = C / 8;
    int channel = threadIdx.x % LANES * 8;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float sum = which ? dbeta[j] : dgamma[j];
#pragma unroll
            for (int o = LANES; o < WARP; o *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
            if (threadIdx.x % WARP < LANES) shared[threadIdx.x / WARP][channel + j] = sum;
        }
        __syncthreads();
        if (threadIdx.x < C) {
            float total = 0;
            for (int w = 0; w < CHANNELS_THREADS / WARP; w++) total += shared[w][threadIdx.x];
            partial[(int64_t)blockIdx.x * 2 * C + which * C + threadIdx.x] = total;
        }
    }
}

/* What a thread reads of a tile for its gradient. */
template <int C> struct NormOperands {
    static constexpr int STEPS = NormTile<C>::STEPS;
    NormTile<C> x;
    uint4 dy[STEPS];
    float mean[STEPS], rstd[STEPS];
    __device__ __forceinline__ void load(const NormChannels &p, int64_t group, int64_t pair0)
    {
        int channel = threadIdx.x % (C / 8) * 8;
#pragma unroll
        for (int it = 0; it < STEPS; it++) {
            int64_t pair = pair0 + (it * CHANNELS_THREADS + threadIdx.x) / (C / 8), row = group * p.s.pairs + pair;
            bool live = pair < p.s.pairs;
            dy[it] = live ? load16((const bf16 *)p.dy + row * C + channel) : make_uint4(0, 0, 0, 0);
            mean[it] = live ? p.mean_in[row] : 0.0f, rstd[it] = live ? p.rstd_in[row] : 0.0f;
        }
        x.load((const bf16 *)p.x + group * C * p.s.pairs, p.s.pairs, pair0);
    }
};

/* dx = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)); the tile holds x, then dx. Blocks go round the tiles; the next
 * one is on its way meanwhile. */
template <int C>
static __global__ void __launch_bounds__(CHANNELS_THREADS, 2) layer_norm_channels_bwd_kernel(NormChannels p)
{
    stage_wait();
    constexpr int PAIRS = CHANNELS_TILE / C, LANES = C / 8, STEPS = CHANNELS_TILE / 8 / CHANNELS_THREADS;
    __shared__ HalvesTile<C, PAIRS> tile;
    __shared__ float shared[CHANNELS_THREADS / WARP][C];
    int channel = threadIdx.x % LANES * 8;
    int64_t pairs = p.s.pairs;
    uint32_t row_tiles = (uint32_t)((pairs + PAIRS - 1) / PAIRS), works = row_tiles * (uint32_t)p.s.groups;
    float dgamma[8] = {}, dbeta[8] = {};
    NormOperands<C> next;
    next.load(p, blockIdx.x / row_tiles, blockIdx.x % row_tiles * PAIRS);
    if (threadIdx.x < C) shared[0][threadIdx.x] = p.gamma[threadIdx.x]; /* until the sums */
    for (uint32_t work = blockIdx.x; work < works; work += gridDim.x) {
        int64_t group = work / row_tiles, pair0 = work % row_tiles * PAIRS;
        uint32_t after = work + gridDim.x;
        NormOperands<C> here = next;
        here.x.put(tile);
        __syncthreads();
        if (after < works) next.load(p, after / row_tiles, after % row_tiles * PAIRS);
        float gamma[8];
        load_floats<8>(&shared[0][channel], gamma);
#pragma unroll
        for (int it = 0; it < STEPS; it++) {
            int pair = (it * CHANNELS_THREADS + threadIdx.x) / LANES;
            float v[8], dy[8], a = 0, b = 0, mean = here.mean[it], rstd = here.rstd[it];
            unpack8(tile.get_column(channel, pair), v), unpack8(here.dy[it], dy);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[j] = (v[j] - mean) * rstd;
                dgamma[j] += dy[j] * v[j];
                dbeta[j] += dy[j];
                dy[j] *= gamma[j];
                a += dy[j];
                b += dy[j] * v[j];
            }
            a = lanes_sum<LANES>(a) / C;
            b = lanes_sum<LANES>(b) / C;
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = rstd * (dy[j] - a - v[j] * b);
            __syncwarp(); /* the other half of a word may belong to another lane, which has read it now */
            tile.put_column(channel, pair, pack8(v));
        }
        __syncthreads();
#pragma unroll
        for (int it = 0; it < STEPS; it++) {
            int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (PAIRS / 8), c = k % (PAIRS / 8) * 8;
            if (pair0 + c < pairs) store16((bf16 *)p.y + (group * C + r) * pairs + pair0 + c, tile.get_row(r, c));
        }
        __syncthreads();
    }
    norm_sums<C>(dgamma, dbeta, shared, p.partial);
}

/* dx: a thread per pair. */
template <typename T> static __global__ void layer_norm_channels_dx_any_kernel(NormChannels p)
{
    stage_wait();
    int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pairs = p.s.pairs, c = p.s.c;
    if (row >= p.s.groups * pairs) return;
    int64_t at = row / pairs * c * pairs + row % pairs;
    const T *x = (const T *)p.x + at, *dy = (const T *)p.dy + row * c;
    double mean = p.mean_in[row], rstd = p.rstd_in[row], a = 0, b = 0;
    for (int64_t k = 0; k < c; k++) {
        double d = to_float(dy[k]) * p.gamma[k];
        a += d;
        b += d * (to_float(x[k * pairs]) - mean) * rstd;
    }
    a /= c, b /= c;
    for (int64_t k = 0; k < c; k++) {
        double hat = (to_float(x[k * pairs]) - mean) * rstd, dx = rstd * (to_float(dy[k]) * p.gamma[k] - a - hat * b);
        ((T *)p.y)[at + k * pairs] = from_float<T>((float)dx);
    }
}

/* dgamma, dbeta: a block per channel. */
template <typename T> static __global__ void layer_norm_channels_sums_any_kernel(NormChannels p)
{
    stage_wait();
    __shared__ double shared[CHANNELS_THREADS / WARP];
    int64_t pairs = p.s.pairs, c = p.s.c, channel = blockIdx.x;
    double gamma = 0, beta = 0;
    for (int64_t row = threadIdx.x; row < p.s.groups * pairs; row += CHANNELS_THREADS) {
        float x = to_float(((const T *)p.x)[(row / pairs * c + channel) * pairs + row % pairs]);
        float d = to_float(((const T *)p.dy)[row * c + channel]);
        gamma += d * (x - p.mean_in[row]) * p.rstd_in[row];
        beta += d;
    }
    gamma = block_sum(gamma, shared);
    beta = block_sum(beta, shared);
    if (threadIdx.x == 0) p.mean[channel] = (float)gamma, p.rstd[channel] = (float)beta;
}

static Status layer_norm_channels_bwd(CudaContext *ctx, const OpCall *call)
{
    DType type = call->in_tensor[1]->dtype;
    NormChannels p = {};
    p.s = channels_of(call->in_tensor[1]);
    p.dy = call->in[0], p.x = call->in[1], p.y = call->out[0];
    p.gamma = (const float *)call->in[2];
    p.mean_in = (const float *)call->in[3], p.rstd_in = (const float *)call->in[4];
    p.mean = (float *)call->out[1], p.rstd = (float *)call->out[2]; /* any extents: sums written as they are */
    p.partial = (float *)call->scratch;
    if (norm_is_wide(p.s, type, p.x, p.y, p.dy) && aligned16(p.gamma)) {
        int64_t tile = CHANNELS_TILE / p.s.c, tiles = (p.s.pairs + tile - 1) / tile * p.s.groups;
        unsigned blocks = tiles < CHANNELS_BLOCKS ? (unsigned)tiles : (unsigned)CHANNELS_BLOCKS;
        if (p.s.c == 64)
            launch(layer_norm_channels_bwd_kernel<64>, blocks, CHANNELS_THREADS, 0, ctx->stream, p);
        else
            launch(layer_norm_channels_bwd_kernel<128>, blocks, CHANNELS_THREADS, 0, ctx->stream, p);
        TRY(cuda_launched("layer_norm_channels_bwd_kernel"));
        return sum_partials_split_launch(p.partial, p.mean, p.rstd, blocks, p.s.c, ctx->stream);
    }
    DISPATCH_REAL(call, type, {
        launch(layer_norm_channels_dx_any_kernel<T>, blocks_for(p.s.groups * p.s.pairs, 128), 128, 0, ctx->stream, p);
        TRY(cuda_launched("layer_norm_channels_dx_any_kernel"));
        launch(layer_norm_channels_sums_any_kernel<T>, (unsigned)p.s.c, CHANNELS_THREADS, 0, ctx->stream, p);
    });
    return cuda_launched("layer_norm_channels_sums_any_kernel");
}

static size_t layer_norm_channels_bwd_scratch(const OpCall *call)
{
    return (size_t)CHANNELS_BLOCKS * 2 * (size_t)channels_of(call->in_tensor[1]).c * sizeof(float);
}

const CudaEntry cuda_channels[] = {
    {OP_GATE_CHANNELS_BWD, gate_channels_bwd, NULL},
    {OP_LAYER_NORM_CHANNELS, layer_norm_channels, NULL},
    {OP_LAYER_NORM_CHANNELS_BWD, layer_norm_channels_bwd, layer_norm_channels_bwd_scratch},
    {OP_COUNT, NULL, NULL},
};
