#include "experiments/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/input.h"
#include "engine/output.h"

static Status io_fail(const char *path, const char *what)
{
    return status_fail(ERR_IO, "%s: %s (%s)", path, what, strerror(errno));
}

Status file_write_whole(const char *path, const char *bytes, size_t count)
{
    Output output;
    TRY(output_refuse_fifo(path));
    TRY(output_open(path, NULL, &output));
    fwrite(bytes, 1, count, output.file);
    return output_close(&output);
}

Status file_read_whole(const char *path, size_t limit, char **text_out)
{
    FILE *file = NULL;
    TRY(input_open(path, &file));
    size_t size = 0, room = 65536;
    char *text = malloc(room + 1);
    while (text) {
        size += fread(text + size, 1, room - size, file);
        if (size < room || size > limit) break;
        room *= 2;
        char *larger = realloc(text, room + 1);
        if (!larger) free(text);
        text = larger;
    }
    Status status = OK;
    if (!text)
        status = status_fail(ERR_MEMORY, "%s: out of memory", path);
    else if (ferror(file))
        status = io_fail(path, "cannot read");
    else if (size > limit)
        status = status_fail(ERR_INPUT, "%s: too large (expected at most %zu bytes)", path, limit);
    fclose(file);
    if (status != OK) {
        free(text);
        return status;
    }
    text[size] = '\0';
    *text_out = text;
    return OK;
}

Status files_make_folder(const char *path)
{
    char partial[4096];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof partial) return status_fail(ERR_IO, "\"%s\": not a folder's path", path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(partial, path, i);
        partial[i] = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST) return io_fail(partial, "cannot make the folder");
    }
    struct stat info;
    if (stat(path, &info) != 0) return io_fail(path, "cannot make the folder");
    if (!S_ISDIR(info.st_mode)) return status_fail(ERR_IO, "%s: not a folder", path);
    return OK;
}

bool file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}
