/* Sums over the keys of invariant point attention in f32 (supplement algorithm 22, lines 8 and 9): o[i,h,:] = sum_m
 * p[h,i,m] z[i,m,:] */
#include "kernels/cuda/hopper.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

enum { HEAD_GROUP = 4, KEY_CHUNK = 64 };

/* a block per (query, group of heads); threads over channels; p of a chunk of keys in shared memory; for few products
 * or odd extents, sums in double */
__global__ void pair_context_kernel(int heads, int n, int m, int c, const float *p, const float *z, float *out)
{
    stage_wait();
    __shared__ float weight[HEAD_GROUP][KEY_CHUNK];
    int i = blockIdx.x, first = blockIdx.y * HEAD_GROUP;
    for (int channel = threadIdx.x; channel - (int)threadIdx.x < c; channel += blockDim.x) {
        double sum[HEAD_GROUP] = {0};
        for (int start = 0; start < m; start += KEY_CHUNK) {
            __syncthreads();
            for (int e = threadIdx.x; e < HEAD_GROUP * KEY_CHUNK; e += blockDim.x) {
                int h = first + e / KEY_CHUNK, j = start + e % KEY_CHUNK;
                weight[e / KEY_CHUNK][e % KEY_CHUNK] = h < heads && j < m ? p[((int64_t)h * n + i) * m + j] : 0;
            }
            __syncthreads();
            if (channel >= c) continue;
            int end = m - start < KEY_CHUNK ? m - start : KEY_CHUNK;
            for (int j = 0; j < end; j++) {
                double x = z[((int64_t)i * m + start + j) * c + channel];
                for (int g = 0; g < HEAD_GROUP; g++) sum[g] += weight[g][j] * x;
            }
        }
        for (int g = 0; g < HEAD_GROUP; g++)
            if (channel < c && first + g < heads) out[((int64_t)i * heads + first + g) * c + channel] = (float)sum[g];
    }
}

/* a warp per (query, key): dp[h,i,m] = do[i,h,:] . z[i,m,:]; for few products or odd extents, sums in double */
__global__ void pair_dp_kernel(int heads, int n, int m, int c, const float *d, const float *z, float *dp)
{
    stage_wait();
    int64_t pair = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    int lane = threadIdx.x % WARP;
    if (pair >= (int64_t)n * m) return;
    int64_t i = pair / m, j = pair % m;
    for (int h = 0; h < heads; h++) {
        double dot = 0;
        for (int channel = lane; channel < c; channel += WARP)
            dot += (double)d[(i * heads + h) * c + channel] * z[pair * c + channel];
        dot = lanes_sum<WARP>(dot);
        if (lane == 0) dp[((int64_t)h * n + i) * m + j] = (float)dot;
    }
}

enum { PAIR_TERMS = OP_MAX_IN / 2 };
struct PairTerms {
    int count;
    const float *d[PAIR_TERMS], *p[PAIR_TERMS];
};

/* a thread per channel of a (query, key): dz[i,m,:] = sum over terms and heads of p[h,i,m] do[i,h,:]; as above */
__global__ void pair_dz_kernel(int heads, int n, int m, int c, const __grid_constant__ PairTerms terms, float *dz)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, pair = e / c, channel = e % c;
    if (pair >= (int64_t)n * m) return;
    int64_t i = pair / m, j = pair % m;
    double sum = 0;
    for (int t = 0; t < terms.count; t++)
        for (int h = 0; h < heads; h++)
            sum += (double)terms.p[t][((int64_t)h * n + i) * m + j] * terms.d[t][(i * heads + h) * c + channel];
    dz[e] = (float)sum;
}

/* The same for up to 16 heads and 128 channels: a block per query reads z once; a lane has 4 channels of all heads,
 * warps take pieces of PIECE keys in turn, PIECES of them on their way. Weights of a chunk of keys lie in shared
 * memory, those of a key side by side. H: heads, rounded up. */
enum { PAIR_HEADS = 16, PAIR_CHANNELS = 128, PAIR_KEYS = 256, PAIR_PITCH = PAIR_HEADS + 4 };
enum { PIECE = 4, PIECES = 4, CHUNK_ROUNDS = PAIR_KEYS / (WARPS * PIECE) };
/* Layer after layer reads the same z, which is more than the second level cache keeps: of every PASS_OF queries the
 * first PASSING leave it first, so that the others are found there the next time. 0: all alike. */
enum { PASS_OF = 16, PASSING = 6 };

