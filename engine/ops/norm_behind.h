/* A layer norm of output 0, y, carried out by the op that computes y: gamma and beta are two inputs more at a fixed
 * place, the normalized rows, the mean and the reciprocal deviation of every row three outputs more. */
#ifndef FOLDSCALE_ENGINE_OPS_NORM_BEHIND_H
#define FOLDSCALE_ENGINE_OPS_NORM_BEHIND_H

#include "engine/rules.h"

/* Whether `op` has one: gamma is input `gamma`, beta the next. */
static inline bool norm_behind(const Op *op, int gamma)
{
    return op->n_in > gamma + 1 && op->in[gamma] != VAL_NONE && op->in[gamma + 1] != VAL_NONE;
}

/* The outputs from `first` on, out[0] being there, whole along its last axis; *n_out is set when there are any. */
static inline Status norm_behind_infer(const Program *p, const Op *op, int gamma, int first, Tensor *out, int *n_out)
{
    const Tensor *scale[2] = {rule_in(p, op, gamma), rule_in(p, op, gamma + 1)};
    if (!scale[0] && !scale[1]) return OK;
    for (int k = 0; k < 2; k++)
        if (!scale[k] || !rule_is_vector(scale[k], tensor_last(&out[0])))
            return rule_bad_shape(p, op, "gamma[O] and beta[O] of a layer norm of y[*,O]");
    for (int k = *n_out; k < first; k++) out[k].dtype = DT_NONE;
    out[first] = out[0];
    out[first + 1] = out[first + 2] = rule_row_statistic(&out[0]);
    *n_out = first + 3;
    return OK;
}

/* The whole gradient of y, from that which arrives and what the layer norm adds. */
static inline Val norm_behind_vjp(Program *p, const Op *op, int gamma, int first, const Val *dout, Val *din)
{
    if (!norm_behind(op, gamma) || dout[first] == VAL_NONE) return dout[0];
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_LAYER_NORM_FUSED_BWD, 5,
                   (Val[]){dout[first], op->out[0], op->in[gamma], op->out[first + 1], op->out[first + 2]}, NULL, grad);
    din[gamma] = grad[1], din[gamma + 1] = grad[2];
    return dout[0] == VAL_NONE ? grad[0] : prog_add(p, OP_ADD, 2, (Val[]){dout[0], grad[0]}, NULL);
}

/* as a layer norm alone: 8 per element */
static inline double norm_behind_flops(const Program *p, const Op *op, int gamma)
{
    return norm_behind(op, gamma) ? 8.0 * (double)tensor_count(prog_tensor(p, op->out[0])) : 0.0;
}

#endif
