/* Products with an epilogue of our own: D = epilogue(A B), bf16 operands, f32 accumulation, blocks of 128 x 128 in
 * eight warps of 64 x 32, operands through a three-stage ring of asynchronous copies.
 *
 * A [m, k] with k contiguous, or [k, m] (A_MAJOR_M); B [n, k] with k contiguous, or [k, n] (B_MAJOR_N). Shared tiles
 * hold rows of 64 (k contiguous) or 128 elements; the 16-byte chunk c of row r lies at chunk c ^ (r & 7), which keeps
 * both the copies and ldmatrix free of bank conflicts. */
#ifndef FOLDSCALE_KERNELS_CUDA_TILE_CUH
#define FOLDSCALE_KERNELS_CUDA_TILE_CUH

#include "kernels/cuda/mma.cuh"

enum { TILE = 128, TILE_K = 64, TILE_STAGES = 3, TILE_THREADS = 256, TILE_PITCH = TILE + 8 /* bf16 staging rows */ };
enum { TILE_SEGMENTS = 6 };
enum { TILE_STAGE_BYTES = 2 * TILE * TILE_K * 2, TILE_SHARED_BYTES = TILE_STAGES * TILE_STAGE_BYTES };

struct TileProblem {
    const bf16 *a, *b;
    int m, n, k;
    int64_t lda, ldb;
    int inner_batch; /* grid z = outer * inner_batch + inner */
    int64_t a_outer, a_inner, b_outer, b_inner;
    int tiles_n;
    /* k cut over several A matrices of `segment` columns each (a multiple of TILE_K); 0: one matrix */
    int segment;
    const bf16 *a_list[TILE_SEGMENTS];
};

/* Loads a tile: MAJOR_K: rows are m (or n), 8 chunks of k; otherwise rows are k, 16 chunks of m (or n). */
template <bool MAJOR_K>
__device__ __forceinline__ void tile_load(uint32_t shared, const bf16 *p, int64_t ld, int start, int extent, int k0,
                                          int k)
{
#pragma unroll
    for (int it = 0; it < TILE * TILE_K / 8 / TILE_THREADS; it++) {
        int id = it * TILE_THREADS + threadIdx.x;
        constexpr int CHUNKS = MAJOR_K ? TILE_K / 8 : TILE / 8;
        int row = id / CHUNKS, chunk = id % CHUNKS;
        uint32_t target = shared + (uint32_t)(row * CHUNKS + (chunk ^ (row & 7))) * 16;
        int along = start + (MAJOR_K ? row : chunk * 8), depth = k0 + (MAJOR_K ? chunk * 8 : row);
        bool live = along < extent && depth < k;
        const bf16 *source = MAJOR_K ? p + along * ld + depth : p + depth * ld + along;
        copy16_async(target, live ? source : p, live);
    }
}

/* Loads the operands of a step into its stage of the ring. */
template <bool A_MAJOR_K, bool B_MAJOR_K>
__device__ __forceinline__ void tile_load_stage(const TileProblem &p, const bf16 *a, const bf16 *b, uint32_t ring,
                                                int m0, int n0, int step)
{
    uint32_t shared = ring + (uint32_t)(step % TILE_STAGES) * TILE_STAGE_BYTES;
    int k0 = step * TILE_K, part = p.segment ? k0 / p.segment : 0, from = part * p.segment;
    const bf16 *source = p.segment ? p.a_list[part] : a;
    tile_load<A_MAJOR_K>(shared, source, p.lda, m0, p.m, k0 - from, p.segment ? p.segment : p.k);
    tile_load<B_MAJOR_K>(shared + TILE_STAGE_BYTES / 2, b, p.ldb, n0, p.n, k0, p.k);
}

/* Four 8 x 8 matrices in the order of an A fragment [16 x 16] at (row0, k0). */
template <bool MAJOR_K>
__device__ __forceinline__ void tile_fragment_a(uint32_t (&r)[4], uint32_t shared, int row0, int k0)
{
    int lane = threadIdx.x % WARP;
    if (MAJOR_K) {
        int row = row0 + (lane & 15), chunk = k0 / 8 + (lane >> 4);
        ldmatrix4(r, shared + (uint32_t)(row * 8 + (chunk ^ (row & 7))) * 16);
    } else {
        int row = k0 + (lane & 7) + ((lane >> 4) << 3), chunk = row0 / 8 + ((lane >> 3) & 1);
        ldmatrix4_trans(r, shared + (uint32_t)(row * 16 + (chunk ^ (row & 7))) * 16);
    }
}

/* Two B fragments [16 x 8] side by side at (k0, column0): r0 r1 and r2 r3. */
template <bool MAJOR_K>
__device__ __forceinline__ void tile_fragment_b(uint32_t (&r)[4], uint32_t shared, int column0, int k0)
{
    int lane = threadIdx.x % WARP;
    if (MAJOR_K) {
        int row = column0 + (lane & 7) + ((lane >> 4) << 3), chunk = k0 / 8 + ((lane >> 3) & 1);
        ldmatrix4(r, shared + (uint32_t)(row * 8 + (chunk ^ (row & 7))) * 16);
    } else {
        int row = k0 + (lane & 7) + (((lane >> 3) & 1) << 3), chunk = column0 / 8 + (lane >> 4);
        ldmatrix4_trans(r, shared + (uint32_t)(row * 16 + (chunk ^ (row & 7))) * 16);
    }
}

