/* The outer product mean as chained products (chain.cuh). */
#ifndef FOLDSCALE_KERNELS_CUDA_OUTER_CHAIN_CUH
#define FOLDSCALE_KERNELS_CUDA_OUTER_CHAIN_CUH

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/norm_tile.cuh"
#include "kernels/cuda/outer_project.cuh"
#include "kernels/cuda/transpose.cuh"

struct Outer {
    int64_t s, n, m, c, d;
    DType type;
};

static Outer outer_make(const Tensor *a, const Tensor *b)
{
    return {a->dim[0], a->dim[1], b->dim[1], a->dim[2], b->dim[2], a->dtype};
}
static size_t outer_bytes(const Outer &o)
{
    return align_up((size_t)(o.n * o.m * o.c * o.d) * dtype_size(o.type));
}

static bool opm_chains(const Outer &o, int64_t channels)
{
    return o.type == DT_BF16 && o.s == CHAIN_K && o.d == CHAIN_D && channels == CHAIN_N && chain_fits(o.n, o.c, o.m);
}

/* --- operands with another axis last */

/* x[128, columns] times its masks -> across[columns, 128] and, where asked for, plain[128, columns].
 * `swap`: columns (c, d) go to rows (d, c). */
struct Turn {
    const bf16 *x;
    bf16 *across, *plain;
    AnyReal mask; /* of (row, column / channels), or none */
    int columns, channels;
    bool swap;
};

enum { TURNS = 4, TURN_COLUMNS = 64 };
struct Turns {
    Turn turn[TURNS];
    int count;
    unsigned first[TURNS + 1]; /* block at which each begins */
};

typedef HalvesTile<CHAIN_K, TURN_COLUMNS> TurnTile;

__device__ __forceinline__ void opm_turn_tile(const Turn &t, int block, TurnTile &tile)
{
    constexpr int R = CHAIN_K, C = TURN_COLUMNS, EACH = R * C / 8 / 256;
    int column0 = block * C, groups = t.columns / t.channels;
    Pack<bf16> v[EACH];
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, r = k / (C / 8), c = column0 + k % (C / 8) * 8;
        if (c < t.columns) v[it] = load_pack(t.x + (int64_t)r * t.columns + c);
    }
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, r = k / (C / 8), c = column0 + k % (C / 8) * 8;
        if (t.mask.p && c < t.columns) {
            float m = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (j == 0 || t.channels % 8) m = t.mask[r * groups + (c + j) / t.channels];
                v[it].v[j] = from_float<bf16>(to_float(v[it].v[j]) * m);
            }
        }
        if (t.plain && c < t.columns) store_pack(t.plain + (int64_t)r * t.columns + c, v[it]);
        tile.put_row(r, c - column0, *reinterpret_cast<const uint4 *>(&v[it]));
    }
    __syncthreads();
#pragma unroll
    for (int it = 0; it < EACH; it++) {
        int k = it * 256 + threadIdx.x, c = k / (R / 8), r = k % (R / 8) * 8, row = column0 + c;
        if (row >= t.columns) continue;
        if (t.swap) row = row % t.channels * groups + row / t.channels;
        *reinterpret_cast<uint4 *>(t.across + (int64_t)row * R + r) = tile.get_column(r, c);
    }
}

/* dz = dy / (count + eps) over [pairs, 128], and the sums over the pairs of a block to partial[block][128]; 16 lanes
 * own a pair. */
struct Scale {
    const bf16 *dy;
    bf16 *dz;
    AnyReal count;
    float eps;
    int64_t pairs;
    float *partial;
};
enum { SCALE_BLOCKS = 528, SCALE_LANES = CHAIN_N / 8, SCALE_PAIRS = 256 / SCALE_LANES };

