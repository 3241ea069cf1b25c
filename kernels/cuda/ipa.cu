/* Points as features (AlphaFold2 supplement, algorithm 22, line 11) in f32. */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256 };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

__global__ void point_features_kernel(int64_t count, int64_t points, float eps, const float *x, float *y)
{
    stage_wait();
    stage_release();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    int64_t i = e / points, p = e % points;
    const float *v = x + 3 * e;
    float *row = y + 4 * points * i + p;
    for (int a = 0; a < 3; a++) row[a * points] = v[a];
    row[3 * points] = sqrtf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + eps);
}

static Status point_features(CudaContext *context, const OpCall *call)
{
    int64_t points = call->in_tensor[0]->dim[1], count = call->in_tensor[0]->dim[0] * points;
    launch(point_features_kernel, blocks_for(count, THREADS), THREADS, 0, context->stream, count, points,
           (float)call->op->attr.f[0], F32_IN(0), F32_OUT(0));
    return cuda_launched("point_features_kernel");
}

__global__ void point_features_bwd_kernel(int64_t count, int64_t points, float eps, const float *dy, const float *x,
                                          float *dx)
{
    stage_wait();
    stage_release();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    const float *v = x + 3 * e, *row = dy + 4 * points * (e / points) + e % points;
    float norm = sqrtf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + eps);
    for (int a = 0; a < 3; a++) dx[3 * e + a] = row[a * points] + row[3 * points] * v[a] / norm;
}

static Status point_features_bwd(CudaContext *context, const OpCall *call)
{
    int64_t points = call->in_tensor[1]->dim[1], count = call->in_tensor[1]->dim[0] * points;
    launch(point_features_bwd_kernel, blocks_for(count, THREADS), THREADS, 0, context->stream, count, points,
           (float)call->op->attr.f[0], F32_IN(0), F32_IN(1), F32_OUT(0));
    return cuda_launched("point_features_bwd_kernel");
}

const CudaEntry cuda_ipa[] = {{OP_POINT_FEATURES, point_features, NULL},
                              {OP_POINT_FEATURES_BWD, point_features_bwd, NULL},
                              {OP_COUNT, NULL, NULL}};
