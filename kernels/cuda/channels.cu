/* Gates at the edges of channel-first triangle products: those that write [G?,C,.,.], their gradients from there. Tiles
 * go through shared memory, so that both sides move 16 bytes per access; f32 and odd extents by squares that move
 * single elements. */
#include "kernels/cuda/channels.cuh"
#include "kernels/cuda/channels.h"

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

/* The same by squares of 32 x 32 elements of any type; grid (pairs / 32, c / 32, groups * count) */
template <typename T>
static __global__ void __launch_bounds__(CHANNELS_THREADS)
    gate_channels_any_kernel(GateChannels p, Channels s, AnyReal mask)
{
    stage_wait();
    __shared__ float tile[SQUARE][SQUARE + 1];
    int which = blockIdx.z % p.count, group = blockIdx.z / p.count, lane = threadIdx.x % SQUARE;
    int64_t pair0 = (int64_t)blockIdx.x * SQUARE, channel0 = (int64_t)blockIdx.y * SQUARE;
    const T *value = (const T *)p.value[which], *gate = (const T *)p.gate[which];
    T *a = (T *)p.a[which] + group * s.c * s.pairs;
#pragma unroll
    for (int r = threadIdx.x / SQUARE; r < SQUARE; r += SQUARE_ROWS) {
        int64_t position = group * s.pairs + pair0 + r, from = position * s.c + channel0 + lane;
        if (pair0 + r < s.pairs && channel0 + lane < s.c)
            tile[r][lane] = sigmoidf(to_float(gate[from])) * to_float(value[from]) * mask[position];
    }
    __syncthreads();
#pragma unroll
    for (int r = threadIdx.x / SQUARE; r < SQUARE; r += SQUARE_ROWS)
        if (channel0 + r < s.c && pair0 + lane < s.pairs)
            a[(channel0 + r) * s.pairs + pair0 + lane] = from_float<T>(tile[lane][r]);
}

static dim3 squares(const Channels &s, int64_t count)
{
    return dim3(blocks_for(s.pairs, SQUARE), blocks_for(s.c, SQUARE), (unsigned)(s.groups * count));
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
        launch(gate_channels_any_kernel<T>, squares(s, p.count), CHANNELS_THREADS, 0, stream, p, s, mask);
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

/* by squares; grid (pairs / 32, c / 32, groups) */
template <typename T>
static __global__ void __launch_bounds__(CHANNELS_THREADS)
    gate_channels_bwd_any_kernel(const T *dy, const T *g, const T *x, AnyReal mask, T *dg, T *dx, Channels s)
{
    stage_wait();
    __shared__ float tile[SQUARE][SQUARE + 1];
    int64_t group = blockIdx.z, pair0 = (int64_t)blockIdx.x * SQUARE, channel0 = (int64_t)blockIdx.y * SQUARE;
    int lane = threadIdx.x % SQUARE;
    dy += group * s.c * s.pairs;
#pragma unroll
    for (int r = threadIdx.x / SQUARE; r < SQUARE; r += SQUARE_ROWS)
        if (channel0 + r < s.c && pair0 + lane < s.pairs)
            tile[r][lane] = to_float(dy[(channel0 + r) * s.pairs + pair0 + lane]);
    __syncthreads();
#pragma unroll
    for (int r = threadIdx.x / SQUARE; r < SQUARE; r += SQUARE_ROWS) {
        if (pair0 + r >= s.pairs || channel0 + lane >= s.c) continue;
        int64_t position = group * s.pairs + pair0 + r, at = position * s.c + channel0 + lane;
        float sigmoid = sigmoidf(to_float(g[at])), d = tile[lane][r] * mask[position];
        dg[at] = from_float<T>(d * to_float(x[at]) * sigmoid * (1.0f - sigmoid));
        dx[at] = from_float<T>(d * sigmoid);
    }
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
        launch(gate_channels_bwd_any_kernel<T>, squares(s, 1), CHANNELS_THREADS, 0, ctx->stream, (const T *)call->in[0],
               (const T *)call->in[1], (const T *)call->in[2], any_in(call, 3), (T *)call->out[0], (T *)call->out[1],
               s);
    });
    return cuda_launched("gate_channels_bwd_any_kernel");
}

const CudaEntry cuda_channels[] = {
    {OP_GATE_CHANNELS_BWD, gate_channels_bwd, NULL},
    {OP_COUNT, NULL, NULL},
};
