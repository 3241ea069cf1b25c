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

/* y[i, j, n] = (x + bias) / (count + eps), plus the residual where there is one; then the layer norm of y. In a chain
 * what it reads of other tensors is in shared memory by then, so that the products' warps wait for no loads: constants
 * from idle threads, half of the residual's rows in room of their own, half in a slot of the ring that is free early.
 */
struct OpmEpilogue {
    static constexpr int PROBLEMS = 1;
    /* floats of the constants; rows of the residual 16 banks apart */
    static constexpr int SCALES = 0, BIAS = CHAIN_ROWS * CHAIN_P, GAMMA = BIAS + CHAIN_N, BETA = GAMMA + CHAIN_N;
    static constexpr int HALF_ROWS = CHAIN_ROWS / 2, ROW_BYTES = CHAIN_P * CHAIN_N * 2, ROW_PITCH = ROW_BYTES + 64;
    static constexpr int RESIDUAL_AT = CHAIN_ROOM_BYTES - HALF_ROWS * ROW_PITCH;
    bf16 *y;
    const bf16 *residual;
    AnyReal count;
    const float *bias;
    float eps;
    int m;
    FrontNorm norm;
    __device__ __forceinline__ void keep(const ChainPlace &at, int thread) const
    {
        if (thread < CHAIN_ROWS) {
            /* to the L2 cache, whence bring() takes it */
            if (residual) bulk_prefetch(residual + place(at.row0 + thread, at.p0, 0), ROW_BYTES);
#pragma unroll
            for (int k = 0; k < CHAIN_P; k++)
                keep_float(at, SCALES + thread * CHAIN_P + k, scale(at.row0 + thread, at.p0 + k));
        }
        for (int n = thread; n < CHAIN_N; n += CHAIN_IDLE) {
            keep_float(at, BIAS + n, bias[n]);
            if (!norm.gamma) continue;
            keep_float(at, GAMMA + n, norm.gamma[n]);
            keep_float(at, BETA + n, norm.beta[n]);
        }
        barrier_arrive(at.kept);
    }
    __device__ __forceinline__ void bring(const ChainPlace &at) const
    {
        static_assert((BETA + CHAIN_N) * 4 <= RESIDUAL_AT && RESIDUAL_AT % 16 == 0 && HALF_ROWS == WARP);
        if (!residual) return;
        int lane = threadIdx.x % WARP;
        if (lane == 0) barrier_expect(at.brought, CHAIN_ROWS * ROW_BYTES);
        __syncwarp();
        bring_row(at, lane);
        chain_slot_wait(at, at.steps);
        bring_row(at, HALF_ROWS + lane);
    }
    __device__ __forceinline__ void bring_row(const ChainPlace &at, int row) const
    {
        bulk_load(residual_at(at, row), residual + place(at.row0 + row, at.p0, 0), ROW_BYTES, at.brought);
    }
    __device__ __forceinline__ void wait(const ChainPlace &at) const
    {
        barrier_wait(at.kept, 0);
        if (residual) barrier_wait(at.brought, 0);
    }
    static __device__ __forceinline__ uint32_t residual_at(const ChainPlace &at, int row)
    {
        uint32_t half = row < HALF_ROWS ? at.room + RESIDUAL_AT : chain_slot(at, at.steps);
        return half + row % HALF_ROWS * ROW_PITCH;
    }
    static __device__ __forceinline__ void keep_float(const ChainPlace &at, int k, float x)
    {
        shared_word_put(at.room + k * 4, __float_as_uint(x));
    }
    __device__ __forceinline__ void put(const float (&r)[64], const ChainPlace &at, int row, int p) const;
    __device__ __forceinline__ float scale(int i, int j) const
    {
        return 1.0f / (count[(int64_t)i * m + j] + eps);
    }
    static __device__ __forceinline__ uint32_t lower(float scale, float2 add, float a, float b)
    {
        return pack_bf16((a + add.x) * scale, (b + add.y) * scale);
    }
    __device__ __forceinline__ int64_t place(int i, int j, int n) const
    {
        return ((int64_t)i * m + j) * CHAIN_N + n;
    }
    __device__ __forceinline__ uint4 store(int i, int j, int n, uint4 v, uint4 r, bool residual) const
    {
        if (residual) {
            v.x = add_bf16(v.x, r.x), v.y = add_bf16(v.y, r.y), v.z = add_bf16(v.z, r.z), v.w = add_bf16(v.w, r.w);
        }
        *reinterpret_cast<uint4 *>(y + place(i, j, n)) = v;
        return v;
    }
    /* Of two pairs (i, j), `second` that many further. Four neighbouring lanes have a row, lane t of them its runs t,
     * 4 + t, ... of eight channels. scales(n): EightScales of channels n .. n + 7. */
    template <typename Scales>
    __device__ __forceinline__ void finish(int64_t pair, int second, const uint4 (&rows)[2][CHAIN_N / 32],
                                           const Scales &scales) const
    {
        constexpr int RUNS = CHAIN_N / 32;
        int lane = threadIdx.x % 4;
        float mean[2], rstd[2];
        uint32_t v[2][RUNS][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float s[RUNS];
#pragma unroll
            for (int k = 0; k < RUNS; k++) {
                const uint4 &row = rows[half][k];
                v[half][k][0] = row.x, v[half][k][1] = row.y, v[half][k][2] = row.z, v[half][k][3] = row.w;
                s[k] = eight_sum(v[half][k]);
            }
            mean[half] = lanes_sum<4>(pairs_sum(s)) / CHAIN_N;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float s[RUNS];
#pragma unroll
            for (int k = 0; k < RUNS; k++) s[k] = eight_squares(v[half][k], mean[half]);
            rstd[half] = 1.0f / sqrtf(lanes_sum<4>(pairs_sum(s)) / CHAIN_N + norm.eps);
        }
#pragma unroll
        for (int k = 0; k < RUNS; k++) {
            int n = (4 * k + lane) * 8;
            EightScales of_n = scales(n);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t(&w)[4] = v[half][k];
                eight_normalize(w, mean[half], rstd[half], of_n);
                *reinterpret_cast<uint4 *>(norm.y + (pair + half * second) * CHAIN_N + n) =
                    make_uint4(w[0], w[1], w[2], w[3]);
            }
        }
        if (!norm.mean || lane > 0) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            norm.mean[pair + half * second] = mean[half];
            norm.rstd[pair + half * second] = rstd[half];
        }
    }
    static __device__ __forceinline__ uint32_t add_bf16(uint32_t a, uint32_t b)
    {
        float2 x = unpack_bf16(a), y = unpack_bf16(b);
        return pack_bf16(x.x + y.x, x.y + y.y);
    }
};

