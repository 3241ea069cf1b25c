/* Frame-aligned point error (AlphaFold2 supplement, algorithm 28), forward and backward; the equations are beside the
 * CPU kernel (kernels/cpu/ops/loss_fape.c). All pairs of frames and points: a thread keeps one side of its pairs in
 * registers and runs over a part of the other side, which the block shares. Pairs in f32 (differences of stored
 * coordinates come first, so that far origins cost nothing), sums of parts in double in a fixed order. */
#include "kernels/cuda/loss.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

enum { PAIR_THREADS = 128, PART_MAX = 128, FRAME_SUMS = 12, POINT_SUMS = 3 };

/* A frame and its target: rotations and translations. */
struct __align__(16) FramePair
{
    float r[9], t[3], gr[9], gt[3], mask, unused[3];
};
struct __align__(16) PointPair
{
    float x[3], mask, gt[3], unused;
};

/* Everything about one set of frames and points. Points without coordinates of their own are the frames' translations.
 */
struct FapeSet {
    int64_t frames, points, blocks; /* frames and points of one structure block */
    int part;                       /* frames or points that a thread visits */
    double *scale;                  /* [1] */
    FramePair *frame;               /* [blocks, frames] */
    PointPair *point;               /* [blocks, points] */
    float *of_frames,
        *of_points; /* partial sums: [parts, blocks, frames, FRAME_SUMS or 2], [parts, blocks, points, 3] */
    const float *frame_mask, *point_mask;
    double clamp, unit, eps;
};

static __host__ __device__ int64_t parts_of(int64_t count, int part)
{
    return (count + part - 1) / part;
}

/* Parts so small that the parts of one side, times the other side, fill the device: four blocks an SM of an H100. */
static int part_of(int64_t blocks, int64_t frames, int64_t points)
{
    int part = PART_MAX;
    while (part > 16 && blocks * parts_of(frames, PAIR_THREADS) * parts_of(points, part) < 528) part /= 2;
    return part;
}

/* Scratch: memory of a set from base on; the bytes it takes. */
static size_t fape_place(FapeSet *s, char *base)
{
    size_t frames = (size_t)(s->blocks * s->frames), points = (size_t)(s->blocks * s->points), at = 0;
    s->part = part_of(s->blocks, s->frames, s->points);
    auto take = [&](size_t bytes) {
        char *p = base + at;
        at += align_up(bytes);
        return (void *)p;
    };
    s->scale = (double *)take(sizeof(double));
    s->frame = (FramePair *)take(frames * sizeof(FramePair));
    s->point = (PointPair *)take(points * sizeof(PointPair));
    s->of_frames = (float *)take((size_t)parts_of(s->points, s->part) * frames * FRAME_SUMS * sizeof(float));
    s->of_points = (float *)take((size_t)parts_of(s->frames, s->part) * points * POINT_SUMS * sizeof(float));
    return at;
}

static void fape_attributes(const OpCall *call, FapeSet *s)
{
    s->clamp = call->op->attr.f[0];
    s->unit = call->op->attr.f[1];
    s->eps = call->op->attr.f[2];
    fape_place(s, (char *)call->scratch);
}

/* By the last block of a preparing kernel, the others go on to their frames: 1 / (unit (frames + eps) (points + eps))
 */
__device__ bool fape_scale(const FapeSet &s)
{
    __shared__ double shared[WARP];
    if (blockIdx.x + 1 < gridDim.x) return false;
    double frames = array_sum(s.frame_mask, s.frames, shared), points = array_sum(s.point_mask, s.points, shared);
    if (threadIdx.x == 0) *s.scale = 1 / (s.unit * (s.eps + frames) * (s.eps + points));
    return true;
}

