/* Losses of the heads' logits (AlphaFold2 supplement 1.9.6, 1.9.8 to 1.9.10). */
#include <tgmath.h>

#include "kernels/cpu/ops/loss.h"

/* One double per row of the logits' first axis. */
size_t FN(loss_rows_scratch)(const Program *program, const Op *op, size_t real_size)
{
    (void)real_size;
    return (size_t)prog_tensor(program, op->in[0])->dim[0] * sizeof(double);
}

static real log_sum_exp(const real *x, int64_t n)
{
    real top = x[0], sum = 0;
    for (int64_t k = 1; k < n; k++) top = x[k] > top ? x[k] : top;
    for (int64_t k = 0; k < n; k++) sum += exp(x[k] - top);
    return top + log(sum);
}

/* -log softmax(x)[target] and its gradient times `scale` */
static real cross_entropy(const real *x, int64_t n, int64_t target)
{
    return log_sum_exp(x, n) - x[target];
}
static void cross_entropy_bwd(const real *x, int64_t n, int64_t target, real scale, real *dx)
{
    if (scale == 0) {
        memset(dx, 0, sizeof(real) * (size_t)n);
        return;
    }
    real norm = log_sum_exp(x, n);
    for (int64_t k = 0; k < n; k++) dx[k] = scale * (exp(x[k] - norm) - (k == target));
}

/* --- distogram
 * ----------------------------------------------------------------------------------------------------------- */

/* Number of edges below the squared distance; edges are squares of equidistant numbers from min to max, one less than
 * bins. */
static int64_t distance_bin(const real *a, const real *b, const OpCall *call, int64_t bins)
{
    real x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2], square = x * x + y * y + z * z;
    double min = call->op->attr.f[0], max = call->op->attr.f[1], step = bins > 2 ? (max - min) / (double)(bins - 2) : 0;
    int64_t bin = 0;
    for (int64_t k = 0; k < bins - 1; k++) {
        double edge = k < (bins - 1) / 2 ? min + step * (double)k : max - step * (double)(bins - 2 - k);
        bin += square > (real)edge * (real)edge;
    }
    return bin;
}

static double pair_denominator(const real *mask, int64_t n, double eps)
{
    double sum = loss_sum(mask, n);
    return eps + sum * sum;
}

LOSS_KERNEL(distogram)
{
    (void)layout;
    const real *logits = call->in[0], *beta = call->in[1], *mask = call->in[2];
    int64_t n = call->in_tensor[0]->dim[0], bins = call->in_tensor[0]->dim[2];
    double *row = call->scratch, sum = 0;
#pragma omp parallel for if (n * n * bins > 10000)
    for (int64_t i = 0; i < n; i++) {
        row[i] = 0;
        for (int64_t j = 0; j < n; j++) {
            real m = mask[i] * mask[j];
            if (m == 0) continue;
            int64_t bin = distance_bin(beta + 3 * i, beta + 3 * j, call, bins);
            row[i] += (double)(m * cross_entropy(logits + (n * i + j) * bins, bins, bin));
        }
    }
    for (int64_t i = 0; i < n; i++) sum += row[i];
    *(real *)call->out[0] = (real)(sum / pair_denominator(mask, n, call->op->attr.f[2]));
    return OK;
}

LOSS_KERNEL(distogram_bwd)
{
    (void)layout;
    real dl, *dlogits = call->out[0];
    if (loss_is_off(call, &dl)) return OK;
    const real *logits = call->in[1], *beta = call->in[2], *mask = call->in[3];
    int64_t n = call->in_tensor[1]->dim[0], bins = call->in_tensor[1]->dim[2];
    real scale = (real)((double)dl / pair_denominator(mask, n, call->op->attr.f[2]));
#pragma omp parallel for if (n * n * bins > 10000)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            int64_t bin = distance_bin(beta + 3 * i, beta + 3 * j, call, bins), at = (n * i + j) * bins;
            cross_entropy_bwd(logits + at, bins, bin, scale * mask[i] * mask[j], dlogits + at);
        }
    return OK;
}

