/* What a block of a small product (small.cuh) has in shared memory: tiles of 16 inner elements, how they come there and
 * how threads read them. */
#ifndef FOLDSCALE_KERNELS_CUDA_SMALL_TILE_CUH
#define FOLDSCALE_KERNELS_CUDA_SMALL_TILE_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/mma.cuh"

enum { SMALL_INNER = 16, SMALL_THREADS = 256, SMALL_WARPS = SMALL_THREADS / WARP };
enum { SMALL_LANES_DOWN = 4, SMALL_LANES_ACROSS = 8 };
enum { SMALL_TERMS = 8, SMALL_PRODUCTS = 6 };

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
    bool packed;     /* what is [m, n] or [n] is read and written four at a time */
    int across, end; /* tiles side by side; how many there are up to this product's last one */
    int chunks;      /* of SMALL_INNER */
};

struct SmallBatch {
    int count;
    bool early; /* all b are steady (OpCall) */
    SmallProduct p[SMALL_PRODUCTS];
};

__host__ __device__ static inline int small_chunks(int k)
{
    return (k + SMALL_INNER - 1) / SMALL_INNER;
}

/* DOWN warps below one another are a group, which has some of the inner elements of the block's tile; a thread has
 * TALL x WIDE results. */
template <typename Sum_, int DOWN_, int TALL_, int WIDE_> struct SmallShape {
    typedef Sum_ Sum;
    static constexpr int DOWN = DOWN_, GROUPS = SMALL_WARPS / DOWN, GROUP_THREADS = DOWN * WARP;
    static constexpr int TALL = TALL_, WIDE = WIDE_, WARP_ROWS = SMALL_LANES_DOWN * TALL;
    static constexpr int ROWS = DOWN * WARP_ROWS, COLUMNS = SMALL_LANES_ACROSS * WIDE, RESULTS = ROWS * COLUMNS;
    /* of a group's sums in shared memory: what the lanes of a warp write at once meets no conflicts */
    static constexpr int PITCH = COLUMNS % 16 == 0 ? COLUMNS + 8 : COLUMNS;
    /* results side by side of a thread that adds groups */
    static constexpr int RUN = sizeof(Sum) > sizeof(float) ? 1 : 4;
    static constexpr int OWN = (RESULTS / RUN + SMALL_THREADS - 1) / SMALL_THREADS;
    static constexpr int BLOCKS = TALL * WIDE > 48 ? 1 : 2; /* of a multiprocessor */
};

/* ROWS rows (or columns) x SMALL_INNER inner elements, stored as they lie in memory: inner elements side by side
 * (ALONG) or rows side by side. */
template <bool ALONG, int ROWS> struct SmallTile {
    static constexpr int LINE = ALONG ? SMALL_INNER : ROWS, PITCH = ALONG ? LINE + 4 : LINE;
    static constexpr int FLOATS = ROWS * SMALL_INNER / LINE * PITCH, PACKS = ROWS * SMALL_INNER / 4;
};

/* N elements that are moved at once */
template <typename T, int N> struct __align__(sizeof(T) * N < 16 ? sizeof(T) * N : 16) SmallRun
{
    T v[N];
};
template <int N, typename T> __device__ __forceinline__ void small_get(const T *from, T *x)
{
    SmallRun<T, N> run = *reinterpret_cast<const SmallRun<T, N> *>(from);
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = run.v[j];
}
template <int N, typename T> __device__ __forceinline__ void small_put(T *to, const T *x)
{
    SmallRun<T, N> run;
#pragma unroll
    for (int j = 0; j < N; j++) run.v[j] = x[j];
    *reinterpret_cast<SmallRun<T, N> *>(to) = run;
}

/* Row (or column) r of the COUNT of thread t of LANES: where inner elements lie side by side, those of neighbours are
 * neighbours; else a thread has runs of four, of two, of one. Neither way of reading meets bank conflicts. */
template <bool ALONG, int LANES, int COUNT> __device__ __forceinline__ int small_place(int t, int r)
{
    constexpr int QUADS = COUNT / 4 * 4, PAIRS = COUNT / 2 * 2;
    if (ALONG) return t + r * LANES;
    if (r < QUADS) return r / 4 * 4 * LANES + t * 4 + r % 4;
    return r < PAIRS ? QUADS * LANES + t * 2 + r - QUADS : PAIRS * LANES + t;
}
template <int LANES, int COUNT>
__device__ __forceinline__ void small_get_line(const float *line, int t, float (&x)[COUNT])
{
    constexpr int QUADS = COUNT / 4 * 4, PAIRS = COUNT / 2 * 2;
#pragma unroll
    for (int r = 0; r < QUADS; r += 4) small_get<4>(line + small_place<false, LANES, COUNT>(t, r), x + r);
    if (PAIRS > QUADS) small_get<2>(line + small_place<false, LANES, COUNT>(t, QUADS), x + QUADS);
    if (COUNT > PAIRS) x[COUNT - 1] = line[small_place<false, LANES, COUNT>(t, COUNT - 1)];
}
/* the columns of thread t of a row of sums */
template <bool ALONG, int COUNT, typename Sum>
__device__ __forceinline__ void small_put_line(Sum *line, int t, const Sum (&x)[COUNT])
{
    constexpr int LANES = SMALL_LANES_ACROSS, QUADS = ALONG ? 0 : COUNT / 4 * 4, PAIRS = ALONG ? 0 : COUNT / 2 * 2;
#pragma unroll
    for (int c = 0; c < QUADS; c += 4) small_put<4>(line + small_place<ALONG, LANES, COUNT>(t, c), x + c);
    if (PAIRS > QUADS) small_put<2>(line + small_place<ALONG, LANES, COUNT>(t, QUADS), x + QUADS);
#pragma unroll
    for (int c = PAIRS; c < COUNT; c++) line[small_place<ALONG, LANES, COUNT>(t, c)] = x[c];
}

