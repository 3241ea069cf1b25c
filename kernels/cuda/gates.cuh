/* Products y_k = x W_k^T + b_k, pairs of which are gated at the edge, a = m sigmoid(y_2q+1) y_2q with its channels
 * first. As products with resident weights: those of a block of columns stay in shared memory, tiles of 64 rows stream
 * past through a ring of slots, two warpgroups take tiles in turn. A slot of x is free as soon as it is multiplied;
 * what leaves has slots of its own, from which a warp for each warpgroup sends it during the next product. A block of
 * columns is 256 columns of pairs, W channels of a value and W of its gate side by side, so that a thread holds both;
 * or 128 columns outside of pairs. */
#ifndef FOLDSCALE_KERNELS_CUDA_GATES_CUH
#define FOLDSCALE_KERNELS_CUDA_GATES_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/peer_send.cuh"

enum { GATES_ROWS = 64, GATES_COLUMNS = 256, GATES_LOOSE = 128, GATES_MEMBERS = 6, GATES_PAIRS = 3, GATES_BLOCKS = 8 };
/* Multiprocessors; those taken where ops aside run beside what is sent (PeerSend.shares): schedule_beside.c knows. */
enum { GATES_PROCESSORS = 132, GATES_SHARING = 110 };
enum { GATES_GROUPS = 2, GATES_THREADS = GATES_GROUPS * 128 + 128, GATES_CHUNK = GATES_ROWS * 128 /* bytes */ };
enum { GATES_OUTS = 2 /* slots of what leaves, of a warpgroup, at most */ };

struct GatesProblem {
    CUtensorMap x, w, y[GATES_MEMBERS], a[GATES_PAIRS];
    int rows, columns, pair_blocks, blocks, first[GATES_BLOCKS + 1]; /* of the grid, by block of columns */
    int places, channels;                                            /* a[groups][channels][places] */
    const float *bias[GATES_MEMBERS], *mask;
    bool early;    /* w and bias before stage_wait() */
    PeerSend send; /* of pair `sent`, whose places all ranks get, one rank's behind those of another */
    CUtensorMap sent_to[PEER_RANKS];
    int sent;
};

/* Slots of x for both warpgroups in turn; slots of what leaves for each: a pair's products and what is gated in one,
 * else two that hold either what is gated or products outside of pairs. */
template <int K, bool KEEP> struct GatesShape {
    static constexpr int W_BYTES = GATES_COLUMNS * K * 2, X_BYTES = GATES_ROWS * K * 2, SLOTS = 4;
    static constexpr int OUT_BYTES = GATES_ROWS * GATES_LOOSE * 2, A_AT = KEEP ? GATES_ROWS * GATES_COLUMNS * 2 : 0;
    static constexpr int GROUP_BYTES = KEEP ? A_AT + OUT_BYTES : GATES_OUTS * OUT_BYTES;
    static constexpr int OUT_AT = W_BYTES + SLOTS * X_BYTES, BIAS_AT = OUT_AT + GATES_GROUPS * GROUP_BYTES;
    static constexpr int BARRIERS_AT = BIAS_AT + GATES_COLUMNS * 4, BYTES = BARRIERS_AT + 256;
    static_assert(SLOTS % GATES_GROUPS == 0, "a slot of x belongs to one warpgroup");
    static_assert(GROUP_BYTES >= GATES_OUTS * OUT_BYTES && BYTES <= 227 * 1024, "what leaves has room");
};

/* Shared memory and the share of the work of a thread block. */
struct GatesPlace {
    uint32_t w, slots, full, empty, ready;
    uint32_t out, done, free; /* what leaves: slots, those ready to leave (four warps), those that are free again */
    const float *bias;
    int column0, first, step, tiles;
    bool paired;
};

/* Where the k-th tile of a warpgroup leaves from. */
struct GatesOut {
    uint32_t at, done, free;
    int before; /* tiles that left from there */
};

template <int K, bool KEEP> __device__ __forceinline__ GatesOut gates_out(const GatesPlace &at, int group, int k)
{
    typedef GatesShape<K, KEEP> S;
    bool one = KEEP && at.paired;
    int slot = one ? 0 : k % GATES_OUTS, barrier = (group * GATES_OUTS + slot) * 8;
    return {at.out + group * S::GROUP_BYTES + slot * S::OUT_BYTES, at.done + barrier, at.free + barrier,
            one ? k : k / GATES_OUTS};
}

/* As slot_barriers(), but a slot of x is freed by the four warps of the warpgroup it belongs to, and what leaves has
 * slots of its own. */
