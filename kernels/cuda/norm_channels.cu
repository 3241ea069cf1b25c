/* Layer norm of channel-first triangle products. */
#include "kernels/cuda/channels.cuh"
#include "kernels/cuda/channels.h"
#include "kernels/cuda/reduce.cuh"

enum { CHANNELS_BLOCKS = 264 /* two per SM */ };

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
        if (channel == 0 && p.mean) p.mean[row] = mean;
        if (channel == 0 && p.rstd) p.rstd[row] = rstd;
    }
}

/* Any extents: 32 pairs and all their channels in shared memory, x[channel][pair], sums in double. */
enum { NORM_PITCH = SQUARE + 1 };

template <typename T>
__device__ __forceinline__ void norm_any_load(float *tile, const T *x, const Channels &s, int64_t pair0)
{
    int lane = threadIdx.x % SQUARE;
    for (int64_t k = threadIdx.x / SQUARE; k < s.c; k += SQUARE_ROWS)
        tile[k * NORM_PITCH + lane] = pair0 + lane < s.pairs ? to_float(x[k * s.pairs + pair0 + lane]) : 0.0f;
}

/* a warp per pair; grid (pairs / 32, groups) */
template <typename T>
static __global__ void __launch_bounds__(CHANNELS_THREADS) layer_norm_channels_any_kernel(NormChannels p)
{
    stage_wait();
    extern __shared__ float tile[];
    int64_t group = blockIdx.y, pair0 = (int64_t)blockIdx.x * SQUARE;
    int lane = threadIdx.x % WARP, c = (int)p.s.c;
    norm_any_load(tile, (const T *)p.x + group * c * p.s.pairs, p.s, pair0);
    __syncthreads();
    for (int q = threadIdx.x / WARP; q < SQUARE && pair0 + q < p.s.pairs; q += CHANNELS_THREADS / WARP) {
        const float *x = tile + q;
        int64_t row = group * p.s.pairs + pair0 + q;
        double sum = 0, square = 0;
        for (int k = lane; k < c; k += WARP) sum += x[k * NORM_PITCH];
        double mean = lanes_sum<WARP>(sum) / c;
        for (int k = lane; k < c; k += WARP) square += (x[k * NORM_PITCH] - mean) * (x[k * NORM_PITCH] - mean);
        double rstd = 1 / sqrt(lanes_sum<WARP>(square) / c + p.eps);
        for (int k = lane; k < c; k += WARP)
            ((T *)p.y)[row * c + k] =
                from_float<T>((float)((x[k * NORM_PITCH] - mean) * rstd * p.gamma[k] + p.beta[k]));
        if (lane == 0 && p.mean) p.mean[row] = (float)mean;
        if (lane == 0 && p.rstd) p.rstd[row] = (float)rstd;
    }
}

/* Lets a kernel have this much shared memory. */
static Status norm_any_room(const void *kernel, const Channels &s, size_t bytes)
{
    if (bytes > 200 * 1024) return status_fail(ERR_UNSUPPORTED, "a layer norm of %lld channels", (long long)s.c);
    return cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                      "shared memory of a layer norm");
}

template <typename T> static Status layer_norm_channels_any(const NormChannels &p, cudaStream_t stream)
{
    size_t bytes = (size_t)p.s.c * NORM_PITCH * sizeof(float);
    TRY(norm_any_room((const void *)layer_norm_channels_any_kernel<T>, p.s, bytes));
    launch(layer_norm_channels_any_kernel<T>, dim3(blocks_for(p.s.pairs, SQUARE), (unsigned)p.s.groups),
           CHANNELS_THREADS, bytes, stream, p);
    return cuda_launched("layer_norm_channels_any_kernel");
}

static bool norm_is_wide(const Channels &s, DType type, const void *x, const void *y, const void *dy)
{
    return type == DT_BF16 && (s.c == 64 || s.c == 128) && s.pairs % 8 == 0 && s.groups <= 65535 && aligned16(x) &&
           aligned16(y) && aligned16(dy);
}

