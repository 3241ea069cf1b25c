/* batch/: whole samples from the files of the input folder, given the recorded draws. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"
#include "tests/data_golden_draws.h"
#include "tests/data_golden_numbers.h"

static const double TOLERANCE = 1e-5;

enum { MAX_DRAWS = 5 + 4 * BATCH_MAX_COPIES };

/* Metadata of a golden as a number, -1 when absent. */
static int64_t meta_number(const StFile *file, const char *key)
{
    const char *text = st_metadata(file, key);
    return text ? strtoll(text, NULL, 10) : -1;
}

static int collect_draws(const StFile *file, int64_t copies, GoldenDraw draws[MAX_DRAWS])
{
    static const struct {
        const char *name;
        DrawPurpose purpose;
    } SHARED[] = {{"draw.00_template_hit_shuffle", DRAW_TEMPLATE_HIT_SHUFFLE},
                  {"draw.90_template_crop_start", DRAW_TEMPLATE_CROP},
                  {"draw.91_template_permutation", DRAW_TEMPLATE_PERMUTATION},
                  {"draw.92_residue_crop_start", DRAW_RESIDUE_CROP},
                  {"draw.93_clamp_uniform", DRAW_CLAMP}},
      EACH[] = {{"1_msa_permutation", DRAW_MSA_PERMUTATION},
                {"2_mask_uniform", DRAW_MASK},
                {"3_replace_uniform", DRAW_REPLACE},
                {"4_extra_permutation", DRAW_EXTRA_PERMUTATION}};
    int count = 0;
    for (size_t i = 0; i < sizeof SHARED / sizeof SHARED[0]; ++i)
        draws[count++] = (GoldenDraw){SHARED[i].purpose, 0, st_find(file, SHARED[i].name)};
    for (int copy = 0; copy < (int)copies; ++copy)
        for (size_t i = 0; i < sizeof EACH / sizeof EACH[0]; ++i) {
            char name[64];
            snprintf(name, sizeof name, "draw.iter%d.%s", copy, EACH[i].name);
            draws[count++] = (GoldenDraw){EACH[i].purpose, copy, st_find(file, name)};
        }
    return count;
}

/* Where the reference's values are defined; NULL: everywhere. */
static const float *validity(const Batch *batch, FeatureId id, int64_t *each_out)
{
    static const struct {
        FeatureId feature, mask;
        int64_t each;
    } MASKED[] = {
        {FEAT_RIGIDGROUPS_GT_FRAMES, FEAT_RIGIDGROUPS_GT_EXISTS, 16},
        {FEAT_RIGIDGROUPS_ALT_GT_FRAMES, FEAT_RIGIDGROUPS_GT_EXISTS, 16},
        {FEAT_BACKBONE_RIGID_TENSOR, FEAT_BACKBONE_RIGID_MASK, 16},
        {FEAT_CHI_ANGLES_SIN_COS, FEAT_CHI_MASK, 2},
        {FEAT_TEMPLATE_TORSION_ANGLES_SIN_COS, FEAT_TEMPLATE_TORSION_ANGLES_MASK, 2},
        {FEAT_TEMPLATE_ALT_TORSION_ANGLES_SIN_COS, FEAT_TEMPLATE_TORSION_ANGLES_MASK, 2},
    };
    *each_out = 1;
    for (size_t i = 0; i < sizeof MASKED / sizeof MASKED[0]; ++i)
        if (MASKED[i].feature == id) {
            *each_out = MASKED[i].each;
            return batch_f32(batch, MASKED[i].mask, 0);
        }
    return NULL;
}

static bool is_training(const StFile *file)
{
    const char *mode = st_metadata(file, "mode");
    return !mode || strcmp(mode, "train") == 0;
}

