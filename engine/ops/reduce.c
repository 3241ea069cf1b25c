/* Sums to a scalar. */
#include "engine/rules.h"

static Status dot_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *a = rule_in(p, op, 0), *b = rule_in(p, op, 1);
    if (!a || !b || a->dtype != b->dtype || tensor_count(a) != tensor_count(b))
        return rule_bad_shape(p, op, "two tensors of the same size and type");
    out[0] = (Tensor){.dtype = a->dtype, .shard = SHARD_NONE};
    *n_out = 1;
    return OK;
}

/* s = sum_i a_i b_i: ds/da_i = b_i */
static Status dot_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_MASK_MUL, 2, (Val[]){op->in[1], dout[0]}, NULL);
    din[1] = prog_add(p, OP_MASK_MUL, 2, (Val[]){op->in[0], dout[0]}, NULL);
    return OK;
}

static void dot_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_dot = {.name = "dot", .infer = dot_infer, .vjp = dot_vjp, .cost = dot_cost, .flags = OPF_FULL};
