/* Gradients of linear layers that share their input, on Hopper's asynchronous units: dW_k = dy_k^T x and db_k = sum of
 * dy_k over rows in one pass. Both operands are stored along their own axes (rows are the inner extent), which the
 * warpgroup products read as they are.
 *
 * A block owns a tile of the joined dW (all members' panels of 64 outputs, one below the other) and a run of rows: one
 * thread copies 64 rows at a time into a ring, two warpgroups multiply. The blocks of a cluster are `lanes` runs of one
 * tile, which they add through each other's shared memory in the order of the runs; what remains of the runs after that
 * is added by weights_join_kernel. One member may have four outputs: rows too short for tensor copies, which two warps
 * copy through registers. */
#ifndef FOLDSCALE_KERNELS_CUDA_WEIGHTS_RING_CUH
#define FOLDSCALE_KERNELS_CUDA_WEIGHTS_RING_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/weights.cuh"

enum {
    RING_THREADS = 384,
    RING_ROWS = 64,
    RING_PANEL_BYTES = RING_ROWS * PANEL * 2,
    RING_BLOCKS = 132 /* at most: one per SM */
};
enum { RING_NARROW = 4 /* outputs of a narrow member */ };

struct RingWeights {
    CUtensorMap dy_map[WEIGHTS_MEMBERS], x_map;
    WeightsProblem p; /* of p: runs = clusters along the rows */
    int first_panel[WEIGHTS_MEMBERS + 1], tiles, tiles_n;
    int lanes, steps, run_steps;
    int narrow; /* member of four outputs, -1 = none */
    int mt, bn;
    bool any_db;
};

/* MT panels of outputs per warpgroup, BN inputs. */
template <int MT, int BN> struct RingShape {
    static constexpr int BM = 2 * MT * PANEL, PITCH = BN + 8;
    static constexpr int A_BYTES = 2 * MT * RING_PANEL_BYTES, STAGE = A_BYTES + BN / PANEL * RING_PANEL_BYTES;
    static constexpr int STAGES = STAGE > 32768 ? 4 : 6;
    static constexpr int RING = STAGES * STAGE > BM *PITCH * 4 ? STAGES *STAGE : BM *PITCH * 4;
    static constexpr int SUMS_AT = RING, ONES_AT = SUMS_AT + BM * 4, BARRIERS_AT = ONES_AT + 512;
    static constexpr int BYTES = BARRIERS_AT + 2 * STAGES * 8;
};

/* Where a block works. */
struct RingPlace {
    int tile_n, first, count; /* panels [first, first + count) */
    int from, steps;          /* in steps of RING_ROWS */
    int lane, cluster_run;
    int narrow; /* panel of the tile that belongs to the narrow member, -1 = none */
};

__device__ __forceinline__ int ring_member(const RingWeights &w, int panel)
{
    int member = 0;
    while (panel >= w.first_panel[member + 1]) member++;
    return member;
}

__device__ __forceinline__ RingPlace ring_place(const RingWeights &w, int block)
{
    RingPlace at;
    int cluster = block / w.lanes, tile = cluster % w.tiles, tile_m = tile / w.tiles_n;
    int tiles_m = w.tiles / w.tiles_n, panels = w.first_panel[w.p.members];
    at.lane = (int)cluster_rank();
    at.cluster_run = cluster / w.tiles;
    at.tile_n = tile % w.tiles_n;
    at.first = tile_m * panels / tiles_m, at.count = (tile_m + 1) * panels / tiles_m - at.first;
    at.from = (at.cluster_run * w.lanes + at.lane) * w.run_steps;
    at.steps = max(min(w.run_steps, w.steps - at.from), 0);
    at.narrow = w.narrow < 0 ? -1 : w.first_panel[w.narrow] - at.first;
    if (at.narrow < 0 || at.narrow >= at.count) at.narrow = -1;
    return at;
}

/* The copying thread. */
template <int MT, int BN>
__device__ __forceinline__ void ring_produce(const RingWeights &w, const RingPlace &at, uint32_t base)
{
    typedef RingShape<MT, BN> S;
    const CUtensorMap *map[2 * MT];
    int column[2 * MT], copied = at.count - (at.narrow >= 0 ? 1 : 0);
#pragma unroll
    for (int i = 0; i < 2 * MT; i++) {
        int panel = at.first + min(i, at.count - 1), member = ring_member(w, panel);
        map[i] = &w.dy_map[member], column[i] = (panel - w.first_panel[member]) * PANEL;
    }
    for (int s = 0; s < at.steps; s++) {
        int slot = s % S::STAGES, row = (at.from + s) * RING_ROWS;
        uint32_t full = base + S::BARRIERS_AT + slot * 8, to = base + slot * S::STAGE;
        barrier_wait(full + S::STAGES * 8, (uint32_t)(s / S::STAGES & 1) ^ 1);
        barrier_expect(full, (uint32_t)(copied + BN / PANEL) * RING_PANEL_BYTES);
#pragma unroll
        for (int i = 0; i < 2 * MT; i++)
            if (i < at.count && i != at.narrow) tensor_load(to + i * RING_PANEL_BYTES, map[i], row, column[i], full);
#pragma unroll
        for (int j = 0; j < BN / PANEL; j++)
            tensor_load(to + S::A_BYTES + j * RING_PANEL_BYTES, &w.x_map, row, at.tile_n * BN + j * PANEL, full);
    }
}

