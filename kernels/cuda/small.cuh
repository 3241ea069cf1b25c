/* Products of small f32 matrices, where the library's kernels leave most of the device idle: several products in one
 * launch, in tiles of a shape that fills the device, the inner elements of a tile divided among the warps of a block
 * and, where few tiles have many, among the blocks of a cluster. D = sum A_t B_t (+ C) (+ bias) (relu) (0 where y <=
 * 0), f32 throughout, every element summed in one order: a group of warps takes inner elements that follow one another;
 * groups, then blocks, are added in turn. */
#ifndef FOLDSCALE_KERNELS_CUDA_SMALL_CUH
#define FOLDSCALE_KERNELS_CUDA_SMALL_CUH

#include "kernels/cuda/small_tile.cuh"

/* longest side, most multiplications, multiprocessors, most blocks along y */
enum { SMALL_SIDE = 4096, SMALL_MULTIPLICATIONS = 1 << 28, SMALL_DEVICE = 132, SMALL_TILES = 65535 };
enum { SMALL_PARTS = 4, SMALL_STAGES = 3 /* 384 inner elements of eight groups are all asked for at once */ };

/* Shared memory: of each group its chunks on their way and, behind them, its sums; what the blocks of a cluster give
 * this one; sums over A's inner elements, of groups and given. */
template <typename Shape, bool A_T, bool B_T> struct SmallRoom {
    typedef typename Shape::Sum Sum;
    typedef SmallTile<!A_T, Shape::ROWS> A;
    typedef SmallTile<B_T, Shape::COLUMNS> B;
    typedef SmallSource<!A_T, Shape::ROWS, Shape::GROUP_THREADS, false> ASource;
    typedef SmallSource<B_T, Shape::COLUMNS, Shape::GROUP_THREADS, true> BSource;
    static constexpr int CHUNK = A::FLOATS + B::FLOATS, GROUP = SMALL_STAGES * CHUNK;
    static constexpr uint32_t B_AT = A::FLOATS * sizeof(float); /* in a chunk */
    static constexpr int SUMS = (Shape::GROUPS + SMALL_PARTS) * Shape::ROWS;
    static_assert(GROUP * sizeof(float) >= Shape::ROWS * Shape::PITCH * sizeof(Sum), "sums of a group");
    float group[Shape::GROUPS][GROUP];
    Sum sums[SUMS];
    Sum given[Shape::RESULTS]; /* [part][share]: not there where a block is alone */

    static size_t bytes(int parts) { return sizeof(SmallRoom) - (parts > 1 ? 0 : Shape::RESULTS * sizeof(Sum)); }
};

/* The warps of a group meet. */
template <typename Shape> __device__ __forceinline__ void small_meet(int group)
{
    if (Shape::DOWN == 1)
        __syncwarp();
    else
        asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(Shape::GROUP_THREADS) : "memory");
}

/* acc += a chunk, of which `inner` elements are not zero */
template <typename Shape, bool A_T, bool B_T, typename Sum>
__device__ __forceinline__ void small_multiply(const float *a_tile, const float *b_tile, int tm, int tn, int inner,
                                               Sum (&acc)[Shape::TALL][Shape::WIDE])
{
    constexpr int AHEAD = !A_T && B_T && Shape::WIDE == 6 ? 1 : SMALL_INNER / 4; /* what more would not fit registers */
#pragma unroll AHEAD
    for (int k = 0; k < SMALL_INNER; k += 4) {
        if (sizeof(Sum) > sizeof(float) && k >= inner) break;
        float a[Shape::TALL][4], b[Shape::WIDE][4];
        small_fragment<!A_T, Shape::ROWS, SMALL_LANES_DOWN>(a, a_tile, tm, k);
        small_fragment<B_T, Shape::COLUMNS, SMALL_LANES_ACROSS>(b, b_tile, tn, k);
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int r = 0; r < Shape::TALL; r++)
#pragma unroll
                for (int c = 0; c < Shape::WIDE; c++) acc[r][c] = fma((Sum)a[r][q], (Sum)b[c][q], acc[r][c]);
    }
}

