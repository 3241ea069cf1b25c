/* Two chained products on Hopper's warpgroup instructions, the inner result in registers only:
 *   r_p[i, n] = sum_l sum_d (sum_k x_l[i, k] y_p[d, k]) v_l[n, d],   k and n of 128, d of 32.
 * The outer product mean with p = j, l = c, k = s, n = output channel; the inner result, rounded to bf16, is the outer
 * product o[i, j, c, d]. A block takes 64 rows i and four p (two per warpgroup); x_l and v_l of two l at a time stream
 * through a ring of shared memory. Operands are packed beforehand in the order of shared memory (128-byte rows, the
 * 16-byte chunk c of row r at c ^ (r & 7)), so that a stage is two bulk copies. */
#ifndef FOLDSCALE_KERNELS_CUDA_CHAIN_CUH
#define FOLDSCALE_KERNELS_CUDA_CHAIN_CUH

#include "kernels/cuda/hopper.cuh"

enum { CHAIN_ROWS = 64, CHAIN_K = 128, CHAIN_D = 32, CHAIN_N = 128, CHAIN_P = 4, CHAIN_STAGES = 3 };
enum { CHAIN_GROUPS = 2, CHAIN_THREADS = CHAIN_GROUPS * 128 + 128 };
enum {
    CHAIN_X_BYTES = 2 * CHAIN_ROWS * CHAIN_K * 2, /* of two l */
    CHAIN_V_BYTES = CHAIN_N * 2 * CHAIN_D * 2,
    CHAIN_Y_BYTES = 2 * CHAIN_D * CHAIN_K * 2, /* of two p */
    CHAIN_STAGE_BYTES = CHAIN_X_BYTES + CHAIN_V_BYTES,
    CHAIN_SHARED_BYTES = CHAIN_STAGES * CHAIN_STAGE_BYTES + CHAIN_GROUPS * CHAIN_Y_BYTES + 1024
};

struct ChainProblem {
    const bf16 *x, *y, *v; /* packed: [i / 64][l / 2], [p / 2], [l / 2] */
    int rows, pairs_l, count_p;
};

/* --- packing: tiles of `rows` x 64 elements (rows of 128 bytes) */
struct ChainPack {
    const bf16 *from;
    bf16 *to;
    int tiles, rows;
    int minor; /* tile = major * minor + ... */
    int64_t major_step, minor_step;
    int row_group, k_group; /* row = (high, low) of a group; k likewise */
    int64_t row_high, row_low, k_high, k_low;
    int halves;       /* tiles per step: k runs over 64 * halves */
    bool minor_first; /* neighbouring threads: minor indices (else rows) */
};

enum { CHAIN_PACKS = 3 };
/* Several in one launch; first: the block at which each begins. */
struct ChainPacks {
    ChainPack pack[CHAIN_PACKS];
    unsigned first[CHAIN_PACKS + 1];
};

/* A thread per chunk of 8 elements. */
static __global__ void __launch_bounds__(256) chain_pack_kernel(ChainPacks packs)
{
    stage_wait();
    int which = 0;
    while (which + 1 < CHAIN_PACKS && blockIdx.x >= packs.first[which + 1]) which++;
    const ChainPack &p = packs.pack[which];
    int64_t e = (int64_t)(blockIdx.x - packs.first[which]) * blockDim.x + threadIdx.x;
    int64_t chunks = (int64_t)p.tiles * p.halves * p.rows * 8;
    if (e >= chunks) return;
    int row, chunk, minor, half;
    int64_t major;
    if (p.minor_first) {
        minor = (int)(e % p.minor), e /= p.minor;
        row = (int)(e % p.rows), e /= p.rows;
        chunk = (int)(e % 8), e /= 8;
        half = (int)(e % p.halves), major = e / p.halves;
    } else {
        row = (int)(e % p.rows), e /= p.rows;
        chunk = (int)(e % 8), e /= 8;
        half = (int)(e % p.halves), e /= p.halves;
        minor = (int)(e % p.minor), major = e / p.minor;
    }
    int k = half * 64 + chunk * 8;
    const bf16 *from = p.from + major * p.major_step + minor * p.minor_step + row / p.row_group * p.row_high +
                       row % p.row_group * p.row_low + k / p.k_group * p.k_high + k % p.k_group * p.k_low;
    Pack<bf16> v;
#pragma unroll
    for (int j = 0; j < 8; j++) v.v[j] = from[j * p.k_low];
    int64_t tile = (major * p.minor + minor) * p.halves + half;
    store_pack(p.to + (tile * p.rows + row) * 64 + (chunk ^ (row & 7)) * 8, v);
}

