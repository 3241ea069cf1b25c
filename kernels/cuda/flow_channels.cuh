/* What ends a triangle multiplication: y = r + dropout(sigmoid(g) (norm(x) W^T + b)), x with its channels first.
 *
 * Tiles of 64 places stream past resident weights as in flow.cuh. A warp reads its sixteen places of x, transposed, as
 * left operands of the product, normalizes them there, four lanes sharing a row, and multiplies them from there. In the
 * slot, y goes over r, the product before the gate over g, and what the layer norm made over x, where a gradient wants
 * them. y normalized, where it is to leave with y, goes over x, too, out of which what was there has gone then. */
#ifndef FOLDSCALE_KERNELS_CUDA_FLOW_CHANNELS_CUH
#define FOLDSCALE_KERNELS_CUDA_FLOW_CHANNELS_CUH

#include "kernels/cuda/flow_launch.cuh"

struct FlowChannels {
    FlowProblem flow; /* y, r, g, W, the product, dropout; the layer norm of y */
    CUtensorMap x, normal;
    FrontNorm norm; /* of x[rows / places][C][places] */
    int places;
};

/* A slot: x, r, g. Constants: b, gamma, beta. Behind the barriers: the mask of a tile. */
template <int C> struct FlowChannelsShape {
    static constexpr int W_PANEL = C * 128, W_BYTES = C / 64 * W_PANEL, TILE = FLOW_ROWS * C * 2;
    static constexpr int R_AT = TILE, G_AT = 2 * TILE, SLOT = 3 * TILE;
    static constexpr int CONSTANT_BYTES = 3 * C * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int FIT = (MOST - W_BYTES - CONSTANT_BYTES - BARRIER_BYTES - FLOW_MASK_BYTES) / SLOT;
    static constexpr int SLOTS = FIT < 6 ? FIT : 6;
    static constexpr int CONSTANTS_AT = W_BYTES + SLOTS * SLOT, BARRIERS_AT = CONSTANTS_AT + CONSTANT_BYTES;
    static constexpr int MASK_AT = BARRIERS_AT + BARRIER_BYTES, BYTES = MASK_AT + FLOW_MASK_BYTES;
    static_assert(SLOTS >= 4 && SLOTS % FLOW_GROUPS == 0, "each warpgroup has slots of its own, one ahead");
};

/* One thread: tiles as slots become free. */
template <int C> __device__ __forceinline__ void flow_channels_load(const FlowChannels &p, const FlowPlace &at)
{
    typedef FlowChannelsShape<C> S;
    for (int i = 0, tile = at.first; tile < at.tiles; i++, tile += at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS, row = tile * FLOW_ROWS;
        uint32_t target = at.slots + slot * S::SLOT, full = at.full + slot * 8;
        if (round > 0) barrier_wait(at.empty + slot * 8, (round - 1) & 1);
        barrier_expect(full, S::SLOT);
        tensor_load(target, &p.x, row / p.places * C, row % p.places, full);
        for (int c = 0; c < C / 64; c++) {
            tensor_load(target + S::R_AT + c * FLOW_CHUNK, &p.flow.r, row, c * 64, full);
            tensor_load(target + S::G_AT + c * FLOW_CHUNK, &p.flow.g, row, c * 64, full);
        }
    }
}

/* A thread per warpgroup: its finished tiles go out, then their slots are free. */
template <int C, bool NORMS_Y>
__device__ __forceinline__ void flow_channels_store(const FlowChannels &p, const FlowPlace &at, int group)
{
    typedef FlowChannelsShape<C> S;
    PeerSender sender(p.flow.send);
    bool sends = p.flow.send.ranks > 0;
    for (int i = group, tile = at.first + group * at.step; tile < at.tiles;
         i += FLOW_GROUPS, tile += FLOW_GROUPS * at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS, row = tile * FLOW_ROWS;
        uint32_t from = at.slots + slot * S::SLOT;
        barrier_wait(at.done + slot * 8, round & 1);
        if (sends) flow_send<C>(p.flow, &sender, from + S::R_AT, row, 0);
        for (int c = 0; c < C / 64; c++, from += FLOW_CHUNK) {
            if (!sends) tensor_store(&p.flow.y[0], from + S::R_AT, row, c * 64);
            if (p.flow.keep) tensor_store(&p.flow.product, from + S::G_AT, row, c * 64);
            if (NORMS_Y)
                tensor_store(&p.flow.normal, from, row, c * 64);
            else if (p.norm.y)
                tensor_store(&p.normal, from, row, c * 64);
        }
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(at.empty + slot * 8);
    }
    tensor_store_wait();
    if (sends) sender.finish(gridDim.x * FLOW_GROUPS);
}

