/* Losses of the heads' logits (AlphaFold2 supplement 1.9.6, 1.9.8 to 1.9.10); the equations are beside the CPU
 * kernels. */
#include "kernels/cuda/loss.cuh"

enum { ATOMS37 = 37, ATOM_CA = 1, PAIRS_OF_WARP = 8 };

/* loss = sum(partial) / denominator[0] */
__global__ void loss_mean_kernel(const double *partial, int64_t n, const double *denominator, float *loss)
{
    stage_wait();
    __shared__ double shared[WARP];
    double sum = array_sum(partial, n, shared);
    if (threadIdx.x == 0) *loss = (float)(sum / *denominator);
}

/* denominator = eps + sum mask[first + step i], squared sum for pairs */
__global__ void loss_denominator_kernel(const float *mask, int64_t n, int64_t step, double eps, bool pairs,
                                        double *denominator)
{
    stage_wait();
    __shared__ double shared[WARP];
    double sum = array_sum(mask, n, shared, step);
    if (threadIdx.x == 0) *denominator = eps + (pairs ? sum * sum : sum);
}

/* ---- distogram
 * ---------------------------------------------------------------------------------------------------------- */

struct Distogram {
    int64_t n;
    int bins;
    double min, max;
    const float *logits, *beta, *mask;
};

/* Squares of equidistant numbers, one less than bins; by the block */
__device__ void edges_make(const Distogram &d, float *edges)
{
    double step = d.bins > 2 ? (d.max - d.min) / (double)(d.bins - 2) : 0;
    for (int k = threadIdx.x; k < d.bins - 1; k += blockDim.x) {
        double edge = k < (d.bins - 1) / 2 ? d.min + step * (double)k : d.max - step * (double)(d.bins - 2 - k);
        edges[k] = (float)edge * (float)edge;
    }
    __syncthreads();
}

/* Number of edges below the squared distance; by a warp */
__device__ int distance_bin(const Distogram &d, const float *edges, int64_t i, int64_t j)
{
    const float *a = d.beta + 3 * i, *b = d.beta + 3 * j;
    float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2], square = x * x + y * y + z * z;
    int bin = 0;
    for (int k = threadIdx.x % WARP; k < d.bins - 1; k += WARP) bin += square > edges[k];
    for (int s = WARP / 2; s > 0; s /= 2) bin += __shfl_xor_sync(0xffffffffu, bin, s);
    return bin;
}

