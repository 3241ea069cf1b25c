#include "experiments/source.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/feed.h"
#include "data/hhr.h"
#include "engine/clock.h"
#include "experiments/source_internal.h"

struct Source {
    const Config *config;
    Backend *backend;
    DataLog skipped; /* said every time */
    DataLog remarks;
    atomic_int remarks_printed;
    Arena arena;
    Dataset *dataset;
    Feed *feed;
    FeedSample sample;
    bool held;   /* sample is handed out */
    bool peeked; /* sample is there, not handed out yet */
    double *all; /* room for a number of every rank */
};

static Status pinned_alloc(void *context, size_t bytes, void **memory_out)
{
    Backend *backend = context;
    return backend->host_alloc(backend, bytes, memory_out);
}

static void pinned_release(void *context, void *memory)
{
    Backend *backend = context;
    backend->host_release(backend, memory);
}

static FeedOptions feed_options(const Source *s, const double *weights)
{
    static const int32_t counts[] = {0, 1, 2, 3};
    const Config *c = s->config;
    const ModelConfig *m = &c->model.size;
    FeedOptions o = feed_options_default();
    o.sizes = (BatchSizes){m->n_res, m->n_clust, m->n_extra, m->n_templ, 1};
    o.templates = c->data.templates;
    o.features.train = true;
    o.sampler.order = weights ? SAMPLER_WEIGHTED : SAMPLER_SHUFFLED;
    o.sampler.seed = (uint64_t)c->train.seed;
    o.sampler.dp = s->backend->layout.dp;
    o.sampler.dp_rank = s->backend->layout.dp_rank;
    o.sampler.recycling = counts;
    o.sampler.recycling_count = c->train.recycling + 1;
    o.weights = weights;
    o.workers = c->data.workers;
    o.ahead = c->data.queue;
    o.ready_first = c->switches.nonblocking_loader;
    o.on_error = c->data.on_error == ON_ERROR_SKIP ? LOADER_SKIP : LOADER_STOP;
    o.shared = s->backend->layout.dap > 1;
    o.log = &s->skipped; /* of every rank: a skipped sample is never silent */
    o.memory = (FeedMemory){s->backend, pinned_alloc, pinned_release};
    return o;
}

/* The line of this rank's replica in the state of all (one line each). */
static Status own_state(Source *s, const char *state, char **line_out)
{
    const char *at = state;
    for (int i = 0; at && i < s->backend->layout.dp_rank; i++) {
        at = strchr(at, '\n');
        if (at) at++;
    }
    if (!at || *at == '\0')
        return status_fail(ERR_INPUT, "the checkpoint was written by fewer replicas (expected %d)",
                           s->backend->layout.dp);
    *line_out = arena_strndup(&s->arena, at, strcspn(at, "\n"));
    return *line_out ? OK : status_fail(ERR_MEMORY, "out of memory for the loader's state");
}

static Status open_feed(Source *s, const char *state)
{
    double *weights = NULL;
    char *line = NULL;
    TRY(source_weights(&s->config->data, s->dataset, &s->arena, &weights));
    FeedOptions options = feed_options(s, weights);
    if (*state) TRY(own_state(s, state, &line));
    return feed_open(s->dataset, &options, line, &s->feed);
}

Status source_open(const Config *config, Backend *backend, const char *state, Source **source_out)
{
    Source *s = calloc(1, sizeof *s);
    if (!s) return status_fail(ERR_MEMORY, "out of memory for the data set");
    s->config = config;
    s->backend = backend;
    s->all = arena_array(&s->arena, (size_t)backend->layout.world, sizeof *s->all);
    s->skipped.warn = source_print_remark;
    s->remarks = (DataLog){source_print_few_remarks, &s->remarks_printed};
    Status status = s->all ? OK : status_fail(ERR_MEMORY, "out of memory for the data set");
    if (status == OK)
        status = source_open_dataset(&config->data, config->data.chains, config->data.chains_count,
                                     backend->layout.rank == 0 ? &s->remarks : NULL, &s->dataset);
    if (status == OK && dataset_count(s->dataset) == 0) status = status_fail(ERR_INPUT, "the data set has no chain");
    if (status == OK) status = open_feed(s, state);
    if (status == OK)
        *source_out = s;
    else
        source_close(&s);
    return status;
}

