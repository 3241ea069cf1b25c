/* Gradients of layer norm: dx by rows, dgamma and dbeta as sums of blocks in a fixed order. */
#ifndef FOLDSCALE_KERNELS_CUDA_NORM_BACKWARD_CUH
#define FOLDSCALE_KERNELS_CUDA_NORM_BACKWARD_CUH

#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/peer_send.cuh"
#include "kernels/cuda/reduce.cuh"

enum { NORM_THREADS = 256, NORM_BLOCKS = 256 /* two per SM; fixed, so that sums have one order everywhere */ };

/* Runs RUN(LANES, N) for the channel sizes with a vector kernel; V = elements of a pack. */
#define NORM_SIZES(RUN, V, c)                                                                                          \
    if ((c) == 8 * (V))                                                                                                \
        RUN(8, 1)                                                                                                      \
    else if ((c) == 16 * (V))                                                                                          \
        RUN(16, 1)                                                                                                     \
    else if ((c) == 32 * (V))                                                                                          \
        RUN(32, 1)                                                                                                     \
    else if ((c) == 48 * (V))                                                                                          \
        RUN(16, 3)                                                                                                     \
    else if ((c) == 64 * (V))                                                                                          \
        RUN(32, 2)                                                                                                     \
    else if ((c) == 96 * (V))                                                                                          \
    RUN(32, 3)

/* dx = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)) (+ what arrives at x on another way); this block's share of
 * dgamma = sum dy xhat, dbeta = sum dy goes to partial[block][2 C]. mean == NULL: the statistics are computed again, by
 * the plain kernels. */
template <typename T> struct NormBackward {
    const T *dy, *x, *other; /* other: NULL = none */
    const float *gamma, *mean, *rstd;
    T *dx, *dropped; /* dropped: dropout(dx), NULL = not wanted */
    Dropout dropout;
    float *partial, *dgamma, *dbeta;
    int64_t rows;
    int c;
    float eps;
    /* rows of a block: block * block_step + (0 .. rows at a time) + round * round_step */
    int64_t block_step, round_step;
    int rounds;
    bool one_mask; /* all rows of a thread meet the same elements of the mask */
    PeerSend send; /* of dx */
};

/* Rows on their way: every thread copies its own vectors into its own places of a ring, so that several rounds are
 * under way without registers or barriers; the first lane of a row's group copies the statistics too. */
template <typename T, int LANES, int N> struct NormRing {
    static constexpr int STAGES = N == 1 ? 4 : 2, GROUPS = NORM_THREADS / LANES;
    uint4 row[STAGES][3][N][NORM_THREADS]; /* dy, x, other */
    float statistic[STAGES][2][GROUPS];

    __device__ __forceinline__ void load(int stage, const NormBackward<T> &p, int64_t row_index)
    {
        constexpr int V = Pack<T>::N, C = LANES * V * N;
        int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
        if (row_index < p.rows) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                int64_t at = row_index * C + (k * LANES + lane) * V;
                copy16_async(shared_address(&row[stage][0][k][threadIdx.x]), p.dy + at, true);
                copy16_async(shared_address(&row[stage][1][k][threadIdx.x]), p.x + at, true);
                if (p.other) copy16_async(shared_address(&row[stage][2][k][threadIdx.x]), p.other + at, true);
            }
            if (lane == 0) {
                copy4_async(shared_address(&statistic[stage][0][group]), p.mean + row_index, true);
                copy4_async(shared_address(&statistic[stage][1][group]), p.rstd + row_index, true);
            }
        }
        copy_commit();
    }
    __device__ __forceinline__ void read(int stage, int operand, float (&v)[N][Pack<T>::N]) const
    {
#pragma unroll
        for (int k = 0; k < N; k++)
            load_floats<Pack<T>::N>(reinterpret_cast<const T *>(&row[stage][operand][k][threadIdx.x]), v[k]);
    }
};

/* Factors of the dropout at this thread's part of a row. */
template <typename T, int LANES, int N>
__device__ __forceinline__ void norm_factors(const NormBackward<T> &p, int64_t row, int lane, float (&f)[N][Pack<T>::N])
{
    constexpr int V = Pack<T>::N, C = LANES * V * N;
#pragma unroll
    for (int k = 0; k < N; k++) p.dropout.template factors<V>((uint32_t)(row * C + (k * LANES + lane) * V), f[k]);
}

