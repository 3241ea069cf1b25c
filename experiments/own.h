/* Measurements of this engine on GPUs, as tests/bench_step writes them: whole steps under switches, and tables of op
 * times of some of them. */
#ifndef FOLDSCALE_EXPERIMENTS_OWN_H
#define FOLDSCALE_EXPERIMENTS_OWN_H

#include "analysis/opprice.h"
#include "analysis/table.h"
#include "experiments/config.h"

enum { OWN_PROGRAMS = 3 }; /* without gradient, gradient, optimizer */

/* A measured step: one row of step.csv, ablation.csv, dap_local.csv or two_gpus.csv. Texts in OwnData.arena. */
typedef struct OwnStep {
    const char *file, *commit, *device, *preset, *setting;
    long line;
    SwitchSection switches;
    int64_t ranks, dp, dap, repeats;
    bool no_comm;
    double step_s, sd_s; /* sd_s NAN for a single repeat */
    double program_s[OWN_PROGRAMS];
    double program_ops[OWN_PROGRAMS];
} OwnStep;

/* Those of a step: the benchmark knows no loader and no evaluation. NULL ends them. */
extern const char *const own_switch_names[];

/* Op times of one setting: rows [first, first + count) of OwnData.timing, and the step that they belong to. */
typedef struct OwnTable {
    const char *commit, *setting;
    int64_t dap;
    bool no_comm;
    int first, count, step; /* step: -1 when its whole time was not measured */
} OwnTable;

typedef struct OwnData {
    Arena arena;
    OwnStep *step;
    OpTiming *timing;
    int *program; /* [timings] */
    OwnTable *table;
    int steps, timings, tables;
} OwnData;

/* Reads what FOLDER has of op_table.csv, step.csv, ablation.csv, dap_local.csv and two_gpus.csv; ERR_INPUT when there
 * is no table of ops or no step. */
Status own_read(const char *folder, OwnData *out);
void own_free(OwnData *data);

#endif
