/* The gradient of a transition in one kernel: dh = dy W2 where h > 0, d = dh W1, and of the layer norm in front of both
 * (norm_edge.cuh), h being the hidden layer that the forward kept. dh is written, since gradients of weights read it,
 * and multiplied where it arises.
 *
 * As in transition.cuh a block owns 128 rows at a time, 64 per warpgroup, and goes through the hidden layer some
 * columns at a time, the matrices streaming past in boxes. h arrives in tiles of 64 columns; dh leaves from its place.
 */
#ifndef FOLDSCALE_KERNELS_CUDA_TRANSITION_BACKWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_TRANSITION_BACKWARD_CUH

#include "kernels/cuda/norm_edge.cuh"
#include "kernels/cuda/transition.cuh"

enum { HIDDEN_TILES = 4 /* of a warpgroup: in work, on its way out, two on their way in */ };

struct TransitionGradient {
    CUtensorMap dy, w2, h, dh, w1, x;
    NormEdge edge;
    int width;  /* of the hidden layer, a multiple of 128 */
    bool early; /* matrices and gamma need no stage_wait() */
};

template <int C_> struct GradientShape {
    static constexpr int C = C_, BOXES = C / 64;
    static constexpr int N = C < 128 ? C : 128, PARTS = C / N; /* columns of d in one product */
    static constexpr int WIDTH = C > 128 ? 64 : 128;           /* hidden columns at a time */
    static constexpr int FIRST_ROWS = TRANSITION_BOX / (WIDTH * 2), FIRST_BOXES = C / FIRST_ROWS; /* of W2 */
    static constexpr bool APART = C <= 128; /* x has a place of its own, else that of dy */
    static constexpr int X_BYTES = BOXES * TRANSITION_CHUNK;
    static constexpr int HIDDEN_AT = TRANSITION_GROUPS * (APART ? 2 : 1) * X_BYTES;
    static constexpr int RING_AT = HIDDEN_AT + TRANSITION_GROUPS * HIDDEN_TILES * TRANSITION_CHUNK;
    static constexpr int GAMMA_BYTES = C * 4, BARRIER_BYTES = 256, MOST = 227 * 1024;
    static constexpr int FIT = (MOST - RING_AT - GAMMA_BYTES - BARRIER_BYTES) / TRANSITION_BOX;
    static constexpr int SLOTS = FIT < 8 ? FIT : 8;
    static constexpr int GAMMA_AT = RING_AT + SLOTS * TRANSITION_BOX, BARRIERS_AT = GAMMA_AT + GAMMA_BYTES;
    static constexpr int BYTES = BARRIERS_AT + BARRIER_BYTES;
    static_assert(SLOTS >= 4, "two boxes in work and two on their way");
};

/* Barriers of a warpgroup: dy, x and the tiles of h have arrived. */
template <typename S> __device__ __forceinline__ uint32_t gradient_arrived(uint32_t base, int group, int which)
{
    return transition_full<S>(base, 2 * S::SLOTS + group * (2 + HIDDEN_TILES) + which);
}
__device__ __forceinline__ int gradient_tiles(const TransitionGradient &p)
{
    return (p.edge.rows + TRANSITION_GROUPS * TRANSITION_ROWS - 1) / (TRANSITION_GROUPS * TRANSITION_ROWS);
}

/* --- one thread: the matrices, in the order in which they are read */

template <typename S> struct GradientFeed {
    const TransitionGradient &p;
    TransitionRing<S> at;
    __device__ __forceinline__ void first(int column)
    {
        for (int k = 0; k < S::FIRST_BOXES; k++)
            at.fill(&p.w2, k * S::FIRST_ROWS, column, S::FIRST_ROWS, S::WIDTH / 64);
    }
    __device__ __forceinline__ void second(int column)
    {
        for (int half = 0; half < S::WIDTH / 64; half++)
            for (int n = 0; n < S::PARTS; n++) at.fill(&p.w1, column + half * 64, n * S::N, 64, S::N / 64);
    }
    __device__ __forceinline__ void run()
    {
        for (int tile = blockIdx.x; tile < gradient_tiles(p); tile += gridDim.x) {
            first(0);
            for (int column = 0; column < p.width; column += S::WIDTH) {
                second(column);
                if (column + S::WIDTH < p.width) first(column + S::WIDTH);
                if (S::APART || column + 4 * S::WIDTH != p.width) continue;
                transition_prefetch<S>(&p.x, tile, p.edge.rows); /* what one place has to wait for */
                transition_prefetch<S>(&p.dy, tile + gridDim.x, p.edge.rows);
            }
        }
    }
};

/* --- a warpgroup */

/* By both warpgroups. */
template <typename S> __device__ __forceinline__ void gradient_gamma(const TransitionGradient &p, float *gamma)
{
    for (int c = threadIdx.x; c < S::C; c += TRANSITION_GROUPS * 128) gamma[c] = p.edge.gamma[c];
    asm volatile("bar.sync 3, 256;" ::: "memory");
}