__device__ __forceinline__ void opm_scale_block(const Scale &s, int block, float (*shared)[CHAIN_N])
{
    int channel = threadIdx.x % SCALE_LANES * 8, own = threadIdx.x / SCALE_LANES;
    float sum[8] = {};
#pragma unroll 4
    for (int64_t pair = (int64_t)block * SCALE_PAIRS + own; pair < s.pairs; pair += SCALE_BLOCKS * SCALE_PAIRS) {
        float v[8], scale = 1.0f / (s.count[pair] + s.eps);
        load_floats<8>(s.dy + pair * CHAIN_N + channel, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= scale, sum[j] += v[j];
        store_floats<8>(s.dz + pair * CHAIN_N + channel, v);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) shared[own][channel + j] = sum[j];
    __syncthreads();
    if (threadIdx.x >= CHAIN_N) return;
    float total = 0;
    for (int k = 0; k < SCALE_PAIRS; k++) total += shared[k][threadIdx.x];
    s.partial[(int64_t)block * CHAIN_N + threadIdx.x] = total;
}

/* Blocks of the scale, if there is one, then those of the turns. */
static __global__ void __launch_bounds__(256)
    opm_prepare_kernel(const __grid_constant__ Turns turns, const __grid_constant__ Scale scale)
{
    stage_wait();
    stage_release();
    __shared__ union {
        TurnTile tile;
        float sums[SCALE_PAIRS][CHAIN_N];
    } shared;
    int block = (int)blockIdx.x - (scale.dy ? SCALE_BLOCKS : 0), which = 0;
    if (block < 0) return opm_scale_block(scale, (int)blockIdx.x, shared.sums);
    while (which + 1 < turns.count && block >= (int)turns.first[which + 1]) which++;
    opm_turn_tile(turns.turn[which], block - (int)turns.first[which], shared.tile);
}

static Status opm_prepare_launch(const Scale &scale, Turns &turns, cudaStream_t stream)
{
    for (int k = 0; k < turns.count; k++)
        turns.first[k + 1] = turns.first[k] + blocks_for(turns.turn[k].columns, TURN_COLUMNS);
    unsigned blocks = turns.first[turns.count] + (scale.dy ? SCALE_BLOCKS : 0);
    launch(opm_prepare_kernel, blocks, 256, 0, stream, turns, scale);
    return cuda_launched("opm_prepare_kernel");
}

static Turn opm_turn(const void *x, bf16 *across, int64_t groups, int64_t channels)
{
    return {(const bf16 *)x, across, NULL, {NULL, DT_F32}, (int)(groups * channels), (int)channels, false};
}

static bool opm_aligned(const OpCall *call)
{
    bool all = true;
    for (int k = 0; k < call->op->n_in; k++) all = all && (!call->in_tensor[k] || aligned16(call->in[k]));
    for (int k = 0; k < call->op->n_out; k++) all = all && (!call->out_tensor[k] || aligned16(call->out[k]));
    return all;
}

/* elements of a and b with s last */
static int64_t opm_turned(const Outer &o)
{
    return o.s * (o.n * o.c + o.m * o.d);
}

/* --- forward */

/* y[i, j, n] = (x + bias) / (count + eps), plus the residual where there is one; then the layer norm of y */
struct OpmEpilogue {
    static constexpr int PROBLEMS = 1;
    bf16 *y;
    const bf16 *residual;
    AnyReal count;
    const float *bias;
    float eps;
    int m;
    FrontNorm norm;
    /* a thread per row brings what put() will read of four j to the L2 cache */
    __device__ __forceinline__ void fetch(int i, int j0) const
    {
        if (residual) bulk_prefetch(residual + place(i, j0, 0), CHAIN_P * CHAIN_N * sizeof(bf16));
    }
    __device__ __forceinline__ void put(const float (&r)[64], int, int i, int j) const { chain_store(*this, r, i, j); }
    __device__ __forceinline__ float scale(int i, int j) const { return 1.0f / (count[(int64_t)i * m + j] + eps); }
    __device__ __forceinline__ uint32_t lower(float scale, int n, float a, float b) const
    {
        return pack_bf16((a + bias[n]) * scale, (b + bias[n + 1]) * scale);
    }
    __device__ __forceinline__ int64_t place(int i, int j, int n) const { return ((int64_t)i * m + j) * CHAIN_N + n; }
    __device__ __forceinline__ uint4 before(int i, int j, int n) const
    {
        return residual ? *reinterpret_cast<const uint4 *>(residual + place(i, j, n)) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ uint4 store(int i, int j, int n, uint4 v, uint4 r) const
    {
        if (residual) {
            v.x = add_bf16(v.x, r.x), v.y = add_bf16(v.y, r.y), v.z = add_bf16(v.z, r.z), v.w = add_bf16(v.w, r.w);
        }
        *reinterpret_cast<uint4 *>(y + place(i, j, n)) = v;
        return v;
    }
    /* Four neighbouring lanes have a row, lane t of them its runs t, 4 + t, ... of eight channels. */
    __device__ __forceinline__ void finish(int i, int j, const uint4 (&row)[CHAIN_N / 32]) const
    {
        if (!norm.gamma) return;
        constexpr int RUNS = CHAIN_N / 32;
        int lane = threadIdx.x % 4;
        float s[RUNS];
        uint32_t v[RUNS][4];
#pragma unroll
        for (int k = 0; k < RUNS; k++) {
            v[k][0] = row[k].x, v[k][1] = row[k].y, v[k][2] = row[k].z, v[k][3] = row[k].w;
            s[k] = eight_sum(v[k]);
        }
        float mean = lanes_sum<4>(pairs_sum(s)) / CHAIN_N;
#pragma unroll
        for (int k = 0; k < RUNS; k++) s[k] = eight_squares(v[k], mean);
        float rstd = 1.0f / sqrtf(lanes_sum<4>(pairs_sum(s)) / CHAIN_N + norm.eps);
#pragma unroll
        for (int k = 0; k < RUNS; k++) {
            int n = (4 * k + lane) * 8;
            eight_normalize(v[k], mean, rstd, eight_scales(norm, n));
            *reinterpret_cast<uint4 *>(norm.y + place(i, j, n)) = make_uint4(v[k][0], v[k][1], v[k][2], v[k][3]);
        }
        if (!norm.mean || lane > 0) return;
        norm.mean[(int64_t)i * m + j] = mean;
        norm.rstd[(int64_t)i * m + j] = rstd;
    }
    static __device__ __forceinline__ uint32_t add_bf16(uint32_t a, uint32_t b)
    {
        float2 x = unpack_bf16(a), y = unpack_bf16(b);
        return pack_bf16(x.x + y.x, x.y + y.y);
    }
};

static FrontNorm opm_norm(const OpCall *call)
{
    if (!call_in(call, 8)) return {};
    return {(const float *)call->in[8], (const float *)call->in[9], (float)call->op->attr.f[1],
            (bf16 *)call->out[1],       (float *)call->out[2],      (float *)call->out[3]};
}

static OpmEpilogue opm_epilogue(const OpCall *call)
{
    const bf16 *residual = call_in(call, 5) ? (const bf16 *)call->in[5] : NULL;
    return {(bf16 *)call->out[0],
            residual,
            any_in(call, 4),
            (const float *)call->in[3],
            (float)call->op->attr.f[0],
            (int)call->in_tensor[1]->dim[1],
            opm_norm(call)};
}

static Status opm_chain(CudaContext *ctx, const OpCall *call, const Outer &o)
{
    bf16 *a = (bf16 *)call->scratch, *b = a + o.s * o.n * o.c;
    Turns turns = {};
    turns.count = 2;
    turns.turn[0] = opm_turn(call->in[0], a, o.n, o.c), turns.turn[1] = opm_turn(call->in[1], b, o.m, o.d);
    turns.turn[0].mask = any_in(call, 6), turns.turn[1].mask = any_in(call, 7);
    Scale none = {};
    TRY(opm_prepare_launch(none, turns, ctx->stream));
    OpmEpilogue e = opm_epilogue(call);
    /* x_c[i, s], y_j[d, s], v_c[n, d] */
    ChainOperands p = {a, b, (const bf16 *)call->in[2], o.n, o.c, o.m, o.s, o.c * o.s};
    const int runs = 1;
    return chain_launch(&p, &runs, &e, ctx->stream);
}

#endif
