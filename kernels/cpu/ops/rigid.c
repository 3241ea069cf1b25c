/* Frames, points and angles (AlphaFold2 supplement, algorithms 20 and 23). Frames are [N,7]. */
#include <string.h>

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

static Status update(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *updates = call->in[1];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++) frame_update(frames + 7 * i, updates + 6 * i, out + 7 * i);
    return OK;
}

static Status update_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0], *frames = call->in[1], *updates = call->in[2];
    real *df = call->out[0], *du = call->out[1];
    int64_t n = call->in_tensor[1]->dim[0];
    for (int64_t i = 0; i < n; i++)
        frame_update_bwd(dy + 7 * i, frames + 7 * i, updates + 6 * i, df + 7 * i, du + 6 * i);
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
        for (int64_t p = 0; p < points; p++) point_to_global(&f, x + p, points, out + 3 * (points * i + p));
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
        for (int64_t p = 0; p < points; p++)
            point_to_global_bwd(&f, grads + 3 * (points * i + p), x + p, points, dx + p, &g);
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
        for (int64_t p = points * i; p < points * (i + 1); p++) point_to_local(&f, in + 3 * p, out + 3 * p);
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
        for (int64_t p = points * i; p < points * (i + 1); p++)
            point_to_local_bwd(&f, grads + 3 * p, in + 3 * p, dpoints + 3 * p, &g);
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
    for (int64_t i = 0; i < n; i++) angle_normalize(x + 2 * i, eps, y + 2 * i);
    return OK;
}

static Status normalize_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0], *x = call->in[1];
    real *dx = call->out[0];
    double eps = call->op->attr.f[0];
    int64_t n = tensor_rows(call->in_tensor[1]);
    for (int64_t i = 0; i < n; i++) angle_normalize_bwd(dy + 2 * i, x + 2 * i, eps, dx + 2 * i);
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
                                  {OP_IPA_ATTENTION, FN(ipa_attention), FN(ipa_attention_scratch)},
                                  {OP_IPA_ATTENTION_BWD, FN(ipa_attention_bwd), NULL},
                                  {OP_PAIR_CONTEXT, FN(ipa_pair_context), NULL},
                                  {OP_PAIR_CONTEXT_DP, FN(ipa_pair_context_dp), NULL},
                                  {OP_PAIR_CONTEXT_DZ, FN(ipa_pair_context_dz), NULL},
                                  {0}};
