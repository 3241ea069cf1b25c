/* Frames, points and atoms of the structure module (AlphaFold2 supplement, algorithms 20, 23, 24, 26). Few residues and
 * much latency: one thread per residue, point or atom, arithmetic in double as on the CPU, f32 in memory. A residue
 * type out of range cannot be reported from here: it is clamped, as it is refused when a batch is made. */
#include "kernels/cuda/device.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

enum { THREADS = 64, RENAME_THREADS = 1024, ATOM_CA = 1, ATOM_CB = 3, GLYCINE = 7, RESTYPES = 21 };

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

/* Sum over a warp in a fixed order, in every lane. */
__device__ __forceinline__ double warp_sum(double x)
{
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ void store_frame_sum(const float *frame, Rigid *g, float *df)
{
    for (int k = 0; k < 9; k++) g->r[k] = warp_sum(g->r[k]);
    for (int k = 0; k < 3; k++) g->t[k] = warp_sum(g->t[k]);
    if (threadIdx.x % WARP == 0) rigid_to_frame_bwd(frame, g, df);
}

/* a warp per residue */
__global__ void to_global_bwd_kernel(int64_t n, int64_t points, const float *grads, const float *frames,
                                     const float *in, float *dframes, float *dpoints)
{
    stage_wait();
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= n) return;
    Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
    const float *x = in + 3 * points * i;
    float *dx = dpoints + 3 * points * i;
    for (int64_t p = threadIdx.x % WARP; p < points; p += WARP)
        point_to_global_bwd(&f, grads + 3 * (points * i + p), x + p, points, dx + p, &g);
    store_frame_sum(frames + 7 * i, &g, dframes + 7 * i);
}

static Status to_global_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    LAUNCH(to_global_bwd_kernel, WARP * n, n, points, F32_IN(0), F32_IN(1), F32_IN(2), F32_OUT(0), F32_OUT(1));
}

__global__ void to_local_kernel(int64_t n, int64_t points, const float *frames, const float *in, float *out)
{
    stage_wait();
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
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= n) return;
    Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
    for (int64_t p = points * i + threadIdx.x % WARP; p < points * (i + 1); p += WARP)
        point_to_local_bwd(&f, grads + 3 * p, in + 3 * p, dpoints + 3 * p, &g);
    store_frame_sum(frames + 7 * i, &g, dframes + 7 * i);
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
    FOR_EACH(i, n)
    angle_normalize_bwd(dy + 2 * i, x + 2 * i, eps, dx + 2 * i);
}

static Status normalize_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = tensor_rows(call->in_tensor[1]);
    LAUNCH(normalize_bwd_kernel, n, n, call->op->attr.f[0], F32_IN(0), F32_IN(1), F32_OUT(0));
}

__global__ void torsion_frames_kernel(int64_t n, const float *frames, const float *angles, const int32_t *aatype,
                                      const float *tables, float *out)
{
    stage_wait();
    FOR_EACH(i, n)
    groups_to_world(frames + 7 * i, angles + 14 * i, tables + 16 * GROUPS * residue_type(aatype, i),
                    out + 16 * GROUPS * i);
}

static Status torsion_frames(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(torsion_frames_kernel, n, n, F32_IN(0), F32_IN(1), (const int32_t *)call->in[2], F32_IN(3), F32_OUT(0));
}

__global__ void torsion_frames_bwd_kernel(int64_t n, const float *grads, const float *frames, const float *angles,
                                          const int32_t *aatype, const float *tables, float *dframes, float *dangles)
{
    stage_wait();
    FOR_EACH(i, n)
    groups_to_world_bwd(grads + 16 * GROUPS * i, frames + 7 * i, angles + 14 * i,
                        tables + 16 * GROUPS * residue_type(aatype, i), dframes + 7 * i, dangles + 14 * i);
}

static Status torsion_frames_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[1]->dim[0];
    LAUNCH(torsion_frames_bwd_kernel, n, n, F32_IN(0), F32_IN(1), F32_IN(2), (const int32_t *)call->in[3], F32_IN(4),
           F32_OUT(0), F32_OUT(1));
}

/* ---- atoms
 * ------------------------------------------------------------------------------------------------------------------------
 */

