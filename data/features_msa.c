/* MSA features: what differs between the recycling copies, and the MSA masks. */
#include <string.h>

#include "data/features_internal.h"

/* Scratch of one copy. */
typedef struct MsaScratch {
    int32_t *order;    /* [N] */
    int32_t *kept;     /* [N - clusters] permutation of the extra rows */
    uint8_t *clusters; /* [clusters, stride], masked */
    uint8_t *mask;     /* [clusters, L] */
    float *uniform;    /* [L] */
    uint8_t *key;
    uint32_t *agreement;
    const uint8_t **extra; /* [N - clusters] rows */
    int32_t *assignment;   /* [N - clusters] */
    int32_t *member;       /* [N - clusters] rows of the MSA by cluster */
    int32_t *member_start; /* [clusters + 1] */
    uint32_t *counts;      /* [width, 24] */
    float *profile_row;    /* [width, 23] */
    float *deletion_sum;   /* [width] */
} MsaScratch;

static Status take_scratch(const SamplePlan *plan, MsaScratch *s)
{
    FeatureWorkspace *w = plan->workspace;
    int64_t rows = plan->input->msa->rows, columns = plan->input->msa->columns, stride = msa_stride(columns);
    int64_t clusters = plan->clusters, extra = rows - clusters;
    const struct {
        ScratchSlot slot;
        int64_t count;
        size_t size;
        void **target;
    } wanted[] = {
        {SCRATCH_ORDER, rows, sizeof *s->order, (void **)&s->order},
        {SCRATCH_EXTRA_ORDER, extra, sizeof *s->kept, (void **)&s->kept},
        {SCRATCH_CLUSTERS, clusters, (size_t)stride, (void **)&s->clusters},
        {SCRATCH_MASK, clusters, (size_t)columns, (void **)&s->mask},
        {SCRATCH_UNIFORM, columns, sizeof *s->uniform, (void **)&s->uniform},
        {SCRATCH_KEY, transform_key_bytes(clusters, columns), 1, (void **)&s->key},
        {SCRATCH_AGREEMENT, transform_key_clusters(clusters), sizeof *s->agreement, (void **)&s->agreement},
        {SCRATCH_ROW_POINTERS, extra, sizeof *s->extra, (void **)&s->extra},
        {SCRATCH_ASSIGNMENT, extra, sizeof *s->assignment, (void **)&s->assignment},
        {SCRATCH_MEMBERS, extra, sizeof *s->member, (void **)&s->member},
        {SCRATCH_MEMBER_START, clusters + 1, sizeof *s->member_start, (void **)&s->member_start},
        {SCRATCH_COUNTS, plan->width, MSA_COUNTS * sizeof *s->counts, (void **)&s->counts},
        {SCRATCH_PROFILE_ROW, plan->width, MSA_CLASSES * sizeof *s->profile_row, (void **)&s->profile_row},
        {SCRATCH_DELETION_SUM, plan->width, sizeof *s->deletion_sum, (void **)&s->deletion_sum},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; ++i)
        TRY(scratch_take(w, wanted[i].slot, wanted[i].count, wanted[i].size, wanted[i].target));
    return OK;
}

/* Rows of the MSA by cluster (counting sort, so that the counts of one cluster stay in the cache). */
static void group_by_cluster(const SamplePlan *plan, MsaScratch *s)
{
    int64_t extra = plan->input->msa->rows - plan->clusters;
    memset(s->member_start, 0, (size_t)(plan->clusters + 1) * sizeof *s->member_start);
    for (int64_t e = 0; e < extra; ++e) ++s->member_start[s->assignment[e] + 1];
    for (int64_t k = 0; k < plan->clusters; ++k) s->member_start[k + 1] += s->member_start[k];
    for (int64_t e = 0; e < extra; ++e) s->member[s->member_start[s->assignment[e]]++] = s->order[plan->clusters + e];
    for (int64_t k = plan->clusters; k > 0; --k) s->member_start[k] = s->member_start[k - 1];
    s->member_start[0] = 0;
}

/* Sums up one cluster (the masked cluster row and its members) and writes its row of msa_feat. */
static void fill_msa_feat(const SamplePlan *plan, MsaScratch *s, int64_t k, float *feat)
{
    const PreparedMsa *msa = plan->input->msa;
    int64_t stride = msa_stride(msa->columns), width = plan->width;
    const uint8_t *row = s->clusters + k * stride + plan->start;
    DeletionRow deletions = msa_deletions(msa, s->order[k]);
    int32_t first = s->member_start[k], end = s->member_start[k + 1];
    memset(s->counts, 0, (size_t)width * MSA_COUNTS * sizeof *s->counts);
    memset(s->deletion_sum, 0, (size_t)width * sizeof *s->deletion_sum);
    transform_cluster_add(row, width, s->counts);
    transform_deletions_add(deletions, plan->start, width, s->deletion_sum);
    for (int32_t m = first; m < end; ++m) {
        int64_t member = s->member[m];
        transform_cluster_add(msa->ids + member * stride + plan->start, width, s->counts);
        transform_deletions_add(msa_deletions(msa, member), plan->start, width, s->deletion_sum);
    }
    transform_cluster_profile(s->counts, s->deletion_sum, 1 + end - first, width, s->profile_row, s->deletion_sum);
    transform_msa_feat(&plan->workspace->deletions, row, deletions, plan->start, s->profile_row, s->deletion_sum, width,
                       feat);
}

static void zero_tail(float *row, int64_t used, int64_t size)
{
    memset(row + used, 0, (size_t)(size - used) * sizeof *row);
}

