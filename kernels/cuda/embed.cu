/* Features computed from the inputs of the model. Small ops, one thread per element or per pair. */
#include "kernels/cuda/device.cuh"

enum { RESIDUE_TYPES = 22, MSA_TYPES = 23, ATOMS37 = 37, ATOM_N = 0, ATOM_CA = 1, ATOM_C = 2, TORSIONS = 7 };

/* --- relative position
 * --------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ int position_bin(const int32_t *index, int i, int j, int k)
{
    int64_t difference = (int64_t)index[i] - index[j];
    return (int)(difference < -k ? 0 : difference > k ? 2 * k : difference + k);
}

__global__ void relpos_kernel(const int32_t *index, AnyReal w, AnyReal b, AnyOut y, int n, int c, int k)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= (int64_t)n * n * c) return;
    int channel = (int)(e % c), j = (int)(e / c % n), i = (int)(e / c / n);
    y.put(e, w[channel * (2 * k + 1) + position_bin(index, i, j, k)] + b[channel]);
}

/* A block per i: W^T + b in shared memory, eight channels of a pair a thread. */
enum { RELPOS_VECTOR = 8, RELPOS_SHARED = 96 * 1024 };
template <typename T>
__global__ void __launch_bounds__(512)
    relpos_rows_kernel(const int32_t *index, AnyReal w, AnyReal b, T *y, int n, int c, int k)
{
    stage_wait();
    extern __shared__ float4 relpos_table[]; /* [bins][c + 4] */
    float *table = (float *)relpos_table;
    int bins = 2 * k + 1, pitch = c + 4, i = blockIdx.x, groups = c / RELPOS_VECTOR;
    for (int e = threadIdx.x; e < bins * c; e += blockDim.x) table[e % bins * pitch + e / bins] = w[e] + b[e / bins];
    __syncthreads();
    for (int e = threadIdx.x; e < n * groups; e += blockDim.x) {
        int j = e / groups, from = e % groups * RELPOS_VECTOR;
        float v[RELPOS_VECTOR];
        load_floats<RELPOS_VECTOR>(table + position_bin(index, i, j, k) * pitch + from, v);
        store_floats<RELPOS_VECTOR>(y + ((int64_t)i * n + j) * c + from, v);
    }
}

static Status relpos(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->in_tensor[0]->dim[0], c = (int)call->in_tensor[1]->dim[0];
    int64_t count = (int64_t)n * n * c;
    if (count == 0) return OK;
    size_t shared = (size_t)(2 * call->op->attr.i[0] + 1) * (size_t)(c + 4) * sizeof(float);
    if (c % RELPOS_VECTOR == 0 && shared <= RELPOS_SHARED && aligned16(call->out[0])) {
        DISPATCH_REAL(call, call->out_tensor[0]->dtype, {
            CUDA_TRY(cudaFuncSetAttribute(relpos_rows_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          RELPOS_SHARED));
            launch(relpos_rows_kernel<T>, (unsigned)n, 512, shared, ctx->stream, (const int32_t *)call->in[0],
                   any_in(call, 1), any_in(call, 2), (T *)call->out[0], n, c, (int)call->op->attr.i[0]);
        });
        return cuda_launched("relpos_rows_kernel");
    }
    launch(relpos_kernel, blocks_for(count, 256), 256, 0, ctx->stream, (const int32_t *)call->in[0], any_in(call, 1),
           any_in(call, 2), any_out(call, 0), n, c, (int)call->op->attr.i[0]);
    return cuda_launched("relpos_kernel");
}

enum { RELPOS_RUNS = 128, RELPOS_CHANNELS = 64, RELPOS_AHEAD = 16, RELPOS_GROUPS = 4 };

/* Sums per bin and channel over a run of rows i: a thread owns a channel of a quarter of the columns, so that sums have
 * one order. */
