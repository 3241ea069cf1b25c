/* Monte-Carlo simulation of a job: what averages hide. Every rank draws its own computation time each step, its loader
 * its own preparation times; the slowest decides. Deterministic by seed and independent of how many threads run it:
 * all randomness is counter-based (Philox) in (seed, rank, step). */
#ifndef FOLDSCALE_ANALYSIS_SIMULATE_H
#define FOLDSCALE_ANALYSIS_SIMULATE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/status.h"

/* One loader per data-parallel replica: `workers` threads prepare samples in order of index; at most `queue` samples
 * are being prepared or wait to be taken. */
typedef struct SimLoader {
    int workers;       /* 0: no loader, data are always there */
    int queue;         /* >= workers */
    bool ready_first;  /* take the lowest-index sample that is ready; else the next one in order, waiting for it */
    double prepare_s;  /* median preparation time of a sample */
    double prepare_sd; /* of its logarithm */
} SimLoader;

typedef struct SimConfig {
    int64_t ranks, dap; /* dap ranks share one sample and one loader */
    int64_t steps;
    double compute_s;      /* expected computation of a rank */
    double rank_sd;        /* relative spread between ranks that stays for the whole job */
    double step_sd;        /* relative spread from step to step */
    double hiccup_rate;    /* probability per rank and step of a pause (garbage collection, a page fault storm) */
    double hiccup_s;       /* its mean length, exponentially distributed */
    double comm_s, host_s; /* exposed communication and host overhead of a step */
    SimLoader loader;
    double startup_s;
    double warmup_extra_s; /* first step */
    int64_t eval_every;    /* steps; 0: never */
    double eval_s;
    bool async_eval; /* on other GPUs: training waits gap_s, and longer if the evaluation before is still running */
    double gap_s;
    int64_t checkpoint_every;
    double checkpoint_s;
    uint64_t seed;
} SimConfig;

typedef struct SimStep {
    double start_s, step_s; /* since the start of the job; without evaluation and checkpoint */
    double compute_s;       /* mean over the ranks, without pauses: spreads around that of SimConfig */
    double loader_s;        /* >= 0: lost because some rank waited for data */
    double straggler_s;     /* >= 0: the longest computation, a pause included, less that mean; 0 on one rank without
                             * pauses */
    double stall_s;         /* evaluation, hand-over, checkpoint after this step */
    int64_t slowest;        /* rank that decided the step */
} SimStep;

typedef struct SimResult {
    SimStep *step; /* [steps] */
    int64_t steps;
    double total_s; /* to the end of the last step and, where it decides, of the last evaluation */
    double mean_s, p05_s, median_s, p95_s, p99_s;
    double startup_s, compute_s, comm_s, host_s, loader_s, straggler_s, eval_s, checkpoint_s; /* add up to total_s */
} SimResult;

/* ERR_USAGE naming the setting when one is out of range; ERR_MEMORY when steps x ranks do not fit. */
Status simulate_run(const SimConfig *config, SimResult *out);
void simulate_free(SimResult *result);

/* simulation.csv: one row per step, columns as in SimStep. */
Status simulate_write(const SimResult *result, const char *path);

#endif
