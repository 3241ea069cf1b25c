/* Gradients of linear layers that share their input: dW_k = dy_k^T x and db_k = sum of dy_k over rows, in one pass over
 * dy and x. Rows are cut into runs; a block keeps one tile of one dW in registers over its run (f32 accumulation), the
 * column sums come from the same fragments times a fragment of ones; a second kernel adds the runs in order. */
#ifndef FOLDSCALE_KERNELS_CUDA_WEIGHTS_CUH
#define FOLDSCALE_KERNELS_CUDA_WEIGHTS_CUH

#include "kernels/cuda/mma.cuh"

enum {
    WEIGHTS_MEMBERS = 6,
    WEIGHTS_DEPTH = 64,
    WEIGHTS_STAGES = 3,
    WEIGHTS_THREADS = 128,
    WEIGHTS_BLOCKS = 264,
    WEIGHTS_JOINED = 16
};

struct WeightsProblem {
    int members, rows, in;
    int out[WEIGHTS_MEMBERS];
    const bf16 *dy[WEIGHTS_MEMBERS], *x;
    float *dw[WEIGHTS_MEMBERS], *db[WEIGHTS_MEMBERS]; /* db: NULL where not wanted */
    int runs, run;                                    /* of `run` rows each, a multiple of WEIGHTS_DEPTH */
    int first_tile[WEIGHTS_MEMBERS + 1], tiles_in;
    int64_t first_dw[WEIGHTS_MEMBERS + 1]; /* elements before a member in a run of the partial sums */
    int first_db[WEIGHTS_MEMBERS + 1];
    float *partial, *partial_db;
};

/* Rows [row0, row0 + WEIGHTS_DEPTH) and `WIDTH` columns from `column0` on; chunk c of row r lies at c ^ (r & 7). */
template <int WIDTH>
__device__ __forceinline__ void weights_load(uint32_t shared, const bf16 *p, int columns, int column0, int row0,
                                             int end)
{
    constexpr int CHUNKS = WIDTH / 8;
#pragma unroll
    for (int it = 0; it < WEIGHTS_DEPTH * CHUNKS / WEIGHTS_THREADS; it++) {
        int id = it * WEIGHTS_THREADS + threadIdx.x, row = id / CHUNKS, chunk = id % CHUNKS;
        int column = column0 + chunk * 8;
        bool live = row0 + row < end && column < columns;
        const bf16 *source = p + (int64_t)(row0 + row) * columns + column;
        copy16_async(shared + (uint32_t)(row * CHUNKS + (chunk ^ (row & 7))) * 16, live ? source : p, live);
    }
}

/* The same for widths that are no multiple of 8, in pieces of 4 or of single elements; only chunks with live columns:
 * the others are cleared once. */
template <int WIDTH>
__device__ __forceinline__ void weights_load_odd(char *shared, const bf16 *p, int columns, int column0, int row0,
                                                 int end)
{
    constexpr int CHUNKS = WIDTH / 8;
    int live_columns = min(columns - column0, WIDTH);
    if (columns % 4 == 0) {
        int pieces = live_columns / 4;
        for (int id = threadIdx.x; id < WEIGHTS_DEPTH * pieces; id += WEIGHTS_THREADS) {
            int row = id / pieces, piece = id - row * pieces, chunk = piece / 2;
            bool live = row0 + row < end;
            const bf16 *source = p + (int64_t)(row0 + row) * columns + column0 + piece * 4;
            uint32_t target = shared_address(shared) + (row * CHUNKS + (chunk ^ (row & 7))) * 16 + piece % 2 * 8;
            int bytes = live ? 8 : 0;
            asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(target), "l"(live ? source : p),
                         "r"(bytes)
                         : "memory");
        }
        return;
    }
    for (int id = threadIdx.x; id < WEIGHTS_DEPTH * live_columns; id += WEIGHTS_THREADS) {
        int row = id / live_columns, column = id - row * live_columns, chunk = column / 8;
        bf16 value = row0 + row < end ? p[(int64_t)(row0 + row) * columns + column0 + column] : from_float<bf16>(0.0f);
        reinterpret_cast<bf16 *>(shared + (row * CHUNKS + (chunk ^ (row & 7))) * 16)[column % 8] = value;
    }
}

