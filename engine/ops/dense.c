/* Products of activations with weight matrices. y = x W^T + b over the last axis; W [O, I] row-major as in a
 * checkpoint. Gradients of weights and biases leave in the real type: they are sums over thousands of positions. */
#include "engine/rules.h"

enum { GROUP_MAX = 6 };

static double gemm_flops(const Tensor *x, const Tensor *w)
{
    return 2.0 * (double)tensor_rows(x) * (double)w->dim[0] * (double)w->dim[1];
}

/* w is a replicated matrix that takes (or, when `transposed`, gives) the last axis of x. */
static bool fits_matrix(const Tensor *x, const Tensor *w, bool transposed)
{
    return x->rank >= 1 && x->shard != x->rank - 1 && w->rank == 2 && w->shard == SHARD_NONE &&
           tensor_last(x) == w->dim[transposed ? 0 : 1];
}

static Status linear_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *x = rule_in(p, op, 0), *w = rule_in(p, op, 1), *b = rule_in(p, op, 2);
    if (!fits_matrix(x, w, false) || (b && !rule_is_vector(b, w->dim[0])))
        return rule_bad_shape(p, op, "x[*,I] W[O,I] b[O]?, x whole along its last axis");
    out[0] = rule_with_last(x, w->dim[0]);
    *n_out = 1;
    return OK;
}

static Status linear_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val x = op->in[0], w = op->in[1], b = op->n_in > 2 ? op->in[2] : VAL_NONE;
    Val dy = dout[0];
    if (op->attr.i[0]) dy = prog_add(p, OP_RELU_BWD, 2, (Val[]){dy, op->out[0]}, NULL);
    din[0] = prog_add(p, OP_LINEAR_DX, 2, (Val[]){dy, w}, NULL);
    Val dw[OP_MAX_OUT];
    prog_add_multi(p, OP_LINEAR_DW, 2, (Val[]){dy, x}, &(OpAttr){.i = {b != VAL_NONE}}, dw);
    din[1] = dw[0];
    if (b != VAL_NONE) din[2] = dw[1];
    return OK;
}

static void linear_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *y = prog_tensor(p, op->out[0]);
    cost->flops = gemm_flops(rule_in(p, op, 0), rule_in(p, op, 1));
    if (rule_in(p, op, 2)) cost->flops += (double)tensor_count(y);
    if (op->attr.i[0]) cost->flops += (double)tensor_count(y);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear = {.name = "linear",
                         .infer = linear_infer,
                         .vjp = linear_vjp,
                         .cost = linear_cost,
                         .flags = OPF_POSITION,
                         .exact_in = 1 << 2,
                         .int_name = {"relu"}};

static Status linear_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *dy = rule_in(p, op, 0), *w = rule_in(p, op, 1);
    if (!fits_matrix(dy, w, true)) return rule_bad_shape(p, op, "dy[*,O] W[O,I]");
    out[0] = rule_with_last(dy, w->dim[1]);
    *n_out = 1;
    return OK;
}

static void linear_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = gemm_flops(rule_in(p, op, 0), rule_in(p, op, 1));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_dx = {
    .name = "linear_dx", .infer = linear_dx_infer, .cost = linear_dx_cost, .flags = OPF_NODIFF | OPF_POSITION};

static Status linear_dw_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *dy = rule_in(p, op, 0), *x = rule_in(p, op, 1);
    if (x->rank < 1 || !rule_same_rows(dy, x) || x->shard == x->rank - 1)
        return rule_bad_shape(p, op, "dy[*,O] x[*,I] with the same leading axes");
    DType real = rule_grad_dtype(x->dtype);
    out[0] = rule_tensor(real, 2, (int64_t[]){tensor_last(dy), tensor_last(x)});
    out[1] = rule_tensor(real, 1, (int64_t[]){tensor_last(dy)});
    *n_out = op->attr.i[0] ? 2 : 1;
    return OK;
}

static void linear_dw_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *dy = rule_in(p, op, 0);
    cost->flops = 2.0 * (double)tensor_count(dy) * (double)tensor_last(rule_in(p, op, 1));
    if (op->attr.i[0]) cost->flops += (double)tensor_count(dy);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_dw = {.name = "linear_dw",
                            .infer = linear_dw_infer,
                            .cost = linear_dw_cost,
                            .flags = OPF_NODIFF,
                            .exact_out = 3,
                            .int_name = {"bias"}};

/* --- the product that ends a branch: gate, dropout and residual sum at its edge -------------------------------------
 */

