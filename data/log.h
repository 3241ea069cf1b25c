/* Where the readers send what is odd but not fatal ("said, never silent"): one call per remark. A NULL log drops
 * them. Errors are not remarks: they are returned as Status with their message (engine/status.h). */
#ifndef FOLDSCALE_DATA_LOG_H
#define FOLDSCALE_DATA_LOG_H

typedef struct DataLog {
    /* `line` is 0 when the remark concerns the whole file. Must be thread-safe if the readers run in threads. */
    void (*warn)(void *context, const char *file, long line, const char *text);
    void *context;
} DataLog;

void data_warn(const DataLog *log, const char *file, long line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
