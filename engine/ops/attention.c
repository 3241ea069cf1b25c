/* Attention of rows: G groups (optional) of B rows, the rows of a group share a bias. Scores, softmax and context one
 * by one, or fused (Dao et al. 2022: the backward needs only the log-sum-exp of each row of scores). Besides: global
 * column attention of the extra MSA stack (AlphaFold2 supplement algorithm 19). */
#include "engine/rules.h"

typedef struct AttShape {
    int64_t g, b, n, m, hd, heads; /* n queries, m keys, hd = heads x channels */
    int off;                       /* 1 with a group axis, else 0 */
    int row_axis;                  /* axis of B in q */
    int8_t shard;                  /* of q */
    DType dtype;
} AttShape;

/* Reads q and k; false when they do not fit. */
static bool att_shape(const Tensor *q, const Tensor *k, int64_t heads, bool column, AttShape *s)
{
    if (q->rank < 3 || q->rank > 4 || k->rank != q->rank || heads < 1) return false;
    s->off = q->rank - 3;
    s->row_axis = s->off + (column ? 1 : 0);
    int seq_axis = s->off + (column ? 0 : 1);
    s->g = s->off ? q->dim[0] : 1;
    s->b = q->dim[s->row_axis];
    s->n = q->dim[seq_axis];
    s->m = k->dim[seq_axis];
    s->hd = tensor_last(q);
    s->heads = heads;
    s->shard = q->shard;
    s->dtype = q->dtype;
    bool groups = !s->off || k->dim[0] == s->g;
    bool sharded = q->shard == SHARD_NONE || q->shard == s->row_axis || (s->off && q->shard == 0);
    return groups && sharded && k->dim[s->row_axis] == s->b && tensor_last(k) == s->hd && s->hd % heads == 0 &&
           k->shard == q->shard;
}

static bool sharded_by_row(const AttShape *s)
{
    return s->shard == s->row_axis;
}
static bool sharded_by_group(const AttShape *s)
{
    return s->off && s->shard == 0;
}

/* [M], [B,M] or [G,B,M] */
static bool att_mask_fits(const AttShape *s, const Tensor *mask)
{
    if (mask->rank < 1 || mask->rank > 2 + s->off || tensor_last(mask) != s->m) return false;
    int row = mask->rank - 2;
    if (row >= 0 && mask->dim[row] != s->b) return false;
    if (mask->rank == 3 && mask->dim[0] != s->g) return false;
    int8_t shard = SHARD_NONE;
    if (sharded_by_row(s) && row >= 0) shard = (int8_t)row;
    if (sharded_by_group(s) && mask->rank == 3) shard = 0;
    return mask->shard == shard;
}

/* [G?,N,M,H], or [G?,M,N,H] when transposed: whole over the rows */
static Tensor att_bias_tensor(const AttShape *s, bool transposed, DType dtype)
{
    int64_t dim[4] = {s->g, s->n, s->m, s->heads};
    if (transposed) dim[1] = s->m, dim[2] = s->n;
    Tensor t = rule_tensor(dtype, 3 + s->off, s->off ? dim : dim + 1);
    if (sharded_by_group(s)) t.shard = 0;
    return t;
}

/* [G?,B,H,N,...]: rank 4 (scores, with m keys) or 3 (log-sum-exp, m = 0), plus the group axis */
static Tensor att_score_tensor(const AttShape *s, int64_t m, DType dtype)
{
    int64_t dim[5] = {s->g, s->b, s->heads, s->n, m};
    Tensor t = rule_tensor(dtype, (m ? 4 : 3) + s->off, s->off ? dim : dim + 1);
    if (sharded_by_row(s)) t.shard = (int8_t)s->off;
    if (sharded_by_group(s)) t.shard = 0;
    return t;
}

static double att_scores_count(const AttShape *s)
{
    return (double)s->g * (double)s->b * (double)s->heads * (double)s->n * (double)s->m;
}

/* flops of one product over all scores */
static double att_product_flops(const AttShape *s)
{
    return 2.0 * (double)s->g * (double)s->b * (double)s->n * (double)s->m * (double)s->hd;
}

/* --- scores
 * ------------------------------------------------------------------------------------------------------------ */

