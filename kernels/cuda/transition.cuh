/* A transition in one kernel: y = r + W2 relu(W1 x + b1) + b2, x = layer norm of r (AlphaFold2 supplement, algorithms 9
 * and 15). r is read and y written once; x and the hidden layer stay in the multiprocessor, and are stored as well only
 * where a gradient will read them.
 *
 * A block owns 128 rows at a time, 64 per warpgroup. Rows arrive by tensor copies; a warpgroup takes r + b2 into its
 * accumulators, normalizes its rows in place and goes through the hidden layer some columns at a time: the first
 * product, bias and relu in registers, which are the left operand of the second. The matrices stream past in boxes of
 * 128 x 64 through a ring that a warp of its own fills; products of both matrices queue up behind one another, so that
 * the tensor cores have work while the other warpgroup is in its registers. What is kept of the hidden layer leaves
 * beside the product that takes it. Where the layer norm of y is wanted too, it leaves from the place of y once that
 * has left. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRANSITION_CUH
#define FOLDSCALE_KERNELS_CUDA_TRANSITION_CUH

#include "kernels/cuda/norm_tile.cuh"

enum {
    TRANSITION_ROWS = 64, /* of a warpgroup */
    TRANSITION_GROUPS = 2,
    TRANSITION_THREADS = TRANSITION_GROUPS * 128 + 128,
    TRANSITION_CHUNK = TRANSITION_ROWS * 128, /* bytes of 64 rows x 64 columns */
    TRANSITION_BOX = 128 * 128,               /* bytes of 128 rows x 64 columns of a matrix */
    TRANSITION_WIDTH = 128                    /* hidden columns at a time */
};
static_assert((int)TRANSITION_CHUNK == (int)NORM_TILE_CHUNK, "norm_tile() takes a warpgroup's rows");

struct TransitionProblem {
    CUtensorMap r, w1, w2, y, x, hidden, normal;
    const float *gamma, *beta, *b1, *b2;
    float *mean, *rstd;
    float eps;
    FrontNorm behind; /* of y */
    int rows, width;  /* width: of the hidden layer, a multiple of 128 */
    bool early;       /* matrices and vectors need no stage_wait() */
};

/* C channels. KEEP: x, its statistics and the hidden layer are stored. */
template <int C_, bool KEEP_> struct TransitionShape {
    static constexpr int C = C_, BOXES = C / 64; /* boxes of one step of the first product */
    static constexpr bool KEEP = KEEP_;
    static constexpr int N = C < 128 ? C : 128, PARTS = C / N; /* columns of y in one product */
    /* left operands of both halves of the hidden columns in the same registers: there are not enough for two sets */
    static constexpr bool IN_TURN = C > 128;
    static constexpr int X_BYTES = BOXES * TRANSITION_CHUNK, BUFFERS = C > 128 ? 1 : 2;
    static constexpr int STAGE_BYTES = KEEP ? 2 * TRANSITION_CHUNK : 0;
    static constexpr int RING_AT = TRANSITION_GROUPS * (BUFFERS * X_BYTES + STAGE_BYTES);
    static constexpr int BIAS_BYTES = (4 * C + 3 * C) * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int FIT = (MOST - RING_AT - BIAS_BYTES - BARRIER_BYTES) / TRANSITION_BOX;
    static constexpr int SLOTS = FIT < 12 ? FIT : 12;
    static constexpr int BIAS_AT = RING_AT + SLOTS * TRANSITION_BOX, BARRIERS_AT = BIAS_AT + BIAS_BYTES;
    static constexpr int BYTES = BARRIERS_AT + BARRIER_BYTES;
    static_assert(SLOTS >= 4, "two boxes in work and two on their way");
    static_assert((2 * SLOTS + 2 * TRANSITION_GROUPS) * 8 <= BARRIER_BYTES, "barriers");
};

