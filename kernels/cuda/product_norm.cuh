/* The gradient of a layer norm at the edge of the products that feed it: d = sum_k dy_k W_k (product_ring.cuh) never
 * leaves the chip. A block holds whole rows: one thread feeds the ring of the product, one brings x; two warpgroups
 * multiply, put dx over x in shared memory and store rows from there, each on the rank that is to have it where the op
 * sends. */
#ifndef FOLDSCALE_KERNELS_CUDA_PRODUCT_NORM_CUH
#define FOLDSCALE_KERNELS_CUDA_PRODUCT_NORM_CUH

#include "kernels/cuda/norm_edge.cuh"
#include "kernels/cuda/peer_send.cuh"
#include "kernels/cuda/product_ring.cuh"

struct ProductNorm {
    RingProduct product; /* edge and narrow_w: of a narrow member, NULL without */
    CUtensorMap x, other;
    NormEdge edge;
    PeerSend send; /* of dx */
    bool early;    /* gamma and narrow_w before stage_wait() */
};

template <int C> struct NormShape {
    static constexpr int BM = 128, A_BYTES = BM * PANEL * 2, STAGE = A_BYTES + C / PANEL * PRODUCT_B_PANEL;
    static constexpr int X_SLOTS = C == 256 ? 1 : 2;
    static constexpr int STAGES = C == 256 ? 3 : C == 128 ? 5 : 6;
    static constexpr int X_PANEL = BM * PANEL * 2, X_BYTES = C / PANEL * X_PANEL;
    static constexpr int NARROW_PITCH = C + 8; /* words: lanes of both pairs of columns in different banks */
    static constexpr int X_AT = STAGES * STAGE, GAMMA_AT = X_AT + X_SLOTS * X_BYTES, NARROW_AT = GAMMA_AT + C * 4;
    static constexpr int BARRIERS_AT = NARROW_AT + 2 * NARROW_PITCH * 4, X_BARRIERS_AT = BARRIERS_AT + 2 * STAGES * 8;
    static constexpr int BYTES = X_BARRIERS_AT + 2 * X_SLOTS * 8;
};

/* Tiles of a block: dealt out in turn, or neighbours where dx is sent, so that all ranks get theirs at any time. */
struct NormTiles {
    int first, step, end;
};
template <bool SENDS> __device__ __forceinline__ NormTiles product_norm_tiles(const ProductNorm &p)
{
    int block = (int)blockIdx.x, blocks = (int)gridDim.x, tiles = p.product.tiles_m;
    if (!SENDS) return {block, blocks, tiles};
    int chunk = (tiles + blocks - 1) / blocks, first = block * chunk;
    return {first, 1, min(first + chunk, tiles)};
}

enum { NORM_BOX = 32 /* rows that go to a rank together */ };

/* Where dx begins for a row, on the rank that gets it: as many bytes before its place there as it is behind row 0
 * here. */
template <int C> struct NormSentRows {
    const PeerSend &send;
    bool first; /* to be sent by this warpgroup, which synchronizes behind begin(): the ranks have to be here */
    bf16 *dx[64 / NORM_BOX];

    __device__ __forceinline__ void begin(int row0)
    {
        int rank = (int)threadIdx.x % 128;
        if (first && rank < send.ranks) PeerSender(send).meet(rank);
#pragma unroll
        for (int b = 0; b < 64 / NORM_BOX; b++) {
            int row = row0 + b * NORM_BOX;
            PeerPlace to = peer_place(send, (uint32_t)row, 0);
            dx[b] = (bf16 *)send.out[to.rank] + ((int64_t)to.row - row) * C;
        }
    }
    __device__ __forceinline__ bf16 *operator()(int line) const
    {
        return dx[line / NORM_BOX];
    }
};

