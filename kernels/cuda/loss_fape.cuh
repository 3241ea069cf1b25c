/* Pairs of the frame-aligned point error. Masked frames and points are left out first: a set keeps those that count in
 * their order and the place of each (of the rigid groups of a protein about half exist). A block takes the pairs of 32
 * items of one side, one a lane, with a part of the other side, divided among its warps. Pairs in f32 (differences of
 * stored coordinates come first, so that far origins cost nothing), sums of parts in double, all in a fixed order. */
#ifndef FOLDSCALE_KERNELS_CUDA_LOSS_FAPE_CUH
#define FOLDSCALE_KERNELS_CUDA_LOSS_FAPE_CUH

#include "kernels/cuda/loss.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

enum { PAIR_THREADS = 128, PAIR_WARPS = PAIR_THREADS / WARP, PART_MIN = 32, PART_MAX = 256 };
enum { FRAME_SUMS = 12, POINT_SUMS = 3, PREPARE_THREADS = 256 };
enum { PAIR_BLOCKS = 16 * 132 /* where masks leave half of them, the others still fill the device */ };

/* A frame and its target: rotations and translations. */
struct __align__(16) FramePair
{
    float r[9], t[3], gr[9], gt[3], mask, unused[3];
};
struct __align__(16) PointPair
{
    float x[3], mask, gt[3], unused;
};

/* Everything about one set of frames and points; of the arrays of scratch the first places are used. */
struct FapeSet {
    int64_t frames, points, blocks; /* frames and points of one structure block */
    int part;                       /* frames or points that a block visits */
    double *scale;                  /* [1] */
    int *count;                     /* [2]: frames and points that are not masked */
    int *frame_place, *point_place; /* [frames], [points]; -1: masked */
    FramePair *frame;               /* [blocks, frames] */
    PointPair *point;               /* [blocks, points] */
    double2 *of_blocks;             /* (clamped, unclamped) errors of thread blocks */
    float *of_frames, *of_points;   /* partial sums: [parts, blocks, frames, FRAME_SUMS], [parts, blocks, points, 3] */
    const float *frame_mask, *point_mask;
    double clamp, unit, eps;
};

static __host__ __device__ int64_t parts_of(int64_t count, int part)
{
    return (count + part - 1) / part;
}

/* Parts so small that the parts of one side, times the other side, fill the device. */
static int part_of(int64_t blocks, int64_t frames, int64_t points)
{
    int part = PART_MAX;
    while (part > PART_MIN && blocks * parts_of(frames, WARP) * parts_of(points, part) < PAIR_BLOCKS) part /= 2;
    return part;
}

/* Scratch: memory of a set from base on; the bytes it takes. */
static size_t fape_place(FapeSet *s, char *base)
{
    size_t frames = (size_t)(s->blocks * s->frames), points = (size_t)(s->blocks * s->points), at = 0;
    s->part = part_of(s->blocks, s->frames, s->points);
    size_t of_points = (size_t)parts_of(s->points, s->part), of_frames = (size_t)parts_of(s->frames, s->part);
    auto take = [&](size_t bytes) {
        char *p = base + at;
        at += align_up(bytes);
        return (void *)p;
    };
    s->scale = (double *)take(sizeof(double));
    s->count = (int *)take(2 * sizeof(int));
    s->frame_place = (int *)take((size_t)s->frames * sizeof(int));
    s->point_place = (int *)take((size_t)s->points * sizeof(int));
    s->frame = (FramePair *)take(frames * sizeof(FramePair));
    s->point = (PointPair *)take(points * sizeof(PointPair));
    s->of_blocks = (double2 *)take(of_points * (size_t)(s->blocks * parts_of(s->frames, WARP)) * sizeof(double2));
    s->of_frames = (float *)take(of_points * frames * FRAME_SUMS * sizeof(float));
    s->of_points = (float *)take(of_frames * points * POINT_SUMS * sizeof(float));
    return at;
}

/* ---- what counts
 * ------------------------------------------------------------------------------------------------------- */

