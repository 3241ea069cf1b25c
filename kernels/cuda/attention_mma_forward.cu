/* Fused attention in bf16, forward: online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) on mma.m16n8k16.
 *
 * A block owns 128 queries of one head (16 per warp) and goes through rows of the group: the bias of its queries stays
 * in shared memory, keys and values of a row are loaded whole. */
#include "kernels/cuda/att_mma.cuh"

enum { FORWARD_WARPS = 8, FORWARD_QUERIES = 16 * FORWARD_WARPS, FORWARD_BLOCKS = 264 };

/* pair (i, j) -> all heads */
__global__ void bias_split_kernel(Att a, const bf16 *bias, bf16 *out, int rows, int columns, int padded, bool swapped)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, group = blockIdx.z;
    if (column >= padded) return;
    int i = swapped ? column : row, j = swapped ? row : column;
    bool live = column < columns;
    const bf16 *p = bias + a.bias_index(group, live ? i : 0, live ? j : 0, 0);
    for (int head = 0; head < a.h; head++)
        out[(((int64_t)group * a.h + head) * rows + row) * padded + column] = live ? p[head] : from_float<bf16>(0.0f);
}

Status att_bias_split_launch(const Att &a, const bf16 *bias, bf16 *rows, bf16 *columns, cudaStream_t stream)
{
    int mp = att_padded(a.m), np = att_padded(a.n);
    if (rows)
        bias_split_kernel<<<dim3((mp + 127) / 128, a.n, a.g), 128, 0, stream>>>(a, bias, rows, a.n, a.m, mp, false);
    if (columns)
        bias_split_kernel<<<dim3((np + 127) / 128, a.m, a.g), 128, 0, stream>>>(a, bias, columns, a.m, a.n, np, true);
    return cuda_launched("bias_split_kernel");
}

struct ForwardLayout {
    int padded; /* keys */
    int bias_pitch;
    size_t bias_at, add_at, key_at, value_at, bytes;
};

static __host__ __device__ ForwardLayout forward_layout(int m, int d, bool bias)
{
    ForwardLayout l = {};
    l.padded = (m + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    l.bias_pitch = l.padded + 8; /* rows start four banks apart */
    l.key_at = 0;
    l.value_at = (size_t)l.padded * d * 2;
    l.bias_at = 2 * l.value_at;
    l.add_at = l.bias_at + (bias ? (size_t)FORWARD_QUERIES * l.bias_pitch * 2 : 0);
    l.bytes = l.add_at + (size_t)l.padded * 4;
    return l;
}

/* Scores of 64 keys in units of log2: acc -> acc scale + bias + mask */
template <bool BIAS>
__device__ __forceinline__ void forward_scores(float (&s)[8][4], float scale, float bias_scale, const bf16 *bias,
                                               int pitch, const float *add, int key0)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int column = key0 + j * 8 + lane % 4 * 2;
        float2 m = *reinterpret_cast<const float2 *>(add + column), low = m, high = m;
        if (BIAS) {
            float2 b0 = unpack_bf16(*reinterpret_cast<const uint32_t *>(bias + column));
            float2 b1 = unpack_bf16(*reinterpret_cast<const uint32_t *>(bias + 8 * pitch + column));
            low = make_float2(fmaf(b0.x, bias_scale, m.x), fmaf(b0.y, bias_scale, m.y));
            high = make_float2(fmaf(b1.x, bias_scale, m.x), fmaf(b1.y, bias_scale, m.y));
        }
        s[j][0] = fmaf(s[j][0], scale, low.x);
        s[j][1] = fmaf(s[j][1], scale, low.y);
        s[j][2] = fmaf(s[j][2], scale, high.x);
        s[j][3] = fmaf(s[j][3], scale, high.y);
    }
}

/* Running maximum and sum of one half of the rows (c = 0: row r, c = 2: row r + 8); s becomes p; returns the factor
 * that brings older sums to the new maximum. The sum stays a part of this lane's until the end. */
__device__ __forceinline__ float forward_softmax(float (&s)[8][4], int c, float *peak, float *sum)
{
    float top = s[0][c];
#pragma unroll
    for (int j = 0; j < 8; j++) top = fmaxf(top, fmaxf(s[j][c], s[j][c + 1]));
    top = fmaxf(top, *peak);
    top = lanes_max<4>(top);
    float factor = exp2_fast(*peak - top), part = 0;
    *peak = top;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        s[j][c] = exp2_fast(s[j][c] - top);
        s[j][c + 1] = exp2_fast(s[j][c + 1] - top);
        part += s[j][c] + s[j][c + 1];
    }
    *sum = *sum * factor + part;
    return factor;
}