/* a warp per PAIRS_OF_WARP pairs; partial: a sum per block */
__global__ void distogram_kernel(Distogram d, double *partial)
{
    stage_wait();
    extern __shared__ float edges[];
    __shared__ double shared[LOSS_WARPS];
    edges_make(d, edges);
    double term = 0;
    for (int64_t pair = global_warp(); pair < d.n * d.n; pair += (int64_t)gridDim.x * LOSS_WARPS) {
        int64_t i = pair / d.n, j = pair % d.n;
        float m = d.mask[i] * d.mask[j], norm;
        int bin = distance_bin(d, edges, i, j);
        if (m != 0) term += (double)(m * warp_cross_entropy(d.logits + pair * d.bins, d.bins, bin, &norm));
    }
    double sum = block_sum_double(threadIdx.x % WARP == 0 ? term : 0, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void distogram_bwd_kernel(Distogram d, const float *dl, const double *denominator, float *dlogits)
{
    stage_wait();
    extern __shared__ float edges[];
    edges_make(d, edges);
    float each = *dl == 0 ? 0.0f : (float)((double)*dl / *denominator);
    for (int64_t pair = global_warp(); pair < d.n * d.n; pair += (int64_t)gridDim.x * LOSS_WARPS) {
        int64_t i = pair / d.n, j = pair % d.n;
        int bin = distance_bin(d, edges, i, j);
        warp_cross_entropy_bwd(d.logits + pair * d.bins, d.bins, bin, each * d.mask[i] * d.mask[j],
                               dlogits + pair * d.bins);
    }
}

static unsigned distogram_blocks(int64_t n)
{
    return blocks_for(n * n, PAIRS_OF_WARP * LOSS_WARPS);
}

static Distogram distogram_set(const OpCall *call, int first)
{
    const Tensor *logits = call->in_tensor[first];
    const double *f = call->op->attr.f;
    return {logits->dim[0], (int)logits->dim[2], f[0], f[1], F32_IN(first), F32_IN(first + 1), F32_IN(first + 2)};
}

static size_t distogram_scratch(const OpCall *call)
{
    int64_t n = call->in_tensor[call->op->kind == OP_LOSS_DISTOGRAM_BWD]->dim[0];
    return (1 + (size_t)distogram_blocks(n)) * sizeof(double);
}

static Status distogram(CudaContext *context, const OpCall *call)
{
    Distogram d = distogram_set(call, 0);
    double *denominator = (double *)call->scratch, *partial = denominator + 1;
    unsigned blocks = distogram_blocks(d.n);
    size_t edges = (size_t)d.bins * sizeof(float);
    launch(loss_denominator_kernel, 1, SUM_THREADS, 0, context->stream, d.mask, d.n, 1, call->op->attr.f[2], true,
           denominator);
    launch(distogram_kernel, blocks, LOSS_THREADS, edges, context->stream, d, partial);
    launch(loss_mean_kernel, 1, SUM_THREADS, 0, context->stream, partial, blocks, denominator, F32_OUT(0));
    return cuda_launched("loss_distogram");
}

static Status distogram_bwd(CudaContext *context, const OpCall *call)
{
    Distogram d = distogram_set(call, 1);
    double *denominator = (double *)call->scratch;
    launch(loss_denominator_kernel, 1, SUM_THREADS, 0, context->stream, d.mask, d.n, 1, call->op->attr.f[2], true,
           denominator);
    launch(distogram_bwd_kernel, distogram_blocks(d.n), LOSS_THREADS, (size_t)d.bins * sizeof(float), context->stream,
           d, F32_IN(0), denominator, F32_OUT(0));
    return cuda_launched("loss_distogram_bwd");
}

/* ---- masked MSA
 * ------------------------------------------------------------------------------------------------------------- */

__device__ int class_of(const int32_t *target, int64_t row, int classes)
{
    int c = target[row]; /* refused when a batch is made: the clamp keeps a wild value inside the logits */
    return c < 0 ? 0 : (c >= classes ? classes - 1 : c);
}

/* a warp per position */
__global__ void masked_msa_kernel(int64_t rows, int classes, const float *logits, const int32_t *target,
                                  const float *mask, double *partial)
{
    stage_wait();
    __shared__ double shared[LOSS_WARPS];
    int64_t row = global_warp();
    double term = 0;
    if (row < rows && mask[row] != 0) {
        float norm;
        term = (double)(mask[row] *
                        warp_cross_entropy(logits + row * classes, classes, class_of(target, row, classes), &norm));
    }
    double sum = block_sum_double(threadIdx.x % WARP == 0 ? term : 0, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void masked_msa_bwd_kernel(int64_t rows, int classes, const float *dl, const float *logits,
                                      const int32_t *target, const float *mask, const double *denominator,
                                      float *dlogits)
{
    stage_wait();
    int64_t row = global_warp();
    if (row >= rows) return;
    float scale = *dl == 0 ? 0.0f : (float)((double)*dl / *denominator) * mask[row];
    warp_cross_entropy_bwd(logits + row * classes, classes, class_of(target, row, classes), scale,
                           dlogits + row * classes);
}

static size_t masked_msa_scratch(const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[call->op->kind == OP_LOSS_MASKED_MSA_BWD]);
    return (1 + (size_t)blocks_for(rows, LOSS_WARPS)) * sizeof(double);
}

static Status masked_msa(CudaContext *context, const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[0]);
    double *denominator = (double *)call->scratch, *partial = denominator + 1;
    unsigned blocks = blocks_for(rows, LOSS_WARPS);
    launch(loss_denominator_kernel, 1, SUM_THREADS, 0, context->stream, F32_IN(2), rows, 1, call->op->attr.f[0], false,
           denominator);
    launch(masked_msa_kernel, blocks, LOSS_THREADS, 0, context->stream, rows, (int)tensor_last(call->in_tensor[0]),
           F32_IN(0), I32_IN(1), F32_IN(2), partial);
    launch(loss_mean_kernel, 1, SUM_THREADS, 0, context->stream, partial, blocks, denominator, F32_OUT(0));
    return cuda_launched("loss_masked_msa");
}

static Status masked_msa_bwd(CudaContext *context, const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[1]);
    double *denominator = (double *)call->scratch;
    launch(loss_denominator_kernel, 1, SUM_THREADS, 0, context->stream, F32_IN(3), rows, 1, call->op->attr.f[0], false,
           denominator);
    launch(masked_msa_bwd_kernel, blocks_for(rows, LOSS_WARPS), LOSS_THREADS, 0, context->stream, rows,
           (int)tensor_last(call->in_tensor[1]), F32_IN(0), F32_IN(1), I32_IN(2), F32_IN(3), denominator, F32_OUT(0));
    return cuda_launched("loss_masked_msa_bwd");
}

/* ---- pLDDT
 * ---------------------------------------------------------------------------------------------------------------------
 */

/* False also for an unknown resolution (NaN). */
__device__ bool resolution_counts(const float *resolution, double min, double max)
{
    return (double)*resolution >= min && (double)*resolution <= max;
}

__device__ double ca_distance(const float *x, int64_t i, int64_t j, double eps)
{
    const float *a = x + 3 * (ATOMS37 * i + ATOM_CA), *b = x + 3 * (ATOMS37 * j + ATOM_CA);
    double d[3] = {(double)a[0] - b[0], (double)a[1] - b[1], (double)a[2] - b[2]};
    return sqrt(eps + (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]));
}

