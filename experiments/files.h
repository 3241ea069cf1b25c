/* Files and folders of a run. */
#ifndef FOLDSCALE_EXPERIMENTS_FILES_H
#define FOLDSCALE_EXPERIMENTS_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/status.h"

/* The file is the old whole one or the new whole one (engine/output.h). ERR_IO for a fifo. */
Status file_write_whole(const char *path, const char *bytes, size_t count);
/* The whole file, NUL-terminated; at most `limit` bytes. Caller frees. */
Status file_read_whole(const char *path, size_t limit, char **text_out);
/* mkdir -p */
Status files_make_folder(const char *path);
bool file_exists(const char *path);
#endif
