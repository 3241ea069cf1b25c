/* transforms/07_structure*, 08_templates*, 09_crop_cases.json: ground truth, template features, crops. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/features_internal.h"
#include "data/residue.h"
#include "tests/data_golden_case.h"

/* A chain of the golden's arrays with itself as alignment, through the whole pipeline in evaluation mode. */
static Batch *build(Case *c, Chain *chain, const TemplateFeatures *templates)
{
    int64_t length = chain->length;
    Msa alignment = {.rows = 1, .columns = length};
    PreparedMsa msa;
    alignment.hhblits_id = case_take(c, length, 1);
    alignment.deletions = case_take(c, length, sizeof *alignment.deletions);
    if (!golden_ok(c->golden, msa_prepare(&alignment, &c->arena, &msa), c->name)) return NULL;
    chain->residue_index = case_take(c, length, sizeof *chain->residue_index);
    BatchSizes sizes = {length, 1, 0, templates ? templates->count : 0, 1};
    FeatureConfig config = feature_config_default();
    config.train = false;
    SampleInput input = {chain, &msa, templates};
    Draws draws = {.seed = 1};
    FeatureWorkspace *workspace = NULL;
    Batch *batch = NULL;
    Status status = feature_workspace_create(&workspace);
    if (status == OK) status = batch_create(&sizes, NULL, 0, &batch);
    if (status == OK) status = features_build(&input, &config, 1, &draws, workspace, batch);
    feature_workspace_destroy(&workspace);
    if (!golden_ok(c->golden, status, c->name)) batch_destroy(&batch);
    return batch;
}

static int8_t *small_integers(Case *c, const char *name)
{
    int64_t count;
    const int64_t *in = case_integers(c, name, &count);
    int8_t *out = case_take(c, count, 1);
    for (int64_t i = 0; in && i < count; ++i) out[i] = (int8_t)in[i];
    return out;
}

/* One feature against "out.NAME", float or integer by its type; `mask` selects what the reference defines. */
static void match_feature(Case *c, const Batch *batch, FeatureId id, const float *mask, int64_t each)
{
    const BatchTensor *feature = &batch->feature[id];
    char name[96];
    snprintf(name, sizeof name, "out.%s", feature->name);
    const StTensor *want = st_find(c->file, name);
    if (!want) return;
    if (want->count != feature->count)
        golden_check(c->golden, false, case_label(c, name), "%lld values, expected %lld", (long long)feature->count,
                     (long long)want->count);
    else if (feature->tensor.dtype == DT_I32)
        case_match_i32(c, name, feature->data);
    else
        case_match_f32(c, name, feature->data, mask, each);
}

static void check_torsions(Case *c, const Chain *chain)
{
    enum { TORSIONS = 7 };
    AtomView view = {chain->aatype, chain->positions, chain->mask, chain->length, false};
    float *sin_cos = case_take(c, view.length * TORSIONS * 2, sizeof *sin_cos);
    float *alt = case_take(c, view.length * TORSIONS * 2, sizeof *alt);
    float *mask = case_take(c, view.length * TORSIONS, sizeof *mask);
    transform_torsions(&view, sin_cos, alt, mask);
    case_match_f32(c, "out.torsion_angles_mask", mask, NULL, 1);
    case_match_f32(c, "out.torsion_angles_sin_cos", sin_cos, mask, 2);
    case_match_f32(c, "out.alt_torsion_angles_sin_cos", alt, mask, 2);
}

