/* Products of small f32 matrices, where the library's kernels leave most of the device idle: tiles of 32 x 32 in one
 * pass, several products in one launch, the inner elements of a tile divided among the blocks of a cluster where that
 * fills the device better. D = sum A_t B_t (+ C) (+ bias) (relu) (0 where y <= 0), f32 throughout, every element summed
 * in one order: each of a block's eight warps takes eight of every 64 inner elements; warps, then blocks, are added in
 * turn. */
#ifndef FOLDSCALE_KERNELS_CUDA_SMALL_CUH
#define FOLDSCALE_KERNELS_CUDA_SMALL_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/mma.cuh"

enum { SMALL_TILE = 32, SMALL_INNER = 64, SMALL_STAGES = 3, SMALL_THREADS = 256 };
enum { SMALL_WARPS = SMALL_THREADS / WARP, SMALL_JOINED = SMALL_WARPS / 2 };
enum { SMALL_ROWS = 8, SMALL_COLUMNS = 4 /* of a thread */, SMALL_RESULTS = SMALL_TILE * SMALL_TILE };
/* longest side, most multiplications, multiprocessors */
enum { SMALL_SIDE = 4096, SMALL_MULTIPLICATIONS = 1 << 28, SMALL_DEVICE = 132 };
enum { SMALL_TERMS = 8, SMALL_PRODUCTS = 6, SMALL_PARTS = 4 };

/* A term: [m, k] or, transposed, [k, m]; [k, n] or, transposed, [n, k] */
struct SmallTerm {
    const float *a, *b;
    int k;
};

struct SmallProduct {
    int m, n, terms;
    SmallTerm term[SMALL_TERMS];
    const float *c, *bias, *y; /* [m, n], [n], [m, n]; NULL = none */
    float *d, *sums;           /* sums[m] over k of A, which then is transposed; NULL = not wanted */
    bool relu;
};

struct SmallBatch {
    int count;
    SmallProduct p[SMALL_PRODUCTS];
};

__host__ __device__ static inline int small_steps(const SmallProduct &p)
{
    int steps = 0;
    for (int t = 0; t < p.terms; t++) steps += (p.term[t].k + SMALL_INNER - 1) / SMALL_INNER;
    return steps;
}
__host__ __device__ static inline int small_tiles(const SmallProduct &p)
{
    return (p.m + SMALL_TILE - 1) / SMALL_TILE * ((p.n + SMALL_TILE - 1) / SMALL_TILE);
}

/* A tile of 32 rows (or columns) x 64 inner elements, stored as it lies in memory: inner elements side by side (ALONG)
 * or rows side by side. */
template <bool ALONG> struct SmallTile {
    static constexpr int LINE = ALONG ? SMALL_INNER : SMALL_TILE, PITCH = LINE + 4;
    static constexpr int APART = SMALL_THREADS * 4 / LINE; /* lines between a thread's two pieces of four elements */
};
enum { SMALL_TILE_FLOATS = SMALL_INNER * (SMALL_TILE + 4) };

/* What a thread brings into the tiles of one operand, step by step. */
template <bool ALONG> struct SmallLoader {
    const float *base, *from;
    int64_t step, apart;
    int lines, columns, to; /* from this thread's first piece on */
    bool packed;

    __device__ __forceinline__ void begin(const float *p, int rows, int k, int row0, int k0)
    {
        typedef SmallTile<ALONG> Tile;
        int major = threadIdx.x * 4 / Tile::LINE, minor = threadIdx.x * 4 % Tile::LINE, ld = ALONG ? k : rows;
        int at_major = (ALONG ? row0 : k0) + major, at_minor = (ALONG ? k0 : row0) + minor;
        base = p, from = p + (int64_t)at_major * ld + at_minor;
        step = ALONG ? SMALL_INNER : (int64_t)SMALL_INNER * ld, apart = (int64_t)Tile::APART * ld;
        lines = (ALONG ? rows : k) - at_major, columns = ld - at_minor;
        to = major * Tile::PITCH + minor, packed = ld % 4 == 0;
    }
    __device__ __forceinline__ void load(float *tile)
    {
        typedef SmallTile<ALONG> Tile;
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            bool live = lines > piece * Tile::APART;
            const float *at = from + piece * apart;
            uint32_t target = shared_address(tile + to + piece * Tile::APART * Tile::PITCH);
            if (packed) {
                live = live && columns > 0;
                copy16_async(target, live ? at : base, live);
                continue;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bool one = live && columns > j;
                copy4_async(target + j * 4, one ? at + j : base, one);
            }
        }
        from += step;
        (ALONG ? columns : lines) -= SMALL_INNER;
    }
};

