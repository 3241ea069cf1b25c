/* From parsed types to a batch: the feature pipeline of the MLPerf HPC OpenFold reference.
 *
 * Steps of one sample (AlphaFold2 supplement 1.2): for each recycling copy, sample the MSA, mask it, cluster the extra
 * rows, cut the extra rows; then, shared by all copies, sub-sample templates, crop residues, make the ground truth,
 * pad. Masking and clustering see the whole chain, as in the reference; the crop only decides what is computed and
 * kept. */
#ifndef FOLDSCALE_DATA_FEATURES_H
#define FOLDSCALE_DATA_FEATURES_H

#include "data/batch.h"
#include "data/draws.h"
#include "data/prepared_msa.h"

/* Templates of a query as built from structures (data/template.h): T of them over the L residues of the query. */
typedef struct TemplateFeatures {
    int64_t count;    /* T, at most 4 */
    int64_t columns;  /* L */
    int8_t *aatype;   /* [T, L] model ids 0..20, gap 21 */
    float *positions; /* [T, L, 37, 3] Angstrom */
    uint8_t *mask;    /* [T, L, 37] */
    float *sum_probs; /* [T] */
} TemplateFeatures;

typedef struct FeatureConfig {
    bool train;           /* false: no crop (sizes.crop must be L), templates kept in order, no clamp draw */
    double mask_fraction; /* 0.15 */
    double mask_uniform_prob, mask_profile_prob, mask_same_prob; /* 0.1 each; the rest goes to the mask token */
    double clamp_prob;                                           /* 0.9 */
} FeatureConfig;

FeatureConfig feature_config_default(void);

/* Scratch memory that grows to the largest sample and is kept; one per thread. */
typedef struct FeatureWorkspace FeatureWorkspace;
Status feature_workspace_create(FeatureWorkspace **workspace_out);
void feature_workspace_destroy(FeatureWorkspace **workspace);

typedef struct SampleInput {
    const Chain *chain;
    const PreparedMsa *msa;            /* same columns as the chain; at least one row */
    const TemplateFeatures *templates; /* NULL: none */
} SampleInput;

/* Fills every feature of `batch`, padding included, for `copies` recycling copies (at most sizes.copies). In evaluation
 * use_clamped_fape is 1: the reference then has no flag and its loss clamps every sample.
 * ERR_INPUT when the inputs contradict each other, ERR_USAGE when they do not fit the batch. */
Status features_build(const SampleInput *input, const FeatureConfig *config, int64_t copies, const Draws *draws,
                      FeatureWorkspace *workspace, Batch *batch);

#endif
