/* Fused attention in bf16, forward: online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) on mma.m16n8k16.
 *
 * A block owns 16 queries per warp of one head and goes through rows of the group: the bias of its queries stays in
 * shared memory; keys, values and mask of the next row arrive while this one is computed. Sums of probabilities come
 * from the tensor cores as well (a column of ones beside the values). */
#include "kernels/cuda/att_mma.cuh"

/* --- what all kernels read
 * --------------------------------------------------------------------------------------------- */

static int64_t mask_rows(const Att &a)
{
    return a.mask_rank < 2 ? 1 : a.mask_rank == 2 ? a.b : (int64_t)a.g * a.b;
}

AttPreparedPlan att_prepared_plan(const Att &a, bool rows, bool columns)
{
    AttPreparedPlan p = {};
    size_t heads = (size_t)a.g * a.h;
    p.any_at = p.add_at + align_up((size_t)mask_rows(a) * att_padded(a.m) * 4);
    p.rows_at = p.any_at + align_up((size_t)mask_rows(a) * 4);
    p.columns_at = p.rows_at + (rows ? align_up(heads * a.n * att_padded(a.m) * 2) : 0);
    p.bytes = p.columns_at + (columns ? align_up(heads * a.m * att_padded(a.n) * 2) : 0);
    return p;
}

__device__ void prepare_mask(const Att &a, const AttPrepared &out, int64_t row, int padded)
{
    const float *mask = a.mask ? a.mask + row * a.m : NULL;
    int any = 0;
    for (int j = threadIdx.x; j < a.m; j += blockDim.x) any |= !mask || mask[j] > 0.0f;
    any = __syncthreads_or(any);
    for (int j = threadIdx.x; j < padded; j += blockDim.x)
        out.add[row * padded + j] = j >= a.m ? ATT_PAD : mask && any ? a.inf * (mask[j] - 1.0f) / a.scale : 0.0f;
    if (threadIdx.x == 0) out.any[row] = any != 0;
}

/* Row `row` of all heads: columns j < extent, zeros up to `padded`. */
__device__ void prepare_bias(const Att &a, const bf16 *bias, bf16 *out, int64_t id, int rows, int extent, int padded,
                             bool swapped)
{
    int group = (int)(id / rows), row = (int)(id % rows);
    for (int column = threadIdx.x; column < padded; column += blockDim.x) {
        bool live = column < extent;
        int i = swapped ? column : row, j = swapped ? row : column;
        const bf16 *p = bias + a.bias_index(group, live ? i : 0, live ? j : 0, 0);
        for (int head = 0; head < a.h; head++)
            out[(((int64_t)group * a.h + head) * rows + row) * padded + column] =
                live ? p[head] : from_float<bf16>(0.0f);
    }
}

/* Blocks: rows of the mask, then rows of the bias by query, then by key. */
__global__ void __launch_bounds__(128)
    att_prepare_kernel(Att a, const bf16 *bias, AttPrepared out, int64_t masks, int mp, int np)
{
    int64_t id = blockIdx.x, by_query = out.rows ? (int64_t)a.g * a.n : 0;
    if (id < masks)
        prepare_mask(a, out, id, mp);
    else if (id < masks + by_query)
        prepare_bias(a, bias, out.rows, id - masks, a.n, a.m, mp, false);
    else
        prepare_bias(a, bias, out.columns, id - masks - by_query, a.m, a.n, np, true);
}

Status att_prepare_launch(const Att &a, const bf16 *bias, const AttPreparedPlan &plan, char *scratch, bool columns,
                          AttPrepared *out, cudaStream_t stream)
{
    AttPrepared p = {};
    int64_t blocks = mask_rows(a);
    p.add = (float *)(scratch + plan.add_at);
    p.any = (int *)(scratch + plan.any_at);
    if (bias) p.rows = (bf16 *)(scratch + plan.rows_at), blocks += (int64_t)a.g * a.n;
    if (bias && columns) p.columns = (bf16 *)(scratch + plan.columns_at), blocks += (int64_t)a.g * a.m;
    att_prepare_kernel<<<(unsigned)blocks, 128, 0, stream>>>(a, bias, p, mask_rows(a), att_padded(a.m),
                                                             att_padded(a.n));
    *out = p;
    return cuda_launched("att_prepare_kernel");
}

/* --- forward
 * ------------------------------------------------------------------------------------------------------------ */