/* Place of the item first + threadIdx.x among those that count, by the block; -1: masked */
__device__ __forceinline__ int mask_place(const float *mask, int64_t count, int64_t first)
{
    __shared__ int before[PREPARE_THREADS / WARP], here[PREPARE_THREADS / WARP];
    int64_t i = first + threadIdx.x;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n = 0;
    bool counts = i < count && mask[i] != 0;
#pragma unroll 8
    for (int64_t k = threadIdx.x; k < first; k += PREPARE_THREADS) n += mask[k] != 0;
    n = __reduce_add_sync(0xffffffffu, n);
    unsigned which = __ballot_sync(0xffffffffu, counts);
    if (lane == 0) before[warp] = n, here[warp] = __popc(which);
    __syncthreads();
    int place = __popc(which & ((1u << lane) - 1));
    for (int w = 0; w < PREPARE_THREADS / WARP; w++) place += before[w] + (w < warp ? here[w] : 0);
    return counts ? place : -1;
}

/* By a block of its own: 1 / (unit (frames + eps) (points + eps)), and how many count */
__device__ __forceinline__ void fape_scale(const FapeSet &s)
{
    __shared__ double2 shared[PREPARE_THREADS / WARP];
    double2 sum = {0, 0}, count = {0, 0}; /* frames, points */
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < s.frames; i += PREPARE_THREADS)
        sum.x += (double)s.frame_mask[i], count.x += s.frame_mask[i] != 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < s.points; i += PREPARE_THREADS)
        sum.y += (double)s.point_mask[i], count.y += s.point_mask[i] != 0;
    sum = block_sum_pair(sum, shared);
    count = block_sum_pair(count, shared);
    if (threadIdx.x) return;
    *s.scale = 1 / (s.unit * (s.eps + sum.x) * (s.eps + sum.y));
    s.count[0] = (int)count.x;
    s.count[1] = (int)count.y;
}

__device__ __forceinline__ void frame_store(const Rigid &f, const Rigid &g, float mask, FramePair *out)
{
    for (int k = 0; k < 9; k++) out->r[k] = (float)f.r[k], out->gr[k] = (float)g.r[k];
    for (int a = 0; a < 3; a++) out->t[a] = (float)f.t[a], out->gt[a] = (float)g.t[a];
    out->mask = mask;
}

/* Blocks along x: the frames, the points, the scale; along y: structure blocks. The source gives a frame and its target
 * and the coordinates of a point and of its target. */
template <typename Source>
__global__ void __launch_bounds__(PREPARE_THREADS) fape_prepare_kernel(FapeSet s, Source source)
{
    stage_wait();
    stage_release();
    int64_t of_frames = parts_of(s.frames, PREPARE_THREADS), of_points = parts_of(s.points, PREPARE_THREADS);
    int64_t x = blockIdx.x, block = blockIdx.y;
    bool frames = x < of_frames;
    if (x >= of_frames + of_points) {
        if (block == 0) fape_scale(s);
        return;
    }
    int64_t first = (frames ? x : x - of_frames) * PREPARE_THREADS, i = first + threadIdx.x;
    const float *mask = frames ? s.frame_mask : s.point_mask;
    int64_t count = frames ? s.frames : s.points;
    int place = mask_place(mask, count, first);
    if (i >= count) return;
    if (block == 0) (frames ? s.frame_place : s.point_place)[i] = place;
    if (place < 0) return;
    if (frames) {
        Rigid f, g;
        source.frame(block, i, &f, &g);
        frame_store(f, g, mask[i], &s.frame[block * s.frames + place]);
    } else {
        PointPair *point = &s.point[block * s.points + place];
        source.point(block, i, point->x, point->gt);
        point->mask = mask[i];
    }
}

template <typename Source> static void fape_prepare(CudaContext *context, const FapeSet &s, const Source &source)
{
    int64_t blocks = parts_of(s.frames, PREPARE_THREADS) + parts_of(s.points, PREPARE_THREADS) + 1;
    launch(fape_prepare_kernel<Source>, dim3((unsigned)blocks, (unsigned)s.blocks), PREPARE_THREADS, 0, context->stream,
           s, source);
}

/* ---- pairs
 * ------------------------------------------------------------------------------------------------------------- */

