/* Element by element: sums, masks, gates, dropout. */
#include "engine/ops/shape_rules.h"
#include "engine/rules.h"

static Status same_pair_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    if (!rule_same(rule_in(p, op, 0), rule_in(p, op, 1))) return rule_bad_shape(p, op, "two inputs of one shape");
    return rule_infer_like_first(p, op, out, n_out);
}

/* --- ReLU ------------------------------------------------------------------------------------------------------------
 */

static Status relu_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_RELU_BWD, 2, (Val[]){dout[0], op->out[0]}, NULL);
    return OK;
}

const OpDef op_relu = {.name = "relu",
                       .infer = rule_infer_like_first,
                       .vjp = relu_vjp,
                       .cost = rule_cost_elementwise,
                       .flags = OPF_CHEAP | OPF_POSITION};
const OpDef op_relu_bwd = {
    .name = "relu_bwd", .infer = same_pair_infer, .cost = rule_cost_elementwise, .flags = OPF_NODIFF | OPF_CHEAP};

/* --- sums ------------------------------------------------------------------------------------------------------------
 */

/* b is laid over the last axes of a; its shard axis, if any, is a's. What comes after b is like a, and so then is b. */
static Status add_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, op->n_in > 2 ? op->n_in : 2));
    const Tensor *a = rule_in(p, op, 0), *b = rule_in(p, op, 1);
    for (int k = 1; op->n_in > 2 && k < op->n_in; k++)
        if (!rule_same(rule_in(p, op, k), a) || rule_in(p, op, k)->dtype != a->dtype)
            return rule_bad_shape(p, op, "several terms alike");
    int lead = a->rank - b->rank;
    bool fits = lead >= 0;
    for (int axis = 0; fits && axis < b->rank; axis++) fits = b->dim[axis] == a->dim[axis + lead];
    int8_t expected = a->shard >= lead ? (int8_t)(a->shard - lead) : SHARD_NONE;
    if (!fits || b->shard != expected) return rule_bad_shape(p, op, "b of the last axes of a");
    return rule_infer_like_first(p, op, out, n_out);
}

static Status add_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    int lead = prog_tensor(p, op->in[0])->rank - prog_tensor(p, op->in[1])->rank;
    din[0] = dout[0];
    din[1] = lead ? rule_add1(p, OP_SUM_LEADING, dout[0], &(OpAttr){.i = {lead}}) : dout[0];
    for (int k = 2; k < op->n_in; k++) din[k] = dout[0];
    return OK;
}

static void add_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = (double)(op->n_in - 1) * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_add = {.name = "add", .infer = add_infer, .vjp = add_vjp, .cost = add_cost, .flags = OPF_CHEAP};

static Status sum_leading_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *x = rule_in(p, op, 0);
    int lead = (int)op->attr.i[0];
    if (op->attr.i[0] < 0 || op->attr.i[0] > x->rank) return rule_bad_shape(p, op, "at most as many axes as x has");
    out[0] = rule_tensor(x->dtype, x->rank - lead, x->dim + lead);
    if (x->shard >= lead) out[0].shard = (int8_t)(x->shard - lead);
    *n_out = 1;
    return OK;
}

static Status sum_leading_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    const Tensor x = *prog_tensor(p, op->in[0]);
    din[0] = prog_add(p, OP_ADD, 2, (Val[]){rule_fill_like(p, &x, 0.0), dout[0]}, NULL);
    return OK;
}

static void sum_leading_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_sum_leading = {.name = "sum_leading",
                              .infer = sum_leading_infer,
                              .vjp = sum_leading_vjp,
                              .cost = sum_leading_cost,
                              .int_name = {"axes"}};

static Status outer_add_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *a = rule_in(p, op, 0), *b = rule_in(p, op, 1);
    if (a->rank != 2 || b->rank != 2 || a->dim[1] != b->dim[1]) return rule_bad_shape(p, op, "a[N,C] b[M,C]");
    out[0] = rule_tensor(a->dtype, 3, (int64_t[]){a->dim[0], b->dim[0], a->dim[1]});
    *n_out = 1;
    return rule_merge_shard(p, op, 2, (int[]){0, 1}, (int[]){0, 1}, &out[0].shard);
}

