/* From torsion angles to atoms (AlphaFold2 supplement, algorithms 24 and 26). */
#include <string.h>
#include <math.h>

#include "kernels/cpu/ops/rigid.h"

#include "kernels/rigid_groups.h"

/* Residue types come from a file: one out of range would read outside the tables. */
static Status check_types(const OpCall *call, int input, int64_t n, int limit)
{
    const int32_t *aatype = call->in[input];
    for (int64_t i = 0; i < n; i++)
        if (aatype[i] < 0 || aatype[i] >= limit)
            return status_fail(ERR_INPUT, "residue %lld: type or index %d outside 0..%d", (long long)i, (int)aatype[i],
                               limit - 1);
    return OK;
}

/* Rigid groups of one residue. local[g] = default transform of the group to its parent, turned by its angle about x;
 * chain[g] = group to backbone (chi2..chi4 hang on the group before). */
typedef struct Groups {
    Rigid start[GROUPS], local[GROUPS], chain[GROUPS];
} Groups;

static void groups_build(const real *angle, const real *table, Groups *out)
{
    for (int g = 0; g < GROUPS; g++) {
        group_local(angle, table, g, &out->start[g], &out->local[g]);
        out->chain[g] = g < FIRST_CHAINED ? out->local[g] : rigid_compose(&out->chain[g - 1], &out->local[g]);
    }
}

/* out [8,4,4] = the groups of one residue in the world (algorithm 24): its frame [7], torsions [7,2] as (sin, cos), and
 * the table [8,4,4] of its type */
static void groups_to_world(const real *frame, const real *angle, const real *table, real *out)
{
    Rigid backbone = rigid_from_frame(frame);
    Groups groups;
    groups_build(angle, table, &groups);
    for (int g = 0; g < GROUPS; g++) {
        Rigid world = rigid_compose(&backbone, &groups.chain[g]);
        rigid_to_4x4(&world, out + 16 * g);
    }
}

/* Gradients of groups_to_world, given those of out. */
static void groups_to_world_bwd(const real *grads, const real *frame, const real *angle, const real *table,
                                real *dframe, real *dangle)
{
    Rigid backbone = rigid_from_frame(frame), dbackbone = {{0}, {0}}, dchain[GROUPS];
    Groups groups;
    groups_build(angle, table, &groups);
    for (int g = 0; g < GROUPS; g++) {
        Rigid dworld = rigid_from_4x4(grads + 16 * g);
        rigid_compose_bwd(&backbone, &groups.chain[g], &dworld, &dbackbone, &dchain[g]);
    }
    for (int g = GROUPS - 1; g >= 1; g--) {
        Rigid dlocal = dchain[g];
        if (g >= FIRST_CHAINED)
            rigid_compose_bwd(&groups.chain[g - 1], &groups.local[g], &dchain[g], &dchain[g - 1], &dlocal);
        group_angle_bwd(&groups.start[g], &dlocal, dangle + 2 * (g - 1));
    }
    rigid_to_frame_bwd(frame, &dbackbone, dframe);
}

Status FN(rigid_torsion_frames)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *angles = call->in[1], *tables = call->in[3];
    const int32_t *aatype = call->in[2];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    TRY(check_types(call, 2, n, 21));
    for (int64_t i = 0; i < n; i++)
        groups_to_world(frames + 7 * i, angles + 14 * i, tables + 16 * GROUPS * aatype[i], out + 16 * GROUPS * i);
    return OK;
}

Status FN(rigid_torsion_frames_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *grads = call->in[0], *frames = call->in[1], *angles = call->in[2], *tables = call->in[4];
    const int32_t *aatype = call->in[3];
    real *dframes = call->out[0], *dangles = call->out[1];
    int64_t n = call->in_tensor[1]->dim[0];
    TRY(check_types(call, 3, n, 21));
    for (int64_t i = 0; i < n; i++)
        groups_to_world_bwd(grads + 16 * GROUPS * i, frames + 7 * i, angles + 14 * i, tables + 16 * GROUPS * aatype[i],
                            dframes + 7 * i, dangles + 14 * i);
    return OK;
}

