/* Rigid groups of a residue (AlphaFold2 supplement, algorithm 24). CUDA kernels, which have a thread per group, share
 * the numbers and group_local(); the rest is the CPU's way through all groups of one. */
#ifndef FOLDSCALE_KERNELS_RIGID_GROUPS_H
#define FOLDSCALE_KERNELS_RIGID_GROUPS_H

#include "kernels/rigid_math.h"

enum { GROUPS = 8, ATOMS = 14, ATOMS37 = 37, FIRST_CHAINED = 5 };

/* Rigid groups of one residue. local[g] = default transform of the group to its parent, turned by its angle about x;
 * chain[g] = group to backbone (chi2..chi4 hang on the group before). */
typedef struct Groups {
    Rigid start[GROUPS], local[GROUPS], chain[GROUPS];
} Groups;

/* start = default transform of group g to its parent, local = the same turned by the group's angle about x */
RIGID_INLINE void group_local(const real *angle, const real *table, int g, Rigid *start, Rigid *local)
{
    *start = *local = rigid_from_4x4(table + 16 * g);
    double s = g ? angle[2 * (g - 1)] : 0, c = g ? angle[2 * (g - 1) + 1] : 1;
    for (int a = 0; a < 3; a++) { /* D [[1,0,0],[0,c,-s],[0,s,c]] */
        double y = start->r[3 * a + 1], z = start->r[3 * a + 2];
        local->r[3 * a + 1] = y * c + z * s;
        local->r[3 * a + 2] = z * c - y * s;
    }
}

RIGID_INLINE void groups_build(const real *angle, const real *table, Groups *out)
{
    for (int g = 0; g < GROUPS; g++) {
        group_local(angle, table, g, &out->start[g], &out->local[g]);
        out->chain[g] = g < FIRST_CHAINED ? out->local[g] : rigid_compose(&out->chain[g - 1], &out->local[g]);
    }
}

/* out [8,4,4] = the groups of one residue in the world (algorithm 24): its frame [7], torsions [7,2] as (sin, cos), and
 * the table [8,4,4] of its type */
RIGID_INLINE void groups_to_world(const real *frame, const real *angle, const real *table, real *out)
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
RIGID_INLINE void groups_to_world_bwd(const real *grads, const real *frame, const real *angle, const real *table,
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
        double dm[9];
        rot_mul_tn(groups.start[g].r, dlocal.r, dm);
        dangle[2 * (g - 1)] = (real)(dm[7] - dm[5]);
        dangle[2 * (g - 1) + 1] = (real)(dm[4] + dm[8]);
    }
    rigid_to_frame_bwd(frame, &dbackbone, dframe);
}

#endif
