/* Rigid groups of a residue (AlphaFold2 supplement, algorithm 24): shared by the CPU and the CUDA kernels. */
#ifndef FOLDSCALE_KERNELS_RIGID_GROUPS_H
#define FOLDSCALE_KERNELS_RIGID_GROUPS_H

#include "kernels/rigid_math.h"

enum { GROUPS = 8, ATOMS = 14, ATOMS37 = 37, FIRST_CHAINED = 5 };

/* Rigid groups of one residue. local[g] = default transform of the group to its parent, turned by its angle about x;
 * chain[g] = group to backbone (chi2..chi4 hang on the group before). */
typedef struct Groups {
    Rigid start[GROUPS], local[GROUPS], chain[GROUPS];
} Groups;

RIGID_INLINE void groups_build(const real *angle, const real *table, Groups *out)
{
    for (int g = 0; g < GROUPS; g++) {
        out->start[g] = out->local[g] = rigid_from_4x4(table + 16 * g);
        double s = g ? angle[2 * (g - 1)] : 0, c = g ? angle[2 * (g - 1) + 1] : 1;
        for (int a = 0; a < 3; a++) { /* D [[1,0,0],[0,c,-s],[0,s,c]] */
            double y = out->start[g].r[3 * a + 1], z = out->start[g].r[3 * a + 2];
            out->local[g].r[3 * a + 1] = y * c + z * s;
            out->local[g].r[3 * a + 2] = z * c - y * s;
        }
        out->chain[g] = g < FIRST_CHAINED ? out->local[g] : rigid_compose(&out->chain[g - 1], &out->local[g]);
    }
}

#endif