template <typename S> struct GradientGroup {
    const TransitionGradient &p;
    TransitionRing<S> at;
    int group, thread;
    uint32_t place;   /* transition_place() */
    int hidden_tiles; /* of this block's rows in all */

    __device__ __forceinline__ uint32_t dy() const { return at.base + group * S::X_BYTES; }
    __device__ __forceinline__ uint32_t x() const { return dy() + (S::APART ? TRANSITION_GROUPS * S::X_BYTES : 0); }
    __device__ __forceinline__ uint32_t hidden_tile(int id) const
    {
        return at.base + S::HIDDEN_AT + (group * HIDDEN_TILES + id % HIDDEN_TILES) * TRANSITION_CHUNK;
    }
    __device__ __forceinline__ int first_row(int tile) const
    {
        return (tile * TRANSITION_GROUPS + group) * TRANSITION_ROWS;
    }
    __device__ __forceinline__ void load(const CUtensorMap *map, int tile, uint32_t to, int which) const
    {
        uint32_t arrived = gradient_arrived<S>(at.base, group, which);
        barrier_expect(arrived, S::X_BYTES);
        for (int k = 0; k < S::BOXES; k++)
            tensor_load(to + k * TRANSITION_CHUNK, map, first_row(tile), k * 64, arrived);
    }
    __device__ __forceinline__ void load_dy(int tile) const { load(&p.dy, tile, dy(), 0); }
    __device__ __forceinline__ void load_x(int tile) const { load(&p.x, tile, x(), 1); }
    /* Tiles of h are counted through all rows of the block. */
    __device__ __forceinline__ void load_hidden(int id) const
    {
        int columns = p.width / 64;
        if (id >= hidden_tiles) return;
        uint32_t arrived = gradient_arrived<S>(at.base, group, 2 + id % HIDDEN_TILES);
        barrier_expect(arrived, TRANSITION_CHUNK);
        tensor_load(hidden_tile(id), &p.h, first_row(blockIdx.x + id / columns * gridDim.x), id % columns * 64,
                    arrived);
    }

    /* hidden = dy W2 of some columns */
    __device__ __forceinline__ void first(float (&hidden)[S::WIDTH / 2], int *ended)
    {
#pragma unroll
        for (int k = 0; k < S::FIRST_BOXES; k++) {
            uint64_t b = across_descriptor(at.next(), S::FIRST_ROWS * 128);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < S::FIRST_ROWS / 16; s++) {
                int step = k * S::FIRST_ROWS / 16 + s;
                uint64_t a = wgmma_descriptor(dy() + step / 4 * TRANSITION_CHUNK) + step % 4 * 2;
                GroupProduct<S::WIDTH, false, true>::step(hidden, a, b + s * (2048 >> 4), step > 0);
            }
            wgmma_commit();
            at.advance(thread, ended);
        }
    }
    /* d += dh W1 of 64 hidden columns; `beside` happens while it runs */
    template <typename Beside>
    __device__ __forceinline__ void second(float (&d)[S::PARTS][S::N / 2], const uint32_t (&dh)[16], int *ended,
                                           const Beside &beside)
    {
#pragma unroll
        for (int n = 0; n < S::PARTS; n++) {
            uint64_t b = across_descriptor(at.next(), TRANSITION_CHUNK);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) RegisterProduct<S::N, true>::step(d[n], dh + s * 4, b + s * (2048 >> 4));
            wgmma_commit();
            if (n == S::PARTS - 1) beside();
            at.advance(thread, ended);
        }
    }

    /* h of 64 columns, once it is there */
    __device__ __forceinline__ void get_hidden(uint32_t (&h)[16], int id) const
    {
        barrier_wait(gradient_arrived<S>(at.base, group, 2 + id % HIDDEN_TILES), id / HIDDEN_TILES & 1);
        transition_get(hidden_tile(id), place, h);
    }
    /* h becomes dh: 64 hidden columns where h > 0, as left operands of the second product. */
    __device__ __forceinline__ void mask(uint32_t (&h)[16], const float *hidden) const
    {
#pragma unroll
        for (int k = 0; k < 16; k++) {
            float2 y = unpack_bf16(h[k]);
            h[k] = pack_bf16(y.x > 0 ? hidden[2 * k] : 0.0f, y.y > 0 ? hidden[2 * k + 1] : 0.0f);
        }
    }
    /* dh, which lies over h, leaves, and the tile before it makes room for another. */
    __device__ __forceinline__ void send_hidden(int id, int tile, int column) const
    {
        async_fence();
        transition_sync(group);
        if (thread > 0) return;
        tensor_store(&p.dh, hidden_tile(id), first_row(tile), column);
        tensor_store_commit();
        tensor_store_wait_read<1>(); /* the tile before this one has left */
        load_hidden(id + HIDDEN_TILES - 1);
    }

    __device__ __forceinline__ void tile(int tile, int id, NormPart<S::C> *part, NormSums<S::C, S::C <= 64> *sums)
    {
        float d[S::PARTS][S::N / 2], hidden[S::WIDTH / 2];
#pragma unroll
        for (int n = 0; n < S::PARTS; n++)
#pragma unroll
            for (int j = 0; j < S::N / 2; j++) /* now: between products it would hold them up */
                asm volatile("mov.f32 %0, 0f00000000;" : "=f"(d[n][j]));
        int ended = 0, next = tile + gridDim.x;
        bool more = thread == 0 && next < gradient_tiles(p);
        norm_edge_begin<S::C>(p.edge, first_row(tile), part);
        for (int k = 0, draws = norm_edge_draws<S::C>(p.edge, id == 0); k < draws; k++)
            norm_edge_draw<S::C>(p.edge, p.edge.drop.draw(), k, part);
        barrier_wait(gradient_arrived<S>(at.base, group, 0), id & 1);
        first(hidden, &ended);
#pragma unroll 1
        for (int column = 0; column < p.width; column += S::WIDTH) {
            bool last = column + S::WIDTH >= p.width;
            int hidden_id = id * (p.width / 64) + column / 64;
            uint32_t h[S::WIDTH / 64][16];
#pragma unroll
            for (int half = 0; half < S::WIDTH / 64; half++) get_hidden(h[half], hidden_id + half);
            at.drain(thread, &ended);
#pragma unroll
            for (int half = 0; half < S::WIDTH / 64; half++) {
                mask(h[half], hidden + 32 * half);
                transition_put(hidden_tile(hidden_id + half), place, h[half]);
                second(d, h[half], &ended, [&] {
                    send_hidden(hidden_id + half, tile, column + half * 64);
                    if (!last || half > 0) return;
                    /* nobody reads dy in shared memory any more */
                    if (!S::APART && thread == 0) load_x(tile);
                    if (S::APART && more) load_dy(next);
                });
            }
            if (!last) first(hidden, &ended);
        }
        at.drain(thread, &ended);
        barrier_wait(gradient_arrived<S>(at.base, group, 1), id & 1);
        norm_edge_end<S::C, TRANSITION_CHUNK>(p.edge, NormOwnRows{p.edge}, *part,
                                              reinterpret_cast<const float *>(gamma()), x(),
                                              reinterpret_cast<float(&)[S::C / 2]>(d), sums);
        async_fence();
        transition_sync(group);
        if (!more) return;
        if (S::APART)
            load_x(next);
        else
            load_dy(next);
    }
    __device__ __forceinline__ const char *gamma() const
    {
        extern __shared__ __align__(1024) char shared[];
        return shared + S::GAMMA_AT;
    }

    __device__ __forceinline__ void run(float *room, float *gamma_to)
    {
        NormSums<S::C, S::C <= 64> sums = {};
        NormPart<S::C> part = {};
        int id = 0;
        if (thread == 0) {
            load_dy(blockIdx.x);
            for (int k = 0; k < HIDDEN_TILES - 1; k++) load_hidden(k);
            if (S::APART) load_x(blockIdx.x);
        }
        if (!p.early) gradient_gamma<S>(p, gamma_to);
#pragma unroll 1
        for (int t = blockIdx.x; t < gradient_tiles(p); t += gridDim.x, id++) tile(t, id, &part, &sums);
        asm volatile("bar.sync 3, 256;" ::: "memory"); /* the ring is empty */
        norm_edge_sums<S::C>(p.edge, room, sums);
        if (thread == 0) tensor_store_wait();
    }
};

