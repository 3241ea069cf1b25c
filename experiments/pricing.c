#include "experiments/pricing.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "analysis/points.h"
#include "experiments/machines.h"
#include "experiments/own_prices.h"
#include "experiments/session.h"

enum { MAX_COSTS = 256 };

typedef struct CachedCost {
    const Config *config;
    SwitchSection switches;
    int dap;
    StepCost *cost;
} CachedCost;

struct Pricing {
    const Config *config;
    Machine *machine;
    OpPrices *prices;
    CachedCost cached[MAX_COSTS];
    int count;
    double reference_s;
    bool from_tables;
};

static CostRate rate_of(const Config *config)
{
    if (config->switches.bf16) return RATE_BF16;
    return config->train.real == REAL_F64 ? RATE_F64 : RATE_F32;
}

/* Tables of the benchmark: a shape of several settings goes by the one most like the experiment's. */
static Status fit_tables(Pricing *p, const char *folder)
{
    OwnData data;
    OwnPrices prices = {0};
    const OwnStep like = {.switches = p->config->switches, .dap = 1};
    TRY(own_read(folder, &data));
    Status status = own_prices_open(&data, p->machine, &prices);
    if (status == OK) status = own_prices_fit(&prices, &like, -1, &p->prices);
    own_prices_close(&prices);
    own_free(&data);
    p->from_tables = true;
    return status;
}

static Status fit_prices(Pricing *p, const char *ops_path)
{
    struct stat what;
    if (stat(ops_path, &what) == 0 && S_ISDIR(what.st_mode)) return fit_tables(p, ops_path);
    OpTable ops;
    TRY(schema_read_ops(ops_path, &ops));
    Status status = opprice_fit(ops.rows, ops.count, p->machine, rate_of(p->config), &p->prices);
    schema_free_ops(&ops);
    return status;
}

Status pricing_open(const Config *config, const char *machine_name, const char *ops_path, Pricing **pricing_out)
{
    static const double ASSUMED_EFFICIENCY = 0.5, ASSUMED_SD = 0.3;
    Pricing *p = calloc(1, sizeof *p);
    if (!p) return status_fail(ERR_MEMORY, "out of memory for prices");
    p->config = config;
    Status status = machines_open(machine_name, &p->machine);
    if (status == OK)
        status = ops_path ? fit_prices(p, ops_path)
                          : opprice_assume(p->machine, ASSUMED_EFFICIENCY, 1, ASSUMED_SD, &p->prices);
    if (status == OK)
        *pricing_out = p;
    else
        pricing_close(&p);
    return status;
}

void pricing_close(Pricing **pricing)
{
    Pricing *p = *pricing;
    if (!p) return;
    for (int i = 0; i < p->count; i++) cost_destroy(&p->cached[i].cost);
    if (p->prices) opprice_destroy(&p->prices);
    if (p->machine) machine_destroy(&p->machine);
    free(p);
    *pricing = NULL;
}

const Machine *pricing_machine(const Pricing *pricing)
{
    return pricing->machine;
}

OpPrices *pricing_ops(const Pricing *pricing)
{
    return pricing->prices;
}

/* The weak prior leaves room for what profiles of single ops do not hold. Tables of ops add up to their whole steps,
 * and what no rank shares stands in them. */
void pricing_serial_share(const Pricing *pricing, FitOptions *options)
{
    if (!pricing->from_tables) return;
    options->serial_share = 0.003;
    options->serial_share_sd = 0.7;
}

static bool same_switches(const SwitchSection *a, const SwitchSection *b)
{
    for (int i = 0; config_switch_names[i]; i++)
        if (config_switch_get(a, config_switch_names[i]) != config_switch_get(b, config_switch_names[i])) return false;
    return a->checkpoint == b->checkpoint;
}

/* Recycling draws 0 .. most with equal frequency (workload.md), so a step has most / 2 forwards without gradient. */
static Status add_programs(const Config *config, StepCost *cost)
{
    SessionPlan plan;
    const double times[SESSION_PROGRAMS] = {[SESSION_RESET] = 1,
                                            [SESSION_NOGRAD] = config->train.recycling / 2.0,
                                            [SESSION_GRAD] = 1,
                                            [SESSION_OPTIMIZER] = 1};
    TRY(session_plan(config, true, PASS_SCHEDULE, &plan));
    Status status = OK;
    for (int i = 0; i < SESSION_PROGRAMS && status == OK; i++)
        if (plan.program[i]) status = cost_add_program(cost, plan.program[i], times[i], i == SESSION_NOGRAD);
    session_plan_free(&plan);
    return status;
}

Status pricing_cost(Pricing *pricing, const Config *config, const SwitchSection *switches, int dap,
                    const StepCost **cost_out)
{
    Pricing *p = pricing;
    for (int i = 0; i < p->count; i++) {
        const CachedCost *c = &p->cached[i];
        if (c->config != config || c->dap != dap || !same_switches(&c->switches, switches)) continue;
        *cost_out = c->cost;
        return OK;
    }
    if (p->count == MAX_COSTS) return status_fail(ERR_UNSUPPORTED, "more than %d settings to price", MAX_COSTS);
    Config *setting = malloc(sizeof *setting);
    CachedCost entry = {.config = config, .switches = *switches, .dap = dap};
    if (!setting) return status_fail(ERR_MEMORY, "out of memory for prices");
    *setting = *config;
    setting->switches = *switches;
    setting->parallel.dap = dap;
    setting->parallel.ranks = 2 * dap; /* with the gradient all-reduce, which costs nothing on one replica */
    Status status = cost_create(dap, switches->cuda_graph, &entry.cost);
    if (status == OK) status = add_programs(setting, entry.cost);
    free(setting);
    if (status != OK) {
        if (entry.cost) cost_destroy(&entry.cost);
        return status;
    }
    p->cached[p->count++] = entry;
    *cost_out = entry.cost;
    return OK;
}

