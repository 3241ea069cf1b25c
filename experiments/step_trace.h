/* The priced step of an experiment as a timeline, and what SimGrid makes of it. */
#ifndef FOLDSCALE_EXPERIMENTS_STEP_TRACE_H
#define FOLDSCALE_EXPERIMENTS_STEP_TRACE_H

#include "analysis/trace.h"
#include "experiments/pricing.h"

/* One step with `recycling` forwards without gradient on the machine of `pricing`, ranks and DAP as `config` says. */
Status step_trace(const Config *config, int recycling, const Pricing *pricing, Trace **trace_out);

/* One step (one forward without gradient) of dp x dap ranks, by our simulator and by SimGrid's network model in place
 * of ours, with the same priced computation. */
typedef struct StepReplay {
    int dp, dap;
    double ours_s, simgrid_s;
} StepReplay;

enum { STEP_REPLAYS = 5 };

/* The experiment's step on nodes of 8 H100, several DP x DAP. ERR_UNSUPPORTED without SimGrid. */
Status step_trace_replay(const char *experiment, StepReplay replays_out[STEP_REPLAYS]);

#endif
