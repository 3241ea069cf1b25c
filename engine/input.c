#include "engine/input.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* A pipe without a name came from whoever started us; one with a name (a fifo) lies in a file system of files. */
static bool is_handed_over(int handle)
{
    struct statfs system;
    return fstatfs(handle, &system) == 0 && system.f_type == PIPEFS_MAGIC;
}

Status input_open(const char *path, FILE **file_out)
{
    /* O_NONBLOCK: the open of a fifo must not wait */
    int handle = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (handle < 0) return status_fail_at(ERR_IO, path, 0, "cannot open: %s", strerror(errno));
    struct stat info;
    bool good = fstat(handle, &info) == 0 && (S_ISREG(info.st_mode) || is_handed_over(handle) || isatty(handle));
    if (!good) {
        close(handle);
        return status_fail_at(ERR_INPUT, path, 0, "not a regular file");
    }
    FILE *file = fcntl(handle, F_SETFL, 0) == 0 ? fdopen(handle, "rb") : NULL; /* reads wait again */
    if (!file) {
        Status status = status_fail_at(ERR_IO, path, 0, "cannot open: %s", strerror(errno));
        close(handle);
        return status;
    }
    *file_out = file;
    return OK;
}
