/* A transition in one kernel: y = r + W2 relu(W1 x + b1) + b2, x = layer norm of r (AlphaFold2 supplement, algorithms 9
 * and 15). r is read and y written once; x and the hidden layer stay in the multiprocessor, and are stored as well only
 * where a gradient will read them.
 *
 * A block owns 128 rows at a time, 64 per warpgroup. Rows arrive by tensor copies; a warpgroup takes r + b2 into its
 * accumulators, normalizes its rows in place and goes through the hidden layer some columns at a time: the first
 * product, bias and relu in registers, which are the left operand of the second. The matrices stream past in boxes of
 * 128 x 64 through a ring that a warp of its own fills; products of both matrices queue up behind one another, so that
 * the tensor cores have work while the other warpgroup is in its registers. Where the layer norm of y is wanted too, it
 * leaves from the place of y once that has left. */
#ifndef FOLDSCALE_KERNELS_CUDA_TRANSITION_CUH
#define FOLDSCALE_KERNELS_CUDA_TRANSITION_CUH

#include "kernels/cuda/norm_tile.cuh"

enum {
    TRANSITION_ROWS = 64, /* of a warpgroup */
    TRANSITION_GROUPS = 2,
    TRANSITION_THREADS = TRANSITION_GROUPS * 128 + 128,
    TRANSITION_CHUNK = TRANSITION_ROWS * 128, /* bytes of 64 rows x 64 columns */
    TRANSITION_BOX = 128 * 128                /* bytes of 128 rows x 64 columns of a matrix */
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
    /* hidden columns at a time: with 128 the registers of 256 channels would not suffice */
    static constexpr int WIDTH = C > 128 ? 64 : 128;
    static constexpr int X_BYTES = BOXES * TRANSITION_CHUNK, BUFFERS = C > 128 ? 1 : 2;
    static constexpr int STAGE_BYTES = KEEP ? 2 * TRANSITION_CHUNK : 0;
    static constexpr int RING_AT = TRANSITION_GROUPS * (BUFFERS * X_BYTES + STAGE_BYTES);
    static constexpr int BIAS_BYTES = (4 * C + 3 * C) * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int FIT = (MOST - RING_AT - BIAS_BYTES - BARRIER_BYTES) / TRANSITION_BOX;
    static constexpr int SLOTS = FIT < 8 ? FIT : 8;
    static constexpr int BIAS_AT = RING_AT + SLOTS * TRANSITION_BOX, BARRIERS_AT = BIAS_AT + BIAS_BYTES;
    static constexpr int BYTES = BARRIERS_AT + BARRIER_BYTES;
    static_assert(SLOTS >= 4, "two boxes in work and two on their way");
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

