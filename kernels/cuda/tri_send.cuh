/* Triangle products of which every rank holds a part of the inner extent, X_c = sum over ranks of A_c^T B_c, the sum
 * shared out along its rows (reduce_scatter): each channel's product is made in tiles, those of the other ranks' rows
 * first, which are on their way while the rest is made. Parts land as they lie in shared memory, in chunks of 64 rows
 * (or as many as a rank has) x 64 columns in the 128-byte swizzle: [sender][channel][chunk of rows][chunk of columns].
 *
 * A block owns channels, on all ranks the same ones, and what it sums comes from its namesakes (peer_block.cuh). One
 * thread copies 32 inner elements at a time into a ring, two warpgroups multiply, 64 rows each; another thread sends
 * what the other ranks get, and tells them how many pieces (the rows of a warpgroup in a tile) have landed. Then the
 * warpgroups go through the rows of this rank: each warp waits for the pieces that it needs and adds the parts in the
 * order of ranks, so that a piece is summed while later ones are on the wire. Nothing that is sent waits for what
 * lands, only for ranks that have begun. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRI_SEND_CUH
#define FOLDSCALE_KERNELS_CUDA_TRI_SEND_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/peer_block.cuh"

/* Blocks at most; where ops aside run beside it (PeerSend.shares): schedule_beside.c knows. */
enum { TRI_BLOCKS = PEER_BLOCKS, TRI_SHARING = PEER_BLOCKS / 2 };
enum { TRI_GROUPS = 2, TRI_THREADS = TRI_GROUPS * 128 + 128 };
enum { TRI_STEP = 32, TRI_PANEL = TRI_STEP * 128 /* bytes of 64 columns of a step */, TRI_CHUNK = 64 * 128 };
/* Parts of a block's work: tiles with rows of other ranks, and without. */
enum { TRI_SENT, TRI_KEPT, TRI_PARTS };
/* Steps of a block's turn: it has begun, then one for every piece that has landed. */
enum { TRI_BEGUN = 1 };

/* How X is shared out. */
struct TriCut {
    int share;                                /* rows of a rank */
    int panels, own_first, own;               /* of 64 rows; those with rows of this rank */
    int sent_pairs, kept_pairs, column_tiles; /* of a channel; pairs of panels */
    bool own_sent;                            /* the first own panel is in a pair with rows of other ranks */
};

struct TriProblem {
    CUtensorMap a, b;
    PeerSend send;                      /* out: where the parts of sums land */
    int channels, inner, rows, columns; /* X [channels][rows][columns] */
    TriCut cut;
    bf16 *out;
};

template <int BN> struct TriShape {
    static constexpr int PANELS = BN / PANEL, STAGE = (TRI_GROUPS + PANELS) * TRI_PANEL;
    static constexpr int STAGES = BN > 128 ? 3 : 6;
    static constexpr int TILE = PANELS * TRI_CHUNK /* of a warpgroup, on its way out */;
    static constexpr int TILES_AT = STAGES * STAGE, BARRIERS_AT = TILES_AT + TRI_PARTS * TRI_GROUPS * TILE;
    static constexpr int BYTES = BARRIERS_AT + 256;
};

struct TriPlace {
    uint32_t base, full, empty, done, free; /* done, free: of what is sent, [warpgroup] */
    int channels;                           /* of this block, tri_channel(0), ... */
};

struct TriTile {
    int part, channel, pair, column;
};

__device__ __forceinline__ int tri_channel(int n)
{
    return (int)blockIdx.x + n * (int)gridDim.x;
}

/* Tiles of a channel. */
__device__ __forceinline__ int tri_each(const TriProblem &p, int part)
{
    return (part == TRI_SENT ? p.cut.sent_pairs : p.cut.kept_pairs) * p.cut.column_tiles;
}
__device__ __forceinline__ int tri_tiles(const TriProblem &p, const TriPlace &at, int part)
{
    return at.channels * tri_each(p, part);
}