/* Behind the last piece, sums of a warp [head][lane] in place of z. */
struct ContextRoom {
    float4 z[WARPS][PIECES][PIECE * PAIR_CHANNELS / 4];
    float weight[PAIR_KEYS * PAIR_PITCH];
    uint64_t full[WARPS][PIECES];
};
static_assert(PIECES * PIECE * PAIR_CHANNELS / 4 >= PAIR_HEADS * WARP, "sums of a warp");
static_assert((int)PAIR_KEYS == (int)THREADS, "a thread brings the weights of a key");

struct PairSizes {
    int heads, n, m, c;
};

__device__ __forceinline__ float4 add4(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ void add_scaled4(float4 &a, float w, float4 b)
{
    a.x += w * b.x, a.y += w * b.y, a.z += w * b.z, a.w += w * b.w;
}

template <int H>
__device__ __forceinline__ void weights_load(const PairSizes &s, const float *p, int i, int start, float *weight)
{
    int j = threadIdx.x;
    float w[H];
#pragma unroll
    for (int h = 0; h < H; h++)
        w[h] = h < s.heads && start + j < s.m ? p[((int64_t)h * s.n + i) * s.m + start + j] : 0.0f;
#pragma unroll
    for (int h = 0; h < H; h += 4)
        *reinterpret_cast<float4 *>(weight + j * PAIR_PITCH + h) = make_float4(w[h], w[h + 1], w[h + 2], w[h + 3]);
}

/* What a warp has of z: piece after piece, in keys of query i. */
struct PieceRing {
    const PairSizes &s;
    const float *z;
    ContextRoom *room;
    int warp, lane;
    bool passing;

    __device__ __forceinline__ uint32_t barrier(int round) const
    {
        return shared_address(&room->full[warp][round % PIECES]);
    }
    __device__ __forceinline__ int key(int round) const { return (round * WARPS + warp) * PIECE; }
    __device__ __forceinline__ void begin() const
    {
        for (int k = 0; k < PIECES && lane == 0; k++) barrier_init(barrier(k), 1);
        if (lane == 0) barrier_publish();
        __syncwarp();
    }
    __device__ __forceinline__ void load(int round) const
    {
        if (lane > 0 || key(round) >= s.m) return;
        uint32_t bytes = (uint32_t)(min((int)PIECE, s.m - key(round)) * s.c) * (uint32_t)sizeof(float);
        barrier_expect(barrier(round), bytes);
        uint32_t to = shared_address(room->z[warp][round % PIECES]);
        const float *from = z + (int64_t)key(round) * s.c;
        if (passing)
            bulk_load_passing(to, from, bytes, barrier(round));
        else
            bulk_load(to, from, bytes, barrier(round));
    }
    /* the four channels of this lane of the keys of a piece; zeros beyond the last */
    __device__ __forceinline__ void read(int round, float4 (&x)[PIECE]) const
    {
        barrier_wait(barrier(round), (uint32_t)(round / PIECES) & 1);
#pragma unroll
        for (int k = 0; k < PIECE; k++) {
            bool live = lane * 4 < s.c && key(round) + k < s.m;
            x[k] = live ? room->z[warp][round % PIECES][k * (s.c / 4) + lane] : make_float4(0, 0, 0, 0);
        }
        __syncwarp();
    }
};

template <int H>
__global__ void __launch_bounds__(THREADS, 2)
    pair_context_wide_kernel(PairSizes s, const float *p, const float *z, float *out)
{
    extern __shared__ float4 context_shared[];
    ContextRoom *room = (ContextRoom *)context_shared;
    int i = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    PieceRing ring = {s, z + (int64_t)i * s.m * s.c, room, warp, lane, i % PASS_OF < PASSING};
    ring.begin();
    stage_wait();
    stage_release();
    for (int k = 0; k < PIECES; k++) ring.load(k);
    float4 sum[H];
#pragma unroll
    for (int h = 0; h < H; h++) sum[h] = make_float4(0, 0, 0, 0);
    for (int chunk = 0; chunk * PAIR_KEYS < s.m; chunk++) {
        __syncthreads();
        weights_load<H>(s, p, i, chunk * PAIR_KEYS, room->weight);
        __syncthreads();
        for (int round = chunk * CHUNK_ROUNDS; round < (chunk + 1) * CHUNK_ROUNDS && ring.key(round) < s.m; round++) {
            float4 x[PIECE];
            ring.read(round, x);
            ring.load(round + PIECES);
#pragma unroll
            for (int k = 0; k < PIECE; k++) {
                float w[H];
                load_floats<H>(room->weight + (ring.key(round) % PAIR_KEYS + k) * PAIR_PITCH, w);
#pragma unroll
                for (int h = 0; h < H; h++) add_scaled4(sum[h], w[h], x[k]);
            }
        }
    }
    constexpr int APART = sizeof room->z[0] / sizeof(float4);
    float4 *sums = (float4 *)room->z;
    __syncwarp(); /* all of its lanes have read the last piece */
#pragma unroll
    for (int h = 0; h < H; h++) sums[warp * APART + h * WARP + lane] = sum[h];
    __syncthreads();
    for (int e = threadIdx.x; e < s.heads * WARP; e += THREADS) {
        int channel = e % WARP * 4;
        float4 total = sums[e];
#pragma unroll
        for (int w = 1; w < WARPS; w++) total = add4(total, sums[w * APART + e]);
        if (channel < s.c) *reinterpret_cast<float4 *>(out + ((int64_t)i * s.heads + e / WARP) * s.c + channel) = total;
    }
}

/* dp for up to 16 heads: a block has a query and DP_KEYS keys, of which each thread takes two; their channels come
 * through shared memory, DP_CHANNELS at a time, DP_STAGES of them on their way. Packs of a key are permuted, so that
 * threads with neighbouring keys meet no conflicts. H: heads, rounded up. */
enum { DP_THREADS = 128, DP_KEYS = 2 * DP_THREADS, DP_CHANNELS = 32, DP_STAGES = 3, DP_PACKS = DP_CHANNELS / 4 };

struct DpStage {
    float keys[DP_KEYS][DP_CHANNELS], own[PAIR_HEADS][DP_CHANNELS];
};
struct DpRoom {
    DpStage stage[DP_STAGES];
};

template <int H>
__device__ __forceinline__ void dp_load(const PairSizes &s, const float *d, const float *z, int keys, int first,
                                        DpStage *to)
{
    constexpr int BY = DP_THREADS / DP_PACKS; /* keys at once; behind the last one copies of it, not stored */
    static_assert(BY % DP_PACKS == 0, "a thread's packs are permuted alike");
    int pack = threadIdx.x % DP_PACKS, key = threadIdx.x / DP_PACKS;
    bool inside = first + pack * 4 < s.c;
    const float *from = z + (inside ? first + pack * 4 : 0);
    uint32_t target = shared_address(&to->keys[key][(pack ^ key) % DP_PACKS * 4]);
#pragma unroll
    for (int k = 0; k < DP_KEYS / BY; k++)
        copy16_async(target + k * BY * DP_CHANNELS * 4, from + (int64_t)min(key + k * BY, keys - 1) * s.c, inside);
    for (int e = threadIdx.x; e < H * DP_PACKS; e += DP_THREADS) {
        int h = e / DP_PACKS, c = e % DP_PACKS * 4;
        bool live = h < s.heads && first + c < s.c;
        copy16_async(shared_address(&to->own[h][c]), live ? d + (int64_t)h * s.c + first + c : d, live);
    }
}

template <int H>
__global__ void __launch_bounds__(DP_THREADS)
    pair_dp_wide_kernel(PairSizes s, const float *d, const float *z, float *dp)
{
    stage_wait();
    stage_release();
    extern __shared__ float4 dp_shared[];
    DpRoom *room = (DpRoom *)dp_shared;
    int i = blockIdx.y, j0 = blockIdx.x * DP_KEYS, keys = min((int)DP_KEYS, s.m - j0);
    d += (int64_t)i * s.heads * s.c, z += ((int64_t)i * s.m + j0) * s.c;
    float sum[2][H] = {};
    for (int k = 0; k < DP_STAGES; k++) {
        if (k * DP_CHANNELS < s.c) dp_load<H>(s, d, z, keys, k * DP_CHANNELS, &room->stage[k]);
        copy_commit();
    }
    for (int first = 0, now = 0; first < s.c; first += DP_CHANNELS, now = now + 1 < DP_STAGES ? now + 1 : 0) {
        DpStage *stage = &room->stage[now];
        copy_wait<DP_STAGES - 1>();
        __syncthreads();
#pragma unroll
        for (int c = 0; c < DP_PACKS; c++) {
            int at = (c ^ (int)threadIdx.x) % DP_PACKS * 4;
            float4 x = *(const float4 *)&stage->keys[threadIdx.x][at];
            float4 y = *(const float4 *)&stage->keys[threadIdx.x + DP_THREADS][at];
#pragma unroll
            for (int h = 0; h < H; h++) {
                float4 w = *(const float4 *)&stage->own[h][c * 4];
                sum[0][h] = fmaf(w.w, x.w, fmaf(w.z, x.z, fmaf(w.y, x.y, fmaf(w.x, x.x, sum[0][h]))));
                sum[1][h] = fmaf(w.w, y.w, fmaf(w.z, y.z, fmaf(w.y, y.y, fmaf(w.x, y.x, sum[1][h]))));
            }
        }
        if (first + DP_STAGES * DP_CHANNELS < s.c) {
            __syncthreads();
            dp_load<H>(s, d, z, keys, first + DP_STAGES * DP_CHANNELS, stage);
        }
        copy_commit();
    }
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int h = 0; h < H; h++) {
            int j = threadIdx.x + k * DP_THREADS;
            if (h < s.heads && j < keys) dp[((int64_t)h * s.n + i) * s.m + j0 + j] = sum[k][h];
        }
}

