/* Triangle products straight from channel-last tensors: x[i,j,c] = sum_k A(i,k,c) B(k,j,c), a matrix product per
 * channel.
 *
 * A block of 16 warps owns 64 x 32 pairs (i, j) of 16 channels, one channel per warp: 32 bytes of every (i, k) and (k,
 * j) are read, which are whole sectors. On the way to shared memory two neighbouring k of a channel are joined in a
 * word, which is what a fragment of mma.m16n8k16 holds; the pitches of the word arrays put the lanes of every access on
 * different banks. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRI_MMA_CUH
#define FOLDSCALE_KERNELS_CUDA_TRI_MMA_CUH

#include "kernels/cuda/mma.cuh"

enum {
    TRI_WARPS = 16,
    TRI_CHANNELS = 16,
    TRI_I = 64,
    TRI_J = 32,
    TRI_K = 16,
    /* words: a k pair's row of i or j; a channel (8 x channel pitch = 16 mod 32: the two halves of a sector) */
    TRI_A_PAIR = TRI_I + 8,
    TRI_B_PAIR = TRI_J + 8,
    TRI_A_CHANNEL = TRI_K / 2 * TRI_A_PAIR + 2,
    TRI_B_CHANNEL = TRI_K / 2 * TRI_B_PAIR + 2,
    TRI_STAGE_WORDS = TRI_CHANNELS * (TRI_A_CHANNEL + TRI_B_CHANNEL),
    TRI_OUT_ROW = 20, /* words of a row i of results: 16 pairs of j, padded */
    TRI_OUT_CHANNEL = TRI_I * TRI_OUT_ROW + 2,
    TRI_SHARED_BYTES = 2 * TRI_STAGE_WORDS * 4
};

struct TriProblem {
    const bf16 *a, *b;
    bf16 *x;
    int n, m, k, c;
    int64_t a_i, a_k, b_j, b_k; /* strides in elements */
    int64_t a_group, b_group, x_group;
};

/* Two neighbouring k of eight channels. */
struct TriItem {
    uint4 even, odd;
};

__device__ __forceinline__ TriItem tri_fetch(const bf16 *p, int64_t at, int64_t step, bool live, int k, int k_extent)
{
    TriItem item = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
    if (live && k < k_extent) item.even = *reinterpret_cast<const uint4 *>(p + at);
    if (live && k + 1 < k_extent) item.odd = *reinterpret_cast<const uint4 *>(p + at + step);
    return item;
}

__device__ __forceinline__ void tri_put(uint32_t *target, int channel_pitch, const TriItem &item)
{
    uint32_t e[4] = {item.even.x, item.even.y, item.even.z, item.even.w};
    uint32_t o[4] = {item.odd.x, item.odd.y, item.odd.z, item.odd.w};
#pragma unroll
    for (int q = 0; q < 4; q++) {
        target[2 * q * channel_pitch] = __byte_perm(e[q], o[q], 0x5410);
        target[(2 * q + 1) * channel_pitch] = __byte_perm(e[q], o[q], 0x7632);
    }
}

/* One step of 16 k for this warp's channel. */
__device__ __forceinline__ void tri_multiply(float (&acc)[4][4][4], const uint32_t *a, const uint32_t *b)
{
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    uint32_t fb[4][2];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        fb[j][0] = b[t * TRI_B_PAIR + j * 8 + g];
        fb[j][1] = b[(t + 4) * TRI_B_PAIR + j * 8 + g];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t *p = a + t * TRI_A_PAIR + i * 16 + g;
        uint32_t fa[4] = {p[0], p[8], p[4 * TRI_A_PAIR], p[4 * TRI_A_PAIR + 8]};
#pragma unroll
        for (int j = 0; j < 4; j++) mma16816(acc[i][j], fa, fb[j][0], fb[j][1]);
    }
}

