/* Elements of host copies of tensors in any type. */
#ifndef FOLDSCALE_TESTS_BENCH_CUDA_VALUES_CUH
#define FOLDSCALE_TESTS_BENCH_CUDA_VALUES_CUH

#include "kernels/cuda/device.cuh"

static float round_bf16(float x)
{
    return __bfloat162float(__float2bfloat16(x));
}

static double stored(const void *p, DType type, int64_t e)
{
    switch (type) {
    case DT_BF16:
        return __bfloat162float(((const bf16 *)p)[e]);
    case DT_I32:
        return ((const int32_t *)p)[e];
    case DT_F64:
        return ((const double *)p)[e];
    default:
        return ((const float *)p)[e];
    }
}

static void put(void *p, DType type, int64_t e, double x)
{
    switch (type) {
    case DT_BF16:
        ((bf16 *)p)[e] = __float2bfloat16((float)x);
        break;
    case DT_I32:
        ((int32_t *)p)[e] = (int32_t)x;
        break;
    case DT_F64:
        ((double *)p)[e] = x;
        break;
    default:
        ((float *)p)[e] = (float)x;
    }
}

#endif
