/* A run directory -> one row of runs.csv. */
#ifndef FOLDSCALE_EXPERIMENTS_RUN_SUMMARY_H
#define FOLDSCALE_EXPERIMENTS_RUN_SUMMARY_H

#include "analysis/schema.h"
#include "experiments/config.h"

/* Steps up to `warmup` are left out. Strings belong to `arena`. ERR_INPUT when the run has no step after them. */
Status run_summarize(const char *folder, const char *run_id, const Config *config, int warmup, Arena *arena,
                     RunRow *row_out);

#endif