/* dz: a block has a query, DZ_TILE keys and as many channels; a thread 8 x 8 of them, in groups of four so that rows in
 * shared memory meet no conflicts; up to PAIR_HEADS heads of a term at a time, those of the next on their way. */
enum { DZ_TILE = 128 };

struct DzRoom {
    float weight[2][PAIR_HEADS][DZ_TILE], own[2][PAIR_HEADS][DZ_TILE];
};

__device__ __forceinline__ void dz_load(const PairSizes &s, const float *d, const float *p, int i, int j0, int c0,
                                        float (*weight)[DZ_TILE], float (*own)[DZ_TILE])
{
    for (int e = threadIdx.x; e < 2 * s.heads * DZ_TILE / 4; e += THREADS) {
        int h = e / (DZ_TILE / 4) / 2, at = e % (DZ_TILE / 4) * 4;
        if (e / (DZ_TILE / 4) % 2) {
            bool live = c0 + at < s.c;
            copy16_async(shared_address(&own[h][at]), live ? d + ((int64_t)i * s.heads + h) * s.c + c0 + at : d, live);
        } else {
            bool live = j0 + at < s.m;
            copy16_async(shared_address(&weight[h][at]), live ? p + ((int64_t)h * s.n + i) * s.m + j0 + at : p, live);
        }
    }
    copy_commit();
}

