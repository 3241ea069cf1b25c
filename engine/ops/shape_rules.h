/* Shape checks and vjp scaffolding shared by the op families of the structure module and the losses. */
#ifndef FOLDSCALE_ENGINE_OPS_SHAPE_RULES_H
#define FOLDSCALE_ENGINE_OPS_SHAPE_RULES_H

#include "engine/rules.h"

/* True when t exists and has these extents; -1 stands for any. */
static inline bool shape_is(const Tensor *t, int rank, const int64_t *dim)
{
    if (!t || t->rank != rank || t->shard != SHARD_NONE) return false;
    for (int axis = 0; axis < rank; axis++)
        if (dim[axis] != -1 && t->dim[axis] != dim[axis]) return false;
    return true;
}
#define DIMS(...)                                                                                                      \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[])                                       \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }
#define SHAPE_IS(t, ...) shape_is((t), DIMS(__VA_ARGS__))
#define INDEX_IS(t, ...) (SHAPE_IS(t, __VA_ARGS__) && (t)->dtype == DT_I32)

static inline bool shape_is_scalar(const Tensor *t)
{
    return t && tensor_count(t) == 1;
}

/* Extent of an axis of an input, -1 (matches nothing but "any") when the input is missing. */
static inline int64_t shape_dim(const Tensor *t, int axis)
{
    return t && axis < t->rank ? t->dim[axis] : -1;
}

/* A replicated tensor of the real type that `like` was computed in. */
static inline Tensor shape_real(const Tensor *like, int rank, const int64_t *dim)
{
    Tensor t = {.dtype = rule_grad_dtype(like->dtype), .rank = (int8_t)rank, .shard = SHARD_NONE};
    for (int axis = 0; axis < rank; axis++) t.dim[axis] = dim[axis];
    return t;
}
#define SHAPE_REAL(like, ...) shape_real((like), DIMS(__VA_ARGS__))

static inline Tensor shape_scalar(const Tensor *like)
{
    return shape_real(like, 0, NULL);
}

/* Appends the backward op: inputs dout, then the inputs of `op` listed in `keep` (n of them), attributes of `op`; its
 * outputs go to din[target[k]]. */
static inline Status vjp_append(Program *p, const Op *op, OpKind kind, Val dout, int n, const int *keep, int targets,
                                const int *target, Val *din)
{
    if (dout == VAL_NONE) return OK;
    Val in[OP_MAX_IN] = {dout}, out[OP_MAX_OUT];
    for (int k = 0; k < n; k++) in[1 + k] = op->in[keep[k]];
    prog_add_multi(p, kind, 1 + n, in, &op->attr, out);
    for (int k = 0; k < targets; k++) din[target[k]] = out[k];
    return prog_status(p);
}
#define INTS(...)                                                                                                      \
    (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (const int[])                                                   \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

/* A loss is differentiated through its first output alone. */
static inline Status vjp_only_first(const Op *op, const Val *dout)
{
    for (int k = 1; k < op->n_out; k++)
        if (dout[k] != VAL_NONE)
            return status_fail(ERR_INTERNAL, "%s: output %d is a report and cannot be differentiated",
                               op_def(op->kind)->name, k);
    return OK;
}

/* What a dropout of x needs: rng[4] = seed, step, sample, iteration; a shared axis of x or -1; 0 <= rate < 1. */
static inline bool dropout_fits(const Tensor *x, const Tensor *rng, const OpAttr *attr)
{
    return rng->dtype == DT_I32 && rule_is_vector(rng, 4) && attr->i[1] >= -1 && attr->i[1] < x->rank &&
           attr->f[0] >= 0.0 && attr->f[0] < 1.0;
}

#endif
