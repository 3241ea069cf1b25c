#include "experiments/source.h"

#include "experiments/source_internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ChainReader {
    const Config *config;
    DataLog log;
    Dataset *dataset;
    DatasetReader *reader;
};

/* Remarks of the readers go to standard error. */
void source_print_remark(void *context, const char *file, long line, const char *text)
{
    (void)context;
    if (line)
        fprintf(stderr, "foldscale: note: %s:%ld: %s\n", file, line, text);
    else
        fprintf(stderr, "foldscale: note: %s: %s\n", file, text);
}

void source_print_few_remarks(void *context, const char *file, long line, const char *text)
{
    enum { MOST = 200 };
    atomic_int *printed = context;
    if (atomic_load(printed) > MOST) return;
    int number = atomic_fetch_add(printed, 1);
    if (number < MOST)
        source_print_remark(NULL, file, line, text);
    else if (number == MOST)
        fprintf(stderr, "foldscale: note: %d notes on the data; no more are shown (foldscale data check says all)\n",
                MOST);
}

const char *source_given(const char *path)
{
    return *path ? path : NULL;
}

Status source_open_dataset(const DataSection *d, const char (*chains)[CONFIG_NAME], unsigned count, const DataLog *log,
                           Dataset **dataset_out)
{
    const char *names[CONFIG_LIST];
    const ArchivePaths paths = {.mmcif = source_given(d->mmcif),
                                .alignments = source_given(d->alignments),
                                .alignment_index = source_given(d->alignment_index),
                                .duplicates = source_given(d->duplicates),
                                .obsolete = source_given(d->obsolete),
                                .mmcif_cache = source_given(d->mmcif_cache),
                                .chain_data_cache = source_given(d->chain_data_cache),
                                .clusters = source_given(d->clusters)};
    if (*d->pack) return dataset_open_pack(d->pack, log, dataset_out); /* has them all; source_weights picks */
    for (unsigned i = 0; i < count; i++) names[i] = chains[i];
    if (!paths.mmcif)
        return status_fail(ERR_INPUT, "the experiment names no structures (expected data.mmcif or data.pack)");
    return dataset_open_archive(&paths, count ? names : NULL, count, log, dataset_out);
}

Status chain_reader_open(const Config *config, ChainReader **reader_out)
{
    ChainReader *r = calloc(1, sizeof *r);
    if (!r) return status_fail(ERR_MEMORY, "out of memory for the data set");
    r->config = config;
    r->log.warn = source_print_remark;
    Status status = source_open_dataset(&config->data, NULL, 0, &r->log, &r->dataset);
    if (status == OK) status = dataset_reader_create(r->dataset, &r->reader);
    if (status == OK)
        *reader_out = r;
    else
        chain_reader_close(&r);
    return status;
}

void chain_reader_close(ChainReader **reader)
{
    if (!*reader) return;
    if ((*reader)->reader) dataset_reader_destroy(&(*reader)->reader);
    if ((*reader)->dataset) dataset_close(&(*reader)->dataset);
    free(*reader);
    *reader = NULL;
}

Status chain_reader_list(ChainReader *reader, Arena *arena, char ***names_out, int *count_out)
{
    int64_t count = dataset_count(reader->dataset);
    char **names = arena_array(arena, (size_t)count + 1, sizeof *names);
    if (!names) return status_fail(ERR_MEMORY, "out of memory for %lld chains", (long long)count);
    for (int64_t i = 0; i < count; i++)
        if (!(names[i] = arena_strdup(arena, dataset_name(reader->dataset, i))))
            return status_fail(ERR_MEMORY, "out of memory for %lld chains", (long long)count);
    *names_out = names;
    *count_out = (int)count;
    return OK;
}

static Status find_chain(const ChainReader *reader, const char *chain, int64_t *index_out)
{
    *index_out = dataset_find(reader->dataset, chain);
    if (*index_out >= 0) return OK;
    return status_fail(ERR_INPUT, "no chain \"%s\" among the %lld chains of %s", chain,
                       (long long)dataset_count(reader->dataset), reader->config->data.mmcif);
}

Status chain_reader_length(ChainReader *reader, const char *chain, int64_t *length_out)
{
    int64_t index;
    RawSample raw;
    Arena arena = {0};
    TRY(find_chain(reader, chain, &index));
    const DatasetSource *source = dataset_source(reader->dataset);
    Status status = source->load(source->context, index, false, &arena, &raw);
    if (status == OK) *length_out = raw.chain.length;
    arena_free(&arena);
    return status;
}

Status chain_reader_batch(ChainReader *reader, const char *chain, int64_t length, int recycling, Batch **batch_out)
{
    const ModelConfig *m = &reader->config->model.size;
    BatchSizes sizes = {length, m->n_clust, m->n_extra, m->n_templ, recycling + 1};
    FeatureConfig features = feature_config_default();
    SampleRequest request = {.copies = recycling + 1, .templates = reader->config->data.templates};
    SampleTimes times;
    Batch *batch = NULL;
    features.train = false;
    request.draws.seed = (uint64_t)reader->config->train.seed;
    TRY(find_chain(reader, chain, &request.chain));
    request.draws.index = (uint64_t)request.chain;
    TRY(batch_create(&sizes, NULL, 0, &batch));
    Status status = dataset_sample(reader->reader, &request, &features, batch, &times);
    if (status == OK)
        *batch_out = batch;
    else
        batch_destroy(&batch);
    return status;
}
