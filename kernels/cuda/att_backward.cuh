/* What the files of the backward attention on wgmma share: attention_wgmma_backward.cu has the products,
 * attention_wgmma_parts.cu what they read besides the operands, and the sum of dbias over blocks. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_BACKWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_BACKWARD_CUH

#include "kernels/cuda/att_mma.cuh"

enum {
    BW_KEYS = 128,         /* of a block */
    BW_STEP = 16,          /* queries of a piece of the bias */
    BW_THREADS = 256,      /* two warpgroups of 64 keys */
    BW_LINE = BW_KEYS + 4, /* floats of mask and flag */
};

/* Queries and keys, padded, and blocks along the keys. */
template <bool BIAS> struct BwExtent {
    static constexpr int QUERIES = BIAS ? 256 : 128, TILES = BIAS ? 2 : 1;
};

/* Of mask, lse, delta and bias:
 * add[G,B,tile,128 + 4]: mask of the keys / scale, ATT_PAD for keys that do not exist; then 1, or 0 where every key is
 * masked (the softmax of such a row is uniform: inf = 1e9 swallows the scores in f32);
 * stats[G,B,H,queries]: -lse / scale as a sum of three bf16, 1, -delta as a sum of three, 0;
 * bias[G,H,tile,step,thread]: eight elements in the order of a thread's accumulators. */
struct BwPrepared {
    float *add;
    uint4 *stats, *bias;
};

Status bw_prepare_launch(const Att &a, const AttOperands<bf16> &x, const BwPrepared &out, cudaStream_t stream);
/* dbias = sum over chunks of partial[chunk][G,H,keys,queries], in order; where the op sends it, this rank's piece of
 * the sum over the ranks */
Status bw_join_launch(const CudaContext *ctx, const OpCall *call, const Att &a, const float *partial, bf16 *dbias,
                      int chunks);

#endif
