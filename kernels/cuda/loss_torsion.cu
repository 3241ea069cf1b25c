/* Torsion loss (AlphaFold2 supplement, algorithm 27) and the weighted total of all terms; the equations are beside the
 * CPU kernels. */
#include "kernels/cuda/loss.cuh"

/* ---- torsion
 * ------------------------------------------------------------------------------------------------------------------------
 */

enum { ANGLES = 7, CHIS = 4, FIRST_CHI = 3 };

struct Torsion {
    int64_t blocks, n;
    double chi_weight, norm_weight, eps, mean_eps;
    const float *angle, *raw;
    const int32_t *aatype;
    const float *seq_mask, *chi_mask, *chi, *pi_periodic;
};

static Torsion torsion_set(const OpCall *call, int first)
{
    const Tensor *angle = call->in_tensor[first];
    const double *f = call->op->attr.f;
    return {angle->dim[0],
            angle->dim[1],
            f[0],
            f[1],
            f[2],
            f[3],
            F32_IN(first),
            F32_IN(first + 1),
            I32_IN(first + 2),
            F32_IN(first + 3),
            F32_IN(first + 4),
            F32_IN(first + 5),
            F32_IN(first + 6)};
}

/* weights over the denominators of the two means; `shared` holds a pair per warp */
__device__ void torsion_scales(const Torsion &t, double2 *shared, double *chi, double *norm)
{
    double2 sum = {0, 0}; /* chis, residues */
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < CHIS * t.n; i += blockDim.x) sum.x += (double)t.chi_mask[i];
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < t.n; i += blockDim.x) sum.y += (double)t.seq_mask[i];
    sum = block_sum_pair(sum, shared);
    *chi = 1 / (t.mean_eps + (double)t.blocks * sum.x);
    *norm = 1 / (t.mean_eps + (double)t.blocks * ANGLES * sum.y);
}

/* The closer of the two equivalent true angles; diff = predicted - true. */
__device__ float chi_error(const Torsion &t, int64_t row, int64_t i, int k, float *diff)
{
    const float *a = t.angle + 2 * (ANGLES * row + FIRST_CHI + k), *c = t.chi + 2 * (CHIS * i + k);
    int type = t.aatype[i] < 0 || t.aatype[i] > 20 ? 20 : t.aatype[i];
    float turn = 1 - 2 * t.pi_periodic[CHIS * type + k], best = 0;
    for (int side = 0; side < 2; side++) {
        float x = a[0] - (side ? turn * c[0] : c[0]), y = a[1] - (side ? turn * c[1] : c[1]), e = x * x + y * y;
        if (side && e >= best) continue;
        best = e;
        diff[0] = x;
        diff[1] = y;
    }
    return best;
}

__device__ double raw_norm(const Torsion &t, int64_t angle)
{
    double a = t.raw[2 * angle], b = t.raw[2 * angle + 1];
    return sqrt(a * a + b * b + t.eps);
}

