/* Losses of frames, torsions and atom positions: shapes, vjps, costs. The first output is the loss, the only one that
 * is differentiated. */
#include "engine/ops/shape_rules.h"

enum { TYPES = 21, GROUPS = 8, ATOMS = 14 };

/* --- FAPE, algorithm 28 ----------------------------------------------------------------------------------------------
 */

/* frames[B,N,7] target[N,4,4] mask[N] use_clamped[] from input `first` on */
static Status infer_backbone(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_FAPE_BACKBONE_BWD;
    const Tensor *f = rule_in(p, op, backward);
    int64_t n = shape_dim(f, 1);
    if (!SHAPE_IS(f, -1, n, 7) || f->dim[0] < 1 || !SHAPE_IS(rule_in(p, op, 1 + backward), n, 4, 4) ||
        !SHAPE_IS(rule_in(p, op, 2 + backward), n) || !shape_is_scalar(rule_in(p, op, 3 + backward)) ||
        (backward && !shape_is_scalar(rule_in(p, op, 0))))
        return rule_bad_shape(p, op, "(dl[]) frames[B,N,7] target[N,4,4] mask[N] use_clamped[]");
    *n_out = backward ? 1 : 3;
    if (backward) out[0] = shape_real(f, 3, f->dim);
    for (int k = 0; k < *n_out && !backward; k++) out[k] = shape_scalar(f);
    return OK;
}

static Status vjp_backbone(Program *p, const Op *op, const Val *dout, Val *din)
{
    TRY(vjp_only_first(op, dout));
    return vjp_append(p, op, OP_LOSS_FAPE_BACKBONE_BWD, dout[0], INTS(0, 1, 2, 3), INTS(0), din);
}

/* Per pair of frame and position: two transforms (18 each), distance, clamp and masks; about half more backwards. */
static void cost_pairs(const Program *p, const Op *op, Cost *cost, double pairs, bool backward)
{
    cost->flops = pairs * (backward ? 75 : 50);
    cost->bytes = rule_bytes(p, op);
}

static void cost_backbone(const Program *p, const Op *op, Cost *cost)
{
    bool backward = op->kind == OP_LOSS_FAPE_BACKBONE_BWD;
    const Tensor *f = rule_in(p, op, backward);
    cost_pairs(p, op, cost, (double)f->dim[0] * (double)f->dim[1] * (double)f->dim[1], backward);
}

const OpDef op_loss_fape_backbone = {.name = "loss_fape_backbone",
                                     .infer = infer_backbone,
                                     .vjp = vjp_backbone,
                                     .cost = cost_backbone,
                                     .flags = OPF_FULL,
                                     .real_name = {"clamp", "unit", "eps"}};
const OpDef op_loss_fape_backbone_bwd = {.name = "loss_fape_backbone_bwd",
                                         .infer = infer_backbone,
                                         .cost = cost_backbone,
                                         .flags = OPF_NODIFF | OPF_FULL,
                                         .real_name = {"clamp", "unit", "eps"}};

static Status infer_sidechain(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_FAPE_SIDECHAIN_BWD;
    int k = backward;
    const Tensor *f = rule_in(p, op, k);
    int64_t n = shape_dim(f, 0);
    if (!SHAPE_IS(f, n, GROUPS, 4, 4) || !SHAPE_IS(rule_in(p, op, k + 1), n, ATOMS, 3) ||
        !SHAPE_IS(rule_in(p, op, k + 2), n, GROUPS, 4, 4) || !SHAPE_IS(rule_in(p, op, k + 3), n, GROUPS, 4, 4) ||
        !SHAPE_IS(rule_in(p, op, k + 4), n, GROUPS) || !SHAPE_IS(rule_in(p, op, k + 5), n) ||
        !SHAPE_IS(rule_in(p, op, k + 6), n, ATOMS, 3) || !SHAPE_IS(rule_in(p, op, k + 7), n, ATOMS) ||
        (backward && !shape_is_scalar(rule_in(p, op, 0))))
        return rule_bad_shape(p, op,
                              "(dl[]) frames[N,8,4,4] atoms[N,14,3] gt, alt_gt [N,8,4,4] frame_exists[N,8] "
                              "alt_is_better[N] gt_atoms[N,14,3] atom_exists[N,14]");
    *n_out = 1 + backward;
    out[0] = backward ? SHAPE_REAL(f, n, GROUPS, 4, 4) : shape_scalar(f);
    if (backward) out[1] = SHAPE_REAL(f, n, ATOMS, 3);
    return OK;
}

static Status vjp_sidechain(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_LOSS_FAPE_SIDECHAIN_BWD, dout[0], INTS(0, 1, 2, 3, 4, 5, 6, 7), INTS(0, 1), din);
}

static void cost_sidechain(const Program *p, const Op *op, Cost *cost)
{
    bool backward = op->kind == OP_LOSS_FAPE_SIDECHAIN_BWD;
    double n = (double)rule_in(p, op, backward)->dim[0];
    cost_pairs(p, op, cost, n * GROUPS * n * ATOMS, backward);
}

const OpDef op_loss_fape_sidechain = {.name = "loss_fape_sidechain",
                                      .infer = infer_sidechain,
                                      .vjp = vjp_sidechain,
                                      .cost = cost_sidechain,
                                      .flags = OPF_FULL,
                                      .real_name = {"clamp", "unit", "eps"}};
const OpDef op_loss_fape_sidechain_bwd = {.name = "loss_fape_sidechain_bwd",
                                          .infer = infer_sidechain,
                                          .cost = cost_sidechain,
                                          .flags = OPF_NODIFF | OPF_FULL,
                                          .real_name = {"clamp", "unit", "eps"}};

