/* Shapes of attention (engine/ops/attention.c) and what its implementations offer. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATTENTION_H
#define FOLDSCALE_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/device.cuh"

struct PeerRows;
struct PeerSend;

/* Queries, keys and values of one (group, row, head): rows `pitch` elements apart, d wide. */
struct Att {
    int g, b, h, n, m, d;
    int64_t pitch, q_row, k_row, q_group, k_group;
    int mask_rank; /* 0: none */
    bool bias_t;
    float scale, inf;
    const float *mask;

    __host__ __device__ int64_t q_block(int group, int row, int head) const
    {
        return group * q_group + row * q_row + (int64_t)head * d;
    }
    __host__ __device__ int64_t k_block(int group, int row, int head) const
    {
        return group * k_group + row * k_row + (int64_t)head * d;
    }
    __device__ const float *mask_row(int group, int row) const
    {
        if (mask_rank < 2) return mask;
        return mask + ((mask_rank == 3 ? (int64_t)group * b : 0) + row) * m;
    }
    /* what a head of a query has in delta, one value per head of a row of q */
    __device__ __forceinline__ int64_t delta_index(int group, int row, int query, int head, int width) const
    {
        return (q_block(group, row, head) + query * pitch) / width;
    }
    /* element of the bias [G?,N,M,H], or [G?,M,N,H] when it is read transposed */
    __host__ __device__ int64_t bias_index(int group, int i, int j, int head) const
    {
        int64_t pair = bias_t ? (int64_t)j * n + i : (int64_t)i * m + j;
        return ((int64_t)group * n * m + pair) * h + head;
    }
};

/* Products so few that they are summed in double, where that is wider (FEW_MULTIPLICATIONS). */
static inline bool att_is_few(const Att &a)
{
    return (int64_t)a.g * a.b * a.h * a.n * a.m * a.d < FEW_MULTIPLICATIONS;
}

Att att_make(const Tensor *q, const Tensor *k, const Tensor *mask, const void *mask_at, const OpAttr *attr,
             bool column);

/* Operands of the fused ops; NULL where absent. */
template <typename T> struct AttOperands {
    const T *q, *k, *v, *bias, *gate, *go, *o_in;
    const float *lse_in, *delta; /* backward has delta or o_in */
    T *o, *y, *dq, *dk, *dv, *dbias;
    float *lse;
    T *again; /* y once more, where that leaves */
};

/* Tensor core kernels for bf16 (attention_mma_*.cu): whether they take a shape, their scratch, and their launches. */
bool att_mma_fits(const Att &a, bool bias);
size_t att_mma_forward_scratch(const Att &a, bool bias);
/* Whether the result can leave for other ranks, spread like this, of which run x ranks are the queries of a row: with
 * bias and gate, as rows of an MSA and of pairs attend. */
bool att_mma_sends(const Att &a, const AttOperands<bf16> &x, const PeerRows &rows);
Status att_mma_forward_launch(const Att &a, const AttOperands<bf16> &x, const PeerSend &send, void *scratch,
                              cudaStream_t stream);
bool att_wgmma_fits(const Att &a, bool bias); /* of those that att_mma_fits */
size_t att_wgmma_backward_scratch(const Att &a, bool bias);
/* x.delta has to be there: att_mma_backward_launch(), which calls this one, sums it where it is not. `call`: whether
 * its op sends dbias. */
Status att_wgmma_backward_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const AttOperands<bf16> &x);
size_t att_mma_backward_scratch(const Att &a, bool bias, bool delta);
Status att_mma_backward_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const AttOperands<bf16> &x);
/* Of those that att_mma_fits: dbias can be summed over the ranks as the op sends it. */
bool att_wgmma_sends(const Att &a, const OpCall *call);

/* delta[heads] = sum over the `width` channels of each of do o (attention_delta.cu), f32 and bf16 */
template <typename T>
Status att_delta_launch(const T *go, const T *o, float *delta, int64_t heads, int width, cudaStream_t stream);

/* The same for f32, without tensor cores (attention_f32.cu). */
bool att_f32_fits(const Att &a);
size_t att_f32_forward_scratch(const Att &a, bool bias);
Status att_f32_forward_launch(const Att &a, const AttOperands<float> &x, void *scratch, cudaStream_t stream);
size_t att_f32_backward_scratch(const Att &a, bool bias);
Status att_f32_backward_launch(const Att &a, const AttOperands<float> &x, void *scratch, cudaStream_t stream);

/* One query over few keys (attention_few.cu), any type. */
bool att_few_fits(const Att &a, bool bias);
template <typename T> Status att_few_forward_launch(const Att &a, const AttOperands<T> &x, cudaStream_t stream);
template <typename T> Status att_few_backward_launch(const Att &a, const AttOperands<T> &x, cudaStream_t stream);

/* Weights in memory, few channels a head, f32 (attention_context.cu); rows of 16 bytes. */
bool context_few_fits(const Att &a);
Status context_few_launch(const Att &a, const float *p, const float *v, float *o, cudaStream_t stream);
Status context_few_backward_launch(const Att &a, const float *go, const float *p, const float *v, float *dp, float *dv,
                                   cudaStream_t stream);

#endif