/* a thread per angle; partial: (errors of chis, errors of norms) of a block */
__global__ void __launch_bounds__(LOSS_THREADS) torsion_kernel(Torsion t, double2 *partial)
{
    stage_wait();
    stage_release();
    __shared__ double2 shared[LOSS_WARPS];
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = e / ANGLES, i = row % t.n;
    int k = (int)(e % ANGLES) - FIRST_CHI;
    double2 sum = {0, 0};
    if (row < t.blocks * t.n) {
        float diff[2], m = k >= 0 ? t.chi_mask[CHIS * i + k] : 0;
        if (m != 0) sum.x = (double)(m * chi_error(t, row, i, k, diff));
        if (t.seq_mask[i] != 0) sum.y = (double)t.seq_mask[i] * fabs(raw_norm(t, e) - 1);
    }
    sum = block_sum_pair(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* one block */
__global__ void torsion_total_kernel(Torsion t, const double2 *partial, int64_t blocks, float *loss, float *chi_out,
                                     float *norm_out)
{
    stage_wait();
    __shared__ double2 shared[WARP];
    double chi_scale, norm_scale;
    torsion_scales(t, shared, &chi_scale, &norm_scale);
    double2 sum = array_sum_pair(partial, blocks, shared);
    if (threadIdx.x) return;
    double chi = sum.x * chi_scale, norm = sum.y * norm_scale;
    *loss = (float)(t.chi_weight * chi + t.norm_weight * norm);
    *chi_out = (float)chi;
    *norm_out = (float)norm;
}

static unsigned torsion_blocks(const Tensor *angle)
{
    return blocks_for(ANGLES * angle->dim[0] * angle->dim[1], LOSS_THREADS);
}

static size_t torsion_scratch(const OpCall *call)
{
    return torsion_blocks(call->in_tensor[0]) * sizeof(double2);
}

static Status torsion(CudaContext *context, const OpCall *call)
{
    Torsion t = torsion_set(call, 0);
    double2 *partial = (double2 *)call->scratch;
    unsigned blocks = torsion_blocks(call->in_tensor[0]);
    launch(torsion_kernel, blocks, LOSS_THREADS, 0, context->stream, t, partial);
    launch(torsion_total_kernel, 1, SUM_THREADS, 0, context->stream, t, partial, blocks, F32_OUT(0), F32_OUT(1),
           F32_OUT(2));
    return cuda_launched("loss_torsion");
}

/* a thread per angle */
__global__ void torsion_bwd_kernel(Torsion t, const float *dl, float *dangle, float *draw)
{
    stage_wait();
    __shared__ double2 shared[WARP];
    double chi_scale, norm_scale;
    torsion_scales(t, shared, &chi_scale, &norm_scale);
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = e / ANGLES, i = row % t.n;
    if (row >= t.blocks * t.n) return;
    int k = (int)(e % ANGLES);
    float da[2] = {0, 0}, dr[2] = {0, 0}, diff[2];
    if (*dl != 0) {
        float m = k >= FIRST_CHI ? t.chi_mask[CHIS * i + k - FIRST_CHI] : 0;
        if (m != 0) {
            chi_error(t, row, i, k - FIRST_CHI, diff);
            float chi = (float)((double)*dl * t.chi_weight * chi_scale);
            for (int a = 0; a < 2; a++) da[a] = 2 * chi * m * diff[a];
        }
        if (t.seq_mask[i] != 0) {
            double length = raw_norm(t, e), excess = length - 1;
            double slope =
                (double)*dl * t.norm_weight * norm_scale * t.seq_mask[i] * ((excess > 0) - (excess < 0)) / length;
            for (int a = 0; a < 2; a++) dr[a] = (float)(slope * t.raw[2 * e + a]);
        }
    }
    for (int a = 0; a < 2; a++) {
        dangle[2 * e + a] = da[a];
        draw[2 * e + a] = dr[a];
    }
}

static Status torsion_bwd(CudaContext *context, const OpCall *call)
{
    Torsion t = torsion_set(call, 1);
    launch(torsion_bwd_kernel, blocks_for(ANGLES * t.blocks * t.n, LOSS_THREADS), LOSS_THREADS, 0, context->stream, t,
           F32_IN(0), F32_OUT(0), F32_OUT(1));
    return cuda_launched("torsion_bwd_kernel");
}

/* ---- total
 * ----------------------------------------------------------------------------------------------------------------------------
 */

struct Terms {
    int n;
    const float *in[ATTR_REALS];
    float *out[ATTR_REALS];
    double weight[ATTR_REALS];
};

__device__ double length_scale(const int32_t *length, int64_t crop)
{
    int64_t l = *length < crop ? *length : crop;
    return sqrt(l > 0 ? (double)l : 0.0);
}

__global__ void total_kernel(Terms t, const int32_t *length, int64_t crop, float *total, float *weighted)
{
    stage_wait();
    float term[ATTR_REALS]; /* all on their way at once */
    double sum = 0;
#pragma unroll
    for (int k = 0; k < ATTR_REALS; k++) term[k] = k < t.n ? *t.in[k] : 0;
#pragma unroll
    for (int k = 0; k < ATTR_REALS; k++)
        if (k < t.n && isfinite(term[k])) sum += t.weight[k] * (double)term[k];
    *total = (float)(sum * length_scale(length, crop));
    *weighted = (float)sum;
}

static Status total(CudaContext *context, const OpCall *call)
{
    Terms t = {};
    t.n = call->op->n_in - 1;
    for (int k = 0; k < t.n && k < ATTR_REALS; k++) {
        t.in[k] = F32_IN(k + 1);
        t.weight[k] = call->op->attr.f[k];
    }
    launch(total_kernel, 1, 1, 0, context->stream, t, I32_IN(0), call->op->attr.i[0], F32_OUT(0), F32_OUT(1));
    return cuda_launched("total_kernel");
}

__global__ void total_bwd_kernel(Terms t, const float *dtotal, const int32_t *length, int64_t crop)
{
    stage_wait();
    double d = (double)*dtotal * length_scale(length, crop);
    for (int k = 0; k < t.n; k++)
        if (t.weight[k] != 0 && !isfinite(*t.in[k])) d = NAN;
    for (int k = 0; k < t.n; k++)
        if (t.out[k]) *t.out[k] = (float)(d * t.weight[k]);
}

static Status total_bwd(CudaContext *context, const OpCall *call)
{
    Terms t = {};
    t.n = call->op->n_out;
    for (int k = 0; k < t.n && k < ATTR_REALS; k++) {
        t.in[k] = F32_IN(k + 2);
        t.out[k] = F32_OUT(k);
        t.weight[k] = call->op->attr.f[k];
    }
    launch(total_bwd_kernel, 1, 1, 0, context->stream, t, F32_IN(0), I32_IN(1), call->op->attr.i[0]);
    return cuda_launched("total_bwd_kernel");
}

const CudaEntry cuda_loss_torsion[] = {{OP_LOSS_TORSION, torsion, torsion_scratch},
                                       {OP_LOSS_TORSION_BWD, torsion_bwd, NULL},
                                       {OP_LOSS_TOTAL, total, NULL},
                                       {OP_LOSS_TOTAL_BWD, total_bwd, NULL},
                                       {OP_COUNT, NULL, NULL}};
