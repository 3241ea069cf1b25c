/* Input gradients of linear layers on Hopper's asynchronous units: dx = sum_k dy_k W_k, the matrices W_k lying one
 * below the other. One thread copies 64 inner elements at a time into a ring, two warpgroups multiply and store; blocks
 * go from tile to tile, so that copies for the next tile run during the stores of this one.
 *
 * Edges: dx (+ dy W of a member of four columns, by plain arithmetic) (+ what arrives at x on another way, or where
 * y > 0, for a relu in between). */
#ifndef FOLDSCALE_KERNELS_CUDA_PRODUCT_RING_CUH
#define FOLDSCALE_KERNELS_CUDA_PRODUCT_RING_CUH

#include "kernels/cuda/cluster.cuh"

enum {
    PRODUCT_MEMBERS = LINEAR_GROUP_MAX,
    PRODUCT_THREADS = 384,
    PRODUCT_BLOCKS = 132,
    PRODUCT_B_PANEL = PANEL * PANEL * 2
};
enum { PRODUCT_NARROW = 4 /* columns of a narrow member */ };

/* What a product's result still meets: another gradient, a relu's y, a member of four columns. */
enum ProductEdge { EDGE_NONE, EDGE_OTHER, EDGE_RELU, EDGE_NARROW };

struct RingProduct {
    CUtensorMap dy_map[PRODUCT_MEMBERS], w_map, edge_map;
    int members, first_step[PRODUCT_MEMBERS + 1], first_row[PRODUCT_MEMBERS]; /* of W */
    int rows, columns, tiles_m, tiles_n;
    bool early;                  /* the first boxes of W before stage_wait() */
    const bf16 *edge, *narrow_w; /* EDGE_NARROW: [rows, PRODUCT_NARROW], [PRODUCT_NARROW, columns] */
    bf16 *dx;
};

/* MT x 64 rows per warpgroup, BN columns. */
template <int MT, int BN> struct ProductShape {
    static constexpr int BM = 2 * MT * 64, PART = BN > 128 ? 128 : BN /* columns stored at a time */, PITCH = PART + 8;
    static constexpr int A_BYTES = BM * PANEL * 2, STAGE = A_BYTES + BN / PANEL * PRODUCT_B_PANEL;
    static constexpr int OUT_BYTES = 64 * PITCH * 2; /* per warpgroup */
    static constexpr int STAGES = 4;
    static constexpr int OUT_AT = STAGES * STAGE, BARRIERS_AT = OUT_AT + 2 * OUT_BYTES;
    static constexpr int BYTES = BARRIERS_AT + 2 * STAGES * 8;
};

/* One thread: a step begins with its part of W. row: of W. */
template <typename S, int BN>
__device__ __forceinline__ void product_weights(const RingProduct &p, uint32_t base, int slot, int row, int column)
{
    uint32_t full = base + S::BARRIERS_AT + slot * 8, to = base + slot * S::STAGE + S::A_BYTES;
    barrier_expect(full, S::STAGE);
#pragma unroll
    for (int j = 0; j < BN / PANEL; j++) tensor_load(to + j * PRODUCT_B_PANEL, &p.w_map, row, column + j * PANEL, full);
}

/* That of the first tile's first steps, as many as the ring holds. */
template <typename S, int BN>
__device__ __forceinline__ void product_weights_early(const RingProduct &p, uint32_t base, int column)
{
    for (int member = 0, s = 0; member < p.members; member++)
        for (int k = 0; s < p.first_step[member + 1] && s < S::STAGES; k++, s++)
            product_weights<S, BN>(p, base, s, p.first_row[member] + k * PANEL, column);
}