/* Tile i of the block, those that are sent first. */
__device__ __forceinline__ TriTile tri_tile(const TriProblem &p, const TriPlace &at, int i)
{
    TriTile tile;
    int before = tri_tiles(p, at, TRI_SENT);
    tile.part = i < before ? TRI_SENT : TRI_KEPT;
    int k = i < before ? i : i - before, each = tri_each(p, tile.part);
    tile.channel = tri_channel(k / each);
    tile.pair = k % each / p.cut.column_tiles + (tile.part == TRI_KEPT ? p.cut.sent_pairs : 0);
    tile.column = k % p.cut.column_tiles;
    return tile;
}

/* Row of X from which the warpgroup's 64 rows of a pair are: own panels come last. */
__device__ __forceinline__ int tri_row(const TriProblem &p, int pair, int group)
{
    return (p.cut.own_first + p.cut.own + 2 * pair + group) % p.cut.panels * PANEL;
}

/* The copying thread: operands. */
template <int BN> __device__ __forceinline__ void tri_load(const TriProblem &p, const TriPlace &at)
{
    typedef TriShape<BN> S;
    int s = 0, tiles = tri_tiles(p, at, TRI_SENT) + tri_tiles(p, at, TRI_KEPT);
    for (int i = 0; i < tiles; i++) {
        TriTile tile = tri_tile(p, at, i);
        for (int k = 0; k < p.inner / TRI_STEP; k++, s++) {
            int slot = s % S::STAGES, row = tile.channel * p.inner + k * TRI_STEP;
            uint32_t full = at.full + slot * 8, to = at.base + slot * S::STAGE;
            barrier_wait(at.empty + slot * 8, (uint32_t)(s / S::STAGES & 1) ^ 1);
            barrier_expect(full, S::STAGE);
            for (int g = 0; g < TRI_GROUPS; g++)
                tensor_load(to + g * TRI_PANEL, &p.a, row, tri_row(p, tile.pair, g), full);
            for (int j = 0; j < S::PANELS; j++)
                tensor_load(to + (TRI_GROUPS + j) * TRI_PANEL, &p.b, row, tile.column * BN + j * PANEL, full);
        }
    }
    if (p.send.shares) stage_release();
}

/* Rows of a chunk. */
__device__ __forceinline__ int tri_chunk_rows(const TriProblem &p)
{
    return min((int)PANEL, p.cut.share);
}

/* A piece to where it belongs. */
template <int BN>
__device__ __forceinline__ void tri_send_piece(const TriProblem &p, const PeerBlock &block, uint32_t &met,
                                               const TriTile &tile, uint32_t from, int row0)
{
    int rows = tri_chunk_rows(p), bytes = rows * 128;
    for (int r = 0; r < PANEL; r += rows) {
        PeerPlace place = peer_place(p.send, (uint32_t)(tile.channel * p.rows + row0 + r), 0);
        char *to = (char *)p.send.out[place.rank] + (int64_t)place.row * p.columns * (int)sizeof(bf16) +
                   tile.column * (BN / PANEL) * bytes;
        if (!(met >> place.rank & 1)) block.await(place.rank, TRI_BEGUN);
        met |= 1u << place.rank;
        if (rows == PANEL)
            bulk_store(to, from, BN / PANEL * TRI_CHUNK);
        else
            for (int j = 0; j < BN / PANEL; j++) bulk_store(to + j * bytes, from + j * TRI_CHUNK + r * 128, bytes);
    }
}