/* RUN results side by side: what is added to them, or `none` */
template <int RUN>
__device__ __forceinline__ void small_beside(const float *from, int64_t at, bool packed, int live, float none,
                                             float (&x)[RUN])
{
    if (from && RUN > 1 && packed && live > 0) {
        small_get<RUN>(from + at, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < RUN; j++) x[j] = from && j < live ? from[at + j] : none;
}

/* A thread's results of one run: where they are, what their edge needs. */
template <int RUN> struct SmallEdge {
    int64_t at;
    int live; /* how many of the run are inside */
    float bias[RUN], c[RUN], y[RUN];

    __device__ __forceinline__ void begin(const SmallProduct &p, int row, int column, bool mine)
    {
        at = (int64_t)row * p.n + column, live = mine && row < p.m ? p.n - column : 0;
        small_beside(p.bias, column, p.packed, live, 0.0f, bias);
        small_beside(p.c, at, p.packed, live, 0.0f, c);
        small_beside(p.y, at, p.packed, live, 1.0f, y);
    }
    template <typename Sum> __device__ __forceinline__ void store(const SmallProduct &p, const Sum (&sum)[RUN]) const
    {
        float v[RUN];
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            v[j] = (float)sum[j];
            if (p.bias) v[j] += bias[j];
            if (p.c) v[j] += c[j];
            if (p.relu) v[j] = fmaxf(v[j], 0.0f);
            if (!(y[j] > 0.0f)) v[j] = 0.0f;
        }
        if (RUN > 1 && p.packed && live > 0) {
            small_put<RUN>(p.d + at, v);
            return;
        }
#pragma unroll
        for (int j = 0; j < RUN; j++)
            if (j < live) p.d[at + j] = v[j];
    }
};

/* The sums of a block's groups for the run-th run of its tile. */
template <typename Shape, typename Sum>
__device__ __forceinline__ void small_join(const float *groups, int apart, int run, Sum (&sum)[Shape::RUN])
{
    constexpr int ACROSS = Shape::COLUMNS / Shape::RUN;
    const float *group = groups;
    int at = run / ACROSS * Shape::PITCH + run % ACROSS * Shape::RUN;
#pragma unroll
    for (int g = 0; g < Shape::GROUPS; g++, group += apart) {
        Sum x[Shape::RUN];
        small_get<Shape::RUN>((const Sum *)group + at, x);
#pragma unroll
        for (int j = 0; j < Shape::RUN; j++) sum[j] = g ? sum[j] + x[j] : x[j];
    }
}

__device__ __forceinline__ void cluster_store(uint32_t at, const float (&v)[4])
{
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]),
                 "f"(v[3])
                 : "memory");
}
__device__ __forceinline__ void cluster_store(uint32_t at, const float (&v)[1])
{
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v[0]) : "memory");
}
__device__ __forceinline__ void cluster_store(uint32_t at, const double (&v)[1])
{
    asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(at), "d"(v[0]) : "memory");
}

/* a row's sum over A's inner elements, of this block's groups */
template <typename Shape, typename Sum>
__device__ __forceinline__ Sum small_row_sum(const Sum *sums, int row, int count)
{
    Sum sum = sums[row];
    for (int g = 1; g < count; g++) sum += sums[g * Shape::ROWS + row];
    return sum;
}

/* Every block of a cluster gives the others their shares of its sums, and the first one those of A's rows: behind it,
 * given[part][share] are complete. */
template <typename Shape, typename Room>
__device__ __forceinline__ void small_give(Room *room, int part, int parts, bool sums_here)
{
    int share = Shape::RESULTS / Shape::RUN / parts, thread = threadIdx.x;
    cluster_wait(); /* all blocks have begun */
    for (int run = thread; run < share * parts; run += SMALL_THREADS) {
        typename Shape::Sum sum[Shape::RUN];
        small_join<Shape>(room->group[0], Room::GROUP, run, sum);
        auto *to = room->given + (part * share + run % share) * Shape::RUN;
        cluster_store(cluster_address(shared_address(to), (uint32_t)(run / share)), sum);
    }
    if (sums_here && thread < Shape::ROWS) {
        typename Shape::Sum sum[1] = {small_row_sum<Shape>(room->sums, thread, Shape::GROUPS)};
        auto *to = room->sums + (Shape::GROUPS + part) * Shape::ROWS + thread;
        cluster_store(cluster_address(shared_address(to), 0), sum);
    }
    cluster_sync();
}
/* the run-th of this block's share */
template <typename Shape, typename Sum>
__device__ __forceinline__ void small_taken(const Sum *given, int run, int parts, Sum (&sum)[Shape::RUN])
{
    int share = Shape::RESULTS / Shape::RUN / parts;
    for (int q = 0; q < parts; q++) {
        Sum x[Shape::RUN];
        small_get<Shape::RUN>(given + (q * share + run) * Shape::RUN, x);
#pragma unroll
        for (int j = 0; j < Shape::RUN; j++) sum[j] = q ? sum[j] + x[j] : x[j];
    }
}

