/* Frames, points and atoms of the structure module (AlphaFold2 supplement, algorithms 20, 23, 24, 26). Few residues and
 * much latency: one thread per residue, point or atom, arithmetic in double as on the CPU, f32 in memory. A residue
 * type out of range cannot be reported from here: it is clamped, as it is refused when a batch is made. */
#include "kernels/cuda/device.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

enum { THREADS = 64, RENAME_THREADS = 256, ATOM_CA = 1, ATOM_CB = 3, GLYCINE = 7, RESTYPES = 21 };

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
        kernel<<<blocks_for((count), THREADS), THREADS, 0, context->stream>>>(__VA_ARGS__);                            \
        return cuda_launched(#kernel);                                                                                 \
    } while (0)

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

/* ---- frames [N,7]
 * --------------------------------------------------------------------------------------------------------- */

/* y = f with the rotation times a and the translation times b; identity: f NULL */
__global__ void frame_parts_kernel(int64_t n, const float *f, float a, float b, float *y)
{
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

/* q + q (0, b, c, d), not normalised; returns its length */
__device__ double quat_updated(const float *q, const float *u, double *out)
{
    double w = q[0], x = q[1], y = q[2], z = q[3], b = u[0], c = u[1], d = u[2];
    out[0] = w - x * b - y * c - z * d;
    out[1] = x + w * b + y * d - z * c;
    out[2] = y + w * c + z * b - x * d;
    out[3] = z + w * d + x * c - y * b;
    return sqrt(out[0] * out[0] + out[1] * out[1] + out[2] * out[2] + out[3] * out[3]);
}

__global__ void frame_update_kernel(int64_t n, const float *frames, const float *updates, float *out)
{
    FOR_EACH(i, n)
    const float *f = frames + 7 * i, *u = updates + 6 * i;
    float *y = out + 7 * i;
    double q[4], step[3], move[3], norm = quat_updated(f, u, q);
    Rigid old = rigid_from_frame(f); /* the old rotation moves the translation */
    vector_load(u + 3, step);
    rot_apply(old.r, step, move);
    for (int k = 0; k < 4; k++) y[k] = (float)(q[k] / norm);
    for (int k = 0; k < 3; k++) y[4 + k] = (float)(old.t[k] + move[k]);
}

static Status update(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(frame_update_kernel, n, n, F32_IN(0), F32_IN(1), F32_OUT(0));
}

__global__ void frame_update_bwd_kernel(int64_t n, const float *grads, const float *frames, const float *updates,
                                        float *dframes, float *dupdates)
{
    FOR_EACH(i, n)
    const float *dy = grads + 7 * i, *f = frames + 7 * i, *u = updates + 6 * i;
    float *df = dframes + 7 * i, *du = dupdates + 6 * i;
    double p[4], d[4], step[3], moved[3], dstep[3], dot = 0, norm = quat_updated(f, u, p);
    Rigid old = rigid_from_frame(f), g = {{0}, {0}};
    vector_load(u + 3, step);
    vector_load(dy + 4, moved);
    rot_add_outer(g.r, moved, step);
    vector_load(dy + 4, g.t);
    rigid_to_frame_bwd(f, &g, df);
    rot_apply_t(old.r, moved, dstep);
    vector_store(dstep, du + 3);
    for (int k = 0; k < 4; k++) dot += p[k] / norm * (double)dy[k];
    for (int k = 0; k < 4; k++) d[k] = ((double)dy[k] - p[k] / norm * dot) / norm;
    df[0] += (float)(d[0] + u[0] * d[1] + u[1] * d[2] + u[2] * d[3]);
    df[1] += (float)(d[1] - u[0] * d[0] - u[2] * d[2] + u[1] * d[3]);
    df[2] += (float)(d[2] - u[1] * d[0] + u[2] * d[1] - u[0] * d[3]);
    df[3] += (float)(d[3] - u[2] * d[0] - u[1] * d[1] + u[0] * d[2]);
    du[0] = (float)(-f[1] * d[0] + f[0] * d[1] + f[3] * d[2] - f[2] * d[3]);
    du[1] = (float)(-f[2] * d[0] - f[3] * d[1] + f[0] * d[2] + f[1] * d[3]);
    du[2] = (float)(-f[3] * d[0] + f[2] * d[1] - f[1] * d[2] + f[0] * d[3]);
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
    FOR_EACH(e, n * points)
    int64_t i = e / points, p = e % points;
    Rigid f = rigid_from_frame(frames + 7 * i);
    const float *x = in + 3 * points * i;
    double v[3] = {x[p], x[points + p], x[2 * points + p]}, y[3];
    rot_apply(f.r, v, y);
    for (int a = 0; a < 3; a++) y[a] += f.t[a];
    vector_store(y, out + 3 * e);
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
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= n) return;
    Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
    const float *x = in + 3 * points * i;
    float *dx = dpoints + 3 * points * i;
    for (int64_t p = threadIdx.x % WARP; p < points; p += WARP) {
        double v[3] = {x[p], x[points + p], x[2 * points + p]}, dy[3], d[3];
        vector_load(grads + 3 * (points * i + p), dy);
        rot_apply_t(f.r, dy, d);
        rot_add_outer(g.r, dy, v);
        for (int a = 0; a < 3; a++) {
            dx[a * points + p] = (float)d[a];
            g.t[a] += dy[a];
        }
    }
    store_frame_sum(frames + 7 * i, &g, dframes + 7 * i);
}

