#include "data/pack.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/hhr.h"
#include "data/pack_file.h"
#include "data/pack_record.h"
#include "data/stamp.h"

enum { NAME_SIZE = 256 };

typedef struct PackRun {
    const Dataset *dataset;
    const PackOptions *options;
    PackWriter *writer;
    uint64_t base;        /* stamp of the lists and of the options that change alignments */
    bool stale;           /* a structure of an interrupted run is no longer current */
    pthread_mutex_t lock; /* everything below */
    int64_t next, done, left_out;
    Status failure;
    char text[1024];
} PackRun;

/* Of a chain record (the structure's file) or of an alignment record (all files of the chain, lists, options). */
static Status stamp_of(const PackRun *run, PackKind kind, const char *name, uint64_t *stamp_out)
{
    const DatasetSource *source = dataset_source(run->dataset);
    char entry[NAME_SIZE];
    if (kind == PACK_CHAIN) {
        snprintf(entry, sizeof entry, "%.*s", (int)strcspn(name, "_"), name);
        return source->stamp(source->context, entry, stamp_out);
    }
    TRY(source->stamp(source->context, name, stamp_out));
    *stamp_out = stamp_bytes(*stamp_out, &run->base, sizeof run->base);
    return OK;
}

static bool is_current(const PackRun *run, PackKind kind, const char *name, uint64_t stamp)
{
    uint64_t now;
    return stamp_of(run, kind, name, &now) == OK && now == stamp;
}

static bool keep_structure(void *context, PackKind kind, const char *name, uint64_t stamp)
{
    PackRun *run = context;
    if (kind != PACK_CHAIN || is_current(run, kind, name, stamp)) return true;
    run->stale = true;
    return false;
}

/* Alignments hold hits chosen with the structures of other chains: if one of those changed, any may have to. */
static bool keep_alignment(void *context, PackKind kind, const char *name, uint64_t stamp)
{
    const PackRun *run = context;
    return kind != PACK_ALIGNMENT ||
           (!run->stale && dataset_find(run->dataset, name) >= 0 && is_current(run, kind, name, stamp));
}

static Status start_run(PackRun *run)
{
    const DatasetSource *source = dataset_source(run->dataset);
    TRY(source->stamp(source->context, NULL, &run->base));
    run->base = stamp_number(run->base, run->options->templates);
    TRY(pack_writer_open(run->options->path, run->options->level, &run->writer));
    pack_writer_revise(run->writer, keep_structure, run);
    pack_writer_revise(run->writer, keep_alignment, run);
    return OK;
}

static Status add_chain(PackRun *run, const char *name, const Chain *chain)
{
    ByteWriter content = {0};
    uint64_t stamp;
    if (pack_writer_has(run->writer, PACK_CHAIN, name)) return OK;
    TRY(stamp_of(run, PACK_CHAIN, name, &stamp));
    pack_put_chain(&content, chain);
    Status status = pack_writer_add(run->writer, PACK_CHAIN, name, chain->release_date, stamp, &content);
    bytes_free(&content);
    return status;
}

/* Writes the structure that a hit needs and names the hit after the chain that was found. A hit without one stays in
 * the list, so that the draws of the shuffle are those of the files. */
static Status add_template(PackRun *run, const TemplateQuery *query, TemplateHit *hit, Arena *arena, bool *usable_out)
{
    const TemplateSource *source = &dataset_source(run->dataset)->templates;
    char entry[NAME_SIZE], asked[NAME_SIZE];
    const Chain *chain = NULL;
    const char *why;
    Arena scratch = {0};
    Status status = hhr_split_name(hit->name, entry, sizeof entry, asked, sizeof asked);
    if (status == OK) status = template_locate(query, hit, source, &scratch, &chain, &why);
    const char *current = source->current(source->context, entry);
    if (status == OK) {
        hit->name = arena_printf(arena, "%s_%s", current, chain ? chain->chain_id : asked);
        if (!hit->name) status = status_fail(ERR_MEMORY, "pack: no memory for %s", query->name);
    }
    if (status == OK && chain) status = add_chain(run, hit->name, chain);
    *usable_out = chain != NULL;
    arena_free(&scratch);
    return status;
}

