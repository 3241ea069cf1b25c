/* Frames, points and atoms of the structure module (AlphaFold2 supplement, algorithms 20, 23, 24). Few residues and
 * much latency: a thread per point, atom, rigid group or number of its matrix, arithmetic in double as on the CPU, f32
 * in memory. A residue type out of range cannot be reported from here: it is clamped, as it is refused when a batch is
 * made. */
#include "kernels/cuda/device.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

enum { THREADS = 64, ATOM_CA = 1, ATOM_CB = 3, GLYCINE = 7, RESTYPES = 21, MATRIX = 16 /* numbers of a 4x4 */ };

__device__ __forceinline__ int residue_type(const int32_t *aatype, int64_t i)
{
    int type = aatype[i];
    return type < 0 ? 0 : (type >= RESTYPES ? RESTYPES - 1 : type);
}

#define FOR_EACH(index, count)                                                                                         \
    int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;                                                    \
    if (index >= (count)) return;

#define LAUNCH(kernel, count, ...)                                                                                     \
    do {                                                                                                               \
        launch(kernel, blocks_for((count), THREADS), THREADS, 0, context->stream, __VA_ARGS__);                        \
        return cuda_launched(#kernel);                                                                                 \
    } while (0)

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

/* ---- frames [N,7]
 * --------------------------------------------------------------------------------------------------------- */

/* y = f with the rotation times a and the translation times b; identity: f NULL */
__global__ void frame_parts_kernel(int64_t n, const float *f, float a, float b, float *y)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, 7 * n)
    int k = (int)(e % 7);
    y[e] = f ? f[e] * (k < 4 ? a : b) : (k == 0 ? 1.0f : 0.0f);
}

static Status identity(CudaContext *context, const OpCall *call)
{
    int64_t n = call->out_tensor[0]->dim[0];
    LAUNCH(frame_parts_kernel, 7 * n, n, (const float *)NULL, 0.0f, 0.0f, F32_OUT(0));
}

static Status stop_rotation(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(frame_parts_kernel, 7 * n, n, F32_IN(0), 1.0f, 1.0f, F32_OUT(0));
}

static Status stop_rotation_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(frame_parts_kernel, 7 * n, n, F32_IN(0), 0.0f, 1.0f, F32_OUT(0));
}

static Status scale(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(frame_parts_kernel, 7 * n, n, F32_IN(0), 1.0f, (float)call->op->attr.f[0], F32_OUT(0));
}

__global__ void frame_update_kernel(int64_t n, const float *frames, const float *updates, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(i, n)
    frame_update(frames + 7 * i, updates + 6 * i, out + 7 * i);
}

static Status update(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(frame_update_kernel, n, n, F32_IN(0), F32_IN(1), F32_OUT(0));
}

__global__ void frame_update_bwd_kernel(int64_t n, const float *grads, const float *frames, const float *updates,
                                        float *dframes, float *dupdates)
{
    stage_wait();
    stage_release();
    FOR_EACH(i, n)
    frame_update_bwd(grads + 7 * i, frames + 7 * i, updates + 6 * i, dframes + 7 * i, dupdates + 6 * i);
}

static Status update_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[1]->dim[0];
    LAUNCH(frame_update_bwd_kernel, n, n, F32_IN(0), F32_IN(1), F32_IN(2), F32_OUT(0), F32_OUT(1));
}

/* ---- points
 * -------------------------------------------------------------------------------------------------------------------
 */

__global__ void to_global_kernel(int64_t n, int64_t points, const float *frames, const float *in, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, n * points)
    int64_t i = e / points, p = e % points;
    Rigid f = rigid_from_frame(frames + 7 * i);
    point_to_global(&f, in + 3 * points * i + p, points, out + 3 * e);
}

static Status to_global(CudaContext *context, const OpCall *call)
{
    int64_t n = call->out_tensor[0]->dim[0], points = call->out_tensor[0]->dim[1];
    LAUNCH(to_global_kernel, n * points, n, points, F32_IN(0), F32_IN(1), F32_OUT(0));
}

/* Sum of the shares that `lanes` neighbouring lanes have of a transform's gradient, in every lane. */
template <int lanes> __device__ __forceinline__ void rigid_sum(Rigid *g)
{
    for (int k = 0; k < 9; k++) g->r[k] = lanes_sum<lanes>(g->r[k]);
    for (int k = 0; k < 3; k++) g->t[k] = lanes_sum<lanes>(g->t[k]);
}