/* The sending thread. It waits for a piece when the next one is on its way. */
template <int BN>
__device__ __forceinline__ void tri_send(const TriProblem &p, const TriPlace &at, const PeerBlock &block)
{
    typedef TriShape<BN> S;
    uint32_t met = 0; /* bit of a rank that is here */
    int pieces = tri_tiles(p, at, TRI_SENT) * TRI_GROUPS;
    for (int n = 0; n <= pieces; n++) {
        if (n < pieces) {
            int group = n % TRI_GROUPS, k = n / TRI_GROUPS;
            TriTile tile = tri_tile(p, at, k);
            barrier_wait(at.done + group * 8, (uint32_t)k & 1);
            tri_send_piece<BN>(p, block, met, tile, at.base + S::TILES_AT + group * S::TILE,
                               tri_row(p, tile.pair, group));
            tensor_store_commit();
            tensor_store_wait<1>();
        } else {
            tensor_store_wait();
        }
        if (n == 0) continue;
        barrier_arrive(at.free + (n - 1) % TRI_GROUPS * 8);
        block.tell(TRI_BEGUN + (uint32_t)n);
    }
    block.end(TRI_BEGUN + (uint32_t)pieces);
}

/* A warpgroup's 64 rows of a tile. */
template <int BN>
__device__ __forceinline__ void tri_multiply(const TriProblem &p, const TriPlace &at, int group, int &s,
                                             float (&acc)[BN / 2])
{
    typedef TriShape<BN> S;
    int steps = p.inner / TRI_STEP;
    /* The first step does not read them, but without values they would keep their registers from tile to tile. */
#pragma unroll
    for (int k = 0; k < BN / 2; k++) acc[k] = 0;
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

/* A warpgroup's accumulators as bf16, as they leave: a warp writes 16 rows. */
template <int BN> __device__ __forceinline__ void tri_put(const float (&acc)[BN / 2], uint32_t tile)
{
    int thread = threadIdx.x % 128, lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
    uint32_t to = tile + row * 128 + lane % 4 * 4;
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
        uint32_t put = to + j / 8 * TRI_CHUNK + ((j % 8 ^ lane / 4) << 4);
        shared_word_put(put, pack_bf16(acc[4 * j], acc[4 * j + 1]));
        shared_word_put(put + 8 * 128, pack_bf16(acc[4 * j + 2], acc[4 * j + 3]));
    }
}

/* Rows of this rank in a column tile of the block's channel n. */
struct TriOwn {
    int n, chunk, column;
};

/* Pieces that a rank has sent when the one with these rows is there: panels go in the order of tri_row. */
__device__ __forceinline__ int tri_sent(const TriProblem &p, int sender, int panel, const TriOwn &own)
{
    int place = (panel - sender * p.cut.share / PANEL - p.cut.own + 2 * p.cut.panels) % p.cut.panels;
    int tile = (own.n * p.cut.sent_pairs + place / TRI_GROUPS) * p.cut.column_tiles + own.column;
    return tile * TRI_GROUPS + place % TRI_GROUPS + 1;
}

/* By a warp: until the other ranks' parts have landed, and the own one unless it was kept. The own one last: a rank
 * that does not come is to be named before this one, which waits for it with what it sends. */
template <bool KEPT>
__device__ __forceinline__ void tri_await(const TriProblem &p, const PeerBlock &block, const TriOwn &own)
{
    const PeerSend &s = p.send;
    int other = (int)threadIdx.x % WARP;
    if (other < s.ranks && other != s.rank) {
        int sender = s.loopback ? s.rank : other, taker = s.loopback ? other : s.rank;
        int panel = taker * p.cut.share / PANEL + own.chunk;
        block.await(other, TRI_BEGUN + (uint32_t)tri_sent(p, sender, panel, own));
    }
    __syncwarp();
    if (!KEPT) block.await(s.rank, TRI_BEGUN + (uint32_t)tri_sent(p, s.rank, p.cut.own_first + own.chunk, own));
}

/* x += 8 elements */
__device__ __forceinline__ void tri_add(float (&x)[8], const uint4 &v)
{
    float y[8];
    unpack8(v, y);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] += y[j];
}

__device__ __forceinline__ uint4 shared_16(uint32_t at)
{
    uint32_t w[4];
    shared_chunk(at, w);
    return make_uint4(w[0], w[1], w[2], w[3]);
}