template <int BM, int BN>
__device__ __forceinline__ void weights_multiply(float (&acc)[BM / 32][BN / 16][4], float (&sums)[BM / 32][4],
                                                 uint32_t sa, uint32_t sb, int m0, int n0, bool want_sums)
{
    const uint32_t ones = 0x3f803f80u; /* two bf16 ones */
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int k0 = 0; k0 < WEIGHTS_DEPTH; k0 += 16) {
        uint32_t a[BM / 32][4], b[BN / 32][4];
        int row_a = k0 + (lane & 7) + ((lane >> 4) << 3), row_b = k0 + (lane & 7) + (((lane >> 3) & 1) << 3);
#pragma unroll
        for (int i = 0; i < BM / 32; i++) {
            int chunk = (m0 + i * 16) / 8 + ((lane >> 3) & 1);
            ldmatrix4_trans(a[i], sa + (uint32_t)(row_a * (BM / 8) + (chunk ^ (row_a & 7))) * 16);
        }
#pragma unroll
        for (int j = 0; j < BN / 32; j++) {
            int chunk = (n0 + j * 16) / 8 + (lane >> 4);
            ldmatrix4_trans(b[j], sb + (uint32_t)(row_b * (BN / 8) + (chunk ^ (row_b & 7))) * 16);
        }
#pragma unroll
        for (int i = 0; i < BM / 32; i++)
#pragma unroll
            for (int j = 0; j < BN / 16; j++)
                mma16816(acc[i][j], a[i], b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
        if (want_sums) {
#pragma unroll
            for (int i = 0; i < BM / 32; i++) mma16816(sums[i], a[i], ones, ones);
        }
    }
}