Status layer_norm_channels_run(CudaContext *ctx, const OpCall *call)
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
    DISPATCH_REAL(call, type, { return layer_norm_channels_any<T>(p, ctx->stream); });
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

/* dx of pairs from pair0 on, channels as rows. */
template <int C>
__device__ __forceinline__ void norm_store(const NormChannels &p, HalvesTile<C, CHANNELS_TILE / C> &tile, int64_t group,
                                           int64_t pair0)
{
    constexpr int PAIRS = CHANNELS_TILE / C;
    int64_t pairs = p.s.pairs;
    bf16 *y = (bf16 *)p.y + pair0;
#pragma unroll
    for (int it = 0; it < NormTile<C>::STEPS; it++) {
        int k = it * CHANNELS_THREADS + threadIdx.x, r = k / (PAIRS / 8), c = k % (PAIRS / 8) * 8;
        if (pair0 + c < pairs) store16(y + (group * C + r) * pairs + c, tile.get_row(r, c));
    }
}

/* dx = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)); the tile holds x, then dx. Blocks go round the tiles; the next
 * one is on its way meanwhile. */
template <int C>
static __global__ void __launch_bounds__(CHANNELS_THREADS, 2)
    layer_norm_channels_bwd_kernel(const __grid_constant__ NormChannels p)
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
        norm_store<C>(p, tile, group, pair0);
        __syncthreads();
    }
    norm_sums<C>(dgamma, dbeta, shared, p.partial);
}

/* Any extents: a thread sums over the pairs of a tile for its channels, then warps turn x into dx, a pair each. */
template <typename T>
static __global__ void __launch_bounds__(CHANNELS_THREADS) layer_norm_channels_bwd_any_kernel(NormChannels p)
{
    stage_wait();
    extern __shared__ __align__(16) char memory[];
    int lane = threadIdx.x % WARP, c = (int)p.s.c;
    double *dgamma = reinterpret_cast<double *>(memory), *dbeta = dgamma + c;
    float *tile = reinterpret_cast<float *>(dbeta + c);
    int64_t pairs = p.s.pairs, row_tiles = (pairs + SQUARE - 1) / SQUARE;
    for (int k = threadIdx.x; k < c; k += CHANNELS_THREADS) dgamma[k] = dbeta[k] = 0;
    for (int64_t work = blockIdx.x; work < row_tiles * p.s.groups; work += gridDim.x) {
        int64_t group = work / row_tiles, pair0 = work % row_tiles * SQUARE, row0 = group * pairs + pair0;
        int count = pairs - pair0 < SQUARE ? (int)(pairs - pair0) : (int)SQUARE;
        const T *dy = (const T *)p.dy + row0 * c;
        norm_any_load(tile, (const T *)p.x + group * c * pairs, p.s, pair0);
        __syncthreads();
        for (int k = threadIdx.x; k < c; k += CHANNELS_THREADS)
            for (int q = 0; q < count; q++) {
                double d = to_float(dy[(int64_t)q * c + k]), mean = p.mean_in[row0 + q], rstd = p.rstd_in[row0 + q];
                dgamma[k] += d * (tile[k * NORM_PITCH + q] - mean) * rstd;
                dbeta[k] += d;
            }
        __syncthreads();
        for (int q = threadIdx.x / WARP; q < count; q += CHANNELS_THREADS / WARP) {
            float *x = tile + q;
            double mean = p.mean_in[row0 + q], rstd = p.rstd_in[row0 + q], a = 0, b = 0;
            for (int k = lane; k < c; k += WARP) {
                double d = to_float(dy[(int64_t)q * c + k]) * p.gamma[k];
                a += d;
                b += d * (x[k * NORM_PITCH] - mean) * rstd;
            }
            a = lanes_sum<WARP>(a) / c;
            b = lanes_sum<WARP>(b) / c;
            for (int k = lane; k < c; k += WARP) {
                double hat = (x[k * NORM_PITCH] - mean) * rstd, d = to_float(dy[(int64_t)q * c + k]) * p.gamma[k];
                x[k * NORM_PITCH] = (float)(rstd * (d - a - hat * b));
            }
        }
        __syncthreads();
        T *dx = (T *)p.y + group * c * pairs + pair0;
        for (int64_t k = threadIdx.x / SQUARE; k < c; k += SQUARE_ROWS)
            if (lane < count) dx[k * pairs + lane] = from_float<T>(tile[k * NORM_PITCH + lane]);
        __syncthreads();
    }
    for (int k = threadIdx.x; k < c; k += CHANNELS_THREADS) {
        p.partial[(int64_t)blockIdx.x * 2 * c + k] = (float)dgamma[k];
        p.partial[(int64_t)blockIdx.x * 2 * c + c + k] = (float)dbeta[k];
    }
}

