#include "experiments/mllog.h"

#include <errno.h>
#include <cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/output.h"

struct Mllog {
    FILE *file;
    char *path;
};

Status mllog_open(const char *path, Mllog **log_out)
{
    int handle;
    TRY(output_open_log(path, true, ":::MLLOG", &handle, NULL));
    Mllog *log = calloc(1, sizeof *log);
    if (log) log->path = strdup(path);
    if (log && log->path) log->file = fdopen(handle, "w"); /* as in table_writer_append */
    if (log && log->file) {
        *log_out = log;
        return OK;
    }
    close(handle);
    if (log) free(log->path);
    free(log);
    return status_fail_at(ERR_MEMORY, path, 0, "out of memory for the log");
}

Status mllog_close(Mllog **log)
{
    if (!*log) return OK;
    Status status = OK;
    if (ferror((*log)->file)) status = status_fail(ERR_IO, "%s: cannot write (is the disk full?)", (*log)->path);
    if (fclose((*log)->file) != 0 && status == OK)
        status = status_fail(ERR_IO, "%s: cannot write (%s)", (*log)->path, strerror(errno));
    free((*log)->path);
    free(*log);
    *log = NULL;
    return status;
}

static void write_line(Mllog *log, MllogEvent event, const char *key, cJSON *value, cJSON *metadata)
{
    static const char *const events[] = {
        [MLLOG_POINT] = "POINT_IN_TIME", [MLLOG_START] = "INTERVAL_START", [MLLOG_END] = "INTERVAL_END"};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    cJSON *line = cJSON_CreateObject();
    cJSON_AddStringToObject(line, "namespace", "");
    cJSON_AddNumberToObject(line, "time_ms", (double)now.tv_sec * 1000 + floor((double)now.tv_nsec / 1e6));
    cJSON_AddStringToObject(line, "event_type", events[event]);
    cJSON_AddStringToObject(line, "key", key);
    cJSON_AddItemToObject(line, "value", value);
    cJSON_AddItemToObject(line, "metadata", metadata);
    char *text = cJSON_PrintUnformatted(line);
    if (text) fprintf(log->file, ":::MLLOG %s\n", text);
    fflush(log->file);
    free(text);
    cJSON_Delete(line);
}

void mllog_text(Mllog *log, MllogEvent event, const char *key, const char *value)
{
    if (log) write_line(log, event, key, value ? cJSON_CreateString(value) : cJSON_CreateNull(), cJSON_CreateObject());
}

void mllog_number(Mllog *log, MllogEvent event, const char *key, double value)
{
    if (log) write_line(log, event, key, cJSON_CreateNumber(value), cJSON_CreateObject());
}

void mllog_at_step(Mllog *log, MllogEvent event, const char *key, double value, int64_t step, int64_t samples)
{
    if (!log) return;
    cJSON *metadata = cJSON_CreateObject();
    cJSON_AddNumberToObject(metadata, "step_num", (double)step);
    cJSON_AddNumberToObject(metadata, "samples_count", (double)samples);
    write_line(log, event, key, isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull(), metadata);
}