template <typename S>
__global__ void __launch_bounds__(TRANSITION_THREADS, 1)
    transition_backward_kernel(const __grid_constant__ TransitionGradient p)
{
    extern __shared__ __align__(1024) char shared[];
    int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* the compiler sees that a warp has one */
    TransitionRing<S> at = {shared_address(shared), 0, 0};
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::SLOTS; s++) {
            barrier_init(transition_full<S>(at.base, s), 1);
            barrier_init(transition_empty<S>(at.base, s), TRANSITION_GROUPS);
        }
        for (int k = 0; k < TRANSITION_GROUPS * (2 + HIDDEN_TILES); k++)
            barrier_init(transition_full<S>(at.base, 2 * S::SLOTS + k), 1);
        barrier_publish();
    }
    __syncthreads();
    /* registers of the copying warps go to the products */
    if (group == TRANSITION_GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        bool feeds = threadIdx.x == TRANSITION_GROUPS * 128;
        if (feeds && p.early) GradientFeed<S>{p, at}.run();
        stage_wait();
        if (feeds && !p.early) GradientFeed<S>{p, at}.run();
    } else {
        float *gamma = reinterpret_cast<float *>(shared + S::GAMMA_AT);
        if (p.early) gradient_gamma<S>(p, gamma);
        stage_wait();
        stage_release();
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        int thread = threadIdx.x % 128, tiles = 0;
        for (int t = blockIdx.x; t < gradient_tiles(p); t += gridDim.x) tiles++;
        GradientGroup<S> g = {p, at, group, thread, transition_place(), tiles * (p.width / 64)};
        g.run(reinterpret_cast<float *>(shared + S::RING_AT), gamma);
    }
}

#endif