    /* The box after the last one: its address, once it is there. */
    __device__ __forceinline__ uint32_t next() const
    {
        barrier_wait(transition_full<S>(base, slot), phase);
        return box();
    }
    /* Behind a product of the current box: it runs, the one before has ended and its box is free. `ended`: boxes in
     * front of the current one that nobody freed yet, 0 or 1. */
    __device__ __forceinline__ void advance(int thread, int *ended)
    {
        wgmma_commit();
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

/* --- one thread: the matrices, in the order in which they are read */

template <typename S> struct TransitionFeed {
    const TransitionProblem &p;
    TransitionRing<S> at;
    __device__ __forceinline__ void box(const CUtensorMap *map, int row, int column, uint32_t bytes)
    {
        uint32_t full = transition_full<S>(at.base, at.slot);
        barrier_wait(transition_empty<S>(at.base, at.slot), at.phase ^ 1);
        barrier_expect(full, bytes);
        tensor_load(at.box(), map, row, column, full);
        at.step();
    }
    __device__ __forceinline__ void first(int column)
    {
        for (int k = 0; k < S::BOXES; k++) box(&p.w1, column, k * 64, S::WIDTH * 128);
    }
    __device__ __forceinline__ void second(int column)
    {
        for (int half = 0; half < S::WIDTH / 64; half++)
            for (int n = 0; n < S::PARTS; n++) box(&p.w2, n * S::N, column + half * 64, S::N * 128);
    }
    __device__ __forceinline__ void run()
    {
        for (int tile = blockIdx.x; tile < transition_tiles(p); tile += gridDim.x) {
            first(0);
            for (int h = 0; h < p.width; h += S::WIDTH) {
                second(h);
                if (h + S::WIDTH < p.width) first(h + S::WIDTH);
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
    int group, thread, lane, row; /* row, row + 8: of this thread's accumulators */

    /* Two floats of the vectors that stay: gamma, beta, b2, b1. */
    __device__ __forceinline__ float2 vector(int element) const
    {
        float2 v;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(v.x), "=f"(v.y)
                     : "r"(at.base + S::BIAS_AT + element * 4)
                     : "memory");
        return v;
    }
    __device__ __forceinline__ uint32_t buffer(int k) const { return at.base + (group * S::BUFFERS + k) * S::X_BYTES; }

    __device__ __forceinline__ int first_row(int tile) const
    {
        return (tile * TRANSITION_GROUPS + group) * TRANSITION_ROWS;
    }
    /* The word of columns 8 j + 2 (lane % 4) and the next of row `row` (+ 8) of a tile of 64 rows. */
    __device__ __forceinline__ uint32_t word(uint32_t tile, int j, int h) const
    {
        return tile + j / 8 * TRANSITION_CHUNK + (row + 8 * h) * 128 + ((j % 8 ^ row % 8) << 4) + lane % 4 * 4;
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
        for (int n = 0; n < S::PARTS; n++)
#pragma unroll
            for (int j = 0; j < S::N / 8; j++) {
                int column = n * S::N + 8 * j + lane % 4 * 2;
                float2 b = vector(2 * S::C + column);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float2 r = unpack_bf16(shared_word(word(x, n * S::N / 8 + j, h)));
                    y[n][4 * j + 2 * h] = r.x + b.x, y[n][4 * j + 2 * h + 1] = r.y + b.y;
                }
            }
    }

    /* Rows of r become those of x. Lanes l and l + 16 share row l of the warp's sixteen: eight lanes in a row read the
     * 16 bytes of eight rows, which lie in different banks. Read three times: the registers hold the accumulators. */
    __device__ __forceinline__ void normalize(uint32_t x, int tile) const
    {
        constexpr int CHUNKS = S::C / 16; /* of eight channels, per lane */
        int at_row = thread / WARP * 16 + lane % 16, first_chunk = lane / 16 * CHUNKS;
        float sum = 0, square = 0;
#pragma unroll 4
        for (int c = 0; c < CHUNKS; c++) {
            uint32_t v[4];
            shared_chunk(chunk(x, at_row, first_chunk + c), v);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float2 f = unpack_bf16(v[k]);
                sum += f.x + f.y;
            }
        }
        float mean = (sum + __shfl_xor_sync(0xffffffffu, sum, 16)) / S::C;
#pragma unroll 4
        for (int c = 0; c < CHUNKS; c++) {
            uint32_t v[4];
            shared_chunk(chunk(x, at_row, first_chunk + c), v);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float2 f = unpack_bf16(v[k]);
                square += (f.x - mean) * (f.x - mean) + (f.y - mean) * (f.y - mean);
            }
        }
        float rstd = 1.0f / sqrtf((square + __shfl_xor_sync(0xffffffffu, square, 16)) / S::C + p.eps);
#pragma unroll 2
        for (int c = 0; c < CHUNKS; c++) {
            uint32_t v[4];
            shared_chunk(chunk(x, at_row, first_chunk + c), v);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int channel = (first_chunk + c) * 8 + 2 * k;
                float2 f = unpack_bf16(v[k]), g = vector(channel), b = vector(S::C + channel);
                v[k] = pack_bf16((f.x - mean) * rstd * g.x + b.x, (f.y - mean) * rstd * g.y + b.y);
            }
            shared_chunk_put(chunk(x, at_row, first_chunk + c), v);
        }
        int to = first_row(tile) + at_row;
        if (!S::KEEP || lane >= 16 || to >= p.rows) return;
        p.mean[to] = mean, p.rstd[to] = rstd;
    }
    static __device__ __forceinline__ uint32_t chunk(uint32_t x, int r, int c)
    {
        return x + c / 8 * TRANSITION_CHUNK + r * 128 + ((c % 8 ^ r % 8) << 4);
    }