/* The hits that a sample may come to: the best 20, which are shuffled, and more while those hold too few that can be
 * used. *count_inout: of `order`. */
static Status add_templates(PackRun *run, const TemplateQuery *query, TemplateHits *hits, const int32_t *order,
                            int64_t *count_inout, Arena *arena)
{
    int64_t kept = 0, usable = 0;
    while (kept < *count_inout && (kept < TEMPLATE_SHUFFLED || usable < TEMPLATE_MOST) && kept < PACK_MOST_HITS) {
        bool one;
        TRY(add_template(run, query, &hits->hit[order[kept++]], arena, &one));
        usable += one;
    }
    *count_inout = kept;
    return OK;
}

static Status add_alignment(PackRun *run, const char *name, uint64_t stamp, RawSample *raw, Arena *arena)
{
    TemplateQuery query = {.name = name,
                           .entry_id = raw->chain.entry_id,
                           .sequence = raw->chain.sequence,
                           .release_date = raw->chain.release_date};
    int32_t *order = NULL;
    int64_t count = 0;
    TRY(template_select(&query, &raw->hits, &dataset_source(run->dataset)->templates, arena, &order, &count));
    TRY(add_templates(run, &query, &raw->hits, order, &count, arena));
    TRY(add_chain(run, name, &raw->chain));
    ByteWriter content = {0};
    pack_put_alignment(&content, &raw->msa, &raw->hits, order, count);
    /* last: its presence says that all the rest is there, too */
    Status status = pack_writer_add(run->writer, PACK_ALIGNMENT, name, raw->chain.release_date, stamp, &content);
    bytes_free(&content);
    return status;
}

static Status pack_chain(PackRun *run, int64_t chain)
{
    const DatasetSource *source = dataset_source(run->dataset);
    const char *name = dataset_name(run->dataset, chain);
    Arena arena = {0};
    RawSample raw = {0};
    uint64_t stamp;
    if (pack_writer_has(run->writer, PACK_ALIGNMENT, name)) return OK;
    TRY(stamp_of(run, PACK_ALIGNMENT, name, &stamp)); /* before reading: what changes meanwhile is noticed next time */
    Status status = source->load(source->context, chain, run->options->templates, &arena, &raw);
    if (status == OK) status = add_alignment(run, name, stamp, &raw, &arena);
    arena_free(&arena);
    return status;
}

/* Under the lock. Only faults of the input may leave a chain out. */
static void note_failure(PackRun *run, int64_t chain, Status status, const char *text)
{
    if (status == ERR_INPUT && !run->options->stop_on_error) {
        ++run->left_out;
        data_warn(run->options->log, dataset_name(run->dataset, chain), 0, "left out of the pack: %s", text);
    } else if (run->failure == OK) {
        run->failure = status;
        snprintf(run->text, sizeof run->text, "%s", text);
    }
}

static void *work(void *argument)
{
    PackRun *run = argument;
    int64_t chains = dataset_count(run->dataset);
    pthread_mutex_lock(&run->lock);
    while (run->failure == OK && run->next < chains) {
        int64_t chain = run->next++;
        pthread_mutex_unlock(&run->lock);
        Status status = pack_chain(run, chain);
        pthread_mutex_lock(&run->lock);
        if (status != OK) note_failure(run, chain, status, status_text());
        ++run->done;
        if (run->options->progress) run->options->progress(run->options->progress_context, run->done, chains);
    }
    pthread_mutex_unlock(&run->lock);
    return NULL;
}