__global__ void __launch_bounds__(RELPOS_CHANNELS *RELPOS_GROUPS)
    relpos_bwd_kernel(const int32_t *index, AnyReal dy, float *partial, int n, int c, int k)
{
    stage_wait();
    extern __shared__ float all_sums[]; /* [groups][bins][RELPOS_CHANNELS] */
    int bins = 2 * k + 1, lane = threadIdx.x % RELPOS_CHANNELS, channel = blockIdx.x * RELPOS_CHANNELS + lane;
    int run = (n + gridDim.y - 1) / gridDim.y, from = blockIdx.y * run, to = min(from + run, n);
    int columns = (n + RELPOS_GROUPS - 1) / RELPOS_GROUPS, group = threadIdx.x / RELPOS_CHANNELS;
    int first = group * columns, end = min(first + columns, n);
    float *sums = all_sums + group * bins * RELPOS_CHANNELS;
    for (int bin = 0; bin < bins; bin++) sums[bin * RELPOS_CHANNELS + lane] = 0;
    for (int i = from; i < to && channel < c; i++)
        for (int j0 = first; j0 < end; j0 += RELPOS_AHEAD) {
            float v[RELPOS_AHEAD];
            int bin[RELPOS_AHEAD];
#pragma unroll
            for (int l = 0; l < RELPOS_AHEAD; l++) {
                int j = min(j0 + l, end - 1);
                v[l] = dy[((int64_t)i * n + j) * c + channel];
                bin[l] = position_bin(index, i, j, k);
            }
#pragma unroll
            for (int l = 0; l < RELPOS_AHEAD; l++)
                if (j0 + l < end) sums[bin[l] * RELPOS_CHANNELS + lane] += v[l];
        }
    __syncthreads();
    for (int bin = group; bin < bins && channel < c; bin += RELPOS_GROUPS) {
        float sum = 0;
        for (int g = 0; g < RELPOS_GROUPS; g++) sum += all_sums[(g * bins + bin) * RELPOS_CHANNELS + lane];
        partial[((int64_t)blockIdx.y * bins + bin) * c + channel] = sum;
    }
}

/* a warp per (bin, channel): the runs in lane order */
__global__ void relpos_join_kernel(const float *partial, float *dw, int runs, int bins, int c)
{
    stage_wait();
    int e = (int)((blockIdx.x * blockDim.x + threadIdx.x) / WARP), lane = threadIdx.x % WARP;
    if (e >= bins * c) return;
    float sum = 0;
    for (int r = lane; r < runs; r += WARP) sum += partial[(int64_t)r * bins * c + e];
    sum = lanes_sum<WARP>(sum);
    if (lane == 0) dw[e % c * bins + e / c] = sum;
}

/* a warp per channel: the sum of its bins */
__global__ void relpos_bias_kernel(const float *dw, float *db, int bins, int c)
{
    stage_wait();
    int channel = (int)((blockIdx.x * blockDim.x + threadIdx.x) / WARP), lane = threadIdx.x % WARP;
    if (channel >= c) return;
    float sum = 0;
    for (int bin = lane; bin < bins; bin += WARP) sum += dw[channel * bins + bin];
    sum = lanes_sum<WARP>(sum);
    if (lane == 0) db[channel] = sum;
}