/* acc += A B over one shared stage */
template <bool A_MAJOR_K, bool B_MAJOR_K>
__device__ __forceinline__ void tile_multiply(float (&acc)[4][4][4], uint32_t sa, uint32_t sb, int row0, int column0)
{
#pragma unroll 2
    for (int k0 = 0; k0 < TILE_K; k0 += 16) {
        uint32_t a[4][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) tile_fragment_a<A_MAJOR_K>(a[i], sa, row0 + i * 16, k0);
#pragma unroll
        for (int j = 0; j < 2; j++) tile_fragment_b<B_MAJOR_K>(b[j], sb, column0 + j * 16, k0);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) mma16816(acc[i][j], a[i], b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
    }
}

/* Epilogue: void operator()(int z, int row, int column, uint4 v) const, stores 8 neighbouring columns (bf16), the first
 * of which is a multiple of 8 and inside the matrix. */
template <bool A_MAJOR_K, bool B_MAJOR_K, typename Epilogue>
__global__ void __launch_bounds__(TILE_THREADS, 2) tile_kernel(TileProblem p, Epilogue epilogue)
{
    stage_wait();
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared);
    int z = blockIdx.z, outer = z / p.inner_batch, inner = z - outer * p.inner_batch;
    const bf16 *a = p.a + outer * p.a_outer + inner * p.a_inner, *b = p.b + outer * p.b_outer + inner * p.b_inner;
    int m0 = (int)(blockIdx.x / p.tiles_n) * TILE, n0 = (int)(blockIdx.x % p.tiles_n) * TILE;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int row0 = warp / 4 * 64, column0 = warp % 4 * 32;
    int steps = (p.k + TILE_K - 1) / TILE_K;

    float acc[4][4][4] = {};
#pragma unroll
    for (int s = 0; s < TILE_STAGES - 1; s++) {
        if (s < steps) tile_load_stage<A_MAJOR_K, B_MAJOR_K>(p, a, b, base, m0, n0, s);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<TILE_STAGES - 2>();
        __syncthreads();
        int next = step + TILE_STAGES - 1;
        if (next < steps) tile_load_stage<A_MAJOR_K, B_MAJOR_K>(p, a, b, base, m0, n0, next);
        copy_commit();
        uint32_t at = base + (step % TILE_STAGES) * TILE_STAGE_BYTES;
        tile_multiply<A_MAJOR_K, B_MAJOR_K>(acc, at, at + TILE_STAGE_BYTES / 2, row0, column0);
    }

    /* results through shared memory, so that the epilogue sees runs of a row */
    copy_wait<0>();
    __syncthreads();
    bf16 *stage = reinterpret_cast<bf16 *>(shared);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = row0 + i * 16 + lane / 4, column = column0 + j * 8 + lane % 4 * 2;
            *reinterpret_cast<uint32_t *>(stage + row * TILE_PITCH + column) = pack_bf16(acc[i][j][0], acc[i][j][1]);
            *reinterpret_cast<uint32_t *>(stage + (row + 8) * TILE_PITCH + column) =
                pack_bf16(acc[i][j][2], acc[i][j][3]);
        }
    __syncthreads();
#pragma unroll 2
    for (int id = threadIdx.x; id < TILE * TILE / 8; id += TILE_THREADS) {
        int row = id / (TILE / 8), column = id % (TILE / 8) * 8;
        if (m0 + row >= p.m || n0 + column >= p.n) continue;
        epilogue(z, m0 + row, n0 + column, *reinterpret_cast<const uint4 *>(stage + row * TILE_PITCH + column));
    }
}

/* What the copies of 16 bytes need. */
static inline bool tile_fits(const TileProblem &p, bool a_major_k, bool b_major_k)
{
    int64_t strides = p.lda | p.ldb | p.a_outer | p.a_inner | p.b_outer | p.b_inner | p.n;
    for (int k = 0; p.segment && k < p.k / p.segment; k++)
        if (!aligned16(p.a_list[k])) return false;
    if (p.segment && (p.segment % TILE_K != 0 || p.k % p.segment != 0 || p.k / p.segment > TILE_SEGMENTS)) return false;
    return strides % 8 == 0 && (a_major_k ? p.k : p.m) % 8 == 0 && (b_major_k ? p.k : p.n) % 8 == 0 && aligned16(p.a) &&
           aligned16(p.b);
}

template <bool A_MAJOR_K, bool B_MAJOR_K, typename Epilogue>
static Status tile_launch(TileProblem p, int64_t batch, const Epilogue &epilogue, cudaStream_t stream)
{
    if (!tile_fits(p, A_MAJOR_K, B_MAJOR_K) || batch > 65535)
        return status_fail(ERR_INTERNAL, "a tiled product [%d, %d] x %d that cannot be read in vectors", p.m, p.n, p.k);
    if (p.m == 0 || p.n == 0 || batch == 0) return OK;
    p.tiles_n = (p.n + TILE - 1) / TILE;
    if (p.inner_batch < 1) p.inner_batch = 1;
    dim3 grid((unsigned)(p.tiles_n * ((p.m + TILE - 1) / TILE)), 1, (unsigned)batch);
    CUDA_TRY(cudaFuncSetAttribute(tile_kernel<A_MAJOR_K, B_MAJOR_K, Epilogue>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, TILE_SHARED_BYTES));
    launch(tile_kernel<A_MAJOR_K, B_MAJOR_K, Epilogue>, grid, TILE_THREADS, TILE_SHARED_BYTES, stream, p, epilogue);
    return cuda_launched("tile_kernel");
}

#endif
