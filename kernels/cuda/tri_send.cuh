/* Triangle products of which every rank holds a part of the inner extent, X_c = sum over ranks of A_c^T B_c, the sum
 * shared out along its rows (reduce_scatter): each channel's product is made in tiles, those of the other ranks' rows
 * first, which are on their way while the rest is made; when all parts are here, a second kernel adds them in the order
 * of ranks. Parts land as they lie in shared memory, in chunks of 64 rows (or as many as a rank has) x 64 columns in
 * the 128-byte swizzle: [sender][channel][chunk of rows][chunk of columns].
 *
 * A block owns channels. One thread copies 32 inner elements at a time into a ring, two warpgroups multiply, 64 rows
 * each, one thread sends what the ranks get, another one keeps what this rank gets. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRI_SEND_CUH
#define FOLDSCALE_KERNELS_CUDA_TRI_SEND_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/peer_send.cuh"

enum { TRI_BLOCKS = 132, TRI_GROUPS = 2, TRI_THREADS = TRI_GROUPS * 128 + 128 };
enum { TRI_STEP = 32, TRI_PANEL = TRI_STEP * 128 /* bytes of 64 columns of a step */, TRI_CHUNK = 64 * 128 };
/* Parts of a block's work: tiles with rows of other ranks, and without. */
enum { TRI_SENT, TRI_KEPT, TRI_PARTS };

struct TriProblem {
    CUtensorMap a, b;
    PeerSend send;                      /* out: where the parts of sums land */
    int channels, inner, rows, columns; /* X [channels][rows][columns] */
    bf16 *out;
};

template <int BN> struct TriShape {
    static constexpr int PANELS = BN / PANEL, STAGE = (TRI_GROUPS + PANELS) * TRI_PANEL;
    static constexpr int STAGES = BN > 128 ? 3 : 6;
    static constexpr int TILE = PANELS * TRI_CHUNK /* of a warpgroup, on its way out */;
    static constexpr int TILES_AT = STAGES * STAGE, BARRIERS_AT = TILES_AT + TRI_PARTS * TRI_GROUPS * TILE;
    static constexpr int BYTES = BARRIERS_AT + 256;
};

/* Barriers and the share of the work of a thread block. */
struct TriPlace {
    uint32_t base, full, empty, done, free;   /* done, free: [part][warpgroup] */
    int panels, own_first, own;               /* of 64 rows; those with rows of this rank */
    int sent_pairs, kept_pairs, column_tiles; /* of a channel */
    int channels;                             /* of this block, tri_channel(0), ... */
};

struct TriTile {
    int part, channel, pair, column;
};

