/* The gradient of a layer norm at the edge of a product: d, what the layer norm's result receives, stands in the
 * accumulators of a warpgroup, 64 whole rows of it. With n = (x - mean) rstd and g = gamma d,
 *   dx = rstd (g - mean(g) - n mean(g n)) (+ what arrives at x on another way), dropout(dx),
 * and the block's share of dgamma = sum d n, dbeta = sum d, which a second kernel adds up in a fixed order. */
#ifndef FOLDSCALE_KERNELS_CUDA_NORM_EDGE_CUH
#define FOLDSCALE_KERNELS_CUDA_NORM_EDGE_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/reduce.cuh"

/* Elements of the mask that a thread meets: others in every tile, one row of them in every tile, always the same. */
enum NormMask { MASK_OF_ELEMENTS, MASK_OF_COLUMNS, MASK_OF_BLOCK };

struct NormEdge {
    const bf16 *other; /* NULL: none */
    const float *gamma, *mean, *rstd;
    bf16 *dx, *dropped; /* dropped: NULL where not wanted */
    Dropout drop;
    NormMask mask;
    float *partial; /* per block: dgamma[C], dbeta[C] */
    int rows;
};

/* Rows on their way out: a thread has 8 columns of every STEP-th row of its warpgroup, KEPT words of the mask. */
template <int C> struct NormLines {
    static constexpr int VECTORS = C / 8, STEP = 128 / VECTORS, COUNT = 64 / STEP, KEPT = (COUNT + 3) / 4;
};

/* What the 64 rows of a warpgroup from row0 on bring along: this thread's two of them, and its bits of the mask. */
template <int C> struct NormPart {
    int row0;
    float mean[2], rstd[2];
    uint32_t kept[NormLines<C>::KEPT];
};

/* Sums of v over the lanes of one column pair (eight rows): lane l keeps that of v[l / 4], which at place q of the
 * accumulators is column (l / 8 + 4 q) 8 + 2 (l % 4) + l / 4 % 2. */
__device__ __forceinline__ float sum_over_rows(float (&v)[8])
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 4; n > 0; n /= 2) {
        bool upper = lane & 4 * n;
#pragma unroll
        for (int k = 0; k < n; k++) {
            float send = upper ? v[k] : v[k + n], keep = upper ? v[k + n] : v[k];
            v[k] = keep + __shfl_xor_sync(0xffffffffu, send, 4 * n);
        }
    }
    return v[0];
}

/* A thread's shares of dgamma and dbeta: of its own columns where there are registers for them (OWN), else those that
 * sum_over_rows() left it. */
template <int C, bool OWN> struct NormSums {
    float v[2][OWN ? C / 4 : C / 32];
};

/* What is left to do once means are known: dx = rstd g + slope x + base, of both rows of a thread. */
struct NormLine {
    float rstd[2], slope[2], base[2];
};

/* x, over which dx goes, 64 rows of it in tiles of 64 columns in the 128-byte swizzle: the words of columns 32 q.. of
 * this thread's rows. */
template <int PANEL_BYTES> struct NormRowTile {
    uint32_t x;
    __device__ __forceinline__ uint32_t word(int j, int h) const
    {
        int thread = threadIdx.x % 128, lane = thread % WARP;
        return x + (thread / WARP * 16 + lane / 4) * 128 + lane % 4 * 4 + j / 8 * PANEL_BYTES +
               ((j % 8 ^ lane / 4) << 4) + h * 1024;
    }
    __device__ __forceinline__ void get(int q, uint32_t (&words)[8]) const
    {
#pragma unroll
        for (int k = 0; k < 8; k++) words[k] = shared_word(word(q * 4 + k / 2, k % 2));
    }
    __device__ __forceinline__ void put(int q, const uint32_t (&words)[8]) const
    {
#pragma unroll
        for (int k = 0; k < 8; k++) shared_word_put(word(q * 4 + k / 2, k % 2), words[k]);
    }
};

