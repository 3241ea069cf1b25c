/* Gradient checks of dense, pointwise, layout, norm, attention, triangle and embed ops. */
#ifndef FOLDSCALE_TESTS_GRADCHECK_TRUNK_H
#define FOLDSCALE_TESTS_GRADCHECK_TRUNK_H

#include "tests/gradcheck.h"

/* clang-format off */
static const GradCase gradcheck_trunk[] = {
    {OP_LINEAR, "no bias", {{0}, {0}}, 0, {G(2, 3, 4), G(5, 4), NONE}},
    {OP_LINEAR, "bias", {{0}, {0}}, 0, {G(2, 3, 4), G(5, 4), G(5)}},
    {OP_LINEAR, "relu", {{1}, {0}}, 0, {G(6, 4), G(5, 4), G(5)}},
    {OP_LINEAR_GROUP, "three, one bias", {{3}, {0}}, 0, {G(2, 3, 4), G(5, 4), NONE, G(2, 4), G(2), G(3, 4), NONE}},
    {OP_LINEAR_GROUP, "one without gradient", {{2}, {0}}, 1, {G(3, 4), G(5, 4), G(5), G(2, 4), G(2)}},
    {OP_LINEAR_RESIDUAL, "sum", {{0}, {0}}, 0, {G(2, 3, 5), G(2, 3, 4), G(5, 4), G(5), NONE, NONE}},
    {OP_LINEAR_RESIDUAL, "dropout, no bias", {{7, 1, 0}, {0.25}}, 0,
     {G(4, 5, 3), G(4, 5, 2), G(3, 2), NONE, NONE, INTS(0, 99, 4)}},
    {OP_LINEAR_RESIDUAL, "gate and dropout", {{7, 0, 1}, {0.25}}, 1,
     {G(4, 5, 3), G(4, 5, 2), G(3, 2), G(3), G(4, 5, 3), INTS(0, 99, 4)}},
    {OP_LINEAR_GATES,
     "two gates, one more, a bias missing",
     {{5, 2, 1}, {0}},
     7,
     {G(2, 3, 4), MASK(2, 3), G(5, 4), G(5), G(5, 4), G(5), G(3, 4), NONE, G(3, 4), G(3), G(2, 4), G(2)}},
    {OP_LINEAR_GATES,
     "channel-first",
     {{4, 2, 1, 1}, {0}},
     3,
     {G(2, 2, 3, 4), MASK(2, 2, 3), G(5, 4), G(5), G(5, 4), G(5), G(2, 4), NONE, G(2, 4), G(2)}},
    {OP_LINEAR_GATES, "gates alone", {{2, 1, 1}, {0}}, 1, {G(7, 4), MASK(7), G(5, 4), NONE, G(5, 4), NONE}},

    {OP_RELU, "", {{0}, {0}}, 0, {G(3, 4)}},
    {OP_ADD, "same shape", {{0}, {0}}, 0, {G(3, 4), G(3, 4)}},
    {OP_ADD, "broadcast", {{0}, {0}}, 0, {G(2, 3, 4), G(4)}},
    {OP_SUM_LEADING, "two axes", {{2}, {0}}, 0, {G(2, 3, 4)}},
    {OP_OUTER_ADD, "", {{0}, {0}}, 0, {G(3, 4), G(2, 4)}},
    {OP_SCALE, "", {{0}, {-1.7}}, 0, {G(3, 4)}},
    {OP_MASK_MUL, "leading axes", {{0}, {0}}, 0, {G(2, 3, 4), MASK(2, 3)}},
    {OP_MASK_MUL, "scalar", {{0}, {0}}, 0, {G(2, 3), K_SCALAR}},
    {OP_GATE, "no mask", {{0}, {0}}, 0, {G(2, 3, 4), G(2, 3, 4)}},
    {OP_GATE, "mask", {{0}, {0}}, 0, {G(2, 3, 4), G(2, 3, 4), MASK(2, 3)}},
    {OP_GATE_ROWS, "", {{0}, {0}}, 0, {G(2, 3, 4), G(3, 4)}},
    {OP_DROPOUT, "own mask", {{5, -1}, {0.25}}, 0, {G(4, 5, 3), INTS(0, 99, 4)}},
    {OP_DROPOUT, "shared axis", {{6, 0}, {0.15}}, 0, {G(4, 5, 3), INTS(0, 99, 4)}},
    {OP_RESIDUAL_DROPOUT, "", {{7, 1}, {0.25}}, 0, {G(4, 5, 3), G(4, 5, 3), INTS(0, 99, 4)}},

    {OP_TRANSPOSE, "rotation", {{2, 0, 1}, {0}}, 0, {G(2, 3, 4)}},
    {OP_TRANSPOSE, "rows and columns", {{0, 2, 1, 3}, {0}}, 0, {G(2, 3, 4, 2)}},
    {OP_RESHAPE, "", {{2, 6, 4}, {0}}, 0, {G(2, 3, 4)}},
    {OP_CONCAT, "last axis", {{1}, {0}}, 0, {G(2, 3), G(2, 1), G(2, 4)}},
    {OP_CONCAT, "first axis", {{0}, {0}}, 0, {G(2, 3), G(1, 3)}},
    {OP_SLICE, "", {{1, 1, 2}, {0}}, 0, {G(2, 4, 3)}},
    {OP_PAD, "", {{1, 1, 5}, {0}}, 0, {G(2, 3, 2)}},
    {OP_CAST, "", {{DT_F32}, {0}}, 0, {G(3, 4)}},
    {OP_COPY, "", {{0}, {0}}, 0, {G(3, 4)}},
    {OP_DOT, "", {{0}, {0}}, 0, {G(3, 4), G(3, 4)}},

    {OP_LAYER_NORM, "", {{0}, {1e-5}}, 0, {G(2, 3, 5), G(5), G(5)}},
    {OP_LAYER_NORM_FUSED, "", {{0}, {1e-5}}, 1, {G(2, 3, 5), G(5), G(5)}},
    {OP_LAYER_NORM_CHANNELS, "", {{0}, {1e-5}}, 1, {G(5, 2, 3), G(5), G(5)}},
    {OP_LAYER_NORM_CHANNELS, "groups", {{0}, {1e-5}}, 1, {G(2, 5, 2, 3), G(5), G(5)}},
    {OP_SOFTMAX, "", {{0}, {0}}, 0, {G(2, 3, 4)}},

    {OP_ATT_SCORES, "plain", {{2}, {0.6, 9}}, 0, {G(2, 3, 4), G(2, 5, 4)}},
    {OP_ATT_SCORES, "row mask and bias", {{2}, {0.6, 9}}, 0, {G(2, 3, 4), G(2, 5, 4), MASK(2, 5), G(3, 5, 2)}},
    {OP_ATT_SCORES, "groups, bias", {{2}, {0.6, 9}}, 0, {G(2, 3, 2, 4), G(2, 3, 3, 4), MASK(3), G(2, 2, 3, 2)}},
    {OP_ATT_CONTEXT, "", {{2}, {0}}, 0, {G(2, 2, 3, 5), G(2, 5, 4)}},
    {OP_ATT_CONTEXT, "groups", {{2}, {0}}, 0, {G(2, 3, 2, 2, 4), G(2, 3, 4, 4)}},
    {OP_ATTENTION, "plain", {{2}, {0.6, 9}}, 1, {G(2, 3, 4), G(2, 5, 4), G(2, 5, 4)}},
    {OP_ATTENTION, "row mask and bias", {{2}, {0.6, 9}}, 1,
     {G(2, 3, 4), G(2, 5, 4), G(2, 5, 4), MASK(2, 5), G(3, 5, 2)}},
    {OP_ATTENTION, "groups, own masks", {{2}, {0.6, 9}}, 1,
     {G(2, 3, 2, 4), G(2, 3, 4, 4), G(2, 3, 4, 4), MASK(2, 3, 4), G(2, 2, 4, 2)}},
    {OP_ATTENTION, "column", {{2, 1}, {0.6, 9}}, 1, {G(4, 3, 4), G(4, 3, 4), G(4, 3, 4), MASK(3, 4)}},
    {OP_ATTENTION, "column, transposed bias, groups", {{2, 1, 1}, {0.6, 9}}, 1,
     {G(2, 3, 2, 4), G(2, 3, 2, 4), G(2, 3, 2, 4), MASK(2, 3), G(2, 3, 3, 2)}},
    {OP_MASKED_MEAN, "", {{0}, {1e-3}}, 0, {G(4, 3, 2), MASK(4, 3)}},
    {OP_GLOBAL_ATTENTION, "", {{3}, {0.6, 9}}, 0, {G(4, 6), G(5, 4, 2), G(5, 4, 2), MASK(5, 4)}},

    {OP_TRI_PRODUCT, "a b", {{0, 0}, {0}}, 0, {G(2, 3, 4), G(3, 5, 4)}},
    {OP_TRI_PRODUCT, "a b^T: outgoing", {{0, 1}, {0}}, 0, {G(2, 3, 4), G(5, 3, 4)}},
    {OP_TRI_PRODUCT, "a^T b: incoming", {{1, 0}, {0}}, 0, {G(3, 2, 4), G(3, 5, 4)}},
    {OP_TRI_PRODUCT, "a^T b^T, groups", {{1, 1}, {0}}, 0, {G(2, 3, 2, 2), G(2, 4, 3, 2)}},
    {OP_TRI_PRODUCT, "channel-first a b^T", {{0, 1, 1}, {0}}, 0, {G(4, 2, 3), G(4, 5, 3)}},
    {OP_TRI_PRODUCT, "channel-first a^T b, groups", {{1, 0, 1}, {0}}, 0, {G(2, 2, 3, 2), G(2, 2, 3, 4)}},
    {OP_OUTER_PRODUCT, "", {{0}, {0}}, 0, {G(3, 4, 2), G(3, 5, 3)}},
    {OP_DIV_COUNT, "", {{0}, {1e-3}}, 0, {G(3, 4, 2), K_POS(3, 4)}},
    {OP_OPM, "", {{0}, {1e-3}}, 0, {G(3, 4, 2), G(3, 5, 3), G(4, 6), G(4), K_POS(4, 5)}},
    {OP_OPM, "residual", {{0}, {1e-3}}, 0, {G(3, 4, 2), G(3, 5, 3), G(4, 6), G(4), K_POS(4, 5), G(4, 5, 4)}},

    {OP_RELPOS_EMBED, "", {{2}, {0}}, 0, {INTS(0, 7, 5), G(3, 5), G(3)}},
};
/* clang-format on */

#endif
