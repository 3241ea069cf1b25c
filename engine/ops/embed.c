/* Features that the model computes from its inputs. They are coordinates, masks and indices: the results (but for the
 * embedded relative position) are constants of a step, and always in the real type. */
#include "engine/rules.h"

enum { RESIDUE_TYPES = 22, ANGLE_FEATURES = 57, EXTRA_MSA_FEATURES = 25, ATOMS37 = 37, TORSIONS = 7 };

static bool has_shape(const Tensor *t, int rank, const int64_t *dim)
{
    Tensor want = rule_tensor(t->dtype, rank, dim);
    return rule_same(t, &want);
}

/* --- relative position (supplement algorithms 4 and 5)
 * ----------------------------------------------------------------- */

static Status relpos_embed_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *index = rule_in(p, op, 0), *w = rule_in(p, op, 1), *b = rule_in(p, op, 2);
    int64_t k = op->attr.i[0];
    if (index->dtype != DT_I32 || index->rank != 1 || index->shard != SHARD_NONE || k < 0 || w->rank != 2 ||
        w->shard != SHARD_NONE || w->dim[1] != 2 * k + 1 || !rule_is_vector(b, w->dim[0]))
        return rule_bad_shape(p, op, "index i32[N] W[C,2k+1] b[C]");
    out[0] = rule_tensor(w->dtype, 3, (int64_t[]){index->dim[0], index->dim[0], w->dim[0]});
    *n_out = 1;
    return OK;
}

static Status relpos_embed_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    Val grad[OP_MAX_OUT];
    prog_add_multi(p, OP_RELPOS_EMBED_BWD, 2, (Val[]){dout[0], op->in[0]}, &op->attr, grad);
    din[1] = grad[0];
    din[2] = grad[1];
    return OK;
}

const OpDef op_relpos_embed = {.name = "relpos_embed",
                               .infer = relpos_embed_infer,
                               .vjp = relpos_embed_vjp,
                               .cost = rule_cost_elementwise,
                               .exact_in = 1 << 2,
                               .int_name = {"k"}};

static Status relpos_embed_bwd_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 2));
    const Tensor *dy = rule_in(p, op, 0), *index = rule_in(p, op, 1);
    if (dy->rank != 3 || dy->shard != SHARD_NONE || index->rank != 1 || dy->dim[0] != index->dim[0] ||
        dy->dim[1] != index->dim[0])
        return rule_bad_shape(p, op, "dy[N,N,C] index i32[N]");
    DType real = rule_grad_dtype(dy->dtype);
    out[0] = rule_tensor(real, 2, (int64_t[]){dy->dim[2], 2 * op->attr.i[0] + 1});
    out[1] = rule_tensor(real, 1, &dy->dim[2]);
    *n_out = 2;
    return OK;
}

static void relpos_embed_bwd_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2.0 * (double)tensor_count(rule_in(p, op, 0));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_relpos_embed_bwd = {.name = "relpos_embed_bwd",
                                   .infer = relpos_embed_bwd_infer,
                                   .cost = relpos_embed_bwd_cost,
                                   .flags = OPF_NODIFF,
                                   .exact_out = 3,
                                   .int_name = {"k"}};

/* --- features without gradient
 * ----------------------------------------------------------------------------------------- */

/* OPF_TYPED: the type in the attribute, else that of the input. */
static DType feature_type(const Op *op, const Tensor *x)
{
    return op->attr.i[ATTR_TYPE] ? (DType)op->attr.i[ATTR_TYPE] : x->dtype;
}

static Status dist_bins_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *x = rule_in(p, op, 0);
    if (x->rank != 2 || x->dim[1] != 3 || x->shard != SHARD_NONE || op->attr.i[0] < 2)
        return rule_bad_shape(p, op, "x[N,3], at least 2 bins");
    out[0] = rule_tensor(feature_type(op, x), 3, (int64_t[]){x->dim[0], x->dim[0], op->attr.i[0]});
    *n_out = 1;
    return OK;
}

const OpDef op_dist_bins = {.name = "dist_bins",
                            .infer = dist_bins_infer,
                            .cost = rule_cost_elementwise,
                            .flags = OPF_NODIFF | OPF_CHEAP | OPF_FULL | OPF_TYPED,
                            .exact_in = 1,
                            .int_name = {"bins", [ATTR_TYPE] = "type"},
                            .real_name = {"min", "max", "last"}};

