/* MLPerf logging lines (mlcommons/logging, "result" format): one line of JSON behind ":::MLLOG ". */
#ifndef FOLDSCALE_EXPERIMENTS_MLLOG_H
#define FOLDSCALE_EXPERIMENTS_MLLOG_H

#include <stdint.h>

#include "engine/status.h"

typedef struct Mllog Mllog;
typedef enum MllogEvent { MLLOG_POINT, MLLOG_START, MLLOG_END } MllogEvent;

/* Appends to `path`; every line is flushed. ERR_INPUT when what is there is no such log, ERR_IO when it cannot be
 * written. */
Status mllog_open(const char *path, Mllog **log_out);
Status mllog_close(Mllog **log);

/* A NULL log is silent (other ranks). Failures are kept and returned by mllog_close. */
void mllog_text(Mllog *log, MllogEvent event, const char *key, const char *value);
void mllog_number(Mllog *log, MllogEvent event, const char *key, double value);
/* With {"step_num": step, "samples_count": samples}. */
void mllog_at_step(Mllog *log, MllogEvent event, const char *key, double value, int64_t step, int64_t samples);

#endif
