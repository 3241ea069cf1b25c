/* The training loop of one rank and its run directory (study.md). */
#ifndef FOLDSCALE_EXPERIMENTS_RUNNER_H
#define FOLDSCALE_EXPERIMENTS_RUNNER_H

#include "experiments/config.h"

typedef struct RunOptions {
    const char *folder; /* the run directory */
    bool resume;        /* go on from the newest whole checkpoint of it */
    bool replace;       /* else: a run that it holds is removed first, and refused without this */
    bool profile;       /* time every op: ops.csv */
    bool check_finite;  /* stop at a step that is not finite and name the first op */
    bool quiet;         /* no summary on standard output */
    int argc;           /* command line, for run.json */
    char **argv;
} RunOptions;

/* Trains to config->train.steps. Stops earlier, with a checkpoint, on SIGINT or SIGTERM, after train.max_seconds or at
 * eval.target. */
Status runner_train(const Config *config, const RunOptions *options);

#endif
