/* Ground truth and templates of the crop; everything beyond the real residues is zero. */
#include <string.h>

#include "data/features_internal.h"
#include "data/residue.h"

/* Sets the entries of all features without recycling copies to zero from residue `width` on. For features
 * [R, ...] the tail is one block. */
static void zero_residue_tail(Batch *batch, FeatureId id, int64_t width)
{
    const BatchTensor *feature = &batch->feature[id];
    int64_t each = feature->count / batch->sizes.crop;
    memset((char *)feature->data + (size_t)(width * each) * 4, 0, (size_t)(feature->count - width * each) * 4);
}

static int type_of(const AtomView *view, int64_t i)
{
    int type = view->aatype[i];
    return type < 0 || type > RESTYPE_UNKNOWN ? RESTYPE_UNKNOWN : type;
}

static void fill_sequence(const SamplePlan *plan, const AtomView *view, Batch *batch)
{
    float *seq_mask = batch_f32(batch, FEAT_SEQ_MASK, 0);
    int32_t *aatype = batch_i32(batch, FEAT_AATYPE, 0), *index = batch_i32(batch, FEAT_RESIDUE_INDEX, 0);
    for (int64_t i = 0; i < plan->width; ++i) {
        aatype[i] = type_of(view, i);
        index[i] = plan->input->chain->residue_index[plan->start + i];
        seq_mask[i] = 1.0f;
    }
    transform_target_feat(aatype, plan->width, batch_f32(batch, FEAT_TARGET_FEAT, 0));
    *batch_f32(batch, FEAT_IS_DISTILLATION, 0) = 0.0f;
    *batch_f32(batch, FEAT_RESOLUTION, 0) = plan->input->chain->resolution;
    *batch_i32(batch, FEAT_SEQ_LENGTH, 0) = (int32_t)plan->width;
    *batch_f32(batch, FEAT_USE_CLAMPED_FAPE, 0) = (float)plan->clamp;
}

static void fill_atom37(const AtomView *view, Batch *batch)
{
    const ResidueTables *tables = residue_tables();
    float *mask = batch_f32(batch, FEAT_ALL_ATOM_MASK, 0), *exists = batch_f32(batch, FEAT_ATOM37_ATOM_EXISTS, 0);
    int32_t *to_atom14 = batch_i32(batch, FEAT_RESIDX_ATOM37_TO_ATOM14, 0);
    memcpy(batch_f32(batch, FEAT_ALL_ATOM_POSITIONS, 0), view->positions,
           (size_t)(view->length * ATOM37_COUNT * 3) * sizeof(float));
    for (int64_t i = 0; i < view->length * ATOM37_COUNT; ++i) mask[i] = view->mask[i];
    for (int64_t i = 0; i < view->length; ++i) {
        int type = type_of(view, i);
        memcpy(exists + i * ATOM37_COUNT, tables->atom37_mask[type], sizeof tables->atom37_mask[type]);
        memcpy(to_atom14 + i * ATOM37_COUNT, tables->atom37_to_atom14[type], sizeof tables->atom37_to_atom14[type]);
    }
}

/* One residue: coordinates in atom14 order, zero where not resolved. */
static void gather_atom14(const AtomView *view, int64_t i, int type, float *positions, float *resolved)
{
    const ResidueTables *tables = residue_tables();
    for (int a = 0; a < ATOM14_COUNT; ++a) {
        int64_t from = i * ATOM37_COUNT + tables->atom14_to_atom37[type][a];
        bool exists = tables->atom14_mask[type][a] != 0.0f && view->mask[from];
        resolved[a] = exists ? 1.0f : 0.0f;
        for (int k = 0; k < 3; ++k) positions[a * 3 + k] = exists ? view->positions[from * 3 + k] : 0.0f;
    }
}