    /* hidden = x W1^T of some columns */
    __device__ __forceinline__ void first(float (&hidden)[S::WIDTH / 2], uint32_t x, int *ended)
    {
#pragma unroll
        for (int k = 0; k < S::BOXES; k++) {
            uint64_t a = wgmma_descriptor(x + k * TRANSITION_CHUNK), b = wgmma_descriptor(at.next());
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma_step<S::WIDTH>(hidden, a + s * 2, b + s * 2, k + s > 0);
            at.advance(thread, ended);
        }
    }
    /* y += hidden W2^T of 64 hidden columns */
    __device__ __forceinline__ void second(float (&y)[S::PARTS][S::N / 2], const uint32_t (&hidden)[16], int *ended)
    {
#pragma unroll
        for (int n = 0; n < S::PARTS; n++) {
            uint64_t b = wgmma_descriptor(at.next());
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) RegisterProduct<S::N>::step(y[n], hidden + s * 4, b + s * 2);
            at.advance(thread, ended);
        }
    }

    /* relu(hidden + b1) of the half [64 half, 64 half + 64) as left operands of the second product */
    __device__ __forceinline__ void activate(uint32_t (&to)[16], const float (&hidden)[S::WIDTH / 2], int half,
                                             int column) const
    {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float2 b = vector(3 * S::C + column + 8 * j + lane % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float *v = hidden + 32 * half + 4 * j + 2 * h;
                to[2 * j + h] = pack_bf16(fmaxf(v[0] + b.x, 0.0f), fmaxf(v[1] + b.y, 0.0f));
            }
        }
    }
    /* 64 columns; two stages in turn. */
    __device__ __forceinline__ void store_hidden(const uint32_t (&hidden)[16], int tile, int column) const
    {
        int half = column / 64 % 2;
        uint32_t stage = at.base + TRANSITION_GROUPS * S::BUFFERS * S::X_BYTES + (group * 2 + half) * TRANSITION_CHUNK;
        if (thread == 0) tensor_store_wait_read<1>();
        transition_sync(group);
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) shared_word_put(word(stage, j, h), hidden[2 * j + h]);
        async_fence();
        transition_sync(group);
        if (thread > 0) return;
        tensor_store(&p.hidden, stage, first_row(tile), column);
        tensor_store_commit();
    }

    /* accumulators over x, which nobody reads any more, and out */
    __device__ __forceinline__ void store(const float (&y)[S::PARTS][S::N / 2], uint32_t x, int tile) const
    {
#pragma unroll
        for (int n = 0; n < S::PARTS; n++)
#pragma unroll
            for (int j = 0; j < S::N / 8; j++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    shared_word_put(word(x, n * S::N / 8 + j, h),
                                    pack_bf16(y[n][4 * j + 2 * h], y[n][4 * j + 2 * h + 1]));
        out(&p.y, x, tile);
        if (!p.behind.gamma) return;
        if (thread == 0) tensor_store_wait_read();
        transition_sync(group);
        EightScales scales = eight_scales(p.behind, thread % (S::C / 8) * 8);
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
        float y[S::PARTS][S::N / 2], hidden[S::WIDTH / 2];
        int ended = 0;
        start(y, x);
        transition_sync(group);
        normalize(x, tile);
        if (S::KEEP)
            out(&p.x, x, tile);
        else
            async_fence(), transition_sync(group);
        first(hidden, x, &ended);
#pragma unroll 1
        for (int column = 0; column < p.width; column += S::WIDTH) {
            at.drain(thread, &ended);
#pragma unroll
            for (int half = 0; half < S::WIDTH / 64; half++) {
                uint32_t activated[16];
                activate(activated, hidden, half, column + half * 64);
                if (S::KEEP) store_hidden(activated, tile, column + half * 64);
                second(y, activated, &ended);
            }
            if (column + S::WIDTH < p.width) first(hidden, x, &ended);
        }
        at.drain(thread, &ended);
        if (S::KEEP) { /* x is on its way out of the place of y */
            if (thread == 0) tensor_store_wait_read();
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
    int group = threadIdx.x / 128;
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
        TransitionGroup<S> g = {p, at, group, thread, lane, thread / WARP * 16 + lane / 4};
        g.run(vectors);
    }
}

#endif