/* Which of the left operands of a product of 16 x C they are. */
__host__ __device__ constexpr int flow_operand(int j, int h)
{
    return j / 2 * 4 + j % 2 * 2 + h;
}

/* A warp's sixteen places of x, channels as rows of 64 places, as left operands. */
template <int C> __device__ __forceinline__ void flow_channels_read(uint32_t x, uint32_t (&a)[C / 4])
{
    int warp = threadIdx.x % 128 / WARP, lane = threadIdx.x % WARP, row = lane / 16 * 8 + lane % 8;
    uint32_t at = x + row * 128 + ((warp * 2 + lane / 8 % 2 ^ lane % 8) << 4);
#pragma unroll
    for (int s = 0; s < C / 16; s++) ldmatrix4_trans(reinterpret_cast<uint32_t(&)[4]>(a[s * 4]), at + s * 16 * 128);
}

/* The layer norm of these rows, of which this thread has rows lane / 4 and that plus 8; scales: gamma, beta. */
template <int C>
__device__ __forceinline__ void flow_channels_normalize(const FrontNorm &n, const float *scales, int row0,
                                                        uint32_t (&a)[C / 4])
{
    int lane = threadIdx.x % WARP, row = row0 + threadIdx.x % 128 / WARP * 16 + lane / 4;
    float sum[2] = {}, square[2] = {}, mean[2], rstd[2];
#pragma unroll
    for (int k = 0; k < C / 4; k++) {
        float2 v = unpack_bf16(a[k]);
        sum[k % 2] += v.x + v.y;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) mean[h] = lanes_sum<4>(sum[h]) / C;
#pragma unroll
    for (int k = 0; k < C / 4; k++) {
        float2 v = unpack_bf16(a[k]);
        v.x -= mean[k % 2], v.y -= mean[k % 2];
        square[k % 2] += v.x * v.x + v.y * v.y;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) rstd[h] = 1.0f / sqrtf(lanes_sum<4>(square[h]) / C + n.eps);
#pragma unroll
    for (int j = 0; j < C / 8; j++) {
        float2 g = *reinterpret_cast<const float2 *>(scales + j * 8 + lane % 4 * 2);
        float2 b = *reinterpret_cast<const float2 *>(scales + C + j * 8 + lane % 4 * 2);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 v = unpack_bf16(a[flow_operand(j, h)]);
            v.x = (v.x - mean[h]) * rstd[h] * g.x + b.x, v.y = (v.y - mean[h]) * rstd[h] * g.y + b.y;
            a[flow_operand(j, h)] = pack_bf16(v.x, v.y);
        }
    }
    int h = lane % 4; /* a lane for each of the two rows */
    if (h < 2 && n.mean) n.mean[row + 8 * h] = h ? mean[1] : mean[0];
    if (h < 2 && n.rstd) n.rstd[row + 8 * h] = h ? rstd[1] : rstd[0];
}

/* By all threads of a warpgroup. */
__device__ __forceinline__ void flow_group_sync()
{
    asm volatile("bar.sync %0, 128;" ::"r"((int)threadIdx.x / 128 + 1) : "memory");
}