static void fill_atom14(const AtomView *view, Batch *batch)
{
    const ResidueTables *tables = residue_tables();
    float *positions = batch_f32(batch, FEAT_ATOM14_GT_POSITIONS, 0);
    float *alt_positions = batch_f32(batch, FEAT_ATOM14_ALT_GT_POSITIONS, 0);
    float *resolved = batch_f32(batch, FEAT_ATOM14_GT_EXISTS, 0);
    float *alt_resolved = batch_f32(batch, FEAT_ATOM14_ALT_GT_EXISTS, 0);
    float *exists = batch_f32(batch, FEAT_ATOM14_ATOM_EXISTS, 0);
    float *ambiguous = batch_f32(batch, FEAT_ATOM14_ATOM_IS_AMBIGUOUS, 0);
    int32_t *to_atom37 = batch_i32(batch, FEAT_RESIDX_ATOM14_TO_ATOM37, 0);
    for (int64_t i = 0; i < view->length; ++i) {
        int type = type_of(view, i);
        int64_t at = i * ATOM14_COUNT;
        gather_atom14(view, i, type, positions + at * 3, resolved + at);
        for (int a = 0; a < ATOM14_COUNT; ++a) {
            int64_t partner = at + tables->atom14_swap[type][a];
            alt_resolved[at + a] = resolved[partner];
            memcpy(alt_positions + (at + a) * 3, positions + partner * 3, 3 * sizeof *positions);
        }
        memcpy(exists + at, tables->atom14_mask[type], sizeof tables->atom14_mask[type]);
        memcpy(ambiguous + at, tables->atom14_ambiguous[type], sizeof tables->atom14_ambiguous[type]);
        memcpy(to_atom37 + at, tables->atom14_to_atom37[type], sizeof tables->atom14_to_atom37[type]);
    }
}

static void fill_rigid_groups(const AtomView *view, Batch *batch)
{
    const ResidueTables *tables = residue_tables();
    float *frames = batch_f32(batch, FEAT_RIGIDGROUPS_GT_FRAMES, 0);
    float *resolved = batch_f32(batch, FEAT_RIGIDGROUPS_GT_EXISTS, 0);
    float *exists = batch_f32(batch, FEAT_RIGIDGROUPS_GROUP_EXISTS, 0);
    float *ambiguous = batch_f32(batch, FEAT_RIGIDGROUPS_GROUP_IS_AMBIGUOUS, 0);
    float *backbone = batch_f32(batch, FEAT_BACKBONE_RIGID_TENSOR, 0);
    float *backbone_mask = batch_f32(batch, FEAT_BACKBONE_RIGID_MASK, 0);
    transform_frames(view, frames, batch_f32(batch, FEAT_RIGIDGROUPS_ALT_GT_FRAMES, 0), resolved);
    for (int64_t i = 0; i < view->length; ++i) {
        int type = type_of(view, i);
        for (int group = 0; group < RIGID_GROUPS; ++group) {
            exists[i * RIGID_GROUPS + group] = tables->group_exists[type][group];
            ambiguous[i * RIGID_GROUPS + group] = transform_group_ambiguous(type, group) ? 1.0f : 0.0f;
        }
        memcpy(backbone + i * 16, frames + i * RIGID_GROUPS * 16, 16 * sizeof *backbone);
        backbone_mask[i] = resolved[i * RIGID_GROUPS];
    }
}

static void fill_chi(const AtomView *view, Batch *batch)
{
    enum { TORSIONS = 7, FIRST_CHI = 3, CHIS = 4 };
    float *chi = batch_f32(batch, FEAT_CHI_ANGLES_SIN_COS, 0), *chi_mask = batch_f32(batch, FEAT_CHI_MASK, 0);
    for (int64_t i = 0; i < view->length; ++i) {
        float sin_cos[TORSIONS * 2], alt[TORSIONS * 2], mask[TORSIONS];
        AtomView one = {view->aatype + i, view->positions + i * ATOM37_COUNT * 3, view->mask + i * ATOM37_COUNT, 1,
                        false};
        transform_torsions(&one, sin_cos, alt, mask);
        memcpy(chi + i * CHIS * 2, sin_cos + FIRST_CHI * 2, CHIS * 2 * sizeof *chi);
        memcpy(chi_mask + i * CHIS, mask + FIRST_CHI, CHIS * sizeof *chi_mask);
    }
}