static Status outer_add_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    (void)op;
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_OUTER_ADD_BWD, 1, dout, NULL, grad);
    din[0] = grad[0];
    din[1] = grad[1];
    return OK;
}

const OpDef op_outer_add = {
    .name = "outer_add", .infer = outer_add_infer, .vjp = outer_add_vjp, .cost = rule_cost_elementwise};

static Status outer_add_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *dy = rule_in(p, op, 0);
    if (dy->rank != 3) return rule_bad_shape(p, op, "dy[N,M,C]");
    out[0] = rule_tensor(dy->dtype, 2, (int64_t[]){dy->dim[0], dy->dim[2]});
    out[1] = rule_tensor(dy->dtype, 2, (int64_t[]){dy->dim[1], dy->dim[2]});
    if (dy->shard == 0) out[0].shard = 0;
    if (dy->shard == 1) out[1].shard = 0;
    *n_out = 2;
    return OK;
}

static void outer_add_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_outer_add_bwd = {
    .name = "outer_add_bwd", .infer = outer_add_bwd_infer, .cost = outer_add_bwd_cost, .flags = OPF_NODIFF};

static Status scale_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = rule_add1(p, OP_SCALE, dout[0], &op->attr);
    return OK;
}

const OpDef op_scale = {.name = "scale",
                        .infer = rule_infer_like_first,
                        .vjp = scale_vjp,
                        .cost = rule_cost_elementwise,
                        .flags = OPF_CHEAP | OPF_POSITION,
                        .real_name = {"factor"}};

/* --- masks and gates
 * -------------------------------------------------------------------------------------------------- */

static Status mask_mul_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    if (!rule_is_mask(rule_in(p, op, 1), rule_in(p, op, 0)))
        return rule_bad_shape(p, op, "a mask of the first axes of x");
    return rule_infer_like_first(p, op, out, n_out);
}

static Status mask_mul_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_MASK_MUL, 2, (Val[]){dout[0], op->in[1]}, NULL);
    return OK;
}

const OpDef op_mask_mul = {.name = "mask_mul",
                           .infer = mask_mul_infer,
                           .vjp = mask_mul_vjp,
                           .cost = rule_cost_elementwise,
                           .flags = OPF_CHEAP,
                           .exact_in = 1 << 1};

/* Operands `first`, first + 1 of one shape and an optional mask of all axes but the last at first + 2. */
static bool gate_fits(const Program *p, const Op *op, int first)
{
    const Tensor *g = rule_in(p, op, first), *x = rule_in(p, op, first + 1), *m = rule_in(p, op, first + 2);
    return rule_same(g, x) && (!m || (m->rank == x->rank - 1 && rule_is_mask(m, x)));
}

static Status gate_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    if (!gate_fits(p, op, 0)) return rule_bad_shape(p, op, "g[*,C] x[*,C] m[*]?");
    out[0] = *rule_in(p, op, 1);
    *n_out = 1;
    return OK;
}

static Status gate_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val grad[OP_MAX_OUT];
    Val mask = op->n_in > 2 ? op->in[2] : VAL_NONE;
    prog_add_multi(p, OP_GATE_BWD, 4, (Val[]){dout[0], op->in[0], op->in[1], mask}, NULL, grad);
    din[0] = grad[0];
    din[1] = grad[1];
    return OK;
}

/* sigmoid = exp, add, divide; then the product(s) */
static void gate_cost(const Program *p, const Op *op, Cost *cost)
{
    double per_element = rule_in(p, op, 2) ? 5.0 : 4.0;
    cost->flops = per_element * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_gate = {
    .name = "gate", .infer = gate_infer, .vjp = gate_vjp, .cost = gate_cost, .flags = OPF_CHEAP, .exact_in = 1 << 2};

static Status gate_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    if (!gate_fits(p, op, 1) || !rule_same(rule_in(p, op, 0), rule_in(p, op, 2)))
        return rule_bad_shape(p, op, "dy[*,C] g[*,C] x[*,C] m[*]?");
    out[0] = *rule_in(p, op, 1);
    out[1] = *rule_in(p, op, 2);
    *n_out = 2;
    return OK;
}

