#include <string.h>

#include "data/archive.h"
#include "data/archive_internal.h"
#include "data/stamp.h"

static Status stamp_structure(const Archive *archive, const char *entry, Arena *arena, uint64_t *stamp)
{
    char *path = NULL;
    TRY(archive_structure_path(archive, entry, arena, &path));
    *stamp = stamp_file(*stamp, path);
    return OK;
}

static Status stamp_alignments(const Archive *archive, const char *chain, Arena *arena, uint64_t *stamp)
{
    ArchiveFile *file;
    int64_t count;
    TRY(archive_chain_files(archive, chain, arena, &file, &count));
    for (int64_t i = 0; i < count; ++i) {
        *stamp = stamp_file(*stamp, file[i].path);
        *stamp = stamp_number(*stamp, file[i].offset);
        *stamp = stamp_number(*stamp, file[i].size);
    }
    return OK;
}

static Status stamp_lists(const Archive *archive, Arena *arena, uint64_t *stamp)
{
    const ArchivePaths *paths = &archive->paths;
    const char *const files[] = {paths->duplicates, paths->obsolete, paths->mmcif_cache};
    char **entries;
    int64_t count;
    TRY(archive_list_entries(archive, arena, &entries, &count));
    for (int64_t i = 0; i < count; ++i) *stamp = stamp_bytes(*stamp, entries[i], strlen(entries[i]) + 1);
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i) *stamp = stamp_file(*stamp, files[i]);
    return OK;
}

Status archive_stamp(const Archive *archive, const char *name, uint64_t *stamp_out)
{
    Arena arena = {0};
    uint64_t stamp = STAMP_START;
    const char *bar = name ? strchr(name, '_') : NULL;
    char *entry = name ? arena_strndup(&arena, name, bar ? (size_t)(bar - name) : strlen(name)) : NULL;
    Status status = OK;
    if (name && !entry) status = status_fail(ERR_MEMORY, "no memory for a name");
    if (status == OK)
        status = name ? stamp_structure(archive, entry, &arena, &stamp) : stamp_lists(archive, &arena, &stamp);
    if (status == OK && bar) status = stamp_alignments(archive, name, &arena, &stamp);
    arena_free(&arena);
    *stamp_out = stamp;
    return status;
}