void case_check_structure(Case *c)
{
    static const FeatureId COMPARED[] = {
        FEAT_ATOM14_ALT_GT_EXISTS,
        FEAT_ATOM14_ALT_GT_POSITIONS,
        FEAT_ATOM14_ATOM_EXISTS,
        FEAT_ATOM14_ATOM_IS_AMBIGUOUS,
        FEAT_ATOM14_GT_EXISTS,
        FEAT_ATOM14_GT_POSITIONS,
        FEAT_ATOM37_ATOM_EXISTS,
        FEAT_PSEUDO_BETA,
        FEAT_PSEUDO_BETA_MASK,
        FEAT_RESIDX_ATOM14_TO_ATOM37,
        FEAT_RESIDX_ATOM37_TO_ATOM14,
        FEAT_RIGIDGROUPS_GROUP_EXISTS,
        FEAT_RIGIDGROUPS_GROUP_IS_AMBIGUOUS,
        FEAT_RIGIDGROUPS_GT_EXISTS,
    };
    Chain chain = {.length = case_extent(c, "in.aatype", 0), .aatype = small_integers(c, "in.aatype")};
    chain.positions = case_floats(c, "in.all_atom_positions", NULL);
    chain.mask = (uint8_t *)small_integers(c, "in.all_atom_mask");
    Batch *batch = chain.positions && chain.length > 0 ? build(c, &chain, NULL) : NULL;
    if (!batch) return;
    for (size_t i = 0; i < sizeof COMPARED / sizeof COMPARED[0]; ++i) match_feature(c, batch, COMPARED[i], NULL, 1);
    const float *exists = batch_f32(batch, FEAT_RIGIDGROUPS_GT_EXISTS, 0);
    match_feature(c, batch, FEAT_RIGIDGROUPS_GT_FRAMES, exists, 16);
    match_feature(c, batch, FEAT_RIGIDGROUPS_ALT_GT_FRAMES, exists, 16);
    if (st_find(c->file, "out64.rigidgroups_gt_frames")) {
        case_match_f32(c, "out64.rigidgroups_gt_frames", batch_f32(batch, FEAT_RIGIDGROUPS_GT_FRAMES, 0), exists, 16);
        case_match_f32(c, "out64.rigidgroups_alt_gt_frames", batch_f32(batch, FEAT_RIGIDGROUPS_ALT_GT_FRAMES, 0),
                       exists, 16);
    }
    check_torsions(c, &chain);
    batch_destroy(&batch);
}

void case_check_templates(Case *c)
{
    static const FeatureId COMPARED[] = {FEAT_TEMPLATE_AATYPE, FEAT_TEMPLATE_MASK, FEAT_TEMPLATE_PSEUDO_BETA,
                                         FEAT_TEMPLATE_PSEUDO_BETA_MASK, FEAT_TEMPLATE_TORSION_ANGLES_MASK};
    TemplateFeatures templates = {.count = case_extent(c, "in.template_all_atom_mask", 0),
                                  .columns = case_extent(c, "in.template_all_atom_mask", 1)};
    templates.aatype = small_integers(c, "in.template_aatype_hhblits");
    templates.positions = case_floats(c, "in.template_all_atom_positions", NULL);
    templates.mask = (uint8_t *)small_integers(c, "in.template_all_atom_mask");
    templates.sum_probs = case_take(c, templates.count, sizeof *templates.sum_probs);
    if (!templates.positions || templates.count < 1) return;
    for (int64_t i = 0; i < templates.count * templates.columns; ++i)
        templates.aatype[i] = (int8_t)residue_tables()->hhblits_to_model[templates.aatype[i]];
    Chain chain = {.length = templates.columns, .aatype = case_take(c, templates.columns, 1)};
    chain.positions = case_take(c, chain.length * ATOM37_COUNT * 3, sizeof(float));
    chain.mask = case_take(c, chain.length * ATOM37_COUNT, 1);
    Batch *batch = build(c, &chain, &templates);
    if (!batch) return;
    for (size_t i = 0; i < sizeof COMPARED / sizeof COMPARED[0]; ++i) match_feature(c, batch, COMPARED[i], NULL, 1);
    const float *mask = batch_f32(batch, FEAT_TEMPLATE_TORSION_ANGLES_MASK, 0);
    match_feature(c, batch, FEAT_TEMPLATE_TORSION_ANGLES_SIN_COS, mask, 2);
    match_feature(c, batch, FEAT_TEMPLATE_ALT_TORSION_ANGLES_SIN_COS, mask, 2);
    batch_destroy(&batch);
}

/* --- crops -------------------------------------------------------------------------------------------------------- */

