/* Products y = x W^T + b of many rows with a short inner extent on Hopper's asynchronous tensor cores (wgmma): the
 * weights of a block of columns stay in shared memory, rows stream past them, and each column knows its own output,
 * bias and width (groups of linear layers that share x). What bounds such a product is reading x and writing y.
 *
 * Two warpgroups share 64 rows and split the columns. Shared tiles are [k / 64][rows][64] bf16 in the 128-byte swizzle
 * of the matrix descriptors (16-byte chunk c of row r at c ^ (r & 7)). */
#ifndef FOLDSCALE_KERNELS_CUDA_STREAM_CUH
#define FOLDSCALE_KERNELS_CUDA_STREAM_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/peer_send.cuh"

enum { STREAM_ROWS = 64, STREAM_THREADS = 256, STREAM_MEMBERS = 6, STREAM_BLOCKS = 132 };

struct StreamProblem {
    const bf16 *x, *w;
    int rows, columns, members, column_blocks;
    bf16 *y[STREAM_MEMBERS];
    const float *bias[STREAM_MEMBERS];
    int start[STREAM_MEMBERS + 1];
    bool relu, early; /* early: w before stage_wait() */
    /* one member stored in groups (column_group > 0): row (high, low) and column (high, low) of 2^row_shift rows and
     * column_group columns, a multiple of 8, lie at high * step + low * row_step (+ column low) */
    int row_shift, column_group;
    int64_t row_high_step, row_step, column_step;
    PeerSend send; /* of the rows of member `sent` */
    int sent;

    __device__ __forceinline__ int64_t row_at(int row, int width) const
    {
        if (column_group == 0) return (int64_t)row * width;
        return (row >> row_shift) * row_high_step + (row & ((1 << row_shift) - 1)) * row_step;
    }
    __device__ __forceinline__ int64_t column_at(int column) const
    {
        return column_group == 0 ? column : column / column_group * column_step + column % column_group;
    }
};

/* rows [row0, row0 + ROWS) of a matrix [extent, K], zeros beyond */
template <int K, int ROWS>
__device__ __forceinline__ void stream_load(uint32_t shared, const bf16 *p, int row0, int extent)
{
    constexpr int CHUNKS = K / 8;
#pragma unroll 4
    for (int id = threadIdx.x; id < ROWS * CHUNKS; id += STREAM_THREADS) {
        int row = id / CHUNKS, chunk = id % CHUNKS, at = row0 + row;
        bool live = at < extent;
        uint32_t target = shared + (uint32_t)((chunk / 8) * ROWS * 128 + row * 128 + ((chunk % 8) ^ (row & 7)) * 16);
        copy16_async(target, live ? p + (int64_t)at * K + chunk * 8 : p, live);
    }
}

template <int K, int NB> struct StreamShape {
    static constexpr int HALF = NB / 2, PITCH = HALF + 8, STAGES = K > 128 && NB > 64 ? 2 : 4;
    static constexpr int W_BYTES = NB * K * 2, X_BYTES = STREAM_ROWS * K * 2, OUT_BYTES = STREAM_ROWS * PITCH * 2;
    static constexpr int BYTES = W_BYTES + STAGES * X_BYTES + 2 * OUT_BYTES;
};

/* Where a thread stores: its column of row 0, or which column of the member that is sent. */
struct StreamTarget {
    bf16 *y; /* NULL: nowhere */
    int width, sent;
};

__device__ __forceinline__ void stream_put(const StreamProblem &p, PeerSender *sender, const StreamTarget &to, int row,
                                           const uint4 &v)
{
    if (to.sent >= 0)
        peer_put<bf16>(sender, (uint32_t)row, (uint32_t)to.width, (uint32_t)to.sent, v);
    else
        *reinterpret_cast<uint4 *>(to.y + p.row_at(row, to.width)) = v;
}