/* dx of a row, and what its dropout makes of it. */
template <typename T, int LANES, int N, bool DROPS>
__device__ __forceinline__ void norm_row_store(const NormBackward<T> &p, PeerSender *sender, int64_t row, int lane,
                                               const float (&dx)[N][Pack<T>::N], const float (&f)[N][Pack<T>::N])
{
    constexpr int V = Pack<T>::N, C = LANES * V * N;
    T *to = p.send.ranks ? (T *)peer_row(sender, (uint32_t)row, C * sizeof(T)) : p.dx + row * C;
#pragma unroll
    for (int k = 0; k < N; k++) {
        int64_t at = row * C + (k * LANES + lane) * V;
        store_floats<V>(to + (k * LANES + lane) * V, dx[k]);
        if (!DROPS) continue;
        float dropped[V];
#pragma unroll
        for (int j = 0; j < V; j++) dropped[j] = to_float(from_float<T>(dx[k][j])) * f[k][j];
        store_floats<V>(p.dropped + at, dropped);
    }
}

/* Sums of a block: groups of one warp first (by shuffles), then warps in order. shared: a row of channels per warp. */
template <int LANES, typename Sum, int N, int V>
__device__ __forceinline__ void norm_block_sums(Sum *shared, const Sum (&dgamma)[N][V], const Sum (&dbeta)[N][V],
                                                float *partial)
{
    constexpr int C = LANES * V * N;
    int lane = threadIdx.x % LANES, warp = threadIdx.x / WARP;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                Sum s = which ? dbeta[k][j] : dgamma[k][j];
#pragma unroll
                for (int o = LANES; o < WARP; o *= 2) s += __shfl_xor_sync(0xffffffffu, s, o);
                if (threadIdx.x % WARP < LANES) shared[warp * C + (k * LANES + lane) * V + j] = s;
            }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += NORM_THREADS) {
            Sum total = 0;
            for (int w = 0; w < NORM_THREADS / WARP; w++) total += shared[w * C + c];
            partial[which * C + c] = (float)total;
        }
    }
}

template <typename T, int LANES, int N, int RESIDENT, bool DROPS>
__global__ void __launch_bounds__(NORM_THREADS, RESIDENT)
    layer_norm_bwd_kernel(const __grid_constant__ NormBackward<T> p)
{
    stage_wait();
    peer_send_begin(p.send);
    PeerSender sender(p.send);
    constexpr int V = Pack<T>::N, C = LANES * V * N;
    typedef NormRing<T, LANES, N> Ring;
    typedef typename Wide<T>::Sum Sum;
    extern __shared__ __align__(16) char memory[];
    Ring &ring = *reinterpret_cast<Ring *>(memory);
    stage_release();
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    float g[N][V];
    Sum dgamma[N][V] = {}, dbeta[N][V] = {};
#pragma unroll
    for (int k = 0; k < N; k++) load_floats<V>(p.gamma + (k * LANES + lane) * V, g[k]);
    /* all lanes of a warp go round together: rows that do not exist count as zero */
    const int64_t step = p.round_step;
    int64_t row = blockIdx.x * p.block_step + group;
    float f[N][V];
    if (DROPS && p.one_mask) norm_factors<T, LANES, N>(p, row, lane, f);
#pragma unroll
    for (int s = 0; s < Ring::STAGES - 1; s++) ring.load(s, p, row + s * step);
    for (int r = 0; r < p.rounds; r++, row += step) {
        int stage = r % Ring::STAGES;
        copy_wait<Ring::STAGES - 2>();
        __syncwarp();
        float d[N][V], hat[N][V];
        Sum a = 0, b = 0;
        bool live = row < p.rows;
        ring.read(stage, 0, d);
        ring.read(stage, 1, hat);
        float mean = ring.statistic[stage][0][group], rstd = ring.statistic[stage][1][group];
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (!live) d[k][j] = hat[k][j] = 0; /* what the ring holds there is no number */
                hat[k][j] = live ? (hat[k][j] - mean) * rstd : 0.0f;
                dgamma[k][j] += (Sum)d[k][j] * hat[k][j];
                dbeta[k][j] += d[k][j];
                d[k][j] *= g[k][j];
                a += d[k][j];
                b += (Sum)d[k][j] * hat[k][j];
            }
        a = lanes_sum<LANES>(a) / C;
        b = lanes_sum<LANES>(b) / C;
        float o[N][V];
        if (p.other) ring.read(stage, 2, o);
        ring.load((r + Ring::STAGES - 1) % Ring::STAGES, p, row + (Ring::STAGES - 1) * step);
        if (!live) continue;
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                d[k][j] = (float)(rstd * (d[k][j] - a - hat[k][j] * b));
                if (p.other) d[k][j] += o[k][j];
            }
        if (DROPS && !p.one_mask) norm_factors<T, LANES, N>(p, row, lane, f);
        norm_row_store<T, LANES, N, DROPS>(p, &sender, row, lane, d, f);
    }
    copy_wait<0>();
    __syncthreads();
    if (p.send.ranks && threadIdx.x == 0) sender.finish(gridDim.x);
    norm_block_sums<LANES>(reinterpret_cast<Sum *>(memory), dgamma, dbeta, p.partial + (int64_t)blockIdx.x * 2 * C);
}