/* The narrow member's panel, a row of four elements per thread, loaded as many steps ahead as the ring is deep; the
 * panel's other elements are zero from the start. */
template <int MT, int BN>
__device__ __forceinline__ void ring_produce_narrow(const RingWeights &w, const RingPlace &at, uint32_t base, int row)
{
    typedef RingShape<MT, BN> S;
    const uint2 *dy = reinterpret_cast<const uint2 *>(w.p.dy[w.narrow]);
    uint2 ahead[S::STAGES];
    auto load = [&](int s) {
        int64_t at_row = (int64_t)(at.from + s) * RING_ROWS + row;
        return s < at.steps && at_row < w.p.rows ? __ldg(dy + at_row) : make_uint2(0, 0);
    };
#pragma unroll
    for (int s = 0; s < S::STAGES; s++) ahead[s] = load(s);
    for (int s0 = 0; s0 < at.steps; s0 += S::STAGES)
#pragma unroll
        for (int slot = 0; slot < S::STAGES; slot++) {
            int s = s0 + slot;
            if (s >= at.steps) break;
            uint32_t full = base + S::BARRIERS_AT + slot * 8;
            uint32_t to = base + slot * S::STAGE + at.narrow * RING_PANEL_BYTES + row * 128 + (row & 7) * 16;
            barrier_wait(full + S::STAGES * 8, (uint32_t)(s / S::STAGES & 1) ^ 1);
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(ahead[slot].x), "r"(ahead[slot].y)
                         : "memory");
            async_fence();
            barrier_arrive(full);
            ahead[slot] = load(s + S::STAGES);
        }
}

template <int MT, int BN, bool SUMS>
__device__ __forceinline__ void ring_multiply(const RingWeights &w, const RingPlace &at, uint32_t base, int panel0,
                                              float (&acc)[MT][BN / 2], float (&sums)[MT][4])
{
    typedef RingShape<MT, BN> S;
    uint64_t ones = constant_descriptor(base + S::ONES_AT);
    for (int s = 0; s < at.steps; s++) {
        int slot = s % S::STAGES;
        uint32_t full = base + S::BARRIERS_AT + slot * 8, stage = base + slot * S::STAGE;
        barrier_wait(full, (uint32_t)(s / S::STAGES & 1));
        uint64_t b = across_descriptor(stage + S::A_BYTES, RING_PANEL_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < RING_ROWS / 16; k++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint64_t a = across_descriptor(stage + (panel0 + m) * RING_PANEL_BYTES, RING_PANEL_BYTES);
                GroupProduct<BN, true, true>::step(acc[m], a + k * (2048 >> 4), b + k * (2048 >> 4), 1);
                if (SUMS) GroupProduct<8, true, false>::step(sums[m], a + k * (2048 >> 4), ones, 1);
            }
        wgmma_commit();
        wgmma_wait<1>();
        if (s > 0 && threadIdx.x % 128 == 0)
            barrier_arrive(base + S::BARRIERS_AT + (S::STAGES + (s - 1) % S::STAGES) * 8);
    }
    wgmma_wait<0>();
}

/* This warpgroup's part of the tile and of the column sums to shared memory. */
template <int MT, int BN>
__device__ __forceinline__ void ring_stage(char *shared, int panel0, int panels, const float (&acc)[MT][BN / 2],
                                           const float (&sums)[MT][4])
{
    typedef RingShape<MT, BN> S;
    float *tile = reinterpret_cast<float *>(shared), *total = reinterpret_cast<float *>(shared + S::SUMS_AT);
    int thread = threadIdx.x % 128, lane = thread % WARP;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        if (m >= panels) continue;
        int row = (panel0 + m) * PANEL + thread / WARP * 16 + lane / 4;
        if (lane % 4 == 0) total[row] = sums[m][0], total[row + 8] = sums[m][2];
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
            float *to = tile + row * S::PITCH + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2 *>(to) = make_float2(acc[m][j * 4], acc[m][j * 4 + 1]);
            *reinterpret_cast<float2 *>(to + 8 * S::PITCH) = make_float2(acc[m][j * 4 + 2], acc[m][j * 4 + 3]);
        }
    }
}