/* All copies of one feature; the golden has the copies as last axis (1 when they are all equal). */
static void match_feature(Golden *golden, const char *sample, const StFile *file, const Batch *batch, FeatureId id)
{
    const BatchTensor *feature = &batch->feature[id];
    Arena arena = {0};
    char name[96];
    snprintf(name, sizeof name, "out.%s", feature->name);
    const char *label = arena_printf(&arena, "%s %s", sample, feature->name);
    const StTensor *want = st_find(file, name);
    if (!want && id == FEAT_USE_CLAMPED_FAPE && !is_training(file)) { /* evaluation has no such flag */
        arena_free(&arena);
        return;
    }
    int64_t stored = want && want->rank > 0 ? want->shape[want->rank - 1] : 0, each;
    int64_t copies = feature->per_copy ? batch->copies_filled : 1;
    if (stored < 1 || want->count != feature->count * stored || (stored != 1 && stored < copies)) {
        golden_check(golden, false, label, "golden has %lld values in %lld copies, we have %lld in %lld",
                     (long long)(want ? want->count : -1), (long long)stored, (long long)feature->count,
                     (long long)copies);
        arena_free(&arena);
        return;
    }
    const float *mask = validity(batch, id, &each);
    float *floats = feature->tensor.dtype == DT_F32 ? golden_f32(golden, file, name, &arena, NULL) : NULL;
    int64_t *integers = feature->tensor.dtype == DT_I32 ? golden_i64(golden, file, name, &arena, NULL) : NULL;
    for (int64_t k = 0; k < copies && (floats || integers); ++k) {
        float *want_f32 = arena_array(&arena, (size_t)feature->count, sizeof *want_f32);
        int64_t *want_i64 = arena_array(&arena, (size_t)feature->count, sizeof *want_i64);
        if (!want_f32 || !want_i64) exit(1);
        for (int64_t i = 0; i < feature->count; ++i) {
            int64_t at = i * stored + (stored > 1 ? k : 0);
            if (floats) want_f32[i] = floats[at];
            if (integers) want_i64[i] = integers[at];
        }
        const char *copy = copies > 1 ? arena_printf(&arena, "%s copy %lld", label, (long long)k) : label;
        if (floats)
            golden_match_f32(golden, copy, batch_data(feature, k), want_f32, feature->count, TOLERANCE, mask, each);
        if (integers) golden_match_i32(golden, copy, batch_data(feature, k), want_i64, feature->count);
    }
    arena_free(&arena);
}

static Status build(const StFile *file, const char *chain, const ArchivePaths *paths, Batch **batch_out)
{
    BatchSizes sizes = {meta_number(file, "crop"), meta_number(file, "max_msa_clusters"),
                        meta_number(file, "max_extra_msa"), meta_number(file, "max_templates"),
                        meta_number(file, "recycling_copies")};
    FeatureConfig config = feature_config_default();
    config.train = is_training(file);
    Dataset *dataset = NULL;
    DatasetReader *reader = NULL;
    Batch *batch = NULL;
    Status status = dataset_open_archive(paths, &chain, 1, NULL, &dataset);
    if (status == OK) status = dataset_reader_create(dataset, &reader);
    if (status == OK) status = batch_create(&sizes, NULL, 0, &batch);
    if (status == OK) {
        GoldenDraw recorded[MAX_DRAWS];
        int count = collect_draws(file, sizes.copies, recorded);
        GoldenDraws given = golden_draws(recorded, count);
        given.source.context = &given;
        SampleRequest request = {.copies = sizes.copies, .draws = {.given = &given.source}, .templates = true};
        status = dataset_sample(reader, &request, &config, batch, NULL);
    }
    dataset_reader_destroy(&reader);
    dataset_close(&dataset);
    if (status != OK) batch_destroy(&batch);
    *batch_out = batch;
    return status;
}

/* The layout of the input folder that has the alignments of this chain: OpenProteinSet's own, which is what the
 * reference reads, else the flat one, else the database. */
static ArchivePaths paths_of(const Golden *golden, const char *chain, Arena *arena)
{
    char *obsolete = golden_path(arena, golden->real, "obsolete.dat");
    char *index = golden_path(arena, golden->real, "alignment_db/super.index");
    ArchivePaths paths = {.mmcif = golden_path(arena, golden->real, "mmcif"),
                          .obsolete = golden_exists(obsolete) ? obsolete : NULL};
    if (golden_exists(golden_path(arena, golden->real, "pdb/%s", chain)))
        paths.alignments = golden_path(arena, golden->real, "pdb");
    else if (golden_exists(golden_path(arena, golden->real, "alignments/%s", chain)))
        paths.alignments = golden_path(arena, golden->real, "alignments");
    else if (golden_exists(index))
        paths.alignment_index = index;
    return paths;
}

static void check_sample(Golden *golden, const char *path, Arena *arena)
{
    const char *sample = golden_stem(path, ".safetensors", arena);
    StFile *file = NULL;
    Batch *batch = NULL;
    if (!golden_ok(golden, st_open(path, &file), sample)) return;
    const char *chain = st_metadata(file, "chain");
    if (!chain) {
        golden_check(golden, false, sample, "no 'chain' in the metadata");
    } else {
        ArchivePaths paths = paths_of(golden, chain, arena);
        if (golden_ok(golden, build(file, chain, &paths, &batch), sample))
            for (int id = 0; id < FEATURE_COUNT; ++id) match_feature(golden, sample, file, batch, (FeatureId)id);
    }
    batch_destroy(&batch);
    st_close(&file);
}

void golden_batch(Golden *golden)
{
    Arena arena = {0};
    char **paths;
    int64_t count = 0;
    char *folder = golden_path(&arena, golden->golden, "batch");
    if (golden_ok(golden, golden_list(folder, "", ".safetensors", &arena, &paths, &count), folder))
        for (int64_t i = 0; i < count; ++i) check_sample(golden, paths[i], &arena);
    if (count == 0) golden_skip(golden, "batch", "the golden folder has none");
    arena_free(&arena);
}
