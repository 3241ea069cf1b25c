#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment.h"
#include "data/alignment_rows.h"
#include "data/archive_internal.h"
#include "data/folder.h"
#include "data/hhr.h"

static bool ends_with(const char *name, const char *ending)
{
    size_t length = strlen(name), part = strlen(ending);
    return length >= part && strcmp(name + length - part, ending) == 0;
}

/* hmm_output.sto holds template hits of hmmsearch, whose first row is not the query. */
static bool is_alignment(const char *name)
{
    if (strncmp(name, "hmm_output", strlen("hmm_output")) == 0) return false;
    return ends_with(name, ".a3m") || ends_with(name, ".sto") || ends_with(name, ".a3m.gz") ||
           ends_with(name, ".sto.gz");
}

static bool is_hits(const char *name)
{
    return ends_with(name, ".hhr") || ends_with(name, ".hhr.gz");
}

/* --- where the files of a chain are ----------------------------------------------------------------------------- */

static int compare_files(const void *a, const void *b)
{
    const ArchiveFile *x = a, *y = b;
    int hits = is_hits(x->name) - is_hits(y->name);
    return hits ? hits : alignment_order(x->name, y->name);
}

static Status add_folder(const char *path, Arena *arena, FolderList *paths)
{
    FolderList list;
    if (!folder_is(path)) return OK;
    TRY(folder_list(path, arena, &list));
    for (int64_t i = 0; i < list.count; i++) {
        if (!is_alignment(list.name[i]) && !is_hits(list.name[i])) continue;
        char *file = arena_printf(arena, "%s/%s", path, list.name[i]);
        if (!file) return status_fail(ERR_MEMORY, "%.400s: out of memory", path);
        TRY(folder_list_add(paths, file, arena));
    }
    return OK;
}

/* <chain>/NAME (OpenFold), <chain>/a3m/NAME and <chain>/hhr/NAME (OpenProteinSet). */
static Status files_in_folder(const Archive *archive, const char *chain, Arena *arena, ArchiveFile **files_out,
                              int64_t *count_out)
{
    static const char *const parts[] = {"", "/a3m", "/hhr"};
    FolderList paths = {0};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *path = arena_printf(arena, "%s/%s%s", archive->paths.alignments, chain, parts[i]);
        if (!path) return status_fail(ERR_MEMORY, "out of memory");
        if (i == 0 && !folder_is(path)) break;
        TRY(add_folder(path, arena, &paths));
    }
    ArchiveFile *files = arena_array(arena, (size_t)paths.count, sizeof *files);
    if (!files) return status_fail(ERR_MEMORY, "out of memory");
    for (int64_t i = 0; i < paths.count; i++)
        files[i] = (ArchiveFile){.name = strrchr(paths.name[i], '/') + 1, .path = paths.name[i], .offset = -1};
    *files_out = files;
    *count_out = paths.count;
    return OK;
}

static Status files_in_index(const Archive *archive, const char *chain, Arena *arena, ArchiveFile **files_out,
                             int64_t *count_out)
{
    int64_t place = names_find(&archive->index.by_name, chain), kept = 0;
    if (place < 0) return OK;
    const IndexedChain *indexed = &archive->index.chain[place];
    ArchiveFile *files = arena_array(arena, (size_t)indexed->count, sizeof *files);
    if (!files) return status_fail(ERR_MEMORY, "out of memory");
    for (int64_t i = 0; i < indexed->count; i++) {
        const ArchiveFile *file = &archive->index.file[indexed->first + i];
        if (is_alignment(file->name) || is_hits(file->name)) files[kept++] = *file;
    }
    *files_out = files;
    *count_out = kept;
    return OK;
}

static Status files_of(const Archive *archive, const char *chain, Arena *arena, ArchiveFile **files_out,
                       int64_t *count_out)
{
    *count_out = 0;
    *files_out = NULL;
    if (!archive_is_name(chain)) return OK;
    TRY(files_in_index(archive, chain, arena, files_out, count_out));
    if (*count_out == 0 && archive->paths.alignments) TRY(files_in_folder(archive, chain, arena, files_out, count_out));
    if (*count_out) qsort(*files_out, (size_t)*count_out, sizeof **files_out, compare_files);
    return OK;
}

Status archive_chain_files(const Archive *archive, const char *chain, Arena *arena, ArchiveFile **files_out,
                           int64_t *count_out)
{
    const DuplicateGroups *groups = &archive->duplicates;
    TRY(files_of(archive, chain, arena, files_out, count_out));
    int64_t member = *count_out ? -1 : names_find(&groups->by_name, chain);
    if (member < 0) return OK;
    int64_t group = groups->group_of[member];
    for (int64_t i = groups->first[group]; i < groups->first[group + 1] && *count_out == 0; i++)
        if (i != member) TRY(files_of(archive, groups->member[i], arena, files_out, count_out));
    return OK;
}

Status archive_file_read(const ArchiveFile *file, const char *chain, Text *text_out)
{
    if (file->offset < 0) return text_read(file->path, text_out);
    char name[512];
    const char *slash = strrchr(file->path, '/');
    snprintf(name, sizeof name, "%.200s (%.60s/%.100s)", slash ? slash + 1 : file->path, chain, file->name);
    return text_read_range(file->path, file->offset, file->size, name, text_out);
}

