/* A layer norm in front of a product, carried out by the product: gamma and beta are two inputs more at a fixed place,
 * and what the product then reads, the mean and the reciprocal deviation of every row three outputs more. */
#ifndef FOLDSCALE_ENGINE_OPS_NORM_IN_FRONT_H
#define FOLDSCALE_ENGINE_OPS_NORM_IN_FRONT_H

#include "engine/rules.h"

/* Whether `op` has one: gamma is input `gamma`, beta the next. */
static inline bool norm_in_front(const Op *op, int gamma)
{
    return op->n_in > gamma + 1 && op->in[gamma] != VAL_NONE && op->in[gamma + 1] != VAL_NONE;
}

/* The outputs from `first` on; *n_out is set when there are any. */
static inline Status norm_in_front_infer(const Program *p, const Op *op, int gamma, int first, Tensor *out, int *n_out)
{
    if (!norm_in_front(op, gamma)) return OK;
    const Tensor *x = rule_in(p, op, 0);
    for (int k = 0; k < 2; k++)
        if (!rule_is_vector(rule_in(p, op, gamma + k), tensor_last(x)))
            return rule_bad_shape(p, op, "gamma[I] and beta[I] of a layer norm of x[*,I]");
    for (int k = *n_out; k < first; k++) out[k].dtype = DT_NONE;
    out[first] = *x;
    out[first + 1] = out[first + 2] = rule_row_statistic(x);
    *n_out = first + 3;
    return OK;
}

/* What the product multiplies. */
static inline Val norm_in_front_result(const Op *op, int gamma, int first)
{
    return norm_in_front(op, gamma) ? op->out[first] : op->in[0];
}

/* din[0] is the gradient of what the product multiplies: makes it that of x. */
static inline void norm_in_front_vjp(Program *p, const Op *op, int gamma, int first, Val *din)
{
    if (!norm_in_front(op, gamma)) return;
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_LAYER_NORM_FUSED_BWD, 5,
                   (Val[]){din[0], op->in[0], op->in[gamma], op->out[first + 1], op->out[first + 2]}, NULL, grad);
    din[0] = grad[0], din[gamma] = grad[1], din[gamma + 1] = grad[2];
}

/* as a layer norm alone: 8 per element */
static inline double norm_in_front_flops(const Program *p, const Op *op, int gamma)
{
    return norm_in_front(op, gamma) ? 8.0 * (double)tensor_count(rule_in(p, op, 0)) : 0.0;
}

#endif