template <int C, bool SENDS> __device__ __forceinline__ void product_norm_fetch(const ProductNorm &p, uint32_t base)
{
    typedef NormShape<C> S;
    NormTiles tiles = product_norm_tiles<SENDS>(p);
    int i = 0;
    for (int tile = tiles.first; tile < tiles.end; tile += tiles.step, i++) {
        int slot = i % S::X_SLOTS, row = tile * S::BM;
        uint32_t full = base + S::X_BARRIERS_AT + slot * 8, to = base + S::X_AT + slot * S::X_BYTES;
        barrier_wait(full + S::X_SLOTS * 8, (uint32_t)(i / S::X_SLOTS & 1) ^ 1);
        barrier_expect(full, S::X_BYTES);
#pragma unroll
        for (int j = 0; j < C / PANEL; j++) {
            tensor_load(to + j * S::X_PANEL, &p.x, row, j * PANEL, full);
            if (p.edge.other) tensor_prefetch_box(&p.other, row, j * PANEL);
        }
    }
}

/* Two rows of the member of four columns as products of bf16 want them. */
__device__ __forceinline__ void product_norm_few(const RingProduct &p, int row0, uint32_t (&few)[4])
{
    int thread = threadIdx.x % 128, lane = thread % WARP, row = row0 + thread / WARP * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bool live = p.narrow_w && row + 8 * h < p.rows && lane % 4 < 2;
        few[h] = live ? __ldg(reinterpret_cast<const uint32_t *>(p.edge) + (row + 8 * h) * 2 + lane % 4) : 0;
        few[2 + h] = 0;
    }
}

/* d += dy W of that member. */
template <int C>
__device__ __forceinline__ void product_norm_narrow(const uint32_t (&few)[4], const char *shared, float (&d)[C / 2])
{
    typedef NormShape<C> S;
    int lane = threadIdx.x % WARP;
    const uint32_t *w = reinterpret_cast<const uint32_t *>(shared + S::NARROW_AT);
    bool live = lane % 4 < 2;
    w += lane % 2 * S::NARROW_PITCH + lane / 4;
#pragma unroll
    for (int j = 0; j < C / 8; j++) mma16816(reinterpret_cast<float(&)[4]>(d[j * 4]), few, live ? w[j * 8] : 0, 0);
}

template <int C, bool SENDS>
__device__ __forceinline__ void product_norm_consume(const ProductNorm &p, char *shared, uint32_t base)
{
    typedef NormShape<C> S;
    int group = threadIdx.x / 128, s = 0, i = 0, steps = p.product.first_step[p.product.members];
    DropoutDraw draw = !SENDS && p.edge.dropped ? p.edge.drop.draw() : DropoutDraw{};
    NormSums<C, C <= 128> sums = {};
    NormPart<C> part = {};
    NormTiles tiles = product_norm_tiles<SENDS>(p);
    for (int tile = tiles.first; tile < tiles.end; tile += tiles.step, i++) {
        int slot = i % S::X_SLOTS, row0 = tile * S::BM + group * 64;
        NormDraws<C> beside = {p.edge, draw, SENDS ? 0 : norm_edge_draws<C>(p.edge, i == 0), part};
        float d[1][C / 2];
        uint32_t few[4];
        norm_edge_begin<C>(p.edge, row0, &part);
        product_norm_few(p.product, row0, few);
        product_multiply<S, 1, C>(base, steps, &s, d, beside);
        for (int k = steps; k < beside.count; k++) beside(k);
        if (p.product.narrow_w) product_norm_narrow<C>(few, shared, d[0]);
        uint32_t full = base + S::X_BARRIERS_AT + slot * 8, x = base + S::X_AT + slot * S::X_BYTES;
        barrier_wait(full, (uint32_t)(i / S::X_SLOTS & 1));
        const float *gamma = reinterpret_cast<const float *>(shared + S::GAMMA_AT);
        x += group * 64 * 128;
        if constexpr (SENDS) {
            norm_edge_end<C, S::X_PANEL>(p.edge, NormSentRows<C>{p.send, i == 0}, part, gamma, x, d[0], &sums);
        } else {
            norm_edge_end<C, S::X_PANEL>(p.edge, NormOwnRows{p.edge}, part, gamma, x, d[0], &sums);
        }
        barrier_arrive_warp(full + S::X_SLOTS * 8);
    }
    asm volatile("bar.sync 3, 256;" ::: "memory"); /* the ring is empty, all rows are on their way */
    if (SENDS && threadIdx.x == 0) PeerSender(p.send).finish(gridDim.x);
    norm_edge_sums<C>(p.edge, reinterpret_cast<float *>(shared), sums);
}