/* lDDT of CA, a warp per residue */
__global__ void lddt_ca_kernel(int64_t n, double cutoff, double eps, const float *x, const float *gt,
                               const float *exists, float *lddt)
{
    stage_wait();
    int64_t i = global_warp();
    if (i >= n) return;
    double scored = 0, kept = 0;
    for (int64_t j = threadIdx.x % WARP; j < n; j += WARP) {
        double m = (double)exists[ATOMS37 * i + ATOM_CA] * (double)exists[ATOMS37 * j + ATOM_CA];
        if (i == j || m == 0) continue;
        double truth = ca_distance(gt, i, j, eps);
        if (!(truth < cutoff)) continue;
        double error = fabs(truth - ca_distance(x, i, j, eps));
        scored += m;
        kept += m * 0.25 * ((error < 0.5) + (error < 1) + (error < 2) + (error < 4));
    }
    scored = warp_sum_double(scored);
    kept = warp_sum_double(kept);
    if (threadIdx.x % WARP == 0) lddt[i] = (float)((eps + kept) / (eps + scored));
}

__device__ int lddt_bin(float lddt, int bins)
{
    float scaled = lddt * (float)bins;
    if (!(scaled > 0)) return 0; /* also NaN: the loss is NaN then anyway */
    return scaled < (float)bins ? (int)scaled : bins - 1;
}

/* one block: few residues */
__global__ void plddt_kernel(int64_t n, int bins, double low, double high, double eps, const float *logits,
                             const float *lddt, const float *exists, const float *resolution, float *loss)
{
    stage_wait();
    __shared__ double shared[WARP];
    double term = 0, count = array_sum(exists + ATOM_CA, n, shared, ATOMS37);
    bool counts = resolution_counts(resolution, low, high);
    for (int64_t i = threadIdx.x / WARP; i < n && counts; i += blockDim.x / WARP) {
        float m = exists[ATOMS37 * i + ATOM_CA], norm;
        if (m != 0) term += (double)(m * warp_cross_entropy(logits + i * bins, bins, lddt_bin(lddt[i], bins), &norm));
    }
    term = block_sum_double(threadIdx.x % WARP == 0 ? term : 0, shared);
    if (threadIdx.x == 0) *loss = (float)(term / (eps + count));
}

static Status plddt(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    const double *f = call->op->attr.f;
    launch(lddt_ca_kernel, blocks_for(n, LOSS_WARPS), LOSS_THREADS, 0, context->stream, n, f[0], f[3], F32_IN(1),
           F32_IN(2), F32_IN(3), F32_OUT(1));
    launch(plddt_kernel, 1, SUM_THREADS, 0, context->stream, n, (int)call->in_tensor[0]->dim[1], f[1], f[2], f[3],
           F32_IN(0), F32_OUT(1), F32_IN(3), F32_IN(4), F32_OUT(0));
    return cuda_launched("loss_plddt");
}

__global__ void plddt_bwd_kernel(int64_t n, int bins, double low, double high, double eps, const float *dl,
                                 const float *logits, const float *lddt, const float *exists, const float *resolution,
                                 float *dlogits)
{
    stage_wait();
    __shared__ double shared[LOSS_WARPS];
    double count = array_sum(exists + ATOM_CA, n, shared, ATOMS37);
    int64_t i = global_warp();
    if (i >= n) return;
    bool counts = *dl != 0 && resolution_counts(resolution, low, high);
    float scale = counts ? (float)((double)*dl / (eps + count)) * exists[ATOMS37 * i + ATOM_CA] : 0.0f;
    warp_cross_entropy_bwd(logits + i * bins, bins, lddt_bin(lddt[i], bins), scale, dlogits + i * bins);
}

static Status plddt_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[1]->dim[0];
    const double *f = call->op->attr.f;
    launch(plddt_bwd_kernel, blocks_for(n, LOSS_WARPS), LOSS_THREADS, 0, context->stream, n,
           (int)call->in_tensor[1]->dim[1], f[1], f[2], f[3], F32_IN(0), F32_IN(1), F32_IN(2), F32_IN(3), F32_IN(4),
           F32_OUT(0));
    return cuda_launched("plddt_bwd_kernel");
}

