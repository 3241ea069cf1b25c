/* Dropout masks from counters (engine/philox.h): element e of the mask's own global shape (the shared axis collapsed to
 * one) takes word e % 4 of block e / 4. So masks do not depend on ranks, fusion or rematerialisation. */
#ifndef FOLDSCALE_KERNELS_CUDA_DROPOUT_CUH
#define FOLDSCALE_KERNELS_CUDA_DROPOUT_CUH

#include "engine/philox.h"
#include "kernels/cuda/device.cuh"

/* What the counters of one launch share. */
struct DropoutDraw {
    uint32_t step, seed[2];
};

struct Dropout {
    const int32_t *rng; /* seed, step, sample, iteration */
    uint32_t key;
    uint32_t least; /* rate as a count of 2^-24: words whose upper 24 bits are less are dropped */
    float keep_scale;
    int rank;
    uint32_t inner; /* vectors that divide it have consecutive mask elements starting at a multiple of 4 */
    uint32_t local[TENSOR_MAX_RANK];  /* extents of x here */
    uint32_t stride[TENSOR_MAX_RANK]; /* of the mask's global shape; 0 on the shared axis */
    uint32_t offset;                  /* mask element of x's first element: this rank's place on the sharded axis */

    __device__ __forceinline__ uint32_t mask_element(uint32_t e) const
    {
        uint32_t at = offset;
#pragma unroll
        for (int k = TENSOR_MAX_RANK - 1; k >= 0; k--) {
            if (k >= rank) continue;
            uint32_t rest = k > 0 ? e / local[k] : 0;
            at += (e - rest * local[k]) * stride[k];
            e = rest;
        }
        return at;
    }
    __device__ __forceinline__ DropoutDraw draw() const
    {
        return {(uint32_t)rng[1] * 8u + (uint32_t)rng[3], {(uint32_t)rng[0], (uint32_t)rng[2]}};
    }
    __device__ __forceinline__ void words(const DropoutDraw &d, uint32_t block, uint32_t (&out)[4]) const
    {
        const uint32_t counter[4] = {block, 0, key, d.step};
        philox4x32(counter, d.seed, out);
    }
    __device__ __forceinline__ bool keeps(uint32_t word) const
    {
        return word >> 8 >= least;
    }
    __device__ __forceinline__ float factor(uint32_t word) const
    {
        return keeps(word) ? keep_scale : 0.0f;
    }
    template <int V> __device__ __forceinline__ void factors(uint32_t first, float *out) const
    {
        uint32_t at = mask_element(first);
        uint32_t w[4];
        DropoutDraw d = draw();
        if constexpr (V == 1) {
            words(d, at >> 2, w);
            int lane = (int)(at & 3);
            out[0] = factor(lane == 0 ? w[0] : lane == 1 ? w[1] : lane == 2 ? w[2] : w[3]);
        } else {
#pragma unroll
            for (int k = 0; k < V / 4; k++) {
                words(d, (at >> 2) + k, w);
#pragma unroll
                for (int j = 0; j < 4; j++) out[k * 4 + j] = factor(w[j]);
            }
        }
    }
};

struct PlainDropout {
    Dropout d;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float f[V];
        d.factors<V>(first, f);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] * f[j];
    }
};

/* r + dropout(x) */
struct ResidualDropout {
    Dropout d;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float f[V];
        d.factors<V>(first, f);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] + x[1][j] * f[j];
    }
};

static inline void dropout_make(const RankLayout *layout, const Tensor *x, int64_t key, int shared, double rate,
                                const int32_t *rng, Dropout *out)
{
    Dropout d = {};
    d.rng = rng;
    d.key = (uint32_t)key;
    d.least = (uint32_t)ceil(rate * 0x1p24);
    d.keep_scale = (float)(1.0 / (1.0 - rate));
    d.rank = x->rank;
    int64_t stride = 1;
    for (int k = x->rank - 1; k >= 0; k--) {
        bool split = x->shard == k;
        int64_t global = x->dim[k] * (split ? layout->dap : 1);
        d.local[k] = (uint32_t)x->dim[k];
        d.stride[k] = k == shared ? 0 : (uint32_t)stride;
        if (split) d.offset += d.stride[k] * d.local[k] * (uint32_t)layout->dap_rank;
        if (k != shared) stride *= global;
    }
    int last = x->rank - 1;
    bool plain = last >= 0 && last != shared && x->shard != last;
    d.inner = plain ? (uint32_t)x->dim[last] : 1;
    *out = d;
}

#endif
