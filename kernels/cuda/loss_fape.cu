/* Frame-aligned point error (AlphaFold2 supplement, algorithm 28), forward and backward; the equations are beside the
 * CPU kernel (kernels/cpu/ops/loss_fape.c). Arithmetic in double. */
#include "kernels/cuda/loss.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

/* Everything about one set of frames and points. Points without coordinates of their own are the frames' translations.
 */
struct FapeSet {
    int64_t frames, points, blocks; /* frames and points of one structure block */
    Rigid *frame, *target;          /* [blocks, frames], [frames] */
    double *row, *scale;            /* [blocks, frames, 2], [1] */
    const float *frame_mask, *point_mask, *x, *gt;
    double clamp, unit, eps;
};

static void fape_attributes(const OpCall *call, FapeSet *s)
{
    s->clamp = call->op->attr.f[0];
    s->unit = call->op->attr.f[1];
    s->eps = call->op->attr.f[2];
    s->scale = (double *)call->scratch;
    s->row = s->scale + 2;
    s->frame = (Rigid *)(s->row + 2 * s->blocks * s->frames);
    s->target = s->frame + s->blocks * s->frames;
}

static size_t fape_bytes(int64_t blocks, int64_t frames)
{
    return 2 * sizeof(double) + (size_t)(blocks * frames) * (2 * sizeof(double) + sizeof(Rigid)) +
           (size_t)frames * sizeof(Rigid);
}

__global__ void fape_scale_kernel(FapeSet s)
{
    stage_wait();
    __shared__ double shared[WARP];
    double frames = array_sum(s.frame_mask, s.frames, shared), points = array_sum(s.point_mask, s.points, shared);
    if (threadIdx.x == 0) *s.scale = 1 / (s.unit * (s.eps + frames) * (s.eps + points));
}

/* Difference of the local coordinates of point j in frame i of a block; v: the point relative to the frame. */
__device__ double fape_error(const FapeSet &s, const Rigid *frame, const Rigid &f, const Rigid &g, int64_t j, double *v,
                             double *diff)
{
    double u[3], local[3];
    for (int a = 0; a < 3; a++) {
        v[a] = (s.x ? (double)s.x[3 * j + a] : frame[j].t[a]) - f.t[a];
        u[a] = (s.gt ? (double)s.gt[3 * j + a] : s.target[j].t[a]) - g.t[a];
    }
    rot_apply_t(f.r, v, diff);
    rot_apply_t(g.r, u, local);
    for (int a = 0; a < 3; a++) diff[a] -= local[a];
    return sqrt(diff[0] * diff[0] + diff[1] * diff[1] + diff[2] * diff[2] + s.eps);
}

/* a block per frame: row = clamped and unclamped sums over the points */
__global__ void fape_rows_kernel(FapeSet s)
{
    stage_wait();
    __shared__ double shared[LOSS_WARPS];
    int64_t at = blockIdx.x, i = at % s.frames;
    const Rigid *frame = s.frame + at / s.frames * s.frames;
    double clamped = 0, unclamped = 0;
    if (s.frame_mask[i] != 0) {
        Rigid f = frame[i], g = s.target[i];
        for (int64_t j = threadIdx.x; j < s.points; j += blockDim.x) {
            double m = (double)s.point_mask[j], v[3], diff[3];
            if (m == 0) continue;
            double e = fape_error(s, frame, f, g, j, v, diff);
            clamped += m * (e > s.clamp ? s.clamp : e);
            unclamped += m * e;
        }
    }
    clamped = block_sum_double(clamped, shared);
    unclamped = block_sum_double(unclamped, shared);
    if (threadIdx.x == 0) {
        s.row[2 * at] = clamped * (double)s.frame_mask[i];
        s.row[2 * at + 1] = unclamped * (double)s.frame_mask[i];
    }
}

/* use_clamped NULL: the clamped sum alone */
__global__ void fape_total_kernel(FapeSet s, const float *use_clamped, float *loss, float *clamped_out,
                                  float *unclamped_out)
{
    stage_wait();
    __shared__ double shared[WARP];
    double scale = *s.scale / (double)s.blocks;
    double clamped = array_sum(s.row, s.blocks * s.frames, shared, 2) * scale;
    double unclamped = array_sum(s.row + 1, s.blocks * s.frames, shared, 2) * scale;
    if (threadIdx.x) return;
    double share = use_clamped ? (double)*use_clamped : 1;
    *loss = (float)(share * clamped + (1 - share) * (use_clamped ? unclamped : 0));
    if (clamped_out) *clamped_out = (float)clamped;
    if (unclamped_out) *unclamped_out = (float)unclamped;
}