/* Adds the tiles of the lanes in order, each block a share of the elements, and stores them. */
template <int MT, int BN>
__device__ __forceinline__ void ring_join(const RingWeights &w, const RingPlace &at, uint32_t base)
{
    typedef RingShape<MT, BN> S;
    constexpr int TOGETHER = 4; /* vectors under way per thread: reading a neighbour's memory takes its time */
    const WeightsProblem &p = w.p;
    bool last = p.runs == 1;
    int count = at.count * PANEL * (BN / 4), step = w.lanes * RING_THREADS;
    for (int first = at.lane * RING_THREADS + threadIdx.x; first < count; first += TOGETHER * step) {
        float4 sum[TOGETHER];
#pragma unroll
        for (int t = 0; t < TOGETHER; t++) sum[t] = make_float4(0, 0, 0, 0);
        for (int q = 0; q < w.lanes; q++) {
            uint32_t tile = cluster_address(base, (uint32_t)q);
            float4 v[TOGETHER];
#pragma unroll
            for (int t = 0; t < TOGETHER; t++) {
                int id = min(first + t * step, count - 1);
                v[t] = cluster_load(tile + (uint32_t)(id / (BN / 4) * S::PITCH + id % (BN / 4) * 4) * 4);
            }
#pragma unroll
            for (int t = 0; t < TOGETHER; t++)
                sum[t].x += v[t].x, sum[t].y += v[t].y, sum[t].z += v[t].z, sum[t].w += v[t].w;
        }
#pragma unroll
        for (int t = 0; t < TOGETHER; t++) {
            int id = first + t * step, row = id / (BN / 4), column = at.tile_n * BN + id % (BN / 4) * 4;
            if (id >= count || column >= p.in) continue;
            int panel = at.first + row / PANEL, member = ring_member(w, panel);
            int row_out = (panel - w.first_panel[member]) * PANEL + row % PANEL;
            if (row_out >= p.out[member]) continue;
            float *to = last ? p.dw[member] : p.partial + at.cluster_run * p.first_dw[p.members] + p.first_dw[member];
            *reinterpret_cast<float4 *>(to + (int64_t)row_out * p.in + column) = sum[t];
        }
    }
    if (!w.any_db || at.tile_n != 0 || at.lane != 0) return;
    for (int row = threadIdx.x; row < at.count * PANEL; row += RING_THREADS) {
        float sum = 0;
        for (int q = 0; q < w.lanes; q++) {
            float v;
            uint32_t from = cluster_address(base + S::SUMS_AT + row * 4, (uint32_t)q);
            asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
            sum += v;
        }
        int panel = at.first + row / PANEL, member = ring_member(w, panel);
        int row_out = (panel - w.first_panel[member]) * PANEL + row % PANEL;
        if (row_out >= p.out[member] || !p.db[member]) continue;
        if (last)
            p.db[member][row_out] = sum;
        else
            p.partial_db[at.cluster_run * p.first_db[p.members] + p.first_db[member] + row_out] = sum;
    }
}

template <int MT, int BN> __device__ __forceinline__ void ring_block(const RingWeights &w, int block)
{
    typedef RingShape<MT, BN> S;
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    RingPlace at = ring_place(w, block);
    if ((int)threadIdx.x <= w.p.members && (int)threadIdx.x != w.narrow)
        tensor_prefetch((int)threadIdx.x < w.p.members ? &w.dy_map[threadIdx.x] : &w.x_map);
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            barrier_init(base + S::BARRIERS_AT + s * 8, at.narrow >= 0 ? 1 + RING_ROWS : 1);
            barrier_init(base + S::BARRIERS_AT + (S::STAGES + s) * 8, 2);
        }
        barrier_publish();
    }
    if (threadIdx.x < 128) reinterpret_cast<uint32_t *>(shared + S::ONES_AT)[threadIdx.x] = 0x3f803f80u;
    if (at.narrow >= 0)
        for (int id = threadIdx.x; id < S::STAGES * RING_PANEL_BYTES / 16; id += RING_THREADS)
            *reinterpret_cast<uint4 *>(shared + id / (RING_PANEL_BYTES / 16) * S::STAGE + at.narrow * RING_PANEL_BYTES +
                                       id % (RING_PANEL_BYTES / 16) * 16) = make_uint4(0, 0, 0, 0);
    async_fence();
    __syncthreads();

    int group = threadIdx.x / 128, half = (at.count + 1) / 2;
    if (group == 2) {
        int thread = threadIdx.x - 256;
        if (thread == 0) ring_produce<MT, BN>(w, at, base);
        if (at.narrow >= 0 && thread >= WARP && thread < WARP + RING_ROWS)
            ring_produce_narrow<MT, BN>(w, at, base, thread - WARP);
        __syncwarp();
    } else {
        int panel0 = group ? half : 0, panels = group ? at.count - half : half;
        float acc[MT][BN / 2], sums[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int j = 0; j < BN / 2; j++) acc[m][j] = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) sums[m][j] = 0;
        }
        if (w.any_db && at.tile_n == 0)
            ring_multiply<MT, BN, true>(w, at, base, panel0, acc, sums);
        else
            ring_multiply<MT, BN, false>(w, at, base, panel0, acc, sums);
        asm volatile("bar.sync 1, 256;" ::: "memory"); /* both are done with the ring */
        ring_stage<MT, BN>(shared, panel0, panels, acc, sums);
    }
    cluster_sync();
    ring_join<MT, BN>(w, at, base);
    cluster_meet(); /* nobody leaves while its tile is read */
}

