/* Ops at the edges of channel-first triangle products: layer norm of a channel-first x[G?,C,.,.], gradient of a gate
 * from a channel-first one. What they write is channel-last again. */
#include "engine/rules.h"

static Status layer_norm_channels_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *x = rule_in(p, op, 0), *gamma = rule_in(p, op, 1);
    if (x->rank < 3 || x->shard == x->rank - 3 || !rule_is_vector(gamma, x->dim[x->rank - 3]) ||
        !rule_same(gamma, rule_in(p, op, 2)))
        return rule_bad_shape(p, op, "x[G?,C,.,.] gamma[C] beta[C]");
    out[0] = rule_channel_last(x);
    out[1] = rule_row_statistic(&out[0]);
    out[2] = out[1];
    *n_out = 3;
    return OK;
}

static Status layer_norm_channels_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val in[] = {dout[0], op->in[0], op->in[1], op->out[1], op->out[2]};
    prog_add_multi(p, OP_LAYER_NORM_CHANNELS_BWD, 5, in, NULL, din);
    return OK;
}

/* as a layer norm: 8 per element, the backward twice that */
static void layer_norm_channels_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = (op->kind == OP_LAYER_NORM_CHANNELS ? 8.0 : 16.0) * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_layer_norm_channels = {.name = "layer_norm_channels",
                                      .infer = layer_norm_channels_infer,
                                      .vjp = layer_norm_channels_vjp,
                                      .cost = layer_norm_channels_cost,
                                      .flags = OPF_CHEAP,
                                      .exact_in = 1 << 1 | 1 << 2,
                                      .exact_out = 1 << 1 | 1 << 2,
                                      .real_name = {"eps"}};

/* x gamma mean rstd from input `first` on, *last_out like x with its channels last; the gradients of x, gamma, beta. */
static Status norm_gradient_infer(const Program *p, const Op *op, int first, Tensor *last_out, Tensor *out)
{
    const Tensor *x = rule_in(p, op, first);
    bool fits =
        x->rank >= 3 && x->shard != x->rank - 3 && rule_is_vector(rule_in(p, op, first + 1), x->dim[x->rank - 3]);
    Tensor last = fits ? rule_channel_last(x) : *x, statistic = fits ? rule_row_statistic(&last) : *x;
    if (!fits || !rule_same(rule_in(p, op, first + 2), &statistic) || !rule_same(rule_in(p, op, first + 3), &statistic))
        return rule_bad_shape(p, op, "x[G?,C,.,.] gamma[C], then mean and rstd [G?,.,.]");
    *last_out = last;
    out[0] = *x;
    out[1] = out[2] = rule_tensor(rule_grad_dtype(x->dtype), 1, &x->dim[x->rank - 3]);
    return OK;
}

static Status layer_norm_channels_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    Tensor last;
    TRY(rule_require(p, op, 5));
    TRY(norm_gradient_infer(p, op, 1, &last, out));
    if (!rule_same(rule_in(p, op, 0), &last)) return rule_bad_shape(p, op, "dy[G?,.,.,C] x[G?,C,.,.]");
    *n_out = 3;
    return OK;
}

const OpDef op_layer_norm_channels_bwd = {.name = "layer_norm_channels_bwd",
                                          .infer = layer_norm_channels_bwd_infer,
                                          .cost = layer_norm_channels_cost,
                                          .flags = OPF_NODIFF,
                                          .exact_in = 1 << 2 | 1 << 3 | 1 << 4,
                                          .exact_out = 1 << 1 | 1 << 2};

/* --- the gradient of a layer norm, a linear layer and a gate, z = sigmoid(g) y, y = norm(x) W^T, in one */

enum { DY = 4, G, Y, W };

static Status gate_norm_channels_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    Tensor last;
    TRY(rule_require(p, op, W + 1));
    TRY(norm_gradient_infer(p, op, 0, &last, out));
    const Tensor *dy = rule_in(p, op, DY), *g = rule_in(p, op, G), *y = rule_in(p, op, Y), *w = rule_in(p, op, W);
    bool rows = rule_same_rows(dy, &last) && dy->shard != dy->rank - 1 && rule_same(g, dy) && rule_same(y, dy);
    bool matrix = w->rank == 2 && w->shard == SHARD_NONE;
    if (!rows || !matrix || w->dim[0] != tensor_last(dy) || w->dim[1] != tensor_last(&last))
        return rule_bad_shape(p, op, "x[G?,C,.,.] gamma mean rstd dy[G?,.,.,O] g y W[O,C]");
    out[3] = *g;
    out[4] = *y;
    *n_out = 5;
    return OK;
}

/* as its parts: 9 per element of the gate, the product, 16 per element of the layer norm */
static void gate_norm_channels_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    double gates = (double)tensor_count(rule_in(p, op, DY)), count = (double)tensor_count(rule_in(p, op, 0));
    cost->flops = 9.0 * gates + 2.0 * count * (double)tensor_last(rule_in(p, op, DY)) + 16.0 * count;
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_gate_norm_channels_dx = {.name = "gate_norm_channels_dx",
                                        .infer = gate_norm_channels_dx_infer,
                                        .cost = gate_norm_channels_dx_cost,
                                        .flags = OPF_NODIFF,
                                        .exact_in = 1 << 1 | 1 << 2 | 1 << 3,
                                        .exact_out = 1 << 1 | 1 << 2};

static Status gate_channels_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 4));
    const Tensor *dy = rule_in(p, op, 0), *g = rule_in(p, op, 1), *x = rule_in(p, op, 2), *m = rule_in(p, op, 3);
    Tensor first = x->rank >= 3 ? rule_channel_first(x) : *x;
    if (x->rank < 3 || !rule_same(g, x) || !rule_same(dy, &first) || m->rank != x->rank - 1 || !rule_is_mask(m, x))
        return rule_bad_shape(p, op, "dy[G?,C,.,.] g[G?,.,.,C] x[G?,.,.,C] m[G?,.,.]");
    out[0] = *g;
    out[1] = *x;
    *n_out = 2;
    return OK;
}

/* as the gradient of a gate */
static void gate_channels_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 9.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_gate_channels_bwd = {.name = "gate_channels_bwd",
                                    .infer = gate_channels_bwd_infer,
                                    .cost = gate_channels_bwd_cost,
                                    .flags = OPF_NODIFF,
                                    .exact_in = 1 << 3};
