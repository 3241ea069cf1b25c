/* Losses of the heads' logits: shapes, vjps, costs. */
#include "engine/ops/shape_rules.h"

/* Exponential, logarithm share and subtraction per logit, as everywhere in the op table: 5 flops. */
static void cost_logits(const Program *p, const Op *op, Cost *cost)
{
    double count = 0;
    for (int k = 0; k < 2; k++)
        if (rule_in(p, op, k) && (double)tensor_count(rule_in(p, op, k)) > count)
            count = (double)tensor_count(rule_in(p, op, k));
    cost->flops = 5.0 * count;
    cost->bytes = rule_bytes(p, op);
}

static Tensor loss_or_gradient(const Tensor *logits, bool backward)
{
    return backward ? shape_real(logits, logits->rank, logits->dim) : shape_scalar(logits);
}

static bool gradient_fits(const Program *p, const Op *op, bool backward)
{
    return !backward || shape_is_scalar(rule_in(p, op, 0));
}

/* --- distogram, supplement 1.9.8
 * --------------------------------------------------------------------------------------- */

static Status infer_distogram(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_DISTOGRAM_BWD;
    const Tensor *x = rule_in(p, op, backward);
    int64_t n = shape_dim(x, 0);
    if (!gradient_fits(p, op, backward) || !SHAPE_IS(x, n, n, -1) || !SHAPE_IS(rule_in(p, op, 1 + backward), n, 3) ||
        !SHAPE_IS(rule_in(p, op, 2 + backward), n))
        return rule_bad_shape(p, op, "(dl[]) logits[N,N,B] beta[N,3] mask[N]");
    *n_out = 1;
    out[0] = loss_or_gradient(x, backward);
    return OK;
}

static Status vjp_distogram(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_LOSS_DISTOGRAM_BWD, dout[0], INTS(0, 1, 2), INTS(0), din);
}

const OpDef op_loss_distogram = {.name = "loss_distogram",
                                 .infer = infer_distogram,
                                 .vjp = vjp_distogram,
                                 .cost = cost_logits,
                                 .flags = OPF_FULL,
                                 .real_name = {"min", "max", "eps"}};
const OpDef op_loss_distogram_bwd = {.name = "loss_distogram_bwd",
                                     .infer = infer_distogram,
                                     .cost = cost_logits,
                                     .flags = OPF_NODIFF | OPF_FULL,
                                     .real_name = {"min", "max", "eps"}};

/* --- masked MSA, supplement 1.9.9
 * -------------------------------------------------------------------------------------- */

static Status infer_masked_msa(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_MASKED_MSA_BWD;
    const Tensor *x = rule_in(p, op, backward);
    if (!gradient_fits(p, op, backward) || !SHAPE_IS(x, -1, -1, -1) ||
        !INDEX_IS(rule_in(p, op, 1 + backward), x->dim[0], x->dim[1]) ||
        !SHAPE_IS(rule_in(p, op, 2 + backward), x->dim[0], x->dim[1]))
        return rule_bad_shape(p, op, "(dl[]) logits[S,N,K] true[S,N] mask[S,N]");
    *n_out = 1;
    out[0] = loss_or_gradient(x, backward);
    return OK;
}

static Status vjp_masked_msa(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_LOSS_MASKED_MSA_BWD, dout[0], INTS(0, 1, 2), INTS(0), din);
}

const OpDef op_loss_masked_msa = {.name = "loss_masked_msa",
                                  .infer = infer_masked_msa,
                                  .vjp = vjp_masked_msa,
                                  .cost = cost_logits,
                                  .flags = OPF_FULL,
                                  .real_name = {"eps"}};
const OpDef op_loss_masked_msa_bwd = {.name = "loss_masked_msa_bwd",
                                      .infer = infer_masked_msa,
                                      .cost = cost_logits,
                                      .flags = OPF_NODIFF | OPF_FULL,
                                      .real_name = {"eps"}};

/* --- pLDDT, algorithm 29
 * ------------------------------------------------------------------------------------------------ */

static Status infer_plddt(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    int64_t n = shape_dim(x, 0);
    if (!SHAPE_IS(x, n, -1) || !SHAPE_IS(rule_in(p, op, 1), n, 37, 3) || !SHAPE_IS(rule_in(p, op, 2), n, 37, 3) ||
        !SHAPE_IS(rule_in(p, op, 3), n, 37) || !shape_is_scalar(rule_in(p, op, 4)))
        return rule_bad_shape(p, op, "logits[N,B] x[N,37,3] gt[N,37,3] exists[N,37] resolution[]");
    *n_out = 2;
    out[0] = shape_scalar(x);
    out[1] = SHAPE_REAL(x, n);
    return OK;
}