template <typename S> __device__ __forceinline__ uint32_t transition_full(uint32_t base, int slot)
{
    return base + S::BARRIERS_AT + slot * 8;
}
template <typename S> __device__ __forceinline__ uint32_t transition_empty(uint32_t base, int slot)
{
    return transition_full<S>(base, S::SLOTS + slot);
}
/* Where a thread is in the ring, whose boxes all pass in turn: the one that fills it, or one of a warpgroup that reads.
 */
template <typename S> struct TransitionRing {
    uint32_t base; /* of the block's shared memory */
    int slot, phase;

    __device__ __forceinline__ uint32_t box() const { return base + S::RING_AT + slot * TRANSITION_BOX; }
    __device__ __forceinline__ void step()
    {
        if (++slot == S::SLOTS) slot = 0, phase ^= 1;
    }

    /* By the thread that fills it: `boxes` of rows x 64 from (row, column) on, one beside the other, are the next box.
     */
    __device__ __forceinline__ void fill(const CUtensorMap *map, int row, int column, int rows, int boxes)
    {
        uint32_t full = transition_full<S>(base, slot), to = box();
        barrier_wait(transition_empty<S>(base, slot), phase ^ 1);
        barrier_expect(full, boxes * rows * 128);
        for (int k = 0; k < boxes; k++) tensor_load(to + k * rows * 128, map, row, column + k * 64, full);
        step();
    }

    /* The box after the last one: its address, once it is there. */
    __device__ __forceinline__ uint32_t next() const
    {
        barrier_wait(transition_full<S>(base, slot), phase);
        return box();
    }
    /* Behind the committed product of the current box: it runs, the one before has ended and its box is free. `ended`:
     * boxes in front of the current one that nobody freed yet, 0 or 1. */
    __device__ __forceinline__ void advance(int thread, int *ended)
    {
        wgmma_wait<1>();
        if (*ended) release(thread);
        *ended = 1;
        step();
    }
    __device__ __forceinline__ void drain(int thread, int *ended) const
    {
        wgmma_wait<0>();
        if (*ended) release(thread);
        *ended = 0;
    }
    /* The box before this one, by one thread of the warpgroup. */
    __device__ __forceinline__ void release(int thread) const
    {
        if (thread == 0) barrier_arrive(transition_empty<S>(base, slot == 0 ? S::SLOTS - 1 : slot - 1));
    }
};

/* rows of a warpgroup's buffer have arrived */
template <typename S> __device__ __forceinline__ uint32_t transition_arrived(uint32_t base, int group, int buffer)
{
    return transition_full<S>(base, 2 * S::SLOTS + group * 2 + buffer);
}
__device__ __forceinline__ int transition_tiles(const TransitionProblem &p)
{
    return (p.rows + TRANSITION_GROUPS * TRANSITION_ROWS - 1) / (TRANSITION_GROUPS * TRANSITION_ROWS);
}

