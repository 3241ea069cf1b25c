#include "data/archive.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/archive_internal.h"
#include "data/folder.h"

bool archive_is_name(const char *name)
{
    if (!*name || *name == '.') return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("_-.", *name)) return false;
    return true;
}

/* --- opening --------------------------------------------------------------------------------------------------- */

static Status copy_path(Archive *archive, const char *path, const char **copy_out)
{
    struct stat info;
    if (!path) return OK;
    if (stat(path, &info) != 0) return status_fail_at(ERR_IO, path, 0, "cannot open: %s", strerror(errno));
    *copy_out = arena_strdup(&archive->arena, path);
    return *copy_out ? OK : status_fail(ERR_MEMORY, "%.400s: out of memory", path);
}

static Status copy_paths(Archive *archive, const ArchivePaths *from)
{
    ArchivePaths *to = &archive->paths;
    TRY(copy_path(archive, from->mmcif, &to->mmcif));
    TRY(copy_path(archive, from->alignments, &to->alignments));
    TRY(copy_path(archive, from->alignment_index, &to->alignment_index));
    TRY(copy_path(archive, from->alignment_db, &to->alignment_db));
    TRY(copy_path(archive, from->duplicates, &to->duplicates));
    TRY(copy_path(archive, from->obsolete, &to->obsolete));
    TRY(copy_path(archive, from->mmcif_cache, &to->mmcif_cache));
    TRY(copy_path(archive, from->chain_data_cache, &to->chain_data_cache));
    return copy_path(archive, from->clusters, &to->clusters);
}

static Status read_index(Archive *archive)
{
    Text text = {0};
    const ArchivePaths *paths = &archive->paths;
    if (!paths->alignment_index) return OK;
    TRY(text_read(paths->alignment_index, &text));
    Status status = archive_index_parse(&text, paths->alignment_db, archive->log, &archive->arena, &archive->index);
    text_close(&text);
    return status;
}

static Status read_duplicates(Archive *archive)
{
    Text text = {0};
    if (!archive->paths.duplicates) return OK;
    TRY(text_read(archive->paths.duplicates, &text));
    Status status = archive_duplicates_parse(&text, &archive->arena, &archive->duplicates);
    text_close(&text);
    return status;
}

static Status read_obsolete(Archive *archive)
{
    Text text = {0};
    if (!archive->paths.obsolete) return OK;
    TRY(text_read(archive->paths.obsolete, &text));
    Status status = archive_obsolete_parse(&text, &archive->arena, &archive->obsolete);
    text_close(&text);
    return status;
}

static Status read_lists(Archive *archive)
{
    const ArchivePaths *paths = &archive->paths;
    Arena *arena = &archive->arena;
    TRY(read_index(archive));
    TRY(read_duplicates(archive));
    TRY(read_obsolete(archive));
    if (paths->clusters) TRY(archive_read_clusters(paths->clusters, arena, &archive->clusters));
    if (paths->mmcif_cache) TRY(archive_read_mmcif_cache(paths->mmcif_cache, arena, &archive->mmcif_cache));
    if (paths->chain_data_cache) TRY(archive_read_chain_cache(paths->chain_data_cache, arena, &archive->chain_cache));
    return OK;
}

Status archive_open(const ArchivePaths *paths, const DataLog *log, Archive **archive_out)
{
    Archive *archive = calloc(1, sizeof *archive);
    if (!archive) return status_fail(ERR_MEMORY, "out of memory");
    archive->log = log;
    Status status = copy_paths(archive, paths);
    if (status == OK) status = read_lists(archive);
    if (status != OK) {
        archive_close(&archive);
        return status;
    }
    *archive_out = archive;
    return OK;
}

void archive_close(Archive **archive_inout)
{
    if (!*archive_inout) return;
    arena_free(&(*archive_inout)->arena);
    free(*archive_inout);
    *archive_inout = NULL;
}

const ChainTable *archive_chain_cache(const Archive *archive)
{
    return archive->paths.chain_data_cache ? &archive->chain_cache : NULL;
}

const ChainTable *archive_mmcif_cache(const Archive *archive)
{
    return archive->paths.mmcif_cache ? &archive->mmcif_cache : NULL;
}

const ClusterTable *archive_clusters(const Archive *archive)
{
    return archive->clusters;
}

/* --- structures ------------------------------------------------------------------------------------------------ */

Status archive_structure_path(const Archive *archive, const char *entry_id, Arena *arena, char **path_out)
{
    static const char *const endings[] = {".cif", ".cif.gz"};
    size_t length = strlen(entry_id);
    *path_out = NULL;
    if (!archive->paths.mmcif || !archive_is_name(entry_id)) return OK;
    for (int divided = 0; divided < 2; divided++) {
        if (divided && length < 4) break;
        for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
            char *path = divided ? arena_printf(arena, "%s/%.2s/%s%s", archive->paths.mmcif, entry_id + length - 3,
                                                entry_id, endings[i])
                                 : arena_printf(arena, "%s/%s%s", archive->paths.mmcif, entry_id, endings[i]);
            struct stat info;
            if (!path) return status_fail(ERR_MEMORY, "out of memory");
            if (stat(path, &info) != 0) continue;
            *path_out = path;
            return OK;
        }
    }
    return OK;
}

Status archive_structure_read(const Archive *archive, const char *entry_id, Arena *arena, Structure **structure_out)
{
    char *path = NULL;
    TRY(archive_structure_path(archive, entry_id, arena, &path));
    if (!path)
        return status_fail_at(ERR_INPUT, archive->paths.mmcif ? archive->paths.mmcif : "data set", 0,
                              "no structure of entry %.60s", entry_id);
    return mmcif_read(path, archive->log, arena, structure_out);
}

/* "2q2k.cif.gz" -> "2q2k"; NULL for other files. */
static char *entry_of_file(const char *name, Arena *arena)
{
    const char *ending = strstr(name, ".cif");
    if (!ending || ending == name || (strcmp(ending, ".cif") != 0 && strcmp(ending, ".cif.gz") != 0)) return NULL;
    return arena_strndup(arena, name, (size_t)(ending - name));
}

static Status list_folder(const char *path, bool divided, Arena *arena, FolderList *entries)
{
    FolderList list;
    TRY(folder_list(path, arena, &list));
    for (int64_t i = 0; i < list.count; i++) {
        char *entry = entry_of_file(list.name[i], arena);
        if (entry) {
            TRY(folder_list_add(entries, entry, arena));
        } else if (divided && strlen(list.name[i]) == 2) {
            char *inner = arena_printf(arena, "%s/%s", path, list.name[i]);
            if (!inner) return status_fail(ERR_MEMORY, "out of memory");
            if (folder_is(inner)) TRY(list_folder(inner, false, arena, entries));
        }
    }
    return OK;
}

Status archive_list_entries(const Archive *archive, Arena *arena, char ***entries_out, int64_t *count_out)
{
    FolderList entries = {0};
    if (archive->paths.mmcif) TRY(list_folder(archive->paths.mmcif, true, arena, &entries));
    folder_list_sort(&entries);
    *entries_out = entries.name;
    *count_out = entries.count;
    return OK;
}
