#include "experiments/run_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/input.h"
#include "engine/output.h"
#include "experiments/checkpoint.h"

Status run_folder_claim(const char *folder, int *lock_out)
{
    int lock = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0) return status_fail(ERR_IO, "%s: cannot open the folder (%s)", folder, strerror(errno));
    if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            close(lock);
            return status_fail(ERR_IO, "%s: another foldscale is writing here (expected one at a time)", folder);
        }
        /* NFS locks only what is open for writing, which a folder never is */
        fprintf(stderr, "foldscale: note: %s: cannot be locked (%s): let only one foldscale write here\n", folder,
                strerror(errno));
    }
    *lock_out = lock;
    return OK;
}

void run_folder_release(int *lock)
{
    if (*lock >= 0) close(*lock);
    *lock = -1;
}

/* Anything behind the line of names. */
static bool has_rows(const char *path)
{
    FILE *file = NULL;
    int c = 0;
    if (output_refuse_fifo(path) != OK) return true; /* somebody's: neither waited for nor removed unasked */
    if (input_open(path, &file) != OK) return false;
    while ((c = getc(file)) != EOF && c != '\n') continue;
    bool rows = c == '\n' && getc(file) != EOF;
    fclose(file);
    return rows;
}

static const char refusal[] =
    "%s: holds a run already (%s; expected --resume to go on with it, --replace to begin again "
    "without it, or another --out)";

Status run_folder_expect_none(const char *folder)
{
    char steps[4096];
    int64_t newest = 0;
    TRY(checkpoint_newest(folder, &newest));
    if (newest >= 0) {
        snprintf(steps, sizeof steps, "a checkpoint of step %lld", (long long)newest);
        return status_fail(ERR_IO, refusal, folder, steps);
    }
    snprintf(steps, sizeof steps, "%s/steps.csv", folder);
    return has_rows(steps) ? status_fail(ERR_IO, refusal, folder, "steps.csv") : OK;
}

Status run_folder_clear(const char *folder)
{
    static const char *const files[] = {"steps.csv", "losses.csv", "eval.csv", "ops.csv", "mlperf.log"};
    char path[4096];
    struct stat info;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) { /* nothing is removed where not all can be */
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
            return status_fail(ERR_IO, "%s: a folder (expected a file of a run)", path);
    }
    TRY(checkpoint_remove_all(folder));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        if (unlink(path) != 0 && errno != ENOENT)
            return status_fail(ERR_IO, "%s: cannot remove (%s)", path, strerror(errno));
    }
    return OK;
}
