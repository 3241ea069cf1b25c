#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/process.h"
#include "analysis/trace.h"

Status simgrid_replay(const char *folder, double *seconds_out)
{
    char path[4096];
    char *probe[] = {"smpirun", "--version", NULL}, *replay[] = {"sh", "replay.sh", NULL};
    if (snprintf(path, sizeof path, "%s/replay.log", folder) >= (int)sizeof path)
        return status_fail(ERR_USAGE, "replay: folder name too long");
    if (process_run(NULL, probe, NULL, NULL) != OK)
        return status_fail(ERR_UNSUPPORTED, "smpirun cannot be started: install libsimgrid-dev to replay with SimGrid");
    /* the result is among the messages; both streams would overwrite one another in one file */
    TRY(process_run(folder, replay, NULL, path));
    FILE *log = fopen(path, "rb");
    if (!log) return status_fail_at(ERR_IO, path, 0, "cannot open: %s", strerror(errno));
    char *line = NULL;
    size_t size = 0;
    double seconds = -1;
    while (getline(&line, &size, log) >= 0) {
        const char *at = strstr(line, "Simulated time: ");
        if (at) seconds = strtod(at + strlen("Simulated time: "), NULL);
    }
    free(line);
    fclose(log);
    if (!(seconds >= 0)) return status_fail_at(ERR_INTERNAL, path, 0, "SimGrid printed no simulated time");
    *seconds_out = seconds;
    return OK;
}