/* diff = difference of the local coordinates of point x in frame f, v = the point relative to the frame; |diff|^2 */
__device__ __forceinline__ float fape_difference(const FramePair &f, const PointPair &x, float *v, float *diff)
{
    float u[3], square = 0;
#pragma unroll
    for (int a = 0; a < 3; a++) v[a] = x.x[a] - f.t[a], u[a] = x.gt[a] - f.gt[a];
#pragma unroll
    for (int a = 0; a < 3; a++) {
        diff[a] = f.r[a] * v[0] + f.r[3 + a] * v[1] + f.r[6 + a] * v[2] -
                  (f.gr[a] * u[0] + f.gr[3 + a] * u[1] + f.gr[6 + a] * u[2]);
        square += diff[a] * diff[a];
    }
    return square;
}

/* What a block works on: `items` from `item` on, one a lane, with `others` from `other` on. */
struct PairTile {
    int item, items, other, others;
    /* false: nothing is left there */
    __device__ __forceinline__ bool make(int tile, int part, int width, int of_items, int of_others)
    {
        item = tile * WARP, items = min((int)WARP, of_items - item);
        other = part * width, others = min(width, of_others - other);
        return items > 0 && others > 0;
    }
    /* this lane's item; those behind the end lend their lanes */
    __device__ __forceinline__ int mine() const { return item + min((int)(threadIdx.x % WARP), items - 1); }
    __device__ __forceinline__ bool here() const { return (int)(threadIdx.x % WARP) < items; }
};

/* The part of the other side into shared memory, by the block */
template <typename Item> __device__ __forceinline__ void part_load(const Item *from, int n, Item *to)
{
    const float4 *source = reinterpret_cast<const float4 *>(from);
#pragma unroll 4
    for (int e = threadIdx.x; e < n * (int)(sizeof(Item) / 16); e += PAIR_THREADS)
        reinterpret_cast<float4 *>(to)[e] = source[e];
    __syncthreads();
}