__device__ __forceinline__ TriPlace tri_place(const TriProblem &p, int columns_of_tile)
{
    TriPlace at;
    int share = p.rows / p.send.ranks;
    at.panels = p.rows / PANEL;
    at.own_first = p.send.rank * share / PANEL, at.own = (share + PANEL - 1) / PANEL;
    int whole = share / PANEL; /* panels of own rows alone */
    at.sent_pairs = (at.panels - whole + 1) / 2, at.kept_pairs = at.panels / 2 - at.sent_pairs;
    at.column_tiles = p.columns / columns_of_tile;
    at.channels = (p.channels - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    return at;
}

__device__ __forceinline__ int tri_channel(int n)
{
    return (int)blockIdx.x + n * (int)gridDim.x;
}

/* Tiles of a channel. */
__device__ __forceinline__ int tri_each(const TriPlace &at, int part)
{
    return (part == TRI_SENT ? at.sent_pairs : at.kept_pairs) * at.column_tiles;
}
__device__ __forceinline__ int tri_tiles(const TriPlace &at, int part)
{
    return at.channels * tri_each(at, part);
}

/* Tile i of the block, those that are sent first. */
__device__ __forceinline__ TriTile tri_tile(const TriPlace &at, int i)
{
    TriTile tile;
    int before = tri_tiles(at, TRI_SENT);
    tile.part = i < before ? TRI_SENT : TRI_KEPT;
    int k = i < before ? i : i - before, each = tri_each(at, tile.part);
    tile.channel = tri_channel(k / each);
    tile.pair = k % each / at.column_tiles + (tile.part == TRI_KEPT ? at.sent_pairs : 0);
    tile.column = k % at.column_tiles;
    return tile;
}

/* Row of X from which the warpgroup's 64 rows of a pair are: own panels come last. */
__device__ __forceinline__ int tri_row(const TriPlace &at, int pair, int group)
{
    return (at.own_first + at.own + 2 * pair + group) % at.panels * PANEL;
}

/* The copying thread: operands. */
template <int BN> __device__ __forceinline__ void tri_load(const TriProblem &p, const TriPlace &at)
{
    typedef TriShape<BN> S;
    int s = 0, tiles = tri_tiles(at, TRI_SENT) + tri_tiles(at, TRI_KEPT);
    for (int i = 0; i < tiles; i++) {
        TriTile tile = tri_tile(at, i);
        for (int k = 0; k < p.inner / TRI_STEP; k++, s++) {
            int slot = s % S::STAGES, row = tile.channel * p.inner + k * TRI_STEP;
            uint32_t full = at.full + slot * 8, to = at.base + slot * S::STAGE;
            barrier_wait(at.empty + slot * 8, (uint32_t)(s / S::STAGES & 1) ^ 1);
            barrier_expect(full, S::STAGE);
            for (int g = 0; g < TRI_GROUPS; g++)
                tensor_load(to + g * TRI_PANEL, &p.a, row, tri_row(at, tile.pair, g), full);
            for (int j = 0; j < S::PANELS; j++)
                tensor_load(to + (TRI_GROUPS + j) * TRI_PANEL, &p.b, row, tile.column * BN + j * PANEL, full);
        }
    }
}

/* Rows of a chunk. */
__device__ __forceinline__ int tri_chunk_rows(const TriProblem &p)
{
    return min((int)PANEL, (int)p.send.rows.run);
}

/* 64 rows of a tile to where they belong. */
template <int BN>
__device__ __forceinline__ void tri_store_rows(const TriProblem &p, PeerSender *sender, const TriTile &tile,
                                               uint32_t from, int row0)
{
    int rows = tri_chunk_rows(p), bytes = rows * 128;
    for (int r = 0; r < PANEL; r += rows) {
        PeerPlace place = peer_place(p.send, (uint32_t)(tile.channel * p.rows + row0 + r), 0);
        char *to = (char *)p.send.out[place.rank] + (int64_t)place.row * p.columns * (int)sizeof(bf16) +
                   tile.column * (BN / PANEL) * bytes;
        sender->meet(place.rank);
        if (rows == PANEL)
            bulk_store(to, from, BN / PANEL * TRI_CHUNK);
        else
            for (int j = 0; j < BN / PANEL; j++) bulk_store(to + j * bytes, from + j * TRI_CHUNK + r * 128, bytes);
    }
}

/* One thread per part: finished tiles go out. */
template <int BN, int PART> __device__ __forceinline__ void tri_store(const TriProblem &p, const TriPlace &at)
{
    typedef TriShape<BN> S;
    PeerSender sender(p.send);
    int first = PART == TRI_SENT ? 0 : tri_tiles(at, TRI_SENT);
    for (int k = 0; k < tri_tiles(at, PART); k++) {
        TriTile tile = tri_tile(at, first + k);
        for (int g = 0; g < TRI_GROUPS; g++) {
            int which = PART * TRI_GROUPS + g;
            barrier_wait(at.done + which * 8, (uint32_t)k & 1);
            tri_store_rows<BN>(p, &sender, tile, at.base + S::TILES_AT + which * S::TILE, tri_row(at, tile.pair, g));
        }
        tensor_store_commit();
        tensor_store_wait_read();
        for (int g = 0; g < TRI_GROUPS; g++) barrier_arrive(at.free + (PART * TRI_GROUPS + g) * 8);
    }
    tensor_store_wait();
    if (PART == TRI_SENT) sender.finish(gridDim.x);
}

/* A warpgroup's 64 rows of a tile. */
template <int BN>
__device__ __forceinline__ void tri_multiply(const TriProblem &p, const TriPlace &at, int group, int &s,
                                             float (&acc)[BN / 2])
{
    typedef TriShape<BN> S;
    int steps = p.inner / TRI_STEP;
    for (int k = 0; k < steps; k++, s++) {
        int slot = s % S::STAGES;
        uint32_t stage = at.base + slot * S::STAGE;
        barrier_wait(at.full + slot * 8, (uint32_t)(s / S::STAGES & 1));
        uint64_t a = across_descriptor(stage + group * TRI_PANEL, TRI_PANEL);
        uint64_t b = across_descriptor(stage + TRI_GROUPS * TRI_PANEL, TRI_PANEL);
        wgmma_fence();
#pragma unroll
        for (int q = 0; q < TRI_STEP / 16; q++)
            GroupProduct<BN, true, true>::step(acc, a + q * (2048 >> 4), b + q * (2048 >> 4), k + q > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (k > 0 && threadIdx.x % 128 == 0) barrier_arrive(at.empty + (s - 1) % S::STAGES * 8);
    }
    wgmma_wait<0>();
    if (threadIdx.x % 128 == 0) barrier_arrive(at.empty + (s - 1) % S::STAGES * 8);
}

template <int BN> __device__ __forceinline__ void tri_work(const TriProblem &p, const TriPlace &at, int group)
{
    typedef TriShape<BN> S;
    int thread = threadIdx.x % 128, lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
    int s = 0, sent = tri_tiles(at, TRI_SENT), tiles = sent + tri_tiles(at, TRI_KEPT);
    for (int i = 0; i < tiles; i++) {
        float acc[BN / 2];
        int part = i < sent ? TRI_SENT : TRI_KEPT, which = part * TRI_GROUPS + group, k = i < sent ? i : i - sent;
        uint32_t to = at.base + S::TILES_AT + which * S::TILE + row * 128 + lane % 4 * 4;
        tri_multiply<BN>(p, at, group, s, acc);
        barrier_wait(at.free + which * 8, (uint32_t)(k & 1) ^ 1);
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
            uint32_t put = to + j / 8 * TRI_CHUNK + ((j % 8 ^ lane / 4) << 4);
            shared_word_put(put, pack_bf16(acc[4 * j], acc[4 * j + 1]));
            shared_word_put(put + 8 * 128, pack_bf16(acc[4 * j + 2], acc[4 * j + 3]));
        }
        async_fence();
        __syncwarp();
        if (lane == 0) barrier_arrive(at.done + which * 8);
    }
}

template <int BN>
__global__ void __launch_bounds__(TRI_THREADS, 1) tri_send_kernel(const __grid_constant__ TriProblem p)
{
    typedef TriShape<BN> S;
    extern __shared__ __align__(1024) char shared[];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    TriPlace at = tri_place(p, BN);
    at.base = shared_address(shared), at.full = at.base + S::BARRIERS_AT, at.empty = at.full + S::STAGES * 8;
    at.done = at.empty + S::STAGES * 8, at.free = at.done + TRI_PARTS * TRI_GROUPS * 8;
    if (threadIdx.x == 0) {
        for (int k = 0; k < S::STAGES; k++)
            barrier_init(at.full + k * 8, 1), barrier_init(at.empty + k * 8, TRI_GROUPS);
        for (int k = 0; k < TRI_PARTS * TRI_GROUPS; k++)
            barrier_init(at.done + k * 8, 4), barrier_init(at.free + k * 8, 1);
        barrier_publish();
        tensor_prefetch(&p.a), tensor_prefetch(&p.b);
    }
    stage_wait();
    stage_release();
    peer_send_begin(p.send);
    __syncthreads();
    if (warp < TRI_GROUPS * 4) tri_work<BN>(p, at, warp / 4);
    if (lane > 0) return;
    if (warp == TRI_GROUPS * 4) tri_load<BN>(p, at);
    if (warp == TRI_GROUPS * 4 + 1) tri_store<BN, TRI_SENT>(p, at);
    if (warp == TRI_GROUPS * 4 + 2) tri_store<BN, TRI_KEPT>(p, at);
}

/* --- the sums, 8 elements at a time */

enum { TRI_SUM_THREADS = 256, TRI_SUM_UNITS = 4 };

/* x (+)= 8 elements */
__device__ __forceinline__ void tri_add(float (&x)[8], const uint4 &v, bool first)
{
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float2 y = unpack_bf16(pair[j]);
        x[2 * j] = first ? y.x : x[2 * j] + y.x;
        x[2 * j + 1] = first ? y.y : x[2 * j + 1] + y.y;
    }
}