__global__ void __launch_bounds__(THREADS, 2)
    pair_dz_wide_kernel(PairSizes s, const __grid_constant__ PairTerms terms, float *dz)
{
    stage_wait();
    __shared__ __align__(16) DzRoom room;
    int i = blockIdx.y, j0 = blockIdx.x * DZ_TILE, c0 = blockIdx.z * DZ_TILE;
    int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
    float sum[8][8] = {};
    dz_load(s, terms.d[0], terms.p[0], i, j0, c0, room.weight[0], room.own[0]);
    for (int t = 0; t < terms.count; t++) {
        if (t + 1 < terms.count)
            dz_load(s, terms.d[t + 1], terms.p[t + 1], i, j0, c0, room.weight[1 - t % 2], room.own[1 - t % 2]);
        else
            copy_commit();
        copy_wait<1>();
        __syncthreads();
        for (int h = 0; h < s.heads; h++) {
            const float *from = room.weight[t % 2][h], *own = room.own[t % 2][h];
            float w[8], x[8];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                *(float4 *)&w[half * 4] = *(const float4 *)(from + half * DZ_TILE / 2 + tm);
                *(float4 *)&x[half * 4] = *(const float4 *)(own + half * DZ_TILE / 2 + tn);
            }
#pragma unroll
            for (int r = 0; r < 8; r++)
#pragma unroll
                for (int c = 0; c < 8; c++) sum[r][c] += w[r] * x[c];
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 8; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int j = j0 + r / 4 * DZ_TILE / 2 + tm + r % 4, c = c0 + half * DZ_TILE / 2 + tn;
            if (j < s.m && c < s.c)
                *(float4 *)(dz + ((int64_t)i * s.m + j) * s.c + c) =
                    make_float4(sum[r][half * 4], sum[r][half * 4 + 1], sum[r][half * 4 + 2], sum[r][half * 4 + 3]);
        }
}

static bool pair_is_wide(const PairSizes &s)
{
    bool few = (int64_t)s.heads * s.n * s.m * s.c < FEW_MULTIPLICATIONS;
    return !few && s.heads <= PAIR_HEADS && s.c % 4 == 0 && s.n > 0 && s.n <= 65535 && s.m > 0;
}