/* --- masked MSA
 * ---------------------------------------------------------------------------------------------------------- */

static Status check_msa(const int32_t *msa, int64_t count, int64_t classes)
{
    for (int64_t i = 0; i < count; i++)
        if (msa[i] < 0 || msa[i] >= classes)
            return status_fail(ERR_INPUT, "true_msa holds %d at position %lld, outside 0..%lld", (int)msa[i],
                               (long long)i, (long long)classes - 1);
    return OK;
}

LOSS_KERNEL(masked_msa)
{
    (void)layout;
    const real *logits = call->in[0], *mask = call->in[2];
    const int32_t *msa = call->in[1];
    int64_t rows = call->in_tensor[0]->dim[0], n = call->in_tensor[0]->dim[1], classes = call->in_tensor[0]->dim[2];
    double *row = call->scratch, sum = 0;
    TRY(check_msa(msa, rows * n, classes));
#pragma omp parallel for if (rows * n * classes > 10000)
    for (int64_t s = 0; s < rows; s++) {
        row[s] = 0;
        for (int64_t i = s * n; i < (s + 1) * n; i++)
            if (mask[i] != 0) row[s] += (double)(mask[i] * cross_entropy(logits + i * classes, classes, msa[i]));
    }
    for (int64_t s = 0; s < rows; s++) sum += row[s];
    *(real *)call->out[0] = (real)(sum / (call->op->attr.f[0] + loss_sum(mask, rows * n)));
    return OK;
}

LOSS_KERNEL(masked_msa_bwd)
{
    (void)layout;
    real dl, *dlogits = call->out[0];
    if (loss_is_off(call, &dl)) return OK;
    const real *logits = call->in[1], *mask = call->in[3];
    const int32_t *msa = call->in[2];
    int64_t count = tensor_rows(call->in_tensor[1]), classes = call->in_tensor[1]->dim[2];
    TRY(check_msa(msa, count, classes));
    real scale = (real)((double)dl / (call->op->attr.f[0] + loss_sum(mask, count)));
#pragma omp parallel for if (count * classes > 10000)
    for (int64_t i = 0; i < count; i++)
        cross_entropy_bwd(logits + i * classes, classes, msa[i], scale * mask[i], dlogits + i * classes);
    return OK;
}

/* --- pLDDT
 * ----------------------------------------------------------------------------------------------------------------- */

enum { ATOMS37 = 37, CA = 1 };

/* False also for an unknown resolution (NaN). */
static bool resolution_counts(const real *resolution, double min, double max)
{
    return (double)*resolution >= min && (double)*resolution <= max;
}

static real distance(const real *a, const real *b, real eps)
{
    real x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
    return sqrt(eps + (x * x + y * y + z * z));
}

/* lDDT of the CA of residue i: share of the true distances below the cutoff that are kept within 0.5, 1, 2, 4 A. */
static real lddt_ca(const real *x, const real *gt, const real *mask, int64_t n, int64_t i, real cutoff, real eps)
{
    real scored = 0, kept = 0;
    for (int64_t j = 0; j < n; j++) {
        real m = mask[ATOMS37 * i + CA] * mask[ATOMS37 * j + CA];
        int64_t a = 3 * (ATOMS37 * i + CA), b = 3 * (ATOMS37 * j + CA);
        real truth = distance(gt + a, gt + b, eps);
        if (i == j || m == 0 || !(truth < cutoff)) continue;
        real error = fabs(truth - distance(x + a, x + b, eps));
        scored += m;
        kept += m * (real)0.25 * (real)((error < REAL(0.5)) + (error < 1) + (error < 2) + (error < 4));
    }
    return (eps + kept) / (eps + scored);
}

static int64_t lddt_bin(real lddt, int64_t bins)
{
    real scaled = lddt * (real)bins;
    if (!(scaled > 0)) return 0; /* also NaN: the loss is NaN then anyway */
    return scaled < (real)bins ? (int64_t)scaled : bins - 1;
}

static double ca_count(const real *exists, int64_t n, double eps)
{
    for (int64_t i = 0; i < n; i++) eps += (double)exists[ATOMS37 * i + CA];
    return eps;
}