template <int D, bool BIAS>
__global__ void __launch_bounds__(FORWARD_WARPS *WARP, 2)
    att_mma_forward_kernel(Att a, AttOperands<bf16> x, const bf16 *bias_rows, int rows_per_block)
{
    extern __shared__ __align__(128) char shared[];
    constexpr int NT = (D + 7) / 8;
    ForwardLayout l = forward_layout(a.m, D, BIAS);
    uint32_t base = shared_address(shared), keys = base + (uint32_t)l.key_at, values = base + (uint32_t)l.value_at;
    bf16 *bias_tile = reinterpret_cast<bf16 *>(shared + l.bias_at);
    float *add = reinterpret_cast<float *>(shared + l.add_at);
    int head = blockIdx.y % a.h, group = blockIdx.y / a.h;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tile0 = blockIdx.x * FORWARD_QUERIES, query0 = tile0 + warp * 16;
    int first = blockIdx.z * rows_per_block, last = min(first + rows_per_block, a.b);

    if (BIAS) {
        const bf16 *source = bias_rows + ((int64_t)group * a.h + head) * a.n * l.padded;
        int chunks = l.padded / 8;
        for (int id = threadIdx.x; id < FORWARD_QUERIES * chunks; id += blockDim.x) {
            int row = id / chunks, chunk = id % chunks;
            bool live = tile0 + row < a.n;
            copy16_async(base + (uint32_t)l.bias_at + (uint32_t)(row * l.bias_pitch + chunk * 8) * 2,
                         live ? source + (int64_t)(tile0 + row) * l.padded + chunk * 8 : source, live);
        }
    }
    const bf16 *my_bias = bias_tile + (warp * 16 + lane / 4) * l.bias_pitch;
    for (int row = first; row < last; row++) {
        int64_t q_at = a.q_block(group, row, head), k_at = a.k_block(group, row, head);
        att_load_tile<D>(keys, x.k + k_at, a.pitch, a.m, l.padded);
        att_load_tile<D>(values, x.v + k_at, a.pitch, a.m, l.padded);
        copy_commit();
        AttFragment<D> q;
        q.load(x.q + q_at, a.pitch, query0, a.n);
        copy_wait<0>();
        bool any = att_mask_row(add, a, group, row, l.padded); /* its barrier covers the copies as well */
        float scale = any ? a.scale * ATT_LOG2E : 0.0f, bias_scale = any ? ATT_LOG2E : 0.0f;

        float o[NT][4] = {}, peak[2] = {-INFINITY, -INFINITY}, sum[2] = {};
        for (int key0 = 0; key0 < l.padded; key0 += KEY_BLOCK) {
            float s[8][4] = {};
#pragma unroll
            for (int j = 0; j < 4; j++) att_times_transposed<D>(s[2 * j], s[2 * j + 1], q, keys, key0 + j * 16);
            forward_scores<BIAS>(s, scale, bias_scale, my_bias, l.bias_pitch, add, key0);
            float low = forward_softmax(s, 0, &peak[0], &sum[0]), high = forward_softmax(s, 2, &peak[1], &sum[1]);
#pragma unroll
            for (int j = 0; j < NT; j++) {
                o[j][0] *= low, o[j][1] *= low;
                o[j][2] *= high, o[j][3] *= high;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t p[4];
                att_as_fragment(p, s[2 * j], s[2 * j + 1]);
                att_times_rows<D>(o, p, values, key0 + j * 16);
            }
        }
        sum[0] = lanes_sum<4>(sum[0]);
        sum[1] = lanes_sum<4>(sum[1]);
        att_store<D>(x.o + q_at, a.pitch, query0, a.n, o, 1.0f / sum[0], 1.0f / sum[1]);
        if (lane % 4 == 0) {
            float *lse = x.lse + (((int64_t)group * a.b + row) * a.h + head) * a.n;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int at = query0 + lane / 4 + half * 8;
                if (at < a.n) lse[at] = any ? (peak[half] + log2f(sum[half])) * ATT_LN2 : -a.inf;
            }
        }
        __syncthreads(); /* the next row overwrites keys, values and the mask */
    }
}

bool att_mma_fits(const Att &a)
{
    bool d = a.d == 8 || a.d == 16 || a.d == 32;
    return d && a.n >= 16 && a.m >= 16 && a.n <= 384 && a.m <= 384;
}

size_t att_mma_forward_scratch(const Att &a, bool bias)
{
    return bias ? align_up((size_t)a.g * a.h * a.n * att_padded(a.m) * 2) : 0;
}

template <int D, bool BIAS>
static Status forward_launch(const Att &a, const AttOperands<bf16> &x, const bf16 *bias_rows, cudaStream_t stream)
{
    ForwardLayout l = forward_layout(a.m, D, BIAS);
    int tiles = (a.n + FORWARD_QUERIES - 1) / FORWARD_QUERIES;
    int rows = att_rows_per_block(a, tiles, BIAS ? FORWARD_BLOCKS : 8 * FORWARD_BLOCKS);
    dim3 grid(tiles, a.g * a.h, (a.b + rows - 1) / rows);
    CUDA_TRY(cudaFuncSetAttribute(att_mma_forward_kernel<D, BIAS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)l.bytes));
    att_mma_forward_kernel<D, BIAS><<<grid, FORWARD_WARPS * WARP, l.bytes, stream>>>(a, x, bias_rows, rows);
    return cuda_launched("att_mma_forward_kernel");
}

template <bool BIAS>
static Status forward_by_width(const Att &a, const AttOperands<bf16> &x, const bf16 *bias_rows, cudaStream_t stream)
{
    if (a.d == 32) return forward_launch<32, BIAS>(a, x, bias_rows, stream);
    if (a.d == 16) return forward_launch<16, BIAS>(a, x, bias_rows, stream);
    return forward_launch<8, BIAS>(a, x, bias_rows, stream);
}

Status att_mma_forward_launch(const Att &a, const AttOperands<bf16> &x, void *scratch, cudaStream_t stream)
{
    if (!x.bias) return forward_by_width<false>(a, x, NULL, stream);
    bf16 *rows = (bf16 *)scratch;
    TRY(att_bias_split_launch(a, x.bias, rows, NULL, stream));
    return forward_by_width<true>(a, x, rows, stream);
}
