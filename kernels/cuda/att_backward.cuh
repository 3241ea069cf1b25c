/* What the files of the backward attention on wgmma share: attention_wgmma_backward.cu has the products,
 * attention_wgmma_parts.cu the bias in their order, and the sum of dbias over blocks. */
#ifndef FOLDSCALE_KERNELS_CUDA_ATT_BACKWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_ATT_BACKWARD_CUH

#include "kernels/cuda/att_wgmma.cuh"

enum {
    BW_KEYS = 128,    /* of a block */
    BW_STEP = 16,     /* queries of a piece of the bias */
    BW_THREADS = 256, /* two warpgroups of 64 keys */
};

/* Queries and keys, padded, and blocks along the keys. */
template <bool BIAS> struct BwExtent {
    static constexpr int QUERIES = BIAS ? 256 : 128, TILES = BIAS ? 2 : 1;
};

/* out[G,H,tile,step,thread]: eight elements of the bias in the order of a thread's accumulators */
Status bw_prepare_launch(const Att &a, const bf16 *bias, uint4 *out, cudaStream_t stream);
/* dbias = sum over chunks of partial[chunk][G,H,keys,queries], in order */
Status bw_join_launch(const Att &a, const float *partial, bf16 *dbias, int chunks, cudaStream_t stream);

/* --- the shared memory of a block, and what arrives there */

template <int D, bool BIAS> struct BwShape {
    static constexpr int QUERIES = BwExtent<BIAS>::QUERIES, TILES = BwExtent<BIAS>::TILES, KEYS = TILES * BW_KEYS;
    static constexpr int MACROS = QUERIES / 64, STEPS = 2 * MACROS; /* tiles of ds, and halves of them */
    static constexpr uint32_t ROW = D * 2, GO = QUERIES * ROW, K = 2 * GO, STAT = K + BW_KEYS * ROW,
                              ADD = STAT + QUERIES * 16, ANY = ADD + BW_KEYS * 4, STAGE = ADD + 1024,
                              BARRIERS =
                                  ADD + 768; /* of the two stages and of partial dq, in what the first stage leaves */
    static constexpr int ASK_STEP = 2, READY_STEP = BIAS ? 5 : 3; /* of a row, for statistics and mask of the next */
    static constexpr uint32_t V = 2 * STAGE, DS = V + BW_KEYS * ROW, DS_BYTES = BW_KEYS * 128, PEER = DS + 2 * DS_BYTES,
                              PEER_BYTES = BIAS ? QUERIES / 2 * D * 4 : 0, BIAS_AT = PEER + 2 * PEER_BYTES,
                              BYTES = BIAS_AT + (BIAS ? QUERIES * BW_KEYS * 2 : 0);
};

/* Tensors as [G, B, rows, heads x d]. A box is one head's; where d = 8 it is 16 wide: the next head's columns meet
 * zeros in the register operands, or are not stored. */
struct BwMaps {
    CUtensorMap q, go, k, v;
};

/* A block's part of the work, the row it is at, and this thread. */
struct BwPlace {
    char *shared;
    uint32_t base, at; /* addresses of all and of the row's stage */
    int head, group, tile, turn, first, last, row, stage, parity;
    int warp, lane, warpgroup;
};