template <int SLOTS> __device__ __forceinline__ void gates_barriers(GatesPlace *place, uint32_t at)
{
    place->full = at, place->empty = at + SLOTS * 8, place->done = at + 2 * SLOTS * 8;
    place->free = place->done + GATES_GROUPS * GATES_OUTS * 8;
    place->ready = place->free + GATES_GROUPS * GATES_OUTS * 8;
    if (threadIdx.x > 0) return;
    for (int s = 0; s < SLOTS; s++) {
        barrier_init(place->full + s * 8, 1);
        barrier_init(place->empty + s * 8, 4); /* warps */
    }
    for (int s = 0; s < GATES_GROUPS * GATES_OUTS; s++) {
        barrier_init(place->done + s * 8, 4 * WARP_ARRIVALS);
        barrier_init(place->free + s * 8, 1);
    }
    barrier_init(place->ready, 1);
    barrier_publish();
}

__device__ __forceinline__ GatesPlace gates_place(const GatesProblem &p)
{
    int block = 0;
    while (block + 1 < p.blocks && (int)blockIdx.x >= p.first[block + 1]) block++;
    GatesPlace at;
    at.paired = block < p.pair_blocks;
    at.column0 =
        at.paired ? block * GATES_COLUMNS : p.pair_blocks * GATES_COLUMNS + (block - p.pair_blocks) * GATES_LOOSE;
    at.first = blockIdx.x - p.first[block], at.step = p.first[block + 1] - p.first[block];
    at.tiles = p.rows / GATES_ROWS;
    return at;
}

/* One thread: the weights. */
template <int K> __device__ __forceinline__ void gates_weights(const GatesProblem &p, const GatesPlace &at)
{
    barrier_expect(at.ready, GATES_COLUMNS * K * 2);
    for (int k = 0; k < K / 64; k++) tensor_load(at.w + k * GATES_COLUMNS * 128, &p.w, at.column0, k * 64, at.ready);
}

/* One thread: tiles of x as slots become free. */
template <int K, bool KEEP> __device__ __forceinline__ void gates_load(const GatesProblem &p, const GatesPlace &at)
{
    typedef GatesShape<K, KEEP> S;
    for (int i = 0, tile = at.first; tile < at.tiles; i++, tile += at.step) {
        int slot = i % S::SLOTS, round = i / S::SLOTS;
        uint32_t full = at.full + slot * 8;
        barrier_wait(at.empty + slot * 8, (round & 1) ^ 1);
        barrier_expect(full, S::X_BYTES);
        for (int k = 0; k < K / 64; k++)
            tensor_load(at.slots + slot * S::X_BYTES + k * GATES_CHUNK, &p.x, tile * GATES_ROWS, k * 64, full);
    }
    if (p.send.shares) stage_release();
}

/* What of a tile's products is wanted, 64 columns at a time. */
template <int W>
__device__ __forceinline__ void gates_send_products(const GatesProblem &p, const GatesPlace &at, uint32_t from, int row)
{
    int width = at.paired ? GATES_COLUMNS : GATES_LOOSE;
#pragma unroll
    for (int c = 0; c < GATES_COLUMNS / 64; c++) {
        int column = at.column0 + c * 64;
        if (c * 64 < width && column < p.columns)
            tensor_store(&p.y[column / W], from + c * GATES_CHUNK, row, column % W);
    }
}

/* A gated tile, first to this rank's own memory. */
__device__ __forceinline__ void gates_send_gated(const GatesProblem &p, int pair, PeerSender *sender, uint32_t from,
                                                 int channel, int place)
{
    bool sends = p.send.ranks > 0 && pair == p.sent;
    if (!sends) tensor_store(&p.a[pair], from, channel, place);
    for (int k = 0; sends && k < p.send.ranks; k++) {
        int rank = (p.send.rank + k) % p.send.ranks;
        sender->meet(rank);
        tensor_store(&p.sent_to[rank], from, channel, place + (p.send.loopback ? rank : p.send.rank) * p.places);
    }
}

