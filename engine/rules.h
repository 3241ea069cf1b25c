/* Helpers for the rows of the op table (engine/ops/ only). */
#ifndef FOLDSCALE_ENGINE_RULES_H
#define FOLDSCALE_ENGINE_RULES_H

#include "engine/program.h"

/* Input i of op, or NULL when absent. */
static inline const Tensor *rule_in(const Program *p, const Op *op, int i)
{
    return i < op->n_in && op->in[i] != VAL_NONE ? &p->value[op->in[i]].t : NULL;
}

/* infer: one output like input 0 (shape, dtype, shard). */
Status rule_infer_like_first(const Program *p, const Op *op, Tensor *out, int *n_out);

/* Fails with the op's name and the shapes of its inputs: ERR_INTERNAL. */
Status rule_bad_shape(const Program *p, const Op *op, const char *expected);

/* Shard axis shared by the given inputs when they are laid over axes of the output with the given offsets (axis of the
 * output = axis of the input + shift). ERR_INTERNAL when two inputs are sharded on different axes of the output. */
Status rule_merge_shard(const Program *p, const Op *op, int n, const int *input, const int *shift, int8_t *shard_out);

/* ERR_INTERNAL unless inputs 0..n-1 are all there. */
Status rule_require(const Program *p, const Op *op, int n);

/* A replicated tensor. */
Tensor rule_tensor(DType dtype, int rank, const int64_t *dim);
/* x with another extent of the last axis; the shard axis stays. */
Tensor rule_with_last(const Tensor *x, int64_t last);
/* Same rank, extents and shard axis. */
bool rule_same(const Tensor *a, const Tensor *b);
/* The same but for the extent of the last axis. */
bool rule_same_rows(const Tensor *a, const Tensor *b);
/* x is a vector of n elements, replicated. */
bool rule_is_vector(const Tensor *x, int64_t n);

/* x[G?,.,.,C] with its channels moved before the two axes, and back. */
Tensor rule_channel_first(const Tensor *x);
Tensor rule_channel_last(const Tensor *x);
/* One value in the real type per row of x. */
Tensor rule_row_statistic(const Tensor *x);
/* The axes of m are the first axes of x. */
bool rule_is_mask(const Tensor *m, const Tensor *x);

/* cost: bytes of all inputs + outputs at their dtypes; flops per element of output 0. */
void rule_cost_elementwise(const Program *p, const Op *op, Cost *cost);
double rule_bytes(const Program *p, const Op *op);

/* vjp building blocks */
static inline Val rule_add1(Program *p, OpKind kind, Val a, const OpAttr *attr)
{
    return prog_add(p, kind, 1, (Val[]){a}, attr);
}
/* A constant of the shape, dtype and shard axis of t. */
Val rule_fill_like(Program *p, const Tensor *t, double value);
/* `grad`, or zeros like `v` when no gradient arrives. */
Val rule_grad_or_zero(Program *p, Val grad, Val v);

/* dtype of the gradient of a parameter read at dtype t, and of statistics of values of dtype t (bf16 -> F32, else the
 * same). */
static inline DType rule_grad_dtype(DType t)
{
    return t == DT_BF16 ? DT_F32 : t;
}

#endif