/* a warp per residue */
__global__ void to_global_bwd_kernel(int64_t n, int64_t points, const float *grads, const float *frames,
                                     const float *in, float *dframes, float *dpoints)
{
    stage_wait();
    stage_release();
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= n) return;
    Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
    const float *x = in + 3 * points * i;
    float *dx = dpoints + 3 * points * i;
    for (int64_t p = threadIdx.x % WARP; p < points; p += WARP)
        point_to_global_bwd(&f, grads + 3 * (points * i + p), x + p, points, dx + p, &g);
    rigid_sum<WARP>(&g);
    if (threadIdx.x % WARP == 0) rigid_to_frame_bwd(frames + 7 * i, &g, dframes + 7 * i);
}

static Status to_global_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    LAUNCH(to_global_bwd_kernel, WARP * n, n, points, F32_IN(0), F32_IN(1), F32_IN(2), F32_OUT(0), F32_OUT(1));
}

__global__ void to_local_kernel(int64_t n, int64_t points, const float *frames, const float *in, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, n * points)
    Rigid f = rigid_from_frame(frames + 7 * (e / points));
    point_to_local(&f, in + 3 * e, out + 3 * e);
}

static Status to_local(CudaContext *context, const OpCall *call)
{
    int64_t n = call->out_tensor[0]->dim[0], points = call->out_tensor[0]->dim[1];
    LAUNCH(to_local_kernel, n * points, n, points, F32_IN(0), F32_IN(1), F32_OUT(0));
}

__global__ void to_local_bwd_kernel(int64_t n, int64_t points, const float *grads, const float *frames, const float *in,
                                    float *dframes, float *dpoints)
{
    stage_wait();
    stage_release();
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= n) return;
    Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
    for (int64_t p = points * i + threadIdx.x % WARP; p < points * (i + 1); p += WARP)
        point_to_local_bwd(&f, grads + 3 * p, in + 3 * p, dpoints + 3 * p, &g);
    rigid_sum<WARP>(&g);
    if (threadIdx.x % WARP == 0) rigid_to_frame_bwd(frames + 7 * i, &g, dframes + 7 * i);
}

static Status to_local_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    LAUNCH(to_local_bwd_kernel, WARP * n, n, points, F32_IN(0), F32_IN(1), F32_IN(2), F32_OUT(0), F32_OUT(1));
}

/* ---- angles
 * ---------------------------------------------------------------------------------------------------------------------
 */

__global__ void normalize_kernel(int64_t n, double eps, const float *x, float *y)
{
    stage_wait();
    stage_release();
    FOR_EACH(i, n)
    angle_normalize(x + 2 * i, eps, y + 2 * i);
}

static Status normalize(CudaContext *context, const OpCall *call)
{
    int64_t n = tensor_rows(call->in_tensor[0]);
    LAUNCH(normalize_kernel, n, n, call->op->attr.f[0], F32_IN(0), F32_OUT(0));
}

__global__ void normalize_bwd_kernel(int64_t n, double eps, const float *dy, const float *x, float *dx)
{
    stage_wait();
    stage_release();
    FOR_EACH(i, n)
    angle_normalize_bwd(dy + 2 * i, x + 2 * i, eps, dx + 2 * i);
}

static Status normalize_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = tensor_rows(call->in_tensor[1]);
    LAUNCH(normalize_bwd_kernel, n, n, call->op->attr.f[0], F32_IN(0), F32_IN(1), F32_OUT(0));
}

/* A rigid group of a residue, one in each of eight neighbouring lanes; chain = group to backbone, parent = chain of the
 * group that it hangs on (chi2..chi4). */
struct GroupLane {
    Rigid start, local, parent, chain;
};

__device__ __forceinline__ Rigid rigid_of_lane(const Rigid &x, int lane)
{
    Rigid y;
#pragma unroll
    for (int k = 0; k < 9; k++) y.r[k] = __shfl_sync(0xffffffffu, x.r[k], lane, GROUPS);
#pragma unroll
    for (int k = 0; k < 3; k++) y.t[k] = __shfl_sync(0xffffffffu, x.t[k], lane, GROUPS);
    return y;
}