void source_close(Source **source)
{
    Source *s = *source;
    if (!s) return;
    if (s->held || s->peeked) feed_release(s->feed, &s->sample);
    if (s->feed) feed_close(&s->feed);
    if (s->dataset) dataset_close(&s->dataset);
    arena_free(&s->arena);
    free(s);
    *source = NULL;
}

/* In a model-parallel group the first rank picks and the others take the same number (data/loader.h), unless the
 * numbers are sure to come one after the other. */
static Status take(Source *s)
{
    const RankLayout *layout = &s->backend->layout;
    bool one_by_one = !s->config->switches.nonblocking_loader && s->config->data.on_error == ON_ERROR_STOP;
    if (layout->dap == 1 || one_by_one) return feed_next(s->feed, &s->sample);
    double number = -1;
    if (layout->dap_rank == 0) {
        TRY(feed_next(s->feed, &s->sample));
        number = (double)s->sample.number;
    }
    TRY(s->backend->host_all_gather(s->backend, &number, 1, s->all));
    if (layout->dap_rank == 0) return OK;
    return feed_take(s->feed, (int64_t)s->all[layout->dp_rank * layout->dap], &s->sample);
}

/* That the chains the experiment names have a structure each, where one that has none would end the run. */
static Status find_structures(const DataSection *d)
{
    const ArchivePaths paths = {.mmcif = source_given(d->mmcif)};
    Archive *archive = NULL;
    Arena arena = {0};
    if (*d->pack || d->on_error == ON_ERROR_SKIP || d->chains_count == 0) return OK;
    Status status = archive_open(&paths, NULL, &archive);
    for (unsigned i = 0; status == OK && i < d->chains_count; i++) {
        char entry[CONFIG_NAME], chain[CONFIG_NAME], *path = NULL;
        status = hhr_split_name(d->chains[i], entry, sizeof entry, chain, sizeof chain);
        if (status == OK) status = archive_structure_path(archive, entry, &arena, &path);
        if (status == OK && !path)
            status = status_fail(ERR_INPUT, "%s: no structure of entry %s (data.chains)", d->mmcif, entry);
    }
    archive_close(&archive);
    arena_free(&arena);
    return status;
}

Status source_peek(Source *source)
{
    TRY(find_structures(&source->config->data));
    TRY(take(source));
    source->peeked = true;
    return OK;
}

Status source_next(Source *source, SourceSample *sample_out)
{
    double start = clock_now_s();
    if (source->held) feed_release(source->feed, &source->sample);
    source->held = false;
    if (!source->peeked) TRY(take(source));
    source->peeked = false;
    source->held = true;
    *sample_out = (SourceSample){
        .batch = source->sample.batch, .recycling = (int)source->sample.recycling, .wait_s = clock_now_s() - start};
    return OK;
}

/* The state of one replica's first rank, on all ranks. */
static Status share_state(const Source *source, const char *own, int rank, Arena *arena, char **line_out)
{
    Backend *backend = source->backend;
    uint64_t length = rank == backend->layout.rank ? strlen(own) : 0;
    if (backend->layout.world > 1) TRY(backend->host_broadcast(backend, &length, sizeof length, rank));
    char *line = arena_alloc(arena, length + 1);
    if (!line) return status_fail(ERR_MEMORY, "out of memory for the loader's state");
    if (rank == backend->layout.rank) memcpy(line, own, length);
    if (backend->layout.world > 1) TRY(backend->host_broadcast(backend, line, length + 1, rank));
    *line_out = line;
    return OK;
}

Status source_state(const Source *source, char *text, size_t size)
{
    const RankLayout *layout = &source->backend->layout;
    Arena arena = {0};
    char *own = NULL, *line = NULL;
    size_t used = 0;
    Status status = feed_state(source->feed, &arena, &own);
    text[0] = '\0';
    for (int rank = 0; status == OK && rank < layout->world; rank += layout->dap) {
        status = share_state(source, own, rank, &arena, &line);
        if (status == OK && used < size) used += (size_t)snprintf(text + used, size - used, "%s\n", line);
    }
    arena_free(&arena);
    if (status == OK && used >= size)
        status = status_fail(ERR_INTERNAL, "the loader's state does not fit %zu bytes", size);
    return status;
}