/* The steps of a tile of S::BM rows, BN columns into the ring; s: steps so far. */
template <typename S, int BN>
__device__ __forceinline__ void product_fetch(const RingProduct &p, uint32_t base, int row, int column, int *s)
{
    int total = p.first_step[p.members], early = !p.early ? 0 : total < S::STAGES ? total : S::STAGES;
    for (int member = 0; member < p.members; member++) {
        int steps = p.first_step[member + 1] - p.first_step[member];
        for (int k = 0; k < steps; k++, ++*s) {
            int slot = *s % S::STAGES;
            uint32_t full = base + S::BARRIERS_AT + slot * 8;
            barrier_wait(full + S::STAGES * 8, (uint32_t)(*s / S::STAGES & 1) ^ 1);
            if (*s >= early) product_weights<S, BN>(p, base, slot, p.first_row[member] + k * PANEL, column);
            tensor_load(base + slot * S::STAGE, &p.dy_map[member], row, k * PANEL, full);
        }
    }
}

template <int MT, int BN, ProductEdge EDGE>
__device__ __forceinline__ void product_produce(const RingProduct &p, uint32_t base)
{
    typedef ProductShape<MT, BN> S;
    int s = 0;
    for (int at = blockIdx.x; at < p.tiles_m * p.tiles_n; at += gridDim.x) {
        int row = at / p.tiles_n * S::BM, column = at % p.tiles_n * BN;
        if (EDGE == EDGE_OTHER || EDGE == EDGE_RELU) { /* the warpgroups read it behind the product */
#pragma unroll
            for (int j = 0; j < BN / PANEL; j++) tensor_prefetch_box(&p.edge_map, row, column + j * PANEL);
        }
        product_fetch<S, BN>(p, base, row, column, &s);
    }
}

struct NothingBeside {
    __device__ __forceinline__ void operator()(int) const {}
};

/* A warpgroup's product of a tile as product_fetch() brings it; `beside` is called in every step, while it runs. */
template <typename S, int MT, int BN, typename Beside>
__device__ __forceinline__ void product_multiply(uint32_t base, int steps, int *s, float (&acc)[MT][BN / 2],
                                                 const Beside &beside)
{
    int group = threadIdx.x / 128, thread = threadIdx.x % 128;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < BN / 2; j++) acc[m][j] = 0;
    for (int k = 0; k < steps; k++, ++*s) {
        int slot = *s % S::STAGES;
        uint32_t full = base + S::BARRIERS_AT + slot * 8, stage = base + slot * S::STAGE;
        barrier_wait(full, (uint32_t)(*s / S::STAGES & 1));
        uint64_t b = across_descriptor(stage + S::A_BYTES, PRODUCT_B_PANEL);
        wgmma_fence();
#pragma unroll
        for (int q = 0; q < PANEL / 16; q++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint64_t a = wgmma_descriptor(stage + (group * MT + m) * 64 * PANEL * 2);
                GroupProduct<BN, false, true>::step(acc[m], a + q * 2, b + q * (2048 >> 4), 1);
            }
        wgmma_commit();
        beside(k);
        if (k == 0) continue;
        wgmma_wait<1>();
        if (thread == 0) barrier_arrive(base + S::BARRIERS_AT + (S::STAGES + (*s - 1) % S::STAGES) * 8);
    }
    wgmma_wait<0>();
    if (thread == 0) barrier_arrive(base + S::BARRIERS_AT + (S::STAGES + (*s - 1) % S::STAGES) * 8);
}