/* All lanes of a residue bring their tables at once; the chain is walked afterwards. */
__device__ __forceinline__ GroupLane group_build(const float *angle, const float *table, int g)
{
    GroupLane x = {};
    group_local(angle, table, g, &x.start, &x.local);
    x.chain = x.local;
#pragma unroll
    for (int k = FIRST_CHAINED; k < GROUPS; k++) {
        Rigid parent = rigid_of_lane(x.chain, k - 1);
        if (g == k) x.parent = parent, x.chain = rigid_compose(&parent, &x.local);
    }
    return x;
}

/* a thread per group; those behind the last residue lend their lanes */
__global__ void torsion_frames_kernel(int64_t n, const float *frames, const float *angles, const int32_t *aatype,
                                      const float *tables, float *out)
{
    stage_wait();
    stage_release();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i = e / GROUPS < n ? e / GROUPS : n - 1;
    Rigid backbone = rigid_from_frame(frames + 7 * i);
    GroupLane x =
        group_build(angles + 14 * i, tables + MATRIX * GROUPS * residue_type(aatype, i), (int)(threadIdx.x % GROUPS));
    Rigid world = rigid_compose(&backbone, &x.chain);
    if (e < GROUPS * n) rigid_to_4x4(&world, out + MATRIX * e);
}

static Status torsion_frames(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    if (n == 0) return OK;
    LAUNCH(torsion_frames_kernel, GROUPS * n, n, F32_IN(0), F32_IN(1), (const int32_t *)call->in[2], F32_IN(3),
           F32_OUT(0));
}

/* dchain of every lane gets what the groups hanging on its own hand back, the last ones first; returns d local. */
__device__ __forceinline__ Rigid group_chain_bwd(const GroupLane &x, int g, Rigid dchain)
{
    Rigid dlocal = dchain;
#pragma unroll
    for (int k = GROUPS - 1; k >= FIRST_CHAINED; k--) {
        Rigid mine, given = {};
        rigid_compose_bwd(&x.parent, &x.local, &dchain, &given, &mine);
        if (g == k) dlocal = mine;
        given = rigid_of_lane(given, k);
        if (g != k - 1) continue;
        for (int l = 0; l < 9; l++) dchain.r[l] += given.r[l];
        for (int l = 0; l < 3; l++) dchain.t[l] += given.t[l];
        dlocal = dchain;
    }
    return dlocal;
}

/* a thread per group, as above */
__global__ void torsion_frames_bwd_kernel(int64_t n, const float *grads, const float *frames, const float *angles,
                                          const int32_t *aatype, const float *tables, float *dframes, float *dangles)
{
    stage_wait();
    stage_release();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i = e / GROUPS < n ? e / GROUPS : n - 1;
    int g = (int)(threadIdx.x % GROUPS);
    Rigid backbone = rigid_from_frame(frames + 7 * i), dworld = rigid_from_4x4(grads + MATRIX * (GROUPS * i + g));
    GroupLane x = group_build(angles + 14 * i, tables + MATRIX * GROUPS * residue_type(aatype, i), g);
    Rigid dbackbone = {}, dchain;
    rigid_compose_bwd(&backbone, &x.chain, &dworld, &dbackbone, &dchain);
    Rigid dlocal = group_chain_bwd(x, g, dchain);
    rigid_sum<GROUPS>(&dbackbone);
    if (e >= GROUPS * n) return;
    if (g == 0)
        rigid_to_frame_bwd(frames + 7 * i, &dbackbone, dframes + 7 * i);
    else
        group_angle_bwd(&x.start, &dlocal, dangles + 14 * i + 2 * (g - 1));
}

static Status torsion_frames_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[1]->dim[0];
    if (n == 0) return OK;
    LAUNCH(torsion_frames_bwd_kernel, GROUPS * n, n, F32_IN(0), F32_IN(1), F32_IN(2), (const int32_t *)call->in[3],
           F32_IN(4), F32_OUT(0), F32_OUT(1));
}

/* ---- atoms
 * ------------------------------------------------------------------------------------------------------------------------
 */

__global__ void to_atom14_kernel(int64_t n, const float *frames, const int32_t *aatype, const int32_t *group,
                                 const float *masks, const float *positions, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, n * ATOMS)
    int64_t i = e / ATOMS, slot = ATOMS * residue_type(aatype, i) + e % ATOMS;
    Rigid f = rigid_from_4x4(frames + 16 * (GROUPS * i + group[slot]));
    double x[3], y[3];
    vector_load(positions + 3 * slot, x);
    rot_apply(f.r, x, y);
    for (int k = 0; k < 3; k++) y[k] = (y[k] + f.t[k]) * (double)masks[slot];
    vector_store(y, out + 3 * e);
}