/* COUNT rows of four inner elements from k on */
template <bool ALONG, int ROWS, int LANES, int COUNT>
__device__ __forceinline__ void small_fragment(float (&f)[COUNT][4], const float *tile, int t, int k)
{
    typedef SmallTile<ALONG, ROWS> Tile;
#pragma unroll
    for (int j = 0; j < (ALONG ? COUNT : 4); j++) {
        if (ALONG) {
            small_get<4>(tile + (t + j * LANES) * Tile::PITCH + k, f[j]);
        } else {
            float x[COUNT];
            small_get_line<LANES>(tile + (k + j) * Tile::PITCH, t, x);
#pragma unroll
            for (int r = 0; r < COUNT; r++) f[r][j] = x[r];
        }
    }
}

/* What a thread of a group brings of an operand of a product: the tiles of its terms, chunk by chunk. SECOND: b. Rows
 * beyond the last are copies of the last, as nobody asks for their results; inner elements beyond the last are zero. */
template <bool ALONG, int ROWS, int THREADS, bool SECOND> struct SmallSource {
    typedef SmallTile<ALONG, ROWS> Tile;
    static constexpr int ACROSS = Tile::LINE / 4, PIECES = (Tile::PACKS + THREADS - 1) / THREADS;
    const SmallProduct &p;
    const float *from;
    int row0, term, left /* inner elements of the term */, at[PIECES];

    __device__ __forceinline__ SmallSource(const SmallProduct &product, int row, int chunk)
        : p(product), row0(row), term(0)
    {
        while (term + 1 < p.terms && chunk >= small_chunks(p.term[term].k)) chunk -= small_chunks(p.term[term++].k);
        begin(chunk * SMALL_INNER);
    }
    static __device__ __forceinline__ int piece(int i) { return (int)threadIdx.x % THREADS + i * THREADS; }
    __device__ __forceinline__ int rows() const { return SECOND ? p.n : p.m; }
    __device__ __forceinline__ int pitch() const { return ALONG ? p.term[term].k : rows(); }

    __device__ __forceinline__ void begin(int k0)
    {
        const SmallTerm &t = p.term[term];
        left = t.k - k0, from = (SECOND ? t.b : t.a) + (ALONG ? k0 : k0 * rows());
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            int line = piece(i) / ACROSS, minor = piece(i) % ACROSS * 4;
            at[i] = ALONG ? min(row0 + line, rows() - 1) * t.k + minor : line * rows() + min(row0 + minor, rows() - 4);
        }
    }
    /* one by one: rows of any length, and the end of a term */
    __device__ __forceinline__ void load_singly(uint32_t tile) const
    {
#pragma unroll 1
        for (int e = piece(0) * 4; e < Tile::PACKS * 4; e += e % 4 == 3 ? THREADS * 4 - 3 : 1) {
            int line = e / Tile::LINE, minor = e % Tile::LINE;
            int inner = ALONG ? minor : line, row = min(row0 + (ALONG ? line : minor), rows() - 1);
            bool live = inner < left;
            copy4_async(tile + (uint32_t)(line * Tile::PITCH + minor) * 4,
                        live ? from + (ALONG ? row * pitch() + inner : inner * pitch() + row) : from, live);
        }
    }
    __device__ __forceinline__ void load(uint32_t tile)
    {
        constexpr int APART = ALONG ? THREADS / ACROSS * Tile::PITCH : THREADS * 4;
        static_assert(!ALONG || THREADS % ACROSS == 0, "pieces of a thread lie below one another");
        for (; left <= 0 && term + 1 < p.terms; begin(0)) term++;
        uint32_t to = tile + (uint32_t)(piece(0) / ACROSS * Tile::PITCH + piece(0) % ACROSS * 4) * 4;
        if (pitch() % 4 == 0 && left >= SMALL_INNER) {
#pragma unroll
            for (int i = 0; i < PIECES; i++)
                if (Tile::PACKS % THREADS == 0 || piece(i) < Tile::PACKS)
                    copy16_async(to + i * APART * 4, from + at[i], true);
        } else {
            load_singly(tile);
        }
        from += ALONG ? SMALL_INNER : SMALL_INNER * rows(), left -= SMALL_INNER;
    }
};

#endif