static Status linear_residual_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *r = rule_in(p, op, 0), *x = rule_in(p, op, 1), *w = rule_in(p, op, 2), *b = rule_in(p, op, 3);
    const Tensor *g = rule_in(p, op, 4), *rng = rule_in(p, op, 5);
    bool product = fits_matrix(x, w, false) && (!b || rule_is_vector(b, w->dim[0]));
    Tensor y = product ? rule_with_last(x, w->dim[0]) : *x;
    bool drops = !rng || (rng->dtype == DT_I32 && rule_is_vector(rng, 4) && op->attr.i[1] >= -1 &&
                          op->attr.i[1] < x->rank && op->attr.f[0] >= 0.0 && op->attr.f[0] < 1.0);
    if (!product || !drops || !rule_same(r, &y) || (g && !rule_same(g, &y)))
        return rule_bad_shape(p, op, "r[*,O] x[*,I] W[O,I] b[O]? g[*,O]? rng i32[4]?, 0 <= rate < 1");
    out[0] = out[1] = *r;
    *n_out = op->attr.i[2] ? 2 : 1;
    return OK;
}

static Status linear_residual_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val w = op->in[2], dp = dout[0], optional[3];
    for (int k = 0; k < 3; k++) optional[k] = 3 + k < op->n_in ? op->in[3 + k] : VAL_NONE;
    Val b = optional[0], g = optional[1], rng = optional[2];
    if (g != VAL_NONE && !op->attr.i[2])
        return status_fail(ERR_INTERNAL, "linear_residual: the gate's gradient needs the product");
    din[0] = dout[0];
    if (rng != VAL_NONE)
        dp = prog_add(p, OP_DROPOUT, 2, (Val[]){dp, rng},
                      &(OpAttr){.i = {op->attr.i[0], op->attr.i[1]}, .f = {op->attr.f[0]}});
    if (g != VAL_NONE) {
        Val grad[OP_MAX_OUT];
        prog_add_multi(p, OP_GATE_BWD, 3, (Val[]){dp, g, op->out[1]}, NULL, grad);
        din[4] = grad[0];
        dp = grad[1];
    }
    din[1] = prog_add(p, OP_LINEAR_DX, 2, (Val[]){dp, w}, NULL);
    Val dw[OP_MAX_OUT];
    prog_add_multi(p, OP_LINEAR_DW, 2, (Val[]){dp, op->in[1]}, &(OpAttr){.i = {b != VAL_NONE}}, dw);
    din[2] = dw[0];
    if (b != VAL_NONE) din[3] = dw[1];
    return OK;
}

static void linear_residual_cost(const Program *p, const Op *op, Cost *cost)
{
    double count = (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->flops = gemm_flops(rule_in(p, op, 1), rule_in(p, op, 2)) + count;
    for (int k = 3; k <= 5; k++)
        if (rule_in(p, op, k)) cost->flops += (k == 4 ? 4.0 : 1.0) * count;
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_residual = {.name = "linear_residual",
                                  .infer = linear_residual_infer,
                                  .vjp = linear_residual_vjp,
                                  .cost = linear_residual_cost,
                                  .exact_in = 1 << 3,
                                  .int_name = {"key", "shared", "keep"},
                                  .real_name = {"rate"}};

/* --- several matrices on one input: the weights lie one after the other in the parameter block, so that a backend may
 * run them as one product -------------------------------------------------------------------------------------------
 */

static Status group_size(const Program *p, const Op *op, int *n_out)
{
    if (op->attr.i[0] < 1 || op->attr.i[0] > GROUP_MAX) return rule_bad_shape(p, op, "a group of 1 to 6 matrices");
    *n_out = (int)op->attr.i[0];
    return OK;
}

static Status linear_group_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    int n = 0;
    TRY(group_size(p, op, &n));
    const Tensor *x = rule_in(p, op, 0);
    for (int g = 0; g < n; g++) {
        const Tensor *w = rule_in(p, op, 1 + 2 * g), *b = rule_in(p, op, 2 + 2 * g);
        if (!x || !w || !fits_matrix(x, w, false) || (b && !rule_is_vector(b, w->dim[0])))
            return rule_bad_shape(p, op, "x[*,I] and n pairs W[O,I] b[O]?");
        out[g] = rule_with_last(x, w->dim[0]);
    }
    *n_out = n;
    return OK;
}

static Status linear_group_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    int n = 0;
    TRY(group_size(p, op, &n));
    Val dx_in[2 * GROUP_MAX], dw_in[GROUP_MAX + 1], dw[OP_MAX_OUT];
    OpAttr attr = {.i = {n, 0}};
    for (int g = 0; g < n; g++) {
        dx_in[g] = dw_in[g] = rule_grad_or_zero(p, dout[g], op->out[g]);
        dx_in[n + g] = op->in[1 + 2 * g];
        bool bias = 2 + 2 * g < op->n_in && op->in[2 + 2 * g] != VAL_NONE;
        if (bias) attr.i[1] |= (int64_t)1 << g;
    }
    dw_in[n] = op->in[0];
    din[0] = prog_add(p, OP_LINEAR_GROUP_DX, 2 * n, dx_in, &(OpAttr){.i = {n}});
    prog_add_multi(p, OP_LINEAR_GROUP_DW, n + 1, dw_in, &attr, dw);
    for (int g = 0; g < n; g++) {
        din[1 + 2 * g] = dw[g];
        if (attr.i[1] >> g & 1) din[2 + 2 * g] = dw[n + g];
    }
    return OK;
}