/* Results through shared memory: 16 channels of a pair are one sector. */
__device__ __forceinline__ void tri_store(const TriProblem &p, bf16 *x, const float (&acc)[4][4][4], uint32_t *shared,
                                          int i0, int j0, int c0)
{
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    uint32_t *mine = shared + warp * TRI_OUT_CHANNEL;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            mine[(i * 16 + g) * TRI_OUT_ROW + j * 4 + t] = pack_bf16(acc[i][j][0], acc[i][j][1]);
            mine[(i * 16 + g + 8) * TRI_OUT_ROW + j * 4 + t] = pack_bf16(acc[i][j][2], acc[i][j][3]);
        }
    __syncthreads();
    const uint16_t *half = reinterpret_cast<const uint16_t *>(shared);
    for (int id = threadIdx.x; id < TRI_I * TRI_J * 2; id += TRI_WARPS * WARP) {
        int chunk = id & 1, j = id >> 1 & (TRI_J - 1), i = id >> 6;
        if (i0 + i >= p.n || j0 + j >= p.m) continue;
        const uint16_t *from = half + chunk * 8 * TRI_OUT_CHANNEL * 2 + i * TRI_OUT_ROW * 2 + j;
        uint32_t v[4];
#pragma unroll
        for (int q = 0; q < 4; q++)
            v[q] = from[2 * q * TRI_OUT_CHANNEL * 2] | (uint32_t)from[(2 * q + 1) * TRI_OUT_CHANNEL * 2] << 16;
        *reinterpret_cast<uint4 *>(x + ((int64_t)(i0 + i) * p.m + j0 + j) * p.c + c0 + chunk * 8) =
            make_uint4(v[0], v[1], v[2], v[3]);
    }
}

static __global__ void __launch_bounds__(TRI_WARPS *WARP, 1) tri_mma_kernel(TriProblem p)
{
    extern __shared__ __align__(128) uint32_t words[];
    int c0 = blockIdx.x * TRI_CHANNELS, tiles_j = (p.m + TRI_J - 1) / TRI_J;
    int i0 = (int)(blockIdx.y / tiles_j) * TRI_I, j0 = (int)(blockIdx.y % tiles_j) * TRI_J;
    const bf16 *a = p.a + blockIdx.z * p.a_group + c0, *b = p.b + blockIdx.z * p.b_group + c0;
    int warp = threadIdx.x / WARP, chunk = threadIdx.x & 1;
    /* this thread's items: two of A (k pairs 4 apart), one of B */
    int ai = threadIdx.x >> 1 & (TRI_I - 1), a_pair = threadIdx.x >> 7;
    int bj = threadIdx.x >> 1 & (TRI_J - 1), b_pair = threadIdx.x >> 6;
    bool a_live = i0 + ai < p.n, b_live = j0 + bj < p.m;
    int64_t a_at = (i0 + ai) * p.a_i + chunk * 8, b_at = (j0 + bj) * p.b_j + chunk * 8;

    float acc[4][4][4] = {};
    TriItem a_item[2], b_item;
    auto fetch = [&](int k0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int k = k0 + (a_pair + 4 * r) * 2;
            a_item[r] = tri_fetch(a, a_at + k * p.a_k, p.a_k, a_live, k, p.k);
        }
        int k = k0 + b_pair * 2;
        b_item = tri_fetch(b, b_at + k * p.b_k, p.b_k, b_live, k, p.k);
    };
    fetch(0);
    int stage = 0;
    for (int k0 = 0; k0 < p.k; k0 += TRI_K, stage ^= 1) {
        uint32_t *sa = words + stage * TRI_STAGE_WORDS, *sb = sa + TRI_CHANNELS * TRI_A_CHANNEL;
#pragma unroll
        for (int r = 0; r < 2; r++)
            tri_put(sa + chunk * 8 * TRI_A_CHANNEL + (a_pair + 4 * r) * TRI_A_PAIR + ai, TRI_A_CHANNEL, a_item[r]);
        tri_put(sb + chunk * 8 * TRI_B_CHANNEL + b_pair * TRI_B_PAIR + bj, TRI_B_CHANNEL, b_item);
        __syncthreads(); /* also: all are done with the stage that the next step overwrites */
        if (k0 + TRI_K < p.k) fetch(k0 + TRI_K);
        tri_multiply(acc, sa + warp * TRI_A_CHANNEL, sb + warp * TRI_B_CHANNEL);
    }
    __syncthreads();
    tri_store(p, p.x + blockIdx.z * p.x_group, acc, words, i0, j0, c0);
}

static inline bool tri_mma_fits(const TriProblem &p)
{
    return p.c % TRI_CHANNELS == 0 && aligned16(p.a) && aligned16(p.b) && aligned16(p.x);
}

static Status tri_mma_launch(const TriProblem &p, int64_t groups, cudaStream_t stream)
{
    dim3 grid(p.c / TRI_CHANNELS, ((p.n + TRI_I - 1) / TRI_I) * ((p.m + TRI_J - 1) / TRI_J), (unsigned)groups);
    if (grid.y > 65535 || groups > 65535)
        return status_fail(ERR_UNSUPPORTED, "a triangle product of %d x %d", p.n, p.m);
    CUDA_TRY(cudaFuncSetAttribute(tri_mma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, TRI_SHARED_BYTES));
    tri_mma_kernel<<<grid, TRI_WARPS * WARP, TRI_SHARED_BYTES, stream>>>(p);
    return cuda_launched("tri_mma_kernel");
}

#endif
