/* A layer norm in front of a product, carried out by the product: gamma and beta are two inputs more at a fixed place,
 * and what the product then reads, the mean and the reciprocal deviation of every row three outputs more. */
#ifndef FOLDSCALE_ENGINE_OPS_NORM_IN_FRONT_H
#define FOLDSCALE_ENGINE_OPS_NORM_IN_FRONT_H

#include "engine/rules.h"

/* Where a kind has it: x is input `x`, gamma input `gamma`, beta the next; the normalized x, mean and rstd are the
 * outputs from `out` on. channels: x is channel-first, normalized its channels come last. */
typedef struct NormInFront {
    int x, gamma, out;
    bool channels;
} NormInFront;

/* Whether `op` has one. */
static inline bool norm_in_front(const Op *op, const NormInFront *n)
{
    return op->n_in > n->gamma + 1 && op->in[n->gamma] != VAL_NONE && op->in[n->gamma + 1] != VAL_NONE;
}

/* The shape of what the product multiplies. */
static inline Tensor norm_in_front_shape(const Program *p, const Op *op, const NormInFront *n)
{
    const Tensor *x = rule_in(p, op, n->x);
    return n->channels && norm_in_front(op, n) && x->rank >= 3 ? rule_channel_last(x) : *x;
}

/* The outputs from n->out on; *n_out is set when there are any. */
static inline Status norm_in_front_infer(const Program *p, const Op *op, const NormInFront *n, Tensor *out, int *n_out)
{
    const Tensor *scale[2] = {rule_in(p, op, n->gamma), rule_in(p, op, n->gamma + 1)};
    if (!scale[0] && !scale[1]) return OK;
    Tensor y = norm_in_front_shape(p, op, n);
    for (int k = 0; k < 2; k++)
        if (!scale[k] || !rule_is_vector(scale[k], tensor_last(&y)) || (n->channels && y.rank < 3))
            return rule_bad_shape(p, op, "gamma[I] and beta[I] of a layer norm of x[*,I]");
    for (int k = *n_out; k < n->out; k++) out[k].dtype = DT_NONE;
    out[n->out] = y;
    out[n->out + 1] = out[n->out + 2] = rule_row_statistic(&y);
    *n_out = n->out + 3;
    return OK;
}

/* What the product multiplies. */
static inline Val norm_in_front_result(const Op *op, const NormInFront *n)
{
    return norm_in_front(op, n) ? op->out[n->out] : op->in[n->x];
}

/* din[n->x] is the gradient of what the product multiplies: makes it that of x. */
static inline void norm_in_front_vjp(Program *p, const Op *op, const NormInFront *n, Val *din)
{
    if (!norm_in_front(op, n)) return;
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, n->channels ? OP_LAYER_NORM_CHANNELS_BWD : OP_LAYER_NORM_FUSED_BWD, 5,
                   (Val[]){din[n->x], op->in[n->x], op->in[n->gamma], op->out[n->out + 1], op->out[n->out + 2]}, NULL,
                   grad);
    din[n->x] = grad[0], din[n->gamma] = grad[1], din[n->gamma + 1] = grad[2];
}

/* as a layer norm alone: 8 per element */
static inline double norm_in_front_flops(const Program *p, const Op *op, const NormInFront *n)
{
    return norm_in_front(op, n) ? 8.0 * (double)tensor_count(rule_in(p, op, n->x)) : 0.0;
}

#endif
