/* Frames, points and angles (AlphaFold2 supplement, algorithms 20 and 23). Frames are [N,7]. */
#include <string.h>
#include <math.h>

#include "kernels/cpu/ops/rigid.h"

static Status identity(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    real *f = call->out[0];
    int64_t n = call->out_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < 7; k++) f[7 * i + k] = k == 0;
    return OK;
}

/* q + q (0, b, c, d), not normalised; returns its length */
static double quat_updated(const real *q, const real *u, double *out)
{
    double w = q[0], x = q[1], y = q[2], z = q[3], b = u[0], c = u[1], d = u[2];
    out[0] = w - x * b - y * c - z * d;
    out[1] = x + w * b + y * d - z * c;
    out[2] = y + w * c + z * b - x * d;
    out[3] = z + w * d + x * c - y * b;
    return sqrt(out[0] * out[0] + out[1] * out[1] + out[2] * out[2] + out[3] * out[3]);
}

static Status update(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *updates = call->in[1];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++) {
        const real *f = frames + 7 * i, *u = updates + 6 * i;
        real *y = out + 7 * i;
        double q[4], step[3], move[3], norm = quat_updated(f, u, q);
        Rigid old = rigid_from_frame(f); /* the old rotation moves the translation */
        vector_load(u + 3, step);
        rot_apply(old.r, step, move);
        for (int k = 0; k < 4; k++) y[k] = (real)(q[k] / norm);
        for (int k = 0; k < 3; k++) y[4 + k] = (real)(old.t[k] + move[k]);
    }
    return OK;
}

static void update_row_bwd(const real *dy, const real *f, const real *u, real *df, real *du)
{
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
    df[0] += (real)(d[0] + u[0] * d[1] + u[1] * d[2] + u[2] * d[3]);
    df[1] += (real)(d[1] - u[0] * d[0] - u[2] * d[2] + u[1] * d[3]);
    df[2] += (real)(d[2] - u[1] * d[0] + u[2] * d[1] - u[0] * d[3]);
    df[3] += (real)(d[3] - u[2] * d[0] - u[1] * d[1] + u[0] * d[2]);
    du[0] = (real)(-f[1] * d[0] + f[0] * d[1] + f[3] * d[2] - f[2] * d[3]);
    du[1] = (real)(-f[2] * d[0] - f[3] * d[1] + f[0] * d[2] + f[1] * d[3]);
    du[2] = (real)(-f[3] * d[0] + f[2] * d[1] - f[1] * d[2] + f[0] * d[3]);
}

static Status update_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0], *frames = call->in[1], *updates = call->in[2];
    real *df = call->out[0], *du = call->out[1];
    int64_t n = call->in_tensor[1]->dim[0];
    for (int64_t i = 0; i < n; i++) update_row_bwd(dy + 7 * i, frames + 7 * i, updates + 6 * i, df + 7 * i, du + 6 * i);
    return OK;
}

static Status stop_rotation(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    memcpy(call->out[0], call->in[0], sizeof(real) * (size_t)tensor_count(call->in_tensor[0]));
    return OK;
}

static Status stop_rotation_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0];
    real *dx = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < 7; k++) dx[7 * i + k] = k < 4 ? 0 : dy[7 * i + k];
    return OK;
}

static Status scale(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *f = call->in[0];
    real *y = call->out[0], factor = (real)call->op->attr.f[0];
    int64_t n = call->in_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < 7; k++) y[7 * i + k] = k < 4 ? f[7 * i + k] : f[7 * i + k] * factor;
    return OK;
}

static Status to_global(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *in = call->in[1];
    real *out = call->out[0];
    int64_t n = call->out_tensor[0]->dim[0], points = call->out_tensor[0]->dim[1];
    for (int64_t i = 0; i < n; i++) {
        Rigid f = rigid_from_frame(frames + 7 * i);
        const real *x = in + 3 * points * i;
        for (int64_t p = 0; p < points; p++) {
            double v[3] = {x[p], x[points + p], x[2 * points + p]}, y[3];
            rot_apply(f.r, v, y);
            for (int a = 0; a < 3; a++) y[a] += f.t[a];
            vector_store(y, out + 3 * (points * i + p));
        }
    }
    return OK;
}

static Status to_global_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *grads = call->in[0], *frames = call->in[1], *in = call->in[2];
    real *dframes = call->out[0], *dpoints = call->out[1];
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    for (int64_t i = 0; i < n; i++) {
        Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
        const real *x = in + 3 * points * i;
        real *dx = dpoints + 3 * points * i;
        for (int64_t p = 0; p < points; p++) {
            double v[3] = {x[p], x[points + p], x[2 * points + p]}, dy[3], d[3];
            vector_load(grads + 3 * (points * i + p), dy);
            rot_apply_t(f.r, dy, d);
            rot_add_outer(g.r, dy, v);
            for (int a = 0; a < 3; a++) {
                dx[a * points + p] = (real)d[a];
                g.t[a] += dy[a];
            }
        }
        rigid_to_frame_bwd(frames + 7 * i, &g, dframes + 7 * i);
    }
    return OK;
}

