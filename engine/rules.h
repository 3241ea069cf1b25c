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

/* cost: bytes of all inputs + outputs at their dtypes; flops per element of output 0. */
void rule_cost_elementwise(const Program *p, const Op *op, Cost *cost);
double rule_bytes(const Program *p, const Op *op);

/* vjp building blocks */
static inline Val rule_add1(Program *p, OpKind kind, Val a, const OpAttr *attr)
{
    return prog_add(p, kind, 1, (Val[]){a}, attr);
}

/* dtype of the gradient of a parameter read at dtype t (bf16 -> F32, else the same). */
static inline DType rule_grad_dtype(DType t)
{
    return t == DT_BF16 ? DT_F32 : t;
}

#endif