template <typename T> static Status layer_norm_channels_bwd_any(const NormChannels &p, cudaStream_t stream)
{
    size_t bytes = (size_t)p.s.c * (NORM_PITCH * sizeof(float) + 2 * sizeof(double));
    int64_t tiles = (p.s.pairs + SQUARE - 1) / SQUARE * p.s.groups;
    unsigned blocks = tiles < CHANNELS_BLOCKS ? (unsigned)tiles : (unsigned)CHANNELS_BLOCKS;
    TRY(norm_any_room((const void *)layer_norm_channels_bwd_any_kernel<T>, p.s, bytes));
    launch(layer_norm_channels_bwd_any_kernel<T>, blocks, CHANNELS_THREADS, bytes, stream, p);
    TRY(cuda_launched("layer_norm_channels_bwd_any_kernel"));
    return sum_partials_split_launch(p.partial, p.mean, p.rstd, blocks, p.s.c, stream);
}

static NormChannels norm_bwd_of(const OpCall *call)
{
    NormChannels p = {};
    p.s = channels_of(call->in_tensor[1]);
    p.dy = call->in[0], p.x = call->in[1], p.y = call->out[0];
    p.gamma = (const float *)call->in[2];
    p.mean_in = (const float *)call->in[3], p.rstd_in = (const float *)call->in[4];
    p.mean = (float *)call->out[1], p.rstd = (float *)call->out[2];
    p.partial = (float *)call->scratch;
    return p;
}

static bool norm_bwd_is_wide(const OpCall *call, const NormChannels &p)
{
    return norm_is_wide(p.s, call->in_tensor[1]->dtype, p.x, p.y, p.dy) && aligned16(p.gamma);
}

Status layer_norm_channels_bwd_run(CudaContext *ctx, const OpCall *call)
{
    DType type = call->in_tensor[1]->dtype;
    NormChannels p = norm_bwd_of(call);
    if (norm_bwd_is_wide(call, p)) {
        int64_t tile = CHANNELS_TILE / p.s.c, tiles = (p.s.pairs + tile - 1) / tile * p.s.groups;
        unsigned blocks = tiles < CHANNELS_BLOCKS ? (unsigned)tiles : (unsigned)CHANNELS_BLOCKS;
        if (p.s.c == 64)
            launch(layer_norm_channels_bwd_kernel<64>, blocks, CHANNELS_THREADS, 0, ctx->stream, p);
        else
            launch(layer_norm_channels_bwd_kernel<128>, blocks, CHANNELS_THREADS, 0, ctx->stream, p);
        TRY(cuda_launched("layer_norm_channels_bwd_kernel"));
        return sum_partials_split_launch(p.partial, p.mean, p.rstd, blocks, p.s.c, ctx->stream);
    }
    DISPATCH_REAL(call, type, { return layer_norm_channels_bwd_any<T>(p, ctx->stream); });
}

size_t layer_norm_channels_bwd_scratch(const OpCall *call)
{
    return (size_t)CHANNELS_BLOCKS * 2 * (size_t)channels_of(call->in_tensor[1]).c * sizeof(float);
}

const CudaEntry cuda_norm_channels[] = {
    {OP_LAYER_NORM_CHANNELS, layer_norm_channels_run, NULL},
    {OP_LAYER_NORM_CHANNELS_BWD, layer_norm_channels_bwd_run, layer_norm_channels_bwd_scratch},
    {OP_COUNT, NULL, NULL},
};