static Status to_local(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *in = call->in[1];
    real *out = call->out[0];
    int64_t n = call->out_tensor[0]->dim[0], points = call->out_tensor[0]->dim[1];
    for (int64_t i = 0; i < n; i++) {
        Rigid f = rigid_from_frame(frames + 7 * i);
        for (int64_t p = points * i; p < points * (i + 1); p++) {
            double v[3], y[3];
            for (int a = 0; a < 3; a++) v[a] = in[3 * p + a] - f.t[a];
            rot_apply_t(f.r, v, y);
            vector_store(y, out + 3 * p);
        }
    }
    return OK;
}

static Status to_local_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *grads = call->in[0], *frames = call->in[1], *in = call->in[2];
    real *dframes = call->out[0], *dpoints = call->out[1];
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    for (int64_t i = 0; i < n; i++) {
        Rigid f = rigid_from_frame(frames + 7 * i), g = {{0}, {0}};
        for (int64_t p = points * i; p < points * (i + 1); p++) {
            double v[3], dy[3], d[3];
            for (int a = 0; a < 3; a++) v[a] = in[3 * p + a] - f.t[a];
            vector_load(grads + 3 * p, dy);
            rot_apply(f.r, dy, d);
            rot_add_outer(g.r, v, dy);
            for (int a = 0; a < 3; a++) g.t[a] -= d[a];
            vector_store(d, dpoints + 3 * p);
        }
        rigid_to_frame_bwd(frames + 7 * i, &g, dframes + 7 * i);
    }
    return OK;
}

static Status normalize(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *x = call->in[0];
    real *y = call->out[0];
    double eps = call->op->attr.f[0];
    int64_t n = tensor_rows(call->in_tensor[0]);
    for (int64_t i = 0; i < n; i++) {
        double v[2] = {x[2 * i], x[2 * i + 1]}, s = v[0] * v[0] + v[1] * v[1];
        double norm = sqrt(s > eps ? s : eps);
        for (int k = 0; k < 2; k++) y[2 * i + k] = (real)(v[k] / norm);
    }
    return OK;
}

static Status normalize_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0], *x = call->in[1];
    real *dx = call->out[0];
    double eps = call->op->attr.f[0];
    int64_t n = tensor_rows(call->in_tensor[1]);
    for (int64_t i = 0; i < n; i++) {
        double v[2] = {x[2 * i], x[2 * i + 1]}, d[2] = {dy[2 * i], dy[2 * i + 1]}, s = v[0] * v[0] + v[1] * v[1];
        double norm = sqrt(s > eps ? s : eps);
        double along = s >= eps ? (v[0] * d[0] + v[1] * d[1]) / s : 0; /* below eps the divisor is constant */
        for (int k = 0; k < 2; k++) dx[2 * i + k] = (real)((d[k] - v[k] * along) / norm);
    }
    return OK;
}

const CpuEntry FN(cpu_rigid)[] = {{OP_FRAME_IDENTITY, identity, NULL},
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
                                  {OP_TORSION_FRAMES, FN(rigid_torsion_frames), NULL},
                                  {OP_TORSION_FRAMES_BWD, FN(rigid_torsion_frames_bwd), NULL},
                                  {OP_FRAMES_TO_ATOM14, FN(rigid_to_atom14), NULL},
                                  {OP_FRAMES_TO_ATOM14_BWD, FN(rigid_to_atom14_bwd), NULL},
                                  {OP_ATOM14_TO_ATOM37, FN(rigid_to_atom37), NULL},
                                  {OP_PSEUDO_BETA, FN(rigid_pseudo_beta), NULL},
                                  {OP_RENAME_SYMMETRIC, FN(rigid_rename), NULL},
                                  {OP_POINT_FEATURES, FN(ipa_point_features), NULL},
                                  {OP_POINT_FEATURES_BWD, FN(ipa_point_features_bwd), NULL},
                                  {OP_IPA_SCORES, FN(ipa_scores), NULL},
                                  {OP_IPA_SCORES_BWD, FN(ipa_scores_bwd), NULL},
                                  {OP_PAIR_CONTEXT, FN(ipa_pair_context), NULL},
                                  {OP_PAIR_CONTEXT_BWD, FN(ipa_pair_context_bwd), NULL},
                                  {0}};
