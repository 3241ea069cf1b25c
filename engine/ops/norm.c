/* Layer norm (Ba et al. 2016) and softmax over the last axis. */
#include "engine/ops/shape_rules.h"
#include "engine/rules.h"

/* x at position `at`, gamma right after it; the last axis of x is whole. */
static bool norm_fits(const Program *p, const Op *op, int at)
{
    const Tensor *x = rule_in(p, op, at), *gamma = rule_in(p, op, at + 1);
    return x->rank >= 1 && x->shard != x->rank - 1 && rule_is_vector(gamma, tensor_last(x));
}

static Status layer_norm_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    if (!norm_fits(p, op, 0) || !rule_same(rule_in(p, op, 1), rule_in(p, op, 2)))
        return rule_bad_shape(p, op, "x[*,C] gamma[C] beta[C]");
    return rule_infer_like_first(p, op, out, n_out);
}

static Status layer_norm_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    prog_add_multi(p, OP_LAYER_NORM_BWD, 3, (Val[]){dout[0], op->in[0], op->in[1]}, &op->attr, din);
    return OK;
}

/* mean, variance, normalisation, scale and shift: 8 per element; the backward about twice that */
static void layer_norm_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 8.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

static void layer_norm_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 16.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_layer_norm = {.name = "layer_norm",
                             .infer = layer_norm_infer,
                             .vjp = layer_norm_vjp,
                             .cost = layer_norm_cost,
                             .flags = OPF_CHEAP | OPF_POSITION,
                             .exact_in = 1 << 1 | 1 << 2,
                             .real_name = {"eps"}};

static Status norm_gradients(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 1);
    if (!norm_fits(p, op, 1) || !rule_same(rule_in(p, op, 0), x))
        return rule_bad_shape(p, op, "dy[*,C] x[*,C] gamma[C]");
    int64_t c = tensor_last(x);
    out[0] = *x;
    out[1] = out[2] = rule_tensor(rule_grad_dtype(x->dtype), 1, &c);
    *n_out = 3;
    return OK;
}

static Status layer_norm_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    return norm_gradients(p, op, out, n_out);
}

const OpDef op_layer_norm_bwd = {.name = "layer_norm_bwd",
                                 .infer = layer_norm_bwd_infer,
                                 .cost = layer_norm_bwd_cost,
                                 .flags = OPF_NODIFF,
                                 .exact_in = 1 << 2,
                                 .exact_out = 1 << 1 | 1 << 2,
                                 .real_name = {"eps"}};

static Status layer_norm_fused_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(layer_norm_infer(p, op, out, n_out));
    out[1] = out[2] = rule_row_statistic(rule_in(p, op, 0));
    *n_out = 3;
    return OK;
}

static Status layer_norm_fused_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    prog_add_multi(p, OP_LAYER_NORM_FUSED_BWD, 5, (Val[]){dout[0], op->in[0], op->in[1], op->out[1], op->out[2]}, NULL,
                   din);
    return OK;
}

const OpDef op_layer_norm_fused = {.name = "layer_norm_fused",
                                   .infer = layer_norm_fused_infer,
                                   .vjp = layer_norm_fused_vjp,
                                   .cost = layer_norm_cost,
                                   .flags = OPF_CHEAP | OPF_POSITION,
                                   .exact_in = 1 << 1 | 1 << 2,
                                   .exact_out = 1 << 1 | 1 << 2,
                                   .real_name = {"eps"}};

static Status layer_norm_fused_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 5));
    if (!norm_fits(p, op, 1)) return rule_bad_shape(p, op, "dy[*,C] x[*,C] gamma[C]");
    const Tensor *x = rule_in(p, op, 1), *other = rule_in(p, op, 5), *rng = rule_in(p, op, 6);
    Tensor statistic = rule_row_statistic(x);
    if (!rule_same(rule_in(p, op, 3), &statistic) || !rule_same(rule_in(p, op, 4), &statistic))
        return rule_bad_shape(p, op, "dy x gamma, then mean[*] and rstd[*]");
    if ((other && !rule_same(other, x)) || (rng && !dropout_fits(x, rng, &op->attr)))
        return rule_bad_shape(p, op, "dy x gamma mean rstd, then other? like x and rng? of a dropout of x");
    TRY(norm_gradients(p, op, out, n_out));
    if (rng) out[(*n_out)++] = *x;
    return OK;
}

const OpDef op_layer_norm_fused_bwd = {.name = "layer_norm_fused_bwd",
                                       .infer = layer_norm_fused_bwd_infer,
                                       .cost = layer_norm_bwd_cost,
                                       .flags = OPF_NODIFF,
                                       .exact_in = 1 << 2 | 1 << 3 | 1 << 4,
                                       .exact_out = 1 << 1 | 1 << 2,
                                       .int_name = {"key", "shared"},
                                       .real_name = {"rate"}};

/* --- softmax
 * ---------------------------------------------------------------------------------------------------------- */

static Status softmax_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_infer_like_first(p, op, out, n_out));
    if (out->rank < 1 || out->shard == out->rank - 1) return rule_bad_shape(p, op, "x whole along its last axis");
    return OK;
}

static Status softmax_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_SOFTMAX_BWD, 2, (Val[]){dout[0], op->out[0]}, NULL);
    return OK;
}

/* maximum, difference, exponential, sum, quotient */
static void softmax_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 5.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_softmax = {.name = "softmax",
                          .infer = softmax_infer,
                          .vjp = softmax_vjp,
                          .cost = softmax_cost,
                          .flags = OPF_CHEAP | OPF_POSITION};

static Status softmax_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    if (!rule_same(rule_in(p, op, 0), rule_in(p, op, 1))) return rule_bad_shape(p, op, "dy and y of one shape");
    return softmax_infer(p, op, out, n_out);
}

static void softmax_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 4.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_softmax_bwd = {
    .name = "softmax_bwd", .infer = softmax_bwd_infer, .cost = softmax_bwd_cost, .flags = OPF_NODIFF};
