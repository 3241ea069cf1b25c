/* transforms/: one step of the feature pipeline each, numbered in their order. */
#include "tests/data_golden_numbers.h"

#include <string.h>

#include "data/features_internal.h"
#include "tests/data_golden_case.h"
#include "tests/data_golden_draws.h"

/* Ids [rows, columns] of the golden as rows of bytes padded to the stride. */
static uint8_t *padded_ids(Case *c, const char *name)
{
    int64_t count, rows = case_extent(c, name, 0), columns = case_extent(c, name, 1), stride = msa_stride(columns);
    const int64_t *ids = case_integers(c, name, &count);
    uint8_t *out = case_take(c, rows * stride, 1);
    memset(out, MSA_ABSENT, (size_t)(rows * stride));
    for (int64_t i = 0; ids && i < count; ++i) out[i / columns * stride + i % columns] = (uint8_t)ids[i];
    return out;
}

static int32_t *unpadded(Case *c, const uint8_t *ids, int64_t rows, int64_t columns)
{
    int32_t *out = case_take(c, rows * columns, sizeof *out);
    for (int64_t i = 0; i < rows * columns; ++i) out[i] = ids[i / columns * msa_stride(columns) + i % columns];
    return out;
}

static void check_profile(Case *c)
{
    int64_t count, rows = case_extent(c, "in.msa_hhblits_ids", 0), columns = case_extent(c, "in.msa_hhblits_ids", 1);
    const int64_t *in = case_integers(c, "in.msa_hhblits_ids", &count);
    if (!in || rows < 1) return;
    uint8_t *hhblits = case_take(c, count, 1), *ids = case_take(c, rows * msa_stride(columns), 1);
    for (int64_t i = 0; i < count; ++i) hhblits[i] = (uint8_t)in[i];
    float *profile = case_take(c, columns * PROFILE_CLASSES, sizeof *profile);
    if (!golden_ok(c->golden, transform_msa_ids(hhblits, rows, columns, ids), c->name)) return;
    transform_msa_profile(ids, rows, columns, profile);
    case_match_i32(c, "out.msa", unpadded(c, ids, rows, columns));
    case_match_f32(c, "out.hhblits_profile", profile, NULL, 1);
}

static void check_selection(Case *c)
{
    const int64_t *limit = case_integers(c, "in.max_msa_clusters", NULL),
                  *rows = case_integers(c, "in.num_alignments", NULL);
    if (!limit || !rows) return;
    const GoldenDraw recorded[] = {{DRAW_MSA_PERMUTATION, 0, st_find(c->file, "draw.msa_permutation")}};
    GoldenDraws given = golden_draws(recorded, 1);
    Draws draws = {.given = &given.source};
    int32_t *order = case_take(c, rows[0], sizeof *order);
    given.source.context = &given;
    if (!golden_ok(c->golden, transform_msa_order(&draws, 0, rows[0], order), c->name)) return;
    int64_t clusters = rows[0] < limit[0] ? rows[0] : limit[0], count;
    case_match_i32(c, "out.cluster_rows", order);
    if (st_find(c->file, "out.extra_rows")) case_match_i32(c, "out.extra_rows", order + clusters);
    if (st_find(c->file, "out.num_extra")) {
        int32_t extra = (int32_t)(rows[0] - clusters);
        const int64_t *want = case_integers(c, "out.num_extra", &count);
        golden_match_i32(c->golden, case_label(c, "out.num_extra"), &extra, want, 1);
    }
}

static void check_probabilities(Case *c, const uint8_t *ids, const float *profile, int64_t rows, int64_t columns)
{
    FeatureConfig config = feature_config_default();
    float *got = case_take(c, rows * columns * MSA_CLASSES, sizeof *got);
    for (int64_t i = 0; i < rows * columns; ++i) {
        double probabilities[MSA_CLASSES];
        uint8_t id = ids[i / columns * msa_stride(columns) + i % columns];
        transform_mask_probabilities(&config, profile + i % columns * PROFILE_CLASSES, id, probabilities);
        for (int k = 0; k < MSA_CLASSES; ++k) got[i * MSA_CLASSES + k] = (float)probabilities[k];
    }
    case_match_f32(c, "mid.probabilities", got, NULL, 1);
}