/* COUNT rows of four inner elements from k on; row r of thread t: t + r STEP where inner elements lie side by side,
 * else t COUNT + r, so that neither way of reading meets bank conflicts. */
template <bool ALONG, int COUNT, int STEP>
__device__ __forceinline__ void small_fragment(float (&f)[COUNT][4], const float *tile, int t, int k)
{
    if (ALONG) {
#pragma unroll
        for (int r = 0; r < COUNT; r++) load_floats<4>(tile + (t + r * STEP) * SmallTile<ALONG>::PITCH + k, f[r]);
    } else {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            float row[COUNT];
            load_floats<COUNT>(tile + (k + q) * SmallTile<ALONG>::PITCH + t * COUNT, row);
#pragma unroll
            for (int r = 0; r < COUNT; r++) f[r][q] = row[r];
        }
    }
}

/* The tiles of a product's terms, one after the other. */
template <bool A_T, bool B_T> struct SmallSource {
    const SmallProduct &p;
    int row0, column0, term, left; /* of the term, in steps */
    SmallLoader<!A_T> a;
    SmallLoader<B_T> b;

    __device__ __forceinline__ SmallSource(const SmallProduct &product, int row, int column, int step)
        : p(product), row0(row), column0(column), term(0)
    {
        while (term + 1 < p.terms && step >= steps_of(term)) step -= steps_of(term++);
        begin(step);
    }
    __device__ __forceinline__ int steps_of(int t) const { return (p.term[t].k + SMALL_INNER - 1) / SMALL_INNER; }
    __device__ __forceinline__ void begin(int step)
    {
        left = steps_of(term) - step;
        a.begin(p.term[term].a, p.m, p.term[term].k, row0, step * SMALL_INNER);
        b.begin(p.term[term].b, p.n, p.term[term].k, column0, step * SMALL_INNER);
    }
    __device__ __forceinline__ void load(float *tiles)
    {
        if (left == 0) term++, begin(0);
        a.load(tiles);
        b.load(tiles + SMALL_TILE_FLOATS);
        left--;
    }
};

/* Sums over the warps of a block: thread (lane, warp) gets the four results of that lane's row `warp`. */
template <typename Sum>
__device__ __forceinline__ void small_join(Sum *shared, const Sum (&acc)[SMALL_ROWS][SMALL_COLUMNS],
                                           Sum (&mine)[SMALL_COLUMNS])
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    Sum *place = shared + warp % SMALL_JOINED * SMALL_RESULTS + lane;
#pragma unroll
    for (int half = 1; half >= 0; half--) {
        if (warp / SMALL_JOINED == half)
#pragma unroll
            for (int i = 0; i < SMALL_ROWS * SMALL_COLUMNS; i++) {
                Sum v = acc[i / SMALL_COLUMNS][i % SMALL_COLUMNS];
                place[i * WARP] = half ? v : place[i * WARP] + v;
            }
        __syncthreads();
    }
#pragma unroll
    for (int c = 0; c < SMALL_COLUMNS; c++) {
        const Sum *from = shared + (warp * SMALL_COLUMNS + c) * WARP + lane;
        mine[c] = from[0];
#pragma unroll
        for (int w = 1; w < SMALL_JOINED; w++) mine[c] += from[w * SMALL_RESULTS];
    }
}

__device__ __forceinline__ float cluster_read(const float *p, uint32_t rank)
{
    float v;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(cluster_address(shared_address(p), rank)));
    return v;
}
__device__ __forceinline__ double cluster_read(const double *p, uint32_t rank)
{
    double v;
    asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(v) : "r"(cluster_address(shared_address(p), rank)));
    return v;
}

/* Sums over the blocks of a cluster, of which each takes its share of a thread's results: [from, until). What it reads
 * of the others it reads before any of them may end. */
