/* Rows of the module goldens: structure module, heads, losses. */
#include <stdio.h>
#include <string.h>

#include "model/structure.h"
#include "tests/parity.h"

/* quaternion and translation as the golden gives them -> frames [N,7] */
static Val frames_in(ModuleCase *c)
{
    Val quats = module_in(c, "quats"), trans = module_in(c, "trans");
    return prog_add(c->p, OP_CONCAT, 2, (Val[]){quats, trans}, &(OpAttr){.i = {1}});
}

static ModelConfig sizes(ModuleCase *c)
{
    ModelConfig m;
    model_config_preset("initial_training", &m);
    m.template_pair.dropout = m.extra_pair.dropout = m.evo_pair.dropout = 0;
    m.extra_msa_dropout = m.evo_msa_dropout = m.sm_dropout = 0;
    m.explicit_dropout = strstr(c->name, "dropout") != NULL;
    return m;
}

static ModelConfig ipa_sizes(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_res = module_dim(c, "in.s", 0);
    m.c_s = module_dim(c, "in.s", 1);
    m.c_z = module_dim(c, "in.z", 2);
    m.sm_c_hidden_ipa = module_int(c, "c_hidden");
    m.sm_heads = module_int(c, "num_heads");
    m.sm_qk_points = module_int(c, "num_qk_points");
    m.sm_v_points = module_int(c, "num_v_points");
    return m;
}

static void ipa(ModuleCase *c)
{
    ModelConfig m = ipa_sizes(c);
    Val s = module_in(c, "s"), z = module_in(c, "z"), frames = frames_in(c), mask = module_in(c, "mask");
    Val pair_bias = structure_pair_bias(c->p, &m, z);
    module_out(c, "s_update", structure_ipa(c->p, &m, s, z, pair_bias, frames, mask), PARITY_REPRESENTATION, "R");
}

static void single_transition(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    Val s = module_in(c, "s");
    m.n_res = module_dim(c, "in.s", 0);
    m.c_s = module_dim(c, "in.s", 1);
    if (m.explicit_dropout) m.sm_dropout = 0.1;
    module_out(c, "s", structure_transition(c->p, &m, s, ""), PARITY_REPRESENTATION, "R");
}

/* Columns of the rotation matrices: the frame without its translation, applied to the unit vectors. */
static Val rotation_matrices(ModuleCase *c, Val frames)
{
    Program *p = c->p;
    if (prog_status(p) != OK) return VAL_NONE;
    int64_t n = prog_tensor(p, frames)->dim[0];
    Val entry[9];
    for (int i = 0; i < 9; i++)
        entry[i] = prog_add(p, OP_FILL, 0, NULL, &(OpAttr){.i = {2, n, 1}, .f = {i % 4 == 0 ? 1.0 : 0.0}});
    Val units = prog_add(p, OP_CONCAT, 9, entry, &(OpAttr){.i = {1}});
    Val pure = prog_add(p, OP_FRAME_SCALE, 1, &frames, &(OpAttr){.f = {0.0}});
    Val columns = prog_add(p, OP_POINTS_TO_GLOBAL, 2, (Val[]){pure, units}, NULL);
    return prog_add(p, OP_TRANSPOSE, 1, &columns, &(OpAttr){.i = {0, 2, 1}});
}

static void backbone_update(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    Val s = module_in(c, "s"), frames = frames_in(c);
    m.n_res = module_dim(c, "in.s", 0);
    m.c_s = module_dim(c, "in.s", 1);
    Val update = structure_backbone_update(c->p, &m, s);
    Val moved = prog_add(c->p, OP_FRAME_UPDATE, 2, (Val[]){frames, update}, NULL);
    module_out(c, "update", update, PARITY_REPRESENTATION, "R");
    module_out(c, "frames", moved, PARITY_GEOMETRY, "R");
    module_out(c, "rot_mats", rotation_matrices(c, moved), PARITY_GEOMETRY, "R");
}

static void angle_resnet(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    Val s = module_in(c, "s"), initial = module_in(c, "s_initial"), raw, angles;
    m.n_res = module_dim(c, "in.s", 0);
    m.c_s = module_dim(c, "in.s", 1);
    m.sm_c_hidden_resnet = module_dim(c, "param.linear_in.weight", 0);
    m.sm_resnet_blocks = module_int(c, "num_blocks");
    structure_angle_resnet(c->p, &m, s, initial, &raw, &angles);
    module_out(c, "unnormalized_angles", raw, PARITY_ANGLE, "R");
    module_out(c, "angles", angles, PARITY_ANGLE, "R");
}

