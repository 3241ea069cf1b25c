/* Turning CUDA errors into Status. */
#include "kernels/cuda/entry.h"

Status cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return OK;
    cudaGetLastError(); /* told here, not again by what is launched next */
    Status code = error == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_INTERNAL;
    return status_fail(code, "CUDA: %s: %s", what, cudaGetErrorString(error));
}

Status cuda_launched(const char *name)
{
    return cuda_check(cudaGetLastError(), name);
}

Status cuda_bad_type(const OpCall *call, DType dtype)
{
    return status_fail(ERR_UNSUPPORTED, "the cuda backend has no kernel for op kind %d at %s", (int)call->op->kind,
                       dtype_name(dtype));
}
