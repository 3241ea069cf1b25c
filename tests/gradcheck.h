/* Gradient checks: one row (or more) per differentiable op kind. The driver, test_gradcheck.c, makes the inputs,
 * records the op with the scalar sum_k cot_k . out_k behind it, lets pass_autodiff differentiate it, and compares with
 * central differences in float64. */
#ifndef FOLDSCALE_TESTS_GRADCHECK_H
#define FOLDSCALE_TESTS_GRADCHECK_H

#include "engine/program.h"

typedef enum GradFill {
    FILL_ABSENT,
    FILL_GRAD,     /* differentiated; +-[0.2, 1.2]: away from the kink of a ReLU */
    FILL_GRAD_POS, /* differentiated; [0.5, 1.5] */
    FILL_FRAMES,   /* differentiated; last axis 7: unit quaternion, translation in +-1.2 */
    FILL_CONST,    /* not differentiated; +-[0.2, 1.2] */
    FILL_CONST_POS,
    FILL_MASK,  /* zeros and ones, about a quarter zeros */
    FILL_INT,   /* 32-bit integers, lo <= value < hi, or `values` */
    FILL_VALUES /* not differentiated; `values` */
} GradFill;

typedef struct GradInput {
    GradFill fill;
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    int lo, hi;
    const double *values;
    /* bit k: the op stops the gradient of component k of the last axis on purpose; it must be exactly zero there, and
     * differences, which cannot see that, are not taken */
    unsigned stopped;
} GradInput;

#define GRAD_DIMS(...) .rank = sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), .dim = {__VA_ARGS__}
/* clang-format off */
#define G(...)           {.fill = FILL_GRAD, GRAD_DIMS(__VA_ARGS__)}
#define G_POS(...)       {.fill = FILL_GRAD_POS, GRAD_DIMS(__VA_ARGS__)}
#define G_FRAMES(...)    {.fill = FILL_FRAMES, GRAD_DIMS(__VA_ARGS__)}
#define G_FRAMES_STOPPED(...) {.fill = FILL_FRAMES, .stopped = 0xF, GRAD_DIMS(__VA_ARGS__)}
#define K(...)           {.fill = FILL_CONST, GRAD_DIMS(__VA_ARGS__)}
#define K_POS(...)       {.fill = FILL_CONST_POS, GRAD_DIMS(__VA_ARGS__)}
#define MASK(...)        {.fill = FILL_MASK, GRAD_DIMS(__VA_ARGS__)}
#define INTS(l, h, ...)  {.fill = FILL_INT, .lo = l, .hi = h, GRAD_DIMS(__VA_ARGS__)}
#define INT_VALUES(v, ...) {.fill = FILL_INT, .values = v, GRAD_DIMS(__VA_ARGS__)}
#define VALUES(v, ...)   {.fill = FILL_VALUES, .values = v, GRAD_DIMS(__VA_ARGS__)}
#define G_SCALAR         {.fill = FILL_GRAD, .rank = 0}
#define K_SCALAR         {.fill = FILL_CONST, .rank = 0}
#define NONE             {.fill = FILL_ABSENT}
/* clang-format on */

typedef struct GradCase {
    OpKind kind;
    const char *note;
    OpAttr attr;
    unsigned outputs; /* bits of the outputs that carry gradient; 0: all of them */
    GradInput in[OP_MAX_IN];
} GradCase;

typedef struct GradFamily {
    const char *name;
    const GradCase *cases;
    int count;
} GradFamily;

#endif
