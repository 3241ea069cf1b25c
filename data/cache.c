#include "data/cache.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/archive_internal.h"

/* What one entry gives; strings are in the arena of the worker that read it. */
typedef struct EntryRecords {
    ChainRecord *record;
    int64_t *by_entity; /* cluster of each record that was found by its entity, else -1 */
    int64_t count;
    bool unreadable;
} EntryRecords;

typedef struct Build {
    const Archive *archive;
    DataLog log; /* one call at a time */
    const DataLog *user_log;
    pthread_mutex_t lock;
    char **entry;
    int64_t entries;
    EntryRecords *records;
    atomic_int_least64_t next, done;
    void (*progress)(void *context, int64_t done, int64_t total);
    void *context;
} Build;

typedef struct Worker {
    Build *build;
    Arena arena;
    pthread_t thread;
    bool started;
    Status status;
    char message[1024]; /* status_text belongs to its thread */
} Worker;

static void locked_warn(void *context, const char *file, long line, const char *text)
{
    Build *build = context;
    if (!build->user_log || !build->user_log->warn) return;
    pthread_mutex_lock(&build->lock);
    build->user_log->warn(build->user_log->context, file, line, text);
    pthread_mutex_unlock(&build->lock);
}

/* Clusters name chains, whose members are then all there are, or entities, whose chains are counted in the end. */
static void find_cluster(const Archive *archive, const Chain *chain, ChainRecord *record, int64_t *by_entity_out)
{
    const ClusterTable *clusters = archive_clusters(archive);
    char name[64];
    record->cluster_size = *by_entity_out = -1;
    if (!clusters) return;
    int64_t cluster = archive_cluster_find(clusters, record->chain);
    if (cluster >= 0)
        record->cluster_size = archive_cluster_size(clusters, cluster);
    else if (snprintf(name, sizeof name, "%s_%s", record->entry_id, chain->entity_id) < (int)sizeof name)
        *by_entity_out = archive_cluster_find(clusters, name);
}

static Status take_chain(const char *entry, const Chain *chain, Arena *arena, ChainRecord *record)
{
    record->entry_id = arena_strdup(arena, entry);
    record->chain_id = arena_strdup(arena, chain->chain_id);
    record->chain = arena_printf(arena, "%s_%s", entry, chain->chain_id);
    record->sequence = arena_strdup(arena, chain->sequence);
    if (!record->entry_id || !record->chain_id || !record->chain || !record->sequence)
        return status_fail(ERR_MEMORY, "no memory for the cache");
    memcpy(record->release_date, chain->release_date, sizeof record->release_date);
    record->resolution = isnan(chain->resolution) ? 0 : chain->resolution;
    return OK;
}

/* The structure goes to `scratch`, which the caller empties. */
static Status read_entry(Worker *worker, int64_t index, Arena *scratch)
{
    Build *build = worker->build;
    EntryRecords *records = &build->records[index];
    const char *entry = build->entry[index];
    Structure *structure = NULL;
    char *path = NULL;
    TRY(archive_structure_path(build->archive, entry, scratch, &path));
    if (!path || mmcif_read(path, &build->log, scratch, &structure) != OK) {
        records->unreadable = true;
        data_warn(&build->log, path ? path : entry, 0, "left out: %.400s", path ? status_text() : "no file");
        return OK;
    }
    records->record = arena_array(&worker->arena, (size_t)structure->chain_count, sizeof *records->record);
    records->by_entity = arena_array(&worker->arena, (size_t)structure->chain_count, sizeof *records->by_entity);
    if (!records->record || !records->by_entity) return status_fail(ERR_MEMORY, "no memory for the cache");
    for (int64_t i = 0; i < structure->chain_count; i++) {
        const Chain *chain = &structure->chain[i];
        if (!archive_is_name(chain->chain_id)) {
            data_warn(&build->log, path, 0, "chain \"%.40s\" left out: not a name", chain->chain_id);
            continue;
        }
        ChainRecord *record = &records->record[records->count];
        TRY(take_chain(entry, chain, &worker->arena, record));
        find_cluster(build->archive, chain, record, &records->by_entity[records->count++]);
    }
    return OK;
}

static void tell_progress(Build *build, int64_t done)
{
    enum { EVERY = 64 };
    if (!build->progress || (done % EVERY && done != build->entries)) return;
    pthread_mutex_lock(&build->lock);
    build->progress(build->context, done, build->entries);
    pthread_mutex_unlock(&build->lock);
}