static Status template_pair_feat_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 4));
    const Tensor *x = rule_in(p, op, 0), *mask = rule_in(p, op, 1), *type = rule_in(p, op, 2),
                 *atom = rule_in(p, op, 3);
    int64_t t = x->dim[0], n = x->dim[1], bins = op->attr.i[0];
    if (!has_shape(x, 3, (int64_t[]){t, n, 3}) || !has_shape(mask, 2, x->dim) || !has_shape(type, 2, x->dim) ||
        type->dtype != DT_I32 || !has_shape(atom, 3, (int64_t[]){t, n, ATOMS37}) || bins < 2)
        return rule_bad_shape(p, op, "pseudo_beta[T,N,3] mask[T,N] aatype i32[T,N] atom_mask[T,N,37]");
    /* distogram, mask, residue types of j and i, unit vector, backbone mask */
    int64_t channels = bins + 1 + 2 * RESIDUE_TYPES + 3 + 1;
    out[0] = rule_tensor(feature_type(op, x), 4, (int64_t[]){t, n, n, channels});
    *n_out = 1;
    return OK;
}

const OpDef op_template_pair_feat = {.name = "template_pair_feat",
                                     .infer = template_pair_feat_infer,
                                     .cost = rule_cost_elementwise,
                                     .flags = OPF_NODIFF | OPF_CHEAP | OPF_FULL | OPF_TYPED,
                                     .exact_in = 1 | 1 << 1 | 1 << 3,
                                     .int_name = {"bins", [ATTR_TYPE] = "type"},
                                     .real_name = {"min", "max", "last"}};

static Status template_angle_feat_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 4));
    const Tensor *type = rule_in(p, op, 0), *angle = rule_in(p, op, 1), *alt = rule_in(p, op, 2);
    const Tensor *mask = rule_in(p, op, 3);
    int64_t dim[4] = {type->dim[0], type->dim[1], TORSIONS, 2};
    if (type->dtype != DT_I32 || type->rank != 2 || type->shard != SHARD_NONE || !has_shape(angle, 4, dim) ||
        !has_shape(alt, 4, dim) || !has_shape(mask, 3, dim))
        return rule_bad_shape(p, op, "aatype i32[T,N] sincos[T,N,7,2] alt[T,N,7,2] mask[T,N,7]");
    out[0] = rule_tensor(feature_type(op, angle), 3, (int64_t[]){dim[0], dim[1], ANGLE_FEATURES});
    *n_out = 1;
    return OK;
}

const OpDef op_template_angle_feat = {.name = "template_angle_feat",
                                      .infer = template_angle_feat_infer,
                                      .cost = rule_cost_elementwise,
                                      .flags = OPF_NODIFF | OPF_CHEAP | OPF_FULL | OPF_TYPED,
                                      .exact_in = 1 << 1 | 1 << 2 | 1 << 3,
                                      .int_name = {[ATTR_TYPE] = "type"}};

static Status extra_msa_feat_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 3));
    const Tensor *msa = rule_in(p, op, 0), *has = rule_in(p, op, 1), *value = rule_in(p, op, 2);
    if (msa->dtype != DT_I32 || msa->rank != 2 || !rule_same(has, msa) || !rule_same(value, msa))
        return rule_bad_shape(p, op, "msa i32[S,N] has_deletion[S,N] deletion_value[S,N]");
    out[0] = rule_tensor(feature_type(op, has), 3, (int64_t[]){msa->dim[0], msa->dim[1], EXTRA_MSA_FEATURES});
    out[0].shard = msa->shard;
    *n_out = 1;
    return OK;
}

const OpDef op_extra_msa_feat = {.name = "extra_msa_feat",
                                 .infer = extra_msa_feat_infer,
                                 .cost = rule_cost_elementwise,
                                 .flags = OPF_NODIFF | OPF_CHEAP | OPF_FULL | OPF_TYPED,
                                 .exact_in = 1 << 1 | 1 << 2,
                                 .int_name = {[ATTR_TYPE] = "type"}};

static Status mask_any_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *m = rule_in(p, op, 0);
    if (m->shard != SHARD_NONE) return rule_bad_shape(p, op, "a whole mask");
    out[0] = rule_tensor(m->dtype, 0, NULL);
    *n_out = 1;
    return OK;
}

const OpDef op_mask_any = {.name = "mask_any",
                           .infer = mask_any_infer,
                           .cost = rule_cost_elementwise,
                           .flags = OPF_NODIFF | OPF_CHEAP | OPF_FULL,
                           .exact_in = 1,
                           .exact_out = 1};