/* Where a block is: its product, its tile, its part of the inner elements. */
struct SmallPlace {
    int member, row0, column0, part, parts;

    template <typename Shape> static __device__ __forceinline__ SmallPlace of(const SmallBatch &batch)
    {
        int member = 0, tile = blockIdx.y;
        while (tile >= batch.p[member].end) member++;
        if (member > 0) tile -= batch.p[member - 1].end;
        int across = batch.p[member].across;
        return {member, tile / across * Shape::ROWS, tile % across * Shape::COLUMNS, (int)blockIdx.x, (int)gridDim.x};
    }
};

/* Behind the last chunk: the block's sums and what stands beside them, of which the latter is asked for first. */
template <typename Shape, bool A_T, bool B_T, typename Room, typename Sum>
__device__ __forceinline__ void small_finish(const SmallProduct &p, const SmallPlace &at, Room *room, int tm, int tn,
                                             bool sums_here, const Sum (&acc)[Shape::TALL][Shape::WIDE])
{
    constexpr int ACROSS = Shape::COLUMNS / Shape::RUN;
    int warp = threadIdx.x / WARP, group = warp / Shape::DOWN, row = warp % Shape::DOWN * Shape::WARP_ROWS;
    int share = Shape::RESULTS / Shape::RUN / at.parts, thread = threadIdx.x;
    SmallEdge<Shape::RUN> edge[Shape::OWN];
#pragma unroll
    for (int o = 0; o < Shape::OWN; o++) {
        int run = thread + o * SMALL_THREADS, index = at.part * share + run;
        edge[o].begin(p, at.row0 + index / ACROSS, at.column0 + index % ACROSS * Shape::RUN, run < share);
    }
    small_meet<Shape>(group); /* nobody reads its chunks any more */
    Sum *sums = (Sum *)room->group[group];
#pragma unroll
    for (int r = 0; r < Shape::TALL; r++)
        small_put_line<B_T>(sums + (row + small_place<!A_T, SMALL_LANES_DOWN, Shape::TALL>(tm, r)) * Shape::PITCH, tn,
                            acc[r]);
    __syncthreads();
    if (at.parts > 1) small_give<Shape>(room, at.part, at.parts, sums_here);
#pragma unroll
    for (int o = 0; o < Shape::OWN; o++) {
        int run = thread + o * SMALL_THREADS;
        if (run >= share) break;
        Sum sum[Shape::RUN];
        if (at.parts > 1)
            small_taken<Shape>(room->given, run, at.parts, sum);
        else
            small_join<Shape>(room->group[0], Room::GROUP, run, sum);
        edge[o].store(p, sum);
    }
    if (!sums_here || at.part > 0 || thread >= Shape::ROWS || at.row0 + thread >= p.m) return;
    int given = at.parts > 1 ? Shape::GROUPS * Shape::ROWS : 0;
    p.sums[at.row0 + thread] =
        (float)small_row_sum<Shape>(room->sums + given, thread, at.parts > 1 ? at.parts : Shape::GROUPS);
}

/* Blocks: the parts of a tile along x, the tiles of one product after those of another along y. Lanes are spread over
 * rows and columns so that of either operand a lane reads the same 16 bytes as its neighbour or the next but one:
 * shared memory then serves a half warp at a time, not a quarter. */