static void structure(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    StructureOut out;
    Val s = module_in(c, "s"), z = module_in(c, "z"), aatype = module_in(c, "aatype"), mask = module_in(c, "mask");
    m.n_res = module_dim(c, "in.s", 0);
    m.c_s = module_dim(c, "in.s", 1);
    m.c_z = module_dim(c, "in.z", 2);
    m.sm_c_hidden_ipa = module_int(c, "c_hidden_ipa");
    m.sm_heads = module_int(c, "num_heads_ipa");
    m.sm_qk_points = module_int(c, "num_qk_points");
    m.sm_v_points = module_int(c, "num_v_points");
    m.sm_c_hidden_resnet = module_int(c, "c_hidden_ang_res");
    m.sm_resnet_blocks = module_int(c, "num_ang_res_blocks");
    m.sm_blocks = module_int(c, "num_blocks");
    structure_module(c->p, &m, s, z, aatype, mask, "", &out);
    module_out(c, "sm_single", out.single, PARITY_REPRESENTATION, "R");
    module_out(c, "sm_frames", out.frames, PARITY_GEOMETRY, ".R");
    module_out(c, "sm_sidechain_frames", out.sidechain_frames, PARITY_GEOMETRY, ".R");
    module_out(c, "sm_unnormalized_angles", out.raw_angles, PARITY_ANGLE, ".R");
    module_out(c, "sm_angles", out.angles, PARITY_ANGLE, ".R");
    module_out(c, "sm_positions", out.positions, PARITY_GEOMETRY, ".R");
    module_out(c, "sm_states", out.states, PARITY_REPRESENTATION, ".R");
}

static void torsions(ModuleCase *c)
{
    Program *p = c->p;
    Val frames = frames_in(c), angles = module_in(c, "angles"), aatype = module_in(c, "aatype");
    Val all = prog_add(p, OP_TORSION_FRAMES, 4,
                       (Val[]){frames, angles, aatype, model_constant(p, CONST_DEFAULT_FRAMES)}, NULL);
    Val atoms = prog_add(p, OP_FRAMES_TO_ATOM14, 5,
                         (Val[]){all, aatype, model_constant(p, CONST_ATOM14_GROUP),
                                 model_constant(p, CONST_ATOM14_MASK), model_constant(p, CONST_ATOM14_POSITION)},
                         NULL);
    module_out(c, "frames_4x4", all, PARITY_GEOMETRY, "");
    module_out(c, "atom14_positions", atoms, PARITY_GEOMETRY, "");
}

static void rename_symmetric(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    RenameOut out;
    m.n_res = module_dim(c, "in.atom14_pred_positions", 0);
    loss_rename(c->p, &m, module_in(c, "atom14_pred_positions"), &out);
    module_out(c, "alt_naming_is_better", out.alt_is_better, PARITY_REPRESENTATION, "");
    module_out(c, "renamed_atom14_gt_positions", out.positions, PARITY_GEOMETRY, "");
    module_out(c, "renamed_atom14_gt_exists", out.exists, PARITY_REPRESENTATION, "");
}

/* ---- heads
 * -------------------------------------------------------------------------------------------------------------- */

static void plddt_head(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_s = module_dim(c, "in.s", 1);
    m.plddt_hidden = module_dim(c, "param.linear_1.weight", 0);
    Val logits = head_plddt(c->p, &m, module_in(c, "s"));
    module_out(c, "logits", logits, PARITY_REPRESENTATION, "");
    module_out(c, "plddt", prog_add(c->p, OP_PLDDT_SCORE, 1, &logits, NULL), PARITY_REPRESENTATION, "");
}

static void distogram_head(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_z = module_dim(c, "in.z", 2);
    module_out(c, "logits", head_distogram(c->p, &m, module_in(c, "z")), PARITY_REPRESENTATION, "");
}

static void masked_msa_head(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_m = module_dim(c, "in.m", 2);
    module_out(c, "logits", head_masked_msa(c->p, &m, module_in(c, "m")), PARITY_REPRESENTATION, "");
}

static void resolved_head(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_s = module_dim(c, "in.s", 1);
    module_out(c, "logits", head_resolved(c->p, &m, module_in(c, "s")), PARITY_REPRESENTATION, "");
}

/* ---- losses: batch features are inputs by name
 * --------------------------------------------------------------------------- */

static void fape_backbone(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.sm_blocks = module_dim(c, "in.sm_frames", 0);
    m.n_res = module_dim(c, "in.sm_frames", 1);
    module_out(c, "loss", loss_fape_backbone(c->p, &m, module_in(c, "sm_frames")), PARITY_LOSS, "");
}