/* One thread per warpgroup: finished tiles go out, then their slots are free. */
template <int K, int W, bool KEEP>
__device__ __forceinline__ void gates_store(const GatesProblem &p, const GatesPlace &at, int group)
{
    PeerSender sender(p.send);
    for (int k = 0, tile = at.first + group * at.step; tile < at.tiles; k++, tile += GATES_GROUPS * at.step) {
        int row = tile * GATES_ROWS, channel = row / p.places * p.channels, place = row % p.places;
        GatesOut out = gates_out<K, KEEP>(at, group, k);
        barrier_wait(out.done, out.before & 1);
        if (KEEP || !at.paired) gates_send_products<W>(p, at, out.at, row);
        for (int q = 0; at.paired && q < GATES_COLUMNS / (2 * W); q++)
            gates_send_gated(p, at.column0 / (2 * W) + q, &sender, out.at + GatesShape<K, KEEP>::A_AT + q * W * 128,
                             channel, place);
        tensor_store_commit();
        tensor_store_wait_read();
        barrier_arrive(out.free);
    }
    tensor_store_wait();
    sender.finish(gridDim.x * GATES_GROUPS);
}

template <int K, int N> __device__ __forceinline__ void gates_product(float (&acc)[N / 2], uint32_t x, uint32_t w)
{
    uint64_t a = wgmma_descriptor(x), b = wgmma_descriptor(w);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K / 16; k++)
        wgmma_step<N>(acc, a + k / 4 * (GATES_CHUNK >> 4) + k % 4 * 2,
                      b + k / 4 * (GATES_COLUMNS * 128 >> 4) + k % 4 * 2, k > 0);
    wgmma_commit();
    wgmma_wait<0>();
}

/* acc += bias */
template <int N> __device__ __forceinline__ void gates_bias(float (&acc)[N / 2], const float *bias)
{
    int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        float2 b = *reinterpret_cast<const float2 *>(bias + j * 8 + t * 2);
        acc[4 * j] += b.x, acc[4 * j + 1] += b.y, acc[4 * j + 2] += b.x, acc[4 * j + 3] += b.y;
    }
}

/* A warpgroup's k-th tile of x, which is free then. */
template <int K, bool KEEP, int N>
__device__ __forceinline__ void gates_multiply(const GatesPlace &at, int group, int k, float (&acc)[N / 2])
{
    typedef GatesShape<K, KEEP> S;
    int i = k * GATES_GROUPS + group, slot = i % S::SLOTS;
    barrier_wait(at.full + slot * 8, i / S::SLOTS & 1);
    gates_product<K, N>(acc, at.slots + slot * S::X_BYTES, at.w);
    if (threadIdx.x % WARP == 0) barrier_arrive(at.empty + slot * 8);
    gates_bias<N>(acc, at.bias);
}

/* Products as they leave, 16 rows and 16 columns of a warp at a time: four 8 x 8 matrices. */
template <int N> __device__ __forceinline__ void gates_pack(const float (&acc)[N / 2], uint32_t (&products)[N / 16][4])
{
#pragma unroll
    for (int k = 0; k < N / 4; k++) products[k / 4][k % 4] = pack_bf16(acc[2 * k], acc[2 * k + 1]);
}

/* Rows of 64 columns in the layout of a tensor copy. */
template <int N> __device__ __forceinline__ void gates_put_products(const uint32_t (&products)[N / 16][4], uint32_t y)
{
    int thread = threadIdx.x % 128, lane = thread % WARP, matrix = lane / 8, r = lane % 8;
    uint32_t row = y + (thread / WARP * 16 + matrix % 2 * 8 + r) * 128;
#pragma unroll
    for (int j = 0; j < N / 16; j++)
        stmatrix4(row + j / 4 * GATES_CHUNK + ((j % 4 * 2 + matrix / 2 ^ r) << 4), products[j]);
}

/* What is gated of pair q: values from column 2 q W on, gates W further. */
template <int W>
__device__ __forceinline__ void gates_gate(const float (&acc)[128], const float (&m)[2], uint32_t (&gated)[8][4])
{
#pragma unroll
    for (int q = 0; q < GATES_COLUMNS / (2 * W); q++)
#pragma unroll
        for (int j = 0; j < W / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int value = (q * (W / 4) + j) * 4 + half * 2, gate = value + W / 2;
                gated[(q * (W / 8) + j) / 2][j % 2 * 2 + half] =
                    pack_bf16(m[half] * acc[value] * sigmoid_short(acc[gate]),
                              m[half] * acc[value + 1] * sigmoid_short(acc[gate + 1]));
            }
}

/* Rows of 64 places, one per channel, the channels of pairs one behind the other. */
__device__ __forceinline__ void gates_put_gated(const uint32_t (&gated)[8][4], uint32_t a)
{
    int thread = threadIdx.x % 128, lane = thread % WARP, matrix = lane / 8, r = lane % 8;
    uint32_t chunk = (uint32_t)(thread / WARP * 2 + matrix % 2) ^ r;
#pragma unroll
    for (int k = 0; k < 8; k++) stmatrix4_trans(a + ((k * 2 + matrix / 2) * 8 + r) * 128 + chunk * 16, gated[k]);
}