Status FN(rigid_to_atom14)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *frames = call->in[0], *masks = call->in[3], *positions = call->in[4];
    const int32_t *aatype = call->in[1], *group = call->in[2];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    TRY(check_types(call, 1, n, 21));
    for (int64_t i = 0; i < n; i++)
        for (int a = 0; a < ATOMS; a++) {
            int64_t slot = ATOMS * aatype[i] + a;
            Rigid f = rigid_from_4x4(frames + 16 * (GROUPS * i + group[slot]));
            double x[3], y[3];
            vector_load(positions + 3 * slot, x);
            rot_apply(f.r, x, y);
            for (int k = 0; k < 3; k++) y[k] = (y[k] + f.t[k]) * (double)masks[slot];
            vector_store(y, out + 3 * (ATOMS * i + a));
        }
    return OK;
}

Status FN(rigid_to_atom14_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *grads = call->in[0], *masks = call->in[3], *positions = call->in[4];
    const int32_t *aatype = call->in[1], *group = call->in[2];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    TRY(check_types(call, 1, n, 21));
    memset(out, 0, sizeof(real) * (size_t)(16 * GROUPS * n));
    for (int64_t i = 0; i < n; i++)
        for (int a = 0; a < ATOMS; a++) {
            int64_t slot = ATOMS * aatype[i] + a;
            real *g = out + 16 * (GROUPS * i + group[slot]);
            for (int k = 0; k < 3; k++) {
                real d = grads[3 * (ATOMS * i + a) + k] * masks[slot];
                for (int j = 0; j < 3; j++) g[4 * k + j] += d * positions[3 * slot + j];
                g[4 * k + 3] += d;
            }
        }
    return OK;
}

Status FN(rigid_to_atom37)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *x = call->in[0], *exists = call->in[2];
    const int32_t *index = call->in[1];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    TRY(check_types(call, 1, n * ATOMS37, ATOMS));
    for (int64_t e = 0; e < n * ATOMS37; e++)
        for (int k = 0; k < 3; k++) out[3 * e + k] = x[3 * (ATOMS * (e / ATOMS37) + index[e]) + k] * exists[e];
    return OK;
}

Status FN(rigid_pseudo_beta)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    enum { GLYCINE = 7, CA = 1, CB = 3 };
    const real *x = call->in[0];
    const int32_t *aatype = call->in[1];
    real *out = call->out[0];
    int64_t n = call->in_tensor[0]->dim[0];
    for (int64_t i = 0; i < n; i++)
        memcpy(out + 3 * i, x + 3 * (ATOMS37 * i + (aatype[i] == GLYCINE ? CA : CB)), 3 * sizeof(real));
    return OK;
}

/* Algorithm 26: of the two namings of symmetric atoms the one whose distances to the unambiguous atoms fit better. */
Status FN(rigid_rename)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *x = call->in[0], *gt = call->in[1], *alt = call->in[2];
    const real *exists = call->in[3], *alt_exists = call->in[4], *ambiguous = call->in[5];
    real *better = call->out[0], *gt_out = call->out[1], *exists_out = call->out[2];
    double eps = call->op->attr.f[0];
    int64_t n = call->in_tensor[0]->dim[0];
#pragma omp parallel for if (n > 64)
    for (int64_t i = 0; i < n; i++) {
        double lddt = 0, alt_lddt = 0;
        for (int64_t a = ATOMS * i; a < ATOMS * (i + 1); a++) {
            double row = exists[a] * ambiguous[a];
            if (row == 0) continue;
            for (int64_t b = 0; b < ATOMS * n; b++) {
                double mask = row * exists[b] * (1 - ambiguous[b]);
                if (mask == 0) continue;
                double d = point_distance(x + 3 * a, x + 3 * b, eps);
                double e = d - point_distance(gt + 3 * a, gt + 3 * b, eps),
                       f = d - point_distance(alt + 3 * a, alt + 3 * b, eps);
                lddt += mask * sqrt(eps + e * e);
                alt_lddt += mask * sqrt(eps + f * f);
            }
        }
        bool swap = alt_lddt < lddt;
        better[i] = swap;
        for (int64_t a = ATOMS * i; a < ATOMS * (i + 1); a++) {
            memcpy(gt_out + 3 * a, (swap ? alt : gt) + 3 * a, 3 * sizeof(real));
            exists_out[a] = (swap ? alt_exists : exists)[a];
        }
    }
    return OK;
}
