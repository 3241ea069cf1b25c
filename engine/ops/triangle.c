/* Triangle products and the outer product mean (AlphaFold2 supplement algorithms 10 to 12). */
#include "engine/ops/norm_behind.h"
#include "engine/rules.h"

/* --- triangle product
 * -------------------------------------------------------------------------------------------------- */

/* Axes of the operands, channel-last or channel-first. */
typedef struct TriAxes {
    int group, first, channel; /* group: axis 0 when there is one, else -1; first: of the two of the matrix */
} TriAxes;

static TriAxes tri_axes(const Tensor *a, const Op *op)
{
    int off = a->rank - 3;
    return (TriAxes){off ? 0 : -1, off + (op->attr.i[2] ? 1 : 0), op->attr.i[2] ? off : off + 2};
}

static Status tri_product_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    static const char *const expected = "a[G?,.,.,C] b[G?,.,.,C] with one common summed axis";
    TRY(rule_require(p, op, 2));
    const Tensor *a = rule_in(p, op, 0), *b = rule_in(p, op, 1);
    if (a->rank < 3 || a->rank > 4 || b->rank != a->rank) return rule_bad_shape(p, op, expected);
    TriAxes at = tri_axes(a, op);
    bool ta = op->attr.i[0] != 0, tb = op->attr.i[1] != 0;
    int a_free = at.first + (ta ? 1 : 0), a_sum = at.first + (ta ? 0 : 1);
    int b_free = at.first + (tb ? 0 : 1), b_sum = at.first + (tb ? 1 : 0);
    bool fits = a->dim[a_sum] == b->dim[b_sum] && a->dim[at.channel] == b->dim[at.channel];
    bool by_sum = a->shard == a_sum || b->shard == b_sum;
    bool by_group = at.group == 0 && (a->shard == 0 || b->shard == 0);
    if (!fits || (at.group == 0 && a->dim[0] != b->dim[0]) || a->shard == at.channel || b->shard == at.channel ||
        (by_sum && (a->shard != a_sum || b->shard != b_sum)) || (by_group && a->shard != b->shard) ||
        (a->shard == a_free && b->shard == b_free))
        return rule_bad_shape(p, op, expected);
    out[0] = *a;
    out[0].dim[at.first] = a->dim[a_free];
    out[0].dim[at.first + 1] = b->dim[b_free];
    out[0].shard = SHARD_NONE; /* summed over a sharded axis: partial sums, for a backward op's reduction */
    if (by_group) out[0].shard = 0;
    if (a->shard == a_free) out[0].shard = (int8_t)at.first;
    if (b->shard == b_free) out[0].shard = (int8_t)(at.first + 1);
    *n_out = 1;
    return OK;
}

/* x = A B with A = a or a^T, B = b or b^T. dA = dx B^T, dB = A^T dx; written so that the result has the layout of a and
 * of b. */
static Status tri_product_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val a = op->in[0], b = op->in[1], dx = dout[0];
    bool ta = op->attr.i[0] != 0, tb = op->attr.i[1] != 0, channels = op->attr.i[2] != 0;
    if (ta)
        din[0] = prog_add(p, OP_TRI_PRODUCT, 2, (Val[]){b, dx}, &(OpAttr){.i = {tb, 1, channels}});
    else
        din[0] = prog_add(p, OP_TRI_PRODUCT, 2, (Val[]){dx, b}, &(OpAttr){.i = {0, !tb, channels}});
    if (tb)
        din[1] = prog_add(p, OP_TRI_PRODUCT, 2, (Val[]){dx, a}, &(OpAttr){.i = {1, ta, channels}});
    else
        din[1] = prog_add(p, OP_TRI_PRODUCT, 2, (Val[]){a, dx}, &(OpAttr){.i = {!ta, 0, channels}});
    return OK;
}

static void tri_product_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *a = rule_in(p, op, 0);
    double summed = (double)a->dim[tri_axes(a, op).first + (op->attr.i[0] ? 0 : 1)];
    cost->flops = 2.0 * summed * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->bytes = rule_bytes(p, op);
}

static const char *tri_product_priced_as(const Op *op)
{
    return op->attr.i[2] ? "tri_product_channels" : "tri_product";
}

const OpDef op_tri_product = {.name = "tri_product",
                              .priced_as = tri_product_priced_as,
                              .infer = tri_product_infer,
                              .vjp = tri_product_vjp,
                              .cost = tri_product_cost,
                              .int_name = {"trans_a", "trans_b", "channels"}};

/* --- outer product
 * ------------------------------------------------------------------------------------------------------ */

