#include "experiments/predictor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/transfer.h"
#include "engine/output.h"
#include "experiments/files.h"
#include "experiments/session.h"
#include "experiments/study_files.h"

/* What the study's runs.csv measured; nothing known without one. */
typedef struct Measured {
    bool known;
    int64_t most_dap;
    SwitchSection *switches; /* [rows] of the runs, in the order of rows */
    int64_t rows;
} Measured;

struct Predictor {
    Config *fitted, *target; /* target NULL: the fitted one's own step */
    Measured measured;
    FitModel *fit, *anchored; /* of the measured machine; for all others (NULL: the same) */
    Pricing *pricing;
};

static Status open_fits(Predictor *p, const PredictorOptions *o, Arena *arena)
{
    char *fit = o->fit ? (char *)o->fit : arena_printf(arena, "%s/fit.json", o->folder),
         *anchored = fit ? fit_anchored_path(fit, arena) : NULL;
    if (!anchored) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    TRY(fit_read(fit, &p->fit));
    return file_exists(anchored) ? fit_read(anchored, &p->anchored) : OK;
}

static Status open_pricing(Predictor *p, const PredictorOptions *o, Arena *arena)
{
    char *machine = (char *)o->machine, *ops = (char *)o->ops;
    if (!machine) TRY(study_file(o->folder, "machine/machine.yaml", arena, &machine));
    if (!ops) TRY(study_file(o->folder, "machine/profile/ops.csv", arena, &ops));
    TRY(study_experiment(o->experiment, o->folder, NULL, &p->fitted));
    if (o->target)
        TRY(config_load(o->target, o->overrides, &p->target));
    else if (o->overrides && o->overrides->count) /* a what-if: the fit stays that of the experiment that ran */
        TRY(study_experiment(o->experiment, o->folder, o->overrides, &p->target));
    return pricing_open(p->fitted, machine ? machine : "cpu", ops, &p->pricing);
}

static Status read_measured(Predictor *p, const PredictorOptions *o, Arena *arena)
{
    char *path = NULL;
    RunTable runs;
    TRY(study_file(o->folder, "runs.csv", arena, &path));
    if (!path) return OK;
    TRY(schema_read_runs(path, &runs));
    Measured *m = &p->measured;
    m->switches = calloc((size_t)runs.count + 1, sizeof *m->switches);
    Status status = m->switches ? OK : status_fail(ERR_MEMORY, "out of memory for %lld runs", (long long)runs.count);
    for (int64_t i = 0; i < runs.count && status == OK; i++) {
        status = pricing_switches(&runs.rows[i], &m->switches[i]);
        if (runs.rows[i].dap > m->most_dap) m->most_dap = runs.rows[i].dap;
        m->rows++;
    }
    m->known = status == OK && m->rows > 0;
    schema_free_runs(&runs);
    return status;
}

Status predictor_open(const PredictorOptions *options, Predictor **predictor_out)
{
    Arena arena = {0};
    Predictor *p = calloc(1, sizeof *p);
    if (!p) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    Status status = open_fits(p, options, &arena);
    if (status == OK) status = open_pricing(p, options, &arena);
    if (status == OK) status = read_measured(p, options, &arena);
    arena_free(&arena);
    if (status == OK)
        *predictor_out = p;
    else
        predictor_close(&p);
    return status;
}

void predictor_close(Predictor **predictor)
{
    Predictor *p = *predictor;
    if (!p) return;
    pricing_close(&p->pricing);
    if (p->fit) fit_destroy(&p->fit);
    if (p->anchored) fit_destroy(&p->anchored);
    config_destroy(&p->fitted);
    config_destroy(&p->target);
    free(p->measured.switches);
    free(p);
    *predictor = NULL;
}

Status predictor_check_output(const char *what, const char *out, const PredictorOptions *o, const TextList *machines)
{
    static const char *const names[] = {"runs.csv",
                                        "fit.json",
                                        "experiment.yaml",
                                        "fit_anchored.json",
                                        "machine/machine.yaml",
                                        "machine/profile/ops.csv"};
    enum { NAMES = sizeof names / sizeof *names, GIVEN = 6 };
    Arena arena = {0};
    const char *anchored = o->fit ? fit_anchored_path(o->fit, &arena) : NULL; /* read as well: open_fits() */
    const char *inputs[GIVEN + NAMES] = {o->fit, anchored, o->experiment, o->target, o->machine, o->ops};
    for (int i = 0; i < NAMES; i++) inputs[GIVEN + i] = arena_printf(&arena, "%s/%s", o->folder, names[i]);
    Status status = output_check(what, out, NULL, inputs, GIVEN + NAMES);
    if (status == OK && machines) status = output_check(what, out, NULL, machines->item, machines->count);
    arena_free(&arena);
    return status;
}