/* 100 x expected lDDT, a warp per row */
__global__ void plddt_score_kernel(int64_t n, int bins, const float *logits, float *score)
{
    stage_wait();
    int64_t i = global_warp();
    if (i >= n) return;
    float norm, sum = 0;
    warp_cross_entropy(logits + i * bins, bins, 0, &norm);
    for (int k = threadIdx.x % WARP; k < bins; k += WARP) sum += expf(logits[i * bins + k] - norm) * ((float)k + 0.5f);
    sum = lanes_sum<WARP>(sum);
    if (threadIdx.x % WARP == 0) score[i] = 100 * sum / (float)bins;
}

static Status plddt_score(CudaContext *context, const OpCall *call)
{
    int64_t n = tensor_rows(call->in_tensor[0]);
    launch(plddt_score_kernel, blocks_for(n, LOSS_WARPS), LOSS_THREADS, 0, context->stream, n,
           (int)tensor_last(call->in_tensor[0]), F32_IN(0), F32_OUT(0));
    return cuda_launched("plddt_score_kernel");
}

/* ---- experimentally resolved
 * ----------------------------------------------------------------------------------------------------- */

/* one block */
__global__ void resolved_kernel(int64_t count, double low, double high, double eps, const float *x,
                                const float *resolved, const float *exists, const float *resolution, float *loss)
{
    stage_wait();
    __shared__ double shared[WARP];
    double sum = 0, atoms = array_sum(exists, count, shared);
    bool counts = resolution_counts(resolution, low, high);
    for (int64_t i = threadIdx.x; i < count && counts; i += blockDim.x) {
        if (exists[i] == 0) continue;
        double softplus = x[i] > 0 ? x[i] + log1p(exp(-(double)x[i])) : log1p(exp((double)x[i]));
        sum += (double)exists[i] * (softplus - (double)resolved[i] * (double)x[i]);
    }
    sum = block_sum_double(sum, shared);
    if (threadIdx.x == 0) *loss = (float)(sum / (eps + atoms));
}

static Status resolved(CudaContext *context, const OpCall *call)
{
    const double *f = call->op->attr.f;
    launch(resolved_kernel, 1, SUM_THREADS, 0, context->stream, tensor_count(call->in_tensor[0]), f[0], f[1], f[2],
           F32_IN(0), F32_IN(1), F32_IN(2), F32_IN(3), F32_OUT(0));
    return cuda_launched("resolved_kernel");
}

__global__ void resolved_bwd_kernel(int64_t count, double low, double high, double eps, const float *dl, const float *x,
                                    const float *resolved, const float *exists, const float *resolution, float *dx)
{
    stage_wait();
    __shared__ double shared[WARP];
    double atoms = array_sum(exists, count, shared);
    double scale = *dl != 0 && resolution_counts(resolution, low, high) ? (double)*dl / (eps + atoms) : 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        dx[i] = exists[i] == 0 || scale == 0 ? 0.0f : (float)scale * exists[i] * (1 / (1 + expf(-x[i])) - resolved[i]);
}

static Status resolved_bwd(CudaContext *context, const OpCall *call)
{
    const double *f = call->op->attr.f;
    launch(resolved_bwd_kernel, 8, SUM_THREADS, 0, context->stream, tensor_count(call->in_tensor[1]), f[0], f[1], f[2],
           F32_IN(0), F32_IN(1), F32_IN(2), F32_IN(3), F32_IN(4), F32_OUT(0));
    return cuda_launched("resolved_bwd_kernel");
}

const CudaEntry cuda_loss_head[] = {{OP_LOSS_DISTOGRAM, distogram, distogram_scratch},
                                    {OP_LOSS_DISTOGRAM_BWD, distogram_bwd, distogram_scratch},
                                    {OP_LOSS_MASKED_MSA, masked_msa, masked_msa_scratch},
                                    {OP_LOSS_MASKED_MSA_BWD, masked_msa_bwd, masked_msa_scratch},
                                    {OP_LOSS_PLDDT, plddt, NULL},
                                    {OP_LOSS_PLDDT_BWD, plddt_bwd, NULL},
                                    {OP_PLDDT_SCORE, plddt_score, NULL},
                                    {OP_LOSS_RESOLVED, resolved, NULL},
                                    {OP_LOSS_RESOLVED_BWD, resolved_bwd, NULL},
                                    {OP_COUNT, NULL, NULL}};