/* By a warp: 4 * STEPS rows of a chunk, from `row` on, in the order of ranks. Of those that were kept this rank's part
 * lies in shared memory, in the tile `kept`. */
template <int BN, int STEPS, bool KEPT>
__device__ __forceinline__ void tri_sum(const TriProblem &p, const TriOwn &own, int row, uint32_t kept)
{
    constexpr int PANELS = BN / PANEL;
    int lane = (int)threadIdx.x % WARP, unit = lane % 8, rows = KEPT ? PANEL : tri_chunk_rows(p), ranks = p.send.ranks;
    int64_t first = (int64_t)tri_channel(own.n) * p.cut.share + own.chunk * rows,
            part = (int64_t)p.channels * p.cut.share;
    row += lane / 8;
    int within = row * 128 + unit * 16;
    const char *landed = (const char *)p.send.out[p.send.rank] +
                         (first * p.columns + own.column * BN * rows) * (int)sizeof(bf16) + within;
    float total[STEPS * PANELS][8];
#pragma unroll
    for (int k = 0; k < STEPS * PANELS * 8; k++) total[k / 8][k % 8] = -0.0f; /* adds nothing to the first part */
    auto bring = [&](int r, uint4(&v)[STEPS * PANELS]) {
        const char *from = landed + r * part * p.columns * (int)sizeof(bf16);
        bool here = KEPT && r == p.send.rank;
#pragma unroll
        for (int k = 0; k < STEPS * PANELS; k++) {
            int panel = k % PANELS, step = k / PANELS * 4 * 128;
            v[k] = here ? shared_16(kept + panel * TRI_CHUNK + within + step)
                        : __ldcg((const uint4 *)(from + panel * rows * 128 + step));
        }
    };
#pragma unroll 1
    for (int r = 0; r < ranks; r += 2) {
        uint4 v[STEPS * PANELS], w[STEPS * PANELS];
        bring(r, v);
        bring(min(r + 1, ranks - 1), w);
#pragma unroll
        for (int k = 0; k < STEPS * PANELS; k++) tri_add(total[k], v[k]);
        if (r + 1 == ranks) break;
#pragma unroll
        for (int k = 0; k < STEPS * PANELS; k++) tri_add(total[k], w[k]);
    }
    bf16 *out = p.out + (first + row) * p.columns + own.column * BN;
#pragma unroll
    for (int k = 0; k < STEPS * PANELS; k++) {
        int step = k / PANELS * 4, column = k % PANELS * PANEL + (unit ^ (row + step) % 8) * 8;
        __stcg((uint4 *)(out + (int64_t)step * p.columns + column), pack8(total[k]));
    }
}

/* The first rows of this rank in channel n, where they lie in tiles that were sent: by all warps, four rows at a time.
 */
template <int BN> __device__ __forceinline__ void tri_sum_sent(const TriProblem &p, const PeerBlock &block, int n)
{
    for (int column = 0; column < p.cut.column_tiles; column++) {
        TriOwn own = {n, 0, column};
        tri_await<false>(p, block, own);
        for (int row = (int)threadIdx.x / WARP * 4; row < tri_chunk_rows(p); row += TRI_GROUPS * 4 * 4)
            tri_sum<BN, 1, false>(p, own, row, 0);
    }
}

