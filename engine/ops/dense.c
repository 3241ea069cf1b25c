/* Products of activations with weight matrices. y = x W^T + b over the last axis; W [O, I] row-major as in a
 * checkpoint. Gradients of weights and biases leave in the real type: they are sums over thousands of positions. */
#include "engine/ops/norm_behind.h"
#include "engine/ops/norm_in_front.h"
#include "engine/ops/shape_rules.h"
#include "engine/rules.h"

enum { GROUP_MAX = LINEAR_GROUP_MAX };
/* Where a layer norm in front has its gamma and its first output, beyond all that a kind may have. */
enum { LINEAR_GAMMA = 3, LINEAR_NORM_OUT = 1 };
enum { GROUP_GAMMA = 1 + 2 * GROUP_MAX, GROUP_NORM_OUT = GROUP_MAX };
/* The same of one behind; one in front of that kind. */
enum { RESIDUAL_GAMMA = 6, RESIDUAL_NORM_OUT = 2, FRONT_GAMMA = 8, FRONT_NORM_OUT = 5 };
static const NormInFront linear_norm = {0, LINEAR_GAMMA, LINEAR_NORM_OUT, false},
                         group_norm = {0, GROUP_GAMMA, GROUP_NORM_OUT, false},
                         residual_norm = {1, FRONT_GAMMA, FRONT_NORM_OUT, true};

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
    return norm_in_front_infer(p, op, &linear_norm, out, n_out);
}

static Status linear_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val x = norm_in_front_result(op, &linear_norm);
    Val w = op->in[1], b = op->n_in > 2 ? op->in[2] : VAL_NONE;
    Val dy = dout[0];
    if (op->attr.i[0]) dy = prog_add(p, OP_RELU_BWD, 2, (Val[]){dy, op->out[0]}, NULL);
    din[0] = prog_add(p, OP_LINEAR_DX, 2, (Val[]){dy, w}, NULL);
    Val dw[OP_MAX_OUT];
    prog_add_multi(p, OP_LINEAR_DW, 2, (Val[]){dy, x}, &(OpAttr){.i = {b != VAL_NONE}}, dw);
    din[1] = dw[0];
    if (b != VAL_NONE) din[2] = dw[1];
    norm_in_front_vjp(p, op, &linear_norm, din);
    return OK;
}

static void linear_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *y = prog_tensor(p, op->out[0]);
    cost->flops = gemm_flops(rule_in(p, op, 0), rule_in(p, op, 1));
    if (rule_in(p, op, 2)) cost->flops += (double)tensor_count(y);
    if (op->attr.i[0]) cost->flops += (double)tensor_count(y);
    cost->flops += norm_in_front_flops(p, op, &linear_norm);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear = {.name = "linear",
                         .infer = linear_infer,
                         .vjp = linear_vjp,
                         .cost = linear_cost,
                         .flags = OPF_POSITION,
                         .exact_in = 1 << 2 | 3 << LINEAR_GAMMA,
                         .exact_out = 6 << LINEAR_NORM_OUT,
                         .optional_out = 7 << LINEAR_NORM_OUT,
                         .int_name = {"relu"},
                         .real_name = {"eps"}};

static Status linear_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *dy = rule_in(p, op, 0), *w = rule_in(p, op, 1);
    if (!fits_matrix(dy, w, true)) return rule_bad_shape(p, op, "dy[*,O] W[O,I]");
    out[0] = rule_with_last(dy, w->dim[1]);
    for (int k = 2; k < 4; k++)
        if (rule_in(p, op, k) && !rule_same(rule_in(p, op, k), &out[0]))
            return rule_bad_shape(p, op, "dy[*,O] W[O,I] other[*,I]? y[*,I]?");
    *n_out = 1;
    return OK;
}

static void linear_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = gemm_flops(rule_in(p, op, 0), rule_in(p, op, 1));
    for (int k = 2; k < 4; k++)
        if (rule_in(p, op, k)) cost->flops += (double)tensor_count(rule_in(p, op, k));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_dx = {
    .name = "linear_dx", .infer = linear_dx_infer, .cost = linear_dx_cost, .flags = OPF_NODIFF | OPF_POSITION};

/* dy[*,O] W[O,I] g[*,I] x[*,I] rng? -> dg dx delta[*,H]? d[*,O]?: the gradient of a gate behind LINEAR_DX of dy, as
 * GATE_BWD; delta = sums of dx x over each of H heads (i: heads, 0 for no delta); with rng of d = dropout(dy) */
