#include "data/mmcif.h"

#include <string.h>

#include "data/mmcif_tables.h"

static Status parse(const Text *text, const DataLog *log, bool header_only, Arena *arena, Structure **structure_out)
{
    MmcifTables tables;
    bool unnamed = false;
    Structure *structure = arena_alloc(arena, sizeof *structure);
    if (!structure) return status_fail(ERR_MEMORY, "%.400s: out of memory", text->name);
    Status status = mmcif_tables_read(text, log, header_only, arena, &tables);
    if (status == OK) status = mmcif_chains_build(&tables, header_only, structure, &unnamed);
    mmcif_tables_free(&tables);
    TRY(status);
    if (unnamed) { /* no _pdbx_poly_seq_scheme: only the atoms know the author's chain ids */
        TRY(parse(text, NULL, false, arena, &structure));
        for (int64_t i = 0; i < structure->chain_count; i++) {
            structure->chain[i].positions = NULL;
            structure->chain[i].mask = NULL;
        }
    }
    *structure_out = structure;
    return OK;
}

Status mmcif_parse(const Text *text, const DataLog *log, Arena *arena, Structure **structure_out)
{
    return parse(text, log, false, arena, structure_out);
}

Status mmcif_parse_header(const Text *text, const DataLog *log, Arena *arena, Structure **structure_out)
{
    return parse(text, log, true, arena, structure_out);
}

static Status read_and_parse(const char *path, const DataLog *log, bool header_only, Arena *arena,
                             Structure **structure_out)
{
    Text text = {0};
    TRY(text_read(path, &text));
    Status status = parse(&text, log, header_only, arena, structure_out);
    text_close(&text);
    return status;
}

Status mmcif_read(const char *path, const DataLog *log, Arena *arena, Structure **structure_out)
{
    return read_and_parse(path, log, false, arena, structure_out);
}

Status mmcif_read_header(const char *path, const DataLog *log, Arena *arena, Structure **structure_out)
{
    return read_and_parse(path, log, true, arena, structure_out);
}

const Chain *structure_find_chain(const Structure *structure, const char *chain_id)
{
    for (int64_t i = 0; i < structure->chain_count; i++)
        if (strcmp(structure->chain[i].chain_id, chain_id) == 0) return &structure->chain[i];
    return NULL;
}