/* The plain form, for any C, in two kernels. dx: a warp per row, which it reads once for each sum; where no statistics
 * are given it leaves those that it finds in `found` (mean of every row, then rstd). */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS) layer_norm_dx_plain_kernel(NormBackward<T> p, float *found)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    const int c = p.c, lane = threadIdx.x % WARP;
    int64_t row = ((int64_t)blockIdx.x * NORM_THREADS + threadIdx.x) / WARP;
    if (row >= p.rows) return;
    const T *x = p.x + row * c, *dy = p.dy + row * c;
    Sum mean = 0, rstd = 0, a = 0, b = 0;
    if (p.mean) {
        mean = p.mean[row], rstd = p.rstd[row];
    } else {
        for (int k = lane; k < c; k += WARP) mean += to_float(x[k]);
        mean = lanes_sum<WARP>(mean) / c;
        for (int k = lane; k < c; k += WARP) rstd += (to_float(x[k]) - mean) * (to_float(x[k]) - mean);
        rstd = 1 / sqrt(lanes_sum<WARP>(rstd) / c + p.eps);
        if (lane == 0) found[row] = (float)mean, found[p.rows + row] = (float)rstd;
    }
    for (int k = lane; k < c; k += WARP) {
        Sum g = (Sum)to_float(dy[k]) * p.gamma[k];
        a += g;
        b += g * (to_float(x[k]) - mean) * rstd;
    }
    a = lanes_sum<WARP>(a) / c;
    b = lanes_sum<WARP>(b) / c;
    for (int k = lane; k < c; k += WARP) {
        Sum hat = (to_float(x[k]) - mean) * rstd, dx = rstd * (to_float(dy[k]) * p.gamma[k] - a - hat * b);
        p.dx[row * c + k] = from_float<T>((float)(p.other ? dx + to_float(p.other[row * c + k]) : dx));
    }
}

/* This block's share of dgamma and dbeta: a thread per channel goes down the block's rows, in teams where channels are
 * fewer than threads, whose sums are added in order. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    layer_norm_sums_plain_kernel(NormBackward<T> p, const float *mean, const float *rstd)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    __shared__ Sum shared[2][NORM_THREADS];
    int lanes = p.c < NORM_THREADS ? p.c : NORM_THREADS, teams = NORM_THREADS / lanes, team = threadIdx.x / lanes;
    int64_t rows = (p.rows + gridDim.x - 1) / gridDim.x, first = blockIdx.x * rows;
    int64_t end = first + rows < p.rows ? first + rows : p.rows;
    for (int channel = 0; channel < p.c; channel += lanes) {
        int k = channel + threadIdx.x % lanes;
        Sum dgamma = 0, dbeta = 0;
        for (int64_t row = first + team; k < p.c && team < teams && row < end; row += teams) {
            float d = to_float(p.dy[row * p.c + k]);
            dgamma += d * ((to_float(p.x[row * p.c + k]) - mean[row]) * rstd[row]);
            dbeta += d;
        }
        shared[0][threadIdx.x] = dgamma, shared[1][threadIdx.x] = dbeta;
        __syncthreads();
        if (team == 0 && k < p.c) {
            for (int t = 1; t < teams; t++) dgamma += shared[0][t * lanes + k], dbeta += shared[1][t * lanes + k];
            p.partial[(int64_t)blockIdx.x * 2 * p.c + k] = (float)dgamma;
            p.partial[(int64_t)blockIdx.x * 2 * p.c + p.c + k] = (float)dbeta;
        }
        __syncthreads();
    }
}

/* A block has 8 to 32 rows at a time; several rounds each where rows are many, so that the partial sums stay few. */
static int norm_bwd_blocks(int64_t rows)
{
    int64_t blocks = (rows + 7) / 8;
    blocks = (blocks + 15) / 16 * 16;
    return (int)(blocks < NORM_BLOCKS ? blocks : (int64_t)NORM_BLOCKS);
}