struct ForwardLayout {
    int padded;                             /* keys */
    uint32_t value_at, add_at, stage_bytes; /* within a stage: keys, values, mask */
    uint32_t query_at, bias_at, bytes;
};

static __host__ __device__ ForwardLayout forward_layout(int m, int d, int warps, bool bias)
{
    ForwardLayout l = {};
    l.padded = (m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    l.value_at = (uint32_t)(l.padded * d * 2);
    l.add_at = 2 * l.value_at;
    l.stage_bytes = l.add_at + (uint32_t)l.padded * 4;
    l.query_at = 2 * l.stage_bytes;
    l.bias_at = l.query_at + (uint32_t)(warps * 16 * d * 2);
    l.bytes = l.bias_at + (bias ? (uint32_t)(warps * 16 * l.padded * 2) : 0);
    return l;
}

/* Running maximum of one half of the rows (c = 0: row r, c = 2: row r + 8); s becomes p; returns the factor that brings
 * older sums to the new maximum. unit: scores to powers of two. */
__device__ __forceinline__ float forward_softmax(float (&s)[8][4], int c, float unit, float *peak)
{
    float top = *peak;
#pragma unroll
    for (int j = 0; j < 8; j++) top = fmaxf(top, fmaxf(s[j][c], s[j][c + 1]));
    top = lanes_max<4>(top);
    float factor = exp2_fast((*peak - top) * unit), shift = -top * unit;
    *peak = top;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        s[j][c] = exp2_fast(fmaf(s[j][c], unit, shift));
        s[j][c + 1] = exp2_fast(fmaf(s[j][c + 1], unit, shift));
    }
    return factor;
}

template <int D> struct ForwardState {
    float o[(D + 7) / 8][4], sum[4], peak[2];
};

/* One step of 64 keys. */
template <int D, bool BIAS>
__device__ __forceinline__ void forward_step(ForwardState<D> &x, const AttFragment<D> &q, uint32_t stage,
                                             const ForwardLayout &l, const float *add, uint32_t bias, int bias_row,
                                             float inverse, float unit, int key0)
{
    constexpr uint32_t ONES = 0x3f803f80u;
    int lane = threadIdx.x % WARP;
    float s[8][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int column = key0 + j * 16;
        float2 left = *reinterpret_cast<const float2 *>(add + column + lane % 4 * 2);
        float2 right = *reinterpret_cast<const float2 *>(add + column + 8 + lane % 4 * 2);
        uint32_t b[4] = {};
        if (BIAS) att_matrix_fragment(b, bias, bias_row, key0, j, l.padded);
        att_begin<BIAS>(s[2 * j], s[2 * j + 1], b, inverse, left, right);
        att_times_transposed<D>(s[2 * j], s[2 * j + 1], q, stage, column);
    }
    float low = forward_softmax(s, 0, unit, &x.peak[0]), high = forward_softmax(s, 2, unit, &x.peak[1]);
#pragma unroll
    for (int j = 0; j < (D + 7) / 8; j++) {
        x.o[j][0] *= low, x.o[j][1] *= low;
        x.o[j][2] *= high, x.o[j][3] *= high;
    }
    x.sum[0] *= low, x.sum[2] *= high;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t p[4];
        att_as_fragment(p, s[2 * j], s[2 * j + 1]);
        att_times_rows<D>(x.o, p, stage + l.value_at, key0 + j * 16);
        mma16816(x.sum, p, ONES, ONES);
    }
}