static Status att_scores_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    static const char *const expected = "q[G?,B,N,H*D] k[G?,B,M,H*D] mask[M]|[B,M]|[G,B,M]? bias[G?,N,M,H]?";
    TRY(rule_require(p, op, 2));
    AttShape s;
    if (!att_shape(rule_in(p, op, 0), rule_in(p, op, 1), op->attr.i[0], false, &s))
        return rule_bad_shape(p, op, expected);
    const Tensor *mask = rule_in(p, op, 2), *bias = rule_in(p, op, 3);
    Tensor want = att_bias_tensor(&s, false, s.dtype);
    if ((mask && !att_mask_fits(&s, mask)) || (bias && !rule_same(bias, &want))) return rule_bad_shape(p, op, expected);
    out[0] = att_score_tensor(&s, s.m, s.dtype);
    *n_out = 1;
    return OK;
}

static Status att_scores_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    bool bias = op->n_in > 3 && op->in[3] != VAL_NONE;
    Val grad[OP_MAX_OUT];
    OpAttr attr = {.i = {op->attr.i[0], bias}, .f = {op->attr.f[0]}};
    prog_add_multi(p, OP_ATT_SCORES_BWD, 3, (Val[]){dout[0], op->in[0], op->in[1]}, &attr, grad);
    din[0] = grad[0];
    din[1] = grad[1];
    if (bias) din[3] = grad[2];
    return OK;
}

static void att_scores_cost(const Program *p, const Op *op, Cost *cost)
{
    AttShape s;
    if (!att_shape(rule_in(p, op, 0), rule_in(p, op, 1), op->attr.i[0], false, &s)) return;
    int terms = 1 + (rule_in(p, op, 2) != NULL) + (rule_in(p, op, 3) != NULL);
    cost->flops = att_product_flops(&s) + terms * att_scores_count(&s);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_att_scores = {.name = "att_scores",
                             .infer = att_scores_infer,
                             .vjp = att_scores_vjp,
                             .cost = att_scores_cost,
                             .flags = OPF_CHEAP,
                             .exact_in = 1 << 2,
                             .int_name = {"heads"},
                             .real_name = {"scale", "inf"}};

static Status att_scores_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *ds = rule_in(p, op, 0), *q = rule_in(p, op, 1), *k = rule_in(p, op, 2);
    AttShape s;
    bool fits = att_shape(q, k, op->attr.i[0], false, &s);
    Tensor want = fits ? att_score_tensor(&s, s.m, ds->dtype) : *ds;
    if (!fits || !rule_same(ds, &want)) return rule_bad_shape(p, op, "ds[G?,B,H,N,M] q[G?,B,N,H*D] k[G?,B,M,H*D]");
    out[0] = *q;
    out[1] = *k;
    if (op->attr.i[1]) out[2] = att_bias_tensor(&s, false, q->dtype);
    *n_out = op->attr.i[1] ? 3 : 2;
    return OK;
}

static void att_scores_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    AttShape s;
    if (!att_shape(rule_in(p, op, 1), rule_in(p, op, 2), op->attr.i[0], false, &s)) return;
    cost->flops = 2.0 * att_product_flops(&s) + (op->attr.i[1] ? att_scores_count(&s) : 0.0);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_att_scores_bwd = {.name = "att_scores_bwd",
                                 .infer = att_scores_bwd_infer,
                                 .cost = att_scores_bwd_cost,
                                 .flags = OPF_NODIFF,
                                 .int_name = {"heads", "bias"},
                                 .real_name = {"scale"}};

/* --- context
 * ----------------------------------------------------------------------------------------------------------- */

/* Probabilities and values that fit: the shape as if q were [G?,B,N,H*D]. */
static bool context_shape(const Tensor *pr, const Tensor *v, int64_t heads, AttShape *s)
{
    if (v->rank < 3 || v->rank > 4 || pr->rank != v->rank + 1 || heads < 1) return false;
    int off = v->rank - 3;
    Tensor q = *v;
    q.dim[off + 1] = pr->dim[off + 2];
    if (!att_shape(&q, v, heads, false, s)) return false;
    Tensor want = att_score_tensor(s, s->m, pr->dtype);
    return rule_same(pr, &want);
}

static Status att_context_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *pr = rule_in(p, op, 0), *v = rule_in(p, op, 1);
    AttShape s;
    if (!context_shape(pr, v, op->attr.i[0], &s)) return rule_bad_shape(p, op, "p[G?,B,H,N,M] v[G?,B,M,H*D]");
    out[0] = *v;
    out[0].dim[s.off + 1] = s.n;
    *n_out = 1;
    return OK;
}

static Status att_context_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_ATT_CONTEXT_BWD, 3, (Val[]){dout[0], op->in[0], op->in[1]}, &op->attr, grad);
    din[0] = grad[0];
    din[1] = grad[1];
    return OK;
}

