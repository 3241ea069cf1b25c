/* Losses of the heads' logits (AlphaFold2 supplement 1.9.6, 1.9.8 to 1.9.10); the equations are beside the CPU
 * kernels. */
#include "kernels/cuda/loss.cuh"

enum { ATOMS37 = 37, ATOM_CA = 1, PAIRS_OF_ROW = 2 /* in turn */, LDDT_THREADS = 128, MASK_SUMS = 2 * WARP };

/* loss = sum of terms over eps + sum of weights; partial: (terms, weights) of blocks */
__global__ void loss_mean_kernel(const double2 *partial, int64_t n, double eps, float *loss)
{
    stage_wait();
    __shared__ double2 shared[WARP];
    double2 sum = array_sum_pair(partial, n, shared);
    if (threadIdx.x == 0) *loss = (float)(sum.x / (eps + sum.y));
}

/* Sums of a mask, one a block; the next kernel adds them by mask_total(). */
__global__ void mask_sums_kernel(const float *mask, int64_t n, double *partial)
{
    stage_wait();
    stage_release();
    __shared__ double shared[WARP];
    double sum = 0;
#pragma unroll 4
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        sum += (double)mask[i];
    sum = block_sum_double(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static unsigned mask_sums_blocks(int64_t n)
{
    unsigned blocks = blocks_for(n, 4 * LOSS_THREADS);
    return blocks < (unsigned)MASK_SUMS ? blocks : (unsigned)MASK_SUMS;
}

/* by a warp */
__device__ double mask_total(const double *partial, int blocks)
{
    double sum = 0;
    for (int k = threadIdx.x % WARP; k < blocks; k += WARP) sum += partial[k];
    return lanes_sum<WARP>(sum);
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

/* Number of edges below the squared distance; by the lanes of a row */
__device__ int distance_bin(const Distogram &d, const float *edges, uint32_t i, uint32_t j)
{
    const float *a = d.beta + 3 * i, *b = d.beta + 3 * j;
    float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2], square = x * x + y * y + z * z;
    int bin = 0;
    for (int k = threadIdx.x % ROW_LANES; k < d.bins - 1; k += ROW_LANES) bin += square > edges[k];
    return lanes_sum<ROW_LANES>(bin);
}

/* The turn-th pair of this thread's row lanes; false: behind the end, the lanes go along with the last pair. */
__device__ __forceinline__ bool distogram_pair(const Distogram &d, int turn, int64_t *pair, uint32_t *i, uint32_t *j)
{
    int64_t all = d.n * d.n;
    *pair = ((int64_t)blockIdx.x * PAIRS_OF_ROW + turn) * LOSS_ROWS + threadIdx.x / ROW_LANES;
    bool here = *pair < all;
    if (!here) *pair = all - 1;
    *i = (uint32_t)*pair / (uint32_t)d.n; /* fewer than 2^32 pairs: their logits fit into memory */
    *j = (uint32_t)*pair - *i * (uint32_t)d.n;
    return here;
}

/* partial: (terms, weights) of a block */
template <int V> __global__ void __launch_bounds__(LOSS_THREADS) distogram_kernel(Distogram d, double2 *partial)
{
    stage_wait();
    stage_release();
    extern __shared__ float edges[];
    __shared__ double2 shared[LOSS_WARPS];
    edges_make(d, edges);
    double2 sum = {0, 0};
#pragma unroll
    for (int turn = 0; turn < PAIRS_OF_ROW; turn++) {
        int64_t pair;
        uint32_t i, j;
        bool here = distogram_pair(d, turn, &pair, &i, &j);
        float m = d.mask[i] * d.mask[j];
        const float *x = d.logits + pair * d.bins;
        LogitRow<V> row(x, d.bins, true);
        int bin = distance_bin(d, edges, i, j);
        float entropy = row_norm(row) - x[bin];
        if (!here || threadIdx.x % ROW_LANES != 0) continue;
        if (m != 0) sum.x += (double)(m * entropy);
        sum.y += (double)d.mask[i] * (double)d.mask[j];
    }
    sum = block_sum_pair(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <int V>
__global__ void __launch_bounds__(LOSS_THREADS)
    distogram_bwd_kernel(Distogram d, double eps, const float *dl, float *dlogits)
{
    stage_wait();
    extern __shared__ float edges[];
    __shared__ double shared[LOSS_WARPS];
    edges_make(d, edges);
    double known = array_sum(d.mask, d.n, shared); /* few numbers: each block adds them */
    float each = *dl == 0 ? 0.0f : (float)((double)*dl / (eps + known * known));
#pragma unroll
    for (int turn = 0; turn < PAIRS_OF_ROW; turn++) {
        int64_t pair;
        uint32_t i, j;
        bool here = distogram_pair(d, turn, &pair, &i, &j);
        float scale = each * d.mask[i] * d.mask[j];
        LogitRow<V> row(d.logits + pair * d.bins, d.bins, here && scale != 0);
        int bin = distance_bin(d, edges, i, j);
        float norm = row_norm(row);
        if (here) row_store_bwd(row, d.bins, norm, bin, scale, dlogits + pair * d.bins);
    }
}

static unsigned distogram_blocks(int64_t n)
{
    return blocks_for(n * n, PAIRS_OF_ROW * LOSS_ROWS);
}

static Distogram distogram_set(const OpCall *call, int first)
{
    const Tensor *logits = call->in_tensor[first];
    const double *f = call->op->attr.f;
    return {logits->dim[0], (int)logits->dim[2], f[0], f[1], F32_IN(first), F32_IN(first + 1), F32_IN(first + 2)};
}

static size_t distogram_scratch(const OpCall *call)
{
    return distogram_blocks(call->in_tensor[0]->dim[0]) * sizeof(double2);
}

static Status distogram(CudaContext *context, const OpCall *call)
{
    Distogram d = distogram_set(call, 0);
    double2 *partial = (double2 *)call->scratch;
    unsigned blocks = d.n > 0 ? distogram_blocks(d.n) : 0;
    DISPATCH_ROW(d.bins, {
        if (blocks > 0)
            launch(distogram_kernel<V>, blocks, LOSS_THREADS, (size_t)d.bins * sizeof(float), context->stream, d,
                   partial);
    });
    launch(loss_mean_kernel, 1, SUM_THREADS, 0, context->stream, partial, blocks, call->op->attr.f[2], F32_OUT(0));
    return cuda_launched("loss_distogram");
}

static Status distogram_bwd(CudaContext *context, const OpCall *call)
{
    Distogram d = distogram_set(call, 1);
    if (d.n == 0) return OK;
    DISPATCH_ROW(d.bins, {
        launch(distogram_bwd_kernel<V>, distogram_blocks(d.n), LOSS_THREADS, (size_t)d.bins * sizeof(float),
               context->stream, d, call->op->attr.f[2], F32_IN(0), F32_OUT(0));
    });
    return cuda_launched("loss_distogram_bwd");
}

/* ---- masked MSA
 * ------------------------------------------------------------------------------------------------------------- */

__device__ int class_of(const int32_t *target, int64_t row, int classes)
{
    int c = target[row]; /* refused when a batch is made: the clamp keeps a wild value inside the logits */
    return c < 0 ? 0 : (c >= classes ? classes - 1 : c);
}

/* partial: (terms, weights) of a block */
template <int V>
__global__ void __launch_bounds__(LOSS_THREADS)
    masked_msa_kernel(int64_t rows, int classes, const float *logits, const int32_t *target, const float *mask,
                      double2 *partial)
{
    stage_wait();
    stage_release();
    __shared__ double2 shared[LOSS_WARPS];
    int64_t place = (int64_t)blockIdx.x * LOSS_ROWS + threadIdx.x / ROW_LANES;
    float m = place < rows ? mask[place] : 0;
    const float *x = logits + place * classes;
    LogitRow<V> row(x, classes, m != 0);
    float norm = row_norm(row);
    double2 sum = {0, (double)m};
    if (m != 0) sum.x = (double)(m * (norm - x[class_of(target, place, classes)]));
    if (threadIdx.x % ROW_LANES != 0) sum = make_double2(0, 0);
    sum = block_sum_pair(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <int V>
__global__ void __launch_bounds__(LOSS_THREADS)
    masked_msa_bwd_kernel(int64_t rows, int classes, double eps, const float *dl, const float *logits,
                          const int32_t *target, const float *mask, const double *sums, int blocks, float *dlogits)
{
    stage_wait();
    int64_t place = (int64_t)blockIdx.x * LOSS_ROWS + threadIdx.x / ROW_LANES;
    bool here = place < rows;
    double denominator = eps + mask_total(sums, blocks);
    float scale = *dl == 0 || !here ? 0.0f : (float)((double)*dl / denominator) * mask[place];
    LogitRow<V> row(logits + place * classes, classes, scale != 0);
    float norm = row_norm(row);
    if (!here) return;
    row_store_bwd(row, classes, norm, class_of(target, place, classes), scale, dlogits + place * classes);
}

static size_t masked_msa_scratch(const OpCall *call)
{
    return blocks_for(tensor_rows(call->in_tensor[0]), LOSS_ROWS) * sizeof(double2);
}

static size_t masked_msa_bwd_scratch(const OpCall *)
{
    return MASK_SUMS * sizeof(double);
}

static Status masked_msa(CudaContext *context, const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[0]);
    int classes = (int)tensor_last(call->in_tensor[0]);
    double2 *partial = (double2 *)call->scratch;
    unsigned blocks = blocks_for(rows, LOSS_ROWS);
    DISPATCH_ROW(classes, {
        launch(masked_msa_kernel<V>, blocks, LOSS_THREADS, 0, context->stream, rows, classes, F32_IN(0), I32_IN(1),
               F32_IN(2), partial);
    });
    launch(loss_mean_kernel, 1, SUM_THREADS, 0, context->stream, partial, blocks, call->op->attr.f[0], F32_OUT(0));
    return cuda_launched("loss_masked_msa");
}

static Status masked_msa_bwd(CudaContext *context, const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[1]);
    int classes = (int)tensor_last(call->in_tensor[1]);
    double *sums = (double *)call->scratch;
    unsigned blocks = mask_sums_blocks(rows);
    launch(mask_sums_kernel, blocks, LOSS_THREADS, 0, context->stream, F32_IN(3), rows, sums);
    DISPATCH_ROW(classes, {
        launch(masked_msa_bwd_kernel<V>, blocks_for(rows, LOSS_ROWS), LOSS_THREADS, 0, context->stream, rows, classes,
               call->op->attr.f[0], F32_IN(0), F32_IN(1), I32_IN(2), F32_IN(3), sums, (int)blocks, F32_OUT(0));
    });
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

__device__ int lddt_bin(float lddt, int bins)
{
    float scaled = lddt * (float)bins;
    if (!(scaled > 0)) return 0; /* also NaN: the loss is NaN then anyway */
    return scaled < (float)bins ? (int)scaled : bins - 1;
}

/* (scored, kept) weights of the distances of residue i, by the block */
__device__ double2 lddt_ca(int64_t n, int64_t i, double cutoff, double eps, const float *x, const float *gt,
                           const float *exists, double2 *shared)
{
    double2 sum = {0, 0};
#pragma unroll 2
    for (int64_t j = threadIdx.x; j < n; j += LDDT_THREADS) {
        double m = (double)exists[ATOMS37 * i + ATOM_CA] * (double)exists[ATOMS37 * j + ATOM_CA];
        if (i == j || m == 0) continue;
        double truth = ca_distance(gt, i, j, eps), found = ca_distance(x, i, j, eps);
        if (!(truth < cutoff)) continue;
        double error = fabs(truth - found);
        sum.x += m;
        sum.y += m * 0.25 * ((error < 0.5) + (error < 1) + (error < 2) + (error < 4));
    }
    return block_sum_pair(sum, shared);
}

struct Plddt {
    int64_t n;
    int bins;
    double cutoff, low, high, eps;
    const float *logits, *x, *gt, *exists, *resolution;
};

/* a block per residue: lDDT of its CA, then its term; partial: (term, weight) */
__global__ void __launch_bounds__(LDDT_THREADS) plddt_kernel(Plddt p, float *lddt, double2 *partial)
{
    stage_wait();
    stage_release();
    __shared__ double2 shared[LDDT_THREADS / WARP];
    int64_t i = blockIdx.x;
    double2 sum = lddt_ca(p.n, i, p.cutoff, p.eps, p.x, p.gt, p.exists, shared);
    if (threadIdx.x >= WARP) return;
    float score = (float)((p.eps + sum.y) / (p.eps + sum.x)), m = p.exists[ATOMS37 * i + ATOM_CA], norm;
    double term = 0;
    if (m != 0 && resolution_counts(p.resolution, p.low, p.high))
        term = (double)(m * warp_cross_entropy(p.logits + i * p.bins, p.bins, lddt_bin(score, p.bins), &norm));
    if (threadIdx.x != 0) return;
    lddt[i] = score;
    partial[i] = make_double2(term, (double)m);
}

static size_t plddt_scratch(const OpCall *call)
{
    return (size_t)call->in_tensor[0]->dim[0] * sizeof(double2);
}

static Status plddt(CudaContext *context, const OpCall *call)
{
    const double *f = call->op->attr.f;
    double2 *partial = (double2 *)call->scratch;
    Plddt p = {call->in_tensor[0]->dim[0],
               (int)call->in_tensor[0]->dim[1],
               f[0],
               f[1],
               f[2],
               f[3],
               F32_IN(0),
               F32_IN(1),
               F32_IN(2),
               F32_IN(3),
               F32_IN(4)};
    if (p.n > 0) launch(plddt_kernel, (unsigned)p.n, LDDT_THREADS, 0, context->stream, p, F32_OUT(1), partial);
    launch(loss_mean_kernel, 1, SUM_THREADS, 0, context->stream, partial, p.n, f[3], F32_OUT(0));
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
                                    {OP_LOSS_DISTOGRAM_BWD, distogram_bwd, NULL},
                                    {OP_LOSS_MASKED_MSA, masked_msa, masked_msa_scratch},
                                    {OP_LOSS_MASKED_MSA_BWD, masked_msa_bwd, masked_msa_bwd_scratch},
                                    {OP_LOSS_PLDDT, plddt, plddt_scratch},
                                    {OP_LOSS_PLDDT_BWD, plddt_bwd, NULL},
                                    {OP_PLDDT_SCORE, plddt_score, NULL},
                                    {OP_LOSS_RESOLVED, resolved, NULL},
                                    {OP_LOSS_RESOLVED_BWD, resolved_bwd, NULL},
                                    {OP_COUNT, NULL, NULL}};