template <int D, bool BIAS, int WARPS>
__global__ void __launch_bounds__(WARPS *WARP, WARPS == 16 ? 1 : 2)
    att_mma_forward_kernel(Att a, AttOperands<bf16> x, AttPrepared prepared, int rows_per_block)
{
    extern __shared__ __align__(128) char shared[];
    ForwardLayout l = forward_layout(a.m, D, WARPS, BIAS);
    uint32_t base = shared_address(shared);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tile0 = blockIdx.x * WARPS * 16, query0 = tile0 + warp * 16;
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);

    auto load = [&](int row, int stage) {
        uint32_t at = base + stage * l.stage_bytes;
        int64_t k_at = a.k_block(group, row, head);
        att_load_tile<D, WARPS * WARP>(at, x.k + k_at, a.pitch, a.m, l.padded);
        att_load_tile<D, WARPS * WARP>(at + l.value_at, x.v + k_at, a.pitch, a.m, l.padded);
        att_load_floats(at + l.add_at, prepared.add + att_mask_index(a, group, row) * l.padded, l.padded);
        att_load_tile_warp<D>(base + l.query_at, x.q + a.q_block(group, row, head), a.pitch, warp * 16, query0, a.n);
        copy_commit();
    };
    if (BIAS)
        att_load_matrix(base + l.bias_at, prepared.rows + ((int64_t)group * a.h + head) * a.n * l.padded, tile0,
                        WARPS * 16, a.n, l.padded);
    load(first, 0);
    for (int row = first; row < last; row++) {
        int stage = (row - first) & 1;
        copy_wait<0>();
        __syncthreads(); /* this row has arrived, and all are done with the other stage */
        AttFragment<D> q;
        q.load_tile(base + l.query_at, warp * 16);
        __syncwarp();
        if (row + 1 < last) load(row + 1, stage ^ 1);
        bool any = prepared.any[att_mask_index(a, group, row)] != 0;
        float unit = any ? a.scale * ATT_LOG2E : 0.0f;
        const float *add = reinterpret_cast<const float *>(shared + stage * l.stage_bytes + l.add_at);

        ForwardState<D> state = {};
        state.peak[0] = state.peak[1] = ATT_PAD;
        for (int key0 = 0; key0 < l.padded; key0 += KEY_BLOCK)
            forward_step<D, BIAS>(state, q, base + stage * l.stage_bytes, l, add, base + l.bias_at, warp * 16,
                                  1.0f / a.scale, unit, key0);
        if (!any) state.sum[0] = state.sum[2] = (float)a.m; /* without the padding */
        att_store<D>(x.o + a.q_block(group, row, head), a.pitch, query0, a.n, state.o, 1.0f / state.sum[0],
                     1.0f / state.sum[2]);
        if (lane % 4 == 0) {
            float *lse = x.lse + (((int64_t)group * a.b + row) * a.h + head) * a.n;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int at = query0 + lane / 4 + half * 8;
                if (at < a.n) lse[at] = any ? (state.peak[half] * unit + log2f(state.sum[2 * half])) * ATT_LN2 : -a.inf;
            }
        }
    }
}

bool att_mma_fits(const Att &a)
{
    bool d = a.d == 8 || a.d == 16 || a.d == 32;
    return d && a.n >= 16 && a.m >= 16 && a.n <= 384 && a.m <= 384;
}

size_t att_mma_forward_scratch(const Att &a, bool bias)
{
    return att_prepared_plan(a, bias, false).bytes;
}

template <int D, bool BIAS, int WARPS>
static Status forward_launch(const Att &a, const AttOperands<bf16> &x, const AttPrepared &prepared, cudaStream_t stream)
{
    ForwardLayout l = forward_layout(a.m, D, WARPS, BIAS);
    int tiles = (a.n + WARPS * 16 - 1) / (WARPS * 16);
    int rows = att_rows_per_block(a, tiles, WARPS == 16 ? 132 : 528);
    dim3 grid(tiles, a.g * a.h, (a.b + rows - 1) / rows);
    CUDA_TRY(cudaFuncSetAttribute(att_mma_forward_kernel<D, BIAS, WARPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)l.bytes));
    att_mma_forward_kernel<D, BIAS, WARPS><<<grid, WARPS * WARP, l.bytes, stream>>>(a, x, prepared, rows);
    return cuda_launched("att_mma_forward_kernel");
}

/* 16 warps share keys and values among 256 queries where their bias fits beside them. */
template <int D>
static Status forward_by_shape(const Att &a, const AttOperands<bf16> &x, const AttPrepared &p, cudaStream_t stream)
{
    if (!x.bias) return forward_launch<D, false, 8>(a, x, p, stream);
    if (a.n > 128 && a.m <= 256) return forward_launch<D, true, 16>(a, x, p, stream);
    return forward_launch<D, true, 8>(a, x, p, stream);
}

Status att_mma_forward_launch(const Att &a, const AttOperands<bf16> &x, void *scratch, cudaStream_t stream)
{
    AttPrepared p;
    TRY(att_prepare_launch(a, x.bias, att_prepared_plan(a, x.bias != NULL, false), (char *)scratch, false, &p, stream));
    if (a.d == 32) return forward_by_shape<32>(a, x, p, stream);
    if (a.d == 16) return forward_by_shape<16>(a, x, p, stream);
    return forward_by_shape<8>(a, x, p, stream);
}