static void att_context_cost(const Program *p, const Op *op, Cost *cost)
{
    AttShape s;
    if (!context_shape(rule_in(p, op, 0), rule_in(p, op, 1), op->attr.i[0], &s)) return;
    cost->flops = att_product_flops(&s);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_att_context = {.name = "att_context",
                              .infer = att_context_infer,
                              .vjp = att_context_vjp,
                              .cost = att_context_cost,
                              .flags = OPF_CHEAP,
                              .int_name = {"heads"}};

static Status att_context_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *go = rule_in(p, op, 0), *pr = rule_in(p, op, 1), *v = rule_in(p, op, 2);
    AttShape s;
    bool fits = context_shape(pr, v, op->attr.i[0], &s);
    Tensor want = *v;
    if (fits) want.dim[s.off + 1] = s.n;
    if (!fits || !rule_same(go, &want)) return rule_bad_shape(p, op, "do[G?,B,N,H*D] p[G?,B,H,N,M] v[G?,B,M,H*D]");
    out[0] = *pr;
    out[1] = *v;
    *n_out = 2;
    return OK;
}

static void att_context_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    AttShape s;
    if (!context_shape(rule_in(p, op, 1), rule_in(p, op, 2), op->attr.i[0], &s)) return;
    cost->flops = 2.0 * att_product_flops(&s);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_att_context_bwd = {.name = "att_context_bwd",
                                  .infer = att_context_bwd_infer,
                                  .cost = att_context_bwd_cost,
                                  .flags = OPF_NODIFF,
                                  .int_name = {"heads"}};

/* --- fused
 * --------------------------------------------------------------------------------------------------------------- */

/* q k v mask? bias? at positions `at`... */
static Status attention_check(const Program *p, const Op *op, int at, AttShape *s)
{
    static const char *const expected = "q[G?,B,N,H*D] k v[G?,B,M,H*D] mask[M]|[B,M]|[G,B,M]? bias[G?,N,M,H]? (column: "
                                        "q[G?,N,B,H*D]; bias_t: [G?,M,N,H])";
    TRY(rule_require(p, op, at + 3));
    const Tensor *q = rule_in(p, op, at), *k = rule_in(p, op, at + 1), *v = rule_in(p, op, at + 2);
    const Tensor *mask = rule_in(p, op, at + 3), *bias = rule_in(p, op, at + 4);
    if (!att_shape(q, k, op->attr.i[0], op->attr.i[1] != 0, s) || !rule_same(k, v))
        return rule_bad_shape(p, op, expected);
    Tensor want = att_bias_tensor(s, op->attr.i[2] != 0, s->dtype);
    if ((mask && !att_mask_fits(s, mask)) || (bias && !rule_same(bias, &want))) return rule_bad_shape(p, op, expected);
    return OK;
}

static Status attention_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    AttShape s;
    TRY(attention_check(p, op, 0, &s));
    const Tensor *q = rule_in(p, op, 0), *gate = rule_in(p, op, 5);
    bool twice = op->attr.i[3] != 0;
    if ((gate && !rule_same(gate, q)) || (twice && !gate)) return rule_bad_shape(p, op, "a gate like q");
    out[0] = *q;
    out[1] = att_score_tensor(&s, 0, rule_grad_dtype(s.dtype));
    if (gate) out[2] = *q;
    if (twice) out[3] = *q;
    *n_out = twice ? 4 : gate ? 3 : 2;
    return OK;
}

static Status attention_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val mask = op->n_in > 3 ? op->in[3] : VAL_NONE, bias = op->n_in > 4 ? op->in[4] : VAL_NONE;
    Val gate = op->n_in > 5 ? op->in[5] : VAL_NONE, o = op->out[0], go = dout[0], grad[OP_MAX_OUT];
    if (gate != VAL_NONE) {
        o = op->out[2];
        prog_add_multi(p, OP_GATE_BWD, 3, (Val[]){dout[0], gate, o}, NULL, grad);
        din[5] = grad[0];
        go = grad[1];
    }
    Val in[] = {go, op->in[0], op->in[1], op->in[2], mask, bias, o, op->out[1]};
    prog_add_multi(p, OP_ATTENTION_BWD, 8, in, &op->attr, grad);
    for (int i = 0; i < 3; i++) din[i] = grad[i];
    if (bias != VAL_NONE) din[4] = grad[3];
    return OK;
}

