/* Attention of invariant points in f32 (AlphaFold2 supplement, algorithm 22, lines 7, 8 and 10): what its kernels
 * share. A block has ROWS residues of one head, their weights (or gradients of scores) towards all others in shared
 * memory. */
#ifndef FOLDSCALE_KERNELS_CUDA_IPA_CUH
#define FOLDSCALE_KERNELS_CUDA_IPA_CUH

#include "kernels/cuda/mma.cuh"

enum { THREADS = 256, ROWS = THREADS / WARP, RUN = 8, AHEAD = 4 };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

/* Steps lead from a residue to the next; keys come before values in each head. */
struct IpaSizes {
    int n, heads, channels, span, value_span; /* of a head: coordinates of its points of queries and of values */
    int step, kv_step, point_step, kv_point_step;
    int pitch; /* of weights in shared memory: n up to whole runs, no conflicts */
    float scalar_scale, bias_scale, point_scale, inf; /* sqrt(1/3C), sqrt(1/3), -sqrt(1/54P) */
};

/* What a head has of all residues: channels, then coordinates. NULL: zeros. */
struct IpaPart {
    const float *at;
    int step, width;
};
struct IpaRows {
    IpaPart part[2];
};

static IpaSizes sizes_of(const OpCall *call)
{
    const Tensor *q = call->in_tensor[0], *points = call->in_tensor[2], *both = call->in_tensor[3];
    IpaSizes s;
    s.n = (int)q->dim[0];
    s.heads = (int)call->op->attr.i[0];
    s.step = (int)q->dim[1], s.kv_step = 2 * s.step;
    s.point_step = (int)(3 * points->dim[1]), s.kv_point_step = (int)(3 * both->dim[1]);
    s.channels = s.step / s.heads;
    s.span = s.point_step / s.heads;
    s.value_span = s.kv_point_step / s.heads - s.span;
    s.pitch = (s.n + WARP - 1) / WARP * WARP + 4;
    s.scalar_scale = (float)sqrt(1 / (3.0 * s.channels));
    s.bias_scale = (float)sqrt(1 / 3.0);
    s.point_scale = (float)-sqrt(1 / (18.0 * s.span));
    s.inf = (float)call->op->attr.f[0];
    return s;
}

static bool ipa_is_few(const IpaSizes &s)
{
    return (int64_t)s.n * s.n * s.heads * (s.channels + s.span) < FEW_MULTIPLICATIONS;
}

__device__ __forceinline__ float softplusf(float w)
{
    return w > 0 ? w + log1pf(expf(-w)) : log1pf(expf(w));
}

/* Of head h: queries, keys, values and what comes back for values. */
__device__ __forceinline__ IpaRows query_rows(const IpaSizes &s, const float *q, const float *qp, int h)
{
    return {{{q + h * s.channels, s.step, s.channels}, {qp + h * s.span, s.point_step, s.span}}};
}
__device__ __forceinline__ IpaRows key_rows(const IpaSizes &s, const float *kv, const float *kvp, int h)
{
    return {{{kv + 2 * h * s.channels, s.kv_step, s.channels},
             {kvp + h * (s.span + s.value_span), s.kv_point_step, s.span}}};
}
__device__ __forceinline__ IpaRows value_rows(const IpaSizes &s, const float *kv, const float *kvp, int h)
{
    return {{{kv + (2 * h + 1) * s.channels, s.kv_step, s.channels},
             {kvp + h * (s.span + s.value_span) + s.span, s.kv_point_step, s.value_span}}};
}
__device__ __forceinline__ IpaRows result_rows(const IpaSizes &s, const float *o, const float *op, int h)
{
    return {{{o ? o + h * s.channels : nullptr, s.step, s.channels},
             {op ? op + h * s.value_span : nullptr, s.heads * s.value_span, s.value_span}}};
}

/* own[ROWS][width]: residues row0.. ; zeros beyond the last */
__device__ __forceinline__ void own_load(const IpaSizes &s, const IpaRows &rows, int row0, float *own)
{
    int first = rows.part[0].width, width = first + rows.part[1].width;
    for (int e = threadIdx.x; e < ROWS * width; e += THREADS) {
        int r = e / width, c = e % width;
        const IpaPart part = c >= first ? rows.part[1] : rows.part[0];
        bool live = row0 + r < s.n && part.at;
        own[e] = live ? part.at[(int64_t)(row0 + r) * part.step + (c >= first ? c - first : c)] : 0.0f;
    }
}

/* What a head has of all residues on its way to shared memory, [n][width]: `at` of a part may be NULL. A thread that
 * has a residue of its own meets no conflicts where packs per residue are odd, which is what the pitch is made to. */
