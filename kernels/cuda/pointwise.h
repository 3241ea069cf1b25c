/* Elementwise ops that are parts of others. */
#ifndef FOLDSCALE_KERNELS_CUDA_POINTWISE_H
#define FOLDSCALE_KERNELS_CUDA_POINTWISE_H

#include "kernels/cuda/entry.h"

/* A call of GATE_BWD; its dx may lie where dy does. */
Status gate_bwd_run(CudaContext *ctx, const OpCall *call);

/* A call of DROPOUT or RESIDUAL_DROPOUT. */
Status dropout_run(CudaContext *ctx, const OpCall *call);

#endif
