/* Triangle products of whole tiles, X_c = A_c B_c for every channel c, operands stored along either axis. The library's
 * kernels take 12 to 13 us for 128 channels of [256, 256] x 256 on an H200 but begin 3 to 10 us after the kernel in
 * front has ended (cuBLASLt of CUDA 13.0); this one takes 15 to 17, and begins at once.
 *
 * A tile is 128 rows by BN columns of a channel: one thread copies 64 inner elements at a time into a ring, two
 * warpgroups multiply, 64 rows each; blocks go from tile to tile, so that copies for the next one run while a warp puts
 * its sixteen rows into shared memory, from where they leave. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRI_PRODUCT_CUH
#define FOLDSCALE_KERNELS_CUDA_TRI_PRODUCT_CUH

#include "kernels/cuda/cluster.cuh"

enum { TRI_PRODUCT_ROWS = 128, TRI_PRODUCT_BOX = 16 /* rows of a warp */, TRI_PRODUCT_BLOCKS = 132 };
enum { TRI_PRODUCT_GROUPS = 2, TRI_PRODUCT_THREADS = TRI_PRODUCT_GROUPS * 128 + 128 };
enum { TRI_PRODUCT_PANEL = PANEL * 128 /* bytes of 64 rows of 64 elements */ };

struct TriProduct {
    CUtensorMap a, b, x; /* the matrices of all channels, one below the other */
    int inner, rows, columns, tiles_m, tiles_n, tiles;
};

template <int BN> struct TriProductShape {
    static constexpr int A_BYTES = TRI_PRODUCT_GROUPS * TRI_PRODUCT_PANEL, PANELS = BN / PANEL;
    static constexpr int STAGE = A_BYTES + PANELS * TRI_PRODUCT_PANEL, STAGES = BN > 128 ? 3 : 6;
    static constexpr int CHUNK = TRI_PRODUCT_BOX * 128, OUT_AT = STAGES * STAGE; /* of each warp: PANELS chunks */
    static constexpr int BARRIERS_AT = OUT_AT + TRI_PRODUCT_GROUPS * 4 * PANELS * CHUNK;
    static constexpr int BYTES = BARRIERS_AT + 2 * STAGES * 8;
};

struct TriProductTile {
    int channel, row, column;
};
__device__ __forceinline__ TriProductTile tri_product_tile(const TriProduct &p, int tile, int columns)
{
    int each = p.tiles_m * p.tiles_n, within = tile % each;
    return {tile / each, within / p.tiles_n * TRI_PRODUCT_ROWS, within % p.tiles_n * columns};
}

/* One thread: 64 inner elements of an operand. ACROSS: its rows are the inner ones, `outer` its columns; first: of the
 * channel's matrix. */
template <bool ACROSS>
__device__ __forceinline__ void tri_product_copy(const CUtensorMap *map, uint32_t to, int panels, int first, int outer,
                                                 int inner, uint32_t full)
{
    if (!ACROSS) tensor_load(to, map, first + outer, inner, full);
    for (int k = 0; ACROSS && k < panels; k++)
        tensor_load(to + k * TRI_PRODUCT_PANEL, map, first + inner, outer + k * PANEL, full);
}

template <int BN, bool ACROSS_A, bool ACROSS_B>
__device__ __forceinline__ void tri_product_load(const TriProduct &p, uint32_t base)
{
    typedef TriProductShape<BN> S;
    int s = 0;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        TriProductTile at = tri_product_tile(p, tile, BN);
        int a = at.channel * (ACROSS_A ? p.inner : p.rows), b = at.channel * (ACROSS_B ? p.inner : p.columns);
        for (int k = 0; k < p.inner; k += PANEL, s++) {
            int slot = s % S::STAGES;
            uint32_t full = base + S::BARRIERS_AT + slot * 8, to = base + slot * S::STAGE;
            barrier_wait(full + S::STAGES * 8, (uint32_t)(s / S::STAGES & 1) ^ 1);
            barrier_expect(full, S::STAGE);
            tri_product_copy<ACROSS_A>(&p.a, to, TRI_PRODUCT_GROUPS, a, at.row, k, full);
            tri_product_copy<ACROSS_B>(&p.b, to + S::A_BYTES, S::PANELS, b, at.column, k, full);
        }
    }
}