LOSS_KERNEL(plddt)
{
    (void)layout;
    const real *logits = call->in[0], *x = call->in[1], *gt = call->in[2], *exists = call->in[3];
    const double *f = call->op->attr.f;
    real *lddt = call->out[1];
    int64_t n = call->in_tensor[0]->dim[0], bins = call->in_tensor[0]->dim[1];
    double sum = 0;
#pragma omp parallel for if (n > 64)
    for (int64_t i = 0; i < n; i++) lddt[i] = lddt_ca(x, gt, exists, n, i, (real)f[0], (real)f[3]);
    bool counts = resolution_counts(call->in[4], f[1], f[2]);
    for (int64_t i = 0; i < n && counts; i++) {
        real m = exists[ATOMS37 * i + CA];
        if (m != 0) sum += (double)(m * cross_entropy(logits + i * bins, bins, lddt_bin(lddt[i], bins)));
    }
    *(real *)call->out[0] = (real)(sum / ca_count(exists, n, f[3]));
    return OK;
}

LOSS_KERNEL(plddt_bwd)
{
    (void)layout;
    real dl, *dlogits = call->out[0];
    if (loss_is_off(call, &dl)) return OK;
    const real *logits = call->in[1], *lddt = call->in[2], *exists = call->in[3];
    const double *f = call->op->attr.f;
    int64_t n = call->in_tensor[1]->dim[0], bins = call->in_tensor[1]->dim[1];
    double scale = resolution_counts(call->in[4], f[1], f[2]) ? (double)dl / ca_count(exists, n, f[3]) : 0;
    for (int64_t i = 0; i < n; i++)
        cross_entropy_bwd(logits + i * bins, bins, lddt_bin(lddt[i], bins), (real)scale * exists[ATOMS37 * i + CA],
                          dlogits + i * bins);
    return OK;
}

LOSS_KERNEL(plddt_score)
{
    (void)layout;
    const real *logits = call->in[0];
    real *score = call->out[0];
    int64_t n = tensor_rows(call->in_tensor[0]), bins = tensor_last(call->in_tensor[0]);
    for (int64_t i = 0; i < n; i++) {
        real norm = log_sum_exp(logits + i * bins, bins), sum = 0;
        for (int64_t k = 0; k < bins; k++) sum += exp(logits[i * bins + k] - norm) * ((real)k + REAL(0.5));
        score[i] = 100 * sum / (real)bins;
    }
    return OK;
}

/* --- experimentally resolved
 * ------------------------------------------------------------------------------------------------ */

/* log(1 + exp(x)) without overflow */
static real softplus(real x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

LOSS_KERNEL(resolved)
{
    (void)layout;
    const real *x = call->in[0], *resolved = call->in[1], *exists = call->in[2];
    const double *f = call->op->attr.f;
    int64_t count = tensor_count(call->in_tensor[0]);
    double sum = 0;
    bool counts = resolution_counts(call->in[3], f[0], f[1]);
    for (int64_t i = 0; i < count && counts; i++)
        if (exists[i] != 0) sum += (double)(exists[i] * (softplus(x[i]) - resolved[i] * x[i]));
    *(real *)call->out[0] = (real)(sum / (f[2] + loss_sum(exists, count)));
    return OK;
}

LOSS_KERNEL(resolved_bwd)
{
    (void)layout;
    real dl, *dx = call->out[0];
    if (loss_is_off(call, &dl)) return OK;
    const real *x = call->in[1], *resolved = call->in[2], *exists = call->in[3];
    const double *f = call->op->attr.f;
    int64_t count = tensor_count(call->in_tensor[1]);
    double scale = resolution_counts(call->in[4], f[0], f[1]) ? (double)dl / (f[2] + loss_sum(exists, count)) : 0;
    for (int64_t i = 0; i < count; i++)
        dx[i] = exists[i] == 0 ? 0 : (real)scale * exists[i] * (1 / (1 + exp(-x[i])) - resolved[i]);
    return OK;
}