/* Problems that share a launch: blocks [first_block[k], first_block[k + 1]) belong to problem k. */
enum { RING_BATCH = WEIGHTS_JOINED };
struct RingBatch {
    RingWeights w[RING_BATCH];
    int first_block[RING_BATCH + 1], problems;
};

__global__ void __launch_bounds__(RING_THREADS, 1) ring_weights_kernel(const __grid_constant__ RingBatch batch)
{
    int problem = 0;
    while ((int)blockIdx.x >= batch.first_block[problem + 1]) problem++;
    const RingWeights &w = batch.w[problem];
    int block = (int)blockIdx.x - batch.first_block[problem];
    stage_wait();
    stage_release();
    if (w.bn == 256)
        ring_block<1, 256>(w, block);
    else if (w.bn == 128 && w.mt == 1)
        ring_block<1, 128>(w, block);
    else if (w.bn == 128)
        ring_block<2, 128>(w, block);
    else if (w.mt == 1)
        ring_block<1, 64>(w, block);
    else
        ring_block<2, 64>(w, block);
}

/* --- host */

enum { RING_LANES = 2, RING_LEAST_STEPS = 4 /* of a run */ };

/* Panels per warpgroup and inputs per tile, as measured: accumulators of 64 or 128 registers. */
static inline void ring_tile(RingWeights *w)
{
    const WeightsProblem &p = w->p;
    int panels = w->first_panel[p.members];
    bool wide = p.in > 128 && p.rows > 16384; /* fewer rows: more and smaller tiles, whose sums are soon added */
    w->bn = p.in <= 64 ? 64 : (wide && p.in <= 256 ? 256 : 128);
    w->mt = panels > 2 && (p.in <= 64 || (wide && p.in > 256)) ? 2 : 1;
}

/* Everything but the number of runs. */
static inline RingWeights ring_shape(const WeightsProblem &problem)
{
    RingWeights w = {};
    WeightsProblem &p = w.p;
    p = problem;
    w.narrow = -1;
    for (int k = 0; k < p.members; k++) {
        if (p.out[k] == RING_NARROW) w.narrow = k;
        w.first_panel[k + 1] = w.first_panel[k] + (p.out[k] + PANEL - 1) / PANEL;
        p.first_dw[k + 1] = p.first_dw[k] + (int64_t)p.out[k] * p.in;
        p.first_db[k + 1] = p.first_db[k] + p.out[k];
        w.any_db = w.any_db || p.db[k];
    }
    ring_tile(&w);
    w.tiles_n = (p.in + w.bn - 1) / w.bn;
    w.tiles = (w.first_panel[p.members] + 2 * w.mt - 1) / (2 * w.mt) * w.tiles_n;
    w.steps = (p.rows + RING_ROWS - 1) / RING_ROWS;
    w.lanes = w.steps / RING_LEAST_STEPS >= RING_LANES ? RING_LANES : 1;
    return w;
}

/* Runs that the scratch memory has room for. */
static inline int ring_most_runs(const RingWeights &w)
{
    int runs = RING_BLOCKS / w.lanes / w.tiles, most = w.steps / RING_LEAST_STEPS / w.lanes;
    runs = runs < most ? runs : most;
    return runs > 1 ? runs : 1;
}

/* scratch may be NULL. Returns its bytes. */
static inline size_t ring_split(RingWeights *w, int runs, void *scratch)
{
    WeightsProblem &p = w->p;
    p.runs = runs;
    w->run_steps = (w->steps + runs * w->lanes - 1) / (runs * w->lanes);
    if (runs == 1) return 0;
    size_t sums_at = align_up((size_t)runs * (size_t)p.first_dw[p.members] * sizeof(float));
    p.partial = (float *)scratch;
    p.partial_db = (float *)((char *)scratch + sums_at);
    return sums_at + align_up((size_t)runs * (size_t)p.first_db[p.members] * sizeof(float));
}

static inline size_t ring_scratch(const WeightsProblem &problem)
{
    RingWeights w = ring_shape(problem);
    return ring_split(&w, ring_most_runs(w), NULL);
}

#endif
