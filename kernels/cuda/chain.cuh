/* Two chained products on Hopper's warpgroup instructions, the inner result in registers only:
 *   r_p[i, n] = sum_l sum_d (sum_k x_l[i, k] y_p[d, k]) v_l[n, d],   k and n of 128, d of 32.
 * The outer product mean with p = j, l = c, k = s, n = output channel (the inner result, rounded to bf16, is the outer
 * product o[i, j, c, d]), and the gradients of its operands. A block takes 64 rows i and four p (two per warpgroup);
 * x_l and v_l of two l at a time stream through a ring of shared memory. Two blocks of the same rows are a cluster:
 * each brings half of a stage to both, since one such stage per block is more than the L2 cache delivers. A warpgroup
 * starts the next inner product before it waits for the last one, so that its tensor cores work while it rounds. */
#ifndef FOLDSCALE_KERNELS_CUDA_CHAIN_CUH
#define FOLDSCALE_KERNELS_CUDA_CHAIN_CUH

#include "kernels/cuda/cluster.cuh"

enum { CHAIN_ROWS = 64, CHAIN_K = 128, CHAIN_D = 32, CHAIN_N = 128, CHAIN_P = 4, CHAIN_STAGES = 3 };
enum { CHAIN_GROUPS = 2, CHAIN_THREADS = CHAIN_GROUPS * 128 + 128, CHAIN_CLUSTER = 2 };
enum {
    CHAIN_X_BYTES = CHAIN_ROWS * CHAIN_K * 2,  /* of one l */
    CHAIN_V_BYTES = CHAIN_N * 2 * CHAIN_D * 2, /* of two l */
    CHAIN_Y_BYTES = CHAIN_P * CHAIN_D * CHAIN_K * 2,
    CHAIN_STAGE_BYTES = 2 * CHAIN_X_BYTES + CHAIN_V_BYTES,
    CHAIN_ROOM_BYTES = 38 * 1024, /* of the epilogue */
    CHAIN_SHARED_BYTES = CHAIN_STAGES * CHAIN_STAGE_BYTES + CHAIN_Y_BYTES + CHAIN_ROOM_BYTES + 1024
};
enum { CHAIN_IDLE = CHAIN_THREADS - CHAIN_GROUPS * 128 - WARP }; /* threads that neither multiply nor bring operands */

/* Axes of the maps: x: k, l, i; y: k, (p, d); v: (l, d), n. Sums over l may be cut into runs of `steps` pairs of l. */
struct ChainProblem {
    CUtensorMap x, y, v;
    int tiles, blocks_p, steps, cluster;
};
/* Problems of a launch: the second of two has the blocks from `first` on. */
template <typename Epilogue> struct ChainWork {
    ChainProblem problem[Epilogue::PROBLEMS];
    Epilogue epilogue[Epilogue::PROBLEMS];
    int first;
};

/* Place of a block: p fastest, so that a cluster has one row tile. Barriers of the epilogue: `kept`, by the idle
 * threads when its constants are there; `brought`, for its copies. */
struct ChainPlace {
    uint32_t ring, y, room, full, empty, ready, kept, brought;
    int row0, p0, run, steps, cluster;
};

/* t = x_l y^T for the two p of a warpgroup */
__device__ __forceinline__ void chain_first(float (&t)[32], uint32_t x, uint32_t y)
{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < CHAIN_K / 16; k++) {
        uint32_t x_at = x + k / 4 * (CHAIN_ROWS * 128) + k % 4 * 32,
                 y_at = y + k / 4 * (CHAIN_P * CHAIN_D * 128) + k % 4 * 32;
        wgmma_step<64>(t, wgmma_descriptor(x_at), wgmma_descriptor(y_at), k > 0);
    }
    wgmma_commit();
}

/* r_p += t_p v^T; v: columns of this l */
__device__ __forceinline__ void chain_second(float (&r0)[64], float (&r1)[64], const uint32_t (&a)[16], uint32_t v)
{
    wgmma_fence();
    RegisterProduct<CHAIN_N>::step(r0, a, wgmma_descriptor(v));
    RegisterProduct<CHAIN_N>::step(r0, a + 4, wgmma_descriptor(v + 32));
    RegisterProduct<CHAIN_N>::step(r1, a + 8, wgmma_descriptor(v));
    RegisterProduct<CHAIN_N>::step(r1, a + 12, wgmma_descriptor(v + 32));
    wgmma_commit();
}