template <int K, int W, bool KEEP>
__device__ __forceinline__ void gates_work(const GatesProblem &p, const GatesPlace &at, int group)
{
    int thread = threadIdx.x % 128, row = thread / WARP * 16 + thread % WARP / 4;
    barrier_wait(at.ready, 0);
    for (int k = 0, tile = at.first + group * at.step; tile < at.tiles; k++, tile += GATES_GROUPS * at.step) {
        GatesOut out = gates_out<K, KEEP>(at, group, k);
        if (at.paired) {
            float acc[GATES_COLUMNS / 2];
            uint32_t products[GATES_COLUMNS / 16][4], gated[8][4];
            /* on its way while x is waited for and multiplied */
            const float m[2] = {p.mask[tile * GATES_ROWS + row], p.mask[tile * GATES_ROWS + row + 8]};
            gates_multiply<K, KEEP, GATES_COLUMNS>(at, group, k, acc);
            gates_gate<W>(acc, m, gated);
            if (KEEP) gates_pack<GATES_COLUMNS>(acc, products);
            barrier_wait(out.free, (out.before & 1) ^ 1);
            if (KEEP) gates_put_products<GATES_COLUMNS>(products, out.at);
            gates_put_gated(gated, out.at + GatesShape<K, KEEP>::A_AT);
        } else {
            float acc[GATES_LOOSE / 2];
            uint32_t products[GATES_LOOSE / 16][4];
            gates_multiply<K, KEEP, GATES_LOOSE>(at, group, k, acc);
            gates_pack<GATES_LOOSE>(acc, products);
            barrier_wait(out.free, (out.before & 1) ^ 1);
            gates_put_products<GATES_LOOSE>(products, out.at);
        }
        barrier_arrive_warp(out.done);
    }
}