static void fill_clusters(const SamplePlan *plan, MsaScratch *s, int64_t copy, Batch *batch)
{
    const PreparedMsa *msa = plan->input->msa;
    int64_t stride = msa_stride(msa->columns), crop = batch->sizes.crop, width = plan->width;
    float *feat = batch_f32(batch, FEAT_MSA_FEAT, copy), *bert = batch_f32(batch, FEAT_BERT_MASK, copy);
    int32_t *true_msa = batch_i32(batch, FEAT_TRUE_MSA, copy);
    for (int64_t k = 0; k < plan->clusters; ++k) {
        const uint8_t *original = msa->ids + s->order[k] * stride + plan->start;
        const uint8_t *mask = s->mask + k * msa->columns + plan->start;
        fill_msa_feat(plan, s, k, feat + k * crop * MSA_FEATURES);
        zero_tail(feat + k * crop * MSA_FEATURES, width * MSA_FEATURES, crop * MSA_FEATURES);
        for (int64_t c = 0; c < width; ++c) true_msa[k * crop + c] = original[c];
        for (int64_t c = 0; c < width; ++c) bert[k * crop + c] = mask[c];
        memset(true_msa + k * crop + width, 0, (size_t)(crop - width) * sizeof *true_msa);
        zero_tail(bert + k * crop, width, crop);
    }
    int64_t used = plan->clusters * crop, all = batch->sizes.clusters * crop;
    zero_tail(feat, used * MSA_FEATURES, all * MSA_FEATURES);
    zero_tail(bert, used, all);
    memset(true_msa + used, 0, (size_t)(all - used) * sizeof *true_msa);
}

static void fill_extra(const SamplePlan *plan, const MsaScratch *s, int64_t copy, Batch *batch)
{
    const PreparedMsa *msa = plan->input->msa;
    int64_t stride = msa_stride(msa->columns), crop = batch->sizes.crop, width = plan->width;
    float *has = batch_f32(batch, FEAT_EXTRA_HAS_DELETION, copy);
    float *value = batch_f32(batch, FEAT_EXTRA_DELETION_VALUE, copy);
    int32_t *ids_out = batch_i32(batch, FEAT_EXTRA_MSA, copy);
    for (int64_t e = 0; e < plan->extra; ++e) {
        int64_t row = s->order[plan->clusters + s->kept[e]], at = e * crop;
        const uint8_t *ids = msa->ids + row * stride + plan->start;
        transform_extra_feat(&plan->workspace->deletions, ids, msa_deletions(msa, row), plan->start, width,
                             ids_out + at, has + at, value + at);
        memset(ids_out + at + width, 0, (size_t)(crop - width) * sizeof *ids_out);
        zero_tail(has + at, width, crop);
        zero_tail(value + at, width, crop);
    }
    int64_t used = plan->extra * crop, all = batch->sizes.extra * crop;
    memset(ids_out + used, 0, (size_t)(all - used) * sizeof *ids_out);
    zero_tail(has, used, all);
    zero_tail(value, used, all);
}

/* Ones for the real rows and residues. */
static void fill_mask(int64_t rows, int64_t all_rows, int64_t width, int64_t crop, float *mask, float *row_mask)
{
    memset(mask, 0, (size_t)(all_rows * crop) * sizeof *mask);
    for (int64_t row = 0; row < all_rows; ++row) {
        row_mask[row] = row < rows ? 1.0f : 0.0f;
        for (int64_t c = 0; row < rows && c < width; ++c) mask[row * crop + c] = 1.0f;
    }
}

static Status fill_copy(const SamplePlan *plan, MsaScratch *s, int64_t copy, Batch *batch)
{
    const PreparedMsa *msa = plan->input->msa;
    int64_t stride = msa_stride(msa->columns), extra = msa->rows - plan->clusters;
    TRY(transform_msa_order(plan->draws, (int)copy, msa->rows, s->order));
    for (int64_t k = 0; k < plan->clusters; ++k)
        memcpy(s->clusters + k * stride, msa->ids + s->order[k] * stride, (size_t)stride);
    TRY(transform_mask_msa(plan->config, plan->draws, (int)copy, msa->profile, plan->clusters, msa->columns, s->uniform,
                           s->clusters, s->mask));
    for (int64_t e = 0; e < extra; ++e) s->extra[e] = msa->ids + s->order[plan->clusters + e] * stride;
    transform_cluster_assign(s->clusters, plan->clusters, s->extra, extra, msa->columns, s->key, s->agreement,
                             s->assignment);
    group_by_cluster(plan, s);
    TRY(draws_permutation(plan->draws, DRAW_EXTRA_PERMUTATION, (int)copy, extra, s->kept));
    fill_clusters(plan, s, copy, batch);
    fill_extra(plan, s, copy, batch);
    return OK;
}

Status features_fill_msa(const SamplePlan *plan, Batch *batch)
{
    const BatchSizes *sizes = &batch->sizes;
    MsaScratch scratch;
    TRY(take_scratch(plan, &scratch));
    for (int64_t copy = 0; copy < plan->copies; ++copy) TRY(fill_copy(plan, &scratch, copy, batch));
    fill_mask(plan->clusters, sizes->clusters, plan->width, sizes->crop, batch_f32(batch, FEAT_MSA_MASK, 0),
              batch_f32(batch, FEAT_MSA_ROW_MASK, 0));
    fill_mask(plan->extra, sizes->extra, plan->width, sizes->crop, batch_f32(batch, FEAT_EXTRA_MSA_MASK, 0),
              batch_f32(batch, FEAT_EXTRA_MSA_ROW_MASK, 0));
    return OK;
}