__device__ __forceinline__ void transition_sync(int group)
{
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

/* Tiles of 64 rows x 64 columns by fragments: words 2 j, 2 j + 1 of a thread are columns 8 j + 2 (lane % 4) and the
 * next of the two rows of its accumulators. Four words at a time, where a lane has the address of 16 bytes of one of
 * its warp's rows. */
__device__ __forceinline__ uint32_t transition_place()
{
    int lane = threadIdx.x % WARP, row = threadIdx.x % 128 / WARP * 16 + lane % 16;
    return row * 128 + ((lane / 16 ^ row % 8) << 4);
}
__device__ __forceinline__ void transition_get(uint32_t tile, uint32_t place, uint32_t (&words)[16])
{
#pragma unroll
    for (int j = 0; j < 8; j += 2) ldmatrix4(reinterpret_cast<uint32_t(&)[4]>(words[2 * j]), (tile + place) ^ j << 4);
}
__device__ __forceinline__ void transition_put(uint32_t tile, uint32_t place, const uint32_t (&words)[16])
{
#pragma unroll
    for (int j = 0; j < 8; j += 2)
        stmatrix4((tile + place) ^ j << 4, reinterpret_cast<const uint32_t(&)[4]>(words[2 * j]));
}

/* Brings rows of a tile to the L2 cache. */
template <typename S> __device__ __forceinline__ void transition_prefetch(const CUtensorMap *map, int tile, int rows)
{
    for (int group = 0; group < TRANSITION_GROUPS; group++)
        for (int k = 0; k < S::BOXES; k++) {
            int row = (tile * TRANSITION_GROUPS + group) * TRANSITION_ROWS;
            if (row < rows) tensor_prefetch_box(map, row, k * 64);
        }
}

/* --- one thread: the matrices, in the order in which they are read */

template <typename S> struct TransitionFeed {
    const TransitionProblem &p;
    TransitionRing<S> at;
    __device__ __forceinline__ void first(int column)
    {
        for (int k = 0; k < S::BOXES; k++) at.fill(&p.w1, column, k * 64, TRANSITION_WIDTH, 1);
    }
    __device__ __forceinline__ void second(int column)
    {
        for (int half = 0; half < TRANSITION_WIDTH / 64; half++)
            for (int n = 0; n < S::PARTS; n++) at.fill(&p.w2, n * S::N, column + half * 64, S::N, 1);
    }
    __device__ __forceinline__ void run()
    {
        for (int tile = blockIdx.x; tile < transition_tiles(p); tile += gridDim.x) {
            first(0);
            for (int h = 0; h < p.width; h += TRANSITION_WIDTH) {
                second(h);
                if (h + TRANSITION_WIDTH < p.width) first(h + TRANSITION_WIDTH);
                if (S::BUFFERS == 1 && h + 2 * TRANSITION_WIDTH == p.width)
                    transition_prefetch<S>(&p.r, tile + gridDim.x, p.rows);
            }
        }
    }
};

/* gamma, beta, b2, b1, by both warpgroups */
template <typename S> __device__ __forceinline__ void transition_vectors(const TransitionProblem &p, float *vectors)
{
    constexpr int THREADS = TRANSITION_GROUPS * 128;
    for (int c = threadIdx.x; c < S::C; c += THREADS)
        vectors[c] = p.gamma[c], vectors[S::C + c] = p.beta[c], vectors[2 * S::C + c] = p.b2[c];
    for (int c = threadIdx.x; c < p.width; c += THREADS) vectors[3 * S::C + c] = p.b1[c];
    static_assert(THREADS == 256, "their threads");
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

/* --- a warpgroup */

template <typename S> struct TransitionGroup {
    const TransitionProblem &p;
    TransitionRing<S> at;
    int group, thread, lane;
    uint32_t place; /* transition_place() */

    /* Two floats of the vectors that stay: gamma, beta, b2, b1. */
    __device__ __forceinline__ float2 vector(int element) const
    {
        return shared_floats(at.base + S::BIAS_AT + element * 4);
    }
    __device__ __forceinline__ uint32_t buffer(int k) const { return at.base + (group * S::BUFFERS + k) * S::X_BYTES; }

    __device__ __forceinline__ int first_row(int tile) const
    {
        return (tile * TRANSITION_GROUPS + group) * TRANSITION_ROWS;
    }
    __device__ __forceinline__ uint32_t stage(int k) const
    {
        return at.base + TRANSITION_GROUPS * S::BUFFERS * S::X_BYTES + (group * 2 + k) * TRANSITION_CHUNK;
    }

    __device__ __forceinline__ void load(int tile, int to) const
    {
        uint32_t arrived = transition_arrived<S>(at.base, group, to);
        barrier_expect(arrived, S::X_BYTES);
        for (int k = 0; k < S::BOXES; k++)
            tensor_load(buffer(to) + k * TRANSITION_CHUNK, &p.r, first_row(tile), k * 64, arrived);
    }

    /* accumulators = r + b2 */
    __device__ __forceinline__ void start(float (&y)[S::PARTS][S::N / 2], uint32_t x) const
    {
#pragma unroll
        for (int k = 0; k < S::BOXES; k++) {
            uint32_t words[16];
            transition_get(x + k * TRANSITION_CHUNK, place, words);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float2 b = vector(2 * S::C + k * 64 + 8 * j + lane % 4 * 2);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float2 r = unpack_bf16(words[2 * j + h]);
                    float *to = y[k * 64 / S::N] + k * 64 % S::N / 2 + 4 * j + 2 * h;
                    to[0] = r.x + b.x, to[1] = r.y + b.y;
                }
            }
        }
    }

    /* Rows of r become those of x. Lanes l and l + 16 share row l of the warp's sixteen: eight lanes in a row read the
     * 16 bytes of eight rows, which lie in different banks. Read three times: the registers hold the accumulators. */
    __device__ __forceinline__ void normalize(uint32_t x, int tile) const
    {
        constexpr int CHUNKS = S::C / 16; /* of eight channels, per lane */
        int at_row = thread / WARP * 16 + lane % 16, first_chunk = lane / 16 * CHUNKS;
        uint32_t from = x + first_chunk / 8 * TRANSITION_CHUNK + at_row * 128 + ((first_chunk % 8 ^ at_row % 8) << 4);
        float sum = 0, square = 0;
#pragma unroll 1
        for (int c = 0; c < CHUNKS; c += 4) {
            uint32_t v[4][4];
            four_chunks(from, c, v);
#pragma unroll
            for (int k = 0; k < 16; k++) {
                float2 f = unpack_bf16(v[k / 4][k % 4]);
                sum += f.x + f.y;
            }
        }
        float mean = (sum + __shfl_xor_sync(0xffffffffu, sum, 16)) / S::C;
#pragma unroll 1
        for (int c = 0; c < CHUNKS; c += 4) {
            uint32_t v[4][4];
            four_chunks(from, c, v);
#pragma unroll
            for (int k = 0; k < 16; k++) {
                float2 f = unpack_bf16(v[k / 4][k % 4]);
                square += (f.x - mean) * (f.x - mean) + (f.y - mean) * (f.y - mean);
            }
        }
        float rstd = 1.0f / sqrtf((square + __shfl_xor_sync(0xffffffffu, square, 16)) / S::C + p.eps);
#pragma unroll 1
        for (int c = 0; c < CHUNKS; c += 4) {
            uint32_t v[4][4];
            four_chunks(from, c, v);
#pragma unroll
            for (int k = 0; k < 16; k++) {
                int channel = (first_chunk + c) * 8 + 2 * k;
                float2 f = unpack_bf16(v[k / 4][k % 4]), g = vector(channel), b = vector(S::C + channel);
                v[k / 4][k % 4] = pack_bf16((f.x - mean) * rstd * g.x + b.x, (f.y - mean) * rstd * g.y + b.y);
            }
#pragma unroll
            for (int k = 0; k < 4; k++) shared_chunk_put(chunk(from, c) ^ k << 4, v[k]);
        }
        int to = first_row(tile) + at_row;
        if (!S::KEEP || lane >= 16 || to >= p.rows) return;
        p.mean[to] = mean, p.rstd[to] = rstd;
    }
    /* Chunk c of a row, a multiple of four, from chunk 0 on, and the three after it. */
    static __device__ __forceinline__ uint32_t chunk(uint32_t from, int c)
    {
        return (from ^ c % 8 << 4) + c / 8 * TRANSITION_CHUNK;
    }
    static __device__ __forceinline__ void four_chunks(uint32_t from, int c, uint32_t (&v)[4][4])
    {
#pragma unroll
        for (int k = 0; k < 4; k++) shared_chunk(chunk(from, c) ^ k << 4, v[k]);
    }

    /* hidden = x W1^T of some columns */
    __device__ __forceinline__ void first(float (&hidden)[TRANSITION_WIDTH / 2], uint32_t x, int *ended)
    {
#pragma unroll
        for (int k = 0; k < S::BOXES; k++) {
            uint64_t a = wgmma_descriptor(x + k * TRANSITION_CHUNK), b = wgmma_descriptor(at.next());
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma_step<TRANSITION_WIDTH>(hidden, a + s * 2, b + s * 2, k + s > 0);
            wgmma_commit();
            at.advance(thread, ended);
        }
    }
    /* y += hidden W2^T of 64 hidden columns; `beside` happens while it runs */
    template <typename Beside>
    __device__ __forceinline__ void second(float (&y)[S::PARTS][S::N / 2], const uint32_t (&hidden)[16], int *ended,
                                           const Beside &beside)
    {
#pragma unroll
        for (int n = 0; n < S::PARTS; n++) {
            uint64_t b = wgmma_descriptor(at.next());
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) RegisterProduct<S::N>::step(y[n], hidden + s * 4, b + s * 2);
            wgmma_commit();
            if (n == S::PARTS - 1) beside();
            at.advance(thread, ended);
        }
    }

    /* b1 of 64 columns, as the accumulators have them */
    __device__ __forceinline__ void biases(float2 (&b)[8], int column) const
    {
#pragma unroll
        for (int j = 0; j < 8; j++) b[j] = vector(3 * S::C + column + 8 * j + lane % 4 * 2);
    }
    /* relu(hidden + b1) of 64 columns as left operands of the second product */
    __device__ __forceinline__ void activate(uint32_t (&to)[16], const float *hidden, const float2 (&b)[8]) const
    {
#pragma unroll
        for (int k = 0; k < 16; k++)
            to[k] = pack_bf16(fmaxf(hidden[2 * k] + b[k / 2].x, 0.0f), fmaxf(hidden[2 * k + 1] + b[k / 2].y, 0.0f));
    }
    /* What the last step kept has left. */
    __device__ __forceinline__ void stages_free() const
    {
        if (thread == 0) tensor_store_wait_read();
        transition_sync(group);
    }
    /* The step's columns of the hidden layer, which are in their stages. */
    __device__ __forceinline__ void send_hidden(int tile, int column) const
    {
        async_fence();
        transition_sync(group);
        if (thread > 0) return;
        for (int half = 0; half < 2; half++) tensor_store(&p.hidden, stage(half), first_row(tile), column + half * 64);
        tensor_store_commit();
    }

    /* accumulators over x, which nobody reads any more, and out */
    __device__ __forceinline__ void store(const float (&y)[S::PARTS][S::N / 2], uint32_t x, int tile) const
    {
#pragma unroll
        for (int k = 0; k < S::BOXES; k++) {
            const float *from = y[k * 64 / S::N] + k * 64 % S::N / 2;
            uint32_t words[16];
#pragma unroll
            for (int j = 0; j < 16; j++) words[j] = pack_bf16(from[2 * j], from[2 * j + 1]);
            transition_put(x + k * TRANSITION_CHUNK, place, words);
        }
        out(&p.y, x, tile);
        if (!p.behind.gamma) return;
        EightScales scales = eight_scales(p.behind, thread % (S::C / 8) * 8);
        if (thread == 0) tensor_store_wait_read();
        transition_sync(group);
        norm_tile<S::C>(p.behind, scales, x, x, thread / WARP * 16, first_row(tile), p.rows, true);
        out(&p.normal, x, tile);
    }
    __device__ __forceinline__ void out(const CUtensorMap *map, uint32_t x, int tile) const
    {
        async_fence();
        transition_sync(group);
        if (thread > 0) return;
        for (int k = 0; k < S::BOXES; k++) tensor_store(map, x + k * TRANSITION_CHUNK, first_row(tile), k * 64);
        tensor_store_commit();
    }

    __device__ __forceinline__ void tile(int tile, uint32_t x)
    {
        float y[S::PARTS][S::N / 2], hidden[TRANSITION_WIDTH / 2];
        int ended = 0;
        start(y, x);
        __syncwarp(); /* a warp reads and writes rows of its own */
        normalize(x, tile);
        if (S::KEEP)
            out(&p.x, x, tile);
        else
            async_fence(), transition_sync(group);
        first(hidden, x, &ended);
#pragma unroll 1
        for (int column = 0; column < p.width; column += TRANSITION_WIDTH) {
            if (S::KEEP) stages_free();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t activated[16];
                float2 b[8];
                biases(b, column + half * 64);
                if (half == 0 || S::IN_TURN) at.drain(thread, &ended);
                activate(activated, hidden + 32 * half, b);
                if (S::KEEP) transition_put(stage(half), place, activated);
                second(y, activated, &ended, [&] {
                    if (S::KEEP && half == 1) send_hidden(tile, column);
                });
            }
            if (column + TRANSITION_WIDTH < p.width) first(hidden, x, &ended);
        }
        at.drain(thread, &ended);
        if (S::KEEP) { /* x has left the place of y; the last columns of the hidden layer may be on their way */
            if (thread == 0) tensor_store_wait_read<1>();
            transition_sync(group);
        }
        store(y, x, tile);
    }

    __device__ __forceinline__ void run(float *vectors)
    {
        int tiles = transition_tiles(p), id = 0;
        if (thread == 0 && (int)blockIdx.x < tiles) load(blockIdx.x, 0);
        if (!p.early) transition_vectors<S>(p, vectors);
#pragma unroll 1
        for (int t = blockIdx.x; t < tiles; t += gridDim.x, id++) {
            int now = id % S::BUFFERS;
            bool more = thread == 0 && t + (int)gridDim.x < tiles;
            if (S::BUFFERS == 2 && more) {
                tensor_store_wait_read();
                load(t + gridDim.x, now ^ 1);
            }
            barrier_wait(transition_arrived<S>(at.base, group, now), id / S::BUFFERS & 1);
            tile(t, buffer(now));
            if (S::BUFFERS == 1 && more) {
                tensor_store_wait_read();
                load(t + gridDim.x, 0);
            }
        }
        if (thread == 0) tensor_store_wait();
    }
};