/* The biases of a block's columns, by the warpgroups that multiply. */
template <int W> __device__ __forceinline__ void gates_biases(const GatesProblem &p, int column0, float *bias)
{
    for (int c = threadIdx.x; c < GATES_COLUMNS; c += GATES_GROUPS * 128) {
        int column = column0 + c;
        bias[c] = column < p.columns && p.bias[column / W] ? p.bias[column / W][column % W] : 0.0f;
    }
    static_assert(GATES_GROUPS == 2, "their threads");
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

template <int K, int W, bool KEEP>
__global__ void __launch_bounds__(GATES_THREADS, 1) gates_kernel(const __grid_constant__ GatesProblem p)
{
    typedef GatesShape<K, KEEP> S;
    extern __shared__ __align__(1024) char shared[];
    float *bias = reinterpret_cast<float *>(shared + S::BIAS_AT);
    int group = threadIdx.x / 128;
    GatesPlace at = gates_place(p);
    at.w = shared_address(shared), at.slots = at.w + S::W_BYTES, at.out = at.w + S::OUT_AT;
    at.bias = bias;
    gates_barriers<S::SLOTS>(&at, at.w + S::BARRIERS_AT);
    if (threadIdx.x == 0) {
        tensor_prefetch(&p.x);
        if (p.early) gates_weights<K>(p, at);
    }
    __syncthreads();
    if (p.early && group < GATES_GROUPS) gates_biases<W>(p, at.column0, bias);
    stage_wait();
    if (!p.send.shares) stage_release();
    if (threadIdx.x == 0 && !p.early) gates_weights<K>(p, at);
    peer_send_begin(p.send);
    /* registers of the copying warps go to the products */
    if (group == GATES_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        int warp = threadIdx.x / WARP % 4;
        if (threadIdx.x % WARP == 0 && warp == 0) gates_load<K, KEEP>(p, at);
        if (threadIdx.x % WARP == 0 && warp > 0 && warp <= GATES_GROUPS) gates_store<K, W, KEEP>(p, at, warp - 1);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        if (!p.early) gates_biases<W>(p, at.column0, bias);
        gates_work<K, W, KEEP>(p, at, group);
    }
}

/* What a caller knows: `members` matrices [W, inner] side by side, pairs first; y of pairs where they are kept. */
struct GatesOperands {
    const bf16 *x, *w;
    bf16 *y[GATES_MEMBERS], *a[GATES_PAIRS];
    const float *bias[GATES_MEMBERS], *mask;
    int64_t groups, places, inner, width;
    int members, pairs;
    bool keep, early; /* early: w and bias are steady (OpCall) */
    PeerSend send;
    int sent; /* pair */
};

static inline bool gates_fit(const GatesOperands &o)
{
    bool fits = (o.inner == 64 || o.inner == 128) && (o.width == 64 || o.width == 128) && o.pairs <= GATES_PAIRS;
    fits =
        fits && 2 * o.pairs * o.width % GATES_COLUMNS == 0 && o.places % GATES_ROWS == 0 && o.members <= GATES_MEMBERS;
    fits = fits && o.groups * o.places >= 1024 && o.groups * o.places * o.width < INT64_C(0x7fffffff);
    fits = fits && aligned16(o.x) && aligned16(o.w);
    for (int k = 0; k < o.members; k++) fits = fits && ((k < 2 * o.pairs && !o.keep) || aligned16(o.y[k]));
    for (int q = 0; q < o.pairs; q++) fits = fits && aligned16(o.a[q]);
    return fits;
}

static inline Status gates_maps(const GatesOperands &o, GatesProblem *p)
{
    int64_t rows = o.groups * o.places;
    TRY(tensor_map(o.x, rows, o.inner, GATES_ROWS, &p->x));
    TRY(tensor_map(o.w, o.members * o.width, o.inner, GATES_COLUMNS, &p->w));
    for (int k = o.keep ? 0 : 2 * o.pairs; k < o.members; k++)
        TRY(tensor_map(o.y[k], rows, o.width, GATES_ROWS, &p->y[k]));
    for (int q = 0; q < o.pairs; q++) TRY(tensor_map(o.a[q], o.groups * o.width, o.places, (int)o.width, &p->a[q]));
    for (int r = 0; r < o.send.ranks; r++)
        TRY(tensor_map(o.send.out[r], o.groups * o.width, o.send.ranks * o.places, (int)o.width, &p->sent_to[r]));
    return OK;
}

/* Multiprocessors shared out to blocks of columns by the time that a tile takes. */
static inline void gates_share(GatesProblem *p)
{
    enum { PAIRED = 9, LOOSE = 4 };
    int processors = p->send.shares ? GATES_SHARING : GATES_PROCESSORS;
    int pair_columns = p->pair_blocks * GATES_COLUMNS, tiles = p->rows / GATES_ROWS, before = 0;
    p->blocks = p->pair_blocks + (p->columns - pair_columns + GATES_LOOSE - 1) / GATES_LOOSE;
    int total = p->pair_blocks * PAIRED + (p->blocks - p->pair_blocks) * LOOSE, until = 0;
    for (int b = 0; b < p->blocks; b++) {
        until += b < p->pair_blocks ? PAIRED : LOOSE;
        int share = processors * until / total - before;
        before += share;
        p->first[b + 1] = p->first[b] + (share < tiles ? share : tiles);
    }
}

template <int K, int W, bool KEEP> static Status gates_launch_shape(const GatesOperands &o, cudaStream_t stream)
{
    constexpr int BYTES = GatesShape<K, KEEP>::BYTES;
    GatesProblem p = {};
    p.rows = (int)(o.groups * o.places), p.columns = (int)(o.members * o.width);
    p.pair_blocks = (int)(2 * o.pairs * o.width / GATES_COLUMNS);
    p.places = (int)o.places, p.channels = (int)o.width;
    for (int k = 0; k < o.members; k++) p.bias[k] = o.bias[k];
    p.mask = o.mask, p.early = o.early;
    p.send = o.send, p.sent = o.sent;
    gates_share(&p);
    TRY(gates_maps(o, &p));
    CUDA_TRY(cudaFuncSetAttribute(gates_kernel<K, W, KEEP>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(gates_kernel<K, W, KEEP>, p.first[p.blocks], GATES_THREADS, BYTES, stream, p);
    return cuda_launched("gates_kernel");
}

template <int K, int W> static Status gates_launch_width(const GatesOperands &o, cudaStream_t stream)
{
    return o.keep ? gates_launch_shape<K, W, true>(o, stream) : gates_launch_shape<K, W, false>(o, stream);
}

static inline Status gates_launch(const GatesOperands &o, cudaStream_t stream)
{
    if (o.inner == 64)
        return o.width == 64 ? gates_launch_width<64, 64>(o, stream) : gates_launch_width<64, 128>(o, stream);
    return o.width == 64 ? gates_launch_width<128, 64>(o, stream) : gates_launch_width<128, 128>(o, stream);
}

#endif