__device__ void frame_store(const Rigid &f, const Rigid &g, float mask, FramePair *out)
{
    for (int k = 0; k < 9; k++) out->r[k] = (float)f.r[k], out->gr[k] = (float)g.r[k];
    for (int a = 0; a < 3; a++) out->t[a] = (float)f.t[a], out->gt[a] = (float)g.t[a];
    out->mask = mask;
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

/* A part of the other side of a block's pairs, in shared memory. */
template <typename Item> __device__ __forceinline__ int part_load(const Item *from, int64_t count, int part, Item *to)
{
    int first = blockIdx.y * part, n = min(part, (int)(count - first));
    const float4 *source = reinterpret_cast<const float4 *>(from + first);
    for (int e = threadIdx.x; e < n * (int)(sizeof(Item) / 16); e += PAIR_THREADS)
        reinterpret_cast<float4 *>(to)[e] = source[e];
    __syncthreads();
    return n;
}

/* a thread per frame: clamped and unclamped errors over a part of the points */
__global__ void __launch_bounds__(PAIR_THREADS) fape_rows_kernel(FapeSet s)
{
    stage_wait();
    __shared__ PointPair points[PART_MAX];
    int64_t i = (int64_t)blockIdx.x * PAIR_THREADS + threadIdx.x, block = blockIdx.z, at = block * s.frames + i;
    int n = part_load(s.point + block * s.points, s.points, s.part, points);
    if (i >= s.frames) return;
    FramePair f = s.frame[at];
    float clamped = 0, unclamped = 0, clamp = (float)s.clamp, eps = (float)s.eps;
    for (int j = 0; j < n && f.mask != 0; j++) {
        if (points[j].mask == 0) continue;
        float v[3], diff[3], error = sqrtf(fape_difference(f, points[j], v, diff) + eps);
        clamped += points[j].mask * fminf(error, clamp);
        unclamped += points[j].mask * error;
    }
    float *out = s.of_frames + 2 * ((int64_t)blockIdx.y * s.blocks * s.frames + at);
    out[0] = clamped * f.mask;
    out[1] = unclamped * f.mask;
}

/* use_clamped NULL: the clamped sum alone */
__global__ void fape_total_kernel(FapeSet s, int64_t rows, const float *use_clamped, float *loss, float *clamped_out,
                                  float *unclamped_out)
{
    stage_wait();
    __shared__ double shared[WARP];
    double scale = *s.scale / (double)s.blocks;
    double clamped = array_sum(s.of_frames, rows, shared, 2) * scale;
    double unclamped = use_clamped ? array_sum(s.of_frames + 1, rows, shared, 2) * scale : 0;
    if (threadIdx.x) return;
    double share = use_clamped ? (double)*use_clamped : 1;
    *loss = (float)(share * clamped + (1 - share) * unclamped);
    if (clamped_out) *clamped_out = (float)clamped;
    if (unclamped_out) *unclamped_out = (float)unclamped;
}

static void fape_forward(CudaContext *context, const FapeSet &s, const float *use_clamped, float *loss,
                         float *clamped_out, float *unclamped_out)
{
    int64_t parts = parts_of(s.points, s.part);
    dim3 grid(blocks_for(s.frames, PAIR_THREADS), (unsigned)parts, (unsigned)s.blocks);
    launch(fape_rows_kernel, grid, PAIR_THREADS, 0, context->stream, s);
    launch(fape_total_kernel, 1, SUM_THREADS, 0, context->stream, s, parts * s.blocks * s.frames, use_clamped, loss,
           clamped_out, unclamped_out);
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

/* a thread per frame over a part of the points: sums of v d^T and of d */
__global__ void __launch_bounds__(PAIR_THREADS)
    fape_frames_bwd_kernel(FapeSet s, const float *dl, const float *use_clamped)
{
    stage_wait();
    __shared__ PointPair points[PART_MAX];
    if (*dl == 0) return;
    int64_t i = (int64_t)blockIdx.x * PAIR_THREADS + threadIdx.x, block = blockIdx.z, at = block * s.frames + i;
    int n = part_load(s.point + block * s.points, s.points, s.part, points);
    if (i >= s.frames) return;
    FramePair f = s.frame[at];
    float2 weight = fape_weights(s, dl, use_clamped);
    float sum[FRAME_SUMS] = {}, clamp2 = (float)(s.clamp * s.clamp), eps = (float)s.eps;
    for (int j = 0; j < n && f.mask != 0; j++) {
        if (points[j].mask == 0) continue;
        float v[3], d[3];
        fape_pair_bwd(f, points[j], weight, clamp2, eps, v, d);
#pragma unroll
        for (int a = 0; a < 3; a++) {
#pragma unroll
            for (int b = 0; b < 3; b++) sum[3 * a + b] += v[a] * d[b];
            sum[9 + a] += d[a];
        }
    }
    float4 *out =
        reinterpret_cast<float4 *>(s.of_frames + FRAME_SUMS * ((int64_t)blockIdx.y * s.blocks * s.frames + at));
#pragma unroll
    for (int k = 0; k < 3; k++) out[k] = make_float4(sum[4 * k], sum[4 * k + 1], sum[4 * k + 2], sum[4 * k + 3]);
}

/* a thread per point over a part of the frames: sum of R d */
__global__ void __launch_bounds__(PAIR_THREADS)
    fape_points_bwd_kernel(FapeSet s, const float *dl, const float *use_clamped)
{
    stage_wait();
    __shared__ FramePair frames[PART_MAX];
    if (*dl == 0) return;
    int64_t j = (int64_t)blockIdx.x * PAIR_THREADS + threadIdx.x, block = blockIdx.z, at = block * s.points + j;
    int n = part_load(s.frame + block * s.frames, s.frames, s.part, frames);
    if (j >= s.points) return;
    PointPair x = s.point[at];
    float2 weight = fape_weights(s, dl, use_clamped);
    float sum[POINT_SUMS] = {}, clamp2 = (float)(s.clamp * s.clamp), eps = (float)s.eps;
    for (int i = 0; i < n && x.mask != 0; i++) {
        if (frames[i].mask == 0) continue;
        float v[3], d[3];
        fape_pair_bwd(frames[i], x, weight, clamp2, eps, v, d);
#pragma unroll
        for (int a = 0; a < 3; a++)
            sum[a] += frames[i].r[3 * a] * d[0] + frames[i].r[3 * a + 1] * d[1] + frames[i].r[3 * a + 2] * d[2];
    }
    float *out = s.of_points + POINT_SUMS * ((int64_t)blockIdx.y * s.blocks * s.points + at);
#pragma unroll
    for (int a = 0; a < 3; a++) out[a] = sum[a];
}

static void fape_backward(CudaContext *context, const FapeSet &s, const float *dl, const float *use_clamped)
{
    dim3 of_frames(blocks_for(s.frames, PAIR_THREADS), (unsigned)parts_of(s.points, s.part), (unsigned)s.blocks);
    dim3 of_points(blocks_for(s.points, PAIR_THREADS), (unsigned)parts_of(s.frames, s.part), (unsigned)s.blocks);
    launch(fape_frames_bwd_kernel, of_frames, PAIR_THREADS, 0, context->stream, s, dl, use_clamped);
    launch(fape_points_bwd_kernel, of_points, PAIR_THREADS, 0, context->stream, s, dl, use_clamped);
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

/* 16 lanes per frame: gradient of its matrix and its translation in the first of them; zero where dl is zero */
__device__ __forceinline__ Rigid frame_total(const FapeSet &s, const float *dl, int64_t parts, int64_t at, bool points)
{
    int k = threadIdx.x % 16;
    int64_t frames = s.blocks * s.frames;
    double mine = 0, sum[16];
    if (*dl != 0 && at < frames && k < FRAME_SUMS) mine = parts_sum<FRAME_SUMS>(s.of_frames, parts, frames, at, k);
    if (*dl != 0 && at < frames && points && k >= FRAME_SUMS && k < FRAME_SUMS + POINT_SUMS)
        mine = parts_sum<POINT_SUMS>(s.of_points, parts_of(s.frames, s.part), frames, at, k - FRAME_SUMS);
#pragma unroll
    for (int l = 0; l < 16; l++) sum[l] = __shfl_sync(0xffffffffu, mine, l, 16);
    Rigid g = {};
    if (*dl == 0 || at >= frames) return g;
    double moved[3], r[9];
    for (int l = 0; l < 9; l++) g.r[l] = sum[l], r[l] = (double)s.frame[at].r[l];
    rot_apply(r, sum + 9, moved);
    for (int a = 0; a < 3; a++) g.t[a] = (points ? sum[FRAME_SUMS + a] : 0) - moved[a];
    return g;
}

/* ---- backbone: frames of every block against the backbone frames, points are the CA positions
 * ------------------------------ */

__global__ void backbone_frames_kernel(FapeSet s, const float *frames, const float *target)
{
    stage_wait();
    if (fape_scale(s)) return;
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i = e % s.frames;
    if (e >= s.blocks * s.frames) return;
    Rigid f = rigid_from_frame(frames + 7 * e), g = rigid_from_4x4(target + 16 * i);
    frame_store(f, g, s.frame_mask[i], &s.frame[e]);
    PointPair *point = &s.point[e];
    for (int a = 0; a < 3; a++) point->x[a] = (float)f.t[a], point->gt[a] = (float)g.t[a];
    point->mask = s.point_mask[i];
}

static FapeSet backbone_set(const OpCall *call, int first)
{
    FapeSet s = {};
    s.blocks = call->in_tensor[first]->dim[0];
    s.frames = s.points = call->in_tensor[first]->dim[1];
    s.frame_mask = s.point_mask = F32_IN(first + 2);
    fape_attributes(call, &s);
    return s;
}

static size_t backbone_scratch(const OpCall *call)
{
    const Tensor *f = call->in_tensor[call->op->kind == OP_LOSS_FAPE_BACKBONE_BWD];
    FapeSet s = {};
    s.blocks = f->dim[0], s.frames = s.points = f->dim[1];
    return fape_place(&s, NULL);
}

static void backbone_prepare(CudaContext *context, const OpCall *call, int first, const FapeSet &s)
{
    launch(backbone_frames_kernel, blocks_for(s.blocks * s.frames, PAIR_THREADS) + 1, PAIR_THREADS, 0, context->stream,
           s, F32_IN(first), F32_IN(first + 1));
}

static Status backbone(CudaContext *context, const OpCall *call)
{
    FapeSet s = backbone_set(call, 0);
    backbone_prepare(context, call, 0, s);
    fape_forward(context, s, F32_IN(3), F32_OUT(0), F32_OUT(1), F32_OUT(2));
    return cuda_launched("loss_fape_backbone");
}

__global__ void backbone_bwd_kernel(FapeSet s, int64_t parts, const float *dl, const float *frames, float *dframes)
{
    stage_wait();
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 16;
    Rigid g = frame_total(s, dl, parts, at, true); /* the translation is also a point */
    if (threadIdx.x % 16 == 0 && at < s.blocks * s.frames) rigid_to_frame_bwd(frames + 7 * at, &g, dframes + 7 * at);
}

static Status backbone_bwd(CudaContext *context, const OpCall *call)
{
    FapeSet s = backbone_set(call, 1);
    backbone_prepare(context, call, 1, s);
    fape_backward(context, s, F32_IN(0), F32_IN(4));
    launch(backbone_bwd_kernel, blocks_for(16 * s.blocks * s.frames, PAIR_THREADS), PAIR_THREADS, 0, context->stream, s,
           parts_of(s.points, s.part), F32_IN(0), F32_IN(1), F32_OUT(0));
    return cuda_launched("loss_fape_backbone_bwd");
}

/* ---- side chains: all rigid groups against all atoms
 * ------------------------------------------------------------------------- */

struct SidechainInputs {
    const float *frames, *gt, *alt, *better, *x, *gt_atoms;
};

__global__ void sidechain_pairs_kernel(FapeSet s, SidechainInputs in)
{
    stage_wait();
    if (fape_scale(s)) return;
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e < s.frames) {
        Rigid f = rigid_from_4x4(in.frames + 16 * e);
        Rigid g = rigid_from_4x4((in.better[e / GROUPS] != 0 ? in.alt : in.gt) + 16 * e);
        frame_store(f, g, s.frame_mask[e], &s.frame[e]);
    }
    if (e >= s.points) return;
    PointPair *point = &s.point[e];
    for (int a = 0; a < 3; a++) point->x[a] = in.x[3 * e + a], point->gt[a] = in.gt_atoms[3 * e + a];
    point->mask = s.point_mask[e];
}

static FapeSet sidechain_set(const OpCall *call, int first)
{
    FapeSet s = {};
    int64_t n = call->in_tensor[first]->dim[0];
    s.blocks = 1;
    s.frames = n * GROUPS;
    s.points = n * ATOMS;
    s.frame_mask = F32_IN(first + 4);
    s.point_mask = F32_IN(first + 7);
    fape_attributes(call, &s);
    return s;
}

static size_t sidechain_scratch(const OpCall *call)
{
    const Tensor *f = call->in_tensor[call->op->kind == OP_LOSS_FAPE_SIDECHAIN_BWD];
    FapeSet s = {};
    s.blocks = 1, s.frames = f->dim[0] * GROUPS, s.points = f->dim[0] * ATOMS;
    return fape_place(&s, NULL);
}

static void sidechain_prepare(CudaContext *context, const OpCall *call, int first, const FapeSet &s)
{
    SidechainInputs in = {F32_IN(first),     F32_IN(first + 2), F32_IN(first + 3),
                          F32_IN(first + 5), F32_IN(first + 1), F32_IN(first + 6)};
    int64_t items = s.points > s.frames ? s.points : s.frames;
    launch(sidechain_pairs_kernel, blocks_for(items, PAIR_THREADS) + 1, PAIR_THREADS, 0, context->stream, s, in);
}

static Status sidechain(CudaContext *context, const OpCall *call)
{
    FapeSet s = sidechain_set(call, 0);
    sidechain_prepare(context, call, 0, s);
    fape_forward(context, s, NULL, F32_OUT(0), NULL, NULL);
    return cuda_launched("loss_fape_sidechain");
}

__global__ void sidechain_bwd_kernel(FapeSet s, int64_t parts, const float *dl, float *dframes, float *datoms)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, at = e / 16;
    Rigid g = frame_total(s, dl, parts, at, false);
    if (threadIdx.x % 16 == 0 && at < s.frames) {
        rigid_to_4x4(&g, dframes + 16 * at);
        dframes[16 * at + 15] = 0;
    }
    if (e >= POINT_SUMS * s.points) return;
    int64_t of_frames = parts_of(s.frames, s.part);
    datoms[e] = *dl == 0 ? 0.0f : (float)parts_sum<1>(s.of_points, of_frames, POINT_SUMS * s.points, e, 0);
}

static Status sidechain_bwd(CudaContext *context, const OpCall *call)
{
    FapeSet s = sidechain_set(call, 1);
    sidechain_prepare(context, call, 1, s);
    fape_backward(context, s, F32_IN(0), NULL);
    int64_t lanes = 16 * s.frames > POINT_SUMS * s.points ? 16 * s.frames : POINT_SUMS * s.points;
    launch(sidechain_bwd_kernel, blocks_for(lanes, PAIR_THREADS), PAIR_THREADS, 0, context->stream, s,
           parts_of(s.points, s.part), F32_IN(0), F32_OUT(0), F32_OUT(1));
    return cuda_launched("loss_fape_sidechain_bwd");
}

const CudaEntry cuda_loss_fape[] = {{OP_LOSS_FAPE_BACKBONE, backbone, backbone_scratch},
                                    {OP_LOSS_FAPE_BACKBONE_BWD, backbone_bwd, backbone_scratch},
                                    {OP_LOSS_FAPE_SIDECHAIN, sidechain, sidechain_scratch},
                                    {OP_LOSS_FAPE_SIDECHAIN_BWD, sidechain_bwd, sidechain_scratch},
                                    {OP_COUNT, NULL, NULL}};