static Status to_global_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    LAUNCH(to_global_bwd_kernel, WARP * n, n, points, F32_IN(0), F32_IN(1), F32_IN(2), F32_OUT(0), F32_OUT(1));
}

__global__ void to_local_kernel(int64_t n, int64_t points, const float *frames, const float *in, float *out)
{
    FOR_EACH(e, n * points)
    Rigid f = rigid_from_frame(frames + 7 * (e / points));
    double v[3], y[3];
    for (int a = 0; a < 3; a++) v[a] = in[3 * e + a] - f.t[a];
    rot_apply_t(f.r, v, y);
    vector_store(y, out + 3 * e);
}

static Status to_local(CudaContext *context, const OpCall *call)
{
    int64_t n = call->out_tensor[0]->dim[0], points = call->out_tensor[0]->dim[1];
    LAUNCH(to_local_kernel, n * points, n, points, F32_IN(0), F32_IN(1), F32_OUT(0));
}

__global__ void to_local_bwd_kernel(int64_t n, int64_t points, const float *grads, const float *frames, const float *in,
                                    float *dframes, float *dpoints)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= n) return;
    Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
    for (int64_t p = points * i + threadIdx.x % WARP; p < points * (i + 1); p += WARP) {
        double v[3], dy[3], d[3];
        for (int a = 0; a < 3; a++) v[a] = in[3 * p + a] - f.t[a];
        vector_load(grads + 3 * p, dy);
        rot_apply(f.r, dy, d);
        rot_add_outer(g.r, v, dy);
        for (int a = 0; a < 3; a++) g.t[a] -= d[a];
        vector_store(d, dpoints + 3 * p);
    }
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
    FOR_EACH(i, n)
    double v[2] = {x[2 * i], x[2 * i + 1]}, s = v[0] * v[0] + v[1] * v[1], norm = sqrt(s > eps ? s : eps);
    for (int k = 0; k < 2; k++) y[2 * i + k] = (float)(v[k] / norm);
}

static Status normalize(CudaContext *context, const OpCall *call)
{
    int64_t n = tensor_rows(call->in_tensor[0]);
    LAUNCH(normalize_kernel, n, n, call->op->attr.f[0], F32_IN(0), F32_OUT(0));
}

__global__ void normalize_bwd_kernel(int64_t n, double eps, const float *dy, const float *x, float *dx)
{
    FOR_EACH(i, n)
    double v[2] = {x[2 * i], x[2 * i + 1]}, d[2] = {dy[2 * i], dy[2 * i + 1]}, s = v[0] * v[0] + v[1] * v[1];
    double norm = sqrt(s > eps ? s : eps);
    double along = s >= eps ? (v[0] * d[0] + v[1] * d[1]) / s : 0; /* below eps the divisor is constant */
    for (int k = 0; k < 2; k++) dx[2 * i + k] = (float)((d[k] - v[k] * along) / norm);
}

