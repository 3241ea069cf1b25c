/* Frames, points and angles (AlphaFold2 supplement, algorithms 20 and 23). Frames are [N,7]. */
#include <string.h>
#include <tgmath.h>

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

/* q + q (0, b, c, d), not normalised */
static void quat_updated(const real *q, const real *u, real *out)
{
    out[0] = q[0] - q[1] * u[0] - q[2] * u[1] - q[3] * u[2];
    out[1] = q[1] + q[0] * u[0] + q[2] * u[2] - q[3] * u[1];
    out[2] = q[2] + q[0] * u[1] + q[3] * u[0] - q[1] * u[2];
    out[3] = q[3] + q[0] * u[2] + q[1] * u[1] - q[2] * u[0];
}

static Status update(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *updates = call->in[1];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++) {
        const real *f = frames + 7 * i, *u = updates + 6 * i;
        real *y = out + 7 * i, q[4], rot[9], move[3];
        quat_updated(f, u, q);
        real norm = sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
        rot_from_quat(f, rot); /* the old rotation moves the translation */
        rot_apply(rot, u + 3, move);
        for (int k = 0; k < 4; k++) y[k] = q[k] / norm;
        for (int k = 0; k < 3; k++) y[4 + k] = f[4 + k] + move[k];
    }
    return OK;
}

static Status update_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *grads = call->in[0], *frames = call->in[1], *updates = call->in[2];
    real *dframes = call->out[0], *dupdates = call->out[1];
    int64_t n = call->in_tensor[1]->dim[0];
    for (int64_t i = 0; i < n; i++) {
        const real *dy = grads + 7 * i, *q = frames + 7 * i, *u = updates + 6 * i;
        real *df = dframes + 7 * i, *du = dupdates + 6 * i;
        real p[4], d[4], rot[9], g[9] = {0}, dot = 0;
        quat_updated(q, u, p);
        real norm = sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2] + p[3] * p[3]);
        for (int k = 0; k < 4; k++) dot += p[k] / norm * dy[k];
        for (int k = 0; k < 4; k++) d[k] = (dy[k] - p[k] / norm * dot) / norm;
        df[0] = d[0] + u[0] * d[1] + u[1] * d[2] + u[2] * d[3];
        df[1] = d[1] - u[0] * d[0] - u[2] * d[2] + u[1] * d[3];
        df[2] = d[2] - u[1] * d[0] + u[2] * d[1] - u[0] * d[3];
        df[3] = d[3] - u[2] * d[0] - u[1] * d[1] + u[0] * d[2];
        du[0] = -q[1] * d[0] + q[0] * d[1] + q[3] * d[2] - q[2] * d[3];
        du[1] = -q[2] * d[0] - q[3] * d[1] + q[0] * d[2] + q[1] * d[3];
        du[2] = -q[3] * d[0] + q[2] * d[1] - q[1] * d[2] + q[0] * d[3];
        rot_from_quat(q, rot);
        rot_apply_t(rot, dy + 4, du + 3);
        rot_add_outer(g, dy + 4, u + 3);
        rot_from_quat_bwd(q, g, df);
        for (int k = 4; k < 7; k++) df[k] = dy[k];
    }
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
            real v[3] = {x[p], x[points + p], x[2 * points + p]}, *y = out + 3 * (points * i + p);
            rot_apply(f.r, v, y);
            for (int a = 0; a < 3; a++) y[a] += f.t[a];
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
        real *dx = dpoints + 3 * points * i, *df = dframes + 7 * i;
        for (int64_t p = 0; p < points; p++) {
            const real *dy = grads + 3 * (points * i + p);
            real v[3] = {x[p], x[points + p], x[2 * points + p]}, d[3];
            rot_apply_t(f.r, dy, d);
            rot_add_outer(g.r, dy, v);
            for (int a = 0; a < 3; a++) {
                dx[a * points + p] = d[a];
                g.t[a] += dy[a];
            }
        }
        memset(df, 0, 4 * sizeof(real));
        rot_from_quat_bwd(frames + 7 * i, g.r, df);
        memcpy(df + 4, g.t, sizeof g.t);
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
            real v[3];
            for (int a = 0; a < 3; a++) v[a] = in[3 * p + a] - f.t[a];
            rot_apply_t(f.r, v, out + 3 * p);
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
        real *df = dframes + 7 * i;
        for (int64_t p = points * i; p < points * (i + 1); p++) {
            real v[3];
            for (int a = 0; a < 3; a++) v[a] = in[3 * p + a] - f.t[a];
            rot_apply(f.r, grads + 3 * p, dpoints + 3 * p);
            rot_add_outer(g.r, v, grads + 3 * p);
            for (int a = 0; a < 3; a++) g.t[a] -= dpoints[3 * p + a];
        }
        memset(df, 0, 4 * sizeof(real));
        rot_from_quat_bwd(frames + 7 * i, g.r, df);
        memcpy(df + 4, g.t, sizeof g.t);
    }
    return OK;
}

static Status normalize(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *x = call->in[0];
    real *y = call->out[0], eps = (real)call->op->attr.f[0];
    int64_t n = tensor_rows(call->in_tensor[0]);
    for (int64_t i = 0; i < n; i++) {
        real s = x[2 * i] * x[2 * i] + x[2 * i + 1] * x[2 * i + 1];
        real norm = sqrt(s > eps ? s : eps);
        for (int k = 0; k < 2; k++) y[2 * i + k] = x[2 * i + k] / norm;
    }
    return OK;
}

static Status normalize_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0], *x = call->in[1];
    real *dx = call->out[0], eps = (real)call->op->attr.f[0];
    int64_t n = tensor_rows(call->in_tensor[1]);
    for (int64_t i = 0; i < n; i++) {
        const real *v = x + 2 * i, *d = dy + 2 * i;
        real s = v[0] * v[0] + v[1] * v[1];
        real norm = sqrt(s > eps ? s : eps);
        real along = s >= eps ? (v[0] * d[0] + v[1] * d[1]) / s : 0; /* below eps the divisor is constant */
        for (int k = 0; k < 2; k++) dx[2 * i + k] = (d[k] - v[k] * along) / norm;
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
