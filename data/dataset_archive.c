/* A dataset read from files. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"
#include "data/hhr.h"
#include "data/name_index.h"

enum { NAME_SIZE = 64, DATE_SLOTS = 4096 };

/* Remembers the headers of template structures when there is no mmcif_cache.json. */
typedef struct HeaderNode {
    struct HeaderNode *next;
    const char *entry_id;
    const Structure *header; /* NULL: no such file, or not readable */
} HeaderNode;

typedef struct ArchiveSource {
    Archive *archive;
    const DataLog *log;
    Arena arena;
    char **names;
    int64_t count;
    NameIndex *cached; /* chain -> record of mmcif_cache.json; NULL when not named */
    pthread_mutex_t lock;
    Arena header_arena; /* under the lock */
    HeaderNode *headers[DATE_SLOTS];
} ArchiveSource;

static void close_source(void *context)
{
    ArchiveSource *source = context;
    archive_close(&source->archive);
    pthread_mutex_destroy(&source->lock);
    arena_free(&source->header_arena);
    arena_free(&source->arena);
    free(source);
}

static int64_t count_chains(void *context)
{
    return ((ArchiveSource *)context)->count;
}

static const char *name_of(void *context, int64_t chain)
{
    return ((ArchiveSource *)context)->names[chain];
}

static Status load(void *context, int64_t index, bool with_hits, Arena *arena, RawSample *raw_out)
{
    ArchiveSource *source = context;
    char entry[NAME_SIZE], chain_id[NAME_SIZE];
    const char *name = source->names[index];
    Structure *structure;
    TRY(hhr_split_name(name, entry, sizeof entry, chain_id, sizeof chain_id));
    TRY(archive_structure_read(source->archive, entry, arena, &structure));
    const Chain *chain = structure_find_chain(structure, chain_id);
    if (!chain) return status_fail(ERR_INPUT, "%s: the structure has no protein chain %s", name, chain_id);
    *raw_out = (RawSample){.chain = *chain};
    Msa msa;
    TRY(archive_chain_msa(source->archive, name, chain->sequence, arena, &msa));
    TRY(msa_prepare(&msa, arena, &raw_out->msa));
    if (with_hits) TRY(archive_chain_hits(source->archive, name, arena, &raw_out->hits));
    return OK;
}

static Status stamp(void *context, const char *name, uint64_t *stamp_out)
{
    return archive_stamp(((ArchiveSource *)context)->archive, name, stamp_out);
}

static const char *current_entry(void *context, const char *entry_id)
{
    return archive_current_entry(((ArchiveSource *)context)->archive, entry_id);
}

static Status read_structure(void *context, const char *entry_id, const char *chain_id, Arena *arena,
                             const Structure **structure_out)
{
    (void)chain_id; /* the file has all chains */
    Structure *structure;
    TRY(archive_structure_read(((ArchiveSource *)context)->archive, entry_id, arena, &structure));
    *structure_out = structure;
    return OK;
}

/* The header of an entry, read once; the lock is held while it is read, which happens once per entry. */
static Status header_of(ArchiveSource *source, const char *entry_id, const Structure **header_out)
{
    uint64_t hash = 5381;
    for (const char *c = entry_id; *c; ++c) hash = hash * 33 + (unsigned char)*c;
    HeaderNode **slot = &source->headers[hash % DATE_SLOTS], *node = *slot;
    while (node && strcmp(node->entry_id, entry_id) != 0) node = node->next;
    if (!node) {
        char *path = NULL;
        Structure *header = NULL;
        TRY(archive_structure_path(source->archive, entry_id, &source->header_arena, &path));
        Status status = path ? mmcif_read_header(path, source->log, &source->header_arena, &header) : OK;
        if (status == ERR_MEMORY) return status;
        if (status != OK) data_warn(source->log, path, 0, "not usable as a template: %s", status_text());
        node = arena_alloc(&source->header_arena, sizeof *node);
        if (!node) return status_fail(ERR_MEMORY, "no memory for the header of %s", entry_id);
        *node = (HeaderNode){*slot, arena_strdup(&source->header_arena, entry_id), status == OK ? header : NULL};
        if (!node->entry_id) return status_fail(ERR_MEMORY, "no memory for the header of %s", entry_id);
        *slot = node;
    }
    *header_out = node->header;
    return OK;
}