/* grid (tiles of all members, runs) */
template <int BM, int BN> __global__ void __launch_bounds__(WEIGHTS_THREADS, 2) weights_kernel(WeightsProblem p)
{
    stage_wait();
    extern __shared__ __align__(1024) char shared[];
    constexpr int STAGE_A = BM * WEIGHTS_DEPTH * 2, STAGE = STAGE_A + BN * WEIGHTS_DEPTH * 2;
    stage_release();
    uint32_t base = shared_address(shared);
    int member = 0;
    while ((int)blockIdx.x >= p.first_tile[member + 1]) member++;
    int tile = blockIdx.x - p.first_tile[member], out = p.out[member];
    int row_out = tile / p.tiles_in * BM, column_in = tile % p.tiles_in * BN;
    int from = blockIdx.y * p.run, end = min(from + p.run, p.rows);
    int steps = (end - from + WEIGHTS_DEPTH - 1) / WEIGHTS_DEPTH;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, m0 = warp / 2 * (BM / 2), n0 = warp % 2 * (BN / 2);
    const bf16 *dy = p.dy[member];
    bool even = out % 8 == 0, want_sums = p.db[member] && n0 == 0 && column_in == 0;

    auto load = [&](int step) {
        uint32_t at = (uint32_t)(step % WEIGHTS_STAGES) * STAGE;
        int row = from + step * WEIGHTS_DEPTH;
        if (even)
            weights_load<BM>(base + at, dy, out, row_out, row, end);
        else
            weights_load_odd<BM>(shared + at, dy, out, row_out, row, end);
        weights_load<BN>(base + at + STAGE_A, p.x, p.in, column_in, row, end);
    };
    if (!even) {
        for (int id = threadIdx.x; id < WEIGHTS_STAGES * STAGE / 16; id += WEIGHTS_THREADS)
            reinterpret_cast<uint4 *>(shared)[id] = make_uint4(0, 0, 0, 0);
        __syncthreads();
    }
    float acc[BM / 32][BN / 16][4] = {}, sums[BM / 32][4] = {};
#pragma unroll
    for (int s = 0; s < WEIGHTS_STAGES - 1; s++) {
        if (s < steps) load(s);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<WEIGHTS_STAGES - 2>();
        __syncthreads();
        if (step + WEIGHTS_STAGES - 1 < steps) load(step + WEIGHTS_STAGES - 1);
        copy_commit();
        uint32_t at = base + (uint32_t)(step % WEIGHTS_STAGES) * STAGE;
        weights_multiply<BM, BN>(acc, sums, at, at + STAGE_A, m0, n0, want_sums);
    }
    copy_wait<0>();

    float *dw = p.partial + (int64_t)blockIdx.y * p.first_dw[p.members] + p.first_dw[member];
    float *db = p.partial_db + (int64_t)blockIdx.y * p.first_db[p.members] + p.first_db[member];
#pragma unroll
    for (int i = 0; i < BM / 32; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = row_out + m0 + i * 16 + half * 8 + lane / 4;
            if (row >= out) continue;
            if (want_sums && lane % 4 == 0) db[row] = sums[i][half * 2];
#pragma unroll
            for (int j = 0; j < BN / 16; j++) {
                int column = column_in + n0 + j * 8 + lane % 4 * 2;
                if (column >= p.in) continue;
                *reinterpret_cast<float2 *>(dw + (int64_t)row * p.in + column) =
                    make_float2(acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
            }
        }
}

/* Problems whose runs are added in one launch. */
struct WeightsJoin {
    WeightsProblem p[WEIGHTS_JOINED];
    int first_block[WEIGHTS_JOINED + 1], problems;
};

/* Adds the runs: vectors of 4 elements x LANES lanes of runs, joined in lane order; then a warp per column of db. */
template <int LANES>
__global__ void __launch_bounds__(256) weights_join_kernel(const __grid_constant__ WeightsJoin join)
{
    constexpr int VECTORS = 256 / LANES;
    __shared__ float4 shared[LANES][VECTORS];
    stage_wait();
    int problem = 0;
    while ((int)blockIdx.x >= join.first_block[problem + 1]) problem++;
    const WeightsProblem &p = join.p[problem];
    int block = (int)blockIdx.x - join.first_block[problem];
    int vector = threadIdx.x % VECTORS, lane = threadIdx.x / VECTORS;
    int64_t width = p.first_dw[p.members], at = ((int64_t)block * VECTORS + vector) * 4;
    float4 sum = make_float4(0, 0, 0, 0);
    if (at < width) {
#pragma unroll 8
        for (int r = lane; r < p.runs; r += LANES) {
            float4 v = *reinterpret_cast<const float4 *>(p.partial + r * width + at);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
    }
    if (LANES > 1) {
        shared[lane][vector] = sum;
        __syncthreads();
    }
    if (lane == 0 && at < width) {
        for (int k = 1; k < LANES; k++) {
            float4 v = shared[k][vector];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        int member = 0;
        while (at >= p.first_dw[member + 1]) member++;
        *reinterpret_cast<float4 *>(p.dw[member] + at - p.first_dw[member]) = sum;
    }
    int columns = p.first_db[p.members], column = block * 8 + threadIdx.x / WARP;
    if (column >= columns) return;
    int member = 0;
    while (column >= p.first_db[member + 1]) member++;
    if (!p.db[member]) return;
    float total = 0;
    for (int r = threadIdx.x % WARP; r < p.runs; r += WARP) total += p.partial_db[(int64_t)r * columns + column];
    total = lanes_sum<WARP>(total);
    if (threadIdx.x % WARP == 0) p.db[member][column - p.first_db[member]] = total;
}

/* Tiles, runs and the places of the partial sums; scratch may be NULL. Returns the bytes of scratch. */
static inline size_t weights_plan(WeightsProblem *p, int tile_m, int tile_n, void *scratch)
{
    p->tiles_in = (p->in + tile_n - 1) / tile_n;
    for (int k = 0; k < p->members; k++) {
        p->first_tile[k + 1] = p->first_tile[k] + (p->out[k] + tile_m - 1) / tile_m * p->tiles_in;
        p->first_dw[k + 1] = p->first_dw[k] + (int64_t)p->out[k] * p->in;
        p->first_db[k + 1] = p->first_db[k] + p->out[k];
    }
    int tiles = p->first_tile[p->members], blocks = tiles >= 4 ? WEIGHTS_BLOCKS : WEIGHTS_BLOCKS / 2;
    int runs = blocks / tiles > 0 ? blocks / tiles : 1, most = (p->rows + WEIGHTS_DEPTH - 1) / WEIGHTS_DEPTH;
    if (runs > most) runs = most;
    int run = (p->rows + runs - 1) / runs;
    p->run = (run + WEIGHTS_DEPTH - 1) / WEIGHTS_DEPTH * WEIGHTS_DEPTH;
    p->runs = (p->rows + p->run - 1) / p->run;
    size_t sums_at = align_up((size_t)p->runs * (size_t)p->first_dw[p->members] * sizeof(float));
    p->partial = (float *)scratch;
    p->partial_db = (float *)((char *)scratch + sums_at);
    return sums_at + align_up((size_t)p->runs * (size_t)p->first_db[p->members] * sizeof(float));
}

template <int LANES> static Status weights_join_lanes(WeightsJoin &join, cudaStream_t stream)
{
    for (int k = 0; k < join.problems; k++) {
        const WeightsProblem &p = join.p[k];
        unsigned blocks = blocks_for(p.first_dw[p.members], 256 / LANES * 4),
                 columns = blocks_for(p.first_db[p.members], 8);
        join.first_block[k + 1] = join.first_block[k] + (int)(columns > blocks ? columns : blocks);
    }
    launch(weights_join_kernel<LANES>, (unsigned)join.first_block[join.problems], 256, 0, stream, join);
    return cuda_launched("weights_join_kernel");
}

static Status weights_join(WeightsJoin &join, cudaStream_t stream)
{
    int runs = 0;
    for (int k = 0; k < join.problems; k++) runs = join.p[k].runs > runs ? join.p[k].runs : runs;
    if (runs <= 8) return weights_join_lanes<1>(join, stream);
    return runs <= 32 ? weights_join_lanes<2>(join, stream) : weights_join_lanes<8>(join, stream);
}

template <int BM, int BN> static Status weights_run(WeightsProblem *p, void *scratch, cudaStream_t stream)
{
    constexpr int BYTES = WEIGHTS_STAGES * (BM + BN) * WEIGHTS_DEPTH * 2;
    weights_plan(p, BM, BN, scratch);
    CUDA_TRY(cudaFuncSetAttribute(weights_kernel<BM, BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    dim3 grid((unsigned)p->first_tile[p->members], (unsigned)p->runs);
    launch(weights_kernel<BM, BN>, grid, WEIGHTS_THREADS, BYTES, stream, *p);
    TRY(cuda_launched("weights_kernel"));
    WeightsJoin join = {};
    join.p[join.problems++] = *p;
    return weights_join(join, stream);
}

static inline int weights_tile_m(const WeightsProblem &p)
{
    int widest = 0;
    for (int k = 0; k < p.members; k++) widest = p.out[k] > widest ? p.out[k] : widest;
    return widest <= 64 ? 64 : 128;
}
static inline int weights_tile_n(const WeightsProblem &p)
{
    return p.in <= 64 ? 64 : 128;
}

static inline size_t weights_scratch(WeightsProblem p)
{
    return weights_plan(&p, weights_tile_m(p), weights_tile_n(p), NULL);
}

static Status weights_launch(WeightsProblem p, void *scratch, cudaStream_t stream)
{
    bool narrow_m = weights_tile_m(p) == 64, narrow_n = weights_tile_n(p) == 64;
    if (narrow_m)
        return narrow_n ? weights_run<64, 64>(&p, scratch, stream) : weights_run<64, 128>(&p, scratch, stream);
    return narrow_n ? weights_run<128, 64>(&p, scratch, stream) : weights_run<128, 128>(&p, scratch, stream);
}

#endif
