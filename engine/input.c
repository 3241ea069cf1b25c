#include "engine/input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/pipe.h"

Status input_open(const char *path, FILE **file_out)
{
    /* O_NONBLOCK: the open of a fifo must not wait */
    int handle = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (handle < 0) return status_fail_at(ERR_IO, path, 0, "cannot open: %s", strerror(errno));
    struct stat info;
    bool good = fstat(handle, &info) == 0 && (S_ISREG(info.st_mode) || pipe_is_handed_over(handle) || isatty(handle));
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