/* What the layer norm in front made goes over x, which all four warps have read; and out, if x is to be free again. */
template <int C, bool LEAVES>
__device__ __forceinline__ void flow_channels_keep(const FlowChannels &p, uint32_t x, int row0,
                                                   const uint32_t (&a)[C / 4])
{
    flow_group_sync();
#pragma unroll
    for (int q = 0; q < C / 16; q++)
        stmatrix4(flow_matrix_at(x, q * 2), reinterpret_cast<const uint32_t(&)[4]>(a[q * 4]));
    if (!LEAVES) return;
    async_fence();
    flow_group_sync();
    if (threadIdx.x % 128 == 0) {
        for (int c = 0; c < C / 64; c++) tensor_store(&p.normal, x + c * FLOW_CHUNK, row0, c * 64);
        tensor_store_commit();
    }
    __syncwarp();
}

/* scales: of y normalized */
template <int C, bool NORMS_Y>
__device__ __forceinline__ void flow_channels_tile(const FlowChannels &p, const FlowPlace &at, int row0, uint32_t x,
                                                   const FlowKept &kept, const EightScales &scales)
{
    typedef FlowChannelsShape<C> S;
    uint64_t w = wgmma_descriptor(at.w);
    uint32_t a[C / 4];
    float acc[C / 2];
    flow_channels_read<C>(x, a);
    flow_channels_normalize<C>(p.norm, at.bias + C, row0, a);
    if (p.norm.y) flow_channels_keep<C, NORMS_Y>(p, x, row0, a);
#pragma unroll
    for (int k = 0; k < C / 2; k++) acc[k] = 0;
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < C / 16; s++)
        RegisterProduct<C>::step(acc, a + s * 4, w + s / 4 * (S::W_PANEL >> 4) + s % 4 * 2);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(acc);
    flow_edge<C, FLOW_GATED>(p.flow, at.bias, acc, x + S::R_AT, kept);
    if constexpr (NORMS_Y) { /* over x, which nobody reads any more */
        if (p.norm.y && threadIdx.x % 128 == 0) tensor_store_wait_read();
        __syncwarp();
        flow_group_sync();
        norm_tile<C>(p.flow.norm, scales, x + S::R_AT, x, threadIdx.x % 128 / WARP * 16, row0, p.flow.rows, true);
    }
}

template <int C, bool NORMS_Y>
__device__ __forceinline__ void flow_channels_work(const FlowChannels &p, const FlowPlace &at, int group, uint4 *mask)
{
    typedef FlowChannelsShape<C> S;
    bool drops = p.flow.mask.drop.rng != NULL, stays = flow_mask_stays(p.flow.mask, at.step);
    DropoutDraw draw = drops ? p.flow.mask.drop.draw() : DropoutDraw{};
    FlowKept kept = {{{~0u, ~0u}, {~0u, ~0u}}};
    if (stays) flow_draw_together(p.flow.mask, draw, at.first * FLOW_ROWS, 0, mask, &kept);
    EightScales scales = NORMS_Y ? eight_scales(p.flow.norm, threadIdx.x % (C / 8) * 8) : EightScales{};
    barrier_wait(at.ready, 0);
    for (int i = group, tile = at.first + group * at.step; tile < at.tiles;
         i += FLOW_GROUPS, tile += FLOW_GROUPS * at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS;
        if (drops && !stays) flow_draw(p.flow.mask, draw, tile * FLOW_ROWS + threadIdx.x % 128 / WARP * 16, 0, &kept);
        barrier_wait(at.full + slot * 8, round & 1);
        flow_channels_tile<C, NORMS_Y>(p, at, tile * FLOW_ROWS, at.slots + slot * S::SLOT, kept, scales);
        barrier_arrive_warp(at.done + slot * 8);
    }
    if (NORMS_Y) tensor_store_wait();
}

