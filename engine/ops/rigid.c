/* Frames and atoms: shapes, vjps, costs. Frames are [N,7] = unit quaternion (w, x, y, z) and translation; the rotation
 * matrix is the quadratic form of the quaternion (no renormalisation), which is also what is differentiated. Flops are
 * counts of multiplications and additions in the CPU reference. Nothing here is sharded: the structure module is
 * replicated. */
#include "engine/ops/shape_rules.h"

enum { TYPES = 21, GROUPS = 8, ATOMS = 14 };

static void cost_per_row(const Program *p, const Op *op, Cost *cost, double flops_per_element)
{
    cost->flops = flops_per_element * (double)tensor_count(prog_tensor(p, op->out[0]));
    cost->bytes = rule_bytes(p, op);
}

/* --- frames ----------------------------------------------------------------------------------------------------------
 */

static Status infer_identity(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    if (!x || x->rank < 1 || x->shard == 0) return rule_bad_shape(p, op, "x[N,*]");
    *n_out = 1;
    out[0] = SHAPE_REAL(x, x->dim[0], 7);
    return OK;
}

static void cost_move(const Program *p, const Op *op, Cost *cost)
{
    cost_per_row(p, op, cost, 0);
}

const OpDef op_frame_identity = {
    .name = "frame_identity", .infer = infer_identity, .cost = cost_move, .flags = OPF_NODIFF | OPF_FULL};

static Status infer_update(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *f = rule_in(p, op, 0), *u = rule_in(p, op, 1);
    if (!SHAPE_IS(f, -1, 7) || !SHAPE_IS(u, f->dim[0], 6)) return rule_bad_shape(p, op, "f[N,7] u[N,6]");
    *n_out = 1;
    out[0] = SHAPE_REAL(f, f->dim[0], 7);
    return OK;
}

static Status vjp_update(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_FRAME_UPDATE_BWD, dout[0], INTS(0, 1), INTS(0, 1), din);
}

static void cost_update(const Program *p, const Op *op, Cost *cost)
{
    cost_per_row(p, op, cost, 14);
}

const OpDef op_frame_update = {
    .name = "frame_update", .infer = infer_update, .vjp = vjp_update, .cost = cost_update, .flags = OPF_FULL};

static Status infer_update_bwd(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *d = rule_in(p, op, 0), *f = rule_in(p, op, 1), *u = rule_in(p, op, 2);
    int64_t n = shape_dim(f, 0);
    if (!SHAPE_IS(d, n, 7) || !SHAPE_IS(f, n, 7) || !SHAPE_IS(u, n, 6))
        return rule_bad_shape(p, op, "df[N,7] f[N,7] u[N,6]");
    *n_out = 2;
    out[0] = SHAPE_REAL(d, n, 7);
    out[1] = SHAPE_REAL(d, n, 6);
    return OK;
}

static void cost_update_bwd(const Program *p, const Op *op, Cost *cost)
{
    cost_per_row(p, op, cost, 36);
}

const OpDef op_frame_update_bwd = {
    .name = "frame_update_bwd", .infer = infer_update_bwd, .cost = cost_update_bwd, .flags = OPF_NODIFF | OPF_FULL};

static Status infer_frames(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *f = rule_in(p, op, 0);
    if (!SHAPE_IS(f, -1, 7)) return rule_bad_shape(p, op, "f[N,7]");
    *n_out = 1;
    out[0] = SHAPE_REAL(f, f->dim[0], 7);
    return OK;
}

static Status vjp_stop(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_FRAME_STOP_ROTATION_BWD, dout[0], 0, NULL, INTS(0), din);
}

const OpDef op_frame_stop_rotation = {.name = "frame_stop_rotation",
                                      .infer = infer_frames,
                                      .vjp = vjp_stop,
                                      .cost = cost_move,
                                      .flags = OPF_FULL | OPF_CHEAP};