template <typename S>
__global__ void __launch_bounds__(TRANSITION_THREADS, 1) transition_kernel(const __grid_constant__ TransitionProblem p)
{
    extern __shared__ __align__(1024) char shared[];
    int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* the compiler sees that a warp has one */
    TransitionRing<S> at = {shared_address(shared), 0, 0};
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::SLOTS; s++) {
            barrier_init(transition_full<S>(at.base, s), 1);
            barrier_init(transition_empty<S>(at.base, s), TRANSITION_GROUPS);
        }
        for (int k = 0; k < TRANSITION_GROUPS * 2; k++) barrier_init(transition_arrived<S>(at.base, k / 2, k % 2), 1);
        barrier_publish();
    }
    if (threadIdx.x == 0) tensor_prefetch(&p.r);
    __syncthreads();
    /* registers of the copying warps go to the products */
    if (group == TRANSITION_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        bool feeds = threadIdx.x == TRANSITION_GROUPS * 128;
        if (feeds && p.early) TransitionFeed<S>{p, at}.run();
        stage_wait();
        if (feeds && !p.early) TransitionFeed<S>{p, at}.run();
    } else {
        float *vectors = reinterpret_cast<float *>(shared + S::BIAS_AT);
        if (p.early) transition_vectors<S>(p, vectors);
        stage_wait();
        stage_release();
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        int thread = threadIdx.x % 128, lane = thread % WARP;
        TransitionGroup<S> g = {p, at, group, thread, lane, transition_place()};
        g.run(vectors);
    }
}

#endif
