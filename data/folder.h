/* Names in a folder, sorted, so that nothing depends on the order of the file system. */
#ifndef FOLDSCALE_DATA_FOLDER_H
#define FOLDSCALE_DATA_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef struct FolderList {
    char **name;
    int64_t count, capacity;
} FolderList;

/* All names but those that start with '.'; ERR_IO when the folder cannot be read. */
Status folder_list(const char *path, Arena *arena, FolderList *list_out);
bool folder_is(const char *path);

/* `name` must live as long as the list. */
Status folder_list_add(FolderList *list, char *name, Arena *arena);
/* Sorts by bytes and drops repeats. */
void folder_list_sort(FolderList *list);

#endif
