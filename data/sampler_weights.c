/* Filters and weights of the sampler. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/sampler.h"

SamplerFilter sampler_filter_default(void)
{
    return (SamplerFilter){.min_date = "1900-01-01",
                           .max_date = "2021-09-16",
                           .max_resolution = 9.0,
                           .max_letter_fraction = 0.8,
                           .need_cluster = true};
}

const char *sampler_verdict_name(SamplerVerdict verdict)
{
    static const char *const NAMES[SAMPLER_VERDICTS] = {[SAMPLER_KEPT] = "",
                                                        [SAMPLER_RELEASE_DATE] = "release_date",
                                                        [SAMPLER_RESOLUTION] = "resolution",
                                                        [SAMPLER_AA_FREQUENCY] = "aa_frequency",
                                                        [SAMPLER_NO_CLUSTER] = "no_cluster"};
    return verdict >= 0 && verdict < SAMPLER_VERDICTS ? NAMES[verdict] : "?";
}

static double length_factor(int64_t length)
{
    const int64_t low = 256, high = 512;
    int64_t clamped = length < low ? low : length > high ? high : length;
    return (double)clamped / (double)high;
}

double sampler_weight(int64_t length, int64_t cluster_size)
{
    return length_factor(length) / sqrt((double)(cluster_size > 1 ? cluster_size : 1));
}

/* Fraction of the most frequent letter; 1 for an empty sequence. */
static double largest_fraction(const char *sequence)
{
    int64_t counts[256] = {0}, most = 0, length = 0;
    for (; *sequence; ++sequence, ++length)
        if (++counts[(unsigned char)*sequence] > most) most = counts[(unsigned char)*sequence];
    return length ? (double)most / (double)length : 1.0;
}

static SamplerVerdict judge(const SamplerChain *chain, const SamplerFilter *filter)
{
    /* dates of this form sort as text */
    if (strcmp(chain->release_date, filter->min_date) < 0 || strcmp(chain->release_date, filter->max_date) > 0)
        return SAMPLER_RELEASE_DATE;
    if (!isnan(chain->resolution) && chain->resolution >= filter->max_resolution) return SAMPLER_RESOLUTION;
    if (largest_fraction(chain->sequence) > filter->max_letter_fraction) return SAMPLER_AA_FREQUENCY;
    if (filter->need_cluster && chain->cluster < 0) return SAMPLER_NO_CLUSTER;
    return SAMPLER_KEPT;
}

/* The cluster of a kept chain, for sorting. */
typedef struct Member {
    int64_t cluster, chain;
} Member;

static int by_cluster(const void *a, const void *b)
{
    int64_t x = ((const Member *)a)->cluster, y = ((const Member *)b)->cluster;
    return (x > y) - (x < y);
}

static void count_clusters(Member *member, int64_t members, int64_t *sizes)
{
    qsort(member, (size_t)members, sizeof *member, by_cluster);
    for (int64_t first = 0, end; first < members; first = end) {
        for (end = first + 1; end < members && member[end].cluster == member[first].cluster; ++end) {
        }
        for (int64_t i = first; i < end; ++i) sizes[member[i].chain] = member[first].cluster < 0 ? 1 : end - first;
    }
}

Status sampler_weigh(const SamplerChain *chains, int64_t count, const SamplerFilter *filter, Arena *arena,
                     SamplerVerdict **verdicts_out, int64_t **cluster_sizes_out, double **weights_out)
{
    SamplerVerdict *verdicts = arena_array(arena, (size_t)count, sizeof *verdicts);
    int64_t *sizes = arena_array(arena, (size_t)count, sizeof *sizes);
    double *weights = arena_array(arena, (size_t)count, sizeof *weights);
    Member *member = arena_array(arena, (size_t)count, sizeof *member);
    if (!verdicts || !sizes || !weights || !member)
        return status_fail(ERR_MEMORY, "sampler: no memory for %lld chains", (long long)count);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        verdicts[i] = judge(&chains[i], filter);
        if (verdicts[i] == SAMPLER_KEPT) member[kept++] = (Member){chains[i].cluster, i};
    }
    count_clusters(member, kept, sizes);
    for (int64_t i = 0; i < count; ++i)
        if (verdicts[i] == SAMPLER_KEPT) weights[i] = sampler_weight((int64_t)strlen(chains[i].sequence), sizes[i]);
    *verdicts_out = verdicts;
    *cluster_sizes_out = sizes;
    *weights_out = weights;
    return OK;
}

double sampler_openfold_probability(const char *sequence, double resolution, int64_t cluster_size, bool *kept_out)
{
    const double max_resolution = 9.0, max_fraction = 0.8;
    *kept_out = resolution <= max_resolution && largest_fraction(sequence) <= max_fraction && !strchr(sequence, 'X');
    return length_factor((int64_t)strlen(sequence)) / (double)(cluster_size > 1 ? cluster_size : 1);
}
