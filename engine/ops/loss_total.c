/* Weighted sum of the loss terms, scaled with the square root of the length. */
#include "engine/ops/shape_rules.h"

static Status infer_total(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_TOTAL_BWD;
    int first = 1 + backward, terms = op->n_in - first;
    bool fits = terms >= 1 && terms <= ATTR_REALS && rule_in(p, op, first - 1) && op->attr.i[0] > 0;
    for (int k = 0; fits && k < op->n_in; k++) fits = shape_is_scalar(rule_in(p, op, k));
    if (!fits || rule_in(p, op, first - 1)->dtype != DT_I32)
        return rule_bad_shape(p, op, "(dtotal[]) seq_length[] and one to eight scalar terms, crop > 0");
    *n_out = backward ? terms : 2;
    for (int k = 0; k < *n_out; k++) {
        const Tensor *term = rule_in(p, op, backward ? first + k : first);
        out[k] = backward ? shape_real(term, term->rank, term->dim) : shape_scalar(term);
        if (backward && op->attr.f[k] == 0) out[k] = (Tensor){.dtype = DT_NONE, .shard = SHARD_NONE};
    }
    return OK;
}

static Status vjp_total(Program *p, const Op *op, const Val *dout, Val *din)
{
    TRY(vjp_only_first(op, dout));
    if (dout[0] == VAL_NONE) return OK;
    Val in[OP_MAX_IN] = {dout[0]}, out[OP_MAX_OUT];
    for (int k = 0; k < op->n_in; k++) in[1 + k] = op->in[k];
    prog_add_multi(p, OP_LOSS_TOTAL_BWD, 1 + op->n_in, in, &op->attr, out);
    for (int k = 1; k < op->n_in; k++) din[k] = out[k - 1];
    return prog_status(p);
}

static void cost_total(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * op->n_in;
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_loss_total = {.name = "loss_total",
                             .infer = infer_total,
                             .vjp = vjp_total,
                             .cost = cost_total,
                             .flags = OPF_FULL,
                             .int_name = {"crop"},
                             .real_name = {"w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"}};
const OpDef op_loss_total_bwd = {.name = "loss_total_bwd",
                                 .infer = infer_total,
                                 .cost = cost_total,
                                 .flags = OPF_NODIFF | OPF_FULL,
                                 .int_name = {"crop"},
                                 .real_name = {"w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"}};