/* d in the layout of a warpgroup's accumulators -> g, and the sums. Words of x stay in registers if they may (KEEP). */
template <int C, bool KEEP, bool OWN, typename Place>
__device__ __forceinline__ NormLine norm_edge_means(float (&d)[C / 2], const Place &x, const float *gamma,
                                                    const NormPart<C> &part, uint32_t (&words)[KEEP ? C / 32 : 1][8],
                                                    NormSums<C, OWN> *sums)
{
    float a[2] = {}, b[2] = {}, shift[2] = {-part.mean[0] * part.rstd[0], -part.mean[1] * part.rstd[1]};
    gamma += threadIdx.x % 4 * 2;
#pragma unroll
    for (int q = 0; q < C / 32; q++) {
        float share[2][8];
        uint32_t(&v)[8] = words[KEEP ? q : 0];
        x.get(q, v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 g = *reinterpret_cast<const float2 *>(gamma + (q * 4 + i) * 8);
            float *e = d + (q * 4 + i) * 4, n[4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float2 y = unpack_bf16(v[i * 2 + h]);
                n[2 * h] = fmaf(y.x, part.rstd[h], shift[h]), n[2 * h + 1] = fmaf(y.y, part.rstd[h], shift[h]);
            }
            share[0][2 * i] = fmaf(e[0], n[0], e[2] * n[2]), share[0][2 * i + 1] = fmaf(e[1], n[1], e[3] * n[3]);
            share[1][2 * i] = e[0] + e[2], share[1][2 * i + 1] = e[1] + e[3];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                e[2 * h] *= g.x, e[2 * h + 1] *= g.y;
                a[h] += e[2 * h] + e[2 * h + 1];
                b[h] = fmaf(e[2 * h], n[2 * h], fmaf(e[2 * h + 1], n[2 * h + 1], b[h]));
            }
        }
#pragma unroll
        for (int which = 0; which < 2; which++) {
            if constexpr (OWN) {
#pragma unroll
                for (int k = 0; k < 8; k++) sums->v[which][q * 8 + k] += share[which][k];
            } else {
                sums->v[which][q] += sum_over_rows(share[which]);
            }
        }
    }
    NormLine line;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float rstd = part.rstd[h], mean_g = lanes_sum<4>(a[h]) / C, mean_gn = lanes_sum<4>(b[h]) / C;
        line.rstd[h] = rstd, line.slope[h] = -rstd * rstd * mean_gn,
        line.base[h] = -rstd * fmaf(shift[h], mean_gn, mean_g);
    }
    return line;
}

/* dx in bf16 over x, columns 32 q.. */
template <int C, typename Place>
__device__ __forceinline__ void norm_edge_put(const float (&d)[C / 2], const Place &x, int q, const NormLine &line,
                                              const uint32_t (&words)[8])
{
    uint32_t out[8];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        int j = q * 4 + k / 2, h = k % 2;
        float2 v = unpack_bf16(words[k]);
        v.x = fmaf(line.rstd[h], d[j * 4 + 2 * h], fmaf(line.slope[h], v.x, line.base[h]));
        v.y = fmaf(line.rstd[h], d[j * 4 + 2 * h + 1], fmaf(line.slope[h], v.y, line.base[h]));
        out[k] = pack_bf16(v.x, v.y);
    }
    x.put(q, out);
}

/* A bit per element of this thread's part of a row, `row` being that of the first thread. */
template <int C> __device__ __forceinline__ uint32_t norm_edge_bits(const NormEdge &p, const DropoutDraw &draw, int row)
{
    typedef NormLines<C> S;
    int thread = threadIdx.x % 128;
    uint32_t bits = 0, first = (uint32_t)(row + thread / S::VECTORS) * C + thread % S::VECTORS * 8;
    uint32_t at = p.drop.mask_element(first) >> 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t w[4];
        p.drop.words(draw, at + half, w);
#pragma unroll
        for (int e = 0; e < 4; e++) bits |= (uint32_t)p.drop.keeps(w[e]) << (half * 4 + e);
    }
    return bits;
}

/* How many draws a part needs; first: it is the first of its place in the tile. */
template <int C> __device__ __forceinline__ int norm_edge_draws(const NormEdge &p, bool first)
{
    if (!p.dropped || (!first && p.mask == MASK_OF_BLOCK)) return 0;
    return p.mask == MASK_OF_COLUMNS ? 1 : NormLines<C>::COUNT;
}
/* Draw k of these, in order. */
template <int C>
__device__ __forceinline__ void norm_edge_draw(const NormEdge &p, const DropoutDraw &draw, int k, NormPart<C> *part)
{
    typedef NormLines<C> S;
    uint32_t bits = norm_edge_bits<C>(p, draw, part->row0 + k * S::STEP);
#pragma unroll
    for (int word = 0; word < S::KEPT; word++) {
        uint32_t old = part->kept[word], mine = (k % 4 ? old : 0) | bits << k % 4 * 8;
        part->kept[word] = p.mask == MASK_OF_COLUMNS ? bits * 0x01010101u : k / 4 == word ? mine : old;
    }
}