/* sigmoid again, s x', s (1 - s) x dy */
static void gate_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 9.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_gate_bwd = {
    .name = "gate_bwd", .infer = gate_bwd_infer, .cost = gate_bwd_cost, .flags = OPF_NODIFF, .exact_in = 1 << 3};

/* g[S,R,C] x[R,C] at positions first and first + 1 */
static bool gate_rows_fits(const Program *p, const Op *op, int first)
{
    const Tensor *g = rule_in(p, op, first), *x = rule_in(p, op, first + 1);
    return g->rank == 3 && x->rank == 2 && g->dim[1] == x->dim[0] && g->dim[2] == x->dim[1] && g->shard != 2 &&
           x->shard == (g->shard == 1 ? 0 : SHARD_NONE);
}

static Status gate_rows_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    if (!gate_rows_fits(p, op, 0)) return rule_bad_shape(p, op, "g[S,R,C] x[R,C]");
    return rule_infer_like_first(p, op, out, n_out);
}

static Status gate_rows_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_GATE_ROWS_BWD, 3, (Val[]){dout[0], op->in[0], op->in[1]}, NULL, grad);
    din[0] = grad[0];
    din[1] = grad[1];
    return OK;
}

static void gate_rows_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 4.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_gate_rows = {
    .name = "gate_rows", .infer = gate_rows_infer, .vjp = gate_rows_vjp, .cost = gate_rows_cost, .flags = OPF_CHEAP};

static Status gate_rows_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    if (!gate_rows_fits(p, op, 1) || !rule_same(rule_in(p, op, 0), rule_in(p, op, 1)))
        return rule_bad_shape(p, op, "dy[S,R,C] g[S,R,C] x[R,C]");
    out[0] = *rule_in(p, op, 1);
    out[1] = *rule_in(p, op, 2);
    *n_out = 2;
    return OK;
}

const OpDef op_gate_rows_bwd = {
    .name = "gate_rows_bwd", .infer = gate_rows_bwd_infer, .cost = gate_bwd_cost, .flags = OPF_NODIFF};

/* --- dropout
 * ---------------------------------------------------------------------------------------------------------- */

/* x at position `at`, then rng */
static Status dropout_check(const Program *p, const Op *op, int at)
{
    TRY(rule_require(p, op, at + 2));
    const Tensor *x = rule_in(p, op, at), *rng = rule_in(p, op, at + 1);
    if (!dropout_fits(x, rng, &op->attr))
        return rule_bad_shape(p, op, "x, rng i32[4], a shared axis of x or -1, 0 <= rate < 1");
    return OK;
}

static Status dropout_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(dropout_check(p, op, 0));
    return rule_infer_like_first(p, op, out, n_out);
}

static Status dropout_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_DROPOUT, 2, (Val[]){dout[0], op->in[1]}, &op->attr);
    return OK;
}

const OpDef op_dropout = {.name = "dropout",
                          .infer = dropout_infer,
                          .vjp = dropout_vjp,
                          .cost = rule_cost_elementwise,
                          .flags = OPF_CHEAP,
                          .int_name = {"key", "shared"},
                          .real_name = {"rate"}};

static Status residual_dropout_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(dropout_check(p, op, 1));
    return same_pair_infer(p, op, out, n_out);
}

static Status residual_dropout_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = dout[0];
    din[1] = prog_add(p, OP_DROPOUT, 2, (Val[]){dout[0], op->in[2]}, &op->attr);
    return OK;
}

const OpDef op_residual_dropout = {.name = "residual_dropout",
                                   .infer = residual_dropout_infer,
                                   .vjp = residual_dropout_vjp,
                                   .cost = rule_cost_elementwise,
                                   .flags = OPF_CHEAP,
                                   .int_name = {"key", "shared"},
                                   .real_name = {"rate"}};