/* The epilogue of a chain, for chain_store(): row and p within the block. residual: so that row r of this thread lies
 * at residual + r * ROW_PITCH; both of its rows are in the same half. */
template <bool RESIDUAL> struct OpmEdge {
    const OpmEpilogue &e;
    const ChainPlace &at;
    uint32_t residual;
    __device__ __forceinline__ float scale(int row, int p) const
    {
        return __uint_as_float(shared_word(at.room + (OpmEpilogue::SCALES + row * CHAIN_P + p) * 4));
    }
    __device__ __forceinline__ uint32_t lower(float scale, int n, float a, float b) const
    {
        return e.lower(scale, shared_floats(at.room + (OpmEpilogue::BIAS + n) * 4), a, b);
    }
    __device__ __forceinline__ uint4 before(int row, int p, int n) const
    {
        uint32_t v[4] = {};
        if (RESIDUAL) shared_chunk(residual + row * OpmEpilogue::ROW_PITCH + (p * CHAIN_N + n) * 2, v);
        return make_uint4(v[0], v[1], v[2], v[3]);
    }
    __device__ __forceinline__ uint4 store(int row, int p, int n, uint4 v, uint4 r) const
    {
        return e.store(at.row0 + row, at.p0 + p, n, v, r, RESIDUAL);
    }
    __device__ __forceinline__ void finish(int row, int p, const uint4 (&rows)[2][CHAIN_N / 32]) const
    {
        if (!e.norm.gamma) return;
        e.finish((int64_t)(at.row0 + row) * e.m + at.p0 + p, 8 * e.m, rows, [&](int n) {
            EightScales s;
#pragma unroll
            for (int k = 0; k < 8; k += 4) {
                uint32_t g[4], b[4];
                shared_chunk(at.room + (OpmEpilogue::GAMMA + n + k) * 4, g);
                shared_chunk(at.room + (OpmEpilogue::BETA + n + k) * 4, b);
#pragma unroll
                for (int j = 0; j < 4; j++) s.g[k + j] = __uint_as_float(g[j]), s.b[k + j] = __uint_as_float(b[j]);
            }
            return s;
        });
    }
};

__device__ __forceinline__ void OpmEpilogue::put(const float (&r)[64], const ChainPlace &at, int row, int p) const
{
    if (residual)
        chain_store(OpmEdge<true>{*this, at, residual_at(at, row) - row * ROW_PITCH}, r, row, p);
    else
        chain_store(OpmEdge<false>{*this, at, 0}, r, row, p);
}

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
