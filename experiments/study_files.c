#include "experiments/study_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/folder.h"
#include "experiments/files.h"

Status study_file(const char *folder, const char *name, Arena *arena, char **path_out)
{
    char *path = arena_printf(arena, "%s/%s", folder, name);
    if (!path) return status_fail(ERR_MEMORY, "%s: out of memory", folder);
    *path_out = file_exists(path) ? path : NULL;
    return OK;
}

char *study_folder_of(const char *path, Arena *arena)
{
    const char *slash = strrchr(path, '/');
    return slash ? arena_strndup(arena, path, (size_t)(slash - path)) : arena_strdup(arena, ".");
}

Status study_experiment(const char *given, const char *folder, const TextList *overrides, Config **config_out)
{
    char points[4096], path[4200];
    Arena arena = {0};
    FolderList names = {0};
    if (given) return config_load(given, overrides, config_out);
    snprintf(points, sizeof points, "%s/points", folder);
    Status status = folder_list(points, &arena, &names);
    if (status != OK || names.count == 0)
        status = status_fail(ERR_USAGE, "%s: no runs of a sweep here; name the experiment with --experiment", folder);
    else
        snprintf(path, sizeof path, "%s/%s/run.json", points, names.name[0]);
    arena_free(&arena);
    return status == OK ? config_load_run(path, overrides, config_out) : status;
}

Status study_read_runs(const TextList *paths, RunFiles *files_out)
{
    int64_t rows = 0;
    memset(files_out, 0, sizeof *files_out);
    for (int i = 0; i < paths->count; i++) {
        Status status = schema_read_runs(paths->item[i], &files_out->table[i]);
        if (status != OK) {
            study_free_runs(files_out);
            return status;
        }
        files_out->count++;
        rows += files_out->table[i].count;
    }
    files_out->all.rows = calloc((size_t)rows + 1, sizeof *files_out->all.rows);
    if (!files_out->all.rows) {
        study_free_runs(files_out);
        return status_fail(ERR_MEMORY, "out of memory for %lld runs", (long long)rows);
    }
    for (int i = 0; i < files_out->count; i++)
        for (int64_t k = 0; k < files_out->table[i].count; k++)
            files_out->all.rows[files_out->all.count++] = files_out->table[i].rows[k];
    if (rows == 0) {
        study_free_runs(files_out);
        return status_fail(ERR_INPUT, "%s: no runs in it", paths->item[0]);
    }
    return OK;
}

void study_free_runs(RunFiles *files)
{
    for (int i = 0; i < files->count; i++) schema_free_runs(&files->table[i]);
    free(files->all.rows);
    memset(files, 0, sizeof *files);
}
