/* Gates that write channel-first, layer norms of what is channel-first. */
#ifndef FOLDSCALE_KERNELS_CUDA_CHANNELS_H
#define FOLDSCALE_KERNELS_CUDA_CHANNELS_H

#include "kernels/cuda/device.cuh"

enum { GATE_CHANNELS_MAX = 3 };

/* a_k[G?,C,.,.] = m sigmoid(gate_k[G?,.,.,C]) value_k[G?,.,.,C] */
struct GateChannels {
    int count;
    const void *value[GATE_CHANNELS_MAX], *gate[GATE_CHANNELS_MAX];
    void *a[GATE_CHANNELS_MAX];
};

/* a: the shape of all a_k */
Status gate_channels_launch(const OpCall *call, const GateChannels &p, const Tensor *a, AnyReal mask,
                            cudaStream_t stream);

/* Calls of LAYER_NORM_CHANNELS, mean and rstd of which may be absent, and of LAYER_NORM_CHANNELS_BWD, and the bytes of
 * the latter's scratch, for ops that have them as parts. */
Status layer_norm_channels_run(CudaContext *ctx, const OpCall *call);
Status layer_norm_channels_bwd_run(CudaContext *ctx, const OpCall *call);
size_t layer_norm_channels_bwd_scratch(const OpCall *call);

#endif