static Status linear_gate_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 4));
    const Tensor *dy = rule_in(p, op, 0), *w = rule_in(p, op, 1), *g = rule_in(p, op, 2), *x = rule_in(p, op, 3);
    bool matrix = fits_matrix(dy, w, true);
    Tensor d = matrix ? rule_with_last(dy, w->dim[1]) : *dy;
    const Tensor *rng = rule_in(p, op, 4);
    int64_t heads = op->attr.i[2];
    if (!matrix || !rule_same(g, &d) || !rule_same(x, &d) || heads < 0 || (heads && tensor_last(x) % heads) ||
        (rng && !dropout_fits(dy, rng, &op->attr)))
        return rule_bad_shape(p, op, "dy[*,O] W[O,I] g[*,I] x[*,I] rng?, I in equal heads");
    out[0] = *g;
    out[1] = *x;
    out[2] = rule_with_last(x, heads);
    out[2].dtype = heads ? rule_grad_dtype(x->dtype) : DT_NONE;
    out[3] = *dy;
    *n_out = rng ? 4 : heads ? 3 : 2;
    return OK;
}

static void linear_gate_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    double each = op->attr.i[2] ? 11.0 : 9.0;
    cost->flops = gemm_flops(rule_in(p, op, 0), rule_in(p, op, 1)) + each * (double)tensor_count(rule_in(p, op, 2));
    if (rule_in(p, op, 4)) cost->flops += (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_gate_dx = {.name = "linear_gate_dx",
                                 .infer = linear_gate_dx_infer,
                                 .cost = linear_gate_dx_cost,
                                 .flags = OPF_NODIFF,
                                 .exact_out = 1 << 2,
                                 .int_name = {"key", "shared", "heads"},
                                 .real_name = {"rate"}};

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

/* --- the product that ends a branch: gate, dropout and residual sum at its edge, perhaps the layer norm of a
 * channel-first x in front, perhaps the next branch's layer norm behind it ------------------------------------------
 */

static Status linear_residual_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *r = rule_in(p, op, 0), *w = rule_in(p, op, 2), *b = rule_in(p, op, 3);
    const Tensor *g = rule_in(p, op, 4), *rng = rule_in(p, op, 5);
    Tensor x = norm_in_front_shape(p, op, &residual_norm);
    bool product = fits_matrix(&x, w, false) && (!b || rule_is_vector(b, w->dim[0]));
    Tensor y = product ? rule_with_last(&x, w->dim[0]) : x;
    bool drops = !rng || dropout_fits(&x, rng, &op->attr);
    if (!product || !drops || !rule_same(r, &y) || (g && !rule_same(g, &y)))
        return rule_bad_shape(p, op, "r[*,O] x[*,I] W[O,I] b[O]? g[*,O]? rng i32[4]?, 0 <= rate < 1");
    out[0] = out[1] = *r;
    *n_out = op->attr.i[2] ? 2 : 1;
    TRY(norm_behind_infer(p, op, RESIDUAL_GAMMA, RESIDUAL_NORM_OUT, out, n_out));
    return norm_in_front_infer(p, op, &residual_norm, out, n_out);
}

static Status linear_residual_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val dy = norm_behind_vjp(p, op, RESIDUAL_GAMMA, RESIDUAL_NORM_OUT, dout, din);
    Val w = op->in[2], dp = dy, optional[3];
    for (int k = 0; k < 3; k++) optional[k] = 3 + k < op->n_in ? op->in[3 + k] : VAL_NONE;
    Val b = optional[0], g = optional[1], rng = optional[2];
    if (g != VAL_NONE && !op->attr.i[2])
        return status_fail(ERR_INTERNAL, "linear_residual: the gate's gradient needs the product");
    din[0] = dy;
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
    Val x = norm_in_front_result(op, &residual_norm);
    prog_add_multi(p, OP_LINEAR_DW, 2, (Val[]){dp, x}, &(OpAttr){.i = {b != VAL_NONE}}, dw);
    din[2] = dw[0];
    if (b != VAL_NONE) din[3] = dw[1];
    norm_in_front_vjp(p, op, &residual_norm, din);
    return OK;
}