/* 64 rows x PART columns of a warpgroup through shared memory, out in 16-byte pieces. */
template <int PART, ProductEdge EDGE>
__device__ __forceinline__ void product_store(const RingProduct &p, const float *acc, bf16 *stage, int row0,
                                              int column0)
{
    constexpr int PITCH = PART + 8, VECTORS = PART / 8, STEP = 128 / VECTORS, COUNT = 64 / STEP;
    int thread = threadIdx.x % 128, lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
    int barrier = threadIdx.x / 128 + 1, column = column0 + thread % VECTORS * 8;
#pragma unroll
    for (int j = 0; j < PART / 8; j++) {
        bf16 *at = stage + row * PITCH + j * 8 + lane % 4 * 2;
        *reinterpret_cast<uint32_t *>(at) = pack_bf16(acc[j * 4], acc[j * 4 + 1]);
        *reinterpret_cast<uint32_t *>(at + 8 * PITCH) = pack_bf16(acc[j * 4 + 2], acc[j * 4 + 3]);
    }
    row = row0 + thread / VECTORS;
    int64_t at = (int64_t)row * p.columns + column;
    bool live = column < p.columns;
    /* all of the edge's loads before the first use */
    uint4 edge[EDGE == EDGE_OTHER || EDGE == EDGE_RELU ? COUNT : 1], w[PRODUCT_NARROW];
    uint2 narrow[EDGE == EDGE_NARROW ? COUNT : 1];
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        bool here = live && row + k * STEP < p.rows;
        if (EDGE == EDGE_OTHER || EDGE == EDGE_RELU)
            edge[k] = here ? __ldg(reinterpret_cast<const uint4 *>(p.edge + at + (int64_t)k * STEP * p.columns))
                           : make_uint4(0, 0, 0, 0);
        if (EDGE == EDGE_NARROW)
            narrow[k] = here ? __ldg(reinterpret_cast<const uint2 *>(p.edge) + row + k * STEP) : make_uint2(0, 0);
    }
#pragma unroll
    for (int n = 0; EDGE == EDGE_NARROW && n < PRODUCT_NARROW; n++)
        w[n] =
            live ? __ldg(reinterpret_cast<const uint4 *>(p.narrow_w + n * p.columns + column)) : make_uint4(0, 0, 0, 0);
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        uint4 v =
            *reinterpret_cast<const uint4 *>(stage + (thread / VECTORS + k * STEP) * PITCH + thread % VECTORS * 8);
        float x[8], y[8];
        if (EDGE != EDGE_NONE) unpack8(v, x);
        if (EDGE == EDGE_NARROW) {
            float2 d[2] = {unpack_bf16(narrow[k].x), unpack_bf16(narrow[k].y)};
#pragma unroll
            for (int n = 0; n < PRODUCT_NARROW; n++) {
                unpack8(w[n], y);
#pragma unroll
                for (int j = 0; j < 8; j++) x[j] += (n % 2 ? d[n / 2].y : d[n / 2].x) * y[j];
            }
        } else if (EDGE != EDGE_NONE) {
            unpack8(edge[k], y);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = EDGE == EDGE_OTHER ? x[j] + y[j] : (y[j] > 0.0f ? x[j] : 0.0f);
        }
        if (EDGE != EDGE_NONE) v = pack8(x);
        if (live && row + k * STEP < p.rows) *reinterpret_cast<uint4 *>(p.dx + at + (int64_t)k * STEP * p.columns) = v;
    }
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

template <int MT, int BN, ProductEdge EDGE>
__device__ __forceinline__ void product_consume(const RingProduct &p, char *shared, uint32_t base)
{
    typedef ProductShape<MT, BN> S;
    int group = threadIdx.x / 128, s = 0;
    bf16 *stage_out = reinterpret_cast<bf16 *>(shared + S::OUT_AT + group * S::OUT_BYTES);
    for (int at = blockIdx.x; at < p.tiles_m * p.tiles_n; at += gridDim.x) {
        int row = at / p.tiles_n * S::BM + group * MT * 64, column = at % p.tiles_n * BN;
        float acc[MT][BN / 2];
        product_multiply<S, MT, BN>(base, p.first_step[p.members], &s, acc, NothingBeside());
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int part = 0; part < BN / S::PART; part++)
                product_store<S::PART, EDGE>(p, &acc[m][part * S::PART / 2], stage_out, row + m * 64,
                                             column + part * S::PART);
    }
}

template <int MT, int BN, ProductEdge EDGE>
__global__ void __launch_bounds__(PRODUCT_THREADS, 1) product_ring_kernel(const __grid_constant__ RingProduct p)
{
    typedef ProductShape<MT, BN> S;
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    if (threadIdx.x < 32 && (int)threadIdx.x <= p.members)
        tensor_prefetch((int)threadIdx.x < p.members ? &p.dy_map[threadIdx.x] : &p.w_map);
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            barrier_init(base + S::BARRIERS_AT + s * 8, 1);
            barrier_init(base + S::BARRIERS_AT + (S::STAGES + s) * 8, 2);
        }
        barrier_publish();
        if (p.early) product_weights_early<S, BN>(p, base, (int)blockIdx.x % p.tiles_n * BN);
    }
    __syncthreads();
    stage_wait();
    stage_release();
    if (threadIdx.x >= 256) {
        if (threadIdx.x == 256) product_produce<MT, BN, EDGE>(p, base);
        __syncwarp();
    } else {
        product_consume<MT, BN, EDGE>(p, shared, base);
    }
}