/* gamma, and the rows of W of a member of four columns in pairs, by the warpgroups that multiply. */
template <int C> __device__ __forceinline__ void product_norm_constants(const ProductNorm &p, char *shared)
{
    typedef NormShape<C> S;
    float *gamma = reinterpret_cast<float *>(shared + S::GAMMA_AT);
    uint32_t *narrow = reinterpret_cast<uint32_t *>(shared + S::NARROW_AT);
    const uint16_t *w = reinterpret_cast<const uint16_t *>(p.product.narrow_w);
    for (int c = threadIdx.x; c < C; c += 256) {
        gamma[c] = p.edge.gamma[c];
        for (int pair = 0; w && pair < 2; pair++)
            narrow[pair * S::NARROW_PITCH + c] = w[2 * pair * C + c] | (uint32_t)w[(2 * pair + 1) * C + c] << 16;
    }
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

template <int C, bool SENDS>
__global__ void __launch_bounds__(PRODUCT_THREADS, 1) product_norm_kernel(const __grid_constant__ ProductNorm p)
{
    typedef NormShape<C> S;
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            barrier_init(base + S::BARRIERS_AT + s * 8, 1);
            barrier_init(base + S::BARRIERS_AT + (S::STAGES + s) * 8, 2);
        }
        for (int s = 0; s < S::X_SLOTS; s++) {
            barrier_init(base + S::X_BARRIERS_AT + s * 8, 1);
            barrier_init(base + S::X_BARRIERS_AT + (S::X_SLOTS + s) * 8, 8 * WARP_ARRIVALS);
        }
        barrier_publish();
        if (p.product.early) product_weights_early<S, C>(p.product, base, 0);
    }
    __syncthreads();
    if (p.early && threadIdx.x < 256) product_norm_constants<C>(p, shared);
    stage_wait();
    stage_release();
    if (SENDS) peer_send_begin(p.send);
    if (threadIdx.x >= 256) { /* registers of the copying warps go to the products */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256) {
            NormTiles tiles = product_norm_tiles<SENDS>(p);
            int s = 0;
            for (int tile = tiles.first; tile < tiles.end; tile += tiles.step)
                product_fetch<S, C>(p.product, base, tile * S::BM, 0, &s);
        }
        if (threadIdx.x == 256 + WARP) product_norm_fetch<C, SENDS>(p, base);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        if (!p.early) product_norm_constants<C>(p, shared);
        product_norm_consume<C, SENDS>(p, shared, base);
    }
}

/* --- host */

/* A sender's rows go to the ranks in boxes; it draws no masks (linear_norm_dx_sends). */
static inline bool product_norm_fits(const ProductNorm &p)
{
    return p.send.ranks == 0 || p.send.rows.run % NORM_BOX == 0;
}

/* p: all but the maps, tiles and the mask's kind; dgamma, dbeta [C]. */
template <int C>
static Status product_norm_launch(ProductNorm p, const bf16 *x, const ProductOperands &o, float *dgamma, float *dbeta,
                                  cudaStream_t stream)
{
    typedef NormShape<C> S;
    RingProduct &product = p.product;
    product.edge = NULL;
    TRY(product_members(o, S::BM, &product));
    product.tiles_m = (product.rows + S::BM - 1) / S::BM, product.tiles_n = 1;
    int blocks = product.tiles_m < PRODUCT_BLOCKS ? product.tiles_m : PRODUCT_BLOCKS;
    const auto kernel = p.send.ranks ? product_norm_kernel<C, true> : product_norm_kernel<C, false>;
    if (p.send.ranks) { /* no block without tiles */
        int chunk = (product.tiles_m + blocks - 1) / blocks;
        blocks = (product.tiles_m + chunk - 1) / chunk;
    }
    TRY(tensor_map(x, product.rows, C, S::BM, &p.x));
    if (p.edge.other) TRY(tensor_map(p.edge.other, product.rows, C, S::BM, &p.other));
    if (p.edge.dropped) p.edge.mask = norm_mask(p.edge.drop, blocks, S::BM);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES));
    launch(kernel, blocks, PRODUCT_THREADS, S::BYTES, stream, p);
    TRY(cuda_launched("product_norm_kernel"));
    return sum_partials_split_launch(p.edge.partial, dgamma, dbeta, blocks, C, stream);
}

#endif