static Status release_date(void *context, const char *entry_id, const char *chain_id, char date_out[11])
{
    ArchiveSource *source = context;
    date_out[0] = '\0';
    if (source->cached) {
        char name[2 * NAME_SIZE];
        snprintf(name, sizeof name, "%s_%s", entry_id, chain_id);
        int64_t record = name_index_find(source->cached, name);
        if (record >= 0) memcpy(date_out, archive_mmcif_cache(source->archive)->record[record].release_date, 11);
        return OK;
    }
    const Structure *header = NULL;
    pthread_mutex_lock(&source->lock);
    Status status = header_of(source, entry_id, &header);
    pthread_mutex_unlock(&source->lock);
    if (status == OK && header && structure_find_chain(header, chain_id)) memcpy(date_out, header->release_date, 11);
    return status;
}

static Status index_cache(ArchiveSource *source)
{
    const ChainTable *table = archive_mmcif_cache(source->archive);
    if (!table) return OK;
    TRY(name_index_create(table->count, &source->arena, &source->cached));
    for (int64_t i = 0; i < table->count; ++i) name_index_add(source->cached, table->record[i].chain, i);
    return OK;
}

static Status copy_names(ArchiveSource *source, const char *const *chains, int64_t count)
{
    source->names = arena_array(&source->arena, (size_t)count, sizeof *source->names);
    if (!source->names) return status_fail(ERR_MEMORY, "no memory for %lld chain names", (long long)count);
    for (int64_t i = 0; i < count; ++i) {
        source->names[i] = arena_strdup(&source->arena, chains[i]);
        if (!source->names[i]) return status_fail(ERR_MEMORY, "no memory for %lld chain names", (long long)count);
    }
    source->count = count;
    return OK;
}

/* Chains of all files; files that cannot be read are left out with a remark. */
static Status list_from_headers(ArchiveSource *source)
{
    char **entries;
    int64_t entry_count, room = 0;
    TRY(archive_list_entries(source->archive, &source->arena, &entries, &entry_count));
    for (int64_t e = 0; e < entry_count; ++e) {
        const Structure *header;
        TRY(header_of(source, entries[e], &header));
        if (header) room += header->chain_count;
    }
    source->names = arena_array(&source->arena, (size_t)room, sizeof *source->names);
    if (!source->names) return status_fail(ERR_MEMORY, "no memory for %lld chain names", (long long)room);
    for (int64_t e = 0; e < entry_count; ++e) {
        const Structure *header;
        TRY(header_of(source, entries[e], &header));
        for (int64_t c = 0; header && c < header->chain_count; ++c) {
            char *name = arena_printf(&source->arena, "%s_%s", entries[e], header->chain[c].chain_id);
            if (!name) return status_fail(ERR_MEMORY, "no memory for %lld chain names", (long long)room);
            source->names[source->count++] = name;
        }
    }
    return OK;
}

static Status list_from_cache(ArchiveSource *source)
{
    const ChainTable *table = archive_mmcif_cache(source->archive);
    const char **names = arena_array(&source->arena, (size_t)table->count, sizeof *names);
    if (!names) return status_fail(ERR_MEMORY, "no memory for %lld chain names", (long long)table->count);
    for (int64_t i = 0; i < table->count; ++i) names[i] = table->record[i].chain;
    return copy_names(source, names, table->count);
}

Status dataset_open_archive(const ArchivePaths *paths, const char *const *chains, int64_t chain_count,
                            const DataLog *log, Dataset **dataset_out)
{
    ArchiveSource *source = calloc(1, sizeof *source);
    if (!source) return status_fail(ERR_MEMORY, "no memory for a dataset");
    source->log = log;
    pthread_mutex_init(&source->lock, NULL);
    Status status = archive_open(paths, log, &source->archive);
    if (status == OK) status = index_cache(source);
    if (status == OK)
        status = chains           ? copy_names(source, chains, chain_count)
                 : source->cached ? list_from_cache(source)
                                  : list_from_headers(source);
    if (status != OK) {
        close_source(source);
        return status;
    }
    const DatasetSource functions = {
        .context = source,
        .close = close_source,
        .count = count_chains,
        .name = name_of,
        .load = load,
        .stamp = stamp,
        .templates = {source, current_entry, release_date, read_structure},
    };
    return dataset_open_source(&functions, log, dataset_out);
}