static Status relpos_bwd(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->in_tensor[0]->dim[0], c = (int)call->in_tensor[0]->dim[2], k = (int)call->op->attr.i[0];
    int bins = 2 * k + 1;
    size_t shared = (size_t)RELPOS_GROUPS * bins * RELPOS_CHANNELS * sizeof(float);
    dim3 grid((c + RELPOS_CHANNELS - 1) / RELPOS_CHANNELS, RELPOS_RUNS);
    CUDA_TRY(cudaFuncSetAttribute(relpos_bwd_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch(relpos_bwd_kernel, grid, RELPOS_CHANNELS * RELPOS_GROUPS, shared, ctx->stream, (const int32_t *)call->in[1],
           any_in(call, 0), (float *)call->scratch, n, c, k);
    TRY(cuda_launched("relpos_bwd_kernel"));
    launch(relpos_join_kernel, blocks_for((int64_t)bins * c * WARP, 256), 256, 0, ctx->stream,
           (const float *)call->scratch, (float *)call->out[0], RELPOS_RUNS, bins, c);
    launch(relpos_bias_kernel, blocks_for((int64_t)c * WARP, 256), 256, 0, ctx->stream, (const float *)call->out[0],
           (float *)call->out[1], bins, c);
    return cuda_launched("relpos_join_kernel");
}

static size_t relpos_bwd_scratch(const OpCall *call)
{
    return (size_t)(RELPOS_RUNS * (2 * call->op->attr.i[0] + 1) * call->in_tensor[0]->dim[2]) * sizeof(float);
}

/* --- distances in bins
 * ----------------------------------------------------------------------------------------------------- */

struct Bins {
    int count;
    double low, high;
    float last;
    /* square of the lower edge; the bin after the last is `last` (not a square) */
    __device__ __forceinline__ float edge(int bin) const
    {
        if (bin >= count) return last;
        float d = (float)(low + (high - low) * (double)bin / (double)(count - 1));
        return __fmul_rn(d, d);
    }
    /* The bin that holds a square, -1 none: strict on both sides; squares rounded one by one, as on the CPU. edges:
     * count + 1 of them, in shared memory. */
    __device__ __forceinline__ int of(const float *edges, float square) const
    {
        int bin = -1;
        for (int k = 0; k < count; k++)
            if (square > edges[k] && square < edges[k + 1]) bin = k;
        return bin;
    }
    __device__ __forceinline__ void edges_make(float *edges) const
    {
        for (int k = threadIdx.x; k <= count; k += blockDim.x) edges[k] = edge(k);
        __syncthreads();
    }
};

enum { BINS_MAX = 256 };

static Status bins_check(const OpCall *call)
{
    if (call->op->attr.i[0] <= BINS_MAX) return OK;
    return status_fail(ERR_UNSUPPORTED, "%ld distance bins (at most %d)", (long)call->op->attr.i[0], BINS_MAX);
}

static Bins bins_make(const OpAttr *attr)
{
    return {(int)attr->i[0], attr->f[0], attr->f[1], (float)attr->f[2]};
}

__device__ __forceinline__ float square_distance(const AnyReal &x, int64_t i, int64_t j)
{
    float d0 = x[3 * i] - x[3 * j], d1 = x[3 * i + 1] - x[3 * j + 1], d2 = x[3 * i + 2] - x[3 * j + 2];
    return __fadd_rn(__fadd_rn(__fmul_rn(d0, d0), __fmul_rn(d1, d1)), __fmul_rn(d2, d2));
}

__global__ void dist_bins_kernel(AnyReal x, AnyOut y, Bins bins, int n)
{
    stage_wait();
    __shared__ float edges[BINS_MAX + 1];
    bins.edges_make(edges);
    int64_t pair = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= (int64_t)n * n) return;
    int held = bins.of(edges, square_distance(x, pair / n, pair % n));
    for (int bin = 0; bin < bins.count; bin++) y.put(pair * bins.count + bin, bin == held ? 1.0f : 0.0f);
}

static Status dist_bins(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->in_tensor[0]->dim[0];
    if (n == 0) return OK;
    TRY(bins_check(call));
    launch(dist_bins_kernel, blocks_for((int64_t)n * n, 128), 128, 0, ctx->stream, any_in(call, 0), any_out(call, 0),
           bins_make(&call->op->attr), n);
    return cuda_launched("dist_bins_kernel");
}

/* --- templates
 * -------------------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ bool backbone_known(const AnyReal &atom, int64_t residue)
{
    int64_t at = residue * ATOMS37;
    return atom[at + ATOM_N] * atom[at + ATOM_CA] * atom[at + ATOM_C] != 0;
}

/* Channels of pair (i, j): distogram, pseudo-beta mask, type of j, type of i, three zeros (unit vector, not used in
 * training), backbone mask; all times the backbone mask. Supplement 1.2.9 as in the MLPerf reference. A block takes
 * TEMPLATE_COLUMNS pairs of a row: first a thread per pair finds the channels that are not zero, then a thread writes
 * TEMPLATE_GROUP channels. */
enum { TEMPLATE_GROUP = 8, TEMPLATE_COLUMNS = 128, TEMPLATE_THREADS = 256 };

struct TemplatePair {
    int bin, column_type;
    float known, mask;
};

__device__ __forceinline__ TemplatePair template_pair_of(const AnyReal &x, const AnyReal &mask, const int32_t *type,
                                                         const AnyReal &atom, const Bins &bins, const float *edges,
                                                         int64_t row, int64_t column)
{
    float known = backbone_known(atom, row) && backbone_known(atom, column) ? 1.0f : 0.0f;
    return {bins.of(edges, square_distance(x, row, column)), type[column], known, mask[row] * mask[column] * known};
}

__global__ void __launch_bounds__(TEMPLATE_THREADS)
    template_pair_kernel(AnyReal x, AnyReal mask, const int32_t *type, AnyReal atom, AnyOut y, Bins bins, int n,
                         int channels)
{
    stage_wait();
    __shared__ float edges[BINS_MAX + 1];
    __shared__ TemplatePair pairs[TEMPLATE_COLUMNS];
    bins.edges_make(edges);
    int64_t row = blockIdx.x, first_column = row / n * n;
    int column0 = blockIdx.y * TEMPLATE_COLUMNS, count = min(TEMPLATE_COLUMNS, n - column0);
    for (int j = threadIdx.x; j < count; j += TEMPLATE_THREADS)
        pairs[j] = template_pair_of(x, mask, type, atom, bins, edges, row, first_column + column0 + j);
    __syncthreads();
    int groups = (channels + TEMPLATE_GROUP - 1) / TEMPLATE_GROUP, row_type = type[row];
    int first = bins.count + 1, second = first + RESIDUE_TYPES;
    bool packed = y.dtype == DT_BF16 && channels % TEMPLATE_GROUP == 0;
    for (int e = threadIdx.x; e < count * groups; e += TEMPLATE_THREADS) {
        const TemplatePair pair = pairs[e / groups];
        int from = e % groups * TEMPLATE_GROUP;
        int64_t at = (row * n + column0 + e / groups) * channels;
        float v[TEMPLATE_GROUP];
#pragma unroll
        for (int l = 0; l < TEMPLATE_GROUP; l++) {
            int k = from + l;
            bool of_column = k >= first && k < second && k - first == pair.column_type;
            bool of_row = k >= second && k < second + RESIDUE_TYPES && k - second == row_type;
            bool one = (k < bins.count && k == pair.bin) || of_column || of_row || k == channels - 1;
            v[l] = k == bins.count ? pair.mask : one ? pair.known : 0.0f;
        }
        if (packed) {
            store_floats<TEMPLATE_GROUP>((bf16 *)y.p + at + from, v);
            continue;
        }
#pragma unroll
        for (int l = 0; l < TEMPLATE_GROUP; l++)
            if (from + l < channels) y.put(at + from + l, v[l]);
    }
}

static Status template_pair(CudaContext *ctx, const OpCall *call)
{
    int templates = (int)call->in_tensor[0]->dim[0], n = (int)call->in_tensor[0]->dim[1];
    if (templates * n == 0) return OK;
    TRY(bins_check(call));
    dim3 grid((unsigned)(templates * n), blocks_for(n, TEMPLATE_COLUMNS));
    launch(template_pair_kernel, grid, TEMPLATE_THREADS, 0, ctx->stream, any_in(call, 0), any_in(call, 1),
           (const int32_t *)call->in[2], any_in(call, 3), any_out(call, 0), bins_make(&call->op->attr), n,
           (int)tensor_last(call->out_tensor[0]));
    return cuda_launched("template_pair_kernel");
}

/* Residue type, 7 x (sin, cos), 7 x alternative, 7 masks. */
__global__ void template_angle_kernel(const int32_t *type, AnyReal angle, AnyReal alternative, AnyReal mask, AnyOut y,
                                      int64_t rows, int channels)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= rows * channels) return;
    int64_t r = e / channels;
    int k = (int)(e % channels);
    float value = 0;
    if (k < RESIDUE_TYPES)
        value = k == type[r] ? 1.0f : 0.0f;
    else if (k < RESIDUE_TYPES + 2 * TORSIONS)
        value = angle[r * 2 * TORSIONS + k - RESIDUE_TYPES];
    else if (k < RESIDUE_TYPES + 4 * TORSIONS)
        value = alternative[r * 2 * TORSIONS + k - RESIDUE_TYPES - 2 * TORSIONS];
    else if (k < RESIDUE_TYPES + 5 * TORSIONS)
        value = mask[r * TORSIONS + k - RESIDUE_TYPES - 4 * TORSIONS];
    y.put(e, value);
}