static Status read_json_draw(void *context, DrawPurpose purpose, int copy, int64_t first, int64_t count,
                             double *values_out)
{
    static const char *const NAMES[DRAW_PURPOSES] = {[DRAW_TEMPLATE_CROP] = "template_crop_start",
                                                     [DRAW_TEMPLATE_PERMUTATION] = "template_permutation",
                                                     [DRAW_RESIDUE_CROP] = "residue_crop_start"};
    (void)copy;
    for (int64_t i = 0; i < count; ++i) {
        if (purpose == DRAW_CLAMP) {
            values_out[i] = 0.0;
            continue;
        }
        const cJSON *draw = NAMES[purpose] ? cJSON_GetObjectItem(context, NAMES[purpose]) : NULL;
        const cJSON *value = cJSON_IsArray(draw) ? cJSON_GetArrayItem(draw, (int)(first + i)) : draw;
        if (!cJSON_IsNumber(value)) return status_fail(ERR_INPUT, "draw %d is not recorded", (int)purpose);
        values_out[i] = value->valuedouble;
    }
    return OK;
}

static Status size_json_draw(void *context, DrawPurpose purpose, int copy, int64_t *size_out)
{
    (void)copy;
    *size_out = purpose == DRAW_TEMPLATE_PERMUTATION
                    ? cJSON_GetArraySize(cJSON_GetObjectItem(context, "template_permutation"))
                    : 1;
    return OK;
}

static int64_t number(const cJSON *object, const char *name)
{
    const cJSON *value = cJSON_GetObjectItem(object, name);
    return cJSON_IsNumber(value) ? (int64_t)value->valuedouble : -1;
}

static void check_crop(const cJSON *item, int index, Golden *golden)
{
    char name[64];
    snprintf(name, sizeof name, "09 crop case %d", index);
    const cJSON *out = cJSON_GetObjectItem(item, "out");
    const cJSON *rows = cJSON_GetObjectItem(out, "template_rows");
    Chain chain = {.length = number(item, "seq_length")};
    PreparedMsa msa = {.rows = 1, .columns = chain.length};
    TemplateFeatures templates = {.count = number(item, "num_templates"), .columns = chain.length};
    SampleInput input = {&chain, &msa, &templates};
    FeatureConfig config = feature_config_default();
    config.train = cJSON_IsTrue(cJSON_GetObjectItem(item, "subsample_templates"));
    DrawSource source = {cJSON_GetObjectItem(item, "draws"), read_json_draw, size_json_draw};
    Draws draws = {.given = &source};
    SamplePlan plan = {.input = &input, .config = &config, .draws = &draws, .copies = 1};
    BatchSizes sizes = {number(item, "sequence_crop_size"), 1, 0, number(item, "max_templates"), 1};
    if (!golden_ok(golden, features_plan_sample(&plan, &sizes), name)) return;
    bool same = plan.start == number(out, "residue_first") && plan.width == number(out, "residue_count") &&
                plan.templates == cJSON_GetArraySize(rows);
    for (int64_t t = 0; same && t < plan.templates; ++t)
        same = plan.template_row[t] == (int32_t)cJSON_GetArrayItem(rows, (int)t)->valuedouble;
    golden_check(golden, same, name, "residues from %lld, %lld of them, %lld templates", (long long)plan.start,
                 (long long)plan.width, (long long)plan.templates);
}

int64_t golden_crop_cases(Golden *golden)
{
    Arena arena = {0};
    char *path = arena_printf(&arena, "%s/transforms/09_crop_cases.json", golden->golden);
    FILE *file = path ? fopen(path, "rb") : NULL;
    int64_t cases = 0;
    if (file) {
        enum { LARGEST = 1 << 24 };
        char *text = arena_alloc(&arena, LARGEST);
        size_t size = text ? fread(text, 1, LARGEST - 1, file) : 0;
        cJSON *list = cJSON_ParseWithLength(text ? text : "", size);
        cases = cJSON_GetArraySize(list);
        if (!cJSON_IsArray(list)) golden_check(golden, false, path, "not a JSON array");
        for (int i = 0; i < cases; ++i) check_crop(cJSON_GetArrayItem(list, i), i, golden);
        cJSON_Delete(list);
        fclose(file);
    }
    arena_free(&arena);
    return cases;
}