__host__ __device__ static inline int staged_pitch(int width)
{
    return (width / 4 | 1) * 4;
}
__device__ __forceinline__ IpaRows rows_stage(const IpaSizes &s, const IpaRows &rows, float *to)
{
    int first = rows.part[0].width, width = first + rows.part[1].width, pitch = staged_pitch(width), packs = width / 4;
    int c = threadIdx.x % packs * 4, by = THREADS / packs;
    const IpaPart part = c >= first ? rows.part[1] : rows.part[0];
    for (int residue = threadIdx.x / packs; residue < s.n && (int)threadIdx.x < by * packs; residue += by) {
        float *at = to + residue * pitch + c;
        if (part.at)
            copy16_async(shared_address(at), part.at + (int64_t)residue * part.step + (c >= first ? c - first : c),
                         true);
        else
            *reinterpret_cast<float4 *>(at) = make_float4(0, 0, 0, 0);
    }
    copy_commit();
    return {{{to, pitch, first}, {to + first, pitch, width - first}}};
}

/* dot[r] (or sums of squared differences, DISTANCE) of the own rows, `width` apart, and one residue's */
template <typename Sum, int V, bool DISTANCE>
__device__ __forceinline__ void own_products(const IpaPart &part, int residue, const float *own, int width,
                                             Sum (&dot)[ROWS])
{
    if (!part.at) return;
    const float *at = part.at + (int64_t)residue * part.step;
    for (int first = 0; first < part.width; first += AHEAD * V) {
        float x[AHEAD][V], y[V];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (first + k * V < part.width) load_floats<V>(at + first + k * V, x[k]);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (first + k * V >= part.width) break;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                load_floats<V>(own + r * width + first + k * V, y);
#pragma unroll
                for (int l = 0; l < V; l++) {
                    Sum a = DISTANCE ? (Sum)y[l] - x[k][l] : (Sum)y[l];
                    dot[r] += a * (DISTANCE ? a : (Sum)x[k][l]);
                }
            }
        }
    }
}

/* Sums over all residues o: out(r, c) = sum_o weight[r][o] y, y = x_o[c] of the first part and own[r][c] - x_o[c], as
 * DIFFERENCE says, of the second; square(r) = sum weight y^2 of the second. A thread has V columns of OWN rows and some
 * of the residues, in runs of RUN in Run; runs and threads are added in turn in Total. */
template <typename Total, int OWN> struct IpaSums {
    Total result[OWN * 4][THREADS], square[OWN][THREADS];
};

template <typename Run, typename Total, int V, int OWN, bool DIFFERENCE>
__device__ __forceinline__ void ipa_partial(const IpaSizes &s, const float *weight, const IpaPart &part, bool points,
                                            const float *mine_at, int width, int c, int first, int by,
                                            Total (&sum)[OWN][V], Total (&square)[OWN])
{
    float mine[OWN][V] = {};
    if (DIFFERENCE && points)
#pragma unroll
        for (int r = 0; r < OWN; r++) load_floats<V>(mine_at + r * width, mine[r]);
    float sign = DIFFERENCE && points ? -1.0f : 1.0f;
    for (int run = first; run * RUN < s.n; run += by) {
        Run brief[OWN][V] = {}, brief_square[OWN] = {};
#pragma unroll
        for (int quad = 0; quad < RUN; quad += 4) {
            float w[OWN][4];
#pragma unroll
            for (int r = 0; r < OWN; r++) load_floats<4>(weight + r * s.pitch + run * RUN + quad, w[r]);
#pragma unroll
            for (int o = 0; o < 4; o++) {
                int residue = min(run * RUN + quad + o, s.n - 1); /* weights beyond are zero */
                float x[V];
                load_floats<V>(part.at + (int64_t)residue * part.step + c, x);
#pragma unroll
                for (int r = 0; r < OWN; r++)
#pragma unroll
                    for (int l = 0; l < V; l++) {
                        Run y = DIFFERENCE ? (Run)mine[r][l] + sign * x[l] : (Run)x[l], t = w[r][o] * y;
                        brief[r][l] += t;
                        if (DIFFERENCE) brief_square[r] += t * y;
                    }
            }
        }
#pragma unroll
        for (int r = 0; r < OWN; r++) {
#pragma unroll
            for (int l = 0; l < V; l++) sum[r][l] += (Total)brief[r][l];
            if (DIFFERENCE && points) square[r] += (Total)brief_square[r];
        }
    }
}

