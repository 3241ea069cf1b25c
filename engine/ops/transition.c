/* A transition (AlphaFold2 supplement, algorithms 9 and 15) with the residual sum behind it, as one op, and perhaps the
 * layer norm of its result. */
#include "engine/ops/norm_behind.h"
#include "engine/ops/shape_rules.h"
#include "engine/rules.h"

enum { R, GAMMA, BETA, W1, B1, W2, B2, INPUTS };
enum { Y, X, MEAN, RSTD, HIDDEN, OUTPUTS };
/* Where a layer norm behind has its gamma and its first output. */
enum { BEHIND_GAMMA = INPUTS, BEHIND_OUT = OUTPUTS };

static Status transition_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, INPUTS));
    const Tensor *r = rule_in(p, op, R), *w1 = rule_in(p, op, W1), *w2 = rule_in(p, op, W2);
    bool whole = r->rank >= 1 && r->shard != r->rank - 1 && w1->rank == 2 && w2->rank == 2 && w1->shard == SHARD_NONE &&
                 w2->shard == SHARD_NONE;
    int64_t c = whole ? tensor_last(r) : 0, width = whole ? w1->dim[0] : 0;
    bool matrices = whole && w1->dim[1] == c && w2->dim[0] == c && w2->dim[1] == width;
    if (!matrices || !rule_is_vector(rule_in(p, op, GAMMA), c) || !rule_is_vector(rule_in(p, op, BETA), c) ||
        !rule_is_vector(rule_in(p, op, B1), width) || !rule_is_vector(rule_in(p, op, B2), c))
        return rule_bad_shape(p, op,
                              "r[*,C] gamma[C] beta[C] W1[H,C] b1[H] W2[C,H] b2[C], r whole along its last axis");
    out[Y] = out[X] = *r;
    out[MEAN] = out[RSTD] = rule_row_statistic(r);
    out[HIDDEN] = rule_with_last(r, width);
    *n_out = op->attr.i[0] ? OUTPUTS : 1;
    return norm_behind_infer(p, op, BEHIND_GAMMA, BEHIND_OUT, out, n_out);
}

/* The gradients of its parts, in their order: product, relu, product, layer norm, sum. */
static Status transition_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    const Val *in = op->in, *out = op->out;
    if (!op->attr.i[0]) return status_fail(ERR_INTERNAL, "transition: its gradient needs x and the hidden layer");
    Val dy = norm_behind_vjp(p, op, BEHIND_GAMMA, BEHIND_OUT, dout, din), grad[OP_MAX_OUT];
    Val dh = prog_add(p, OP_LINEAR_DX, 2, (Val[]){dy, in[W2]}, NULL);
    prog_add_multi(p, OP_LINEAR_DW, 2, (Val[]){dy, out[HIDDEN]}, &(OpAttr){.i = {1}}, grad);
    din[W2] = grad[0], din[B2] = grad[1];
    dh = prog_add(p, OP_RELU_BWD, 2, (Val[]){dh, out[HIDDEN]}, NULL);
    Val dx = prog_add(p, OP_LINEAR_DX, 2, (Val[]){dh, in[W1]}, NULL);
    prog_add_multi(p, OP_LINEAR_DW, 2, (Val[]){dh, out[X]}, &(OpAttr){.i = {1}}, grad);
    din[W1] = grad[0], din[B1] = grad[1];
    prog_add_multi(p, OP_LAYER_NORM_FUSED_BWD, 5, (Val[]){dx, in[R], in[GAMMA], out[MEAN], out[RSTD]}, NULL, grad);
    din[GAMMA] = grad[1], din[BETA] = grad[2];
    din[R] = prog_add(p, OP_ADD, 2, (Val[]){dy, grad[0]}, NULL);
    return OK;
}

/* Both products; 8 per element for the layer norm (as LAYER_NORM), biases, relu and sum. */
static void transition_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *r = rule_in(p, op, R);
    double rows = (double)tensor_rows(r), c = (double)tensor_last(r), width = (double)rule_in(p, op, W1)->dim[0];
    cost->flops = rows * (4.0 * c * width + 10.0 * c + 2.0 * width) + norm_behind_flops(p, op, BEHIND_GAMMA);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_transition = {.name = "transition",
                             .infer = transition_infer,
                             .vjp = transition_vjp,
                             .cost = transition_cost,
                             .exact_in = 1 << GAMMA | 1 << BETA | 1 << B1 | 1 << B2 | 3 << BEHIND_GAMMA,
                             .exact_out = 1 << MEAN | 1 << RSTD | 6 << BEHIND_OUT,
                             .optional_out = 6 << BEHIND_OUT,
                             .int_name = {"keep"},
                             .real_name = {"eps", "eps_behind"}};
