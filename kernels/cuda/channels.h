/* Gates that write channel-first, layer norms that read so. */
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

/* A call of LAYER_NORM_CHANNELS, for ops that have it as a part; mean and rstd may be absent. */
Status layer_norm_channels_run(CudaContext *ctx, const OpCall *call);

#endif