static Status to_atom14(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(to_atom14_kernel, n * ATOMS, n, F32_IN(0), (const int32_t *)call->in[1], (const int32_t *)call->in[2],
           F32_IN(3), F32_IN(4), F32_OUT(0));
}

/* a thread per number of a rigid group: it collects the atoms that hang on it; all are loaded, so that no load waits
 * for another */
__global__ void to_atom14_bwd_kernel(int64_t n, const float *grads, const int32_t *aatype, const int32_t *group,
                                     const float *masks, const float *positions, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, n * GROUPS * MATRIX)
    int64_t i = e / (GROUPS * MATRIX), first = ATOMS * residue_type(aatype, i);
    int g = (int)(e / MATRIX % GROUPS), k = (int)(e % MATRIX) / 4, j = (int)(e % 4);
    if (k == 3) {
        out[e] = 0;
        return;
    }
    double sum = 0;
#pragma unroll
    for (int a = 0; a < ATOMS; a++) {
        float grad = grads[3 * (ATOMS * i + a) + k], mask = masks[first + a],
              position = j < 3 ? positions[3 * (first + a) + j] : 1.0f;
        double term = (double)grad * (double)mask * (double)position;
        sum += group[first + a] == g ? term : 0;
    }
    out[e] = (float)sum;
}

static Status to_atom14_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(to_atom14_bwd_kernel, n * GROUPS * MATRIX, n, F32_IN(0), (const int32_t *)call->in[1],
           (const int32_t *)call->in[2], F32_IN(3), F32_IN(4), F32_OUT(0));
}

__global__ void to_atom37_kernel(int64_t n, const float *x, const int32_t *index, const float *exists, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, n * ATOMS37)
    int slot = index[e] < 0 ? 0 : (index[e] >= ATOMS ? ATOMS - 1 : index[e]);
    for (int k = 0; k < 3; k++) out[3 * e + k] = x[3 * (ATOMS * (e / ATOMS37) + slot) + k] * exists[e];
}

static Status to_atom37(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(to_atom37_kernel, n * ATOMS37, n, F32_IN(0), (const int32_t *)call->in[1], F32_IN(2), F32_OUT(0));
}

__global__ void pseudo_beta_kernel(int64_t n, const float *x, const int32_t *aatype, float *out)
{
    stage_wait();
    stage_release();
    FOR_EACH(e, 3 * n)
    int64_t i = e / 3;
    out[e] = x[3 * (ATOMS37 * i + (aatype[i] == GLYCINE ? ATOM_CA : ATOM_CB)) + e % 3];
}

static Status pseudo_beta(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(pseudo_beta_kernel, 3 * n, n, F32_IN(0), (const int32_t *)call->in[1], F32_OUT(0));
}

const CudaEntry cuda_rigid[] = {{OP_FRAME_IDENTITY, identity, NULL},
                                {OP_FRAME_UPDATE, update, NULL},
                                {OP_FRAME_UPDATE_BWD, update_bwd, NULL},
                                {OP_FRAME_STOP_ROTATION, stop_rotation, NULL},
                                {OP_FRAME_STOP_ROTATION_BWD, stop_rotation_bwd, NULL},
                                {OP_FRAME_SCALE, scale, NULL},
                                {OP_POINTS_TO_GLOBAL, to_global, NULL},
                                {OP_POINTS_TO_GLOBAL_BWD, to_global_bwd, NULL},
                                {OP_POINTS_TO_LOCAL, to_local, NULL},
                                {OP_POINTS_TO_LOCAL_BWD, to_local_bwd, NULL},
                                {OP_ANGLE_NORMALIZE, normalize, NULL},
                                {OP_ANGLE_NORMALIZE_BWD, normalize_bwd, NULL},
                                {OP_TORSION_FRAMES, torsion_frames, NULL},
                                {OP_TORSION_FRAMES_BWD, torsion_frames_bwd, NULL},
                                {OP_FRAMES_TO_ATOM14, to_atom14, NULL},
                                {OP_FRAMES_TO_ATOM14_BWD, to_atom14_bwd, NULL},
                                {OP_ATOM14_TO_ATOM37, to_atom37, NULL},
                                {OP_PSEUDO_BETA, pseudo_beta, NULL},
                                {OP_COUNT, NULL, NULL}};