/* The golden hands in all blocks; the loss reads the last. */
static Val last_block(ModuleCase *c, const char *name)
{
    Val all = module_in(c, name);
    if (prog_status(c->p) != OK) return VAL_NONE;
    Tensor t = *prog_tensor(c->p, all);
    Val last = prog_add(c->p, OP_SLICE, 1, &all, &(OpAttr){.i = {0, t.dim[0] - 1, 1}});
    OpAttr shape = {.i = {t.rank - 1}};
    for (int axis = 1; axis < t.rank; axis++) shape.i[axis] = t.dim[axis];
    return prog_add(c->p, OP_RESHAPE, 1, &last, &shape);
}

static void fape_sidechain(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_res = module_dim(c, "in.sm_positions", 1);
    RenameOut renamed = {module_in(c, "alt_naming_is_better"), module_in(c, "renamed_atom14_gt_positions"),
                         module_in(c, "renamed_atom14_gt_exists")};
    Val frames = last_block(c, "sm_sidechain_frames"), positions = last_block(c, "sm_positions");
    module_out(c, "loss", loss_fape_sidechain(c->p, &m, frames, positions, &renamed), PARITY_LOSS, "");
}

static void torsion_loss(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.sm_blocks = module_dim(c, "in.sm_angles", 0);
    m.n_res = module_dim(c, "in.sm_angles", 1);
    Val angles = module_in(c, "sm_angles"), raw = module_in(c, "sm_unnormalized_angles");
    module_out(c, "loss", loss_torsion(c->p, &m, angles, raw), PARITY_LOSS, "");
}

static void distogram_loss(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_res = module_dim(c, "in.logits", 0);
    module_out(c, "loss", loss_distogram(c->p, &m, module_in(c, "logits")), PARITY_LOSS, "");
}

static void masked_msa_loss(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_clust = module_dim(c, "in.logits", 0);
    m.n_res = module_dim(c, "in.logits", 1);
    module_out(c, "loss", loss_masked_msa(c->p, &m, module_in(c, "logits")), PARITY_LOSS, "");
}

static void plddt_loss(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_res = module_dim(c, "in.logits", 0);
    Val logits = module_in(c, "logits"), positions = module_in(c, "final_atom_positions");
    module_out(c, "loss", loss_plddt(c->p, &m, logits, positions), PARITY_LOSS, "");
}

static void resolved_loss(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_res = module_dim(c, "in.logits", 0);
    module_out(c, "loss", loss_resolved(c->p, &m, module_in(c, "logits")), PARITY_LOSS, "");
}

static void violation_loss(ModuleCase *c)
{
    static const struct {
        const char *name;
        int output;
    } parts[] = {{"between_residues.bonds_c_n_loss_mean", 1},
                 {"between_residues.angles_ca_c_n_loss_mean", 2},
                 {"between_residues.angles_c_n_ca_loss_mean", 3},
                 {"between_residues.clashes_mean_loss", 4},
                 {"between_residues.clashes_per_atom_loss_sum", 5},
                 {"within_residues.per_atom_loss_sum", 6},
                 {"between_residues.connections_per_residue_loss_sum", 7},
                 {"between_residues.connections_per_residue_violation_mask", 8},
                 {"between_residues.clashes_per_atom_clash_mask", 9},
                 {"within_residues.per_atom_violations", 10},
                 {"total_per_residue_violations_mask", 11}};
    ModelConfig m = sizes(c);
    m.n_res = module_dim(c, "in.atom14_pred_positions", 0);
    Val loss = loss_violation(c->p, &m, module_in(c, "atom14_pred_positions"));
    if (prog_status(c->p) != OK) return;
    const Op op = c->p->op[c->p->value[loss].def_op];
    module_out(c, "loss", loss, PARITY_LOSS, "");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        module_out(c, parts[i].name, op.out[parts[i].output], PARITY_LOSS, "");
}

const ModuleRow parity_structure_rows[] = {
    {"invariant_point_attention", ipa},
    {"single_transition", single_transition},
    {"backbone_update", backbone_update},
    {"angle_resnet", angle_resnet},
    {"structure_module", structure},
    {"torsions_to_atom14", torsions},
    {"rename_symmetric", rename_symmetric},
    {"head_plddt", plddt_head},
    {"head_distogram", distogram_head},
    {"head_masked_msa", masked_msa_head},
    {"head_experimentally_resolved", resolved_head},
    {"loss_fape_backbone", fape_backbone},
    {"loss_fape_sidechain", fape_sidechain},
    {"loss_supervised_chi", torsion_loss},
    {"loss_distogram", distogram_loss},
    {"loss_masked_msa", masked_msa_loss},
    {"loss_plddt", plddt_loss},
    {"loss_experimentally_resolved", resolved_loss},
    {"loss_violation", violation_loss},
    {NULL, NULL},
};
