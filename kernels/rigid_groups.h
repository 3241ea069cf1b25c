/* A rigid group of a residue (AlphaFold2 supplement, algorithm 24), for the CPU, which walks all groups of a residue,
 * and for CUDA kernels, which have a thread per group. */
#ifndef FOLDSCALE_KERNELS_RIGID_GROUPS_H
#define FOLDSCALE_KERNELS_RIGID_GROUPS_H

#include "kernels/rigid_math.h"

enum { GROUPS = 8, ATOMS = 14, ATOMS37 = 37, FIRST_CHAINED = 5 };

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

/* Gradient of the group's angle, given that of local. */
RIGID_INLINE void group_angle_bwd(const Rigid *start, const Rigid *dlocal, real *dangle)
{
    double dm[9];
    rot_mul_tn(start->r, dlocal->r, dm);
    dangle[0] = (real)(dm[7] - dm[5]);
    dangle[1] = (real)(dm[4] + dm[8]);
}

#endif
