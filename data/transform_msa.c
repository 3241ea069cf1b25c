#include <math.h>
#include <string.h>

#include "data/residue.h"
#include "data/transform.h"

Status transform_msa_ids(const uint8_t *hhblits_id, int64_t rows, int64_t columns, uint8_t *ids_out)
{
    const ResidueTables *tables = residue_tables();
    uint8_t map[256];
    int64_t stride = msa_stride(columns);
    memset(map, 255, sizeof map);
    for (int id = 0; id < HHBLITS_IDS; ++id) map[id] = (uint8_t)tables->hhblits_to_model[id];
    for (int64_t row = 0; row < rows; ++row) {
        const uint8_t *in = hhblits_id + row * columns;
        uint8_t *out = ids_out + row * stride;
        uint8_t largest = 0;
        for (int64_t c = 0; c < columns; ++c) {
            uint8_t id = map[in[c]];
            out[c] = id;
            largest = largest > id ? largest : id;
        }
        if (largest > RESTYPE_GAP)
            return status_fail(ERR_INPUT, "alignment row %lld holds an id above %d", (long long)row, RESTYPE_GAP);
        memset(out + columns, MSA_ABSENT, (size_t)(stride - columns));
    }
    return OK;
}

void transform_msa_profile(const uint8_t *ids, int64_t rows, int64_t columns, float *profile_out)
{
    enum { TILE = 256 };
    int64_t stride = msa_stride(columns);
    for (int64_t first = 0; first < columns; first += TILE) {
        /* 256 columns of counts stay in the first-level cache while the rows stream by */
        uint32_t counts[TILE][PROFILE_CLASSES];
        int64_t width = columns - first < TILE ? columns - first : TILE;
        memset(counts, 0, sizeof counts);
        for (int64_t row = 0; row < rows; ++row) {
            const uint8_t *in = ids + row * stride + first;
            for (int64_t c = 0; c < width; ++c) ++counts[c][in[c]];
        }
        for (int64_t c = 0; c < width; ++c)
            for (int k = 0; k < PROFILE_CLASSES; ++k)
                profile_out[(first + c) * PROFILE_CLASSES + k] = (float)counts[c][k] / (float)rows;
    }
}

Status transform_msa_order(const Draws *draws, int copy, int64_t rows, int32_t *order_out)
{
    order_out[0] = 0;
    TRY(draws_permutation(draws, DRAW_MSA_PERMUTATION, copy, rows - 1, order_out + 1));
    for (int64_t i = 1; i < rows; ++i) ++order_out[i];
    return OK;
}

void transform_mask_probabilities(const FeatureConfig *config, const float *profile_column, uint8_t id,
                                  double probabilities_out[MSA_CLASSES])
{
    const double uniform = 1.0 / RESTYPE_COUNT, floor = 1e-10; /* the reference adds 1e-10 before its logarithm */
    for (int k = 0; k < PROFILE_CLASSES; ++k)
        probabilities_out[k] = (k < RESTYPE_COUNT ? config->mask_uniform_prob * uniform : 0.0) +
                               config->mask_profile_prob * profile_column[k] +
                               (k == id ? config->mask_same_prob : 0.0) + floor;
    probabilities_out[RESTYPE_MASK] =
        1.0 - config->mask_uniform_prob - config->mask_profile_prob - config->mask_same_prob + floor;
}

static uint8_t choose(const double probabilities[MSA_CLASSES], double draw)
{
    double sum = 0.0;
    for (int k = 0; k < MSA_CLASSES - 1; ++k) {
        sum += probabilities[k];
        if (sum > draw) return (uint8_t)k;
    }
    return MSA_CLASSES - 1;
}

Status transform_mask_msa(const FeatureConfig *config, const Draws *draws, int copy, const float *profile,
                          int64_t clusters, int64_t columns, float *uniform, uint8_t *ids, uint8_t *mask_out)
{
    int64_t stride = msa_stride(columns);
    float fraction = (float)config->mask_fraction; /* compared in float32, as in the reference */
    for (int64_t row = 0; row < clusters; ++row) {
        TRY(draws_uniform_f32(draws, DRAW_MASK, copy, row * columns, columns, uniform));
        for (int64_t c = 0; c < columns; ++c) {
            bool masked = uniform[c] < fraction;
            mask_out[row * columns + c] = masked;
            if (!masked) continue;
            double probabilities[MSA_CLASSES], draw;
            uint8_t *id = &ids[row * stride + c];
            TRY(draws_uniform_f64(draws, DRAW_REPLACE, copy, row * columns + c, &draw));
            transform_mask_probabilities(config, profile + c * PROFILE_CLASSES, *id, probabilities);
            *id = choose(probabilities, draw);
        }
    }
    return OK;
}

void transform_deletion_table(DeletionTable *table_out)
{
    for (int d = 0; d < DELETION_TABLE; ++d) table_out->value[d] = (float)(M_2_PI * atan(d / 3.0));
}

static float deletion_value(const DeletionTable *table, int32_t deletions)
{
    if (deletions >= 0 && deletions < DELETION_TABLE) return table->value[deletions];
    return (float)(M_2_PI * atan(deletions / 3.0));
}

/* min(deletions, 1), as the reference has it. */
static float has_deletion(int32_t deletions)
{
    return (float)(deletions < 1 ? deletions : 1);
}

void transform_msa_feat(const DeletionTable *table, const uint8_t *ids, DeletionRow deletions, int64_t first,
                        const float *profile, const float *mean, int64_t width, float *feat_out)
{
    enum { HAS_DELETION = 23, DELETION_VALUE, PROFILE, DELETION_MEAN = 48 };
    for (int64_t c = 0; c < width; ++c) {
        float *feat = feat_out + c * MSA_FEATURES;
        memset(feat, 0, PROFILE * sizeof *feat);
        feat[ids[c]] = 1.0f;
        memcpy(feat + PROFILE, profile + c * MSA_CLASSES, MSA_CLASSES * sizeof *feat);
        feat[DELETION_MEAN] = mean[c] == 0.0f ? 0.0f : (float)M_2_PI * atanf(mean[c] / 3.0f);
    }
    for (int64_t d = 0; d < deletions.entries; ++d) {
        int64_t c = deletions.column[d] - first;
        if (c < 0 || c >= width) continue;
        feat_out[c * MSA_FEATURES + HAS_DELETION] = has_deletion(deletions.count[d]);
        feat_out[c * MSA_FEATURES + DELETION_VALUE] = deletion_value(table, deletions.count[d]);
    }
}

void transform_extra_feat(const DeletionTable *table, const uint8_t *ids, DeletionRow deletions, int64_t first,
                          int64_t width, int32_t *ids_out, float *has_deletion_out, float *deletion_value_out)
{
    for (int64_t c = 0; c < width; ++c) ids_out[c] = ids[c];
    memset(has_deletion_out, 0, (size_t)width * sizeof *has_deletion_out);
    memset(deletion_value_out, 0, (size_t)width * sizeof *deletion_value_out);
    for (int64_t d = 0; d < deletions.entries; ++d) {
        int64_t c = deletions.column[d] - first;
        if (c < 0 || c >= width) continue;
        has_deletion_out[c] = has_deletion(deletions.count[d]);
        deletion_value_out[c] = deletion_value(table, deletions.count[d]);
    }
}

void transform_target_feat(const int32_t *aatype, int64_t length, float *feat_out)
{
    memset(feat_out, 0, (size_t)(length * TARGET_FEATURES) * sizeof *feat_out);
    for (int64_t i = 0; i < length; ++i) feat_out[i * TARGET_FEATURES + 1 + aatype[i]] = 1.0f;
}