static void check_masking(Case *c)
{
    int64_t rows = case_extent(c, "in.msa", 0), columns = case_extent(c, "in.msa", 1);
    const float *profile = case_floats(c, "in.hhblits_profile", NULL);
    if (!profile || rows < 1) return;
    const GoldenDraw recorded[] = {{DRAW_MASK, 0, st_find(c->file, "draw.mask_uniform")},
                                   {DRAW_REPLACE, 0, st_find(c->file, "draw.replace_uniform")}};
    GoldenDraws given = golden_draws(recorded, 2);
    given.source.context = &given;
    Draws draws = {.given = &given.source};
    uint8_t *ids = padded_ids(c, "in.msa"), *mask = case_take(c, rows * columns, 1);
    float *uniform = case_take(c, columns, sizeof *uniform), *bert = case_take(c, rows * columns, sizeof *bert);
    FeatureConfig config = feature_config_default();
    check_probabilities(c, ids, profile, rows, columns);
    case_match_i32(c, "out.true_msa", unpadded(c, ids, rows, columns));
    if (!golden_ok(c->golden, transform_mask_msa(&config, &draws, 0, profile, rows, columns, uniform, ids, mask),
                   c->name))
        return;
    for (int64_t i = 0; i < rows * columns; ++i) bert[i] = mask[i];
    case_match_f32(c, "out.bert_mask", bert, NULL, 1);
    case_match_i32(c, "out.msa", unpadded(c, ids, rows, columns));
    /* the reference draws a replacement everywhere: mask everything to see all of them */
    config.mask_fraction = 2.0;
    ids = padded_ids(c, "in.msa");
    if (golden_ok(c->golden, transform_mask_msa(&config, &draws, 0, profile, rows, columns, uniform, ids, mask),
                  c->name))
        case_match_i32(c, "mid.replacement", unpadded(c, ids, rows, columns));
}

static int32_t *deletions_of(Case *c, const char *name)
{
    int64_t count;
    const int64_t *in = case_integers(c, name, &count);
    int32_t *out = case_take(c, count, sizeof *out);
    for (int64_t i = 0; in && i < count; ++i) out[i] = (int32_t)in[i];
    return out;
}

/* Deletions [rows, columns] as sparse rows. */
static PreparedMsa sparse(Case *c, const int32_t *deletions, int64_t rows, int64_t columns)
{
    Msa dense = {.rows = rows, .columns = columns, .deletions = (int32_t *)deletions};
    int64_t entries = msa_count_deletions(&dense), *start = case_take(c, rows + 1, sizeof *start);
    int32_t *column = case_take(c, entries, sizeof *column), *count = case_take(c, entries, sizeof *count);
    msa_list_deletions(&dense, start, column, count);
    return (PreparedMsa){
        .rows = rows, .columns = columns, .start = start, .deletion_column = column, .deletion_count = count};
}

/* Ids with the positions absent that the mask of the golden switches off. */
static uint8_t *masked_ids(Case *c, const char *name, const char *mask_name, int32_t *deletions)
{
    int64_t count, columns = case_extent(c, name, 1), stride = msa_stride(columns);
    const int64_t *mask = case_integers(c, mask_name, &count);
    uint8_t *ids = padded_ids(c, name);
    for (int64_t i = 0; mask && i < count; ++i) {
        if (mask[i]) continue;
        ids[i / columns * stride + i % columns] = MSA_ABSENT;
        if (deletions) deletions[i] = 0;
    }
    return ids;
}

static void check_clusters(Case *c)
{
    int64_t clusters = case_extent(c, "in.msa", 0), columns = case_extent(c, "in.msa", 1),
            extra = case_extent(c, "in.extra_msa", 0);
    int64_t stride = msa_stride(columns);
    if (clusters < 1 || columns < 1) return;
    const int32_t *deletions = deletions_of(c, "in.deletion_matrix");
    int32_t *extra_deletions = deletions_of(c, "in.extra_deletion_matrix");
    /* the reference sums up the cluster row in any case, but counts it only where its mask is on */
    const uint8_t *ids = masked_ids(c, "in.msa", "in.msa_mask", NULL), *own_ids = padded_ids(c, "in.msa");
    const uint8_t *extra_ids = masked_ids(c, "in.extra_msa", "in.extra_msa_mask", extra_deletions);
    const uint8_t **rows = case_take(c, extra, sizeof *rows);
    uint8_t *key = case_take(c, transform_key_bytes(clusters, columns), 1);
    uint32_t *agreement = case_take(c, transform_key_clusters(clusters), sizeof *agreement);
    int32_t *assignment = case_take(c, extra, sizeof *assignment);
    for (int64_t e = 0; e < extra; ++e) rows[e] = extra_ids + e * stride;
    transform_cluster_assign(ids, clusters, rows, extra, columns, key, agreement, assignment);
    PreparedMsa own = sparse(c, deletions, clusters, columns), others = sparse(c, extra_deletions, extra, columns);
    case_match_i32(c, "out.extra_cluster_assignment", assignment);

    float *profile = case_take(c, clusters * columns * MSA_CLASSES, sizeof *profile);
    float *mean = case_take(c, clusters * columns, sizeof *mean);
    for (int64_t k = 0; k < clusters; ++k) {
        uint32_t *counts = case_take(c, columns * MSA_COUNTS, sizeof *counts);
        int64_t members = 1;
        transform_cluster_add(own_ids + k * stride, columns, counts);
        transform_deletions_add(msa_deletions(&own, k), 0, columns, mean + k * columns);
        for (int64_t i = 0; i < columns; ++i)
            if (ids[k * stride + i] == MSA_ABSENT) ++counts[i * MSA_COUNTS + MSA_ABSENT];
        for (int64_t e = 0; e < extra; ++e) {
            if (assignment[e] != k) continue;
            ++members;
            transform_cluster_add(rows[e], columns, counts);
            transform_deletions_add(msa_deletions(&others, e), 0, columns, mean + k * columns);
        }
        transform_cluster_profile(counts, mean + k * columns, members, columns, profile + k * columns * MSA_CLASSES,
                                  mean + k * columns);
    }
    case_match_f32(c, "out.cluster_profile", profile, NULL, 1);
    case_match_f32(c, "out.cluster_deletion_mean", mean, NULL, 1);
}