/* By the warpgroups that multiply. */
template <int C> __device__ __forceinline__ void flow_channels_constants(const FlowChannels &p, float *constants)
{
    for (int c = threadIdx.x; c < C; c += FLOW_GROUPS * 128) {
        constants[c] = p.flow.bias[0] ? p.flow.bias[0][c] : 0.0f;
        constants[C + c] = p.norm.gamma[c], constants[2 * C + c] = p.norm.beta[c];
    }
    static_assert(FLOW_GROUPS == 2, "their threads");
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

template <int C, bool NORMS_Y>
__global__ void __launch_bounds__(FLOW_THREADS, 1) flow_channels_kernel(const __grid_constant__ FlowChannels p)
{
    typedef FlowChannelsShape<C> S;
    extern __shared__ __align__(1024) char shared[];
    float *constants = reinterpret_cast<float *>(shared + S::CONSTANTS_AT);
    int group = threadIdx.x / 128, warp = threadIdx.x / WARP % 4;
    FlowPlace at = {};
    at.w = shared_address(shared), at.slots = at.w + S::W_BYTES, at.bias = constants;
    at.first = blockIdx.x, at.step = gridDim.x, at.tiles = p.flow.rows / FLOW_ROWS;
    slot_barriers<S::SLOTS>(&at, at.w + S::BARRIERS_AT);
    if (threadIdx.x == 0) {
        tensor_prefetch(&p.x);
        flow_mask_prefetch(p.flow.mask);
        if (p.flow.early) flow_weights<C, C>(p.flow, at);
    }
    __syncthreads();
    if (p.flow.early && group < FLOW_GROUPS) flow_channels_constants<C>(p, constants);
    stage_wait();
    stage_release();
    peer_send_begin(p.flow.send);
    if (threadIdx.x == 0 && !p.flow.early) flow_weights<C, C>(p.flow, at);
    if (group == FLOW_GROUPS) { /* registers of the copying warps go to the products */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x % WARP == 0 && warp == 0) flow_channels_load<C>(p, at);
        if (threadIdx.x % WARP == 0 && warp > 0 && warp <= FLOW_GROUPS)
            flow_channels_store<C, NORMS_Y>(p, at, warp - 1);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        if (!p.flow.early) flow_channels_constants<C>(p, constants);
        flow_channels_work<C, NORMS_Y>(p, at, group, reinterpret_cast<uint4 *>(shared + S::MASK_AT));
    }
}

/* --- host */

static inline bool flow_channels_fits(const FlowOperands &o, const FrontNorm &norm, int64_t places)
{
    return flow_fits(o, FLOW_GATED) && o.start[o.members] == o.inner && places % FLOW_ROWS == 0 && aligned16(norm.y) &&
           norm_aligned(o.norm);
}

template <int C, bool NORMS_Y>
static Status flow_channels_launch_shape(const FlowOperands &o, const FrontNorm &norm, int64_t places,
                                         cudaStream_t stream)
{
    constexpr int BYTES = FlowChannelsShape<C>::BYTES;
    FlowChannels p = {};
    TRY(flow_problem(o, NORMS_Y ? FLOW_GATED_NORM : FLOW_GATED, C, &p.flow));
    TRY(tensor_map(o.x, o.rows / places * C, places, C, &p.x));
    if (norm.y) TRY(tensor_map(norm.y, o.rows, C, FLOW_ROWS, &p.normal));
    p.norm = norm, p.places = (int)places;
    CUDA_TRY(
        cudaFuncSetAttribute(flow_channels_kernel<C, NORMS_Y>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(flow_channels_kernel<C, NORMS_Y>, p.flow.first[p.flow.blocks], FLOW_THREADS, BYTES, stream, p);
    return cuda_launched("flow_channels_kernel");
}

/* norm: in front */
static inline Status flow_channels_launch(const FlowOperands &o, const FrontNorm &norm, int64_t places,
                                          cudaStream_t stream)
{
    if (o.inner == 64)
        return o.norm.gamma ? flow_channels_launch_shape<64, true>(o, norm, places, stream)
                            : flow_channels_launch_shape<64, false>(o, norm, places, stream);
    return o.norm.gamma ? flow_channels_launch_shape<128, true>(o, norm, places, stream)
                        : flow_channels_launch_shape<128, false>(o, norm, places, stream);
}

#endif