/* Results of a warpgroup through shared memory, out in 16-byte pieces. */
template <int HALF, int PITCH>
__device__ __forceinline__ void stream_store(const StreamProblem &p, PeerSender *sender, const float (&acc)[HALF / 2],
                                             bf16 *stage, const StreamTarget &target, int row0)
{
    int thread = threadIdx.x % 128, lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
    int barrier = threadIdx.x / 128 + 1;
    float least = p.relu ? 0.0f : -INFINITY;
#pragma unroll
    for (int j = 0; j < HALF / 8; j++) {
        bf16 *at = stage + row * PITCH + j * 8 + lane % 4 * 2;
        *reinterpret_cast<uint32_t *>(at) = pack_bf16(fmaxf(acc[j * 4], least), fmaxf(acc[j * 4 + 1], least));
        *reinterpret_cast<uint32_t *>(at + 8 * PITCH) =
            pack_bf16(fmaxf(acc[j * 4 + 2], least), fmaxf(acc[j * 4 + 3], least));
    }
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
    constexpr int GROUPS = HALF / 8, STEP = 128 / GROUPS;
    const bf16 *from = stage + thread % GROUPS * 8;
#pragma unroll
    for (int k = 0; k < STREAM_ROWS / STEP; k++) {
        int r = thread / GROUPS + k * STEP;
        if (target.y && row0 + r < p.rows)
            stream_put(p, sender, target, row0 + r, *reinterpret_cast<const uint4 *>(from + r * PITCH));
    }
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

/* Member that owns a column. */
__device__ __forceinline__ int stream_member(const StreamProblem &p, int column)
{
    int k = 0;
    while (k + 1 < p.members && column >= p.start[k + 1]) k++;
    return k;
}

template <int K, int NB>
__global__ void __launch_bounds__(STREAM_THREADS, 1) stream_kernel(const __grid_constant__ StreamProblem p)
{
    typedef StreamShape<K, NB> S;
    extern __shared__ __align__(1024) char shared[];
    uint32_t base = shared_address(shared), xs = base + S::W_BYTES;
    int block = blockIdx.x % p.column_blocks;
    if (p.early) stream_load<K, NB>(base, p.w, block * NB, p.columns);
    stage_wait();
    peer_send_begin(p.send);
    if (!p.early) stream_load<K, NB>(base, p.w, block * NB, p.columns);
    int group = threadIdx.x / 128, thread = threadIdx.x % 128;
    int first = blockIdx.x / p.column_blocks, step = gridDim.x / p.column_blocks;
    int tiles = (p.rows + STREAM_ROWS - 1) / STREAM_ROWS, column0 = block * NB + group * S::HALF;
    bf16 *stage = reinterpret_cast<bf16 *>(shared + S::W_BYTES + S::STAGES * S::X_BYTES + group * S::OUT_BYTES);

    /* biases of this thread's accumulators; the column that it stores */
    float bias[S::HALF / 4];
#pragma unroll
    for (int j = 0; j < S::HALF / 8; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int column = column0 + j * 8 + thread % 4 * 2 + c, k = stream_member(p, column);
            bias[j * 2 + c] = column < p.columns && p.bias[k] ? p.bias[k][column - p.start[k]] : 0.0f;
        }
    int column = column0 + thread % (S::HALF / 8) * 8, member = stream_member(p, column);
    StreamTarget target = {column < p.columns ? p.y[member] + p.column_at(column - p.start[member]) : NULL,
                           p.start[member + 1] - p.start[member],
                           p.send.ranks && member == p.sent ? column - p.start[member] : -1};
    PeerSender sender(p.send);

#pragma unroll
    for (int s = 0; s < S::STAGES - 1; s++) {
        int tile = first + s * step;
        if (tile < tiles) stream_load<K, STREAM_ROWS>(xs + s * S::X_BYTES, p.x, tile * STREAM_ROWS, p.rows);
        copy_commit();
    }
    int slot = 0;
    for (int tile = first; tile < tiles; tile += step) {
        copy_wait<S::STAGES - 2>();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* copies were ordinary writes to wgmma */
        __syncthreads();
        int next = tile + (S::STAGES - 1) * step;
        if (next < tiles)
            stream_load<K, STREAM_ROWS>(xs + (slot + S::STAGES - 1) % S::STAGES * S::X_BYTES, p.x, next * STREAM_ROWS,
                                        p.rows);
        copy_commit();

        float acc[S::HALF / 2];
#pragma unroll
        for (int j = 0; j < S::HALF / 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) acc[j * 4 + c] = bias[j * 2 + c % 2];
        uint64_t a = wgmma_descriptor(xs + slot * S::X_BYTES);
        uint64_t b = wgmma_descriptor(base + group * S::HALF * 128);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < K / 16; k++)
            wgmma_step<S::HALF>(acc, a + k / 4 * (STREAM_ROWS * 128 >> 4) + k % 4 * 2,
                                b + k / 4 * (NB * 128 >> 4) + k % 4 * 2, 1);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        stream_store<S::HALF, S::PITCH>(p, &sender, acc, stage, target, tile * STREAM_ROWS);
        slot = (slot + 1) % S::STAGES;
    }
    if (p.send.ranks) peer_finish_all(p.send);
}

static inline bool stream_fits(const StreamProblem &p, int64_t inner)
{
    bool fits = (inner == 64 || inner == 128 || inner == 256) && aligned16(p.x) && aligned16(p.w);
    fits = fits && (p.columns >= 128 || p.send.ranks); /* of fewer columns, the library is as fast */
    for (int k = 0; k < p.members; k++) fits = fits && aligned16(p.y[k]) && (p.start[k + 1] - p.start[k]) % 8 == 0;
    return fits;
}

template <int K, int NB> static Status stream_launch_shape(StreamProblem p, cudaStream_t stream)
{
    constexpr int BYTES = StreamShape<K, NB>::BYTES;
    p.column_blocks = (p.columns + NB - 1) / NB;
    int tiles = (p.rows + STREAM_ROWS - 1) / STREAM_ROWS, along = STREAM_BLOCKS / p.column_blocks;
    if (along < 1) along = 1;
    if (along > tiles) along = tiles;
    CUDA_TRY(cudaFuncSetAttribute(stream_kernel<K, NB>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(stream_kernel<K, NB>, along * p.column_blocks, STREAM_THREADS, BYTES, stream, p);
    return cuda_launched("stream_kernel");
}

/* Blocks of 256 columns where they divide the columns, else of 128; few columns of a long inner extent in one of 64. */
static inline Status stream_launch(const StreamProblem &p, int64_t inner, cudaStream_t stream)
{
    bool wide = p.columns % 256 == 0;
    if (inner == 256 && p.columns <= 64) return stream_launch_shape<256, 64>(p, stream);
    if (inner == 64) return wide ? stream_launch_shape<64, 256>(p, stream) : stream_launch_shape<64, 128>(p, stream);
    if (inner == 128) return wide ? stream_launch_shape<128, 256>(p, stream) : stream_launch_shape<128, 128>(p, stream);
    return wide ? stream_launch_shape<256, 256>(p, stream) : stream_launch_shape<256, 128>(p, stream);
}

#endif