static Status chain_pack_launch(ChainPacks &packs, cudaStream_t stream)
{
    for (int k = 0; k < CHAIN_PACKS; k++) {
        const ChainPack &p = packs.pack[k];
        packs.first[k + 1] = packs.first[k] + blocks_for((int64_t)p.tiles * p.halves * p.rows * 8, 256);
    }
    launch(chain_pack_kernel, packs.first[CHAIN_PACKS], 256, 0, stream, packs);
    return cuda_launched("chain_pack_kernel");
}

/* t = x_l y^T for the two p of a warpgroup */
__device__ __forceinline__ void chain_first(float (&t)[32], uint32_t x, uint32_t y)
{
#pragma unroll
    for (int k = 0; k < CHAIN_K / 16; k++) {
        uint32_t x_at = x + k / 4 * (CHAIN_ROWS * 128) + k % 4 * 32,
                 y_at = y + k / 4 * (2 * CHAIN_D * 128) + k % 4 * 32;
        wgmma_step<64>(t, wgmma_descriptor(x_at), wgmma_descriptor(y_at), k > 0);
    }
}

/* r_p += t_p v^T; v: columns of this l */
__device__ __forceinline__ void chain_second(float (&r0)[64], float (&r1)[64], const uint32_t (&a)[16], uint32_t v)
{
    RegisterProduct<CHAIN_N>::step(r0, a, wgmma_descriptor(v));
    RegisterProduct<CHAIN_N>::step(r0, a + 4, wgmma_descriptor(v + 32));
    RegisterProduct<CHAIN_N>::step(r1, a + 8, wgmma_descriptor(v));
    RegisterProduct<CHAIN_N>::step(r1, a + 12, wgmma_descriptor(v + 32));
}

/* accumulators [64 x 64] -> four A fragments of 16 columns */
__device__ __forceinline__ void chain_lower(uint32_t (&a)[16], const float (&t)[32])
{
#pragma unroll
    for (int k = 0; k < 16; k++) a[k] = pack_bf16(t[2 * k], t[2 * k + 1]);
}