/* a[S,N,C] b[S,M,D]: the outer product [N,M,C*D] (replicated partial sums when both are sharded along S) */
static Status outer_tensor(const Program *p, const Op *op, int at, Tensor *out)
{
    const Tensor *a = rule_in(p, op, at), *b = rule_in(p, op, at + 1);
    bool fits = a->rank == 3 && b->rank == 3 && a->dim[0] == b->dim[0];
    bool summed = fits && (a->shard == 0 || b->shard == 0);
    if (!fits || a->shard == 2 || b->shard == 2 || (summed && a->shard != b->shard) || (a->shard == 1 && b->shard == 1))
        return rule_bad_shape(p, op, "a[S,N,C] b[S,M,D], at most one of N and M sharded");
    *out = rule_tensor(a->dtype, 3, (int64_t[]){a->dim[1], b->dim[1], a->dim[2] * b->dim[2]});
    if (a->shard == 1) out->shard = 0;
    if (b->shard == 1) out->shard = 1;
    return OK;
}

static double outer_flops(const Program *p, const Op *op, int at)
{
    const Tensor *a = rule_in(p, op, at), *b = rule_in(p, op, at + 1);
    return 2.0 * (double)tensor_count(a) * (double)b->dim[1] * (double)b->dim[2];
}

static Status outer_product_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    *n_out = 1;
    return outer_tensor(p, op, 0, out);
}

static Status outer_product_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_OUTER_PRODUCT_BWD, 3, (Val[]){dout[0], op->in[0], op->in[1]}, NULL, grad);
    din[0] = grad[0];
    din[1] = grad[1];
    return OK;
}

static void outer_product_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = outer_flops(p, op, 0);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_outer_product = {.name = "outer_product",
                                .infer = outer_product_infer,
                                .vjp = outer_product_vjp,
                                .cost = outer_product_cost,
                                .flags = OPF_CHEAP};

static Status outer_product_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    Tensor want;
    TRY(outer_tensor(p, op, 1, &want));
    if (!rule_same(rule_in(p, op, 0), &want)) return rule_bad_shape(p, op, "do[N,M,C*D] a[S,N,C] b[S,M,D]");
    out[0] = *rule_in(p, op, 1);
    out[1] = *rule_in(p, op, 2);
    *n_out = 2;
    return OK;
}

static void outer_product_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * outer_flops(p, op, 1);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_outer_product_bwd = {
    .name = "outer_product_bwd", .infer = outer_product_bwd_infer, .cost = outer_product_bwd_cost, .flags = OPF_NODIFF};

static Status pair_count_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *m = rule_in(p, op, 0), *n = rule_in(p, op, 1);
    if (m->rank != 2 || n->rank != 2 || m->dim[0] != n->dim[0] || m->shard == 0 || n->shard == 0 ||
        (m->shard == 1 && n->shard == 1))
        return rule_bad_shape(p, op, "m[S,N] n[S,M], whole along S, at most one of N and M sharded");
    out[0] = rule_tensor(m->dtype, 2, (int64_t[]){m->dim[1], n->dim[1]});
    if (m->shard == 1) out[0].shard = 0;
    if (n->shard == 1) out[0].shard = 1;
    *n_out = 1;
    return OK;
}

static void pair_count_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)tensor_count(rule_in(p, op, 0)) * (double)rule_in(p, op, 1)->dim[1];
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_pair_count = {.name = "pair_count",
                             .infer = pair_count_infer,
                             .cost = pair_count_cost,
                             .flags = OPF_NODIFF | OPF_FULL,
                             .exact_in = 3,
                             .exact_out = 1};

/* n[N,M] has the first two axes of x[N,M,C] */
static bool is_count_of(const Tensor *n, const Tensor *x)
{
    return x->rank == 3 && n->rank == 2 && n->dim[0] == x->dim[0] && n->dim[1] == x->dim[1] && n->shard == x->shard;
}

static Status div_count_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    if (!is_count_of(rule_in(p, op, 1), rule_in(p, op, 0))) return rule_bad_shape(p, op, "x[N,M,C] n[N,M]");
    return rule_infer_like_first(p, op, out, n_out);
}

static Status div_count_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = prog_add(p, OP_DIV_COUNT, 2, (Val[]){dout[0], op->in[1]}, &op->attr);
    return OK;
}

const OpDef op_div_count = {.name = "div_count",
                            .infer = div_count_infer,
                            .vjp = div_count_vjp,
                            .cost = rule_cost_elementwise,
                            .flags = OPF_CHEAP,
                            .exact_in = 1 << 1,
                            .real_name = {"eps"}};

/* --- outer product mean without the outer product in memory ---------------------------------------------------------
 */

/* Where a layer norm behind has its gamma and its first output. */
enum { OPM_GAMMA = 8, OPM_NORM_OUT = 1 };