static void linear_group_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *x = rule_in(p, op, 0);
    for (int g = 0; g < op->n_out; g++) {
        cost->flops += gemm_flops(x, rule_in(p, op, 1 + 2 * g));
        if (rule_in(p, op, 2 + 2 * g)) cost->flops += (double)tensor_count(prog_tensor(p, op->out[g]));
    }
    cost->bytes = rule_bytes(p, op);
}

enum { GROUP_BIASES = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12 };

const OpDef op_linear_group = {.name = "linear_group",
                               .infer = linear_group_infer,
                               .vjp = linear_group_vjp,
                               .cost = linear_group_cost,
                               .flags = OPF_POSITION,
                               .exact_in = GROUP_BIASES,
                               .int_name = {"n"}};

static Status linear_group_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    int n = 0;
    TRY(group_size(p, op, &n));
    TRY(rule_require(p, op, 2 * n));
    const Tensor *first = rule_in(p, op, 0), *w0 = rule_in(p, op, n);
    for (int g = 0; g < n; g++) {
        const Tensor *dy = rule_in(p, op, g), *w = rule_in(p, op, n + g);
        if (!rule_same_rows(dy, first) || !fits_matrix(dy, w, true) || w->dim[1] != w0->dim[1])
            return rule_bad_shape(p, op, "n gradients dy[*,O], then n matrices W[O,I]");
    }
    out[0] = rule_with_last(first, w0->dim[1]);
    *n_out = 1;
    return OK;
}

static void linear_group_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    int n = (int)op->attr.i[0];
    for (int g = 0; g < n; g++) cost->flops += gemm_flops(rule_in(p, op, g), rule_in(p, op, n + g));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_group_dx = {.name = "linear_group_dx",
                                  .infer = linear_group_dx_infer,
                                  .cost = linear_group_dx_cost,
                                  .flags = OPF_NODIFF | OPF_POSITION,
                                  .int_name = {"n"}};

/* Outputs: dW0..dWn-1, then one place per matrix for its bias (absent where the mask has no bit). */
static Status linear_group_dw_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    int n = 0;
    TRY(group_size(p, op, &n));
    TRY(rule_require(p, op, n + 1));
    const Tensor *x = rule_in(p, op, n);
    DType real = rule_grad_dtype(x->dtype);
    for (int g = 0; g < n; g++) {
        const Tensor *dy = rule_in(p, op, g);
        if (x->rank < 1 || !rule_same_rows(dy, x) || x->shard == x->rank - 1)
            return rule_bad_shape(p, op, "n gradients dy[*,O], then x[*,I]");
        out[g] = rule_tensor(real, 2, (int64_t[]){tensor_last(dy), tensor_last(x)});
        bool bias = op->attr.i[1] >> g & 1;
        out[n + g] = rule_tensor(bias ? real : DT_NONE, 1, (int64_t[]){tensor_last(dy)});
    }
    *n_out = 2 * n;
    return OK;
}

static void linear_group_dw_cost(const Program *p, const Op *op, Cost *cost)
{
    int n = (int)op->attr.i[0];
    double last = (double)tensor_last(rule_in(p, op, n));
    for (int g = 0; g < n; g++) {
        double count = (double)tensor_count(rule_in(p, op, g));
        cost->flops += 2.0 * count * last + (op->attr.i[1] >> g & 1 ? count : 0.0);
    }
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_group_dw = {.name = "linear_group_dw",
                                  .infer = linear_group_dw_infer,
                                  .cost = linear_group_dw_cost,
                                  .flags = OPF_NODIFF,
                                  .exact_out = ~0u,
                                  .int_name = {"n", "biases"}};
