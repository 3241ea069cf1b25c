/* Invariant point attention (AlphaFold2 supplement, algorithm 22): the parts that are not ordinary attention. */
#include "engine/ops/shape_rules.h"

static Status infer_features(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_POINT_FEATURES_BWD;
    const Tensor *x = rule_in(p, op, backward);
    if (!SHAPE_IS(x, -1, -1, 3) || (backward && !SHAPE_IS(rule_in(p, op, 0), x->dim[0], 4 * x->dim[1])))
        return rule_bad_shape(p, op, "(dout[N,4P]) p[N,P,3]");
    *n_out = 1;
    out[0] = backward ? shape_real(x, 3, x->dim) : SHAPE_REAL(x, x->dim[0], 4 * x->dim[1]);
    return OK;
}

static Status vjp_features(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_POINT_FEATURES_BWD, dout[0], INTS(0), INTS(0), din);
}

static void cost_features(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 3.0 * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_point_features = {.name = "point_features",
                                 .infer = infer_features,
                                 .vjp = vjp_features,
                                 .cost = cost_features,
                                 .flags = OPF_FULL,
                                 .real_name = {"eps"}};
const OpDef op_point_features_bwd = {.name = "point_features_bwd",
                                     .infer = infer_features,
                                     .cost = cost_features,
                                     .flags = OPF_NODIFF | OPF_FULL,
                                     .real_name = {"eps"}};

/* q, k, qp, kp are inputs `first`..`first`+3 of op. */
static bool queries_fit(const Program *p, const Op *op, int first)
{
    const Tensor *q = rule_in(p, op, first), *qp = rule_in(p, op, first + 2);
    int64_t heads = op->attr.i[0], n = shape_dim(q, 0);
    return heads > 0 && SHAPE_IS(q, n, -1) && q->dim[1] % heads == 0 &&
           SHAPE_IS(rule_in(p, op, first + 1), n, q->dim[1]) && SHAPE_IS(qp, n, -1, 3) && qp->dim[1] % heads == 0 &&
           SHAPE_IS(rule_in(p, op, first + 3), n, qp->dim[1], 3);
}

static Status infer_scores(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *q = rule_in(p, op, 0);
    int64_t heads = op->attr.i[0], n = shape_dim(q, 0);
    if (!queries_fit(p, op, 0) || !SHAPE_IS(rule_in(p, op, 4), n, n, heads) || !SHAPE_IS(rule_in(p, op, 5), heads) ||
        !SHAPE_IS(rule_in(p, op, 6), n))
        return rule_bad_shape(p, op, "q[N,H*C] k[N,H*C] qp[N,H*P,3] kp[N,H*P,3] b[N,N,H] w[H] mask[N]");
    *n_out = 1;
    out[0] = SHAPE_REAL(q, heads, n, n);
    return OK;
}

static Status vjp_scores(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_IPA_SCORES_BWD, dout[0], INTS(0, 1, 2, 3, 5), INTS(0, 1, 2, 3, 4, 5), din);
}

/* Per score: C products and sums, 3P differences, squares and sums, 6 for the rest; twice that and more backwards. */
static void cost_scores(const Program *p, const Op *op, Cost *cost)
{
    bool backward = op->kind == OP_IPA_SCORES_BWD;
    const Tensor *q = rule_in(p, op, backward), *points = rule_in(p, op, 2 + backward);
    double n = (double)q->dim[0], heads = (double)op->attr.i[0];
    double per_score = 2.0 * (double)q->dim[1] / heads + 9.0 * (double)points->dim[1] / heads + 6.0;
    cost->flops = heads * n * n * per_score * (backward ? 2 : 1);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_ipa_scores = {.name = "ipa_scores",
                             .infer = infer_scores,
                             .vjp = vjp_scores,
                             .cost = cost_scores,
                             .flags = OPF_FULL,
                             .int_name = {"heads"},
                             .real_name = {"inf"}};

static Status infer_scores_bwd(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *d = rule_in(p, op, 0), *q = rule_in(p, op, 1), *points = rule_in(p, op, 3);
    int64_t heads = op->attr.i[0], n = shape_dim(q, 0);
    if (!queries_fit(p, op, 1) || !SHAPE_IS(d, heads, n, n) || !SHAPE_IS(rule_in(p, op, 5), heads))
        return rule_bad_shape(p, op, "ds[H,N,N] q[N,H*C] k[N,H*C] qp[N,H*P,3] kp[N,H*P,3] w[H]");
    *n_out = 6;
    for (int k = 0; k < 2; k++) {
        out[k] = shape_real(d, 2, q->dim);
        out[2 + k] = shape_real(d, 3, points->dim);
    }
    out[4] = SHAPE_REAL(d, n, n, heads);
    out[5] = SHAPE_REAL(d, heads);
    return OK;
}

const OpDef op_ipa_scores_bwd = {.name = "ipa_scores_bwd",
                                 .infer = infer_scores_bwd,
                                 .cost = cost_scores,
                                 .flags = OPF_NODIFF | OPF_FULL,
                                 .int_name = {"heads"},
                                 .real_name = {"inf"}};

static Status infer_context(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *a = rule_in(p, op, 0), *z = rule_in(p, op, 1);
    if (!SHAPE_IS(a, -1, -1, -1) || !SHAPE_IS(z, a->dim[1], a->dim[2], -1))
        return rule_bad_shape(p, op, "p[H,N,M] z[N,M,C]");
    *n_out = 1;
    out[0] = SHAPE_REAL(a, a->dim[1], a->dim[0] * z->dim[2]);
    return OK;
}

static Status vjp_context(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_PAIR_CONTEXT_BWD, dout[0], INTS(0, 1), INTS(0, 1), din);
}

static void cost_context(const Program *p, const Op *op, Cost *cost)
{
    bool backward = op->kind == OP_PAIR_CONTEXT_BWD;
    double heads = (double)rule_in(p, op, backward)->dim[0];
    cost->flops = 2.0 * heads * (double)tensor_count(rule_in(p, op, 1 + backward)) * (backward ? 2 : 1);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_pair_context = {
    .name = "pair_context", .infer = infer_context, .vjp = vjp_context, .cost = cost_context, .flags = OPF_FULL};

static Status infer_context_bwd(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *d = rule_in(p, op, 0), *a = rule_in(p, op, 1), *z = rule_in(p, op, 2);
    if (!SHAPE_IS(a, -1, -1, -1) || !SHAPE_IS(z, a->dim[1], a->dim[2], -1) ||
        !SHAPE_IS(d, a->dim[1], a->dim[0] * z->dim[2]))
        return rule_bad_shape(p, op, "do[N,H*C] p[H,N,M] z[N,M,C]");
    *n_out = 2;
    out[0] = shape_real(d, 3, a->dim);
    out[1] = shape_real(d, 3, z->dim);
    return OK;
}

const OpDef op_pair_context_bwd = {
    .name = "pair_context_bwd", .infer = infer_context_bwd, .cost = cost_context, .flags = OPF_NODIFF | OPF_FULL};
