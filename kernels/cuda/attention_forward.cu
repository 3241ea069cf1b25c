/* Fused attention in bf16, forward: mask and bias made ready for att_forward.cuh, and the launches. */
#include "kernels/cuda/att_bias.cuh"
#include "kernels/cuda/att_forward.cuh"

static ForwardPlan forward_plan(const Att &a, bool bias)
{
    ForwardPlan p = {};
    p.pieces = (a.m + 127) / 128 * 2;
    p.tiles = (a.n + FORWARD_GROUPS * 64 - 1) / (FORWARD_GROUPS * 64) * FORWARD_GROUPS;
    p.padded = p.pieces * 64;
    p.mask_rows = a.mask_rank < 2 ? 1 : a.mask_rank == 2 ? a.b : (int64_t)a.g * a.b;
    p.bias_at = align_up((size_t)p.mask_rows * (p.padded + 4) * sizeof(float));
    p.bytes = p.bias_at + (bias ? (size_t)a.g * a.h * p.tiles * p.pieces * PIECE_ELEMENTS * sizeof(bf16) : 0);
    return p;
}

/* one warp per row */
__device__ void forward_prepare_mask(const Att &a, float *add, int64_t row, int padded)
{
    const float *mask = a.mask ? a.mask + row * a.m : NULL;
    int lane = threadIdx.x % WARP;
    bool any = false, plain = a.m == padded;
    for (int j = lane; j < a.m; j += WARP) {
        float value = mask ? mask[j] : 1.0f;
        any |= value > 0.0f;
        plain &= value == 1.0f;
    }
    any = __any_sync(0xffffffffu, any);
    plain = __all_sync(0xffffffffu, plain);
    add += row * (padded + 4);
    for (int j = lane; j < padded; j += WARP)
        add[j] = j >= a.m ? ATT_PAD : mask && any ? a.inf * (mask[j] - 1.0f) * ATT_LOG2E : 0.0f;
    if (lane < 4) add[padded + lane] = lane == 0 && any || lane == 1 && plain ? 1.0f : 0.0f;
}

/* Eight elements of every head: accumulators 2 i and 2 i + 1 (of 8 keys each) of one lane. H: heads, 0 for any. */
template <int H>
__device__ __forceinline__ void forward_prepare_bias(const Att &a, const bf16 *bias, bf16 *out, int64_t id, int tiles,
                                                     int pieces)
{
    int lane = (int)(id % 32), i = (int)(id / 32 % 4), warp = (int)(id / 128 % 4);
    int piece = (int)(id / 512 % pieces), tile = (int)(id / 512 / pieces % tiles),
        group = (int)(id / 512 / pieces / tiles);
    if (group >= a.g) return;
    int64_t head_step = (int64_t)tiles * pieces * PIECE_ELEMENTS, at[8];
    out += (int64_t)group * a.h * head_step + id % (512 * (int64_t)pieces * tiles) * 8;
    int row = tile * 64 + warp * 16 + lane / 4, column = piece * 64 + i * 16 + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        int q = row + (k >> 1 & 1) * 8, j = column + (k & 1) + (k >> 2) * 8;
        at[k] = q < a.n && j < a.m ? a.bias_index(group, q, j, 0) : -1;
    }
    att_bias_heads<H>(a, bias, reinterpret_cast<uint4 *>(out), head_step / 8, at);
}

/* Blocks of four rows of the mask, then of 128 lanes of the bias. */
__global__ void __launch_bounds__(128)
    att_forward_prepare_kernel(Att a, const bf16 *bias, ForwardPrepared out, ForwardPlan p)
{
    stage_wait();
    stage_release(); /* what else the attention reads is complete */
    int64_t masks = (p.mask_rows + 3) / 4, id = blockIdx.x;
    if (id < masks) {
        int64_t row = id * 4 + threadIdx.x / WARP;
        if (row < p.mask_rows) forward_prepare_mask(a, out.add, row, p.padded);
        return;
    }
    id = (id - masks) * 128 + threadIdx.x;
    if (a.h == 8)
        forward_prepare_bias<8>(a, bias, out.bias, id, p.tiles, p.pieces);
    else if (a.h == 4)
        forward_prepare_bias<4>(a, bias, out.bias, id, p.tiles, p.pieces);
    else
        forward_prepare_bias<0>(a, bias, out.bias, id, p.tiles, p.pieces);
}

/* --- host */

/* A bias takes registers here, shared memory in the backward pass. */
bool att_mma_fits(const Att &a, bool bias)
{
    bool d = a.d == 8 || a.d == 16 || a.d == 32;
    int most = bias ? 384 : 512;
    return d && a.n >= 16 && a.m >= 16 && a.n <= most && a.m <= most;
}

bool att_mma_sends(const Att &a, const AttOperands<bf16> &x, const PeerRows &rows)
{
    bool instantiated = (a.d == 8 || a.d == 32) && x.bias && x.gate;
    return instantiated && !rows.to_all && rows.inner == 1 && rows.run % FORWARD_BOX == 0 && a.n % rows.run == 0;
}

size_t att_mma_forward_scratch(const Att &a, bool bias)
{
    return forward_plan(a, bias).bytes;
}

static CUtensorMapSwizzle forward_swizzle(const Att &a)
{
    return a.d == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : a.d == 16 ? CU_TENSOR_MAP_SWIZZLE_32B : CU_TENSOR_MAP_SWIZZLE_NONE;
}