__device__ __forceinline__ void chain_produce(const ChainProblem &p, uint32_t ring, uint32_t full, uint32_t empty)
{
    const char *x = (const char *)p.x + (int64_t)blockIdx.x * p.pairs_l * CHAIN_X_BYTES, *v = (const char *)p.v;
    for (int step = 0; step < p.pairs_l; step++) {
        int stage = step % CHAIN_STAGES, round = step / CHAIN_STAGES;
        uint32_t at = ring + (uint32_t)stage * CHAIN_STAGE_BYTES, barrier = full + stage * 8;
        if (round > 0) barrier_wait(empty + stage * 8, (round - 1) & 1);
        barrier_expect(barrier, CHAIN_STAGE_BYTES);
        bulk_load(at, x + (int64_t)step * CHAIN_X_BYTES, CHAIN_X_BYTES, barrier);
        bulk_load(at + CHAIN_X_BYTES, v + (int64_t)step * CHAIN_V_BYTES, CHAIN_V_BYTES, barrier);
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
 * columns n, n + 1; for columns n .. n + 7 uint4 before(i, p, n), what is read of them, all of it before the first void
 * store(i, p, n, uint4, before). */
template <typename Epilogue>
__device__ __forceinline__ void chain_store(const Epilogue &epilogue, const float (&r)[64], int row, int p)
{
    int t = threadIdx.x % 4;
    uint4 before[2][CHAIN_N / 32];
#pragma unroll
    for (int k = 0; k < 2 * (CHAIN_N / 32); k++)
        before[k % 2][k / 2] = epilogue.before(row + k % 2 * 8, p, (k / 2 * 4 + t) * 8);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float scale = epilogue.scale(row + 8 * half, p);
#pragma unroll
        for (int j = 0; j < CHAIN_N / 8; j += 4) {
            uint32_t w[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int at = 4 * (j + k) + 2 * half;
                w[k] = epilogue.lower(scale, (j + k) * 8 + t * 2, r[at], r[at + 1]);
            }
            chain_exchange(w);
            epilogue.store(row + 8 * half, p, (j + t) * 8, make_uint4(w[0], w[1], w[2], w[3]), before[half][j / 4]);
        }
    }
}

/* Two p of a warpgroup. */
template <typename Epilogue>
__device__ __forceinline__ void chain_consume(const ChainProblem &p, const Epilogue &epilogue, uint32_t ring,
                                              uint32_t y, uint32_t full, uint32_t empty, uint32_t ready)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = threadIdx.x / 128;
    float r0[64], r1[64], t[32];
    uint32_t a[16];
#pragma unroll
    for (int k = 0; k < 64; k++) r0[k] = r1[k] = t[k / 2] = 0;
    y += (uint32_t)group * CHAIN_Y_BYTES;
    barrier_wait(ready, 0);
    barrier_wait(full, 0);
    wgmma_fence();
    chain_first(t, ring, y);
    wgmma_commit();
    for (int step = 0; step < p.pairs_l; step++) {
        uint32_t at = ring + (uint32_t)(step % CHAIN_STAGES) * CHAIN_STAGE_BYTES, v = at + CHAIN_X_BYTES;
        wgmma_wait<0>();
        if (step > 0 && lane == 0) barrier_arrive(empty + (step - 1) % CHAIN_STAGES * 8);
        chain_lower(a, t);
        wgmma_fence();
        chain_second(r0, r1, a, v);
        chain_first(t, at + CHAIN_X_BYTES / 2, y);
        wgmma_commit();
        wgmma_wait<0>();
        chain_lower(a, t);
        int next = step + 1 < p.pairs_l ? step + 1 : step; /* the last product of all is not used */
        barrier_wait(full + next % CHAIN_STAGES * 8, next / CHAIN_STAGES & 1);
        wgmma_fence();
        chain_second(r0, r1, a, v + 64);
        chain_first(t, ring + (uint32_t)(next % CHAIN_STAGES) * CHAIN_STAGE_BYTES, y);
        wgmma_commit();
    }
    wgmma_wait<0>();
    int row = blockIdx.x * CHAIN_ROWS + warp % 4 * 16 + lane / 4, member = blockIdx.y * CHAIN_P + group * 2;
    chain_store(epilogue, r0, row, member);
    chain_store(epilogue, r1, row, member + 1);
}

/* grid (rows / 64, p / 4) */
template <typename Epilogue>
__global__ void __launch_bounds__(CHAIN_THREADS, 1) chain_kernel(ChainProblem p, Epilogue epilogue)
{
    extern __shared__ char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * CHAIN_STAGES + 1];
    uint32_t ring = (shared_address(shared) + 1023) & ~1023u, y = ring + CHAIN_STAGES * CHAIN_STAGE_BYTES;
    uint32_t full = shared_address(barriers), empty = full + CHAIN_STAGES * 8, ready = empty + CHAIN_STAGES * 8;
    int group = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < CHAIN_STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, CHAIN_GROUPS * 4);
        }
        barrier_init(ready, 1);
        barrier_publish();
    }
    __syncthreads();
    stage_wait();
    /* registers of the idle warps go to the products */
    if (group == CHAIN_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == CHAIN_GROUPS * 128) {
            barrier_expect(ready, CHAIN_GROUPS * CHAIN_Y_BYTES);
            bulk_load(y, (const char *)p.y + (int64_t)blockIdx.y * CHAIN_GROUPS * CHAIN_Y_BYTES,
                      CHAIN_GROUPS * CHAIN_Y_BYTES, ready);
            chain_produce(p, ring, full, empty);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        chain_consume(p, epilogue, ring, y, full, empty, ready);
    }
}

template <typename Epilogue>
static Status chain_launch(const ChainProblem &p, const Epilogue &epilogue, cudaStream_t stream)
{
    CUDA_TRY(
        cudaFuncSetAttribute(chain_kernel<Epilogue>, cudaFuncAttributeMaxDynamicSharedMemorySize, CHAIN_SHARED_BYTES));
    dim3 grid((unsigned)(p.rows / CHAIN_ROWS), (unsigned)(p.count_p / CHAIN_P));
    launch(chain_kernel<Epilogue>, grid, CHAIN_THREADS, CHAIN_SHARED_BYTES, stream, p, epilogue);
    return cuda_launched("chain_kernel");
}

#endif