static void run_threads(PackRun *run, pthread_t *thread)
{
    int started = 0;
    pthread_mutex_init(&run->lock, NULL);
    while (started < run->options->threads - 1 && pthread_create(&thread[started], NULL, work, run) == 0) ++started;
    work(run); /* this thread is one of them, so the work is done even if no other could be started */
    for (int i = 0; i < started; ++i) pthread_join(thread[i], NULL);
    pthread_mutex_destroy(&run->lock);
}

/* Counts and sizes of a finished pack. */
static void fill_report(const PackFile *file, PackReport *report)
{
    struct stat info;
    report->chains = pack_file_count(file, PACK_ALIGNMENT);
    report->structures = pack_file_count(file, PACK_CHAIN);
    if (stat(pack_file_path(file), &info) == 0) report->file_bytes = info.st_size;
    for (int kind = 0; kind < PACK_KINDS; ++kind)
        for (int64_t i = 0; i < pack_file_count(file, (PackKind)kind); ++i) {
            int64_t raw, stored;
            pack_file_sizes(file, (PackKind)kind, i, &raw, &stored);
            report->raw_bytes += raw;
            report->stored_bytes += stored;
        }
}

Status pack_write(const Dataset *dataset, const PackOptions *options, PackReport *report_out)
{
    enum { MOST_THREADS = 1024 };
    if (options->threads < 1 || options->threads > MOST_THREADS)
        return status_fail(ERR_USAGE, "pack: %d threads, expected 1 to %d", options->threads, MOST_THREADS);
    PackRun run = {.dataset = dataset, .options = options};
    PackReport report = {0};
    Arena arena = {0};
    PackFile *file = NULL;
    int64_t raw, stored;
    TRY(start_run(&run));
    pthread_t *thread = arena_array(&arena, (size_t)options->threads, sizeof *thread);
    Status status = thread ? OK : status_fail(ERR_MEMORY, "pack: no memory for threads");
    if (status == OK) {
        run_threads(&run, thread);
        if (run.failure != OK) status = status_fail(run.failure, "%s", run.text);
    }
    if (status == OK) status = pack_writer_finish(run.writer);
    pack_writer_sizes(run.writer, &report.kept, &raw, &stored);
    pack_writer_close(&run.writer);
    if (status == OK) status = pack_file_open(options->path, &file);
    if (status == OK) {
        fill_report(file, &report);
        report.left_out = run.left_out;
        *report_out = report;
    }
    pack_file_close(&file);
    arena_free(&arena);
    return status;
}

static Status verify_record(const PackFile *file, PackKind kind, int64_t index)
{
    const char *name = pack_file_name(file, kind, index);
    Arena arena = {0};
    ByteReader reader;
    Status status = pack_file_read(file, kind, index, &arena, &reader);
    if (status == OK && kind == PACK_CHAIN) {
        Chain chain;
        status = pack_get_chain(name, &reader, &arena, &chain);
    } else if (status == OK) {
        PreparedMsa msa;
        TemplateHits hits;
        status = pack_get_alignment(name, &reader, &arena, &msa, &hits);
    }
    arena_free(&arena);
    return status;
}

Status pack_verify(const char *path, const DataLog *log, PackReport *report_out, int64_t *damaged_out)
{
    PackFile *file = NULL;
    PackReport report = {0};
    int64_t damaged = 0;
    TRY(pack_file_open(path, &file));
    fill_report(file, &report);
    Status status = OK;
    for (int kind = 0; kind < PACK_KINDS; ++kind)
        for (int64_t i = 0; i < pack_file_count(file, (PackKind)kind) && status == OK; ++i) {
            Status read = verify_record(file, (PackKind)kind, i);
            if (read == ERR_MEMORY) status = read;
            if (read == OK) continue;
            ++damaged;
            data_warn(log, path, 0, "%s", status_text());
        }
    pack_file_close(&file);
    if (status != OK) return status;
    *report_out = report;
    *damaged_out = damaged;
    return OK;
}