template <typename Sum>
__device__ __forceinline__ void small_join_parts(Sum *shared, Sum *rows, Sum (&mine)[SMALL_COLUMNS], Sum *row, int part,
                                                 int parts, int *from, int *until)
{
    *from = part * SMALL_COLUMNS / parts, *until = (part + 1) * SMALL_COLUMNS / parts;
    if (parts == 1) return;
    Sum *place = shared + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < SMALL_COLUMNS; c++) place[c * SMALL_THREADS] = mine[c];
    if (threadIdx.x < SMALL_TILE) rows[threadIdx.x] = *row;
    cluster_sync();
#pragma unroll
    for (int c = 0; c < SMALL_COLUMNS; c++) {
        if (c < *from || c >= *until) continue;
        mine[c] = cluster_read(place + c * SMALL_THREADS, 0);
        for (int q = 1; q < parts; q++) mine[c] += cluster_read(place + c * SMALL_THREADS, (uint32_t)q);
    }
    if (threadIdx.x < SMALL_TILE) {
        *row = 0;
        for (int q = 0; q < parts; q++) *row += cluster_read(rows + threadIdx.x, (uint32_t)q);
    }
    cluster_sync();
}

__device__ __forceinline__ float small_edges(const SmallProduct &p, float v, int row, int column)
{
    int64_t at = (int64_t)row * p.n + column;
    if (p.bias) v += p.bias[column];
    if (p.c) v += p.c[at];
    if (p.relu) v = fmaxf(v, 0.0f);
    return p.y && !(p.y[at] > 0.0f) ? 0.0f : v;
}

/* Blocks: the parts of a tile along x, the tiles of one product after those of another along y. */
template <typename Sum, bool A_T, bool B_T>
__global__ void __launch_bounds__(SMALL_THREADS, sizeof(Sum) > sizeof(float) ? 1 : 2)
    small_product_kernel(const __grid_constant__ SmallBatch batch)
{
    stage_wait();
    extern __shared__ float4 small_tiles_room[];
    float *tiles = (float *)small_tiles_room; /* [stage][operand][SMALL_TILE_FLOATS] */
    __shared__ Sum row_sums[SMALL_WARPS][SMALL_TILE];
    int member = 0, tile = blockIdx.y, part = blockIdx.x, parts = gridDim.x;
    while (tile >= small_tiles(batch.p[member])) tile -= small_tiles(batch.p[member++]);
    const SmallProduct &p = batch.p[member];
    int across = (p.n + SMALL_TILE - 1) / SMALL_TILE, row0 = tile / across * SMALL_TILE;
    int column0 = tile % across * SMALL_TILE, steps = small_steps(p);
    int warp = threadIdx.x / WARP, tm = threadIdx.x % WARP / 8, tn = threadIdx.x % 8;
    int begin = steps * part / parts, count = steps * (part + 1) / parts - begin;
    bool sums_here = A_T && p.sums && column0 == 0;
    SmallSource<A_T, B_T> source(p, row0, column0, begin);
    auto load = [&](int step) {
        if (step < count) source.load(tiles + step % SMALL_STAGES * 2 * SMALL_TILE_FLOATS);
        copy_commit();
    };
    Sum acc[SMALL_ROWS][SMALL_COLUMNS] = {}, sums[SMALL_ROWS] = {};
#pragma unroll
    for (int s = 0; s < SMALL_STAGES - 1; s++) load(s);
    for (int step = 0; step < count; step++) {
        copy_wait<SMALL_STAGES - 2>();
        __syncthreads();
        load(step + SMALL_STAGES - 1);
        const float *at = tiles + step % SMALL_STAGES * 2 * SMALL_TILE_FLOATS;
#pragma unroll
        for (int k = 0; k < 8; k += 4) {
            float a[SMALL_ROWS][4], b[SMALL_COLUMNS][4];
            small_fragment<!A_T, SMALL_ROWS, 4>(a, at, tm, warp * 8 + k);
            small_fragment<B_T, SMALL_COLUMNS, 8>(b, at + SMALL_TILE_FLOATS, tn, warp * 8 + k);
#pragma unroll
            for (int q = 0; q < 4; q++)
#pragma unroll
                for (int r = 0; r < SMALL_ROWS; r++)
#pragma unroll
                    for (int c = 0; c < SMALL_COLUMNS; c++) acc[r][c] = fma((Sum)a[r][q], (Sum)b[c][q], acc[r][c]);
            if (sums_here)
#pragma unroll
                for (int q = 0; q < 4; q++)
#pragma unroll
                    for (int r = 0; r < SMALL_ROWS; r++) sums[r] += a[r][q];
        }
    }
    copy_wait<0>();
    __syncthreads();
    for (int r = 0; A_T && tn == 0 && r < SMALL_ROWS; r++) row_sums[warp][tm * SMALL_ROWS + r] = sums[r];
    Sum mine[SMALL_COLUMNS], row_sum = 0, *shared = reinterpret_cast<Sum *>(tiles);
    small_join(shared, acc, mine);
    for (int w = 0; A_T && threadIdx.x < SMALL_TILE && w < SMALL_WARPS; w++) row_sum += row_sums[w][threadIdx.x];
    int from, until;
    small_join_parts(shared, row_sums[0], mine, &row_sum, part, parts, &from, &until);
    if (sums_here && part == 0 && threadIdx.x < SMALL_TILE && row0 + (int)threadIdx.x < p.m)
        p.sums[row0 + threadIdx.x] = (float)row_sum;
    int row = row0 + (A_T ? tm * SMALL_ROWS + warp : tm + warp * 4);
    if (row >= p.m) return;
#pragma unroll
    for (int c = 0; c < SMALL_COLUMNS; c++) {
        int column = column0 + (B_T ? tn + c * 8 : tn * SMALL_COLUMNS + c);
        if (c < from || c >= until || column >= p.n) continue;
        p.d[(int64_t)row * p.n + column] = small_edges(p, (float)mine[c], row, column);
    }
}