void features_fill_structure(const SamplePlan *plan, Batch *batch)
{
    static const FeatureId PER_RESIDUE[] = {
        FEAT_AATYPE,
        FEAT_ALL_ATOM_MASK,
        FEAT_ALL_ATOM_POSITIONS,
        FEAT_ATOM14_ALT_GT_EXISTS,
        FEAT_ATOM14_ALT_GT_POSITIONS,
        FEAT_ATOM14_ATOM_EXISTS,
        FEAT_ATOM14_ATOM_IS_AMBIGUOUS,
        FEAT_ATOM14_GT_EXISTS,
        FEAT_ATOM14_GT_POSITIONS,
        FEAT_ATOM37_ATOM_EXISTS,
        FEAT_BACKBONE_RIGID_MASK,
        FEAT_BACKBONE_RIGID_TENSOR,
        FEAT_CHI_ANGLES_SIN_COS,
        FEAT_CHI_MASK,
        FEAT_PSEUDO_BETA,
        FEAT_PSEUDO_BETA_MASK,
        FEAT_RESIDUE_INDEX,
        FEAT_RESIDX_ATOM14_TO_ATOM37,
        FEAT_RESIDX_ATOM37_TO_ATOM14,
        FEAT_RIGIDGROUPS_ALT_GT_FRAMES,
        FEAT_RIGIDGROUPS_GROUP_EXISTS,
        FEAT_RIGIDGROUPS_GROUP_IS_AMBIGUOUS,
        FEAT_RIGIDGROUPS_GT_EXISTS,
        FEAT_RIGIDGROUPS_GT_FRAMES,
        FEAT_SEQ_MASK,
        FEAT_TARGET_FEAT,
    };
    const Chain *chain = plan->input->chain;
    AtomView view = {.aatype = chain->aatype + plan->start,
                     .positions = chain->positions + plan->start * ATOM37_COUNT * 3,
                     .mask = chain->mask + plan->start * ATOM37_COUNT,
                     .length = plan->width,
                     .has_previous = plan->start > 0};
    fill_sequence(plan, &view, batch);
    fill_atom37(&view, batch);
    fill_atom14(&view, batch);
    fill_rigid_groups(&view, batch);
    fill_chi(&view, batch);
    transform_pseudo_beta(&view, batch_f32(batch, FEAT_PSEUDO_BETA, 0), batch_f32(batch, FEAT_PSEUDO_BETA_MASK, 0));
    for (size_t i = 0; i < sizeof PER_RESIDUE / sizeof PER_RESIDUE[0]; ++i)
        zero_residue_tail(batch, PER_RESIDUE[i], plan->width);
}

static void fill_template(const SamplePlan *plan, int64_t slot, Batch *batch)
{
    enum { TORSIONS = 7 };
    const TemplateFeatures *templates = plan->input->templates;
    int64_t row = plan->template_row[slot], from = row * templates->columns + plan->start,
            to = slot * batch->sizes.crop;
    AtomView view = {.aatype = templates->aatype + from,
                     .positions = templates->positions + from * ATOM37_COUNT * 3,
                     .mask = templates->mask + from * ATOM37_COUNT,
                     .length = plan->width,
                     .has_previous = plan->start > 0};
    int32_t *aatype = batch_i32(batch, FEAT_TEMPLATE_AATYPE, 0) + to;
    float *mask = batch_f32(batch, FEAT_TEMPLATE_ALL_ATOM_MASK, 0) + to * ATOM37_COUNT;
    for (int64_t i = 0; i < plan->width; ++i) aatype[i] = view.aatype[i];
    for (int64_t i = 0; i < plan->width * ATOM37_COUNT; ++i) mask[i] = view.mask[i];
    memcpy(batch_f32(batch, FEAT_TEMPLATE_ALL_ATOM_POSITIONS, 0) + to * ATOM37_COUNT * 3, view.positions,
           (size_t)(plan->width * ATOM37_COUNT * 3) * sizeof(float));
    transform_torsions(&view, batch_f32(batch, FEAT_TEMPLATE_TORSION_ANGLES_SIN_COS, 0) + to * TORSIONS * 2,
                       batch_f32(batch, FEAT_TEMPLATE_ALT_TORSION_ANGLES_SIN_COS, 0) + to * TORSIONS * 2,
                       batch_f32(batch, FEAT_TEMPLATE_TORSION_ANGLES_MASK, 0) + to * TORSIONS);
    transform_pseudo_beta(&view, batch_f32(batch, FEAT_TEMPLATE_PSEUDO_BETA, 0) + to * 3,
                          batch_f32(batch, FEAT_TEMPLATE_PSEUDO_BETA_MASK, 0) + to);
    batch_f32(batch, FEAT_TEMPLATE_MASK, 0)[slot] = 1.0f;
    batch_f32(batch, FEAT_TEMPLATE_SUM_PROBS, 0)[slot] = templates->sum_probs[row];
}

void features_fill_templates(const SamplePlan *plan, Batch *batch)
{
    for (FeatureId id = FEAT_TEMPLATE_AATYPE; id <= FEAT_TEMPLATE_TORSION_ANGLES_SIN_COS; ++id)
        memset(batch->feature[id].data, 0, (size_t)batch->feature[id].count * 4);
    for (int64_t slot = 0; slot < plan->templates; ++slot) fill_template(plan, slot, batch);
}