template <typename Shape, bool A_T, bool B_T>
__global__ void __launch_bounds__(SMALL_THREADS, Shape::BLOCKS)
    small_product_kernel(const __grid_constant__ SmallBatch batch)
{
    typedef SmallRoom<Shape, A_T, B_T> Room;
    extern __shared__ float4 small_room[];
    Room *room = (Room *)small_room;
    if (gridDim.x > 1) cluster_arrive();
    const SmallPlace at = SmallPlace::of<Shape>(batch);
    const SmallProduct &p = batch.p[at.member];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / Shape::DOWN;
    int tm = (lane >> 1 & 1) | (lane >> 3 & 2), tn = (lane & 1) | (lane >> 1 & 6);
    int row = warp % Shape::DOWN * Shape::WARP_ROWS; /* the warp's first one */
    int share = at.part * Shape::GROUPS + group, shares = at.parts * Shape::GROUPS;
    int begin = p.chunks * share / shares, count = p.chunks * (share + 1) / shares - begin, slot = 0;
    bool sums_here = A_T && p.sums && at.column0 == 0;
    const float *ring = room->group[group];
    auto place = [&](int slot) { return shared_address(ring + slot * Room::CHUNK); };
    typename Room::ASource a(p, at.row0, begin);
    typename Room::BSource b(p, at.column0, begin);
    for (int s = 0; batch.early && s < SMALL_STAGES && s < count; s++) b.load(place(s) + Room::B_AT); /* early */
    stage_wait();
    stage_release();
    for (int s = 0; s < SMALL_STAGES; s++) {
        if (s < count) a.load(place(s));
        if (s < count && !batch.early) b.load(place(s) + Room::B_AT);
        copy_commit();
    }
    typename Shape::Sum acc[Shape::TALL][Shape::WIDE] = {}, row_sum = 0;
    for (int step = 0; step < count; step++) {
        copy_wait<SMALL_STAGES - 1>();
        small_meet<Shape>(group);
        const float *chunk = ring + slot * Room::CHUNK, *a_tile = chunk + row * (A_T ? 1 : Room::A::PITCH);
        int inner = p.terms == 1 ? p.term[0].k - (begin + step) * SMALL_INNER : SMALL_INNER;
        small_multiply<Shape, A_T, B_T>(a_tile, chunk + Room::A::FLOATS, tm, tn, inner, acc);
        for (int k = 0; sums_here && lane < Shape::WARP_ROWS && k < SMALL_INNER; k++)
            row_sum += a_tile[k * Room::A::PITCH + lane];
        if (step + SMALL_STAGES < count) {
            small_meet<Shape>(group);
            a.load(place(slot));
            b.load(place(slot) + Room::B_AT);
        }
        copy_commit();
        slot = slot + 1 < SMALL_STAGES ? slot + 1 : 0;
    }
    if (sums_here && lane < Shape::WARP_ROWS) room->sums[group * Shape::ROWS + row + lane] = row_sum;
    small_finish<Shape, A_T, B_T>(p, at, room, tm, tn, sums_here, acc);
}

static inline SmallProduct small_product(int64_t m, int64_t n)
{
    SmallProduct p = {};
    p.m = m <= SMALL_SIDE ? (int)m : 0, p.n = n <= SMALL_SIDE ? (int)n : 0;
    return p;
}

/* Appends a term. Of [256, 384] with 2112 inner elements the library and the pass behind it take 23 us on an H200,
 * clusters of this kernel 36. */
static inline bool small_add(SmallProduct *p, int64_t k, const void *a, const void *b)
{
    int64_t results = (int64_t)p->m * p->n;
    bool fits = results > 0 && p->terms < SMALL_TERMS && (k <= 512 || (k <= SMALL_SIDE && results <= 128 * 384)) &&
                results * k <= SMALL_MULTIPLICATIONS && aligned16(a) && aligned16(b);
    if (fits) p->term[p->terms++] = {(const float *)a, (const float *)b, (int)k};
    return fits;
}

/* How a shape works: clock cycles of a multiprocessor for a chunk of all groups, bounded by its multiplications, by
 * what comes from the second level cache, or by conversions to double; and for what comes before and behind the chunks.
 * Estimated; what other figures for the 64 x 48 and 64 x 64 shapes choose at the structure module's sizes was measured,
 * and is 0.1 to 0.3 ms of a step slower. */
struct SmallCost {
    int rows, columns, groups, chunk;
};
enum { SMALL_BLOCK_CYCLES = 600, SMALL_CLUSTER_CYCLES = 2000 };
enum SmallWay { SMALL_DOUBLE, SMALL_DOUBLE_SHALLOW, SMALL_LOW, SMALL_32, SMALL_48, SMALL_64, SMALL_WAYS };
typedef SmallShape<double, 1, 2, 1> SmallDouble;
typedef SmallShape<double, 8, 2, 3> SmallDoubleShallow; /* few inner elements: groups would have nothing to do */
typedef SmallShape<float, 1, 8, 3> SmallLow;            /* 32 x 24: 128 tiles of [256, 384] */
typedef SmallShape<float, 2, 8, 4> Small32;
typedef SmallShape<float, 2, 8, 6> Small48;
typedef SmallShape<float, 2, 8, 8> Small64;