/* d loss / d diff of one pair into d; false when it is zero */
__device__ bool fape_pair_bwd(const FapeSet &s, const Rigid *frame, const Rigid &f, const Rigid &g, int64_t i,
                              int64_t j, const double *weight, double *v, double *d)
{
    double m = (double)s.frame_mask[i] * (double)s.point_mask[j];
    if (m == 0) return false;
    double diff[3], e = fape_error(s, frame, f, g, j, v, diff);
    double c = m * *s.scale * (e <= s.clamp ? weight[0] + weight[1] : weight[1]) / e;
    for (int a = 0; a < 3; a++) d[a] = c * diff[a];
    return c != 0;
}

/* weights of the clamped and the unclamped loss; use_clamped NULL: clamped alone */
__device__ void fape_weights(const FapeSet &s, const float *dl, const float *use_clamped, double *weight)
{
    double share = use_clamped ? (double)*use_clamped : 1;
    weight[0] = (double)*dl * share / (double)s.blocks;
    weight[1] = (double)*dl * (1 - share) / (double)s.blocks;
}

/* Block sum of the gradient of a frame (all points) in g, and of a point (all frames) in dx. */
__device__ void fape_frame_bwd(const FapeSet &s, const Rigid *frame, int64_t i, const double *weight, double *shared,
                               Rigid *g)
{
    Rigid f = frame[i], target = s.target[i];
    double v[3], d[3], moved[3];
    for (int64_t j = threadIdx.x; j < s.points; j += blockDim.x) {
        if (!fape_pair_bwd(s, frame, f, target, i, j, weight, v, d)) continue;
        rot_add_outer(g->r, v, d);
        rot_apply(f.r, d, moved);
        for (int a = 0; a < 3; a++) g->t[a] -= moved[a];
    }
    for (int k = 0; k < 9; k++) g->r[k] = block_sum_double(g->r[k], shared);
    for (int k = 0; k < 3; k++) g->t[k] = block_sum_double(g->t[k], shared);
}

__device__ void fape_point_bwd(const FapeSet &s, const Rigid *frame, int64_t j, const double *weight, double *shared,
                               double *dx)
{
    double v[3], d[3], moved[3], sum[3] = {0};
    for (int64_t i = threadIdx.x; i < s.frames; i += blockDim.x) {
        if (!fape_pair_bwd(s, frame, frame[i], s.target[i], i, j, weight, v, d)) continue;
        rot_apply(frame[i].r, d, moved);
        for (int a = 0; a < 3; a++) sum[a] += moved[a];
    }
    for (int a = 0; a < 3; a++) dx[a] += block_sum_double(sum[a], shared);
}

/* ---- backbone: frames of every block against the backbone frames, points are the CA positions
 * ------------------------------ */

__global__ void backbone_frames_kernel(FapeSet s, const float *frames, const float *target)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e < s.blocks * s.frames) s.frame[e] = rigid_from_frame(frames + 7 * e);
    if (e < s.frames) s.target[e] = rigid_from_4x4(target + 16 * e);
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
    return fape_bytes(f->dim[0], f->dim[1]);
}

static void backbone_prepare(CudaContext *context, const OpCall *call, int first, const FapeSet &s)
{
    launch(fape_scale_kernel, 1, LOSS_THREADS, 0, context->stream, s);
    launch(backbone_frames_kernel, blocks_for(s.blocks * s.frames, LOSS_THREADS), LOSS_THREADS, 0, context->stream, s,
           F32_IN(first), F32_IN(first + 1));
}

static Status backbone(CudaContext *context, const OpCall *call)
{
    FapeSet s = backbone_set(call, 0);
    backbone_prepare(context, call, 0, s);
    launch(fape_rows_kernel, (unsigned)(s.blocks * s.frames), LOSS_THREADS, 0, context->stream, s);
    launch(fape_total_kernel, 1, SUM_THREADS, 0, context->stream, s, F32_IN(3), F32_OUT(0), F32_OUT(1), F32_OUT(2));
    return cuda_launched("loss_fape_backbone");
}

__global__ void backbone_bwd_kernel(FapeSet s, const float *dl, const float *use_clamped, const float *frames,
                                    float *dframes)
{
    stage_wait();
    __shared__ double shared[LOSS_WARPS];
    int64_t at = blockIdx.x, i = at % s.frames;
    const Rigid *frame = s.frame + at / s.frames * s.frames;
    Rigid g = {{0}, {0}};
    double weight[2];
    fape_weights(s, dl, use_clamped, weight);
    if (*dl != 0) {
        fape_frame_bwd(s, frame, i, weight, shared, &g);
        fape_point_bwd(s, frame, i, weight, shared, g.t); /* the translation is also a point */
    }
    if (threadIdx.x == 0) rigid_to_frame_bwd(frames + 7 * at, &g, dframes + 7 * at);
}

