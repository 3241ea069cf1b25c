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

static Status relpos(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->in_tensor[0]->dim[0], c = (int)call->in_tensor[1]->dim[0];
    int64_t count = (int64_t)n * n * c;
    if (count == 0) return OK;
    launch(relpos_kernel, blocks_for(count, 256), 256, 0, ctx->stream, (const int32_t *)call->in[0], any_in(call, 1),
           any_in(call, 2), any_out(call, 0), n, c, (int)call->op->attr.i[0]);
    return cuda_launched("relpos_kernel");
}

enum { RELPOS_RUNS = 128, RELPOS_CHANNELS = 64, RELPOS_AHEAD = 8 };

/* Sums per bin and channel over a run of rows i: a thread owns a channel, so that sums have one order. */
__global__ void __launch_bounds__(RELPOS_CHANNELS)
    relpos_bwd_kernel(const int32_t *index, AnyReal dy, float *partial, int n, int c, int k)
{
    stage_wait();
    extern __shared__ float sums[]; /* [bins][RELPOS_CHANNELS] */
    int bins = 2 * k + 1, lane = threadIdx.x, channel = blockIdx.x * RELPOS_CHANNELS + lane;
    int run = (n + gridDim.y - 1) / gridDim.y, from = blockIdx.y * run, to = min(from + run, n);
    for (int bin = 0; bin < bins; bin++) sums[bin * RELPOS_CHANNELS + lane] = 0;
    if (channel >= c) return;
    for (int i = from; i < to; i++)
        for (int j0 = 0; j0 < n; j0 += RELPOS_AHEAD) {
            float v[RELPOS_AHEAD];
            int bin[RELPOS_AHEAD];
#pragma unroll
            for (int l = 0; l < RELPOS_AHEAD; l++) {
                int j = min(j0 + l, n - 1);
                v[l] = dy[((int64_t)i * n + j) * c + channel];
                bin[l] = position_bin(index, i, j, k);
            }
#pragma unroll
            for (int l = 0; l < RELPOS_AHEAD; l++)
                if (j0 + l < n) sums[bin[l] * RELPOS_CHANNELS + lane] += v[l];
        }
    for (int bin = 0; bin < bins; bin++)
        partial[((int64_t)blockIdx.y * bins + bin) * c + channel] = sums[bin * RELPOS_CHANNELS + lane];
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
    size_t shared = (size_t)bins * RELPOS_CHANNELS * sizeof(float);
    dim3 grid((c + RELPOS_CHANNELS - 1) / RELPOS_CHANNELS, RELPOS_RUNS);
    CUDA_TRY(cudaFuncSetAttribute(relpos_bwd_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch(relpos_bwd_kernel, grid, RELPOS_CHANNELS, shared, ctx->stream, (const int32_t *)call->in[1], any_in(call, 0),
           (float *)call->scratch, n, c, k);
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
    /* strict on both sides; squares rounded one by one, as on the CPU */
    __device__ __forceinline__ bool holds(int bin, float square) const
    {
        return square > edge(bin) && square < edge(bin + 1);
    }
};

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
    int64_t pair = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= (int64_t)n * n) return;
    float square = square_distance(x, pair / n, pair % n);
    for (int bin = 0; bin < bins.count; bin++) y.put(pair * bins.count + bin, bins.holds(bin, square) ? 1.0f : 0.0f);
}

static Status dist_bins(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->in_tensor[0]->dim[0];
    if (n == 0) return OK;
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
 * training), backbone mask; all times the backbone mask. Supplement 1.2.9 as in the MLPerf reference. A thread writes
 * TEMPLATE_GROUP channels. */
enum { TEMPLATE_GROUP = 8 };
__global__ void template_pair_kernel(AnyReal x, AnyReal mask, const int32_t *type, AnyReal atom, AnyOut y, Bins bins,
                                     int templates, int n, int channels)
{
    stage_wait();
    int groups = (channels + TEMPLATE_GROUP - 1) / TEMPLATE_GROUP;
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pair = e / groups;
    if (pair >= (int64_t)templates * n * n) return;
    int from = (int)(e % groups) * TEMPLATE_GROUP;
    int64_t row = pair / n, column = row / n * n + pair % n, at = pair * channels;
    float known = backbone_known(atom, row) && backbone_known(atom, column) ? 1.0f : 0.0f;
    float square = square_distance(x, row, column);
    int first = bins.count + 1, second = first + RESIDUE_TYPES;
    float v[TEMPLATE_GROUP];
#pragma unroll
    for (int l = 0; l < TEMPLATE_GROUP; l++) {
        int k = from + l;
        v[l] = 0;
        if (k < bins.count)
            v[l] = bins.holds(k, square) ? known : 0.0f;
        else if (k == bins.count)
            v[l] = mask[row] * mask[column] * known;
        else if (k < second)
            v[l] = k - first == type[column] ? known : 0.0f;
        else if (k < second + RESIDUE_TYPES)
            v[l] = k - second == type[row] ? known : 0.0f;
        else if (k == channels - 1)
            v[l] = known;
    }
    if (y.dtype == DT_BF16 && channels % TEMPLATE_GROUP == 0) {
        store_floats<TEMPLATE_GROUP>((bf16 *)y.p + at + from, v);
        return;
    }
#pragma unroll
    for (int l = 0; l < TEMPLATE_GROUP; l++)
        if (from + l < channels) y.put(at + from + l, v[l]);
}

static Status template_pair(CudaContext *ctx, const OpCall *call)
{
    int templates = (int)call->in_tensor[0]->dim[0], n = (int)call->in_tensor[0]->dim[1];
    int64_t pairs = (int64_t)templates * n * n;
    if (pairs == 0) return OK;
    int channels = (int)tensor_last(call->out_tensor[0]);
    int64_t threads = pairs * ((channels + TEMPLATE_GROUP - 1) / TEMPLATE_GROUP);
    launch(template_pair_kernel, blocks_for(threads, 128), 128, 0, ctx->stream, any_in(call, 0), any_in(call, 1),
           (const int32_t *)call->in[2], any_in(call, 3), any_out(call, 0), bins_make(&call->op->attr), templates, n,
           channels);
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

__global__ void extra_msa_kernel(const int32_t *msa, AnyReal has, AnyReal value, AnyOut y, int64_t rows, int channels)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= rows * channels) return;
    int64_t r = e / channels;
    int k = (int)(e % channels);
    y.put(e, k < MSA_TYPES ? (k == msa[r] ? 1.0f : 0.0f) : k == MSA_TYPES ? has[r] : value[r]);
}

static Status extra_msa(CudaContext *ctx, const OpCall *call)
{
    int64_t rows = tensor_count(call->in_tensor[0]), channels = tensor_last(call->out_tensor[0]);
    if (rows == 0) return OK;
    launch(extra_msa_kernel, blocks_for(rows * channels, 256), 256, 0, ctx->stream, (const int32_t *)call->in[0],
           any_in(call, 1), any_in(call, 2), any_out(call, 0), rows, (int)channels);
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
