/* A row of a layer norm. */
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

#endif
