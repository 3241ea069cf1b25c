/* What published figures say about the launches of OpenFold and the codes that descend from it. None of them is a step
 * time that `validate` predicts. */
#ifndef FOLDSCALE_EXPERIMENTS_OPENFOLD_H
#define FOLDSCALE_EXPERIMENTS_OPENFOLD_H

#include "experiments/pricing.h"

typedef struct OpenFold {
    double launches_per_op; /* its launches a step (ScaleFold, table 1) over the ops of our program, all switches off */
    /* Seconds that a launch costs, gaps and kernels too short to fill the device included: what the device alone takes
     * (eager kernels of this engine, one H200), and what OpenFold's two step times on one A100, initial training and
     * fine-tuning, leave when kernels are one factor on both (OpenFold issue 103). */
    double launch_low_s, launch_s;
    double step_s[2];  /* those two steps */
    double graph_gain; /* of a CUDA graph over ScaleFold's step at DAP 8, as its ladder of optimizations says */
    double graph_gain_sd;
    double loader_s; /* wait for data of BioNeMo's port with the ordered loader (its rows b and c) */
} OpenFold;

/* `initial` and `fine`: experiments of the two phases. */
Status openfold_read(const Config *initial, const Config *fine, OpenFold *out);

/* Prices of such a code on a machine before its kernels are calibrated: attention and layer norms written as one kernel
 * are launched once, every other op as OpenFold does. */
Status openfold_prices(const OpenFold *openfold, const Machine *machine, double launch_s, OpPrices **prices_out);

/* Program of an autocast code: products in bf16, everything between them in float32. Classes in arena. */
Status openfold_autocast(const StepCost *full, Arena *arena, StepCost *out);

#endif
