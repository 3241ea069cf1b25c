/* Small device helpers shared by the kernels: vectors of 16 bytes, conversion, reductions, Philox. */
#ifndef FOLDSCALE_KERNELS_CUDA_DEVICE_CUH
#define FOLDSCALE_KERNELS_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#include "kernels/cuda/entry.h"

typedef __nv_bfloat16 bf16;

enum { WARP = 32 };

/* What sums over stored values are taken in: one rounding, that of the result, is what f32 is to show. */
template <typename T> struct Wide;
template <> struct Wide<float> {
    typedef double Sum;
};
template <> struct Wide<bf16> {
    typedef float Sum;
};
template <> struct Wide<int32_t> {
    typedef float Sum;
};

/* Products of f32 with fewer multiplications are summed in double. Training at tiny sizes and checks against float64
 * live in them, and they take no time at full size: the longest such chain is one of a few microseconds. */
enum { FEW_MULTIPLICATIONS = 1 << 23 };

/* 16 bytes of T, the widest access of a thread. */
template <typename T> struct __align__(16) Pack
{
    static constexpr int N = 16 / sizeof(T);
    T v[N];
};

__device__ __forceinline__ float to_float(float x)
{
    return x;
}
__device__ __forceinline__ float to_float(bf16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(int32_t x)
{
    return (float)x;
}
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x)
{
    return __float2bfloat16(x);
}
template <> __device__ __forceinline__ int32_t from_float<int32_t>(float x)
{
    return (int32_t)x;
}

template <typename T> __device__ __forceinline__ Pack<T> load_pack(const T *p)
{
    Pack<T> out;
    *reinterpret_cast<uint4 *>(&out) = *reinterpret_cast<const uint4 *>(p);
    return out;
}
template <typename T> __device__ __forceinline__ void store_pack(T *p, const Pack<T> &x)
{
    *reinterpret_cast<uint4 *>(p) = *reinterpret_cast<const uint4 *>(&x);
}

/* V consecutive elements at p, as floats; V is 1 or a whole number of packs. */
template <int V, typename T> __device__ __forceinline__ void load_floats(const T *p, float *out)
{
    if (V == 1) {
        out[0] = to_float(*p);
        return;
    }
    constexpr int N = Pack<T>::N;
#pragma unroll
    for (int k = 0; k < V / N; k++) {
        Pack<T> x = load_pack(p + k * N);
#pragma unroll
        for (int j = 0; j < N; j++) out[k * N + j] = to_float(x.v[j]);
    }
}
template <int V, typename T> __device__ __forceinline__ void store_floats(T *p, const float *x)
{
    if (V == 1) {
        *p = from_float<T>(x[0]);
        return;
    }
    constexpr int N = Pack<T>::N;
#pragma unroll
    for (int k = 0; k < V / N; k++) {
        Pack<T> y;
#pragma unroll
        for (int j = 0; j < N; j++) y.v[j] = from_float<T>(x[k * N + j]);
        store_pack(p + k * N, y);
    }
}