/* clamped and unclamped errors: blocks along x take frames, along y parts of the points */
__global__ void __launch_bounds__(PAIR_THREADS) fape_rows_kernel(FapeSet s)
{
    stage_wait();
    stage_release();
    __shared__ PointPair points[PART_MAX];
    __shared__ double2 shared[PAIR_WARPS];
    int64_t block = blockIdx.z;
    double2 *out = s.of_blocks + (block * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    PairTile t;
    if (!t.make((int)blockIdx.x, (int)blockIdx.y, s.part, s.count[0], s.count[1])) {
        if (threadIdx.x == 0) *out = make_double2(0, 0);
        return;
    }
    FramePair f = s.frame[block * s.frames + t.mine()];
    part_load(s.point + block * s.points + t.other, t.others, points);
    float clamped = 0, unclamped = 0, clamp = (float)s.clamp, eps = (float)s.eps;
#pragma unroll 2
    for (int j = threadIdx.x / WARP; j < t.others; j += PAIR_WARPS) {
        float v[3], diff[3], error = sqrtf(fape_difference(f, points[j], v, diff) + eps);
        clamped += points[j].mask * (error > clamp ? clamp : error); /* NaN stays */
        unclamped += points[j].mask * error;
    }
    double2 sum = {0, 0};
    if (t.here()) sum = make_double2((double)(clamped * f.mask), (double)(unclamped * f.mask));
    sum = block_sum_pair(sum, shared);
    if (threadIdx.x == 0) *out = sum;
}

/* use_clamped NULL: the clamped sum alone */
static __global__ void fape_total_kernel(FapeSet s, int64_t n, const float *use_clamped, float *loss,
                                         float *clamped_out, float *unclamped_out)
{
    stage_wait();
    __shared__ double2 shared[WARP];
    double2 sum = array_sum_pair(s.of_blocks, n, shared);
    if (threadIdx.x) return;
    double scale = *s.scale / (double)s.blocks, clamped = sum.x * scale, unclamped = sum.y * scale;
    double share = use_clamped ? (double)*use_clamped : 1;
    *loss = (float)(use_clamped ? share * clamped + (1 - share) * unclamped : clamped);
    if (clamped_out) *clamped_out = (float)clamped;
    if (unclamped_out) *unclamped_out = (float)unclamped;
}

static void fape_forward(CudaContext *context, const FapeSet &s, const float *use_clamped, float *loss,
                         float *clamped_out, float *unclamped_out)
{
    dim3 grid(blocks_for(s.frames, WARP), (unsigned)parts_of(s.points, s.part), (unsigned)s.blocks);
    launch(fape_rows_kernel, grid, PAIR_THREADS, 0, context->stream, s);
    launch(fape_total_kernel, 1, SUM_THREADS, 0, context->stream, s, (int64_t)grid.x * grid.y * grid.z, use_clamped,
           loss, clamped_out, unclamped_out);
}

/* Weights of the error: below the clamp and above. use_clamped NULL: clamped alone */
__device__ __forceinline__ float2 fape_weights(const FapeSet &s, const float *dl, const float *use_clamped)
{
    double share = use_clamped ? (double)*use_clamped : 1, each = (double)*dl * *s.scale / (double)s.blocks;
    return make_float2((float)each, (float)(each * (1 - share)));
}

/* d = d loss / d diff; v as in fape_difference */
__device__ __forceinline__ void fape_pair_bwd(const FramePair &f, const PointPair &x, float2 weight, float clamp2,
                                              float eps, float *v, float *d)
{
    float diff[3], square = fape_difference(f, x, v, diff) + eps;
    float c = f.mask * x.mask * (square <= clamp2 ? weight.x : weight.y) * rsqrtf(square);
#pragma unroll
    for (int a = 0; a < 3; a++) d[a] = c * diff[a];
}

/* Sums of the block's warps, joined in order: out[items, WIDTH]. `shared`: PAIR_THREADS (WIDTH + 1) floats */
template <int WIDTH>
__device__ __forceinline__ void pair_join(const float (&sum)[WIDTH], int items, float *shared, float *out)
{
#pragma unroll
    for (int k = 0; k < WIDTH; k++) shared[threadIdx.x * (WIDTH + 1) + k] = sum[k];
    __syncthreads();
    for (int e = threadIdx.x; e < items * WIDTH; e += PAIR_THREADS) {
        const float *from = shared + e / WIDTH * (WIDTH + 1) + e % WIDTH;
        float total = 0;
#pragma unroll
        for (int w = 0; w < PAIR_WARPS; w++) total += from[w * WARP * (WIDTH + 1)];
        out[e] = total;
    }
}

/* frames over a part of the points: sums of v d^T and of d */
__device__ __forceinline__ void fape_frames_bwd(const FapeSet &s, const PairTile &t, int part, float2 weight,
                                                float *joined, PointPair *points)
{
    int64_t block = blockIdx.y;
    FramePair f = s.frame[block * s.frames + t.mine()];
    part_load(s.point + block * s.points + t.other, t.others, points);
    float sum[FRAME_SUMS] = {}, clamp2 = (float)(s.clamp * s.clamp), eps = (float)s.eps;
#pragma unroll 2
    for (int j = threadIdx.x / WARP; j < t.others; j += PAIR_WARPS) {
        float v[3], d[3];
        fape_pair_bwd(f, points[j], weight, clamp2, eps, v, d);
#pragma unroll
        for (int a = 0; a < 3; a++) {
#pragma unroll
            for (int b = 0; b < 3; b++) sum[3 * a + b] += v[a] * d[b];
            sum[9 + a] += d[a];
        }
    }
    pair_join<FRAME_SUMS>(sum, t.items, joined,
                          s.of_frames + FRAME_SUMS * ((part * s.blocks + block) * s.frames + t.item));
}

/* points over a part of the frames: sum of R d */
__device__ __forceinline__ void fape_points_bwd(const FapeSet &s, const PairTile &t, int part, float2 weight,
                                                float *joined, FramePair *frames)
{
    int64_t block = blockIdx.y;
    PointPair x = s.point[block * s.points + t.mine()];
    part_load(s.frame + block * s.frames + t.other, t.others, frames);
    float sum[POINT_SUMS] = {}, clamp2 = (float)(s.clamp * s.clamp), eps = (float)s.eps;
#pragma unroll 2
    for (int i = threadIdx.x / WARP; i < t.others; i += PAIR_WARPS) {
        float v[3], d[3];
        fape_pair_bwd(frames[i], x, weight, clamp2, eps, v, d);
#pragma unroll
        for (int a = 0; a < 3; a++)
            sum[a] += frames[i].r[3 * a] * d[0] + frames[i].r[3 * a + 1] * d[1] + frames[i].r[3 * a + 2] * d[2];
    }
    pair_join<POINT_SUMS>(sum, t.items, joined,
                          s.of_points + POINT_SUMS * ((part * s.blocks + block) * s.points + t.item));
}

/* Blocks along x: `of_frames` tiles of frames times parts of points, then tiles of points times parts of frames, side
 * by side in one kernel; along y: structure blocks. */
__global__ void __launch_bounds__(PAIR_THREADS)
    fape_bwd_kernel(FapeSet s, int of_frames, const float *dl, const float *use_clamped)
{
    stage_wait();
    stage_release();
    extern __shared__ float4 others[];
    __shared__ float joined[PAIR_THREADS * (FRAME_SUMS + 1)];
    if (*dl == 0) return;
    bool frames = (int)blockIdx.x < of_frames;
    int x = frames ? (int)blockIdx.x : (int)blockIdx.x - of_frames;
    int tiles = (int)parts_of(frames ? s.frames : s.points, WARP), part = x / tiles;
    PairTile t;
    if (!t.make(x % tiles, part, s.part, s.count[frames ? 0 : 1], s.count[frames ? 1 : 0])) return;
    float2 weight = fape_weights(s, dl, use_clamped);
    if (frames)
        fape_frames_bwd(s, t, part, weight, joined, reinterpret_cast<PointPair *>(others));
    else
        fape_points_bwd(s, t, part, weight, joined, reinterpret_cast<FramePair *>(others));
}

static void fape_backward(CudaContext *context, const FapeSet &s, const float *dl, const float *use_clamped)
{
    int64_t of_frames = parts_of(s.frames, WARP) * parts_of(s.points, s.part);
    int64_t of_points = parts_of(s.points, WARP) * parts_of(s.frames, s.part);
    dim3 grid((unsigned)(of_frames + of_points), (unsigned)s.blocks);
    launch(fape_bwd_kernel, grid, PAIR_THREADS, (size_t)s.part * sizeof(FramePair), context->stream, s, (int)of_frames,
           dl, use_clamped);
}

/* Sum over the parts of one of WIDTH numbers of item `at` */
template <int WIDTH>
__device__ __forceinline__ double parts_sum(const float *partial, int64_t parts, int64_t items, int64_t at, int k)
{
    double sum = 0;
#pragma unroll 8
    for (int64_t q = 0; q < parts; q++) sum += (double)partial[(q * items + at) * WIDTH + k];
    return sum;
}

/* Gradient k of 3 of point i of a structure block */
__device__ __forceinline__ double point_total(const FapeSet &s, int64_t block, int64_t i, int k)
{
    int place = s.point_place[i];
    if (place < 0) return 0;
    return parts_sum<POINT_SUMS>(s.of_points, parts_of(s.count[0], s.part), s.blocks * s.points,
                                 block * s.points + place, k);
}

/* 16 lanes per frame: gradient of its matrix and its translation in the first of them; zero where dl is zero. points:
 * the translation is also a point */
__device__ __forceinline__ Rigid frame_total(const FapeSet &s, const float *dl, int64_t at, bool points)
{
    int k = threadIdx.x % 16;
    int64_t all = s.blocks * s.frames, block = at / s.frames, i = at % s.frames;
    int place = *dl != 0 && at < all ? s.frame_place[i] : -1;
    int64_t from = block * s.frames + place;
    double mine = 0, sum[16];
    if (place >= 0 && k < FRAME_SUMS)
        mine = parts_sum<FRAME_SUMS>(s.of_frames, parts_of(s.count[1], s.part), all, from, k);
    if (*dl != 0 && at < all && points && k >= FRAME_SUMS && k < FRAME_SUMS + POINT_SUMS)
        mine = point_total(s, block, i, k - FRAME_SUMS);
#pragma unroll
    for (int l = 0; l < 16; l++) sum[l] = __shfl_sync(0xffffffffu, mine, l, 16);
    Rigid g = {};
    double moved[3] = {0, 0, 0}, r[9];
    if (place >= 0) {
        for (int l = 0; l < 9; l++) g.r[l] = sum[l], r[l] = (double)s.frame[from].r[l];
        rot_apply(r, sum + 9, moved);
    }
    for (int a = 0; a < 3; a++) g.t[a] = (points ? sum[FRAME_SUMS + a] : 0) - moved[a];
    return g;
}

#endif