static void linear_residual_cost(const Program *p, const Op *op, Cost *cost)
{
    double count = (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->flops = gemm_flops(rule_in(p, op, 0), rule_in(p, op, 2)) + count;
    for (int k = 3; k <= 5; k++)
        if (rule_in(p, op, k)) cost->flops += (k == 4 ? 4.0 : 1.0) * count;
    cost->flops += norm_behind_flops(p, op, RESIDUAL_GAMMA) + norm_in_front_flops(p, op, &residual_norm);
    cost->bytes = rule_bytes(p, op);
}

static const char *linear_residual_priced_as(const Op *op)
{
    return norm_in_front(op, &residual_norm) ? "linear_residual_channels" : "linear_residual";
}

const OpDef op_linear_residual = {.name = "linear_residual",
                                  .priced_as = linear_residual_priced_as,
                                  .infer = linear_residual_infer,
                                  .vjp = linear_residual_vjp,
                                  .cost = linear_residual_cost,
                                  .exact_in = 1 << 3 | 3 << RESIDUAL_GAMMA | 3 << FRONT_GAMMA,
                                  .exact_out = 6 << RESIDUAL_NORM_OUT | 6 << FRONT_NORM_OUT,
                                  .optional_out = 6 << RESIDUAL_NORM_OUT | 7 << FRONT_NORM_OUT,
                                  .int_name = {"key", "shared", "keep"},
                                  .real_name = {"rate", "eps_behind", "eps_front"}};

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
    return norm_in_front_infer(p, op, &group_norm, out, n_out);
}

/* From the gradients dy of the n products of x: dx to din[0], those of the weights, the first of which is input `first`
 * and each followed by its bias, behind it. */
static void group_gradients(Program *p, const Op *op, int n, int first, Val x, const Val *dy, Val *din)
{
    Val dx_in[2 * GROUP_MAX] = {0}, dw_in[GROUP_MAX + 1] = {0}, dw[OP_MAX_OUT];
    OpAttr attr = {.i = {n, 0}};
    for (int g = 0; g < n; g++) {
        int w = first + 2 * g;
        dx_in[g] = dw_in[g] = dy[g];
        dx_in[n + g] = op->in[w];
        if (w + 1 < op->n_in && op->in[w + 1] != VAL_NONE) attr.i[1] |= (int64_t)1 << g;
    }
    dw_in[n] = x;
    din[0] = prog_add(p, OP_LINEAR_GROUP_DX, 2 * n, dx_in, &(OpAttr){.i = {n}});
    prog_add_multi(p, OP_LINEAR_GROUP_DW, n + 1, dw_in, &attr, dw);
    for (int g = 0; g < n; g++) {
        din[first + 2 * g] = dw[g];
        if (attr.i[1] >> g & 1) din[first + 2 * g + 1] = dw[n + g];
    }
}

static Status linear_group_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    int n = 0;
    TRY(group_size(p, op, &n));
    Val dy[GROUP_MAX];
    for (int g = 0; g < n; g++) dy[g] = rule_grad_or_zero(p, dout[g], op->out[g]);
    group_gradients(p, op, n, 1, norm_in_front_result(op, &group_norm), dy, din);
    norm_in_front_vjp(p, op, &group_norm, din);
    return OK;
}

static void linear_group_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *x = rule_in(p, op, 0);
    for (int g = 0; g < op->attr.i[0]; g++) {
        cost->flops += gemm_flops(x, rule_in(p, op, 1 + 2 * g));
        if (rule_in(p, op, 2 + 2 * g)) cost->flops += (double)tensor_count(prog_tensor(p, op->out[g]));
    }
    cost->flops += norm_in_front_flops(p, op, &group_norm);
    cost->bytes = rule_bytes(p, op);
}

enum { GROUP_BIASES = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12 };

const OpDef op_linear_group = {.name = "linear_group",
                               .infer = linear_group_infer,
                               .vjp = linear_group_vjp,
                               .cost = linear_group_cost,
                               .flags = OPF_POSITION,
                               .exact_in = GROUP_BIASES | 3 << GROUP_GAMMA,
                               .exact_out = 6 << GROUP_NORM_OUT,
                               .optional_out = 7 << GROUP_NORM_OUT,
                               .int_name = {"n"},
                               .real_name = {"eps"}};

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
    const Tensor *other = rule_in(p, op, 2 * n);
    if (other && !rule_same(other, &out[0])) return rule_bad_shape(p, op, "dy0.. W0.. and other[*,I]?");
    *n_out = 1;
    return OK;
}

static void linear_group_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    int n = (int)op->attr.i[0];
    for (int g = 0; g < n; g++) cost->flops += gemm_flops(rule_in(p, op, g), rule_in(p, op, n + g));
    if (rule_in(p, op, 2 * n)) cost->flops += (double)tensor_count(rule_in(p, op, 2 * n));
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

/* --- a group, pairs of which are gated: a_k = m sigmoid(y_2k+1) y_2k. The outputs are the a_k, the products outside of
 * pairs, then with `keep` the products in pairs, which gradients need ----------------------------------------------
 */

