/* Files that are written whole or not at all: beside their place, synced, renamed over it. A symbolic link is followed:
 * what it leads to is replaced. Character devices, pipes and standard output (/dev/stdout) take the bytes as they
 * come; folders and whatever else is no file are refused. */
#ifndef FOLDSCALE_ENGINE_OUTPUT_H
#define FOLDSCALE_ENGINE_OUTPUT_H

#include <stdbool.h>
#include <stdio.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef struct Output {
    Arena arena; /* owns the texts */
    FILE *file;  /* to write to */
    char *path, *target;
    char *temporary; /* NULL: a device or pipe */
} Output;

/* A file that is there is replaced only when it is empty or begins with `begins`, white space aside, where '*' stands
 * for all up to the next '"': what a user wrote is not ours to overwrite. NULL: whatever it is. ERR_INPUT for another
 * file, ERR_IO when nothing can be written. */
Status output_open(const char *path, const char *begins, Output *output_out);
/* The file is in its place, or its place is as it was: ERR_IO, also when an earlier write to `file` failed. */
Status output_close(Output *output);
void output_abandon(Output *output);

/* The same check for writers with files of their own. *target_out (in `arena`): the file that stands or will stand at
 * `path`, NULL for a device or pipe. */
Status output_place(const char *path, const char *begins, Arena *arena, char **target_out);

/* Logs, which grow by lines and are never whole, at the same places behind the same links: begun again, or continued
 * (`keep`). `begins` as for output_open. Devices, standard output and pipes that were handed over take the bytes as
 * they come. The handle is the caller's to close, and no program that is started inherits it. *fresh_out (may be NULL):
 * no lines of the log stand before what will be written. Errors as output_open, and ERR_IO for a fifo, see below. */
Status output_open_log(const char *path, bool keep, const char *begins, int *handle_out, bool *fresh_out);

/* ERR_IO when `path` is a fifo, which would wait for a reader: for files whose names are ours, not the user's, and
 * for what is continued. A pipe that was handed over (/dev/stdout) is none. */
Status output_refuse_fifo(const char *path);

/* Both paths lead to one file, which may not be there yet. */
bool output_same(const char *a, const char *b);

/* Before any work is done: as output_place, and ERR_USAGE when `path` is one of the inputs (those that are NULL or
 * name no file are passed over). `what` names the option in messages: "fit: --out". */
Status output_check(const char *what, const char *path, const char *begins, const char *const *inputs, int count);

#endif