/* --- host */

/* dy_k [rows, out_k] (k < members) and W [sum out_k, columns]; one member may have PRODUCT_NARROW columns. */
struct ProductOperands {
    int members;
    const bf16 *dy[PRODUCT_MEMBERS], *w;
    int out[PRODUCT_MEMBERS];
};

template <int MT, int BN, ProductEdge EDGE> static Status product_launch_edge(const RingProduct &p, cudaStream_t stream)
{
    typedef ProductShape<MT, BN> S;
    int tiles = p.tiles_m * p.tiles_n;
    CUDA_TRY(
        cudaFuncSetAttribute(product_ring_kernel<MT, BN, EDGE>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES));
    launch(product_ring_kernel<MT, BN, EDGE>, tiles < PRODUCT_BLOCKS ? tiles : PRODUCT_BLOCKS, PRODUCT_THREADS,
           S::BYTES, stream, p);
    return cuda_launched("product_ring_kernel");
}

template <int MT, int BN> static Status product_launch_shape(RingProduct &p, ProductEdge edge, cudaStream_t stream)
{
    typedef ProductShape<MT, BN> S;
    p.tiles_m = (p.rows + S::BM - 1) / S::BM, p.tiles_n = (p.columns + BN - 1) / BN;
    switch (edge) {
    case EDGE_OTHER:
        return product_launch_edge<MT, BN, EDGE_OTHER>(p, stream);
    case EDGE_RELU:
        return product_launch_edge<MT, BN, EDGE_RELU>(p, stream);
    case EDGE_NARROW:
        return product_launch_edge<MT, BN, EDGE_NARROW>(p, stream);
    default:
        return product_launch_edge<MT, BN, EDGE_NONE>(p, stream);
    }
}

/* Where the members lie, and the copies that bring them, `box_rows` rows at a time. */
static Status product_members(const ProductOperands &o, int box_rows, RingProduct *p)
{
    int row_w = 0;
    for (int k = 0; k < o.members; k++) {
        if (o.out[k] == PRODUCT_NARROW) {
            p->edge = o.dy[k], p->narrow_w = o.w + (int64_t)row_w * p->columns;
        } else {
            int at = p->members++;
            p->first_row[at] = row_w;
            p->first_step[at + 1] = p->first_step[at] + (o.out[k] + PANEL - 1) / PANEL;
            TRY(tensor_map(o.dy[k], p->rows, o.out[k], box_rows, &p->dy_map[at]));
        }
        row_w += o.out[k];
    }
    return tensor_map(o.w, row_w, p->columns, PANEL, &p->w_map);
}

/* Tiles of 128 x 256 where there are enough of them for all SMs; a mask's loads want more, smaller ones (measured). */
static Status product_launch(RingProduct p, const ProductOperands &o, ProductEdge edge, cudaStream_t stream)
{
    bool slim = p.columns <= 64, wide = !slim && edge != EDGE_RELU && p.columns % 256 == 0 &&
                                        (int64_t)p.rows * p.columns >= (int64_t)PRODUCT_BLOCKS * 128 * 256;
    TRY(product_members(o, slim ? 256 : 128, &p));
    if (edge == EDGE_OTHER || edge == EDGE_RELU)
        TRY(tensor_map(p.edge, p.rows, p.columns, slim ? 256 : 128, &p.edge_map));
    if (slim) return product_launch_shape<2, 64>(p, edge, stream);
    return wide ? product_launch_shape<1, 256>(p, edge, stream) : product_launch_shape<1, 128>(p, edge, stream);
}

#endif