/* Unit u of what has landed from a rank is an element of out [channels][rows of a rank][columns]: which one. */
__device__ __forceinline__ int64_t tri_element(const TriProblem &p, uint32_t u)
{
    uint32_t rows = (uint32_t)tri_chunk_rows(p), across = (uint32_t)p.columns / PANEL;
    uint32_t chunk = u / (rows * 8), row = u % (rows * 8) / 8;
    return (int64_t)(chunk / across * rows + row) * p.columns + chunk % across * PANEL + (u % 8 ^ row % 8) * 8;
}

static __global__ void __launch_bounds__(TRI_SUM_THREADS)
    tri_sum_kernel(const __grid_constant__ TriProblem p, uint32_t units)
{
    stage_wait();
    uint32_t first = blockIdx.x * (TRI_SUM_THREADS * TRI_SUM_UNITS) + threadIdx.x;
    const uint4 *landed = (const uint4 *)p.send.out[p.send.rank];
    float total[TRI_SUM_UNITS][8];
    for (int r = 0; r < p.send.ranks; r++) {
        uint4 v[TRI_SUM_UNITS];
#pragma unroll
        for (int k = 0; k < TRI_SUM_UNITS; k++)
            v[k] = __ldcg(landed + (int64_t)r * units + min(first + k * TRI_SUM_THREADS, units - 1));
#pragma unroll
        for (int k = 0; k < TRI_SUM_UNITS; k++) tri_add(total[k], v[k], r == 0);
    }
#pragma unroll
    for (int k = 0; k < TRI_SUM_UNITS; k++) {
        uint32_t u = first + k * TRI_SUM_THREADS;
        const float(&x)[8] = total[k];
        uint4 sum =
            make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
        if (u < units) *reinterpret_cast<uint4 *>(p.out + tri_element(p, u)) = sum;
    }
}

