/* Loss terms of the training step (AlphaFold2 supplement 1.9); constants as in the MLPerf HPC OpenFold reference. */
#include "model/structure.h"

static const double FAPE_CLAMP = 10, FAPE_UNIT = 10, FAPE_EPS = 1e-4, BACKBONE_WEIGHT = 0.5, SIDECHAIN_WEIGHT = 0.5;
static const double CHI_WEIGHT = 0.5, ANGLE_NORM_WEIGHT = 0.01, LOSS_EPS = 1e-8, MEAN_EPS = 1e-4, RENAME_EPS = 1e-10;
static const double DISTOGRAM_MIN = 2.3125, DISTOGRAM_MAX = 21.6875, LDDT_CUTOFF = 15;
static const double MIN_RESOLUTION = 0.1, MAX_RESOLUTION = 3.0;

enum { ATOMS = 14, ATOMS37 = 37, GROUPS = 8 };

static Val feature(Program *p, const char *name, DType dtype, int rank, const int64_t *dim)
{
    return prog_input(p, name, dtype, rank, dim);
}
#define FEATURE(name, dtype, ...)                                                                                      \
    feature(p, name, dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
#define SCALAR_FEATURE(name, dtype) feature(p, name, dtype, 0, NULL)

/* Appends one loss op in the real type; all outputs in out (may be NULL). */
static Val loss_op(Program *p, OpKind kind, int n_in, const Val *in, OpAttr attr, Val *out)
{
    Val outputs[OP_MAX_OUT];
    bool former = prog_full_precision(p, true);
    prog_add_multi(p, kind, n_in, in, &attr, out ? out : outputs);
    prog_full_precision(p, former);
    return out ? out[0] : outputs[0];
}

void loss_rename(Program *p, const ModelConfig *config, Val positions, RenameOut *out)
{
    const int64_t n = config->n_res;
    Val values[OP_MAX_OUT], in[] = {positions,
                                    FEATURE("atom14_gt_positions", DT_F32, n, ATOMS, 3),
                                    FEATURE("atom14_alt_gt_positions", DT_F32, n, ATOMS, 3),
                                    FEATURE("atom14_gt_exists", DT_F32, n, ATOMS),
                                    FEATURE("atom14_alt_gt_exists", DT_F32, n, ATOMS),
                                    FEATURE("atom14_atom_is_ambiguous", DT_F32, n, ATOMS)};
    loss_op(p, OP_RENAME_SYMMETRIC, 6, in, (OpAttr){.f = {RENAME_EPS}}, values);
    *out = (RenameOut){values[0], values[1], values[2]};
}

/* out: loss, clamped, unclamped */
static Val fape_backbone(Program *p, const ModelConfig *config, Val frames, Val *out)
{
    const int64_t n = config->n_res;
    Val in[] = {frames, FEATURE("backbone_rigid_tensor", DT_F32, n, 4, 4), FEATURE("backbone_rigid_mask", DT_F32, n),
                SCALAR_FEATURE("use_clamped_fape", DT_F32)};
    return loss_op(p, OP_LOSS_FAPE_BACKBONE, 4, in, (OpAttr){.f = {FAPE_CLAMP, FAPE_UNIT, FAPE_EPS}}, out);
}

Val loss_fape_backbone(Program *p, const ModelConfig *config, Val frames)
{
    return fape_backbone(p, config, frames, NULL);
}

Val loss_fape_sidechain(Program *p, const ModelConfig *config, Val sidechain_frames, Val positions,
                        const RenameOut *rename)
{
    const int64_t n = config->n_res;
    Val in[] = {sidechain_frames,
                positions,
                FEATURE("rigidgroups_gt_frames", DT_F32, n, GROUPS, 4, 4),
                FEATURE("rigidgroups_alt_gt_frames", DT_F32, n, GROUPS, 4, 4),
                FEATURE("rigidgroups_gt_exists", DT_F32, n, GROUPS),
                rename->alt_is_better,
                rename->positions,
                rename->exists};
    return loss_op(p, OP_LOSS_FAPE_SIDECHAIN, 8, in, (OpAttr){.f = {FAPE_CLAMP, FAPE_UNIT, FAPE_EPS}}, NULL);
}

Val loss_torsion(Program *p, const ModelConfig *config, Val angles, Val raw_angles)
{
    const int64_t n = config->n_res;
    Val in[] = {angles,
                raw_angles,
                FEATURE("aatype", DT_I32, n),
                FEATURE("seq_mask", DT_F32, n),
                FEATURE("chi_mask", DT_F32, n, 4),
                FEATURE("chi_angles_sin_cos", DT_F32, n, 4, 2),
                model_constant(p, CONST_CHI_PI_PERIODIC)};
    return loss_op(p, OP_LOSS_TORSION, 7, in, (OpAttr){.f = {CHI_WEIGHT, ANGLE_NORM_WEIGHT, LOSS_EPS, MEAN_EPS}}, NULL);
}

Val loss_distogram(Program *p, const ModelConfig *config, Val logits)
{
    const int64_t n = config->n_res;
    Val in[] = {logits, FEATURE("pseudo_beta", DT_F32, n, 3), FEATURE("pseudo_beta_mask", DT_F32, n)};
    return loss_op(p, OP_LOSS_DISTOGRAM, 3, in, (OpAttr){.f = {DISTOGRAM_MIN, DISTOGRAM_MAX, LOSS_EPS}}, NULL);
}

Val loss_masked_msa(Program *p, const ModelConfig *config, Val logits)
{
    const int64_t rows = config->n_clust, n = config->n_res;
    Val in[] = {logits, FEATURE("true_msa", DT_I32, rows, n), FEATURE("bert_mask", DT_F32, rows, n)};
    /* the reference halves the mask before it adds eps, and the mean afterwards */
    return loss_op(p, OP_LOSS_MASKED_MSA, 3, in, (OpAttr){.f = {2 * LOSS_EPS}}, NULL);
}

Val loss_plddt(Program *p, const ModelConfig *config, Val logits, Val final_atom_positions)
{
    const int64_t n = config->n_res;
    Val in[] = {logits, final_atom_positions, FEATURE("all_atom_positions", DT_F32, n, ATOMS37, 3),
                FEATURE("all_atom_mask", DT_F32, n, ATOMS37), SCALAR_FEATURE("resolution", DT_F32)};
    return loss_op(p, OP_LOSS_PLDDT, 5, in, (OpAttr){.f = {LDDT_CUTOFF, MIN_RESOLUTION, MAX_RESOLUTION, LOSS_EPS}},
                   NULL);
}

Val loss_resolved(Program *p, const ModelConfig *config, Val logits)
{
    const int64_t n = config->n_res;
    Val in[] = {logits, FEATURE("all_atom_mask", DT_F32, n, ATOMS37), FEATURE("atom37_atom_exists", DT_F32, n, ATOMS37),
                SCALAR_FEATURE("resolution", DT_F32)};
    return loss_op(p, OP_LOSS_RESOLVED, 4, in, (OpAttr){.f = {MIN_RESOLUTION, MAX_RESOLUTION, LOSS_EPS}}, NULL);
}

/* out: loss and parts as in op_list.def */
static Val violation(Program *p, const ModelConfig *config, Val positions, Val *out)
{
    const int64_t n = config->n_res;
    Val in[] = {positions,
                FEATURE("atom14_atom_exists", DT_F32, n, ATOMS),
                FEATURE("residue_index", DT_I32, n),
                FEATURE("aatype", DT_I32, n),
                FEATURE("residx_atom14_to_atom37", DT_I32, n, ATOMS),
                model_constant(p, CONST_VDW_RADIUS),
                model_constant(p, CONST_ATOM14_LOWER),
                model_constant(p, CONST_ATOM14_UPPER),
                model_constant(p, CONST_PEPTIDE_BOND)};
    OpAttr attr = {.f = {MODEL_BOND_TOLERANCE, MODEL_CLASH_OVERLAP, LOSS_EPS}};
    return loss_op(p, OP_LOSS_VIOLATION, 9, in, attr, out);
}

Val loss_violation(Program *p, const ModelConfig *config, Val positions)
{
    return violation(p, config, positions, NULL);
}

/* 0.5 backbone + 0.5 side chain, one term: if one part is not finite, both count as zero. */
static Val fape(Program *p, const ModelConfig *config, const StructureOut *structure)
{
    RenameOut rename;
    Val backbone[OP_MAX_OUT];
    loss_rename(p, config, structure->last_positions, &rename);
    fape_backbone(p, config, structure->frames, backbone);
    Val sidechain =
        loss_fape_sidechain(p, config, structure->last_sidechain_frames, structure->last_positions, &rename);
    Val a = prog_add(p, OP_SCALE, 1, &backbone[0], &(OpAttr){.f = {BACKBONE_WEIGHT}});
    Val b = prog_add(p, OP_SCALE, 1, &sidechain, &(OpAttr){.f = {SIDECHAIN_WEIGHT}});
    prog_tap(p, backbone[1], "loss.fape_backbone_clamped");
    prog_tap(p, backbone[2], "loss.fape_backbone_unclamped");
    prog_tap(p, sidechain, "loss.fape_sidechain");
    prog_tap(p, rename.alt_is_better, "out.alt_naming_is_better");
    prog_tap(p, rename.positions, "out.renamed_atom14_gt_positions");
    prog_tap(p, rename.exists, "out.renamed_atom14_gt_exists");
    return prog_add(p, OP_ADD, 2, (Val[]){a, b}, NULL);
}

static Val violation_with_parts(Program *p, const ModelConfig *config, Val positions)
{
    Val out[OP_MAX_OUT];
    violation(p, config, positions, out);
    prog_tap(p, out[1], "loss.violation_bonds_c_n");
    prog_tap(p, out[2], "loss.violation_angles_ca_c_n");
    prog_tap(p, out[3], "loss.violation_angles_c_n_ca");
    prog_tap(p, prog_add(p, OP_SUM_LEADING, 1, &out[5], &(OpAttr){.i = {2}}), "loss.violation_clash_between_sum");
    prog_tap(p, prog_add(p, OP_SUM_LEADING, 1, &out[6], &(OpAttr){.i = {2}}), "loss.violation_within_sum");
    return out[0];
}

void model_losses(Program *p, const ModelConfig *config, const StructureOut *structure, const HeadsOut *heads)
{
    bool former = prog_full_precision(p, true);
    Val fape_term = fape(p, config, structure);
    Val chi = loss_torsion(p, config, structure->angles, structure->raw_angles);
    Val distogram = loss_distogram(p, config, heads->distogram_logits);
    Val masked_msa = loss_masked_msa(p, config, heads->masked_msa_logits);
    Val plddt = loss_plddt(p, config, heads->lddt_logits, heads->final_atom_positions);
    Val resolved = loss_resolved(p, config, heads->resolved_logits);
    Val violations = violation_with_parts(p, config, structure->last_positions);
    const struct {
        const char *name;
        double weight;
        Val value;
    } terms[] = {
        {"loss.fape", config->w_fape, fape_term},
        {"loss.supervised_chi", config->w_chi, chi},
        {"loss.distogram", config->w_distogram, distogram},
        {"loss.masked_msa", config->w_masked_msa, masked_msa},
        {"loss.plddt_loss", config->w_plddt, plddt},
        {"loss.experimentally_resolved", config->w_resolved, resolved},
        {"loss.violation", config->w_violation, violations},
    };
    Val in[OP_MAX_IN] = {SCALAR_FEATURE("seq_length", DT_I32)}, total[OP_MAX_OUT];
    OpAttr attr = {.i = {config->n_res}};
    int n = 0;
    /* a term of weight zero is a tap: unless somebody asks for it, it and its head are not computed */
    for (size_t k = 0; k < sizeof terms / sizeof *terms; k++) {
        if (terms[k].weight == 0) {
            prog_tap(p, terms[k].value, "%s", terms[k].name);
            continue;
        }
        prog_output(p, terms[k].name, terms[k].value);
        attr.f[n++] = terms[k].weight;
        in[n] = terms[k].value;
    }
    prog_add_multi(p, OP_LOSS_TOTAL, 1 + n, in, &attr, total);
    prog_output(p, "loss.scaled_weighted_total_loss", total[0]);
    prog_output(p, "loss.weighted_total_loss", total[1]);
    p->loss = total[0];
    prog_full_precision(p, former);
}
