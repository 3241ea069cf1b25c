/* A dataset read from a pack. */
#include <stdio.h>
#include <string.h>

#include "data/dataset.h"
#include "data/pack_file.h"
#include "data/pack_record.h"
#include "data/stamp.h"

enum { NAME_SIZE = 256 };

static void close_pack(void *context)
{
    PackFile *file = context;
    pack_file_close(&file);
}

static int64_t count_chains(void *context)
{
    return pack_file_count(context, PACK_ALIGNMENT);
}

static const char *name_of(void *context, int64_t chain)
{
    return pack_file_name(context, PACK_ALIGNMENT, chain);
}

static Status read_chain(const PackFile *file, const char *name, Arena *arena, Chain *chain_out)
{
    int64_t index = pack_file_find(file, PACK_CHAIN, name);
    ByteReader reader;
    if (index < 0) return status_fail_at(ERR_INPUT, pack_file_path(file), 0, "no structure of %s", name);
    TRY(pack_file_read(file, PACK_CHAIN, index, arena, &reader));
    return pack_get_chain(name, &reader, arena, chain_out);
}

static Status load(void *context, int64_t chain, bool with_hits, Arena *arena, RawSample *raw_out)
{
    const PackFile *file = context;
    const char *name = pack_file_name(file, PACK_ALIGNMENT, chain);
    ByteReader reader;
    *raw_out = (RawSample){.hits_selected = true};
    TRY(read_chain(file, name, arena, &raw_out->chain));
    TRY(pack_file_read(file, PACK_ALIGNMENT, chain, arena, &reader));
    TRY(pack_get_alignment(name, &reader, arena, &raw_out->msa, &raw_out->hits));
    if (!with_hits) raw_out->hits.count = 0;
    return OK;
}

static Status stamp(void *context, const char *name, uint64_t *stamp_out)
{
    (void)name;
    *stamp_out = stamp_file(STAMP_START, pack_file_path(context));
    return OK;
}

/* Names in a pack are current ones. */
static const char *current_entry(void *context, const char *entry_id)
{
    (void)context;
    return entry_id;
}

static Status release_date(void *context, const char *entry_id, const char *chain_id, char date_out[11])
{
    char name[NAME_SIZE];
    date_out[0] = '\0';
    snprintf(name, sizeof name, "%s_%s", entry_id, chain_id);
    int64_t index = pack_file_find(context, PACK_CHAIN, name);
    if (index >= 0) pack_file_date(context, PACK_CHAIN, index, date_out);
    return OK;
}

static Status read_structure(void *context, const char *entry_id, const char *chain_id, Arena *arena,
                             const Structure **structure_out)
{
    char name[NAME_SIZE];
    Structure *structure = arena_alloc(arena, sizeof *structure);
    Chain *chain = arena_alloc(arena, sizeof *chain);
    if (!structure || !chain) return status_fail(ERR_MEMORY, "pack: no memory for a chain");
    snprintf(name, sizeof name, "%s_%s", entry_id, chain_id);
    TRY(read_chain(context, name, arena, chain));
    *structure = (Structure){.entry_id = chain->entry_id,
                             .resolution = chain->resolution,
                             .method = chain->method,
                             .models = 1,
                             .chain_count = 1,
                             .chain = chain};
    memcpy(structure->release_date, chain->release_date, sizeof structure->release_date);
    *structure_out = structure;
    return OK;
}

Status dataset_open_pack(const char *path, const DataLog *log, Dataset **dataset_out)
{
    PackFile *file = NULL;
    TRY(pack_file_open(path, &file));
    const DatasetSource functions = {
        .context = file,
        .close = close_pack,
        .count = count_chains,
        .name = name_of,
        .load = load,
        .stamp = stamp,
        .templates = {file, current_entry, release_date, read_structure},
    };
    return dataset_open_source(&functions, log, dataset_out);
}
