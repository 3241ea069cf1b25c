/* Layer norm and its gradient as kernels of their own, for ops that have one in front or behind. */
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

/* The layer norm behind an op, of its output 0 (engine/ops/norm_behind.h): gamma is input `gamma`, the normalized rows
 * are output `out`, eps is f[1]. All zero without. */
NormRows norm_rows_behind(const OpCall *call, int gamma, int out);

/* A call of LAYER_NORM_FUSED_BWD, whether its kernel can send, and the bytes of its scratch for rows of c channels. */
Status norm_backward_run(CudaContext *ctx, const OpCall *call);
bool norm_backward_sends(const OpCall *call);
size_t norm_backward_scratch(int64_t c);

#endif