/* The draws beside a product. */
template <int C> struct NormDraws {
    const NormEdge &p;
    const DropoutDraw &draw;
    int count;
    NormPart<C> &part;
    __device__ __forceinline__ void operator()(int k) const
    {
        if (k < count) norm_edge_draw<C>(p, draw, k, &part);
    }
};

/* Where dx begins for a row of the 64 of a warpgroup from row0 on: in memory of this rank, the same for all. */
struct NormOwnRows {
    const NormEdge &p;
    __device__ __forceinline__ void begin(int) const {}
    __device__ __forceinline__ bf16 *operator()(int) const { return p.dx; }
};

template <int C>
__device__ __forceinline__ void norm_edge_other(const NormEdge &p, int row, int64_t at,
                                                uint4 (&other)[NormLines<C>::COUNT])
{
    typedef NormLines<C> S;
#pragma unroll
    for (int k = 0; k < S::COUNT; k++)
        other[k] = p.other && row + k * S::STEP < p.rows
                       ? __ldg(reinterpret_cast<const uint4 *>(p.other + at + (int64_t)k * S::STEP * C))
                       : make_uint4(0, 0, 0, 0);
}

/* Rows of this warpgroup from x on, 16 bytes at a time: dx with what arrives on another way, and its dropout. */
template <int C, int PANEL_BYTES, typename Rows>
__device__ __forceinline__ void norm_edge_send(const NormEdge &p, const Rows &rows, uint32_t x, int row, int64_t at,
                                               const uint4 (&other)[NormLines<C>::COUNT],
                                               const uint32_t (&kept)[NormLines<C>::KEPT])
{
    typedef NormLines<C> S;
    int thread = threadIdx.x % 128, vector = thread % S::VECTORS;
#pragma unroll
    for (int k = 0; k < S::COUNT; k++) {
        int line = thread / S::VECTORS + k * S::STEP;
        uint32_t v[4];
        shared_chunk(x + vector / 8 * PANEL_BYTES + line * 128 + ((vector % 8 ^ line % 8) << 4), v);
        float dx[8], y[8];
        uint4 out = make_uint4(v[0], v[1], v[2], v[3]);
        if (p.other) {
            unpack8(out, dx);
            unpack8(other[k], y);
#pragma unroll
            for (int j = 0; j < 8; j++) dx[j] += y[j];
            out = pack8(dx);
        }
        if (row + k * S::STEP >= p.rows) continue;
        int64_t to = at + (int64_t)k * S::STEP * C;
        *reinterpret_cast<uint4 *>(rows(k * S::STEP) + to) = out;
        if (!p.dropped) continue;
        unpack8(out, dx);
#pragma unroll
        for (int j = 0; j < 8; j++) dx[j] = kept[k / 4] >> (k % 4 * 8 + j) & 1 ? dx[j] * p.drop.keep_scale : 0.0f;
        *reinterpret_cast<uint4 *>(p.dropped + to) = pack8(dx);
    }
}

/* Sums of the block from those of its eight warps, in order. shared: 16 C floats that nobody uses. */
template <int C, bool OWN>
__device__ __forceinline__ void norm_edge_sums(const NormEdge &p, float *shared, const NormSums<C, OWN> &sums)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int which = 0; which < 2; which++)
#pragma unroll
        for (int q = 0; q < C / 32; q++) {
            float sum;
            if constexpr (OWN) {
                float share[8];
#pragma unroll
                for (int k = 0; k < 8; k++) share[k] = sums.v[which][q * 8 + k];
                sum = sum_over_rows(share);
            } else {
                sum = sums.v[which][q];
            }
            shared[(warp * 2 + which) * C + (lane / 8 + 4 * q) * 8 + lane % 4 * 2 + lane / 4 % 2] = sum;
        }
    asm volatile("bar.sync 3, 256;" ::: "memory");
    for (int c = threadIdx.x; c < 2 * C; c += 256) {
        float total = 0;
        for (int w = 0; w < 8; w++) total += shared[w * 2 * C + c];
        p.partial[(int64_t)blockIdx.x * 2 * C + c] = total;
    }
}