static Status template_angle(CudaContext *ctx, const OpCall *call)
{
    int64_t rows = tensor_count(call->in_tensor[0]), channels = tensor_last(call->out_tensor[0]);
    if (rows == 0) return OK;
    launch(template_angle_kernel, blocks_for(rows * channels, 128), 128, 0, ctx->stream, (const int32_t *)call->in[0],
           any_in(call, 1), any_in(call, 2), any_in(call, 3), any_out(call, 0), rows, (int)channels);
    return cuda_launched("template_angle_kernel");
}

/* --- extra MSA
 * ---------------------------------------------------------------------------------------------------------------- */

/* Eight elements in a row a thread. */
enum { MSA_CHANNELS = MSA_TYPES + 2, MSA_VECTOR = 8 };
__global__ void extra_msa_kernel(const int32_t *msa, AnyReal has, AnyReal value, AnyOut y, int64_t count)
{
    stage_wait();
    int64_t e = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * MSA_VECTOR;
    if (e >= count) return;
    int64_t r = e / MSA_CHANNELS;
    int k = (int)(e % MSA_CHANNELS), type = msa[r];
    float v[MSA_VECTOR];
#pragma unroll
    for (int l = 0; l < MSA_VECTOR; l++) {
        v[l] = 0;
        if (e + l < count) v[l] = k < MSA_TYPES ? (k == type ? 1.0f : 0.0f) : k == MSA_TYPES ? has[r] : value[r];
        if (++k < MSA_CHANNELS || e + l + 1 >= count) continue;
        k = 0;
        type = msa[++r];
    }
    if (y.dtype == DT_BF16 && e + MSA_VECTOR <= count) {
        store_floats<MSA_VECTOR>((bf16 *)y.p + e, v);
        return;
    }
#pragma unroll
    for (int l = 0; l < MSA_VECTOR; l++)
        if (e + l < count) y.put(e + l, v[l]);
}

