/* From a study's settings to the shapes that fits and predictions work on: records the step of each setting, sums its
 * cost and prices it on a machine (analysis/cost.h, opprice.h, predict.h). */
#ifndef FOLDSCALE_EXPERIMENTS_PRICING_H
#define FOLDSCALE_EXPERIMENTS_PRICING_H

#include "analysis/predict.h"
#include "experiments/config.h"

typedef struct Pricing Pricing;

/* `machine_name`: where the ops were measured (machines_open). `ops_path`: ops.csv of a profiled run there, or the
 * folder of tables of ops that the benchmark timed there (own.h); NULL: every kind of op at half the machine's
 * ceilings, with a spread of 30 %. */
Status pricing_open(const Config *config, const char *machine_name, const char *ops_path, Pricing **pricing_out);
void pricing_close(Pricing **pricing);

const Machine *pricing_machine(const Pricing *pricing);
OpPrices *pricing_ops(const Pricing *pricing);

/* Sets the share of a step that a fit on these prices expects beside the priced work. */
void pricing_serial_share(const Pricing *pricing, FitOptions *options);

/* Cost of one rank's step under these switches and this DAP degree; recorded once, kept. Another experiment's step when
 * `config` is not the one of pricing_open. */
Status pricing_cost(Pricing *pricing, const Config *config, const SwitchSection *switches, int dap,
                    const StepCost **cost_out);

/* Priced computation of the reference (the experiment's switches on one rank), on the measured machine. */
Status pricing_reference(Pricing *pricing, double *seconds_out);

/* `machine` NULL: the measured one. Ranks beyond the cores of a CPU share them: their work grows by that factor. */
Status pricing_shape(Pricing *pricing, const Machine *machine, const Config *config, const SwitchSection *switches,
                     int dp, int dap, StepShape *shape_out, StepPrice *price_out);

/* Columns of runs.csv and predictions.csv <-> switches. */
Status pricing_switches(const RunRow *row, SwitchSection *switches_out);
void pricing_switch_texts(const SwitchSection *switches, const char *texts_out[SCHEMA_SWITCH_COUNT]);

/* Fit points of the rows with the switch setting that was measured at the most rank counts (`all`: of every row);
 * *used_out[i] is the row of point i. Caller frees both. ERR_INPUT with the line of a row that the machine has no room
 * for or that the model cannot be split for. */
Status pricing_points(Pricing *pricing, const RunTable *runs, bool all, FitPoint **points_out, int64_t **used_out,
                      int *count_out);

#endif