const OpDef op_frame_stop_rotation_bwd = {
    .name = "frame_stop_rotation_bwd", .infer = infer_frames, .cost = cost_move, .flags = OPF_NODIFF | OPF_FULL};

static Status vjp_scale(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_FRAME_SCALE, dout[0], 0, NULL, INTS(0), din);
}

static void cost_scale(const Program *p, const Op *op, Cost *cost)
{
    cost_per_row(p, op, cost, 3.0 / 7.0);
}

const OpDef op_frame_scale = {.name = "frame_scale",
                              .infer = infer_frames,
                              .vjp = vjp_scale,
                              .cost = cost_scale,
                              .flags = OPF_FULL | OPF_CHEAP,
                              .real_name = {"factor"}};

/* --- points ----------------------------------------------------------------------------------------------------------
 */

static Status infer_to_global(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *f = rule_in(p, op, 0), *x = rule_in(p, op, 1);
    if (!SHAPE_IS(f, -1, 7) || !SHAPE_IS(x, f->dim[0], -1) || x->dim[1] % 3)
        return rule_bad_shape(p, op, "f[N,7] p[N,3*P]");
    *n_out = 1;
    out[0] = SHAPE_REAL(f, x->dim[0], x->dim[1] / 3, 3);
    return OK;
}

static Status vjp_to_global(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_POINTS_TO_GLOBAL_BWD, dout[0], INTS(0, 1), INTS(0, 1), din);
}

static void cost_points(const Program *p, const Op *op, Cost *cost)
{
    cost_per_row(p, op, cost, 6); /* 3 products, 3 sums per coordinate; the matrix is amortised over the points */
}

const OpDef op_points_to_global = {
    .name = "points_to_global", .infer = infer_to_global, .vjp = vjp_to_global, .cost = cost_points, .flags = OPF_FULL};

static Status infer_points_bwd(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool blocks = op->kind == OP_POINTS_TO_GLOBAL_BWD;
    const Tensor *d = rule_in(p, op, 0), *f = rule_in(p, op, 1), *x = rule_in(p, op, 2);
    int64_t n = shape_dim(d, 0), points = shape_dim(d, 1);
    bool fits = SHAPE_IS(d, -1, -1, 3) && SHAPE_IS(f, n, 7);
    fits = fits && (blocks ? SHAPE_IS(x, n, 3 * points) : SHAPE_IS(x, n, points, 3));
    if (!fits) return rule_bad_shape(p, op, "dout[N,P,3] f[N,7] and the points");
    *n_out = 2;
    out[0] = SHAPE_REAL(d, n, 7);
    out[1] = shape_real(d, x->rank, x->dim);
    return OK;
}

static void cost_points_bwd(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 12.0 * (double)tensor_count(prog_tensor(p, op->in[0]));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_points_to_global_bwd = {
    .name = "points_to_global_bwd", .infer = infer_points_bwd, .cost = cost_points_bwd, .flags = OPF_NODIFF | OPF_FULL};

static Status infer_to_local(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *f = rule_in(p, op, 0), *x = rule_in(p, op, 1);
    if (!SHAPE_IS(f, -1, 7) || !SHAPE_IS(x, f->dim[0], -1, 3)) return rule_bad_shape(p, op, "f[N,7] p[N,P,3]");
    *n_out = 1;
    out[0] = shape_real(f, 3, x->dim);
    return OK;
}

static Status vjp_to_local(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_POINTS_TO_LOCAL_BWD, dout[0], INTS(0, 1), INTS(0, 1), din);
}

const OpDef op_points_to_local = {
    .name = "points_to_local", .infer = infer_to_local, .vjp = vjp_to_local, .cost = cost_points, .flags = OPF_FULL};
const OpDef op_points_to_local_bwd = {
    .name = "points_to_local_bwd", .infer = infer_points_bwd, .cost = cost_points_bwd, .flags = OPF_NODIFF | OPF_FULL};

/* --- angles ----------------------------------------------------------------------------------------------------------
 */

