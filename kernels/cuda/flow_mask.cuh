/* Dropout beside a product whose rows flow past, of its result (flow.cuh) or of what it multiplies (product_gate.cuh):
 * a warp draws the masks of its sixteen rows of a tile as bits, and again only where they change; where all tiles of a
 * block have the same, its warps draw them together, once. */
#ifndef FOLDSCALE_KERNELS_CUDA_FLOW_MASK_CUH
#define FOLDSCALE_KERNELS_CUDA_FLOW_MASK_CUH

#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/hopper.cuh"

enum { FLOW_ROWS = 64 /* of a tile */ };

/* How dropout's mask, shared along an axis, repeats: not; as a whole wherever that of the first of a warp's rows does;
 * so, and from row to row of a tile */
enum FlowRepeat { FLOW_REPEATS_NOT, FLOW_REPEATS_WARPS, FLOW_REPEATS_ROWS };

struct FlowMask {
    Dropout drop; /* no rng: rate 0; inner is the length of a row */
    FlowRepeat repeat;
    uint32_t step;   /* of the mask, from row to row where it repeats */
    uint32_t period; /* tiles after which it comes again row by row; 0: it does not */
};

/* What dropout keeps of this thread's part of a tile: bit 2 j of kept[h][i] is column 8 j + 2 (lane % 4) + i of row
 * lane / 4 + 8 h of the warp's sixteen, whose first has its mask at `first`. Each lane draws four columns of a row. */
struct FlowKept {
    uint32_t row[2][2], first = UINT32_MAX;
};

/* `rows` of a warp's rows, or one for all of them, from row0 on. at: this lane's part of the mask, of the first row
 * where the mask repeats, which that of the next ones follows at equal distances; else within the mask of each row. */
template <bool REPEATS>
__device__ __forceinline__ void flow_draw_rows(const FlowMask &m, const DropoutDraw &draw, int row0, int rows,
                                               uint32_t at, FlowKept *kept)
{
    int lane = threadIdx.x % WARP;
#pragma unroll(REPEATS ? 4 : 1) /* a draw is one long chain */
    for (int r = 0; r < rows; r++) {
        uint32_t w[4], bits[4], here = at + r * m.step;
        if (!REPEATS) here = at + m.drop.mask_element((uint32_t)(row0 + r) * m.drop.inner);
        m.drop.words(draw, here >> 2, w);
#pragma unroll
        for (int k = 0; k < 4; k++) bits[k] = __ballot_sync(0xffffffffu, m.drop.keeps(w[k])) >> (lane % 4 / 2);
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (rows == 1 || r == lane / 4 + 8 * h)
                kept->row[h][0] = lane % 2 ? bits[2] : bits[0], kept->row[h][1] = lane % 2 ? bits[3] : bits[1];
    }
}

/* row0: the first of the warp's rows; kept: of the tile before, which may have the same mask */
__device__ __forceinline__ void flow_draw(const FlowMask &m, const DropoutDraw &draw, int row0, int column0,
                                          FlowKept *kept)
{
    uint32_t own = column0 + threadIdx.x % WARP * 4;
    if (m.repeat == FLOW_REPEATS_NOT) return flow_draw_rows<false>(m, draw, row0, 16, own, kept);
    uint32_t first = m.drop.mask_element((uint32_t)row0 * m.drop.inner);
    if (first == kept->first) return;
    kept->first = first;
    flow_draw_rows<true>(m, draw, row0, m.repeat == FLOW_REPEATS_ROWS ? 1 : 16, first + own, kept);
}

/* The counters' seed comes nearer, ahead of a block's tiles, behind which it would queue; it may still be written. */
__device__ __forceinline__ void flow_mask_prefetch(const FlowMask &m)
{
    if (m.drop.rng) asm volatile("prefetch.L2 [%0];" ::"l"(m.drop.rng));
}

/* Whether tiles at this distance have the same mask. */
__device__ __forceinline__ bool flow_mask_stays(const FlowMask &m, int tiles)
{
    return m.drop.rng && m.period > 0 && tiles % m.period == 0;
}

/* The mask of a tile, by two warpgroups that both want it. row0: of the tile; shared: for a word of each of four
 * neighbouring columns, a row after the other */
enum { FLOW_MASK_BYTES = FLOW_ROWS * 16 };
__device__ __forceinline__ void flow_draw_together(const FlowMask &m, const DropoutDraw &draw, int row0, int column0,
                                                   uint4 *shared, FlowKept *kept)
{
    constexpr int ROWS = FLOW_ROWS / 8, TOGETHER = 4; /* of a warp; chains side by side */
    int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * ROWS;
    uint32_t row = (uint32_t)(row0 + first) % (m.period * FLOW_ROWS);
    uint32_t at = m.drop.offset + row * m.step + column0 + lane * 4;
#pragma unroll 1
    for (int r = 0; r < ROWS; r += TOGETHER) {
        uint32_t w[TOGETHER][4];
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) m.drop.words(draw, (at + (r + k) * m.step) >> 2, w[k]);
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) w[k][i] = __ballot_sync(0xffffffffu, m.drop.keeps(w[k][i]));
            if (lane == 0) shared[first + r + k] = make_uint4(w[k][0], w[k][1], w[k][2], w[k][3]);
        }
    }
    asm volatile("bar.sync 3, 256;" ::: "memory");
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint4 *words = shared + threadIdx.x % 128 / WARP * 16 + lane / 4 + 8 * h;
        uint2 bits = reinterpret_cast<const uint2 *>(words)[lane % 2];
        kept->row[h][0] = bits.x >> (lane % 4 / 2), kept->row[h][1] = bits.y >> (lane % 4 / 2);
    }
}

/* --- host */

static inline FlowRepeat flow_repeat(const Dropout &d)
{
    if (!d.rng || d.rank < 2) return FLOW_REPEATS_NOT;
    uint32_t rows = d.local[d.rank - 2];
    if (d.stride[d.rank - 2] == 0 && rows % FLOW_ROWS == 0) return FLOW_REPEATS_ROWS;
    return rows % 16 == 0 ? FLOW_REPEATS_WARPS : FLOW_REPEATS_NOT;
}

static inline uint32_t flow_period(const Dropout &d)
{
    if (flow_repeat(d) != FLOW_REPEATS_WARPS || d.local[d.rank - 2] % FLOW_ROWS) return 0;
    for (int k = 0; k < d.rank - 2; k++)
        if (d.stride[k] && d.local[k] > 1) return 0;
    return d.local[d.rank - 2] / FLOW_ROWS;
}

static inline FlowMask flow_mask(const Dropout &d)
{
    return {d, flow_repeat(d), d.rank > 1 ? d.stride[d.rank - 2] : 0, flow_period(d)};
}

#endif
