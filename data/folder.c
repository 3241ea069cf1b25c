#include "data/folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool folder_is(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

Status folder_list_add(FolderList *list, char *name, Arena *arena)
{
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 16;
        char **names = arena_array(arena, (size_t)capacity, sizeof *names);
        if (!names) return status_fail(ERR_MEMORY, "no memory for %lld names", (long long)capacity);
        if (list->count) memcpy(names, list->name, (size_t)list->count * sizeof *names);
        list->name = names;
        list->capacity = capacity;
    }
    list->name[list->count++] = name;
    return OK;
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void folder_list_sort(FolderList *list)
{
    int64_t kept = 0;
    if (list->count) qsort(list->name, (size_t)list->count, sizeof *list->name, compare);
    for (int64_t i = 0; i < list->count; i++)
        if (i == 0 || strcmp(list->name[i], list->name[kept - 1]) != 0) list->name[kept++] = list->name[i];
    list->count = kept;
}

Status folder_list(const char *path, Arena *arena, FolderList *list_out)
{
    DIR *folder = opendir(path);
    FolderList list = {0};
    Status status = OK;
    if (!folder) return status_fail_at(ERR_IO, path, 0, "cannot open the folder: %s", strerror(errno));
    for (const struct dirent *entry; status == OK && (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        char *name = arena_strdup(arena, entry->d_name);
        status = name ? folder_list_add(&list, name, arena) : status_fail(ERR_MEMORY, "%.400s: out of memory", path);
    }
    closedir(folder);
    TRY(status);
    folder_list_sort(&list);
    *list_out = list;
    return OK;
}