static Status infer_normalize(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, op->kind == OP_ANGLE_NORMALIZE ? 0 : 1), *d = rule_in(p, op, 0);
    if (!x || !d || x->rank < 1 || tensor_last(x) != 2 || x->shard != SHARD_NONE || !shape_is(d, x->rank, x->dim))
        return rule_bad_shape(p, op, "[*,2]");
    *n_out = 1;
    out[0] = shape_real(x, x->rank, x->dim);
    return OK;
}

static Status vjp_normalize(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_ANGLE_NORMALIZE_BWD, dout[0], INTS(0), INTS(0), din);
}

static void cost_normalize(const Program *p, const Op *op, Cost *cost)
{
    cost_per_row(p, op, cost, 4);
}

const OpDef op_angle_normalize = {.name = "angle_normalize",
                                  .infer = infer_normalize,
                                  .vjp = vjp_normalize,
                                  .cost = cost_normalize,
                                  .flags = OPF_FULL,
                                  .real_name = {"eps"}};
const OpDef op_angle_normalize_bwd = {.name = "angle_normalize_bwd",
                                      .infer = infer_normalize,
                                      .cost = cost_normalize,
                                      .flags = OPF_NODIFF | OPF_FULL,
                                      .real_name = {"eps"}};

static Status infer_torsion(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_TORSION_FRAMES_BWD;
    const Tensor *f = rule_in(p, op, backward), *angle = rule_in(p, op, 1 + backward);
    const Tensor *aatype = rule_in(p, op, 2 + backward), *tables = rule_in(p, op, 3 + backward);
    int64_t n = shape_dim(f, 0);
    if (!SHAPE_IS(f, n, 7) || !SHAPE_IS(angle, n, 7, 2) || !INDEX_IS(aatype, n) ||
        !SHAPE_IS(tables, TYPES, GROUPS, 4, 4) || (backward && !SHAPE_IS(rule_in(p, op, 0), n, GROUPS, 4, 4)))
        return rule_bad_shape(p, op, "(dout[N,8,4,4]) f[N,7] angle[N,7,2] aatype[N] default_frames[21,8,4,4]");
    *n_out = 1 + backward;
    out[0] = backward ? SHAPE_REAL(f, n, 7) : SHAPE_REAL(f, n, GROUPS, 4, 4);
    if (backward) out[1] = SHAPE_REAL(f, n, 7, 2);
    return OK;
}

static Status vjp_torsion(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_TORSION_FRAMES_BWD, dout[0], INTS(0, 1, 2, 3), INTS(0, 1), din);
}