/* Rows [0, extent) of all heads, rows and groups in boxes of `rows`. */
static Status forward_map(const Att &a, const bf16 *p, int extent, int64_t row_step, int64_t group_step, int rows,
                          CUtensorMap *out)
{
    cuuint64_t extents[4] = {(cuuint64_t)a.h * a.d, (cuuint64_t)extent, (cuuint64_t)a.b, (cuuint64_t)a.g};
    cuuint64_t pitch[3] = {(cuuint64_t)a.pitch * 2, (cuuint64_t)row_step * 2, (cuuint64_t)group_step * 2};
    cuuint32_t box[4] = {(cuuint32_t)a.d, (cuuint32_t)rows, 1, 1};
    return tensor_map_of(p, 4, extents, pitch, box, forward_swizzle(a), out);
}

/* The outputs of the ranks, as large as what each of them computes, in boxes of queries that stay together. */
static Status forward_send_maps(const Att &a, const PeerSend &send, ForwardMaps<true> *maps)
{
    cuuint64_t width = (cuuint64_t)a.h * a.d, extents[2] = {width, (cuuint64_t)a.g * a.b * a.n}, pitch[1] = {width * 2};
    cuuint32_t box[2] = {(cuuint32_t)a.d, FORWARD_BOX};
    for (int r = 0; r < send.ranks; r++)
        TRY(tensor_map_of(send.out[r], 2, extents, pitch, box, forward_swizzle(a), &maps->to[r]));
    maps->send = send;
    return OK;
}

template <typename L>
static Status forward_launch(const Att &a, const AttOperands<bf16> &x, const PeerSend &send,
                             const ForwardPrepared &prepared, const ForwardPlan &plan, cudaStream_t stream)
{
    int blocks_x = plan.tiles / L::GROUPS;
    ForwardProblem p = {a, x, prepared, plan.tiles, att_rows_per_block(a, blocks_x, 132)};
    ForwardMaps<L::SEND> maps;
    TRY(forward_map(a, x.q, a.n, a.q_row, a.q_group, L::GROUPS * 64, &maps.q));
    TRY(forward_map(a, x.k, a.m, a.k_row, a.k_group, L::BOX, &maps.k));
    TRY(forward_map(a, x.v, a.m, a.k_row, a.k_group, L::BOX, &maps.v));
    if (x.gate) TRY(forward_map(a, x.gate, a.n, a.q_row, a.q_group, L::GROUPS * 64, &maps.gate));
    bf16 *here = L::SEND ? x.again : x.y;
    if (here) TRY(forward_map(a, here, a.n, a.q_row, a.q_group, 64, &maps.y));
    if constexpr (L::SEND) TRY(forward_send_maps(a, send, &maps));
    if (x.o) TRY(forward_map(a, x.o, a.n, a.q_row, a.q_group, 64, &maps.o));
    CUDA_TRY(cudaFuncSetAttribute(att_forward_tc_kernel<L>, cudaFuncAttributeMaxDynamicSharedMemorySize, L::BYTES));
    dim3 grid(blocks_x, a.g * a.h, (a.b + p.rows_per_block - 1) / p.rows_per_block);
    launch(att_forward_tc_kernel<L>, grid, L::THREADS, L::BYTES, stream, p, maps);
    return cuda_launched("att_forward_tc_kernel");
}

template <int D, bool BIAS, bool SEND>
static Status forward_by_keys(const Att &a, const AttOperands<bf16> &x, const PeerSend &send, const ForwardPrepared &p,
                              const ForwardPlan &plan, cudaStream_t stream)
{
    if (plan.pieces == 2) return forward_launch<ForwardLayout<D, BIAS, 2, SEND>>(a, x, send, p, plan, stream);
    if (plan.pieces == 4) return forward_launch<ForwardLayout<D, BIAS, 4, SEND>>(a, x, send, p, plan, stream);
    if constexpr (!BIAS)
        if (plan.pieces == 8) return forward_launch<ForwardLayout<D, BIAS, 8, SEND>>(a, x, send, p, plan, stream);
    return forward_launch<ForwardLayout<D, BIAS, 6, SEND>>(a, x, send, p, plan, stream);
}

template <int D>
static Status forward_by_shape(const Att &a, const AttOperands<bf16> &x, const PeerSend &send, const ForwardPrepared &p,
                               const ForwardPlan &plan, cudaStream_t stream)
{
    if constexpr (D != 16)
        if (send.ranks > 0) return forward_by_keys<D, true, true>(a, x, send, p, plan, stream);
    return x.bias ? forward_by_keys<D, true, false>(a, x, send, p, plan, stream)
                  : forward_by_keys<D, false, false>(a, x, send, p, plan, stream);
}

Status att_mma_forward_launch(const Att &a, const AttOperands<bf16> &x, const PeerSend &send, void *scratch,
                              cudaStream_t stream)
{
    ForwardPlan plan = forward_plan(a, x.bias != NULL);
    ForwardPrepared p = {(float *)scratch, (bf16 *)((char *)scratch + plan.bias_at)};
    int64_t lanes = x.bias ? (int64_t)a.g * plan.tiles * plan.pieces * (PIECE_ELEMENTS / 8) : 0;
    unsigned blocks = (unsigned)((plan.mask_rows + 3) / 4 + (lanes + 127) / 128);
    if (send.ranks > 0 && !att_mma_sends(a, x, send.rows))
        return status_fail(ERR_INTERNAL, "attention was to send and cannot");
    launch(att_forward_prepare_kernel, blocks, 128, 0, stream, a, x.bias, p, plan);
    TRY(cuda_launched("att_forward_prepare_kernel"));
    if (a.d == 32) return forward_by_shape<32>(a, x, send, p, plan, stream);
    if (a.d == 16) return forward_by_shape<16>(a, x, send, p, plan, stream);
    return forward_by_shape<8>(a, x, send, p, plan, stream);
}