static void check_extra_crop(Case *c)
{
    const int64_t *limit = case_integers(c, "in.max_extra_msa", NULL), *rows = case_integers(c, "in.num_extra", NULL);
    if (!limit || !rows) return;
    const GoldenDraw recorded[] = {{DRAW_EXTRA_PERMUTATION, 0, st_find(c->file, "draw.extra_permutation")}};
    GoldenDraws given = golden_draws(recorded, 1);
    given.source.context = &given;
    Draws draws = {.given = &given.source};
    int32_t *order = case_take(c, rows[0], sizeof *order);
    if (!golden_ok(c->golden, draws_permutation(&draws, DRAW_EXTRA_PERMUTATION, 0, rows[0], order), c->name)) return;
    case_match_i32(c, "out.rows", order);
}

static void check_features(Case *c)
{
    int64_t clusters = case_extent(c, "in.msa", 0), columns = case_extent(c, "in.msa", 1),
            extra = case_extent(c, "in.extra_msa", 0);
    int64_t stride = msa_stride(columns);
    const float *profile = case_floats(c, "in.cluster_profile", NULL),
                *mean = case_floats(c, "in.cluster_deletion_mean", NULL);
    if (!profile || !mean || columns < 1) return;
    const uint8_t *ids = padded_ids(c, "in.msa"), *extra_ids = padded_ids(c, "in.extra_msa");
    const int32_t *deletions = deletions_of(c, "in.deletion_matrix");
    const int32_t *extra_deletions = deletions_of(c, "in.extra_deletion_matrix");
    DeletionTable *table = case_take(c, 1, sizeof *table);
    float *feat = case_take(c, clusters * columns * MSA_FEATURES, sizeof *feat);
    float *has = case_take(c, extra * columns, sizeof *has), *value = case_take(c, extra * columns, sizeof *value);
    int32_t *extra_out = case_take(c, extra * columns, sizeof *extra_out);
    PreparedMsa own = sparse(c, deletions, clusters, columns), others = sparse(c, extra_deletions, extra, columns);
    transform_deletion_table(table);
    for (int64_t k = 0; k < clusters; ++k)
        transform_msa_feat(table, ids + k * stride, msa_deletions(&own, k), 0, profile + k * columns * MSA_CLASSES,
                           mean + k * columns, columns, feat + k * columns * MSA_FEATURES);
    for (int64_t e = 0; e < extra; ++e)
        transform_extra_feat(table, extra_ids + e * stride, msa_deletions(&others, e), 0, columns,
                             extra_out + e * columns, has + e * columns, value + e * columns);
    case_match_f32(c, "out.msa_feat", feat, NULL, 1);
    case_match_f32(c, "out.extra_has_deletion", has, NULL, 1);
    case_match_f32(c, "out.extra_deletion_value", value, NULL, 1);
    int64_t length;
    const int64_t *aatype = case_integers(c, "in.aatype", &length);
    float *target = case_take(c, length * TARGET_FEATURES, sizeof *target);
    if (!aatype) return;
    transform_target_feat(deletions_of(c, "in.aatype"), length, target);
    case_match_f32(c, "out.target_feat", target, NULL, 1);
}

void golden_transforms(Golden *golden)
{
    static const struct {
        const char *prefix;
        void (*check)(Case *);
    } STEPS[] = {
        {"01_", check_profile},        {"02", check_selection},       {"03_", check_masking},
        {"04_", check_clusters},       {"05_", check_extra_crop},     {"06_", check_features},
        {"07_", case_check_structure}, {"08_", case_check_templates},
    };
    Arena arena = {0};
    char *folder = arena_printf(&arena, "%s/transforms", golden->golden), **paths;
    int64_t count, all = 0;
    for (size_t s = 0; folder && s < sizeof STEPS / sizeof STEPS[0]; ++s) {
        if (!golden_ok(golden, golden_list(folder, STEPS[s].prefix, ".safetensors", &arena, &paths, &count), folder))
            break;
        for (int64_t i = 0; i < count; ++i, ++all) {
            Case c = {.golden = golden, .name = golden_stem(paths[i], ".safetensors", &arena)};
            if (!golden_ok(golden, st_open(paths[i], &c.file), paths[i])) continue;
            STEPS[s].check(&c);
            st_close(&c.file);
            arena_free(&c.arena);
        }
    }
    all += golden_crop_cases(golden);
    if (!all) golden_skip(golden, "transforms", "the golden folder has none");
    arena_free(&arena);
}