/* Addresses made of it are not kept in registers across the rows of a block, where they would be spilled. */
__device__ __forceinline__ int here_again(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* Copies a row to a stage; the values have one place only. */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_load(const Att &a, const BwMaps &maps, const BwPlace &w, int row, int stage)
{
    typedef BwShape<D, BIAS> S;
    uint32_t at = w.base + stage * S::STAGE, barrier = w.base + S::BARRIERS + stage * 8;
    barrier_expect(barrier, S::STAT + BW_KEYS * S::ROW);
    tensor_load_box(at, &maps.q, w.head * a.d, 0, row, w.group, barrier);
    tensor_load_box(at + S::GO, &maps.go, w.head * a.d, 0, row, w.group, barrier);
    tensor_load_box(at + S::K, &maps.k, w.head * a.d, w.tile * BW_KEYS, row, w.group, barrier);
    tensor_load_box(w.base + S::V, &maps.v, w.head * a.d, w.tile * BW_KEYS, row, w.group, barrier);
}

/* Statistics and mask of a row: a thread asks for lse and delta of a query and the mask of a key, in the place of what
 * it makes of them. */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_ask(const Att &a, const AttOperands<bf16> &x, const BwPlace &w, int row, int stage)
{
    typedef BwShape<D, BIAS> S;
    int t = here_again(threadIdx.x), query = min(t, a.n - 1), key = min(t, a.m - 1), width = a.d == 8 ? 3 : D / 32 + 4;
    if (t >= S::QUERIES) return;
    uint32_t at = w.base + stage * S::STAGE + S::STAT + t * 16;
    copy4_async(at, x.lse_in + (((int64_t)w.group * a.b + row) * a.h + w.head) * a.n + query, t < a.n);
    copy4_async(at + 4, x.delta + ((a.q_block(w.group, row, w.head) + query * a.pitch) >> width), t < a.n);
    if (a.mask) copy4_async(at + 8, a.mask_row(w.group, row) + key, t < a.m);
    copy_commit();
}

/* x as the sum of three bf16, then `last` */
__device__ __forceinline__ uint2 bw_three(float x, float last)
{
    float high = to_float(from_float<bf16>(x)), middle = to_float(from_float<bf16>(x - high));
    return make_uint2(pack_bf16(high, middle), pack_bf16(x - high - middle, last));
}

/* Makes of it, for a query, -lse / scale as a sum of three bf16, 1, -delta as a sum of three, 0; for a key of the block
 * its mask / scale, ATT_PAD where it does not exist; of a warp whether one of its keys is there. */
template <int D, bool BIAS> __device__ __forceinline__ void bw_ready(const Att &a, const BwPlace &w, int stage)
{
    typedef BwShape<D, BIAS> S;
    int t = here_again(threadIdx.x);
    char *at = w.shared + stage * S::STAGE;
    bool there = false;
    if (t < S::QUERIES) {
        copy_wait<0>();
        float4 raw = *reinterpret_cast<const float4 *>(at + S::STAT + t * 16);
        float mask = a.mask ? raw.z : 1.0f, inverse = 1.0f / a.scale;
        uint2 c = bw_three(t < a.n ? -raw.x * inverse : ATT_PAD, 1.0f), d = bw_three(-raw.y, 0.0f);
        *reinterpret_cast<uint4 *>(at + S::STAT + t * 16) = make_uint4(c.x, c.y, d.x, d.y);
        if (t / BW_KEYS == w.tile)
            reinterpret_cast<float *>(at + S::ADD)[t % BW_KEYS] = t < a.m ? a.inf * (mask - 1.0f) * inverse : ATT_PAD;
        there = t < a.m && mask > 0.0f;
    }
    bool any = __any_sync(0xffffffffu, there);
    async_fence();
    __syncwarp();
    if (w.lane > 0) return;
    reinterpret_cast<int *>(at + S::ANY)[w.warp] = any;
    barrier_arrive(w.base + S::BARRIERS + stage * 8);
}

/* Barriers; a stage's waits for its copies and for what every warp makes ready. */
template <int D, bool BIAS> __device__ __forceinline__ void bw_barriers(const BwPlace &w)
{
    if (threadIdx.x < 7)
        barrier_init(w.base + BwShape<D, BIAS>::BARRIERS + threadIdx.x * 8,
                     threadIdx.x < 2 ? 1 + BW_THREADS / WARP : 1);
    cluster_sync();
}

/* The bias, the first row. */
template <int D, bool BIAS>
__device__ __forceinline__ void bw_open(const Att &a, const AttOperands<bf16> &x, const BwMaps &maps, const uint4 *bias,
                                        const BwPlace &w)
{
    typedef BwShape<D, BIAS> S;
    constexpr uint32_t BYTES = S::QUERIES * BW_KEYS * 2;
    uint32_t barrier = w.base + S::BARRIERS + 48;
    if (threadIdx.x == 0) {
        if (BIAS) {
            barrier_expect(barrier, BYTES);
            bulk_load(w.base + S::BIAS_AT, bias + (blockIdx.y * 2 + w.tile) * (BYTES / 16), BYTES, barrier);
        }
        bw_load<D, BIAS>(a, maps, w, w.first, 0);
    }
    bw_ask<D, BIAS>(a, x, w, w.first, 0);
    bw_ready<D, BIAS>(a, w, 0);
    if (BIAS) barrier_wait(barrier, 0);
}

#endif