/* two products; per score: scale, mask, bias, maximum, exponential, sum */
static void attention_cost(const Program *p, const Op *op, Cost *cost)
{
    AttShape s;
    if (!att_shape(rule_in(p, op, 0), rule_in(p, op, 1), op->attr.i[0], op->attr.i[1] != 0, &s)) return;
    cost->flops = 2.0 * att_product_flops(&s) + 6.0 * att_scores_count(&s);
    if (rule_in(p, op, 5)) cost->flops += 4.0 * (double)tensor_count(rule_in(p, op, 5)); /* as of GATE */
    cost->bytes = rule_bytes(p, op);
}

/* Heads of few channels run kernels of their own, bound by exponentials instead of products: at the same flops and
 * bytes they take several times as long. scale^-2 is the channels of a head. */
enum { HEAD_SMALL, HEAD_MIDDLE, HEAD_FULL };

static int head_class(const Op *op)
{
    double channels = 1 / (op->attr.f[0] * op->attr.f[0]);
    return channels < 12 ? HEAD_SMALL : channels < 24 ? HEAD_MIDDLE : HEAD_FULL;
}

static const char *attention_priced_as(const Op *op)
{
    static const char *const names[] = {"attention_d8", "attention_d16", "attention"};
    return names[head_class(op)];
}

static const char *attention_bwd_priced_as(const Op *op)
{
    static const char *const names[] = {"attention_bwd_d8", "attention_bwd_d16", "attention_bwd"};
    return names[head_class(op)];
}

const OpDef op_attention = {.name = "attention",
                            .priced_as = attention_priced_as,
                            .infer = attention_infer,
                            .vjp = attention_vjp,
                            .cost = attention_cost,
                            .exact_in = 1 << 3,
                            .exact_out = 1 << 1,
                            .optional_out = 1 << 1 | 1 << 2 | 1 << 3,
                            .int_name = {"heads", "column", "bias_t", "twice"},
                            .real_name = {"scale", "inf"}};

static Status attention_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    AttShape s;
    TRY(attention_check(p, op, 1, &s));
    TRY(rule_require(p, op, 4));
    const Tensor *go = rule_in(p, op, 0), *q = rule_in(p, op, 1), *o = rule_in(p, op, 6), *lse = rule_in(p, op, 7);
    const Tensor *delta = rule_in(p, op, 8);
    Tensor want = att_score_tensor(&s, 0, DT_F32), sums = rule_with_last(q, s.heads);
    bool one = (o != NULL) != (delta != NULL); /* delta is all that o is for */
    if (!one || !lse || !rule_same(go, q) || !rule_same(o ? o : q, q) || !rule_same(lse, &want) ||
        !rule_same(delta ? delta : &sums, &sums))
        return rule_bad_shape(p, op, "do q k v mask? bias? o? lse[G?,B,H,N] delta[*,H]?, one of o and delta");
    for (int i = 0; i < 3; i++) out[i] = *rule_in(p, op, 1 + i);
    *n_out = 3;
    if (!rule_in(p, op, 5)) return OK;
    out[3] = *rule_in(p, op, 5);
    *n_out = 4;
    return OK;
}

/* scores again, dp, dv, dq, dk; per score: as forward, then p (dp - sum), and the sum of the bias gradient */
static void attention_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    AttShape s;
    if (!att_shape(rule_in(p, op, 1), rule_in(p, op, 2), op->attr.i[0], op->attr.i[1] != 0, &s)) return;
    cost->flops = 5.0 * att_product_flops(&s) + 8.0 * att_scores_count(&s);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_attention_bwd = {.name = "attention_bwd",
                                .priced_as = attention_bwd_priced_as,
                                .infer = attention_bwd_infer,
                                .cost = attention_bwd_cost,
                                .flags = OPF_NODIFF,
                                .exact_in = 1 << 4 | 1 << 7 | 1 << 8,
                                .int_name = {"heads", "column", "bias_t"},
                                .real_name = {"scale", "inf"}};

/* --- global column attention
 * ------------------------------------------------------------------------------------------- */

static Status masked_mean_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *x = rule_in(p, op, 0), *m = rule_in(p, op, 1);
    if (x->rank != 3 || x->shard == 0 || x->shard == 2 || m->rank != 2 || m->dim[0] != x->dim[0] ||
        m->dim[1] != x->dim[1] || m->shard != x->shard)
        return rule_bad_shape(p, op, "x[S,R,C] m[S,R], whole along S");
    out[0] = rule_tensor(x->dtype, 2, x->dim + 1);
    if (x->shard == 1) out[0].shard = 0;
    *n_out = 1;
    return OK;
}

static Status masked_mean_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_MASKED_MEAN_BWD, 2, (Val[]){dout[0], op->in[1]}, &op->attr);
    return OK;
}