/* Waits for all products but the last group; t, of an earlier one, [64 x 64] -> four A fragments of 16 columns. */
__device__ __forceinline__ void chain_lower(uint32_t (&a)[16], float (&t)[32])
{
    wgmma_wait<1>();
    wgmma_settle(t);
#pragma unroll
    for (int k = 0; k < 16; k++) a[k] = pack_bf16(t[2 * k], t[2 * k + 1]);
}

__device__ __forceinline__ uint32_t chain_slot(const ChainPlace &at, int step)
{
    return at.ring + (uint32_t)(step % CHAIN_STAGES) * CHAIN_STAGE_BYTES;
}
/* Until the slot of this step is free. That of the step behind the last is when the last but one begins: there are
 * three. */
__device__ __forceinline__ void chain_slot_wait(const ChainPlace &at, int step)
{
    static_assert(CHAIN_STAGES == 3, "what OpmEpilogue::bring() counts on");
    int round = step / CHAIN_STAGES;
    if (round > 0) barrier_wait(at.empty + step % CHAIN_STAGES * 8, (round - 1) & 1);
}

/* One thread: y, then its share of the stages. */
__device__ __forceinline__ void chain_produce(const ChainProblem &p, const ChainPlace &at)
{
    uint32_t rank = cluster_rank();
    uint16_t everyone = (uint16_t)((1 << p.cluster) - 1);
    barrier_expect(at.ready, CHAIN_Y_BYTES);
    for (int k = 0; k < CHAIN_K / 64; k++)
        tensor_load(at.y + k * CHAIN_Y_BYTES / 2, &p.y, at.p0 * CHAIN_D, k * 64, at.ready);
    for (int step = 0; step < p.steps; step++) {
        int l = 2 * (at.run * p.steps + step);
        uint32_t target = chain_slot(at, step), full = at.full + step % CHAIN_STAGES * 8;
        chain_slot_wait(at, step);
        barrier_expect(full, CHAIN_STAGE_BYTES);
        for (int q = (int)rank; q < 2; q += p.cluster) {
            uint32_t x = target + q * CHAIN_X_BYTES, v = target + 2 * CHAIN_X_BYTES + q * CHAIN_V_BYTES / 2;
            for (int k = 0; k < CHAIN_K / 64; k++)
                cube_load_multicast(x + k * CHAIN_X_BYTES / 2, &p.x, k * 64, l + q, at.row0, full, everyone);
            tensor_load_multicast(v, &p.v, q * CHAIN_N / 2, l * CHAIN_D, full, everyone);
        }
    }
}

/* Lane t of four: the words t of all four, in order of lanes. */
__device__ __forceinline__ void chain_exchange(uint32_t (&w)[4])
{
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        bool odd = threadIdx.x & bit;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int low = bit == 1 ? 2 * k : k, high = low + bit;
            uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[low] : w[high], bit);
            if (odd)
                w[low] = got;
            else
                w[high] = got;
        }
    }
}

/* Rows `row`, row + 8 of r_p, in runs of 8 columns. Epilogue: float scale(i, p); uint32_t lower(scale, n, a, b) for
 * columns n, n + 1; for columns n .. n + 7 uint4 before(i, p, n), what is read of them, all of it before the first
 * uint4 store(i, p, n, uint4, before), which gives what it stores; void finish(i, p, those of this thread, in order)
 * for rows i and i + 8. Both rows at a time, so that a thread has more to do while it waits for other lanes. */
template <typename Epilogue>
__device__ __forceinline__ void chain_store(const Epilogue &epilogue, const float (&r)[64], int row, int p)
{
    int t = threadIdx.x % 4;
    uint4 before[2][CHAIN_N / 32], stored[2][CHAIN_N / 32];
    float scale[2] = {epilogue.scale(row, p), epilogue.scale(row + 8, p)};
#pragma unroll
    for (int k = 0; k < 2 * (CHAIN_N / 32); k++)
        before[k % 2][k / 2] = epilogue.before(row + k % 2 * 8, p, (k / 2 * 4 + t) * 8);
#pragma unroll
    for (int j = 0; j < CHAIN_N / 8; j += 4) {
        uint32_t w[2][4];
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int at = 4 * (j + k) + 2 * half;
                w[half][k] = epilogue.lower(scale[half], (j + k) * 8 + t * 2, r[at], r[at + 1]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t(&v)[4] = w[half];
            chain_exchange(v);
            stored[half][j / 4] =
                epilogue.store(row + 8 * half, p, (j + t) * 8, make_uint4(v[0], v[1], v[2], v[3]), before[half][j / 4]);
        }
    }
    epilogue.finish(row, p, stored);
}

