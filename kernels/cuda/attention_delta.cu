/* delta = sums over heads of do o: for the gradient of a gate whose kernel does not leave them (linear_gate_dx.cu), and
 * for the backward kernels of attention where no gradient of a gate did. */
#include "kernels/cuda/attention.h"

enum { DELTA_THREADS = 256 };

/* `LANES` lanes a head, of one pack each; 0: a thread a head, of any width */
template <typename T, int LANES>
__global__ void __launch_bounds__(DELTA_THREADS)
    att_delta_kernel(const T *go, const T *o, float *delta, int64_t heads, int width)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    int64_t id = (int64_t)blockIdx.x * DELTA_THREADS + threadIdx.x, head = id / (LANES ? LANES : 1);
    Sum sum = 0;
    if constexpr (LANES > 0) {
        if (head < heads) {
            Pack<T> x = load_pack(go + id * Pack<T>::N), y = load_pack(o + id * Pack<T>::N);
#pragma unroll
            for (int k = 0; k < Pack<T>::N; k++) sum += (Sum)to_float(x.v[k]) * to_float(y.v[k]);
        }
        sum = lanes_sum<LANES>(sum);
        if (head < heads && id % LANES == 0) delta[head] = (float)sum;
    } else if (head < heads) {
        for (int c = 0; c < width; c++) sum += (Sum)to_float(go[head * width + c]) * to_float(o[head * width + c]);
        delta[head] = (float)sum;
    }
}

template <typename T, int LANES>
static Status delta_launch(const T *go, const T *o, float *delta, int64_t heads, int width, cudaStream_t stream)
{
    unsigned blocks = blocks_for(heads * (LANES ? LANES : 1), DELTA_THREADS);
    launch(att_delta_kernel<T, LANES>, blocks, DELTA_THREADS, 0, stream, go, o, delta, heads, width);
    return cuda_launched("att_delta_kernel");
}

template <typename T>
Status att_delta_launch(const T *go, const T *o, float *delta, int64_t heads, int width, cudaStream_t stream)
{
    int lanes = aligned16(go) && aligned16(o) && width % Pack<T>::N == 0 ? width / Pack<T>::N : 0;
    switch (lanes) {
    case 1:
        return delta_launch<T, 1>(go, o, delta, heads, width, stream);
    case 2:
        return delta_launch<T, 2>(go, o, delta, heads, width, stream);
    case 4:
        return delta_launch<T, 4>(go, o, delta, heads, width, stream);
    case 8:
        return delta_launch<T, 8>(go, o, delta, heads, width, stream);
    default:
        return delta_launch<T, 0>(go, o, delta, heads, width, stream);
    }
}
template Status att_delta_launch(const float *, const float *, float *, int64_t, int, cudaStream_t);
template Status att_delta_launch(const bf16 *, const bf16 *, float *, int64_t, int, cudaStream_t);