static void masked_mean_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_masked_mean = {.name = "masked_mean",
                              .infer = masked_mean_infer,
                              .vjp = masked_mean_vjp,
                              .cost = masked_mean_cost,
                              .exact_in = 1 << 1,
                              .real_name = {"eps"}};

static Status masked_mean_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *dy = rule_in(p, op, 0), *m = rule_in(p, op, 1);
    if (dy->rank != 2 || m->rank != 2 || m->dim[1] != dy->dim[0] || m->shard != (dy->shard == 0 ? 1 : SHARD_NONE))
        return rule_bad_shape(p, op, "dy[R,C] m[S,R]");
    out[0] = rule_tensor(dy->dtype, 3, (int64_t[]){m->dim[0], dy->dim[0], dy->dim[1]});
    out[0].shard = m->shard;
    *n_out = 1;
    return OK;
}

const OpDef op_masked_mean_bwd = {.name = "masked_mean_bwd",
                                  .infer = masked_mean_bwd_infer,
                                  .cost = rule_cost_elementwise,
                                  .flags = OPF_NODIFF,
                                  .exact_in = 1 << 1,
                                  .real_name = {"eps"}};

/* q[R,H*D] k[S,R,D] v[S,R,D] m[S,R] at positions `at`... */
static Status global_check(const Program *p, const Op *op, int at)
{
    TRY(rule_require(p, op, at + 4));
    const Tensor *q = rule_in(p, op, at), *k = rule_in(p, op, at + 1), *v = rule_in(p, op, at + 2);
    const Tensor *m = rule_in(p, op, at + 3);
    int64_t heads = op->attr.i[0];
    bool fits = q->rank == 2 && k->rank == 3 && rule_same(k, v) && heads >= 1 && q->dim[1] == heads * k->dim[2] &&
                q->dim[0] == k->dim[1] && m->rank == 2 && m->dim[0] == k->dim[0] && m->dim[1] == k->dim[1];
    bool sharded = k->shard == SHARD_NONE || k->shard == 1;
    int8_t of_q = k->shard == 1 ? 0 : SHARD_NONE;
    if (!fits || !sharded || m->shard != k->shard || q->shard != of_q)
        return rule_bad_shape(p, op, "q[R,H*D] k[S,R,D] v[S,R,D] m[S,R], whole along S");
    return OK;
}

static Status global_attention_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(global_check(p, op, 0));
    return rule_infer_like_first(p, op, out, n_out);
}

static Status global_attention_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val in[] = {dout[0], op->in[0], op->in[1], op->in[2], op->in[3]}, grad[OP_MAX_OUT];
    prog_add_multi(p, OP_GLOBAL_ATTENTION_BWD, 5, in, &op->attr, grad);
    for (int i = 0; i < 3; i++) din[i] = grad[i];
    return OK;
}

/* `products` products and `per_score` operations per score; q is `q`, k the input after it */
static void global_cost(const Program *p, const Op *op, int q, double products, double per_score, Cost *cost)
{
    double scores = (double)rule_in(p, op, q + 1)->dim[0] * (double)rule_in(p, op, q)->dim[0] * (double)op->attr.i[0];
    cost->flops = scores * (2.0 * products * (double)tensor_last(rule_in(p, op, q + 1)) + per_score);
    cost->bytes = rule_bytes(p, op);
}
static void global_attention_cost(const Program *p, const Op *op, Cost *cost)
{
    global_cost(p, op, 0, 2, 6, cost);
}
static void global_attention_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    global_cost(p, op, 1, 5, 8, cost);
}

const OpDef op_global_attention = {.name = "global_attention",
                                   .infer = global_attention_infer,
                                   .vjp = global_attention_vjp,
                                   .cost = global_attention_cost,
                                   .exact_in = 1 << 3,
                                   .int_name = {"heads"},
                                   .real_name = {"scale", "inf"}};

static Status global_attention_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(global_check(p, op, 1));
    if (!rule_same(rule_in(p, op, 0), rule_in(p, op, 1))) return rule_bad_shape(p, op, "do like q");
    for (int i = 0; i < 3; i++) out[i] = *rule_in(p, op, 1 + i);
    *n_out = 3;
    return OK;
}

const OpDef op_global_attention_bwd = {.name = "global_attention_bwd",
                                       .infer = global_attention_bwd_infer,
                                       .cost = global_attention_bwd_cost,
                                       .flags = OPF_NODIFF,
                                       .exact_in = 1 << 4,
                                       .int_name = {"heads"},
                                       .real_name = {"scale", "inf"}};