/* --- torsions, algorithm 27 ------------------------------------------------------------------------------------------
 */

static Status infer_torsion(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_TORSION_BWD;
    int k = backward;
    const Tensor *a = rule_in(p, op, k);
    int64_t blocks = shape_dim(a, 0), n = shape_dim(a, 1);
    if (!SHAPE_IS(a, blocks, n, 7, 2) || !SHAPE_IS(rule_in(p, op, k + 1), blocks, n, 7, 2) ||
        !INDEX_IS(rule_in(p, op, k + 2), n) || !SHAPE_IS(rule_in(p, op, k + 3), n) ||
        !SHAPE_IS(rule_in(p, op, k + 4), n, 4) || !SHAPE_IS(rule_in(p, op, k + 5), n, 4, 2) ||
        !SHAPE_IS(rule_in(p, op, k + 6), TYPES, 4) || (backward && !shape_is_scalar(rule_in(p, op, 0))))
        return rule_bad_shape(p, op,
                              "(dl[]) angle, raw [B,N,7,2] aatype[N] seq_mask[N] chi_mask[N,4] chi[N,4,2] "
                              "pi_periodic[21,4]");
    *n_out = backward ? 2 : 3;
    for (int i = 0; i < *n_out; i++) out[i] = backward ? shape_real(a, 4, a->dim) : shape_scalar(a);
    return OK;
}

static Status vjp_torsion(Program *p, const Op *op, const Val *dout, Val *din)
{
    TRY(vjp_only_first(op, dout));
    return vjp_append(p, op, OP_LOSS_TORSION_BWD, dout[0], INTS(0, 1, 2, 3, 4, 5, 6), INTS(0, 1), din);
}

static void cost_torsion(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *a = rule_in(p, op, op->kind == OP_LOSS_TORSION_BWD);
    cost->flops = 10.0 * (double)tensor_count(a);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_loss_torsion = {.name = "loss_torsion",
                               .infer = infer_torsion,
                               .vjp = vjp_torsion,
                               .cost = cost_torsion,
                               .flags = OPF_FULL,
                               .real_name = {"chi_weight", "norm_weight", "eps", "mean_eps"}};
const OpDef op_loss_torsion_bwd = {.name = "loss_torsion_bwd",
                                   .infer = infer_torsion,
                                   .cost = cost_torsion,
                                   .flags = OPF_NODIFF | OPF_FULL,
                                   .real_name = {"chi_weight", "norm_weight", "eps", "mean_eps"}};

/* --- violations, supplement 1.9.11 -----------------------------------------------------------------------------------
 */

static Status infer_violation(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_LOSS_VIOLATION_BWD;
    int k = backward;
    const Tensor *x = rule_in(p, op, k);
    int64_t n = shape_dim(x, 0);
    if (!SHAPE_IS(x, n, ATOMS, 3) || !SHAPE_IS(rule_in(p, op, k + 1), n, ATOMS) ||
        !INDEX_IS(rule_in(p, op, k + 2), n) || !INDEX_IS(rule_in(p, op, k + 3), n) ||
        !INDEX_IS(rule_in(p, op, k + 4), n, ATOMS) || !SHAPE_IS(rule_in(p, op, k + 5), 37) ||
        !SHAPE_IS(rule_in(p, op, k + 6), TYPES, ATOMS, ATOMS) ||
        !SHAPE_IS(rule_in(p, op, k + 7), TYPES, ATOMS, ATOMS) || !SHAPE_IS(rule_in(p, op, k + 8), 4, 2) ||
        (backward && !shape_is_scalar(rule_in(p, op, 0))))
        return rule_bad_shape(p, op,
                              "(dl[]) x[N,14,3] exists[N,14] residue_index[N] aatype[N] atom37_index[N,14] radius[37] "
                              "lower, upper [21,14,14] peptide[4,2]");
    *n_out = backward ? 1 : 12;
    if (backward) {
        out[0] = SHAPE_REAL(x, n, ATOMS, 3);
        return OK;
    }
    for (int i = 0; i < 5; i++) out[i] = shape_scalar(x);
    out[5] = out[6] = out[9] = out[10] = SHAPE_REAL(x, n, ATOMS);
    out[7] = out[8] = out[11] = SHAPE_REAL(x, n);
    return OK;
}

static Status vjp_violation(Program *p, const Op *op, const Val *dout, Val *din)
{
    TRY(vjp_only_first(op, dout));
    return vjp_append(p, op, OP_LOSS_VIOLATION_BWD, dout[0], INTS(0, 1, 2, 3, 4, 5, 6, 7, 8), INTS(0), din);
}

/* Half of all pairs of atoms, a distance and a bound each (15). */
static void cost_violation(const Program *p, const Op *op, Cost *cost)
{
    double n = (double)rule_in(p, op, op->kind == OP_LOSS_VIOLATION_BWD)->dim[0] * ATOMS;
    cost->flops = 0.5 * n * n * 15;
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_loss_violation = {.name = "loss_violation",
                                 .infer = infer_violation,
                                 .vjp = vjp_violation,
                                 .cost = cost_violation,
                                 .flags = OPF_FULL,
                                 .real_name = {"tolerance", "overlap", "eps"}};
const OpDef op_loss_violation_bwd = {.name = "loss_violation_bwd",
                                     .infer = infer_violation,
                                     .cost = cost_violation,
                                     .flags = OPF_NODIFF | OPF_FULL,
                                     .real_name = {"tolerance", "overlap", "eps"}};