static Status infer_plddt_bwd(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 1);
    int64_t n = shape_dim(x, 0);
    if (!gradient_fits(p, op, true) || !SHAPE_IS(x, n, -1) || !SHAPE_IS(rule_in(p, op, 2), n) ||
        !SHAPE_IS(rule_in(p, op, 3), n, 37) || !shape_is_scalar(rule_in(p, op, 4)))
        return rule_bad_shape(p, op, "dl[] logits[N,B] lddt_ca[N] exists[N,37] resolution[]");
    *n_out = 1;
    out[0] = loss_or_gradient(x, true);
    return OK;
}

static Status vjp_plddt(Program *p, const Op *op, const Val *dout, Val *din)
{
    TRY(vjp_only_first(op, dout));
    if (dout[0] == VAL_NONE) return OK;
    /* the target (lDDT of the prediction) is a constant here */
    Val in[] = {dout[0], op->in[0], op->out[1], op->in[3], op->in[4]};
    din[0] = prog_add(p, OP_LOSS_PLDDT_BWD, 5, in, &op->attr);
    return prog_status(p);
}

static void cost_plddt(const Program *p, const Op *op, Cost *cost)
{
    double n = (double)rule_in(p, op, 0)->dim[0];
    cost_logits(p, op, cost);
    cost->flops += n * n * 26; /* two distances, four thresholds per pair */
}

const OpDef op_loss_plddt = {.name = "loss_plddt",
                             .infer = infer_plddt,
                             .vjp = vjp_plddt,
                             .cost = cost_plddt,
                             .flags = OPF_FULL,
                             .real_name = {"cutoff", "min_resolution", "max_resolution", "eps"}};
const OpDef op_loss_plddt_bwd = {.name = "loss_plddt_bwd",
                                 .infer = infer_plddt_bwd,
                                 .cost = cost_logits,
                                 .flags = OPF_NODIFF | OPF_FULL,
                                 .real_name = {"cutoff", "min_resolution", "max_resolution", "eps"}};

static Status infer_score(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    if (!x || x->rank < 1 || x->shard != SHARD_NONE) return rule_bad_shape(p, op, "logits[*,B]");
    *n_out = 1;
    out[0] = shape_real(x, x->rank - 1, x->dim);
    return OK;
}

const OpDef op_plddt_score = {
    .name = "plddt_score", .infer = infer_score, .cost = cost_logits, .flags = OPF_NODIFF | OPF_FULL};

/* --- experimentally resolved, supplement 1.9.10
 * ------------------------------------------------------------------------ */

static Status infer_resolved(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_RESOLVED_BWD;
    const Tensor *x = rule_in(p, op, backward);
    if (!gradient_fits(p, op, backward) || !SHAPE_IS(x, -1, -1) ||
        !SHAPE_IS(rule_in(p, op, 1 + backward), x->dim[0], x->dim[1]) ||
        !SHAPE_IS(rule_in(p, op, 2 + backward), x->dim[0], x->dim[1]) || !shape_is_scalar(rule_in(p, op, 3 + backward)))
        return rule_bad_shape(p, op, "(dl[]) logits[N,37] resolved[N,37] exists[N,37] resolution[]");
    *n_out = 1;
    out[0] = loss_or_gradient(x, backward);
    return OK;
}

static Status vjp_resolved(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_LOSS_RESOLVED_BWD, dout[0], INTS(0, 1, 2, 3), INTS(0), din);
}

const OpDef op_loss_resolved = {.name = "loss_resolved",
                                .infer = infer_resolved,
                                .vjp = vjp_resolved,
                                .cost = cost_logits,
                                .flags = OPF_FULL,
                                .real_name = {"min_resolution", "max_resolution", "eps"}};
const OpDef op_loss_resolved_bwd = {.name = "loss_resolved_bwd",
                                    .infer = infer_resolved,
                                    .cost = cost_logits,
                                    .flags = OPF_NODIFF | OPF_FULL,
                                    .real_name = {"min_resolution", "max_resolution", "eps"}};
