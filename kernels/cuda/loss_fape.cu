/* Frame-aligned point error (AlphaFold2 supplement, algorithm 28), forward and backward; the equations are beside the
 * CPU kernel (kernels/cpu/ops/loss_fape.c). */
#include "kernels/cuda/loss_fape.cuh"

static void fape_attributes(const OpCall *call, FapeSet *s)
{
    s->clamp = call->op->attr.f[0];
    s->unit = call->op->attr.f[1];
    s->eps = call->op->attr.f[2];
    fape_place(s, (char *)call->scratch);
}

/* ---- backbone: frames of every block against the backbone frames, points are the CA positions
 * ------------------------------ */

struct BackboneSource {
    const float *frames, *target; /* [blocks, n, 7], [n, 4, 4] */
    int64_t n;
    __device__ __forceinline__ void frame(int64_t block, int64_t i, Rigid *f, Rigid *g) const
    {
        *f = rigid_from_frame(frames + 7 * (block * n + i));
        *g = rigid_from_4x4(target + 16 * i);
    }
    __device__ __forceinline__ void point(int64_t block, int64_t i, float *x, float *gt) const
    {
        for (int a = 0; a < 3; a++) x[a] = frames[7 * (block * n + i) + 4 + a], gt[a] = target[16 * i + 4 * a + 3];
    }
};

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
    fape_prepare(context, s, BackboneSource{F32_IN(first), F32_IN(first + 1), s.frames});
}

static Status backbone(CudaContext *context, const OpCall *call)
{
    FapeSet s = backbone_set(call, 0);
    backbone_prepare(context, call, 0, s);
    fape_forward(context, s, F32_IN(3), F32_OUT(0), F32_OUT(1), F32_OUT(2));
    return cuda_launched("loss_fape_backbone");
}

__global__ void backbone_bwd_kernel(FapeSet s, const float *dl, const float *frames, float *dframes)
{
    stage_wait();
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 16;
    Rigid g = frame_total(s, dl, at, true);
    if (threadIdx.x % 16 == 0 && at < s.blocks * s.frames) rigid_to_frame_bwd(frames + 7 * at, &g, dframes + 7 * at);
}

static Status backbone_bwd(CudaContext *context, const OpCall *call)
{
    FapeSet s = backbone_set(call, 1);
    backbone_prepare(context, call, 1, s);
    fape_backward(context, s, F32_IN(0), F32_IN(4));
    launch(backbone_bwd_kernel, blocks_for(16 * s.blocks * s.frames, PAIR_THREADS), PAIR_THREADS, 0, context->stream, s,
           F32_IN(0), F32_IN(1), F32_OUT(0));
    return cuda_launched("loss_fape_backbone_bwd");
}

/* ---- side chains: all rigid groups against all atoms
 * ------------------------------------------------------------------------- */

struct SidechainSource {
    const float *frames, *gt, *alt, *better, *x, *gt_atoms;
    __device__ __forceinline__ void frame(int64_t, int64_t i, Rigid *f, Rigid *g) const
    {
        *f = rigid_from_4x4(frames + 16 * i);
        *g = rigid_from_4x4((better[i / GROUPS] != 0 ? alt : gt) + 16 * i);
    }
    __device__ __forceinline__ void point(int64_t, int64_t i, float *to, float *target) const
    {
        for (int a = 0; a < 3; a++) to[a] = x[3 * i + a], target[a] = gt_atoms[3 * i + a];
    }
};

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
    fape_prepare(context, s,
                 SidechainSource{F32_IN(first), F32_IN(first + 2), F32_IN(first + 3), F32_IN(first + 5),
                                 F32_IN(first + 1), F32_IN(first + 6)});
}

static Status sidechain(CudaContext *context, const OpCall *call)
{
    FapeSet s = sidechain_set(call, 0);
    sidechain_prepare(context, call, 0, s);
    fape_forward(context, s, NULL, F32_OUT(0), NULL, NULL);
    return cuda_launched("loss_fape_sidechain");
}

__global__ void sidechain_bwd_kernel(FapeSet s, const float *dl, float *dframes, float *datoms)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, at = e / 16;
    Rigid g = frame_total(s, dl, at, false);
    if (threadIdx.x % 16 == 0 && at < s.frames) {
        rigid_to_4x4(&g, dframes + 16 * at);
        dframes[16 * at + 15] = 0;
    }
    if (e < POINT_SUMS * s.points)
        datoms[e] = *dl == 0 ? 0.0f : (float)point_total(s, 0, e / POINT_SUMS, (int)(e % POINT_SUMS));
}

static Status sidechain_bwd(CudaContext *context, const OpCall *call)
{
    FapeSet s = sidechain_set(call, 1);
    sidechain_prepare(context, call, 1, s);
    fape_backward(context, s, F32_IN(0), NULL);
    int64_t lanes = 16 * s.frames > POINT_SUMS * s.points ? 16 * s.frames : POINT_SUMS * s.points;
    launch(sidechain_bwd_kernel, blocks_for(lanes, PAIR_THREADS), PAIR_THREADS, 0, context->stream, s, F32_IN(0),
           F32_OUT(0), F32_OUT(1));
    return cuda_launched("loss_fape_sidechain_bwd");
}

const CudaEntry cuda_loss_fape[] = {{OP_LOSS_FAPE_BACKBONE, backbone, backbone_scratch},
                                    {OP_LOSS_FAPE_BACKBONE_BWD, backbone_bwd, backbone_scratch},
                                    {OP_LOSS_FAPE_SIDECHAIN, sidechain, sidechain_scratch},
                                    {OP_LOSS_FAPE_SIDECHAIN_BWD, sidechain_bwd, sidechain_scratch},
                                    {OP_COUNT, NULL, NULL}};