static void *work(void *argument)
{
    Worker *worker = argument;
    Build *build = worker->build;
    for (int64_t i; worker->status == OK && (i = atomic_fetch_add(&build->next, 1)) < build->entries;) {
        Arena scratch = {0};
        worker->status = read_entry(worker, i, &scratch);
        arena_free(&scratch);
        tell_progress(build, atomic_fetch_add(&build->done, 1) + 1);
    }
    if (worker->status != OK) snprintf(worker->message, sizeof worker->message, "%s", status_text());
    return NULL;
}

static Status run_workers(Build *build, Worker *worker, int threads)
{
    for (int t = 0; t < threads; t++) {
        worker[t].build = build;
        if (t) worker[t].started = pthread_create(&worker[t].thread, NULL, work, &worker[t]) == 0;
    }
    work(&worker[0]); /* with fewer threads than asked for, the others take over */
    for (int t = 1; t < threads; t++)
        if (worker[t].started) pthread_join(worker[t].thread, NULL);
    for (int t = 0; t < threads; t++)
        if (worker[t].status != OK) return status_fail(worker[t].status, "%s", worker[t].message);
    return OK;
}

/* Copies the records out of the workers' arenas, in order of the entries. */
static Status gather(const Build *build, Arena *arena, ChainTable *table_out, CacheCounts *counts_out)
{
    ChainTable table = {0};
    CacheCounts counts = {0};
    for (int64_t i = 0; i < build->entries; i++) counts.chains += build->records[i].count;
    table.record = arena_array(arena, (size_t)counts.chains, sizeof *table.record);
    if (!table.record) return status_fail(ERR_MEMORY, "no memory for the cache");
    for (int64_t i = 0; i < build->entries; i++) {
        const EntryRecords *records = &build->records[i];
        counts.unreadable += records->unreadable;
        counts.entries += records->count > 0;
        for (int64_t k = 0; k < records->count; k++) {
            ChainRecord *record = &table.record[table.count++];
            *record = records->record[k];
            record->chain = arena_strdup(arena, record->chain);
            record->entry_id = arena_strdup(arena, record->entry_id);
            record->chain_id = arena_strdup(arena, record->chain_id);
            record->sequence = arena_strdup(arena, record->sequence);
            if (!record->chain || !record->entry_id || !record->chain_id || !record->sequence)
                return status_fail(ERR_MEMORY, "no memory for the cache");
        }
    }
    *table_out = table;
    *counts_out = counts;
    return OK;
}

/* Sizes of clusters of entities: the chains here that belong to them. */
static Status count_by_entity(const Build *build, ChainTable *table)
{
    Arena arena = {0};
    const ClusterTable *clusters = archive_clusters(build->archive);
    if (!clusters) return OK;
    int64_t *size = arena_array(&arena, (size_t)archive_cluster_count(clusters), sizeof *size);
    if (!size) return status_fail(ERR_MEMORY, "no memory for the clusters");
    for (int counted = 0; counted < 2; counted++) {
        ChainRecord *record = table->record;
        for (int64_t i = 0; i < build->entries; i++)
            for (int64_t k = 0; k < build->records[i].count; k++, record++) {
                int64_t cluster = build->records[i].by_entity[k];
                if (cluster >= 0 && !counted) size[cluster]++;
                if (cluster >= 0 && counted) record->cluster_size = size[cluster];
            }
    }
    arena_free(&arena);
    return OK;
}

Status cache_build(const Archive *archive, int threads, const DataLog *log,
                   void (*progress)(void *context, int64_t done, int64_t total), void *context, Arena *arena,
                   ChainTable *table_out, CacheCounts *counts_out)
{
    Arena lists = {0};
    Build build = {.archive = archive, .user_log = log, .progress = progress, .context = context};
    build.log = (DataLog){locked_warn, &build};
    if (threads < 1) threads = 1;
    Worker *worker = calloc((size_t)threads, sizeof *worker);
    if (!worker) return status_fail(ERR_MEMORY, "no memory for %d threads", threads);
    pthread_mutex_init(&build.lock, NULL);
    Status status = archive_list_entries(archive, &lists, &build.entry, &build.entries);
    if (status == OK) {
        build.records = arena_array(&lists, (size_t)build.entries, sizeof *build.records);
        status = build.records ? run_workers(&build, worker, threads) : status_fail(ERR_MEMORY, "out of memory");
    }
    if (status == OK) status = gather(&build, arena, table_out, counts_out);
    if (status == OK) status = count_by_entity(&build, table_out);
    for (int t = 0; t < threads; t++) arena_free(&worker[t].arena);
    pthread_mutex_destroy(&build.lock);
    free(worker);
    arena_free(&lists);
    return status;
}
