#include "data/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "data/name_index.h"
#include "engine/clock.h"

enum { KEPT_BYTES = 1 << 26 }; /* between samples, per thread */

struct Dataset {
    DatasetSource source;
    const DataLog *log;
    Arena arena;
    NameIndex *names;
};

struct DatasetReader {
    const Dataset *dataset;
    FeatureWorkspace *workspace;
    Arena arena; /* of one sample at a time */
};

Status dataset_open_source(const DatasetSource *source, const DataLog *log, Dataset **dataset_out)
{
    Dataset *dataset = calloc(1, sizeof *dataset);
    if (!dataset) {
        source->close(source->context);
        return status_fail(ERR_MEMORY, "no memory for a dataset");
    }
    dataset->source = *source;
    dataset->log = log;
    int64_t count = source->count(source->context);
    Status status = name_index_create(count, &dataset->arena, &dataset->names);
    for (int64_t i = 0; i < count && status == OK; ++i)
        name_index_add(dataset->names, source->name(source->context, i), i);
    if (status != OK) {
        dataset_close(&dataset);
        return status;
    }
    *dataset_out = dataset;
    return OK;
}

void dataset_close(Dataset **dataset)
{
    if (!*dataset) return;
    (*dataset)->source.close((*dataset)->source.context);
    arena_free(&(*dataset)->arena);
    free(*dataset);
    *dataset = NULL;
}

int64_t dataset_count(const Dataset *dataset)
{
    return dataset->source.count(dataset->source.context);
}

const char *dataset_name(const Dataset *dataset, int64_t chain)
{
    return dataset->source.name(dataset->source.context, chain);
}

int64_t dataset_find(const Dataset *dataset, const char *name)
{
    return name_index_find(dataset->names, name);
}

const DatasetSource *dataset_source(const Dataset *dataset)
{
    return &dataset->source;
}

const DataLog *dataset_log(const Dataset *dataset)
{
    return dataset->log;
}

Status dataset_reader_create(const Dataset *dataset, DatasetReader **reader_out)
{
    DatasetReader *reader = calloc(1, sizeof *reader);
    if (!reader) return status_fail(ERR_MEMORY, "no memory for a reader");
    reader->dataset = dataset;
    Status status = feature_workspace_create(&reader->workspace);
    if (status != OK) {
        free(reader);
        return status;
    }
    *reader_out = reader;
    return OK;
}

void dataset_reader_destroy(DatasetReader **reader)
{
    if (!*reader) return;
    feature_workspace_destroy(&(*reader)->workspace);
    arena_free(&(*reader)->arena);
    free(*reader);
    *reader = NULL;
}

static Status find_templates(const DatasetReader *reader, const SampleRequest *request, const FeatureConfig *config,
                             const RawSample *raw, Arena *arena, TemplateFeatures *templates_out)
{
    const Dataset *dataset = reader->dataset;
    TemplateQuery query = {.name = dataset_name(dataset, request->chain),
                           .entry_id = raw->chain.entry_id,
                           .sequence = raw->chain.sequence,
                           .release_date = raw->chain.release_date};
    return template_features(&query, &raw->hits, raw->hits_selected, config->train, &request->draws, TEMPLATE_MOST,
                             &dataset->source.templates, dataset->log, arena, templates_out);
}

Status dataset_sample(DatasetReader *reader, const SampleRequest *request, const FeatureConfig *config, Batch *batch,
                      SampleTimes *times_out)
{
    const Dataset *dataset = reader->dataset;
    if (request->chain < 0 || request->chain >= dataset_count(dataset))
        return status_fail(ERR_USAGE, "chain %lld asked of a dataset of %lld", (long long)request->chain,
                           (long long)dataset_count(dataset));
    Arena *arena = &reader->arena;
    RawSample raw;
    TemplateFeatures templates = {0};
    double begin = clock_now_s(), loaded = begin, templated = begin;
    bool with_templates = request->templates && batch->sizes.templates > 0;
    Status status = dataset->source.load(dataset->source.context, request->chain, with_templates, arena, &raw);
    loaded = clock_now_s();
    if (status == OK && with_templates) status = find_templates(reader, request, config, &raw, arena, &templates);
    templated = clock_now_s();
    if (status == OK) {
        SampleInput input = {&raw.chain, &raw.msa, &templates};
        status = features_build(&input, config, request->copies, &request->draws, reader->workspace, batch);
    }
    if (times_out)
        *times_out = (SampleTimes){
            .load_s = loaded - begin, .template_s = templated - loaded, .feature_s = clock_now_s() - templated};
    arena_reset(arena, KEPT_BYTES);
    return status;
}