static Status normalize_bwd(CudaContext *context, const OpCall *call)
{
    int64_t n = tensor_rows(call->in_tensor[1]);
    LAUNCH(normalize_bwd_kernel, n, n, call->op->attr.f[0], F32_IN(0), F32_IN(1), F32_OUT(0));
}

__global__ void torsion_frames_kernel(int64_t n, const float *frames, const float *angles, const int32_t *aatype,
                                      const float *tables, float *out)
{
    FOR_EACH(i, n)
    Rigid backbone = rigid_from_frame(frames + 7 * i);
    Groups groups;
    groups_build(angles + 14 * i, tables + 16 * GROUPS * residue_type(aatype, i), &groups);
    for (int g = 0; g < GROUPS; g++) {
        Rigid world = rigid_compose(&backbone, &groups.chain[g]);
        rigid_to_4x4(&world, out + 16 * (GROUPS * i + g));
    }
}

static Status torsion_frames(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(torsion_frames_kernel, n, n, F32_IN(0), F32_IN(1), (const int32_t *)call->in[2], F32_IN(3), F32_OUT(0));
}

__global__ void torsion_frames_bwd_kernel(int64_t n, const float *grads, const float *frames, const float *angles,
                                          const int32_t *aatype, const float *tables, float *dframes, float *dangles)
{
    FOR_EACH(i, n)
    Rigid backbone = rigid_from_frame(frames + 7 * i), dbackbone = {{0}, {0}}, dchain[GROUPS];
    Groups groups;
    groups_build(angles + 14 * i, tables + 16 * GROUPS * residue_type(aatype, i), &groups);
    for (int g = 0; g < GROUPS; g++) {
        Rigid dworld = rigid_from_4x4(grads + 16 * (GROUPS * i + g));
        rigid_compose_bwd(&backbone, &groups.chain[g], &dworld, &dbackbone, &dchain[g]);
    }
    for (int g = GROUPS - 1; g >= 1; g--) {
        Rigid dlocal = dchain[g];
        if (g >= FIRST_CHAINED)
            rigid_compose_bwd(&groups.chain[g - 1], &groups.local[g], &dchain[g], &dchain[g - 1], &dlocal);
        double dm[9];
        rot_mul_tn(groups.start[g].r, dlocal.r, dm);
        dangles[14 * i + 2 * (g - 1)] = (float)(dm[7] - dm[5]);
        dangles[14 * i + 2 * (g - 1) + 1] = (float)(dm[4] + dm[8]);
    }
    rigid_to_frame_bwd(frames + 7 * i, &dbackbone, dframes + 7 * i);
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
    FOR_EACH(e, 3 * n)
    int64_t i = e / 3;
    out[e] = x[3 * (ATOMS37 * i + (aatype[i] == GLYCINE ? ATOM_CA : ATOM_CB)) + e % 3];
}

static Status pseudo_beta(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    LAUNCH(pseudo_beta_kernel, 3 * n, n, F32_IN(0), (const int32_t *)call->in[1], F32_OUT(0));
}

__device__ double distance(const float *a, const float *b, double eps)
{
    double x = (double)a[0] - b[0], y = (double)a[1] - b[1], z = (double)a[2] - b[2];
    return sqrt(eps + (x * x + y * y + z * z));
}

/* Algorithm 26, a block per residue: the naming of symmetric atoms whose distances to the unambiguous atoms fit better.
 */
__global__ void rename_kernel(int64_t n, double eps, const float *x, const float *gt, const float *alt,
                              const float *exists, const float *alt_exists, const float *ambiguous, float *better,
                              float *gt_out, float *exists_out)
{
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
            double d = distance(x + 3 * a, x + 3 * b, eps);
            double e = d - distance(gt + 3 * a, gt + 3 * b, eps), f = d - distance(alt + 3 * a, alt + 3 * b, eps);
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
    rename_kernel<<<(unsigned)n, RENAME_THREADS, 0, context->stream>>>(n, call->op->attr.f[0], F32_IN(0), F32_IN(1),
                                                                       F32_IN(2), F32_IN(3), F32_IN(4), F32_IN(5),
                                                                       F32_OUT(0), F32_OUT(1), F32_OUT(2));
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
