#include "experiments/predictor.h"

#include <stdlib.h>
#include <string.h>

#include "analysis/transfer.h"
#include "experiments/study_files.h"

struct Predictor {
    Config *fitted, *target;  /* target NULL: the fitted one's own step */
    FitModel *fit, *anchored; /* of the measured machine; for all others (NULL: the same) */
    Pricing *pricing;
};

static Status open_fits(Predictor *p, const PredictorOptions *o, Arena *arena)
{
    char *fit = o->fit ? (char *)o->fit : arena_printf(arena, "%s/fit.json", o->folder), *anchored = NULL;
    if (!fit) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    TRY(fit_read(fit, &p->fit));
    if (o->fit) return OK;
    TRY(study_file(o->folder, "fit_anchored.json", arena, &anchored));
    if (!anchored) return OK;
    return fit_read(anchored, &p->anchored);
}

static Status open_pricing(Predictor *p, const PredictorOptions *o, Arena *arena)
{
    char *machine = (char *)o->machine, *ops = (char *)o->ops;
    if (!machine) TRY(study_file(o->folder, "machine/machine.yaml", arena, &machine));
    if (!ops) TRY(study_file(o->folder, "machine/profile/ops.csv", arena, &ops));
    TRY(study_experiment(o->experiment, o->folder, o->target ? NULL : o->overrides, &p->fitted));
    if (o->target) TRY(config_load(o->target, o->overrides, &p->target));
    return pricing_open(p->fitted, machine ? machine : "cpu", ops, &p->pricing);
}

Status predictor_open(const PredictorOptions *options, Predictor **predictor_out)
{
    Arena arena = {0};
    Predictor *p = calloc(1, sizeof *p);
    if (!p) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    Status status = open_fits(p, options, &arena);
    if (status == OK) status = open_pricing(p, options, &arena);
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
    free(p);
    *predictor = NULL;
}

const Config *predictor_config(const Predictor *predictor)
{
    return predictor->target ? predictor->target : predictor->fitted;
}

static bool is_other(const Predictor *p, const Machine *machine)
{
    return strcmp(machine->name, pricing_machine(p->pricing)->name) != 0;
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
    *extra_sd_out = other ? price.sd : 0;
    return OK;
}

Status predictor_row(Predictor *predictor, const Machine *machine, const SwitchSection *switches, int64_t gpus,
                     int64_t dap, Arena *arena, PredictionRow *row_out)
{
    Predictor *p = predictor;
    const FitModel *fit;
    PredictRequest request = {.machine = machine, .other_machine = is_other(p, machine), .dp = gpus / dap, .dap = dap};
    pricing_switch_texts(switches, request.switches);
    TRY(predictor_shape(p, machine, switches, gpus, dap, &fit, &request.shape, &request.extra_sd));
    TRY(predict_row(fit, &request, arena, row_out));
    /* the machine's column says whose step it is when that is not the fitted one's */
    const char *text = p->target ? arena_printf(arena, "%s: %s", machine->name, predictor_config(p)->name)
                                 : arena_strdup(arena, machine->name);
    if (!text) return status_fail(ERR_MEMORY, "out of memory for a prediction");
    row_out->machine = text;
    return OK;
}