/* --- what is in them -------------------------------------------------------------------------------------------- */

static Status read_part(const Archive *archive, const ArchiveFile *file, const char *chain, const char *sequence,
                        Arena *arena, RowBuilder *part)
{
    Text text = {0};
    TRY(archive_file_read(file, chain, &text));
    Status status = rows_parse(&text, file->name, archive->log, arena, part);
    if (status == OK) {
        const Msa first = {
            .rows = part->rows, .columns = part->columns, .hhblits_id = part->id, .query_line = part->query_line};
        status = alignment_check_query(&first, text.name, chain, sequence);
        if (status != OK) rows_free(part);
    }
    text_close(&text);
    return status;
}

static Status read_parts(const Archive *archive, const char *chain, const char *sequence, Arena *scratch,
                         RowBuilder **parts_out, int64_t *count_out)
{
    ArchiveFile *files;
    int64_t count;
    TRY(archive_chain_files(archive, chain, scratch, &files, &count));
    RowBuilder *parts = arena_array(scratch, (size_t)count, sizeof *parts);
    if (!parts) return status_fail(ERR_MEMORY, "out of memory");
    *parts_out = parts;
    for (int64_t i = 0; i < count; i++) {
        if (!is_alignment(files[i].name)) continue;
        TRY(read_part(archive, &files[i], chain, sequence, scratch, &parts[*count_out]));
        ++*count_out;
    }
    return OK;
}

Status archive_chain_msa(const Archive *archive, const char *chain, const char *sequence, Arena *arena, Msa *msa_out)
{
    Arena scratch = {0}; /* the parts, dropped once they are joined */
    RowBuilder *parts = NULL;
    int64_t count = 0;
    Status status = read_parts(archive, chain, sequence, &scratch, &parts, &count);
    if (status == OK) status = rows_join(parts, count, sequence, arena, msa_out);
    for (int64_t i = 0; i < count; i++) rows_free(&parts[i]);
    arena_free(&scratch);
    return status;
}

static Status read_hits(const Archive *archive, const ArchiveFile *file, const char *chain, Arena *arena,
                        TemplateHits *hits_out)
{
    Text text = {0};
    TRY(archive_file_read(file, chain, &text));
    Status status = hhr_parse(&text, archive->log, arena, hits_out);
    text_close(&text);
    return status;
}

static Status append_hits(const TemplateHits *more, Arena *arena, TemplateHits *hits)
{
    TemplateHit *all = arena_array(arena, (size_t)(hits->count + more->count), sizeof *all);
    if (!all) return status_fail(ERR_MEMORY, "out of memory");
    if (hits->count) memcpy(all, hits->hit, (size_t)hits->count * sizeof *all);
    if (more->count) memcpy(all + hits->count, more->hit, (size_t)more->count * sizeof *all);
    *hits = (TemplateHits){hits->count + more->count, all};
    return OK;
}

Status archive_chain_hits(const Archive *archive, const char *chain, Arena *arena, TemplateHits *hits_out)
{
    ArchiveFile *files;
    int64_t count;
    TemplateHits hits = {0}, more;
    TRY(archive_chain_files(archive, chain, arena, &files, &count));
    for (int64_t i = 0; i < count; i++) {
        if (!is_hits(files[i].name)) continue;
        TRY(read_hits(archive, &files[i], chain, arena, &more));
        TRY(append_hits(&more, arena, &hits));
    }
    *hits_out = hits;
    return OK;
}

/* --- all chains ------------------------------------------------------------------------------------------------- */

static Status add_groups(const Archive *archive, FolderList *chains, Arena *arena)
{
    const DuplicateGroups *groups = &archive->duplicates;
    NameMap known = {.arena = arena};
    const int64_t own = chains->count;
    for (int64_t i = 0; i < own; i++) TRY(names_add(&known, chains->name[i], i, NULL));
    for (int64_t g = 0; g < groups->groups; g++) {
        bool any = false;
        for (int64_t i = groups->first[g]; i < groups->first[g + 1]; i++)
            any = any || names_find(&known, groups->member[i]) >= 0;
        for (int64_t i = groups->first[g]; any && i < groups->first[g + 1]; i++)
            TRY(folder_list_add(chains, groups->member[i], arena));
    }
    return OK;
}

Status archive_list_chains(const Archive *archive, Arena *arena, char ***chains_out, int64_t *count_out)
{
    FolderList chains = {0}, list = {0};
    for (int64_t i = 0; i < archive->index.chains; i++)
        TRY(folder_list_add(&chains, (char *)(uintptr_t)archive->index.chain[i].name, arena));
    if (archive->paths.alignments) TRY(folder_list(archive->paths.alignments, arena, &list));
    for (int64_t i = 0; i < list.count; i++) {
        char *path = arena_printf(arena, "%s/%s", archive->paths.alignments, list.name[i]);
        if (!path) return status_fail(ERR_MEMORY, "out of memory");
        if (archive_is_name(list.name[i]) && folder_is(path)) TRY(folder_list_add(&chains, list.name[i], arena));
    }
    folder_list_sort(&chains);
    TRY(add_groups(archive, &chains, arena));
    folder_list_sort(&chains);
    *chains_out = chains.name;
    *count_out = chains.count;
    return OK;
}