Status pricing_reference(Pricing *pricing, double *seconds_out)
{
    if (pricing->reference_s == 0) {
        const StepCost *cost = NULL;
        StepPrice price;
        TRY(pricing_cost(pricing, pricing->config, &pricing->config->switches, 1, &cost));
        TRY(opprice_step(pricing->prices, pricing->machine, cost, 1, &price));
        pricing->reference_s = price.compute_s;
    }
    *seconds_out = pricing->reference_s;
    return OK;
}

Status pricing_shape(Pricing *pricing, const Machine *machine, const Config *config, const SwitchSection *switches,
                     int dp, int dap, StepShape *shape_out, StepPrice *price_out)
{
    const StepCost *cost = NULL;
    double reference = 0, cores = (double)sysconf(_SC_NPROCESSORS_ONLN), ranks = (double)dp * dap;
    if (!machine) machine = pricing->machine;
    TRY(pricing_cost(pricing, config, switches, dap, &cost));
    TRY(pricing_reference(pricing, &reference));
    TRY(predict_shape(pricing->prices, machine, cost, dp, reference, shape_out, price_out));
    if (machine->kind == MACHINE_CPU && ranks > cores) shape_out->work *= ranks / cores;
    return OK;
}

Status pricing_switches(const RunRow *row, SwitchSection *switches_out)
{
    SwitchSection s = {0};
    for (int i = 0; i < SCHEMA_SWITCH_COUNT; i++) {
        const char *text = row->switches[i] ? row->switches[i] : "";
        if (i != SWITCH_CHECKPOINT) {
            config_switch_set(&s, SCHEMA_SWITCH_NAMES[i], strcmp(text, "on") == 0);
            continue;
        }
        for (int mode = CHECKPOINT_NONE; mode <= CHECKPOINT_SELECTIVE; mode++)
            if (strcmp(text, config_checkpoint_name((Checkpointing)mode)) == 0) s.checkpoint = (Checkpointing)mode;
    }
    *switches_out = s;
    return OK;
}

void pricing_switch_texts(const SwitchSection *switches, const char *texts_out[SCHEMA_SWITCH_COUNT])
{
    for (int i = 0; i < SCHEMA_SWITCH_COUNT; i++) {
        texts_out[i] = config_switch_get(switches, SCHEMA_SWITCH_NAMES[i]) ? "on" : "off";
        if (i == SWITCH_CHECKPOINT) texts_out[i] = config_checkpoint_name(switches->checkpoint);
    }
}

/* --- fit points
 * -------------------------------------------------------------------------------------------------------- */

static bool same_setting(const RunRow *a, const RunRow *b)
{
    for (int i = 0; i < SCHEMA_SWITCH_COUNT; i++)
        if (strcmp(a->switches[i] ? a->switches[i] : "", b->switches[i] ? b->switches[i] : "") != 0) return false;
    return true;
}

/* How many different rank counts were measured with the setting of row i. */
static int rank_counts(const RunTable *runs, int64_t i)
{
    int counts = 0;
    for (int64_t j = 0; j < runs->count; j++) {
        bool seen = !same_setting(&runs->rows[i], &runs->rows[j]);
        for (int64_t k = 0; k < j && !seen; k++)
            seen = runs->rows[k].ranks == runs->rows[j].ranks && same_setting(&runs->rows[i], &runs->rows[k]);
        counts += !seen;
    }
    return counts;
}

static Status make_point(Pricing *p, const RunRow *row, FitPoint *point)
{
    SwitchSection switches;
    TRY(pricing_switches(row, &switches));
    points_fill(row, point);
    Status status = pricing_shape(p, NULL, p->config, &switches, (int)row->dp, (int)row->dap, &point->shape, NULL);
    if (status == OK) return OK;
    /* whatever cannot be priced was asked for by the row */
    return status_fail_at(status == ERR_USAGE ? ERR_INPUT : status, row->file, row->line, "%s", status_text());
}

Status pricing_points(Pricing *pricing, const RunTable *runs, bool all, FitPoint **points_out, int64_t **used_out,
                      int *count_out)
{
    FitPoint *points = calloc((size_t)runs->count + 1, sizeof *points);
    int64_t *used = calloc((size_t)runs->count + 1, sizeof *used), best = 0;
    int count = 0;
    Status status =
        points && used ? OK : status_fail(ERR_MEMORY, "out of memory for %lld runs", (long long)runs->count);
    for (int64_t i = 1; i < runs->count; i++)
        if (rank_counts(runs, i) > rank_counts(runs, best)) best = i;
    for (int64_t i = 0; i < runs->count && status == OK; i++) {
        if (!all && !same_setting(&runs->rows[best], &runs->rows[i])) continue;
        status = make_point(pricing, &runs->rows[i], &points[count]);
        used[count++] = i;
    }
    if (status == OK) {
        *points_out = points;
        *used_out = used;
        *count_out = count;
    } else {
        free(points);
        free(used);
    }
    return status;
}