static Status extra_msa(CudaContext *ctx, const OpCall *call)
{
    int64_t count = tensor_count(call->in_tensor[0]) * MSA_CHANNELS;
    if (count == 0) return OK;
    launch(extra_msa_kernel, blocks_for(blocks_for(count, MSA_VECTOR), 256), 256, 0, ctx->stream,
           (const int32_t *)call->in[0], any_in(call, 1), any_in(call, 2), any_out(call, 0), count);
    return cuda_launched("extra_msa_kernel");
}

__global__ void __launch_bounds__(256) mask_any_kernel(AnyReal m, AnyOut y, int64_t n)
{
    stage_wait();
    int any = 0;
    for (int64_t e = threadIdx.x; e < n; e += 256) any |= m[e] != 0;
    any = __syncthreads_or(any);
    if (threadIdx.x == 0) y.put(0, any ? 1.0f : 0.0f);
}

static Status mask_any(CudaContext *ctx, const OpCall *call)
{
    launch(mask_any_kernel, 1, 256, 0, ctx->stream, any_in(call, 0), any_out(call, 0),
           tensor_count(call->in_tensor[0]));
    return cuda_launched("mask_any_kernel");
}

const CudaEntry cuda_embed[] = {
    {OP_RELPOS_EMBED, relpos, NULL},
    {OP_RELPOS_EMBED_BWD, relpos_bwd, relpos_bwd_scratch},
    {OP_DIST_BINS, dist_bins, NULL},
    {OP_TEMPLATE_PAIR_FEAT, template_pair, NULL},
    {OP_TEMPLATE_ANGLE_FEAT, template_angle, NULL},
    {OP_EXTRA_MSA_FEAT, extra_msa, NULL},
    {OP_MASK_ANY, mask_any, NULL},
    {OP_COUNT, NULL, NULL},
};