/* own_points[ROWS][span]; out(row, second part, column, sum); square_out[row] where wanted */
template <typename Run, typename Total, int V, int OWN, bool DIFFERENCE, typename Out>
__device__ __forceinline__ void ipa_sums(const IpaSizes &s, const float *weight, const IpaRows &rows,
                                         const float *own_points, int own_width, IpaSums<Total, OWN> *room, int row0,
                                         double *square_out, const Out &out)
{
    int first = rows.part[0].width / V, slots = first + rows.part[1].width / V, thread = threadIdx.x;
    double squares = 0;
    for (int base = 0; base < ROWS / OWN * slots; base += THREADS) {
        int items = min(ROWS / OWN * slots - base, (int)THREADS), parts = THREADS / items;
        int slot = (base + thread % items) % slots, group = (base + thread % items) / slots * OWN;
        bool points = slot >= first;
        const IpaPart part = points ? rows.part[1] : rows.part[0];
        int c = (points ? slot - first : slot) * V;
        Total sum[OWN][V] = {}, square[OWN] = {};
        if (thread < items * parts && part.at)
            ipa_partial<Run, Total, V, OWN, DIFFERENCE>(s, weight + group * s.pitch, part, points,
                                                        own_points + group * own_width + c, own_width, c,
                                                        thread / items, parts, sum, square);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < OWN; r++) {
#pragma unroll
            for (int l = 0; l < V; l++) room->result[r * V + l][thread] = sum[r][l];
            if (DIFFERENCE) room->square[r][thread] = square[r];
        }
        __syncthreads();
        for (int e = thread; e < items * OWN; e += THREADS) {
            int item = e % items, r = e / items, slot_of = (base + item) % slots,
                row = row0 + (base + item) / slots * OWN + r;
            bool second = slot_of >= first;
            Total total[V];
#pragma unroll
            for (int l = 0; l < V; l++) total[l] = room->result[r * V + l][item];
#pragma unroll 4
            for (int k = 1; k < parts; k++)
#pragma unroll
                for (int l = 0; l < V; l++) total[l] += room->result[r * V + l][k * items + item];
#pragma unroll
            for (int l = 0; l < V; l++)
                if (row < s.n) out(row, second, (slot_of - (second ? first : 0)) * V + l, total[l]);
        }
        /* a warp per row */
        for (int k = thread % WARP; DIFFERENCE && square_out && k < items * parts; k += WARP)
            if ((base + k % items) / slots == thread / WARP / OWN)
                squares += (double)room->square[thread / WARP % OWN][k];
    }
    if (!DIFFERENCE || !square_out) return;
    squares = lanes_sum<WARP>(squares);
    if (thread % WARP == 0 && row0 + thread / WARP < s.n) square_out[row0 + thread / WARP] = squares;
}

/* Column j of [H,N,N] for the rows from i0 on, to where the thread that asks for it alone reads it. */
__device__ __forceinline__ void pairs_load(const IpaSizes &s, const float *from, int h, int i0, int j, float *to)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int64_t row = (int64_t)h * s.n + min(i0 + r, s.n - 1);
        copy4_async(shared_address(to + r * s.pitch + j), from + row * s.n + min(j, s.n - 1), true);
    }
    copy_commit();
}

/* Four numbers at a time: extents of heads, and addresses. */
static bool ipa_packs(const IpaSizes &s, const void *const *at, int count)
{
    bool packs = s.channels % 4 == 0 && s.span % 4 == 0 && s.value_span % 4 == 0;
    for (int k = 0; k < count; k++) packs = packs && aligned16(at[k]);
    return packs;
}

/* Bytes of a kernel's shared memory: `floats` for each of its rows beside `room`, and what it stages. */
static size_t ipa_shared(size_t room, int floats)
{
    return room + (size_t)ROWS * (size_t)floats * sizeof(float);
}
/* Two blocks of a multiprocessor have room for all residues beside what else they need. */
static bool ipa_stages(const IpaSizes &s, size_t shared, int width, size_t *staged)
{
    static const size_t MOST = 113 * 1024;
    *staged = (size_t)s.n * (size_t)staged_pitch(width) * sizeof(float);
    return width / 4 <= THREADS && shared + *staged <= MOST;
}

template <typename X>
static Status ipa_launch(void (*kernel)(IpaSizes, X), const IpaSizes &s, const X &x, size_t shared, cudaStream_t stream)
{
    static const size_t MOST = 227 * 1024; /* shared memory of a block of an H100 */
    if (shared > MOST)
        return status_fail(ERR_UNSUPPORTED, "attention of invariant points between %d residues needs %zu bytes of %zu",
                           (int)s.n, shared, MOST);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch(kernel, dim3(blocks_for(s.n, ROWS), (unsigned)s.heads), THREADS, shared, stream, s, x);
    return cuda_launched("ipa_attention");
}

/* ipa_backward.cu */
Status ipa_attention_bwd(CudaContext *context, const OpCall *call);
size_t ipa_attention_bwd_scratch(const OpCall *call);

#endif
