/* Linear layers that share an input. */
#ifndef FOLDSCALE_KERNELS_CUDA_DENSE_H
#define FOLDSCALE_KERNELS_CUDA_DENSE_H

#include "kernels/cuda/entry.h"

enum { GROUP_MAX = LINEAR_GROUP_MAX };

/* Operands of y_k = x W_k^T + b_k, or of the layer norm of x in its place (gamma not NULL); normal, mean and rstd:
 * where to keep its results, NULL where nobody wants them; room: for the first of them, if not kept. */
typedef struct Group {
    int members;
    int64_t rows, inner;
    int64_t out[GROUP_MAX];
    const void *x, *w[GROUP_MAX];
    const float *bias[GROUP_MAX];
    void *y[GROUP_MAX];
    DType type;
    bool relu, early; /* early: all of w and bias are steady (OpCall) */
    const float *gamma, *beta;
    float eps, *mean, *rstd;
    void *normal, *room;
    const struct PeerSend *send; /* of member `sent`; NULL: none */
    int sent;
} Group;

/* call->scratch: room for the biases in bf16, the widest member. */
Status dense_group_run(CudaContext *ctx, const OpCall *call, const Group *g);

/* Calls of LINEAR_DX and LINEAR_NORM_DX, and the bytes of the latter's scratch, for ops that have them as parts. */
Status linear_dx_run(CudaContext *ctx, const OpCall *call);
Status linear_norm_dx_run(CudaContext *ctx, const OpCall *call);
size_t linear_norm_dx_scratch(const OpCall *call);

/* Weight gradients that wait for one another, so that they share a launch (CudaContext.batch). */
Status weights_batch_create(WeightsBatch **batch_out);
void weights_batch_destroy(WeightsBatch **batch);
/* Launches those that wait. */
Status weights_flush(CudaContext *ctx);

#endif
