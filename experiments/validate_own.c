#include "experiments/validate_own.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "experiments/machines.h"
#include "experiments/own_prices.h"
#include "experiments/pricing.h"

#ifndef FOLDSCALE_SOURCE_DIR
#define FOLDSCALE_SOURCE_DIR "."
#endif

typedef enum Reason { REASON_NONE, REASON_COMMIT, REASON_PRESET, REASON_PRECISION, REASON_OPS, REASON_COUNT } Reason;

static const char *const reason_texts[REASON_COUNT] = {
    "", "of another state of the code than the op times", "of another model than initial_training",
    "of a precision without op times", "whose number of ops is not that of today's program"};

typedef struct Own {
    OwnData data;
    Machine *machine;
    Config *config;
    Pricing *pricing;
    OwnPrices prices;
    double run_sd; /* of the logarithm of a setting's step from run to run */
    int left_out[REASON_COUNT];
} Own;

/* --- which rows
 * ----------------------------------------------------------------------------------------------------- */

/* One rank has no communication to overlap. */
static bool same_step(const OwnStep *a, const OwnStep *b)
{
    for (int i = 0; config_switch_names[i]; i++)
        if ((a->dap * a->dp > 1 || strcmp(config_switch_names[i], "comm_overlap")) &&
            config_switch_get(&a->switches, config_switch_names[i]) !=
                config_switch_get(&b->switches, config_switch_names[i]))
            return false;
    return a->switches.checkpoint == b->switches.checkpoint && a->ranks == b->ranks && a->dap == b->dap &&
           a->dp == b->dp && a->no_comm == b->no_comm;
}

static bool is_fitted(const OwnData *d, const OwnStep *s)
{
    for (int t = 0; t < d->tables; t++)
        if (same_step(s, &d->step[d->table[t].step])) return true;
    return false;
}

/* Within 2 %: programs of the mean step without the optimizer, whose thousands of ops would hide a difference, and the
 * optimizer. */
static bool same_ops(const OwnStep *s, const StepCost *cost)
{
    double step[2] = {0}, measured[2] = {0}; /* the optimizer, all else */
    /* what an op sends is no op of its own */
    for (int i = 0; i < cost->count; i++)
        if (!cost->item[i].sender) step[cost->item[i].stage != COST_OPTIMIZER] += cost->item[i].calls;
    for (int p = 0; p < OWN_PROGRAMS; p++) measured[p != OWN_PROGRAMS - 1] += OWN_RUNS[p] * s->program_ops[p];
    return fabs(step[1] - measured[1]) <= 0.02 * measured[1] &&
           fabs(step[0] - measured[0]) <= fmax(2, 0.02 * measured[0]);
}

static Reason reason_against(const OwnData *d, const OwnStep *s, const StepCost *cost)
{
    bool commit = false, precision = false;
    for (int t = 0; t < d->tables; t++) {
        commit |= !strcmp(d->table[t].commit, s->commit);
        precision |= d->step[d->table[t].step].switches.bf16 == s->switches.bf16;
    }
    if (strcmp(s->preset, "initial_training")) return REASON_PRESET;
    if (!commit) return REASON_COMMIT;
    if (!precision) return REASON_PRECISION;
    return same_ops(s, cost) ? REASON_NONE : REASON_OPS;
}

/* Spread of repeated runs of one setting, in other processes or on the other GPU. */
static double run_spread(const OwnData *d)
{
    static const double LEAST = 0.005; /* clocks and temperature of one GPU over a day */
    double square = 0;
    int degrees = 0;
    for (int i = 0; i < d->steps; i++)
        for (int j = 0; j < i; j++) {
            if (!same_step(&d->step[i], &d->step[j]) || strcmp(d->step[i].commit, d->step[j].commit)) continue;
            square += pow(log(d->step[i].step_s / d->step[j].step_s), 2) / 2;
            degrees++;
        }
    return degrees ? fmax(sqrt(square / degrees), LEAST) : 2 * LEAST;
}

/* --- predictions
 * ------------------------------------------------------------------------------------------------------------- */

/* "all", "none", "all but bf16 cuda_graph", "only bf16", whichever names fewer switches. One rank has no communication
 * to overlap. */
static char *setting_text(const OwnStep *s, Arena *arena)
{
    static const char *const checkpoints[] = {"", ", blocks recomputed", ", parts of blocks recomputed"};
    const char *names[2] = {"", ""}; /* of the switches that are off, on */
    int count[2] = {0};
    for (int i = 0; own_switch_names[i]; i++) {
        const char *name = own_switch_names[i];
        if (s->ranks == 1 && !strcmp(name, "comm_overlap")) continue;
        bool on = config_switch_get(&s->switches, name);
        names[on] = arena_printf(arena, "%s %s", names[on], name);
        if (!names[on]) return NULL;
        count[on]++;
    }
    const char *recomputed = checkpoints[s->switches.checkpoint];
    if (!count[0] || !count[1]) return arena_printf(arena, "%s%s", count[1] ? "all" : "none", recomputed);
    bool few_on = count[1] < count[0];
    return arena_printf(arena, "%s%s%s", few_on ? "only" : "all but", names[few_on], recomputed);
}

/* Spread of collectives: of the fits to the samples that the step's launches go by, wider where only the others exist.
 */