static Status backbone_bwd(CudaContext *context, const OpCall *call)
{
    FapeSet s = backbone_set(call, 1);
    backbone_prepare(context, call, 1, s);
    launch(backbone_bwd_kernel, (unsigned)(s.blocks * s.frames), LOSS_THREADS, 0, context->stream, s, F32_IN(0),
           F32_IN(4), F32_IN(1), F32_OUT(0));
    return cuda_launched("loss_fape_backbone_bwd");
}

/* ---- side chains: all rigid groups against all atoms
 * ------------------------------------------------------------------------- */

__global__ void sidechain_frames_kernel(FapeSet s, const float *frames, const float *gt, const float *alt,
                                        const float *better)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= s.frames) return;
    s.frame[e] = rigid_from_4x4(frames + 16 * e);
    s.target[e] = rigid_from_4x4((better[e / GROUPS] != 0 ? alt : gt) + 16 * e);
}

static FapeSet sidechain_set(const OpCall *call, int first)
{
    FapeSet s = {};
    int64_t n = call->in_tensor[first]->dim[0];
    s.blocks = 1;
    s.frames = n * GROUPS;
    s.points = n * ATOMS;
    s.x = F32_IN(first + 1);
    s.frame_mask = F32_IN(first + 4);
    s.gt = F32_IN(first + 6);
    s.point_mask = F32_IN(first + 7);
    fape_attributes(call, &s);
    return s;
}

static size_t sidechain_scratch(const OpCall *call)
{
    const Tensor *f = call->in_tensor[call->op->kind == OP_LOSS_FAPE_SIDECHAIN_BWD];
    return fape_bytes(1, f->dim[0] * GROUPS);
}

static void sidechain_prepare(CudaContext *context, const OpCall *call, int first, const FapeSet &s)
{
    launch(fape_scale_kernel, 1, LOSS_THREADS, 0, context->stream, s);
    launch(sidechain_frames_kernel, blocks_for(s.frames, LOSS_THREADS), LOSS_THREADS, 0, context->stream, s,
           F32_IN(first), F32_IN(first + 2), F32_IN(first + 3), F32_IN(first + 5));
}

static Status sidechain(CudaContext *context, const OpCall *call)
{
    FapeSet s = sidechain_set(call, 0);
    sidechain_prepare(context, call, 0, s);
    launch(fape_rows_kernel, (unsigned)s.frames, LOSS_THREADS, 0, context->stream, s);
    launch(fape_total_kernel, 1, SUM_THREADS, 0, context->stream, s, nullptr, F32_OUT(0), nullptr, nullptr);
    return cuda_launched("loss_fape_sidechain");
}

__global__ void sidechain_frame_bwd_kernel(FapeSet s, const float *dl, float *dframes)
{
    stage_wait();
    __shared__ double shared[LOSS_WARPS];
    Rigid g = {{0}, {0}};
    double weight[2];
    fape_weights(s, dl, NULL, weight);
    if (*dl != 0) fape_frame_bwd(s, s.frame, blockIdx.x, weight, shared, &g);
    if (threadIdx.x) return;
    float *out = dframes + 16 * (int64_t)blockIdx.x;
    rigid_to_4x4(&g, out);
    out[15] = 0;
}

__global__ void sidechain_point_bwd_kernel(FapeSet s, const float *dl, float *datoms)
{
    stage_wait();
    __shared__ double shared[LOSS_WARPS];
    double weight[2], dx[3] = {0};
    fape_weights(s, dl, NULL, weight);
    if (*dl != 0) fape_point_bwd(s, s.frame, blockIdx.x, weight, shared, dx);
    if (threadIdx.x == 0) vector_store(dx, datoms + 3 * (int64_t)blockIdx.x);
}

static Status sidechain_bwd(CudaContext *context, const OpCall *call)
{
    FapeSet s = sidechain_set(call, 1);
    sidechain_prepare(context, call, 1, s);
    launch(sidechain_frame_bwd_kernel, (unsigned)s.frames, LOSS_THREADS, 0, context->stream, s, F32_IN(0), F32_OUT(0));
    launch(sidechain_point_bwd_kernel, (unsigned)s.points, LOSS_THREADS, 0, context->stream, s, F32_IN(0), F32_OUT(1));
    return cuda_launched("loss_fape_sidechain_bwd");
}

const CudaEntry cuda_loss_fape[] = {{OP_LOSS_FAPE_BACKBONE, backbone, backbone_scratch},
                                    {OP_LOSS_FAPE_BACKBONE_BWD, backbone_bwd, backbone_scratch},
                                    {OP_LOSS_FAPE_SIDECHAIN, sidechain, sidechain_scratch},
                                    {OP_LOSS_FAPE_SIDECHAIN_BWD, sidechain_bwd, sidechain_scratch},
                                    {OP_COUNT, NULL, NULL}};
