/* Gradient checks of frames, invariant point attention and losses. Reports of a loss (outputs 1 and up) carry no
 * gradient. Clamps, tolerances and edges are set where the random inputs fall on both sides of them. */
#ifndef FOLDSCALE_TESTS_GRADCHECK_STRUCTURE_H
#define FOLDSCALE_TESTS_GRADCHECK_STRUCTURE_H

#include "tests/gradcheck.h"

static const double gradcheck_mix[] = {0.3}, gradcheck_resolution[] = {2.0};
static const double gradcheck_residue_index[] = {4, 5, 6, 9}, gradcheck_aatype[] = {3, 14, 7, 18}; /* 14: proline */

/* clang-format off */
static const GradCase gradcheck_structure[] = {
    {OP_FRAME_UPDATE, "", {{0}, {0}}, 0, {G_FRAMES(4, 7), G(4, 6)}},
    {OP_FRAME_STOP_ROTATION, "", {{0}, {0}}, 0, {G_FRAMES_STOPPED(3, 7)}},
    {OP_FRAME_SCALE, "", {{0}, {10.0}}, 0, {G_FRAMES(3, 7)}},
    {OP_POINTS_TO_GLOBAL, "", {{0}, {0}}, 0, {G_FRAMES(3, 7), G(3, 12)}},
    {OP_POINTS_TO_LOCAL, "", {{0}, {0}}, 0, {G_FRAMES(3, 7), G(3, 4, 3)}},
    {OP_ANGLE_NORMALIZE, "", {{0}, {1e-8}}, 0, {G(3, 7, 2)}},
    {OP_ANGLE_NORMALIZE, "clamped norms among them", {{0}, {1.0}}, 0, {G(3, 7, 2)}},
    {OP_TORSION_FRAMES, "", {{0}, {0}}, 0, {G_FRAMES(3, 7), G(3, 7, 2), INTS(0, 21, 3), K(21, 8, 4, 4)}},
    {OP_FRAMES_TO_ATOM14, "", {{0}, {0}}, 0,
     {G(3, 8, 4, 4), INTS(0, 21, 3), INTS(0, 8, 21, 14), MASK(21, 14), K(21, 14, 3)}},

    {OP_POINT_FEATURES, "", {{0}, {1e-8}}, 0, {G(2, 3, 3)}},
    {OP_POINT_FEATURES, "large eps", {{0}, {0.3}}, 0, {G(2, 3, 3)}},
    {OP_IPA_ATTENTION, "", {{2}, {9}}, 0, {G(4, 6), G(4, 12), G(4, 4, 3), G(4, 10, 3), G(2, 4, 4), G(2), MASK(4)}},
    {OP_IPA_ATTENTION, "one head, one point", {{1}, {9}}, 0,
     {G(3, 5), G(3, 10), G(3, 1, 3), G(3, 2, 3), G(1, 3, 3), G(1), MASK(3)}},
    {OP_PAIR_CONTEXT, "", {{0}, {0}}, 0, {G(2, 3, 4), G(3, 4, 5)}},

    {OP_LOSS_FAPE_BACKBONE, "clamped and unclamped mixed", {{0}, {2.0, 10.0, 1e-4}}, 1,
     {G_FRAMES(2, 5, 7), K(5, 4, 4), MASK(5), VALUES(gradcheck_mix, 1)}},
    {OP_LOSS_FAPE_SIDECHAIN, "", {{0}, {2.0, 10.0, 1e-4}}, 0,
     {G(3, 8, 4, 4), G(3, 14, 3), K(3, 8, 4, 4), K(3, 8, 4, 4), MASK(3, 8), MASK(3), K(3, 14, 3), MASK(3, 14)}},
    {OP_LOSS_TORSION, "", {{0}, {0.5, 0.7, 1e-8, 1e-4}}, 1,
     {G(2, 4, 7, 2), G(2, 4, 7, 2), INTS(0, 21, 4), MASK(4), MASK(4, 4), K(4, 4, 2), MASK(21, 4)}},
    {OP_LOSS_DISTOGRAM, "", {{0}, {0.4, 2.5, 1e-8}}, 0, {G(4, 4, 8), K(4, 3), MASK(4)}},
    {OP_LOSS_MASKED_MSA, "", {{0}, {1e-8}}, 0, {G(3, 4, 5), INTS(0, 5, 3, 4), MASK(3, 4)}},
    {OP_LOSS_PLDDT, "", {{0}, {2.0, 0.1, 3.0, 1e-8}}, 1,
     {G(5, 6), K(5, 37, 3), K(5, 37, 3), MASK(5, 37), VALUES(gradcheck_resolution, 1)}},
    {OP_LOSS_RESOLVED, "", {{0}, {0.1, 3.0, 1e-8}}, 0,
     {G(3, 37), MASK(3, 37), MASK(3, 37), VALUES(gradcheck_resolution, 1)}},
    {OP_LOSS_VIOLATION, "", {{0}, {1.0, 0.4, 1e-8}}, 1,
     {G(4, 14, 3), MASK(4, 14), INT_VALUES(gradcheck_residue_index, 4), INT_VALUES(gradcheck_aatype, 4),
      INTS(0, 37, 4, 14), K_POS(37), K_POS(21, 14, 14), K_POS(21, 14, 14), K_POS(4, 2)}},
    {OP_LOSS_TOTAL, "", {{20}, {1.0, 0.3, 2.0}}, 1, {INTS(13, 14, 1), G_SCALAR, G_SCALAR, G_SCALAR}},
};
/* clang-format on */

#endif