static double comm_sd(const Machine *m, bool in_graph)
{
    double square = 0;
    int kinds = 0;
    bool measured = m->fit[in_graph][COLLECTIVE_ALL_TO_ALL].samples > 0;
    for (int k = 0; k < COLLECTIVE_BROADCAST; k++) square += pow(m->fit[measured && in_graph][k].sd, 2), kinds++;
    return sqrt(square / kinds) * (measured ? 1 : 2);
}

static Status predict_step(Own *own, const OwnStep *s, const StepCost *cost, Arena *arena, ValidationRow *out)
{
    static const double QUANTILE = 1.6449; /* 90 % of a normal, both sides */
    StepPrice price;
    OpPrices *prices = NULL;
    StepCost mine = *cost;
    mine.comm_left_out = s->no_comm;
    TRY(own_prices_fit(&own->prices, s, -1, &prices));
    Status status = opprice_step(prices, own->machine, &mine, s->no_comm ? 1 : s->dp, &price);
    opprice_destroy(&prices);
    TRY(status);
    double comm = price.latency_s + price.wire_s, slowest = 1;
    if (s->ranks > 1) slowest += own->machine->rank_noise.value * fit_expected_max((double)s->ranks);
    double step = price.compute_s * slowest + comm;
    double sd = hypot(price.sd * price.compute_s, comm_sd(own->machine, cost->in_graph) * comm) / step;
    sd = hypot(hypot(sd, own->run_sd), own_prices_mark_sd(&own->prices, cost->kernels + cost->waits, step));
    const char *setting = setting_text(s, arena);
    if (!setting) return status_fail(ERR_MEMORY, "validate: out of memory");
    *out = (ValidationRow){.set = "own",
                           .fitted = is_fitted(&own->data, s),
                           .predicted = step,
                           .low = step * exp(-QUANTILE * sd),
                           .high = step * exp(QUANTILE * sd),
                           .truth = s->step_s,
                           .naive = NAN,
                           .naive2 = NAN};
    out->what = arena_printf(arena, "%s, %s%lld x %lld%s: step (s)", setting, s->ranks > 1 ? "" : "one of ",
                             (long long)s->dp, (long long)s->dap, s->no_comm ? ", no exchange" : "");
    out->basis = out->fitted
                     ? arena_strdup(arena, "its op times were measured")
                     : arena_printf(arena, "op times of %d settings: %.0f %% of computation in measured shapes%s",
                                    own->data.tables, 100 * price.measured, comm > 0 ? ", collective benchmark" : "");
    return out->what && out->basis ? OK : status_fail(ERR_MEMORY, "validate: out of memory");
}

static Status make_rows(Own *own, Arena *arena, ValidationRow *rows, int *count)
{
    for (int i = 0; i < own->data.steps; i++) {
        const OwnStep *s = &own->data.step[i];
        const StepCost *cost;
        TRY(pricing_cost(own->pricing, own->config, &s->switches, (int)s->dap, &cost));
        Reason reason = reason_against(&own->data, s, cost);
        own->left_out[reason]++;
        if (reason == REASON_NONE) TRY(predict_step(own, s, cost, arena, &rows[(*count)++]));
    }
    return OK;
}

static char *note_of(const Own *own, Arena *arena)
{
    char *note = arena_strdup(arena, "");
    for (int r = REASON_NONE + 1; r < REASON_COUNT && note; r++)
        if (own->left_out[r])
            note = arena_printf(arena, "%s%sown: %d measured steps left out, %s", note, *note ? "\n" : "",
                                own->left_out[r], reason_texts[r]);
    return note;
}

static Status open_machine(const char *folder, Machine **machine_out)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/machine.yaml", folder);
    return machines_open(access(path, R_OK) == 0 ? path : "h200x2", machine_out);
}

Status validate_own(const char *folder, Arena *arena, ValidationRow **rows_out, int *count_out, char **note_out)
{
    const TextList none = {0};
    Own own = {0};
    int count = 0;
    ValidationRow *rows = NULL;
    Status status = own_read(folder, &own.data);
    if (status == OK) status = open_machine(folder, &own.machine);
    if (status == OK)
        status = config_load(FOLDSCALE_SOURCE_DIR "/experiments/initial_training.yaml", &none, &own.config);
    if (status == OK) status = pricing_open(own.config, "h200", NULL, &own.pricing);
    if (status == OK) status = own_prices_open(&own.data, own.machine, &own.prices);
    if (status == OK) {
        own.run_sd = run_spread(&own.data);
        rows = arena_array(arena, (size_t)own.data.steps, sizeof *rows);
        status = rows ? make_rows(&own, arena, rows, &count) : status_fail(ERR_MEMORY, "validate: out of memory");
    }
    char *note = status == OK ? note_of(&own, arena) : NULL;
    if (status == OK && !note) status = status_fail(ERR_MEMORY, "validate: out of memory");
    own_prices_close(&own.prices);
    if (own.machine) machine_destroy(&own.machine);
    pricing_close(&own.pricing);
    config_destroy(&own.config);
    own_free(&own.data);
    if (status != OK) return status;
    *rows_out = rows;
    *count_out = count;
    *note_out = note;
    return OK;
}

const char *validate_own_default(void)
{
    static const char table[] = FOLDSCALE_SOURCE_DIR "/experiments/results/h200/validation/op_table.csv",
                      folder[] = FOLDSCALE_SOURCE_DIR "/experiments/results/h200/validation";
    return access(table, R_OK) == 0 ? folder : NULL;
}
