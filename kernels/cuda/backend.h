/* The CUDA backend: one process per GPU, one stream for computation, one for collectives. */
#ifndef FOLDSCALE_KERNELS_CUDA_BACKEND_H
#define FOLDSCALE_KERNELS_CUDA_BACKEND_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/kernels.h"

Status cuda_backend_open(const KernelOptions *options, Backend **backend_out);
#ifdef __cplusplus
}
#endif

#endif
