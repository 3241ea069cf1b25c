/* Layer norm as a kernel of its own, for ops that have one in front. */
#ifndef FOLDSCALE_KERNELS_CUDA_NORM_H
#define FOLDSCALE_KERNELS_CUDA_NORM_H

#include "kernels/cuda/entry.h"

/* mean and rstd: NULL where nobody wants them; f32 or bf16 rows of c channels. */
typedef struct NormRows {
    const void *x;
    const float *gamma, *beta;
    void *y;
    float *mean, *rstd, eps;
    int64_t rows, c;
    DType type;
} NormRows;

Status norm_rows_run(CudaContext *ctx, const OpCall *call, const NormRows *n);

#endif