__global__ void to_atom14_kernel(int64_t n, const float *frames, const int32_t *aatype, const int32_t *group,
                                 const float *masks, const float *positions, float *out)
{
    stage_wait();
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

/* a thread per rigid group: it collects the atoms that hang on it */
__global__ void to_atom14_bwd_kernel(int64_t n, const float *grads, const int32_t *aatype, const int32_t *group,
                                     const float *masks, const float *positions, float *out)
{
    stage_wait();
    FOR_EACH(e, n * GROUPS)
    int64_t i = e / GROUPS, first = ATOMS * residue_type(aatype, i);
    double g[12] = {0};
    for (int a = 0; a < ATOMS; a++) {
        int64_t slot = first + a;
        if (group[slot] != (int)(e % GROUPS)) continue;
        for (int k = 0; k < 3; k++) {
            double d = (double)grads[3 * (ATOMS * i + a) + k] * (double)masks[slot];
            for (int j = 0; j < 3; j++) g[4 * k + j] += d * (double)positions[3 * slot + j];
            g[4 * k + 3] += d;
        }
    }
    for (int k = 0; k < 16; k++) out[16 * e + k] = k < 12 ? (float)g[k] : 0.0f;
}

static Status to_atom14_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(to_atom14_bwd_kernel, n * GROUPS, n, F32_IN(0), (const int32_t *)call->in[1], (const int32_t *)call->in[2],
           F32_IN(3), F32_IN(4), F32_OUT(0));
}

__global__ void to_atom37_kernel(int64_t n, const float *x, const int32_t *index, const float *exists, float *out)
{
    stage_wait();
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
    FOR_EACH(e, 3 * n)
    int64_t i = e / 3;
    out[e] = x[3 * (ATOMS37 * i + (aatype[i] == GLYCINE ? ATOM_CA : ATOM_CB)) + e % 3];
}

static Status pseudo_beta(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(pseudo_beta_kernel, 3 * n, n, F32_IN(0), (const int32_t *)call->in[1], F32_OUT(0));
}

/* Algorithm 26, a block per residue: the naming of symmetric atoms whose distances to the unambiguous atoms fit better.
 */
__global__ void __launch_bounds__(RENAME_THREADS)
    rename_kernel(int64_t n, double eps, const float *x, const float *gt, const float *alt, const float *exists,
                  const float *alt_exists, const float *ambiguous, float *better, float *gt_out, float *exists_out)
{
    stage_wait();
    __shared__ double shared[2][RENAME_THREADS / WARP];
    int64_t i = blockIdx.x;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    double lddt = 0, alt_lddt = 0;
    for (int64_t a = ATOMS * i; a < ATOMS * (i + 1); a++) {
        double row = (double)exists[a] * ambiguous[a];
        if (row == 0) continue; /* the same in every thread */
        for (int64_t b = threadIdx.x; b < ATOMS * n; b += RENAME_THREADS) {
            double mask = row * exists[b] * (1 - ambiguous[b]);
            if (mask == 0) continue;
            double d = point_distance(x + 3 * a, x + 3 * b, eps);
            double e = d - point_distance(gt + 3 * a, gt + 3 * b, eps),
                   f = d - point_distance(alt + 3 * a, alt + 3 * b, eps);
            lddt += mask * sqrt(eps + e * e);
            alt_lddt += mask * sqrt(eps + f * f);
        }
    }
    lddt = warp_sum(lddt);
    alt_lddt = warp_sum(alt_lddt);
    if (lane == 0) shared[0][warp] = lddt, shared[1][warp] = alt_lddt;
    __syncthreads();
    lddt = alt_lddt = 0;
    for (int w = 0; w < RENAME_THREADS / WARP; w++) lddt += shared[0][w], alt_lddt += shared[1][w];
    bool swap = alt_lddt < lddt;
    if (threadIdx.x == 0) better[i] = swap;
    if (threadIdx.x >= ATOMS) return;
    int64_t a = ATOMS * i + threadIdx.x;
    for (int k = 0; k < 3; k++) gt_out[3 * a + k] = (swap ? alt : gt)[3 * a + k];
    exists_out[a] = (swap ? alt_exists : exists)[a];
}

static Status rename_symmetric(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    if (n == 0) return OK;
    launch(rename_kernel, (unsigned)n, RENAME_THREADS, 0, context->stream, n, call->op->attr.f[0], F32_IN(0), F32_IN(1),
           F32_IN(2), F32_IN(3), F32_IN(4), F32_IN(5), F32_OUT(0), F32_OUT(1), F32_OUT(2));
    return cuda_launched("rename_kernel");
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
                                {OP_RENAME_SYMMETRIC, rename_symmetric, NULL},
                                {OP_COUNT, NULL, NULL}};