template <int C> __device__ __forceinline__ void norm_edge_begin(const NormEdge &p, int row0, NormPart<C> *part)
{
    int thread = threadIdx.x % 128, row = row0 + thread / WARP * 16 + thread % WARP / 4;
    part->row0 = row0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bool live = row + 8 * h < p.rows;
        part->mean[h] = live ? __ldg(p.mean + row + 8 * h) : 0.0f;
        part->rstd[h] = live ? __ldg(p.rstd + row + 8 * h) : 0.0f;
    }
}

/* x, gamma: in shared memory. Where this returns, x may be written again once all threads of the warpgroup are here. */
template <int C, int PANEL_BYTES, bool OWN, typename Rows>
__device__ __forceinline__ void norm_edge_end(const NormEdge &p, Rows rows, const NormPart<C> &part, const float *gamma,
                                              uint32_t x, float (&d)[C / 2], NormSums<C, OWN> *sums)
{
    typedef NormLines<C> S;
    constexpr bool KEEP = C <= 128;
    int row = part.row0 + threadIdx.x % 128 / S::VECTORS;
    int64_t at = (int64_t)row * C + threadIdx.x % S::VECTORS * 8;
    uint32_t words[KEEP ? C / 32 : 1][8];
    uint4 other[S::COUNT];
    NormRowTile<PANEL_BYTES> place = {x};
    NormLine line = norm_edge_means<C, KEEP, OWN>(d, place, gamma, part, words, sums);
#pragma unroll
    for (int q = 0; q < C / 32; q++) {
        if (!KEEP) place.get(q, words[0]);
        norm_edge_put<C>(d, place, q, line, words[KEEP ? q : 0]);
        if (q == C / 64 - 1) norm_edge_other<C>(p, row, at, other); /* in registers that are free again */
    }
    rows.begin(part.row0);
    asm volatile("bar.sync %0, 128;" ::"r"((int)threadIdx.x / 128 + 1) : "memory");
    norm_edge_send<C, PANEL_BYTES>(p, rows, x, row, at, other, part.kept);
}

/* --- host */

/* Operands of LINEAR_NORM_DX and TRANSITION_DX; those of the products follow. GATE_NORM_CHANNELS_DX has the first four
 * alone (gate_norm.cu). */
enum { NORM_X, NORM_GAMMA, NORM_MEAN, NORM_RSTD, NORM_OTHER, NORM_RNG, NORM_DY };

/* dropped: the output that the dropout of dx is */
static inline NormEdge norm_edge_of(CudaContext *ctx, const OpCall *call, int dropped)
{
    const Tensor *x = call->in_tensor[NORM_X];
    NormEdge e = {};
    e.rows = (int)tensor_rows(x), e.dx = (bf16 *)call->out[0], e.partial = (float *)call->scratch;
    e.other = call_in(call, NORM_OTHER) ? (const bf16 *)call->in[NORM_OTHER] : NULL;
    e.gamma = (const float *)call->in[NORM_GAMMA], e.mean = (const float *)call->in[NORM_MEAN];
    e.rstd = (const float *)call->in[NORM_RSTD];
    if (!call_in(call, NORM_RNG)) return e;
    e.dropped = (bf16 *)call->out[dropped];
    dropout_make(ctx->layout, x, call->op->attr.i[0], (int)call->op->attr.i[1], call->op->attr.f[0],
                 (const int32_t *)call->in[NORM_RNG], &e.drop);
    return e;
}

static inline bool norm_edge_fits(const OpCall *call, const NormEdge &e)
{
    int64_t columns = tensor_last(call->in_tensor[NORM_X]), count = tensor_count(call->in_tensor[NORM_X]);
    bool drops = !e.dropped || (e.drop.inner == (uint32_t)columns && count < INT64_C(0xffff0000));
    return drops && (columns == 64 || columns == 128 || columns == 256) && aligned16(call->in[NORM_X]) &&
           aligned16(e.other) && aligned16(e.dx) && aligned16(e.dropped);
}

/* Which elements threads meet, tiles of `rows` rows being dealt out to `blocks` blocks in turn. */
static inline NormMask norm_mask(const Dropout &d, int blocks, int rows)
{
    int axis = d.rank - 2; /* of the rows */
    if (axis >= 0 && d.stride[axis] == 0 && d.local[axis] % (uint32_t)rows == 0) return MASK_OF_COLUMNS;
    if (d.rank != 3) return MASK_OF_ELEMENTS;
    return d.stride[0] == 0 && (uint32_t)(blocks * rows) % d.local[1] == 0 ? MASK_OF_BLOCK : MASK_OF_ELEMENTS;
}

#endif
