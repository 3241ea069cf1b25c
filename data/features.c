#include "data/features.h"

#include <stdlib.h>
#include <string.h>

#include "data/features_internal.h"

FeatureConfig feature_config_default(void)
{
    /* AlphaFold2 supplement 1.2.7 and 1.11.5 */
    return (FeatureConfig){.train = true,
                           .mask_fraction = 0.15,
                           .mask_uniform_prob = 0.1,
                           .mask_profile_prob = 0.1,
                           .mask_same_prob = 0.1,
                           .clamp_prob = 0.9};
}

Status feature_workspace_create(FeatureWorkspace **workspace_out)
{
    FeatureWorkspace *workspace = calloc(1, sizeof *workspace);
    if (!workspace) return status_fail(ERR_MEMORY, "no memory for a feature workspace");
    transform_deletion_table(&workspace->deletions);
    *workspace_out = workspace;
    return OK;
}

void feature_workspace_destroy(FeatureWorkspace **workspace)
{
    if (!*workspace) return;
    for (int i = 0; i < SCRATCH_SLOTS; ++i) free((*workspace)->slot[i].memory);
    free(*workspace);
    *workspace = NULL;
}

Status scratch_take(FeatureWorkspace *workspace, ScratchSlot slot, int64_t count, size_t size, void **memory_out)
{
    size_t bytes;
    if (__builtin_mul_overflow((size_t)count, size, &bytes) || bytes > SIZE_MAX / 2)
        return status_fail(ERR_MEMORY, "features: %lld x %zu bytes of scratch overflow", (long long)count, size);
    bytes = (bytes + 64) / 64 * 64; /* aligned_alloc wants whole units; never empty */
    if (workspace->slot[slot].bytes < bytes) {
        free(workspace->slot[slot].memory);
        workspace->slot[slot].bytes = 0;
        workspace->slot[slot].memory = aligned_alloc(64, bytes);
        if (!workspace->slot[slot].memory) return status_fail(ERR_MEMORY, "features: no memory for %zu bytes", bytes);
        workspace->slot[slot].bytes = bytes;
    }
    *memory_out = workspace->slot[slot].memory;
    return OK;
}

static Status check_input(const SampleInput *input, const FeatureConfig *config, int64_t copies, const Batch *batch)
{
    const Chain *chain = input->chain;
    const char *name = chain->chain_id ? chain->chain_id : "?";
    const char *entry = chain->entry_id ? chain->entry_id : "?";
    if (chain->length < 1) return status_fail(ERR_INPUT, "%s_%s: chain without residues", entry, name);
    if (input->msa->rows < 1) return status_fail(ERR_INPUT, "%s_%s: alignment without rows", entry, name);
    if (input->msa->rows > INT32_MAX)
        return status_fail(ERR_INPUT, "%s_%s: alignment of %lld rows, expected at most %d", entry, name,
                           (long long)input->msa->rows, INT32_MAX);
    if (input->msa->columns != chain->length)
        return status_fail(ERR_INPUT, "%s_%s: alignment has %lld columns, the chain has %lld residues", entry, name,
                           (long long)input->msa->columns, (long long)chain->length);
    if (input->templates && input->templates->count && input->templates->columns != chain->length)
        return status_fail(ERR_INPUT, "%s_%s: templates have %lld columns, the chain has %lld residues", entry, name,
                           (long long)input->templates->columns, (long long)chain->length);
    if (copies < 1 || copies > batch->sizes.copies)
        return status_fail(ERR_USAGE, "%lld recycling copies asked, the batch has room for %lld", (long long)copies,
                           (long long)batch->sizes.copies);
    if (!config->train && chain->length > batch->sizes.crop)
        return status_fail(ERR_USAGE, "%s_%s: %lld residues do not fit the batch of %lld (evaluation does not crop)",
                           entry, name, (long long)chain->length, (long long)batch->sizes.crop);
    return OK;
}

/* Draws 90 and 91 of the golden README: a random start in a random order; T templates give 0 to T. */
static Status plan_templates(SamplePlan *plan, int64_t max_templates)
{
    int64_t found = plan->input->templates ? plan->input->templates->count : 0;
    if (found > MAX_TEMPLATES)
        return status_fail(ERR_INPUT, "%lld templates given, expected at most %d", (long long)found, MAX_TEMPLATES);
    int32_t order[MAX_TEMPLATES];
    int64_t start = 0;
    for (int64_t t = 0; t < found; ++t) order[t] = (int32_t)t;
    if (plan->config->train && found > 0) {
        TRY(draws_integer(plan->draws, DRAW_TEMPLATE_CROP, 0, found, &start));
        TRY(draws_permutation(plan->draws, DRAW_TEMPLATE_PERMUTATION, 0, found, order));
    }
    plan->templates = found - start < max_templates ? found - start : max_templates;
    for (int64_t t = 0; t < plan->templates; ++t) plan->template_row[t] = order[start + t];
    return OK;
}

Status features_plan_sample(SamplePlan *plan, const BatchSizes *sizes)
{
    int64_t length = plan->input->chain->length, rows = plan->input->msa->rows;
    plan->clusters = rows < sizes->clusters ? rows : sizes->clusters;
    plan->extra = rows - plan->clusters < sizes->extra ? rows - plan->clusters : sizes->extra;
    plan->width = length < sizes->crop ? length : sizes->crop;
    plan->start = 0;
    plan->clamp = 1.0;
    TRY(plan_templates(plan, sizes->templates));
    if (!plan->config->train) return OK;
    double clamp_draw;
    TRY(draws_integer(plan->draws, DRAW_RESIDUE_CROP, 0, length - plan->width, &plan->start));
    TRY(draws_uniform_f64(plan->draws, DRAW_CLAMP, 0, 0, &clamp_draw));
    plan->clamp = clamp_draw < plan->config->clamp_prob ? 1.0 : 0.0;
    return OK;
}

static void label_batch(const SamplePlan *plan, Batch *batch)
{
    const Chain *chain = plan->input->chain;
    batch->copies_filled = plan->copies;
    batch->sample_index = (int64_t)plan->draws->index;
    batch->epoch = (int64_t)plan->draws->epoch;
    batch->residues = plan->width;
    batch->crop_start = plan->start;
    const char *parts[3] = {chain->entry_id ? chain->entry_id : "", "_", chain->chain_id ? chain->chain_id : ""};
    size_t used = 0;
    for (int i = 0; i < 3; ++i)
        for (const char *c = parts[i]; *c && used + 1 < sizeof batch->chain; ++c) batch->chain[used++] = *c;
    batch->chain[used] = '\0';
}

Status features_build(const SampleInput *input, const FeatureConfig *config, int64_t copies, const Draws *draws,
                      FeatureWorkspace *workspace, Batch *batch)
{
    SamplePlan plan = {.input = input, .config = config, .draws = draws, .workspace = workspace, .copies = copies};
    TRY(check_input(input, config, copies, batch));
    TRY(features_plan_sample(&plan, &batch->sizes));
    TRY(features_fill_msa(&plan, batch));
    features_fill_structure(&plan, batch);
    features_fill_templates(&plan, batch);
    label_batch(&plan, batch);
    return OK;
}