/* The sums of a run of l, f32 [run][p][i][128]. */
struct ChainSums {
    static constexpr int PROBLEMS = 2;
    float *to;
    int rows, count_p;
    __device__ __forceinline__ void keep(const ChainPlace &, int) const {}
    __device__ __forceinline__ void bring(const ChainPlace &) const {}
    __device__ __forceinline__ void wait(const ChainPlace &) const {}
    __device__ __forceinline__ void put(const float (&r)[64], const ChainPlace &place, int row, int p) const
    {
        int64_t of_p = (int64_t)place.run * count_p + place.p0 + p;
        float *at = to + (of_p * rows + place.row0 + row) * CHAIN_N + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < CHAIN_N / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *reinterpret_cast<float2 *>(at + half * 8 * CHAIN_N + j * 8) =
                    make_float2(r[4 * j + 2 * half], r[4 * j + 2 * half + 1]);
    }
};

/* Two p of a warpgroup. */
template <typename Epilogue>
__device__ __forceinline__ void chain_consume(const Epilogue &epilogue, const ChainPlace &at)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = threadIdx.x / 128;
    float r0[64], r1[64], t0[32], t1[32];
    uint32_t a[16], y = at.y + group * 2 * CHAIN_D * 128;
#pragma unroll
    for (int k = 0; k < 64; k++) r0[k] = r1[k] = t0[k / 2] = t1[k / 2] = 0;
    wgmma_settle(r0), wgmma_settle(r1), wgmma_settle(t1);
    barrier_wait(at.ready, 0);
    barrier_wait(at.full, 0);
    chain_first(t0, at.ring, y);
    int step = 0;
    do {
        int next = step + 1;
        uint32_t x = chain_slot(at, step), v = x + 2 * CHAIN_X_BYTES;
        chain_first(t1, x + CHAIN_X_BYTES, y);
        chain_lower(a, t0);
        if (step > 0 && lane < at.cluster) barrier_arrive_at(at.empty + (step - 1) % CHAIN_STAGES * 8, lane);
        chain_second(r0, r1, a, v);
        if (next < at.steps) {
            barrier_wait(at.full + next % CHAIN_STAGES * 8, next / CHAIN_STAGES & 1);
            chain_first(t0, chain_slot(at, next), y);
        } else {
            wgmma_wait<0>();
        }
        chain_lower(a, t1);
        chain_second(r0, r1, a, v + 64);
        /* t0 too: the compiler takes only sums of one place round the loop while they are in work */
        wgmma_wait<1>();
        wgmma_settle(t0);
    } while (++step < at.steps);
    wgmma_wait<0>();
    wgmma_settle(r0), wgmma_settle(r1);
    epilogue.wait(at);
    int row = warp % 4 * 16 + lane / 4, member = group * 2;
    epilogue.put(r0, at, row, member);
    epilogue.put(r1, at, row, member + 1);
}

/* grid: runs x row tiles x p / 4. Epilogue: void keep(place, thread), the idle threads at the start; void bring(place),
 * the copying warp behind the operands; void wait(place) for both; void put(sums, place, row, p) of rows row and
 * row + 8, these and p within the block. */
