/* Which chain is trained on when: filters, weights, orders, recycling counts of the reference (golden README,
 * "Sampler"), and progress that can be saved.
 *
 * Orders are stateless: the chain at position p of epoch e is a function of (seed, e, p). Position p of an epoch goes
 * to data-parallel rank p mod dp; all ranks of a DAP group have the same data-parallel rank and so the same sample. */
#ifndef FOLDSCALE_DATA_SAMPLER_H
#define FOLDSCALE_DATA_SAMPLER_H

#include <stdbool.h>

#include "data/archive.h"
#include "data/draws.h"

typedef struct SamplerChain {
    const char *name; /* borrowed */
    const char *sequence;
    const char *release_date; /* YYYY-MM-DD */
    double resolution;        /* NaN when unknown */
    int64_t cluster;          /* -1 when in none */
} SamplerChain;

typedef struct SamplerFilter {
    char min_date[11], max_date[11];
    double max_resolution;      /* kept if below, or unknown */
    double max_letter_fraction; /* of the most frequent letter */
    bool need_cluster;          /* false: a chain in no cluster counts as a cluster of its own */
} SamplerFilter;

/* 1900-01-01 to 2021-09-16, < 9 Angstrom, 0.8, cluster needed: MLPerf HPC v3.0 initial training. */
SamplerFilter sampler_filter_default(void);

typedef enum SamplerVerdict {
    SAMPLER_KEPT,
    SAMPLER_RELEASE_DATE,
    SAMPLER_RESOLUTION,
    SAMPLER_AA_FREQUENCY,
    SAMPLER_NO_CLUSTER,
    SAMPLER_VERDICTS
} SamplerVerdict;

const char *sampler_verdict_name(SamplerVerdict verdict); /* "", "release_date", ... as in the golden files */

/* clamp(length, 256, 512) / 512 / sqrt(max(cluster_size, 1)) */
double sampler_weight(int64_t length, int64_t cluster_size);

/* Verdict of each chain, size of its cluster counted over kept chains, weight (0 unless kept). */
Status sampler_weigh(const SamplerChain *chains, int64_t count, const SamplerFilter *filter, Arena *arena,
                     SamplerVerdict **verdicts_out, int64_t **cluster_sizes_out, double **weights_out);

/* OpenFold's own rule on its chain cache: kept if resolution (0 when unknown) <= 9, at most 80 % one letter and no
 * unknown letter; clamp(L, 256, 512) / 512 / cluster_size (size -1 counts as 1). */
double sampler_openfold_probability(const char *sequence, double resolution, int64_t cluster_size, bool *kept_out);

typedef enum SamplerOrder {
    SAMPLER_WEIGHTED,  /* draws with replacement (training) */
    SAMPLER_SHUFFLED,  /* every chain once per epoch, in a random order; then again, if the epoch is longer */
    SAMPLER_SEQUENTIAL /* 0, 1, 2, ... (validation) */
} SamplerOrder;

typedef struct SamplerOptions {
    SamplerOrder order;
    uint64_t seed;
    int64_t epoch_samples;    /* over all ranks; 0: as many as chains. Rounded up to a multiple of dp. */
    int dp, dp_rank;          /* replicas (world / dap), and which one this is */
    const int32_t *recycling; /* recycling counts to deal out; NULL: {0, 1, 2, 3} */
    int recycling_count;      /* with recycling NULL: ignored */
} SamplerOptions;

typedef struct Sampler Sampler;

/* `weights` (may be NULL: all 1) are copied. ERR_INPUT when nothing has weight. */
Status sampler_create(const SamplerOptions *options, const double *weights, int64_t chains, Sampler **sampler_out);
void sampler_destroy(Sampler **sampler);

/* Samples of one epoch of this rank. */
int64_t sampler_local_count(const Sampler *sampler);

typedef struct SamplerItem {
    int64_t chain;
    int64_t epoch, position; /* of the whole list: the index of the sample's draws */
    bool padding;            /* validation: a repeated chain that only evens out the ranks */
} SamplerItem;

/* The sample `number` of this rank, counted over all epochs. */
SamplerItem sampler_item(const Sampler *sampler, int64_t number);

/* Any position of any epoch, whatever the rank. */
int64_t sampler_chain_at(const Sampler *sampler, int64_t epoch, int64_t position);

/* Recycling iterations of training step `step` (the same on all ranks): the counts are shuffled and dealt out, then
 * shuffled again. */
int64_t sampler_recycling(const Sampler *sampler, int64_t step);
int64_t sampler_recycling_max(const Sampler *sampler);

/* Validation: the list 0..count-1, repeated from its start until it divides by `world`, every world-th from `rank`.
 * Returns how many; the k-th is sampler_validation_index. */
int64_t sampler_validation_count(int64_t count, int64_t world);
int64_t sampler_validation_index(int64_t count, int64_t world, int64_t rank, int64_t k);

#endif
