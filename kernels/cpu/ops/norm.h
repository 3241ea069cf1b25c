/* Layer norm of rows. */
#ifndef FOLDSCALE_KERNELS_CPU_OPS_NORM_H
#define FOLDSCALE_KERNELS_CPU_OPS_NORM_H

#include "kernels/cpu/math.h"

/* In double: a mean rounded to float is what most of the error of a float32 layer norm comes from. */
static inline void row_statistics(int64_t c, const real *x, real eps, double *mean_out, double *rstd_out)
{
    double mean = 0, variance = 0;
    for (int64_t k = 0; k < c; k++) mean += x[k];
    mean /= (double)c;
    for (int64_t k = 0; k < c; k++) variance += (x[k] - mean) * (x[k] - mean);
    *mean_out = mean;
    *rstd_out = 1 / sqrt(variance / (double)c + eps);
}

/* y = (x - mean) rstd gamma + beta */
static inline void normalize_row(int64_t c, const real *x, double mean, double rstd, const real *gamma,
                                 const real *beta, real *y)
{
    for (int64_t k = 0; k < c; k++) y[k] = (real)((x[k] - mean) * rstd * gamma[k] + beta[k]);
}

/* The same for rows of x[rows, c]; the statistics are kept where there is room for them. */
static inline void layer_norm_rows(int64_t rows, int64_t c, const real *x, const real *gamma, const real *beta,
                                   real eps, real *y, real *mean, real *rstd)
{
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++) {
        double row_mean, row_rstd;
        row_statistics(c, x + r * c, eps, &row_mean, &row_rstd);
        normalize_row(c, x + r * c, row_mean, row_rstd, gamma, beta, y + r * c);
        if (mean) mean[r] = (real)row_mean;
        if (rstd) rstd[r] = (real)row_rstd;
    }
}

/* The layer norm behind an op, of its output 0 (engine/ops/norm_behind.h), if it has one: gamma is input `gamma`, the
 * normalized rows are output `out`, eps is f[1]. */
static inline void layer_norm_behind(const OpCall *call, int gamma, int out)
{
    const Tensor *y = call->out_tensor[0];
    if (call->op->n_in <= gamma + 1 || !call->in[gamma]) return;
    layer_norm_rows(tensor_rows(y), tensor_last(y), OUT(0), IN(gamma), IN(gamma + 1), (real)call->op->attr.f[1],
                    OUT(out), OUT(out + 1), OUT(out + 2));
}

#endif
