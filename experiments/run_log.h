/* The CSV files of a run directory, written by rank 0: steps.csv, losses.csv, eval.csv, ops.csv. */
#ifndef FOLDSCALE_EXPERIMENTS_RUN_LOG_H
#define FOLDSCALE_EXPERIMENTS_RUN_LOG_H

#include "analysis/schema.h"
#include "experiments/evaluate.h"
#include "experiments/session.h"

typedef struct RunLog RunLog;

/* Rank 0 opens the files for appending (they are cut back to `first_step` when a run goes on); other ranks get an empty
 * log. */
Status run_log_open(const char *folder, const Session *session, int64_t first_step, RunLog **log_out);
Status run_log_close(RunLog **log);

/* Collects the step of every rank (all ranks call it) and writes it. *stop_out: whether any rank wants to stop. */
Status run_log_step(RunLog *log, const StepRow *row, const StepResult *result, bool stop, bool *stop_out);
Status run_log_eval(RunLog *log, int64_t step, double elapsed_s, const ChainScore *scores, int count);
/* ops.csv of a profiled session. */
Status run_log_ops(const char *folder, Session *session, int64_t steps, int64_t nograd_runs);

#endif