/* Three compositions of 3x4 transforms (63 each) per group at most. */
static void cost_torsion(const Program *p, const Op *op, Cost *cost)
{
    bool backward = op->kind == OP_TORSION_FRAMES_BWD;
    double rows = (double)prog_tensor(p, op->out[0])->dim[0];
    cost->flops = rows * GROUPS * 3 * 63 * (backward ? 3 : 1);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_torsion_frames = {
    .name = "torsion_frames", .infer = infer_torsion, .vjp = vjp_torsion, .cost = cost_torsion, .flags = OPF_FULL};
const OpDef op_torsion_frames_bwd = {
    .name = "torsion_frames_bwd", .infer = infer_torsion, .cost = cost_torsion, .flags = OPF_NODIFF | OPF_FULL};

/* --- atoms -----------------------------------------------------------------------------------------------------------
 */

static Status infer_atom14(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool backward = op->kind == OP_FRAMES_TO_ATOM14_BWD;
    const Tensor *x = rule_in(p, op, 0);
    int64_t n = shape_dim(x, 0);
    bool fits = backward ? SHAPE_IS(x, n, ATOMS, 3) : SHAPE_IS(x, n, GROUPS, 4, 4);
    if (!fits || !INDEX_IS(rule_in(p, op, 1), n) || !INDEX_IS(rule_in(p, op, 2), TYPES, ATOMS) ||
        !SHAPE_IS(rule_in(p, op, 3), TYPES, ATOMS) || !SHAPE_IS(rule_in(p, op, 4), TYPES, ATOMS, 3))
        return rule_bad_shape(p, op,
                              "frames[N,8,4,4] or dout[N,14,3], aatype[N] group[21,14] mask[21,14] position[21,14,3]");
    *n_out = 1;
    out[0] = backward ? SHAPE_REAL(x, n, GROUPS, 4, 4) : SHAPE_REAL(x, n, ATOMS, 3);
    return OK;
}

static Status vjp_atom14(Program *p, const Op *op, const Val *dout, Val *din)
{
    return vjp_append(p, op, OP_FRAMES_TO_ATOM14_BWD, dout[0], INTS(1, 2, 3, 4), INTS(0), din);
}

static void cost_atom14(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 7.0 * ATOMS * 3 * (double)prog_tensor(p, op->out[0])->dim[0];
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_frames_to_atom14 = {
    .name = "frames_to_atom14", .infer = infer_atom14, .vjp = vjp_atom14, .cost = cost_atom14, .flags = OPF_FULL};
const OpDef op_frames_to_atom14_bwd = {
    .name = "frames_to_atom14_bwd", .infer = infer_atom14, .cost = cost_atom14, .flags = OPF_NODIFF | OPF_FULL};

static Status infer_atom37(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    int64_t n = shape_dim(x, 0);
    if (!SHAPE_IS(x, n, ATOMS, 3) || !INDEX_IS(rule_in(p, op, 1), n, 37) || !SHAPE_IS(rule_in(p, op, 2), n, 37))
        return rule_bad_shape(p, op, "x[N,14,3] index[N,37] exists[N,37]");
    *n_out = 1;
    out[0] = SHAPE_REAL(x, n, 37, 3);
    return OK;
}

const OpDef op_atom14_to_atom37 = {
    .name = "atom14_to_atom37", .infer = infer_atom37, .cost = cost_move, .flags = OPF_NODIFF | OPF_FULL};

static Status infer_pseudo_beta(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    int64_t n = shape_dim(x, 0);
    if (!SHAPE_IS(x, n, 37, 3) || !INDEX_IS(rule_in(p, op, 1), n)) return rule_bad_shape(p, op, "x[N,37,3] aatype[N]");
    *n_out = 1;
    out[0] = SHAPE_REAL(x, n, 3);
    return OK;
}

const OpDef op_pseudo_beta = {
    .name = "pseudo_beta", .infer = infer_pseudo_beta, .cost = cost_move, .flags = OPF_NODIFF | OPF_FULL};

static Status infer_rename(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    int64_t n = shape_dim(x, 0);
    bool fits = SHAPE_IS(x, n, ATOMS, 3);
    for (int k = 1; k < 6; k++)
        fits = fits && (k < 3 ? SHAPE_IS(rule_in(p, op, k), n, ATOMS, 3) : SHAPE_IS(rule_in(p, op, k), n, ATOMS));
    if (!fits) return rule_bad_shape(p, op, "x, gt, alt_gt [N,14,3], exists, alt_exists, ambiguous [N,14]");
    *n_out = 3;
    out[0] = SHAPE_REAL(x, n);
    out[1] = SHAPE_REAL(x, n, ATOMS, 3);
    out[2] = SHAPE_REAL(x, n, ATOMS);
    return OK;
}

/* Two ambiguous atoms at most per residue, against all atoms of all residues, three distances each. */
static void cost_rename(const Program *p, const Op *op, Cost *cost)
{
    double n = (double)prog_tensor(p, op->in[0])->dim[0];
    cost->flops = n * 2 * n * ATOMS * 30;
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_rename_symmetric = {.name = "rename_symmetric",
                                   .infer = infer_rename,
                                   .cost = cost_rename,
                                   .flags = OPF_NODIFF | OPF_FULL,
                                   .real_name = {"eps"}};