static Status pair_context(CudaContext *context, const OpCall *call)
{
    const Tensor *p = call->in_tensor[0];
    PairSizes s = {(int)p->dim[0], (int)p->dim[1], (int)p->dim[2], (int)call->in_tensor[1]->dim[2]};
    if (pair_is_wide(s) && s.c <= PAIR_CHANNELS && aligned16(call->in[1]) && aligned16(call->out[0])) {
        auto *kernel = s.heads <= 4    ? pair_context_wide_kernel<4>
                       : s.heads <= 8  ? pair_context_wide_kernel<8>
                       : s.heads <= 12 ? pair_context_wide_kernel<12>
                                       : pair_context_wide_kernel<16>;
        CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(ContextRoom)));
        launch(kernel, (unsigned)s.n, THREADS, sizeof(ContextRoom), context->stream, s, F32_IN(0), F32_IN(1),
               F32_OUT(0));
        return cuda_launched("pair_context_wide_kernel");
    }
    dim3 grid((unsigned)s.n, blocks_for(s.heads, HEAD_GROUP));
    launch(pair_context_kernel, grid, 128, 0, context->stream, s.heads, s.n, s.m, s.c, F32_IN(0), F32_IN(1),
           F32_OUT(0));
    return cuda_launched("pair_context_kernel");
}

static Status pair_context_dp(CudaContext *context, const OpCall *call)
{
    const Tensor *z = call->in_tensor[1];
    PairSizes s = {(int)call->op->attr.i[0], (int)z->dim[0], (int)z->dim[1], (int)z->dim[2]};
    if (pair_is_wide(s) && aligned16(call->in[0]) && aligned16(call->in[1])) {
        auto *kernel = s.heads <= 4    ? pair_dp_wide_kernel<4>
                       : s.heads <= 8  ? pair_dp_wide_kernel<8>
                       : s.heads <= 12 ? pair_dp_wide_kernel<12>
                                       : pair_dp_wide_kernel<16>;
        CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(DpRoom)));
        launch(kernel, dim3(blocks_for(s.m, DP_KEYS), (unsigned)s.n), DP_THREADS, sizeof(DpRoom), context->stream, s,
               F32_IN(0), F32_IN(1), F32_OUT(0));
        return cuda_launched("pair_dp_wide_kernel");
    }
    launch(pair_dp_kernel, blocks_for((int64_t)s.n * s.m * WARP, THREADS), THREADS, 0, context->stream, s.heads, s.n,
           s.m, s.c, F32_IN(0), F32_IN(1), F32_OUT(0));
    return cuda_launched("pair_dp_kernel");
}

static Status pair_context_dz(CudaContext *context, const OpCall *call)
{
    const Tensor *p = call->in_tensor[1];
    PairSizes s = {(int)p->dim[0], (int)p->dim[1], (int)p->dim[2], (int)call->out_tensor[0]->dim[2]};
    PairTerms terms = {};
    bool wide = pair_is_wide(s) && s.m % 4 == 0 && aligned16(call->out[0]);
    for (; terms.count < call->op->n_in / 2; terms.count++) {
        terms.d[terms.count] = F32_IN(2 * terms.count), terms.p[terms.count] = F32_IN(2 * terms.count + 1);
        wide = wide && aligned16(terms.d[terms.count]) && aligned16(terms.p[terms.count]);
    }
    if (wide) {
        dim3 grid(blocks_for(s.m, DZ_TILE), (unsigned)s.n, blocks_for(s.c, DZ_TILE));
        launch(pair_dz_wide_kernel, grid, THREADS, 0, context->stream, s, terms, F32_OUT(0));
        return cuda_launched("pair_dz_wide_kernel");
    }
    launch(pair_dz_kernel, blocks_for((int64_t)s.n * s.m * s.c, THREADS), THREADS, 0, context->stream, s.heads, s.n,
           s.m, s.c, terms, F32_OUT(0));
    return cuda_launched("pair_dz_kernel");
}

const CudaEntry cuda_ipa_context[] = {{OP_PAIR_CONTEXT, pair_context, NULL},
                                      {OP_PAIR_CONTEXT_DP, pair_context_dp, NULL},
                                      {OP_PAIR_CONTEXT_DZ, pair_context_dz, NULL},
                                      {OP_COUNT, NULL, NULL}};