template <bool ACROSS> __device__ __forceinline__ uint64_t tri_product_operand(uint32_t shared)
{
    return ACROSS ? across_descriptor(shared, TRI_PRODUCT_PANEL) : wgmma_descriptor(shared);
}

/* A warpgroup's 64 rows of a tile. */
template <int BN, bool ACROSS_A, bool ACROSS_B>
__device__ __forceinline__ void tri_product_multiply(const TriProduct &p, uint32_t base, int group, int &s,
                                                     float (&acc)[BN / 2])
{
    typedef TriProductShape<BN> S;
    constexpr int STEP_A = (ACROSS_A ? 2048 : 32) >> 4, STEP_B = (ACROSS_B ? 2048 : 32) >> 4;
    uint32_t full = base + S::BARRIERS_AT, empty = full + S::STAGES * 8;
    bool frees = threadIdx.x % 128 == 0;
    /* The first step does not read them, but without values they would keep their registers from tile to tile. */
#pragma unroll
    for (int k = 0; k < BN / 2; k++) acc[k] = 0;
    for (int k = 0; k < p.inner; k += PANEL, s++) {
        int slot = s % S::STAGES;
        uint32_t stage = base + slot * S::STAGE;
        barrier_wait(full + slot * 8, (uint32_t)(s / S::STAGES & 1));
        uint64_t a = tri_product_operand<ACROSS_A>(stage + group * TRI_PRODUCT_PANEL);
        uint64_t b = tri_product_operand<ACROSS_B>(stage + S::A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int q = 0; q < PANEL / 16; q++)
            GroupProduct<BN, ACROSS_A, ACROSS_B>::step(acc, a + q * STEP_A, b + q * STEP_B, k + q > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (k > 0 && frees) barrier_arrive(empty + (s - 1) % S::STAGES * 8);
    }
    wgmma_wait<0>();
    wgmma_settle(acc);
    if (frees) barrier_arrive(empty + (s - 1) % S::STAGES * 8);
}

/* A warp's sixteen rows leave, when those before have. */
template <int BN>
__device__ __forceinline__ void tri_product_store(const TriProduct &p, const float (&acc)[BN / 2], uint32_t out,
                                                  int row, int column)
{
    typedef TriProductShape<BN> S;
    int lane = threadIdx.x % WARP;
    uint32_t to = out + lane / 4 * 128 + lane % 4 * 4;
    if (lane == 0) tensor_store_wait_read();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
        uint32_t put = to + j / 8 * S::CHUNK + ((j % 8 ^ lane / 4) << 4);
        shared_word_put(put, pack_bf16(acc[4 * j], acc[4 * j + 1]));
        shared_word_put(put + 8 * 128, pack_bf16(acc[4 * j + 2], acc[4 * j + 3]));
    }
    async_fence();
    __syncwarp();
    if (lane > 0) return;
    for (int k = 0; k < S::PANELS; k++) tensor_store(&p.x, out + k * S::CHUNK, row, column + k * PANEL);
    tensor_store_commit();
}

template <int BN, bool ACROSS_A, bool ACROSS_B>
__global__ void __launch_bounds__(TRI_PRODUCT_THREADS, 1) tri_product_kernel(const __grid_constant__ TriProduct p)
{
    typedef TriProductShape<BN> S;
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    int group = threadIdx.x / 128, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        for (int k = 0; k < S::STAGES; k++) {
            barrier_init(base + S::BARRIERS_AT + k * 8, 1);
            barrier_init(base + S::BARRIERS_AT + (S::STAGES + k) * 8, TRI_PRODUCT_GROUPS);
        }
        barrier_publish();
        tensor_prefetch(&p.a), tensor_prefetch(&p.b), tensor_prefetch(&p.x);
    }
    __syncthreads();
    stage_wait();
    stage_release();
    if (group == TRI_PRODUCT_GROUPS) { /* registers of the copying warps go to the products */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x % 128 == 0) tri_product_load<BN, ACROSS_A, ACROSS_B>(p, base);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    int s = 0;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        TriProductTile at = tri_product_tile(p, tile, BN);
        float acc[BN / 2];
        tri_product_multiply<BN, ACROSS_A, ACROSS_B>(p, base, group, s, acc);
        tri_product_store<BN>(p, acc, base + S::OUT_AT + warp * S::PANELS * S::CHUNK,
                              at.channel * p.rows + at.row + warp * TRI_PRODUCT_BOX, at.column);
    }
    if (threadIdx.x % WARP == 0) tensor_store_wait();
}

