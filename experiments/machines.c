#include "experiments/machines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/folder.h"
#include "engine/words.h"
#include "experiments/cli.h"
#include "experiments/files.h"

#ifndef FOLDSCALE_SOURCE_DIR
#define FOLDSCALE_SOURCE_DIR "."
#endif

static const char *folder(void)
{
    const char *given = getenv("FOLDSCALE_MACHINES");
    return given && *given ? given : FOLDSCALE_SOURCE_DIR "/experiments/machines";
}

static Status unknown(const char *name)
{
    WordList known = {0};
    Arena arena = {0};
    FolderList files = {0};
    Status status = folder_list(folder(), &arena, &files);
    for (int64_t i = 0; status == OK && i < files.count; i++) {
        char *dot = strstr(files.name[i], ".yaml");
        if (!dot) continue;
        *dot = '\0';
        words_add(&known, files.name[i]);
    }
    arena_free(&arena);
    return status_fail(ERR_USAGE, "unknown machine \"%s\" (expected a file, or one of %s: %s)", name, folder(),
                       known.text);
}

Status machines_open(const char *name, Machine **machine_out)
{
    char path[4096];
    if (strchr(name, '/') || strstr(name, ".yaml")) return machine_read(name, machine_out);
    snprintf(path, sizeof path, "%s/%s.yaml", folder(), name);
    return file_exists(path) ? machine_read(path, machine_out) : unknown(name);
}