template <typename Epilogue>
__global__ void __launch_bounds__(CHAIN_THREADS, 1) chain_kernel(const __grid_constant__ ChainWork<Epilogue> work)
{
    extern __shared__ char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * CHAIN_STAGES + 3];
    int second = Epilogue::PROBLEMS > 1 && (int)blockIdx.x >= work.first,
        block = (int)blockIdx.x - (second ? work.first : 0);
    const ChainProblem &p = work.problem[second];
    const Epilogue &epilogue = work.epilogue[second];
    int group = threadIdx.x / 128, tile = block / p.blocks_p;
    ChainPlace at;
    at.ring = (shared_address(shared) + 1023) & ~1023u, at.y = at.ring + CHAIN_STAGES * CHAIN_STAGE_BYTES;
    at.room = at.y + CHAIN_Y_BYTES;
    at.full = shared_address(barriers), at.empty = at.full + CHAIN_STAGES * 8, at.ready = at.empty + CHAIN_STAGES * 8;
    at.kept = at.ready + 8, at.brought = at.kept + 8;
    at.row0 = tile % p.tiles * CHAIN_ROWS, at.p0 = block % p.blocks_p * CHAIN_P, at.run = tile / p.tiles;
    at.steps = p.steps, at.cluster = p.cluster;
    if (threadIdx.x == 0) {
        for (int s = 0; s < CHAIN_STAGES; s++) {
            barrier_init(at.full + s * 8, 1);
            barrier_init(at.empty + s * 8, p.cluster * CHAIN_GROUPS * 4);
        }
        barrier_init(at.ready, 1);
        barrier_init(at.kept, CHAIN_IDLE);
        barrier_init(at.brought, 1);
        barrier_publish();
    }
    if (threadIdx.x == CHAIN_GROUPS * 128) tensor_prefetch(&p.y), tensor_prefetch(&p.x), tensor_prefetch(&p.v);
    __syncthreads();
    cluster_meet(); /* what is handed over are the barriers, which are published */
    stage_wait();
    /* registers of the idle warps go to the products */
    if (group == CHAIN_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        int idle = (int)threadIdx.x - CHAIN_GROUPS * 128 - WARP;
        if (idle >= 0) {
            epilogue.keep(at, idle);
        } else {
            if (threadIdx.x == CHAIN_GROUPS * 128) chain_produce(p, at);
            __syncwarp();
            epilogue.bring(at);
        }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        chain_consume(epilogue, at);
    }
    cluster_meet(); /* nobody leaves while another block writes here */
}

/* strides in elements of x: of l and of i */
struct ChainOperands {
    const bf16 *x, *y, *v;
    int64_t rows, l, p, x_l, x_row;
};

static inline bool chain_fits(int64_t rows, int64_t l, int64_t p)
{
    return rows % CHAIN_ROWS == 0 && l % 2 == 0 && p % CHAIN_P == 0;
}
/* Runs of l for one of two problems that share the multiprocessors. */
static inline int chain_runs(int64_t rows, int64_t l, int64_t p)
{
    enum { PROCESSORS = 132 / ChainSums::PROBLEMS, LEAST = 8 };
    int64_t blocks = rows / CHAIN_ROWS * (p / CHAIN_P), runs = 1;
    while (2 * runs * blocks <= PROCESSORS && l % (4 * runs) == 0 && l / (2 * runs) >= LEAST) runs *= 2;
    return (int)runs;
}

static inline Status chain_problem(const ChainOperands &o, int runs, ChainProblem *p)
{
    p->tiles = (int)(o.rows / CHAIN_ROWS), p->blocks_p = (int)(o.p / CHAIN_P), p->steps = (int)(o.l / 2 / runs);
    const cuuint64_t extent[3] = {CHAIN_K, (cuuint64_t)o.l, (cuuint64_t)o.rows};
    const cuuint64_t pitch[2] = {o.x_l * sizeof(bf16), o.x_row * sizeof(bf16)};
    const cuuint32_t box[3] = {TENSOR_COLUMNS, 1, CHAIN_ROWS};
    TRY(tensor_map_of(o.x, 3, extent, pitch, box, CU_TENSOR_MAP_SWIZZLE_128B, &p->x));
    TRY(tensor_map(o.y, o.p * CHAIN_D, CHAIN_K, CHAIN_P * CHAIN_D, &p->y));
    return tensor_map(o.v, CHAIN_N, o.l * CHAIN_D, CHAIN_N / 2, &p->v);
}

/* per problem; runs: of l */
template <typename Epilogue>
static Status chain_launch(const ChainOperands *o, const int *runs, const Epilogue *epilogue, cudaStream_t stream)
{
    constexpr int problems = Epilogue::PROBLEMS;
    ChainWork<Epilogue> work = {};
    int blocks = 0, cluster = CHAIN_CLUSTER;
    for (int k = 0; k < problems; k++) {
        ChainProblem *p = &work.problem[k];
        TRY(chain_problem(o[k], runs[k], p));
        work.epilogue[k] = epilogue[k];
        if (p->blocks_p % CHAIN_CLUSTER) cluster = 1;
        blocks += runs[k] * p->tiles * p->blocks_p;
        if (k == 0) work.first = blocks;
    }
    for (int k = 0; k < problems; k++) work.problem[k].cluster = cluster;
    CUDA_TRY(
        cudaFuncSetAttribute(chain_kernel<Epilogue>, cudaFuncAttributeMaxDynamicSharedMemorySize, CHAIN_SHARED_BYTES));
    launch_clusters(chain_kernel<Epilogue>, (unsigned)blocks, CHAIN_THREADS, CHAIN_SHARED_BYTES, cluster, stream, work);
    return cuda_launched("chain_kernel");
}

#endif
