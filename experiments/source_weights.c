#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/sampler.h"
#include "experiments/source_internal.h"

static int by_chain(const void *a, const void *b)
{
    return strcmp(((const ChainRecord *)a)->chain, ((const ChainRecord *)b)->chain);
}

/* Clusters files name chains or entities; only the former can be looked up here. */
static int64_t cluster_of(const ClusterTable *clusters, const char *chain)
{
    return clusters ? archive_cluster_find(clusters, chain) : -1;
}

static Status read_table(const DataSection *d, Arena *arena, ChainTable *table)
{
    if (*d->mmcif_cache) return archive_read_mmcif_cache(d->mmcif_cache, arena, table);
    return archive_read_chain_cache(d->chain_data_cache, arena, table);
}

static Status describe(const Dataset *dataset, const ChainTable *table, const ClusterTable *clusters, Arena *arena,
                       SamplerChain **chains_out)
{
    int64_t count = dataset_count(dataset);
    SamplerChain *chains = arena_array(arena, (size_t)count + 1, sizeof *chains);
    if (!chains) return status_fail(ERR_MEMORY, "out of memory for %lld chains", (long long)count);
    qsort(table->record, (size_t)table->count, sizeof *table->record, by_chain);
    for (int64_t i = 0; i < count; i++) {
        ChainRecord key = {.chain = (char *)dataset_name(dataset, i)};
        const ChainRecord *found = bsearch(&key, table->record, (size_t)table->count, sizeof *table->record, by_chain);
        chains[i] =
            (SamplerChain){.name = key.chain, .sequence = "", .release_date = "", .resolution = NAN, .cluster = -1};
        if (!found) continue; /* not in the table: no date, so it is left out */
        chains[i].sequence = found->sequence;
        chains[i].release_date = found->release_date;
        chains[i].resolution = found->resolution > 0 ? found->resolution : NAN;
        chains[i].cluster = cluster_of(clusters, key.chain);
    }
    *chains_out = chains;
    return OK;
}

/* A pack has all its chains: those that the experiment does not name get no weight. */
static Status named_only(const DataSection *d, const Dataset *dataset, Arena *arena, double **weights_out)
{
    double *weights = arena_array(arena, (size_t)dataset_count(dataset) + 1, sizeof *weights);
    if (!weights) return status_fail(ERR_MEMORY, "out of memory for %lld chains", (long long)dataset_count(dataset));
    for (unsigned i = 0; i < d->chains_count; i++) {
        int64_t chain = dataset_find(dataset, d->chains[i]);
        if (chain < 0) return status_fail(ERR_INPUT, "%s: no chain \"%s\" in this pack", d->pack, d->chains[i]);
        weights[chain] = 1;
    }
    *weights_out = weights;
    return OK;
}

Status source_weights(const DataSection *d, const Dataset *dataset, Arena *arena, double **weights_out)
{
    *weights_out = NULL;
    if (*d->pack && d->chains_count > 0) return named_only(d, dataset, arena, weights_out);
    if (!*d->mmcif_cache && !*d->chain_data_cache) return OK;
    ChainTable table;
    ClusterTable *clusters = NULL;
    SamplerChain *chains;
    SamplerVerdict *verdicts;
    int64_t *sizes;
    SamplerFilter filter = sampler_filter_default();
    snprintf(filter.max_date, sizeof filter.max_date, "%.10s", d->max_release_date);
    filter.max_resolution = d->max_resolution;
    filter.need_cluster = *d->clusters != '\0';
    TRY(read_table(d, arena, &table));
    if (*d->clusters) TRY(archive_read_clusters(d->clusters, arena, &clusters));
    TRY(describe(dataset, &table, clusters, arena, &chains));
    return sampler_weigh(chains, dataset_count(dataset), &filter, arena, &verdicts, &sizes, weights_out);
}