/* Which rows a block takes. Masks that rows share are drawn once per thread where the rounds can be laid that way: by
 * strides of whole rows of the shared axis, or, where the shared axis is the one before the channels, by neighbours. */
template <typename T> static void norm_bwd_rounds(NormBackward<T> *p, int blocks, int at_a_time)
{
    const Dropout &d = p->dropout;
    p->rounds = (int)((p->rows + (int64_t)blocks * at_a_time - 1) / ((int64_t)blocks * at_a_time));
    p->block_step = at_a_time, p->round_step = (int64_t)blocks * at_a_time;
    int64_t chunk = (int64_t)p->rounds * at_a_time;
    if (p->send.ranks) p->block_step = chunk, p->round_step = at_a_time; /* to all ranks at any time */
    if (!p->dropped || d.rank < 3) return;
    int64_t below = p->rows / d.local[0];
    if (d.stride[0] == 0 && p->round_step % below == 0) {
        p->one_mask = true;
    } else if (d.stride[d.rank - 2] == 0 && d.local[d.rank - 2] % chunk == 0) {
        p->one_mask = true;
        p->block_step = chunk, p->round_step = at_a_time;
    }
}

template <typename T, int LANES, int N>
static Status layer_norm_bwd_run(NormBackward<T> p, int blocks, cudaStream_t stream)
{
    constexpr int BYTES = (int)sizeof(NormRing<T, LANES, N>), RESIDENT = N == 1 ? 3 : 1;
    const auto kernel = p.dropped ? layer_norm_bwd_kernel<T, LANES, N, RESIDENT, true>
                                  : layer_norm_bwd_kernel<T, LANES, N, RESIDENT, false>;
    norm_bwd_rounds(&p, blocks, NORM_THREADS / LANES);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(kernel, blocks, NORM_THREADS, BYTES, stream, p);
    return OK;
}

/* dropout(dx) by a kernel of its own: channels that the vector kernel does not take, masks shared along them. */
template <typename T> static Status dropped_launch(const NormBackward<T> &p, int64_t count, cudaStream_t stream)
{
    MapArgs<T, 1, 1> a = {{p.dx}, {p.dropped}, count};
    return map_launch(a, p.dropout.inner, PlainDropout{p.dropout}, stream);
}

template <typename T> static void layer_norm_bwd_plain(const NormBackward<T> &p, int blocks, cudaStream_t stream)
{
    float *found = p.partial + (int64_t)NORM_BLOCKS * 2 * p.c;
    launch(layer_norm_dx_plain_kernel<T>, blocks_for(p.rows * WARP, NORM_THREADS), NORM_THREADS, 0, stream, p, found);
    launch(layer_norm_sums_plain_kernel<T>, blocks, NORM_THREADS, 0, stream, p, p.mean ? p.mean : (const float *)found,
           p.mean ? p.rstd : (const float *)found + p.rows);
}

template <typename T> static Status layer_norm_bwd_launch(NormBackward<T> p, int blocks, cudaStream_t stream)
{
    T *dropped = p.dropped;
    bool inside = p.dropout.inner % Pack<T>::N == 0;
    if (!inside) p.dropped = NULL;
#define RUN(LANES, N) TRY((layer_norm_bwd_run<T, LANES, N>(p, blocks, stream)));
    if (!p.mean)
        layer_norm_bwd_plain(p, blocks, stream);
    else
        NORM_SIZES(RUN, Pack<T>::N, p.c)
    else
    {
        layer_norm_bwd_plain(p, blocks, stream);
        inside = false;
    }
#undef RUN
    TRY(cuda_launched("layer_norm_bwd"));
    p.dropped = dropped;
    if (dropped && !inside) TRY(dropped_launch(p, p.rows * p.c, stream));
    return sum_partials_split_launch(p.partial, p.dgamma, p.dbeta, blocks, p.c, stream);
}

#endif