/* masks of the operands from `mask` on, both or none */
static bool opm_masks_fit(const Program *p, const Op *op, int at, int mask)
{
    const Tensor *a = rule_in(p, op, mask), *b = rule_in(p, op, mask + 1);
    if (!a && !b) return true;
    return a && b && a->rank == 2 && b->rank == 2 && rule_is_mask(a, rule_in(p, op, at)) &&
           rule_is_mask(b, rule_in(p, op, at + 1));
}

static Status opm_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    static const char *const expected = "a[S,N,C] b[S,M,D] W[Z,C*D] bias[Z] n[N,M] r[N,M,Z]? (ma[S,N] mb[S,M])?";
    TRY(rule_require(p, op, 5));
    Tensor o;
    TRY(outer_tensor(p, op, 0, &o));
    const Tensor *w = rule_in(p, op, 2), *bias = rule_in(p, op, 3), *count = rule_in(p, op, 4);
    if (w->rank != 2 || w->shard != SHARD_NONE || w->dim[1] != o.dim[2] || !rule_is_vector(bias, w->dim[0]) ||
        !is_count_of(count, &o))
        return rule_bad_shape(p, op, expected);
    out[0] = rule_with_last(&o, w->dim[0]);
    const Tensor *r = rule_in(p, op, 5);
    if ((r && !rule_same(r, &out[0])) || !opm_masks_fit(p, op, 0, 6)) return rule_bad_shape(p, op, expected);
    *n_out = 1;
    return norm_behind_infer(p, op, OPM_GAMMA, OPM_NORM_OUT, out, n_out);
}

static Status opm_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    bool masked = rule_in(p, op, 6);
    Val dz = norm_behind_vjp(p, op, OPM_GAMMA, OPM_NORM_OUT, dout, din);
    Val ma = masked ? op->in[6] : VAL_NONE, mb = masked ? op->in[7] : VAL_NONE, grad[OP_MAX_OUT];
    Val in[] = {dz, op->in[0], op->in[1], op->in[2], op->in[4], ma, mb};
    prog_add_multi(p, OP_OPM_BWD, masked ? 7 : 5, in, &(OpAttr){.f = {op->attr.f[0]}}, grad);
    for (int k = 0; k < 4; k++) din[k] = grad[k];
    if (rule_in(p, op, 5)) din[5] = dz;
    return OK;
}

/* flops of the linear layer on the outer product */
static double opm_linear_flops(const Program *p, const Op *op, int at)
{
    const Tensor *w = rule_in(p, op, at + 2);
    double pairs = (double)rule_in(p, op, at)->dim[1] * (double)rule_in(p, op, at + 1)->dim[1];
    return 2.0 * pairs * (double)w->dim[0] * (double)w->dim[1];
}

static void opm_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops =
        outer_flops(p, op, 0) + opm_linear_flops(p, op, 0) + 2.0 * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->flops += norm_behind_flops(p, op, OPM_GAMMA);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_opm = {.name = "opm",
                      .infer = opm_infer,
                      .vjp = opm_vjp,
                      .cost = opm_cost,
                      .exact_in = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 3 << OPM_GAMMA,
                      .exact_out = 6 << OPM_NORM_OUT,
                      .optional_out = 6 << OPM_NORM_OUT,
                      .real_name = {"eps", "eps_behind"}};

static Status opm_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 5));
    Tensor o;
    TRY(outer_tensor(p, op, 1, &o));
    const Tensor *dz = rule_in(p, op, 0), *w = rule_in(p, op, 3);
    if (w->rank != 2 || w->dim[1] != o.dim[2] || tensor_last(dz) != w->dim[0] || !rule_same_rows(dz, &o) ||
        !is_count_of(rule_in(p, op, 4), &o) || !opm_masks_fit(p, op, 1, 5))
        return rule_bad_shape(p, op, "dz[N,M,Z] a[S,N,C] b[S,M,D] W[Z,C*D] n[N,M] (ma[S,N] mb[S,M])?");
    DType real = rule_grad_dtype(dz->dtype);
    out[0] = *rule_in(p, op, 1);
    out[1] = *rule_in(p, op, 2);
    out[2] = *w;
    out[3] = rule_tensor(real, 1, w->dim);
    out[2].dtype = real;
    *n_out = 4;
    return OK;
}

/* the outer product again, then d(outer), dW, da, db */
static void opm_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops =
        3.0 * outer_flops(p, op, 1) + 2.0 * opm_linear_flops(p, op, 1) + 2.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_opm_bwd = {.name = "opm_bwd",
                          .infer = opm_bwd_infer,
                          .cost = opm_bwd_cost,
                          .flags = OPF_NODIFF,
                          .exact_in = 1 << 4 | 1 << 5 | 1 << 6,
                          .exact_out = 1 << 2 | 1 << 3,
                          .real_name = {"eps"}};
