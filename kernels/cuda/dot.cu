/* Sum of products, for checks: one block, in double, in a fixed order. */
#include "kernels/cuda/loss.cuh"

__global__ void dot_kernel(int64_t n, const float *a, const float *b, float *out)
{
    stage_wait();
    __shared__ double shared[WARP];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += (double)a[i] * (double)b[i];
    sum = block_sum_double(sum, shared);
    if (threadIdx.x == 0) *out = (float)sum;
}

static Status dot(CudaContext *context, const OpCall *call)
{
    launch(dot_kernel, 1, SUM_THREADS, 0, context->stream, tensor_count(call->in_tensor[0]), F32_IN(0), F32_IN(1),
           F32_OUT(0));
    return cuda_launched("dot_kernel");
}

const CudaEntry cuda_dot[] = {{OP_DOT, dot, NULL}, {OP_COUNT, NULL, NULL}};