static inline SmallProduct small_product(int64_t m, int64_t n)
{
    SmallProduct p = {};
    p.m = m <= SMALL_SIDE ? (int)m : 0, p.n = n <= SMALL_SIDE ? (int)n : 0;
    return p;
}

/* Appends a term. Of [256, 384] with 2112 inner elements the library takes 24 us on an H200, this 27; of [14, 128] with
 * 2048 it takes 610. */
static inline bool small_add(SmallProduct *p, int64_t k, const void *a, const void *b)
{
    int64_t results = (int64_t)p->m * p->n;
    bool fits = results > 0 && p->terms < SMALL_TERMS && (k <= 512 || (k <= SMALL_SIDE && results <= 128 * 384)) &&
                results * k <= SMALL_MULTIPLICATIONS && aligned16(a) && aligned16(b);
    if (fits) p->term[p->terms++] = {(const float *)a, (const float *)b, (int)k};
    return fits;
}

/* Into how many parts: the fewest steps on the busiest multiprocessor, of which each takes two blocks; what a block
 * does before its first and after its last step is about as much as four. */
static inline int small_parts(int64_t tiles, int64_t steps)
{
    int64_t least = INT64_MAX;
    int best = 1;
    for (int parts = 1; parts <= SMALL_PARTS && (parts == 1 || steps >= parts); parts *= 2) {
        int64_t blocks = tiles * parts, rounds = (blocks + SMALL_DEVICE - 1) / SMALL_DEVICE;
        int64_t cost = rounds * ((steps + parts - 1) / parts) + (rounds + 1) / 2 * 4;
        if (cost <= least) least = cost, best = parts;
    }
    return best;
}

template <bool A_T, bool B_T> static Status small_launch(const SmallBatch &batch, cudaStream_t stream)
{
    int64_t tiles = 0, steps = 0;
    bool few = true;
    for (int k = 0; k < batch.count; k++) {
        const SmallProduct &p = batch.p[k];
        int64_t inner = 0;
        for (int t = 0; t < p.terms; t++) inner += p.term[t].k;
        few = few && p.m * p.n * inner < FEW_MULTIPLICATIONS;
        tiles += small_tiles(p);
        steps = small_steps(p) > steps ? small_steps(p) : steps;
    }
    int parts = small_parts(tiles, steps);
    size_t shared = (size_t)SMALL_STAGES * 2 * SMALL_TILE_FLOATS * sizeof(float);
    auto *kernel = few ? small_product_kernel<double, A_T, B_T> : small_product_kernel<float, A_T, B_T>;
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch_clusters(kernel, dim3((unsigned)parts, (unsigned)tiles), SMALL_THREADS, shared, parts, stream, batch);
    return cuda_launched("small_product_kernel");
}

#endif