/* Sum over groups of `lanes` neighbouring lanes (a power of two), the same bits in every lane. */
template <int lanes, typename S> __device__ __forceinline__ S lanes_sum(S x)
{
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
template <int lanes> __device__ __forceinline__ float lanes_max(float x)
{
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ __forceinline__ float sigmoidf(float x)
{
    return 1.0f / (1.0f + expf(-x));
}
/* the same from two approximate instructions: enough for results of 8 bits */
__device__ __forceinline__ float sigmoid_short(float x)
{
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.442695041f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return inverse;
}

/* Launch geometry: one thread per item, at most 2^31 - 1 blocks. */
static inline unsigned blocks_for(int64_t items, int threads)
{
    int64_t blocks = (items + threads - 1) / threads;
    return (unsigned)(blocks > 0 ? blocks : 1);
}

static inline bool aligned16(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

/* Every kernel starts while the one before it in the stream ends (programmatic dependent launch; CUDA programming
 * guide): what it does before stage_wait() overlaps that end, and must not touch memory that a kernel writes. All of
 * its threads wait, so that waiting for one kernel is waiting for all before it; and stage_release(), which lets the
 * next one start, comes behind it, so that all kernels before the one in front have ended when a kernel starts.
 *
 * Hence what was written before the run, and not by it, may be read before stage_wait() by all kernels but the run's
 * first. Of such steady operands (OpCall.steady) kernels with resident weights bring them early: only where the problem
 * says so (`early`, which the host sets from call_steady()), never from scratch memory, in which a kernel in front has
 * put them. tests/check_kernels.sh finds loads in front of stage_wait() that do not ask. */
__device__ __forceinline__ void stage_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
/* By all blocks: the next kernel may be launched now and not when this one ends. Pays where that one is small: its
 * blocks take room, which is why a kernel that shares the GPU with ops aside calls it late (PeerSend.shares). */
__device__ __forceinline__ void stage_release()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Launches a kernel that begins with stage_wait(), in clusters of this many blocks along x; cuda_launched() tells
 * whether it went well. */
template <typename... Parameters, typename... Arguments>
static void launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, int cluster,
                            cudaStream_t stream, const Arguments &...arguments)
{
    cudaLaunchAttribute attribute[2] = {};
    cudaLaunchConfig_t config = {};
    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    attribute[1].id = cudaLaunchAttributeClusterDimension;
    attribute[1].val.clusterDim.x = (unsigned)cluster;
    attribute[1].val.clusterDim.y = attribute[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = cluster > 1 ? 2 : 1;
    cudaLaunchKernelEx(&config, kernel, arguments...);
}
template <typename... Parameters, typename... Arguments>
static void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   const Arguments &...arguments)
{
    launch_clusters(kernel, grid, block, shared, 1, stream, arguments...);
}

/* Runs the statement with T = float or bf16. */
#define DISPATCH_REAL(call, dtype_, ...)                                                                               \
    do {                                                                                                               \
        switch (dtype_) {                                                                                              \
        case DT_F32: {                                                                                                 \
            typedef float T;                                                                                           \
            __VA_ARGS__                                                                                                \
        } break;                                                                                                       \
        case DT_BF16: {                                                                                                \
            typedef bf16 T;                                                                                            \
            __VA_ARGS__                                                                                                \
        } break;                                                                                                       \
        default:                                                                                                       \
            return cuda_bad_type(call, dtype_);                                                                        \
        }                                                                                                              \
    } while (0)

/* A read-only operand whose type is known at run time only: for kernels where speed does not matter. */
struct AnyReal {
    const void *p;
    DType dtype;
    __device__ __forceinline__ float operator[](int64_t i) const
    {
        return dtype == DT_BF16 ? to_float(((const bf16 *)p)[i])
                                : (dtype == DT_I32 ? (float)((const int32_t *)p)[i] : ((const float *)p)[i]);
    }
};
struct AnyOut {
    void *p;
    DType dtype;
    __device__ __forceinline__ void put(int64_t i, float x) const
    {
        if (dtype == DT_BF16)
            ((bf16 *)p)[i] = from_float<bf16>(x);
        else if (dtype == DT_I32)
            ((int32_t *)p)[i] = (int32_t)x;
        else
            ((float *)p)[i] = x;
    }
};
static inline AnyReal any_in(const OpCall *call, int i)
{
    AnyReal a = {NULL, DT_F32};
    if (i < call->op->n_in && call->in_tensor[i]) a.p = call->in[i], a.dtype = call->in_tensor[i]->dtype;
    return a;
}
static inline AnyOut any_out(const OpCall *call, int i)
{
    AnyOut a = {call->out[i], call->out_tensor[i] ? call->out_tensor[i]->dtype : DT_F32};
    return a;
}

#endif