/* --- host */

/* x [channels][rows][columns] = a b; a [channels][rows][inner] or, across, [inner][rows]; b [inner][columns] or, not
 * across, [columns][inner] */
struct TriProductOperands {
    const void *a, *b;
    void *x;
    int64_t channels, inner, rows, columns;
    bool across_a, across_b;
};

static inline bool tri_product_fits(const TriProductOperands &o)
{
    bool fits = o.rows % TRI_PRODUCT_ROWS == 0 && o.columns % 128 == 0 && o.inner % PANEL == 0 && o.inner > 0;
    int64_t most = o.rows > o.columns ? o.rows : o.columns;
    most = most > o.inner ? most : o.inner;
    fits = fits && o.channels * most < INT64_C(0x7fffffff);
    return fits && aligned16(o.a) && aligned16(o.b) && aligned16(o.x);
}

template <int BN, bool ACROSS_A, bool ACROSS_B>
static Status tri_product_launch_shape(const TriProductOperands &o, cudaStream_t stream)
{
    constexpr int BYTES = TriProductShape<BN>::BYTES;
    auto kernel = tri_product_kernel<BN, ACROSS_A, ACROSS_B>;
    TriProduct p = {};
    p.inner = (int)o.inner, p.rows = (int)o.rows, p.columns = (int)o.columns;
    p.tiles_m = p.rows / TRI_PRODUCT_ROWS, p.tiles_n = p.columns / BN;
    p.tiles = (int)o.channels * p.tiles_m * p.tiles_n;
    if (ACROSS_A)
        TRY(tensor_map(o.a, o.channels * o.inner, o.rows, PANEL, &p.a));
    else
        TRY(tensor_map(o.a, o.channels * o.rows, o.inner, TRI_PRODUCT_ROWS, &p.a));
    if (ACROSS_B)
        TRY(tensor_map(o.b, o.channels * o.inner, o.columns, PANEL, &p.b));
    else
        TRY(tensor_map(o.b, o.channels * o.columns, o.inner, BN, &p.b));
    TRY(tensor_map(o.x, o.channels * o.rows, o.columns, TRI_PRODUCT_BOX, &p.x));
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(kernel, p.tiles < TRI_PRODUCT_BLOCKS ? p.tiles : TRI_PRODUCT_BLOCKS, TRI_PRODUCT_THREADS, BYTES, stream, p);
    return cuda_launched("tri_product_kernel");
}

template <int BN> static Status tri_product_launch_columns(const TriProductOperands &o, cudaStream_t stream)
{
    if (o.across_a)
        return o.across_b ? tri_product_launch_shape<BN, true, true>(o, stream)
                          : tri_product_launch_shape<BN, true, false>(o, stream);
    return o.across_b ? tri_product_launch_shape<BN, false, true>(o, stream)
                      : tri_product_launch_shape<BN, false, false>(o, stream);
}

/* Tiles of 256 columns read less; of 128 where there would be none for some multiprocessors. */
static inline Status tri_product_launch(const TriProductOperands &o, cudaStream_t stream)
{
    bool wide = o.columns % 256 == 0 && o.channels * (o.rows / TRI_PRODUCT_ROWS) * (o.columns / 256) > 66;
    return wide ? tri_product_launch_columns<256>(o, stream) : tri_product_launch_columns<128>(o, stream);
}

#endif