typedef struct Gates {
    int n, pairs, loose; /* products; gated pairs of them; products outside of pairs */
    bool keep, channels; /* products in pairs are outputs; the a_k are channel-first */
} Gates;

static Status gates_of(const Program *p, const Op *op, Gates *gates_out)
{
    int n = 0;
    TRY(group_size(p, op, &n));
    if (op->attr.i[1] < 1 || 2 * op->attr.i[1] > n) return rule_bad_shape(p, op, "pairs of the products");
    *gates_out = (Gates){n, (int)op->attr.i[1], n - 2 * (int)op->attr.i[1], op->attr.i[2] != 0, op->attr.i[3] != 0};
    return OK;
}

/* The output of product k. */
static int gates_product(const Gates *g, int k)
{
    return k < 2 * g->pairs ? g->pairs + g->loose + k : k - g->pairs;
}

static Status linear_gates_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    Gates g = {0};
    TRY(rule_require(p, op, 3));
    TRY(gates_of(p, op, &g));
    const Tensor *x = rule_in(p, op, 0), *m = rule_in(p, op, 1);
    bool fits = m->rank == x->rank - 1 && rule_is_mask(m, x) && (!g.channels || x->rank >= 3);
    for (int k = 0; k < g.n && fits; k++) {
        const Tensor *w = rule_in(p, op, 2 + 2 * k), *b = rule_in(p, op, 3 + 2 * k);
        fits = w && fits_matrix(x, w, false) && (!b || rule_is_vector(b, w->dim[0]));
        if (!fits) break;
        Tensor y = rule_with_last(x, w->dim[0]);
        Tensor a = g.channels ? rule_channel_first(&y) : y;
        if (k < 2 * g.pairs && k % 2 == 0) out[k / 2] = a;
        if (k < 2 * g.pairs && k % 2 == 1) fits = rule_same(&a, &out[k / 2]);
        if (k >= 2 * g.pairs || g.keep) out[gates_product(&g, k)] = y;
    }
    if (!fits) return rule_bad_shape(p, op, "x[*,I] m[*] and n pairs W[O,I] b[O]?, O the same in gated pairs");
    *n_out = g.pairs + g.loose + (g.keep ? 2 * g.pairs : 0);
    return OK;
}

static Status linear_gates_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Gates g = {0};
    TRY(gates_of(p, op, &g));
    if (!g.keep) return status_fail(ERR_INTERNAL, "linear_gates: the gates' gradients need their products");
    Val dy[GROUP_MAX] = {0};
    for (int k = 0; k < g.n; k++) {
        int at = gates_product(&g, k);
        dy[k] = k < 2 * g.pairs ? VAL_NONE : rule_grad_or_zero(p, dout[at], op->out[at]);
    }
    for (int k = 0; k < g.pairs; k++) {
        Val grad[OP_MAX_OUT], value = op->out[gates_product(&g, 2 * k)], gate = op->out[gates_product(&g, 2 * k + 1)];
        Val da = rule_grad_or_zero(p, dout[k], op->out[k]);
        OpKind kind = g.channels ? OP_GATE_CHANNELS_BWD : OP_GATE_BWD;
        prog_add_multi(p, kind, 4, (Val[]){da, gate, value, op->in[1]}, NULL, grad);
        dy[2 * k] = grad[1], dy[2 * k + 1] = grad[0];
    }
    group_gradients(p, op, g.n, 2, op->in[0], dy, din);
    return OK;
}

static void linear_gates_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *x = rule_in(p, op, 0);
    for (int k = 0; k < op->attr.i[0]; k++) {
        const Tensor *w = rule_in(p, op, 2 + 2 * k);
        double count = (double)tensor_rows(x) * (double)w->dim[0];
        cost->flops += gemm_flops(x, w) + (rule_in(p, op, 3 + 2 * k) ? count : 0.0);
        if (k < op->attr.i[1]) cost->flops += 5.0 * (double)tensor_count(prog_tensor(p, op->out[k]));
    }
    cost->bytes = rule_bytes(p, op);
}

static const char *linear_gates_priced_as(const Op *op)
{
    return op->attr.i[3] ? "linear_gates_channels" : "linear_gates";
}

const OpDef op_linear_gates = {.name = "linear_gates",
                               .priced_as = linear_gates_priced_as,
                               .infer = linear_gates_infer,
                               .vjp = linear_gates_vjp,
                               .cost = linear_gates_cost,
                               .exact_in = 1 << 1 | GROUP_BIASES << 1,
                               .int_name = {"n", "gates", "keep", "channels"}};
