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

/* q, kv, qp, kvp are inputs `first`..`first`+3 of op: in each head keys come before values. */
static bool queries_fit(const Program *p, const Op *op, int first)
{
    const Tensor *q = rule_in(p, op, first), *qp = rule_in(p, op, first + 2), *points = rule_in(p, op, first + 3);
    int64_t heads = op->attr.i[0], n = shape_dim(q, 0);
    return heads > 0 && SHAPE_IS(q, n, -1) && q->dim[1] % heads == 0 &&
           SHAPE_IS(rule_in(p, op, first + 1), n, 2 * q->dim[1]) && SHAPE_IS(qp, n, -1, 3) && qp->dim[1] % heads == 0 &&
           SHAPE_IS(points, n, -1, 3) && points->dim[1] % heads == 0 && points->dim[1] > qp->dim[1];
}

static Status infer_attention(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *q = rule_in(p, op, 0), *qp = rule_in(p, op, 2), *points = rule_in(p, op, 3);
    int64_t heads = op->attr.i[0], n = shape_dim(q, 0);
    if (!queries_fit(p, op, 0) || !SHAPE_IS(rule_in(p, op, 4), heads, n, n) || !SHAPE_IS(rule_in(p, op, 5), heads) ||
        !SHAPE_IS(rule_in(p, op, 6), n))
        return rule_bad_shape(p, op, "q[N,H*C] kv[N,H*2C] qp[N,H*P,3] kvp[N,H*(P+V),3] b[H,N,N] w[H] mask[N]");
    *n_out = 3;
    out[0] = SHAPE_REAL(q, heads, n, n);
    out[1] = shape_real(q, 2, q->dim);
    out[2] = SHAPE_REAL(q, n, points->dim[1] - qp->dim[1], 3);
    return OK;
}

static Status vjp_attention(Program *p, const Op *op, const Val *dout, Val *din)
{
    if (dout[0] == VAL_NONE && dout[1] == VAL_NONE && dout[2] == VAL_NONE) return OK;
    Val out[OP_MAX_OUT];
    prog_add_multi(
        p, OP_IPA_ATTENTION_BWD, 9,
        (Val[]){op->in[0], op->in[1], op->in[2], op->in[3], op->out[0], op->in[5], dout[0], dout[1], dout[2]},
        &op->attr, out);
    for (int k = 0; k < 6; k++) din[k] = out[k];
    return prog_status(p);
}

/* Per pair and head: C products and sums, 3P differences, squares and sums, 11 for the rest of its weight, C + 3V
 * products and sums; twice that backwards. */
static void cost_attention(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *q = rule_in(p, op, 0), *qp = rule_in(p, op, 2), *points = rule_in(p, op, 3);
    double n = (double)q->dim[0], heads = (double)op->attr.i[0];
    double width = (double)q->dim[1] / heads, key = (double)qp->dim[1] / heads, both = (double)points->dim[1] / heads;
    cost->flops = heads * n * n * (4.0 * width + 9.0 * key + 11.0 + 6.0 * (both - key)) *
                  (op->kind == OP_IPA_ATTENTION_BWD ? 2 : 1);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_ipa_attention = {.name = "ipa_attention",
                                .infer = infer_attention,
                                .vjp = vjp_attention,
                                .cost = cost_attention,
                                .flags = OPF_FULL,
                                .int_name = {"heads"},
                                .real_name = {"inf"}};

static Status infer_attention_bwd(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *q = rule_in(p, op, 0), *qp = rule_in(p, op, 2), *points = rule_in(p, op, 3), *a = rule_in(p, op, 4);
    const Tensor *da = rule_in(p, op, 6), *d = rule_in(p, op, 7), *dp = rule_in(p, op, 8);
    int64_t heads = op->attr.i[0], n = shape_dim(q, 0);
    if (!queries_fit(p, op, 0) || !SHAPE_IS(a, heads, n, n) || !SHAPE_IS(rule_in(p, op, 5), heads) ||
        (da && !rule_same(da, a)) || (d && !rule_same(d, q)) ||
        (dp && !SHAPE_IS(dp, n, points->dim[1] - qp->dim[1], 3)))
        return rule_bad_shape(p, op, "q[N,H*C] kv[N,H*2C] qp[N,H*P,3] kvp[N,H*(P+V),3] a[H,N,N] w[H] da? do? dop?");
    *n_out = 6;
    for (int k = 0; k < 4; k++) out[k] = shape_real(q, rule_in(p, op, k)->rank, rule_in(p, op, k)->dim);
    out[4] = shape_real(q, 3, a->dim);
    out[5] = SHAPE_REAL(q, heads);
    return OK;
}

const OpDef op_ipa_attention_bwd = {.name = "ipa_attention_bwd",
                                    .infer = infer_attention_bwd,
                                    .cost = cost_attention,
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
    OpAttr heads = {.i = {rule_in(p, op, 0)->dim[0]}};
    din[0] = prog_add(p, OP_PAIR_CONTEXT_DP, 2, (Val[]){dout[0], op->in[1]}, &heads);
    din[1] = prog_add(p, OP_PAIR_CONTEXT_DZ, 2, (Val[]){dout[0], op->in[0]}, NULL);
    return prog_status(p);
}

static void cost_context(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)rule_in(p, op, 0)->dim[0] * (double)tensor_count(rule_in(p, op, 1));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_pair_context = {
    .name = "pair_context", .infer = infer_context, .vjp = vjp_context, .cost = cost_context, .flags = OPF_FULL};

static Status infer_context_dp(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *d = rule_in(p, op, 0), *z = rule_in(p, op, 1);
    int64_t heads = op->attr.i[0];
    if (heads < 1 || !SHAPE_IS(z, -1, -1, -1) || !SHAPE_IS(d, z->dim[0], heads * z->dim[2]))
        return rule_bad_shape(p, op, "do[N,H*C] z[N,M,C]");
    *n_out = 1;
    out[0] = SHAPE_REAL(d, heads, z->dim[0], z->dim[1]);
    return OK;
}

static void cost_context_dp(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)op->attr.i[0] * (double)tensor_count(rule_in(p, op, 1));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_pair_context_dp = {.name = "pair_context_dp",
                                  .infer = infer_context_dp,
                                  .cost = cost_context_dp,
                                  .flags = OPF_NODIFF | OPF_FULL,
                                  .int_name = {"heads"}};

static Status infer_context_dz(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *d = rule_in(p, op, 0), *a = rule_in(p, op, 1);
    bool fits = op->n_in % 2 == 0 && SHAPE_IS(a, -1, -1, -1) && SHAPE_IS(d, a->dim[1], -1) && a->dim[0] > 0 &&
                d->dim[1] % a->dim[0] == 0;
    for (int k = 2; fits && k < op->n_in; k++) fits = rule_in(p, op, k) && rule_same(rule_in(p, op, k), k % 2 ? a : d);
    if (!fits) return rule_bad_shape(p, op, "do[N,H*C] p[H,N,M] ..");
    *n_out = 1;
    out[0] = SHAPE_REAL(d, a->dim[1], a->dim[2], d->dim[1] / a->dim[0]);
    return OK;
}

static void cost_context_dz(const Program *p, const Op *op, Cost *cost)
{
    double heads = (double)rule_in(p, op, 1)->dim[0], terms = op->n_in / 2;
    cost->flops = 2.0 * terms * heads * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_pair_context_dz = {
    .name = "pair_context_dz", .infer = infer_context_dz, .cost = cost_context_dz, .flags = OPF_NODIFF | OPF_FULL};