/* --- host */

/* a [channels][inner][rows], b [channels][inner][columns] -> out [channels][rows of this rank][columns] */
struct TriOperands {
    const void *a, *b;
    void *out;
    int64_t channels, inner, rows, columns;
};

static inline bool tri_send_fits(int64_t channels, int64_t inner, int64_t rows, int64_t columns, int64_t ranks)
{
    int64_t share = rows / ranks;
    bool fits = ranks >= 2 && ranks <= PEER_RANKS && rows % ranks == 0 && (share % PANEL == 0 || share == PANEL / 2);
    fits = fits && inner > 0 && inner % TRI_STEP == 0 && rows % (2 * PANEL) == 0 && columns % 128 == 0;
    return fits && channels > 0 && channels * rows * columns < INT64_C(0x7fffffff);
}

template <int BN> static Status tri_send_launch_shape(const TriProblem &p, cudaStream_t stream)
{
    constexpr int BYTES = TriShape<BN>::BYTES;
    int each = (p.channels + TRI_BLOCKS - 1) / TRI_BLOCKS, blocks = (p.channels + each - 1) / each;
    CUDA_TRY(cudaFuncSetAttribute(tri_send_kernel<BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(tri_send_kernel<BN>, blocks, TRI_THREADS, BYTES, stream, p);
    TRY(cuda_launched("tri_send_kernel"));
    uint32_t units = (uint32_t)(p.channels * p.rows / p.send.ranks * p.columns / 8);
    launch(tri_sum_kernel, blocks_for(units, TRI_SUM_THREADS * TRI_SUM_UNITS), TRI_SUM_THREADS, 0, stream, p, units);
    return cuda_launched("tri_sum_kernel");
}

static inline Status tri_send_launch(const TriOperands &o, const PeerSend &send, cudaStream_t stream)
{
    TriProblem p = {};
    p.send = send;
    p.channels = (int)o.channels, p.inner = (int)o.inner, p.rows = (int)o.rows, p.columns = (int)o.columns;
    p.out = (bf16 *)o.out;
    TRY(tensor_map(o.a, o.channels * o.inner, o.rows, TRI_STEP, &p.a));
    TRY(tensor_map(o.b, o.channels * o.inner, o.columns, TRI_STEP, &p.b));
    return o.columns % 256 == 0 ? tri_send_launch_shape<256>(p, stream) : tri_send_launch_shape<128>(p, stream);
}

#endif