template <typename Shape> static SmallCost small_cost(int chunk)
{
    return {Shape::ROWS, Shape::COLUMNS, Shape::GROUPS, chunk};
}

struct SmallChoice {
    SmallWay way;
    int parts;
};

/* The least cycles of the busiest multiprocessor. */
static inline SmallChoice small_choose(const SmallBatch &batch, bool few)
{
    const SmallCost cost[SMALL_WAYS] = {small_cost<SmallDouble>(800), small_cost<SmallDoubleShallow>(1400),
                                        small_cost<SmallLow>(1150),   small_cost<Small32>(1250),
                                        small_cost<Small48>(1700),    small_cost<Small64>(2200)};
    SmallChoice best = {few ? SMALL_DOUBLE_SHALLOW : SMALL_64, 1};
    int64_t least = INT64_MAX;
    for (int way = few ? SMALL_DOUBLE : SMALL_LOW; way < (few ? SMALL_LOW : SMALL_WAYS); way++) {
        const SmallCost &c = cost[way];
        int64_t tiles = 0, chunks = 0;
        for (int k = 0; k < batch.count; k++) {
            const SmallProduct &p = batch.p[k];
            tiles += (int64_t)((p.m + c.rows - 1) / c.rows) * ((p.n + c.columns - 1) / c.columns);
            chunks = p.chunks > chunks ? p.chunks : chunks;
        }
        for (int parts = 1; parts <= SMALL_PARTS && tiles <= SMALL_TILES; parts *= 2) {
            int64_t rounds = (tiles * parts + SMALL_DEVICE - 1) / SMALL_DEVICE, shares = (int64_t)c.groups * parts;
            int64_t cycles = rounds * ((chunks + shares - 1) / shares * c.chunk + SMALL_BLOCK_CYCLES) +
                             (parts > 1 ? SMALL_CLUSTER_CYCLES : 0);
            if (cycles < least) least = cycles, best = {(SmallWay)way, parts};
        }
    }
    return best;
}

template <typename Shape, bool A_T, bool B_T> static Status small_run(SmallBatch *batch, int parts, cudaStream_t stream)
{
    int tiles = 0;
    for (int k = 0; k < batch->count; k++) {
        SmallProduct *p = &batch->p[k];
        p->across = (p->n + Shape::COLUMNS - 1) / Shape::COLUMNS;
        p->end = tiles += (p->m + Shape::ROWS - 1) / Shape::ROWS * p->across;
    }
    size_t shared = SmallRoom<Shape, A_T, B_T>::bytes(parts);
    auto *kernel = small_product_kernel<Shape, A_T, B_T>;
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch_clusters(kernel, dim3((unsigned)parts, (unsigned)tiles), SMALL_THREADS, shared, parts, stream, *batch);
    return cuda_launched("small_product_kernel");
}

template <bool A_T, bool B_T> static Status small_launch(SmallBatch *batch, cudaStream_t stream)
{
    bool few = true;
    for (int k = 0; k < batch->count; k++) {
        SmallProduct *p = &batch->p[k];
        int64_t inner = 0;
        p->packed = p->n % 4 == 0 && aligned16(p->c) && aligned16(p->bias) && aligned16(p->y) && aligned16(p->d);
        for (int t = 0; t < p->terms; t++) inner += p->term[t].k, p->chunks += small_chunks(p->term[t].k);
        few = few && p->m * p->n * inner < FEW_MULTIPLICATIONS;
    }
    SmallChoice choice = small_choose(*batch, few);
    switch (choice.way) {
    case SMALL_DOUBLE:
        return small_run<SmallDouble, A_T, B_T>(batch, choice.parts, stream);
    case SMALL_DOUBLE_SHALLOW:
        return small_run<SmallDoubleShallow, A_T, B_T>(batch, choice.parts, stream);
    case SMALL_LOW:
        return small_run<SmallLow, A_T, B_T>(batch, choice.parts, stream);
    case SMALL_32:
        return small_run<Small32, A_T, B_T>(batch, choice.parts, stream);
    case SMALL_48:
        return small_run<Small48, A_T, B_T>(batch, choice.parts, stream);
    default:
        return small_run<Small64, A_T, B_T>(batch, choice.parts, stream);
    }
}

#endif