const Config *predictor_config(const Predictor *predictor)
{
    return predictor->target ? predictor->target : predictor->fitted;
}

Status predictor_keep_degrees(const Predictor *predictor, int64_t *dap, int *count)
{
    Config *setting = malloc(sizeof *setting);
    if (!setting) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    Status status = OK;
    int kept = 0;
    for (int i = 0; i < *count && status == OK; i++) {
        *setting = *predictor_config(predictor);
        setting->parallel.ranks = setting->parallel.dap = (int)dap[i];
        status = session_check_split(setting);
        if (status == OK)
            dap[kept++] = dap[i];
        else if (status == ERR_INPUT) {
            fprintf(stderr, "foldscale: note: DAP %lld is left out: %s\n", (long long)dap[i], status_text());
            status = OK;
        }
    }
    free(setting);
    *count = kept;
    return status;
}

static bool is_other(const Predictor *p, const Machine *machine)
{
    return strcmp(machine->name, pricing_machine(p->pricing)->name) != 0;
}

/* Whatever changes the recorded step but the switches. */
static bool is_fitted_model(const Predictor *p)
{
    const Config *a = p->fitted, *b = predictor_config(p);
    return !memcmp(&a->model, &b->model, sizeof a->model) && a->train.recycling == b->train.recycling &&
           a->train.real == b->train.real;
}

/* On CPU ranks as on GPUs, asynchronous evaluation and its cache do nothing to a step. */
static bool were_measured(const Predictor *p, const SwitchSection *switches)
{
    const Measured *m = &p->measured;
    for (int64_t i = 0; i < m->rows; i++) {
        bool same = m->switches[i].checkpoint == switches->checkpoint;
        for (int k = 0; config_switch_names[k] && same; k++) {
            const char *name = config_switch_names[k];
            same = !strcmp(name, "async_eval") || !strcmp(name, "eval_cache") ||
                   config_switch_get(&m->switches[i], name) == config_switch_get(switches, name);
        }
        if (same) return true;
    }
    return !m->known;
}

Status predictor_shape(Predictor *predictor, const Machine *machine, const SwitchSection *switches, int64_t gpus,
                       int64_t dap, const FitModel **fit_out, StepShape *shape_out, double *extra_sd_out)
{
    Predictor *p = predictor;
    StepPrice price;
    bool other = is_other(p, machine);
    TRY(pricing_shape(p->pricing, other ? machine : NULL, predictor_config(p), switches, (int)(gpus / dap), (int)dap,
                      shape_out, &price));
    /* replaces what it replaced for the machine before */
    if (other && p->anchored) TRY(transfer_fit(p->anchored, machine, TRANSFER_COMM_SD));
    *fit_out = other && p->anchored ? p->anchored : p->fit;
    /* kernels that no fitted run ran are priced, not measured; so are shards that none had */
    bool measured =
        is_fitted_model(p) && were_measured(p, switches) && !(p->measured.known && dap > p->measured.most_dap);
    *extra_sd_out = other || !measured ? price.sd : 0;
    if (machine->kind != pricing_machine(p->pricing)->kind) *extra_sd_out = hypot(*extra_sd_out, OPPRICE_OTHER_KIND_SD);
    return OK;
}

/* Why a row lies outside of what was fitted, beside its machine and its number of ranks; "" when it does not. */
static char *outside(const Predictor *p, const SwitchSection *switches, int64_t dap, Arena *arena)
{
    const Measured *m = &p->measured;
    char *text = arena_strdup(arena, is_fitted_model(p) ? "" : "another model than the fitted one");
    if (text && !were_measured(p, switches))
        text = arena_printf(arena, "%s%sswitches that no run had", text, *text ? "; " : "");
    if (text && m->known && dap > m->most_dap)
        text = arena_printf(arena, "%s%sDAP %lld where at most %lld was measured", text, *text ? "; " : "",
                            (long long)dap, (long long)m->most_dap);
    return text;
}

Status predictor_row(Predictor *predictor, const Machine *machine, const SwitchSection *switches, int64_t gpus,
                     int64_t dap, Arena *arena, PredictionRow *row_out)
{
    Predictor *p = predictor;
    const FitModel *fit;
    PredictRequest request = {.machine = machine, .other_machine = is_other(p, machine), .dp = gpus / dap, .dap = dap};
    pricing_switch_texts(switches, request.switches);
    TRY(predictor_shape(p, machine, switches, gpus, dap, &fit, &request.shape, &request.extra_sd));
    request.outside = outside(p, switches, dap, arena);
    if (!request.outside) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    TRY(predict_row(fit, &request, arena, row_out));
    /* the machine's column says whose step it is when that is not the fitted one's */
    const char *text = p->target ? arena_printf(arena, "%s: %s", machine->name, predictor_config(p)->name)
                                 : arena_strdup(arena, machine->name);
    if (!text) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    row_out->machine = text;
    return OK;
}
