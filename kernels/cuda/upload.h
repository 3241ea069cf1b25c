/* Copies from the host that run beside computation. */
#ifndef FOLDSCALE_KERNELS_CUDA_UPLOAD_H
#define FOLDSCALE_KERNELS_CUDA_UPLOAD_H

#include "kernels/cuda/entry.h"

typedef struct CudaUpload CudaUpload;

Status cuda_upload_open(CudaUpload **upload_out);
void cuda_upload_close(CudaUpload **upload);

/* host -> target, in the order of `compute`. The way to the device runs at once, on a stream of its own, into a ring of
 * staging memory; `compute` then moves it to its place at the speed of the device's memory. */
Status cuda_upload(CudaUpload *upload, void *target, const void *host, size_t bytes, cudaStream_t compute);

/* Waits until all host memory has been read. */
Status cuda_upload_finish(CudaUpload *upload);

#endif