template <int BN>
__device__ __forceinline__ void tri_work(const TriProblem &p, const TriPlace &at, const PeerBlock &block, int group)
{
    typedef TriShape<BN> S;
    constexpr int STEPS = 8 * PANEL / BN; /* eight loads in flight */
    int s = 0, sent = tri_tiles(p, at, TRI_SENT);
    for (int k = 0; k < sent; k++) {
        float acc[BN / 2];
        tri_multiply<BN>(p, at, group, s, acc);
        barrier_wait(at.free + group * 8, (uint32_t)(k & 1) ^ 1);
        tri_put<BN>(acc, at.base + S::TILES_AT + group * S::TILE);
        barrier_arrive_warp(at.done + group * 8);
    }
    uint32_t kept = at.base + S::TILES_AT + (TRI_KEPT * TRI_GROUPS + group) * S::TILE;
    for (int n = 0; n < at.channels; n++) {
        if (p.cut.own_sent) tri_sum_sent<BN>(p, block, n);
        for (int k = 0; k < tri_each(p, TRI_KEPT); k++) {
            float acc[BN / 2];
            tri_multiply<BN>(p, at, group, s, acc);
            tri_put<BN>(acc, kept);
            int pair = p.cut.sent_pairs + k / p.cut.column_tiles;
            TriOwn own = {n, tri_row(p, pair, group) / PANEL - p.cut.own_first, k % p.cut.column_tiles};
            tri_await<true>(p, block, own); /* the warp reads no rows but those it put */
#pragma unroll 1
            for (int row = 0; row < 16; row += STEPS * 4)
                tri_sum<BN, STEPS, true>(p, own, (int)threadIdx.x % 128 / WARP * 16 + row, kept);
            __syncwarp();
        }
    }
}

template <int BN>
__global__ void __launch_bounds__(TRI_THREADS, 1) tri_send_kernel(const __grid_constant__ TriProblem p)
{
    typedef TriShape<BN> S;
    extern __shared__ __align__(1024) char shared[];
    int warp = threadIdx.x / WARP;
    TriPlace at;
    at.channels = (p.channels - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    at.base = shared_address(shared), at.full = at.base + S::BARRIERS_AT, at.empty = at.full + S::STAGES * 8;
    at.done = at.empty + S::STAGES * 8, at.free = at.done + TRI_GROUPS * 8;
    if (threadIdx.x == 0) {
        for (int k = 0; k < S::STAGES; k++)
            barrier_init(at.full + k * 8, 1), barrier_init(at.empty + k * 8, TRI_GROUPS);
        for (int k = 0; k < TRI_GROUPS; k++)
            barrier_init(at.done + k * 8, 4 * WARP_ARRIVALS), barrier_init(at.free + k * 8, 1);
        barrier_publish();
        tensor_prefetch(&p.a), tensor_prefetch(&p.b);
    }
    stage_wait();
    if (!p.send.shares) stage_release();
    PeerBlock block(p.send);
    __syncthreads();
    if (warp < TRI_GROUPS * 4) tri_work<BN>(p, at, block, warp / 4);
    if (warp == TRI_GROUPS * 4 && threadIdx.x % WARP == 0) tri_load<BN>(p, at);
    if (warp != TRI_GROUPS * 4 + 1) return;
    block.begin();
    if (threadIdx.x % WARP == 0) tri_send<BN>(p, at, block);
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

static inline TriCut tri_cut(const TriProblem &p, int columns_of_tile)
{
    TriCut cut;
    cut.share = p.rows / p.send.ranks;
    cut.panels = p.rows / PANEL;
    cut.own_first = p.send.rank * cut.share / PANEL, cut.own = (cut.share + PANEL - 1) / PANEL;
    int whole = cut.share / PANEL; /* panels of own rows alone */
    cut.sent_pairs = (cut.panels - whole + 1) / 2, cut.kept_pairs = cut.panels / 2 - cut.sent_pairs;
    cut.own_sent = cut.kept_pairs * 2 < cut.own;
    cut.column_tiles = p.columns / columns_of_tile;
    return cut;
}

template <int BN> static Status tri_send_launch_shape(TriProblem p, cudaStream_t stream)
{
    constexpr int BYTES = TriShape<BN>::BYTES;
    int most = p.send.shares ? TRI_SHARING : TRI_BLOCKS;
    int each = (p.channels + most - 1) / most, blocks = (p.channels + each - 1) / each;
    p.cut = tri_cut(p, BN);
    CUDA_TRY(cudaFuncSetAttribute(tri_send_kernel<BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(tri_send_kernel<BN>, blocks, TRI_THREADS, BYTES, stream, p);
    return cuda_launched("tri_send_kernel");
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
