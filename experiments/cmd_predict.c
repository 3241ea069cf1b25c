/* foldscale predict: step times with intervals for GPUs nobody used. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/transfer.h"
#include "experiments/commands.h"
#include "experiments/files.h"
#include "experiments/machines.h"
#include "experiments/pricing.h"
#include "experiments/study_files.h"

typedef struct PredictArguments {
    const char *folder, *fit, *experiment, *target, *machine, *ops, *gpus, *dap, *out;
    bool append;
    TextList machines, overrides;
} PredictArguments;

typedef struct PredictJob {
    const Config *config;     /* whose step is predicted */
    FitModel *fit, *anchored; /* of the measured machine; for all others (NULL: the same) */
    bool label;               /* the machine's column says whose step it is */
    Pricing *pricing;
    TableWriter *writer;
    const char *fitted_machine;
    int64_t gpus[CONFIG_LIST], dap[CONFIG_LIST];
    int gpu_count, dap_count, rows, skipped;
} PredictJob;

static const Usage usage = {
    .command = "predict",
    .operands = "DIR",
    .text =
        "Predicts the step time, with a 90 % interval, for lists of machines, GPU counts and DAP degrees, from the fit "
        "of\n"
        "the study in DIR (fit.json). Rows that go beyond what was measured are flagged. --target predicts another\n"
        "experiment's step (e.g. the full-size model) from the same fit; machines, counts and degrees default to its\n"
        "`predict` section.",
    .example = "foldscale predict runs/study --target experiments/initial_training.yaml --machine h100_sxm",
    .min_operands = 1,
    .max_operands = 1};

static Status predict_one(PredictJob *job, const Machine *machine, bool other, int64_t gpus, int64_t dap)
{
    Arena arena = {0};
    PredictionRow row;
    StepPrice price;
    PredictRequest request = {.machine = machine, .other_machine = other, .dp = gpus / dap, .dap = dap};
    pricing_switch_texts(&job->config->switches, request.switches);
    Status status = pricing_shape(job->pricing, other ? machine : NULL, job->config, &job->config->switches,
                                  (int)request.dp, (int)dap, &request.shape, &price);
    if (status == OK) {
        request.extra_sd = other ? price.sd : 0;
        status = predict_row(other && job->anchored ? job->anchored : job->fit, &request, &arena, &row);
    }
    if (status == OK && job->label) row.machine = arena_printf(&arena, "%s: %s", machine->name, job->config->name);
    if (status == OK && !row.machine) status = status_fail(ERR_MEMORY, "predict: out of memory");
    if (status == OK) status = schema_write_prediction(job->writer, &row);
    if (status == OK) job->rows++;
    arena_free(&arena);
    return status;
}

static Status predict_machine(PredictJob *job, const char *name)
{
    Machine *machine = NULL;
    TRY(machines_open(name, &machine));
    bool other = strcmp(machine->name, job->fitted_machine) != 0;
    Status status = OK;
    for (int i = 0; i < job->gpu_count && status == OK; i++)
        for (int j = 0; j < job->dap_count && status == OK; j++) {
            int64_t gpus = job->gpus[i], dap = job->dap[j];
            if (gpus % dap != 0 || gpus > machine_devices(machine)) {
                job->skipped++;
                continue;
            }
            status = predict_one(job, machine, other, gpus, dap);
        }
    machine_destroy(&machine);
    return status;
}

static Status fill_lists(PredictJob *job, const PredictArguments *a)
{
    const PredictSection *p = &job->config->predict;
    job->gpu_count = (int)p->gpus_count;
    job->dap_count = (int)p->dap_count;
    memcpy(job->gpus, p->gpus, sizeof job->gpus);
    memcpy(job->dap, p->dap, sizeof job->dap);
    if (a->gpus) TRY(cli_int_list(a->gpus, "GPU counts", 1, 1 << 20, CONFIG_LIST, job->gpus, &job->gpu_count));
    if (a->dap) TRY(cli_int_list(a->dap, "DAP degrees", 1, 8, CONFIG_LIST, job->dap, &job->dap_count));
    return OK;
}

/* The file is written whole: what it held comes first. */
static Status copy_old(PredictJob *job, const PredictionTable *old)
{
    for (int64_t i = 0; i < old->count; i++) TRY(schema_write_prediction(job->writer, &old->rows[i]));
    return OK;
}

static Status run(PredictJob *job, const PredictArguments *a, const char *out)
{
    const PredictSection *p = &job->config->predict;
    PredictionTable old = {0};
    TRY(fill_lists(job, a));
    if (a->append && file_exists(out)) TRY(schema_read_predictions(out, &old));
    Status status = schema_predictions_writer(out, &job->writer);
    if (status == OK) status = copy_old(job, &old);
    schema_free_predictions(&old);
    for (int i = 0; i < a->machines.count && status == OK; i++) status = predict_machine(job, a->machines.item[i]);
    for (unsigned i = 0; a->machines.count == 0 && i < p->machines_count && status == OK; i++)
        status = predict_machine(job, p->machines[i]);
    if (status == OK && job->rows == 0)
        status = status_fail(ERR_USAGE, "predict: nothing to predict (machines with enough GPUs and counts that a DAP "
                                        "degree divides are needed)");
    if (status != OK) {
        if (job->writer) table_writer_abandon(&job->writer);
        return status;
    }
    TRY(table_writer_close(&job->writer));
    printf("%d predictions%s -> %s\n", job->rows, job->skipped ? " (counts that do not divide or fit left out)" : "",
           out);
    return OK;
}

Status cmd_predict(int argc, char **argv)
{
    PredictArguments a = {0};
    TextList operands;
    bool help;
    const Option options[] = {
        {"target", OPTION_TEXT, &a.target, "EXP.yaml", "predict this experiment (default: the study's own)", 0, 0},
        {"machine", OPTION_LIST, &a.machines, "NAME|FILE", "machine; may be repeated (default: predict.machines)", 0,
         0},
        {"gpus", OPTION_TEXT, &a.gpus, "N,N,...", "GPU counts (default: predict.gpus)", 0, 0},
        {"dap", OPTION_TEXT, &a.dap, "N,N,...", "DAP degrees (default: predict.dap)", 0, 0},
        {"fit", OPTION_TEXT, &a.fit, "FILE", "default: DIR/fit.json", 0, 0},
        {"experiment", OPTION_TEXT, &a.experiment, "EXP.yaml", "what was fitted (default: run.json of the first point)",
         0, 0},
        {"measured-machine", OPTION_TEXT, &a.machine, "NAME|FILE", "where it ran (default: DIR/machine/machine.yaml)",
         0, 0},
        {"ops", OPTION_TEXT, &a.ops, "FILE", "measured ops (default: DIR/machine/profile/ops.csv)", 0, 0},
        {"out", OPTION_TEXT, &a.out, "FILE", "default: DIR/predictions.csv", 0, 0},
        {"append", OPTION_FLAG, &a.append, NULL, "add to the file instead of replacing it", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the predicted experiment", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Arena arena = {0};
    TextList *none = calloc(1, sizeof *none);
    Config *fitted = NULL, *target = NULL;
    PredictJob job = {0};
    const char *folder = operands.item[0];
    char *machine = (char *)a.machine, *ops = (char *)a.ops;
    char *fit = a.fit ? (char *)a.fit : arena_printf(&arena, "%s/fit.json", folder);
    char *out = a.out ? (char *)a.out : arena_printf(&arena, "%s/predictions.csv", folder);
    Status status = none && fit && out ? fit_read(fit, &job.fit) : status_fail(ERR_MEMORY, "predict: out of memory");
    char *anchored = NULL;
    if (status == OK && !a.fit) status = study_file(folder, "fit_anchored.json", &arena, &anchored);
    if (status == OK && anchored) status = fit_read(anchored, &job.anchored);
    if (status == OK && anchored) status = transfer_fit(job.anchored, TRANSFER_COMM_SD);
    if (status == OK && !machine) status = study_file(folder, "machine/machine.yaml", &arena, &machine);
    if (status == OK && !ops) status = study_file(folder, "machine/profile/ops.csv", &arena, &ops);
    if (status == OK) status = study_experiment(a.experiment, folder, a.target ? none : &a.overrides, &fitted);
    if (status == OK && a.target) status = config_load(a.target, &a.overrides, &target);
    if (status == OK) status = pricing_open(fitted, machine ? machine : "cpu", ops, &job.pricing);
    if (status == OK) {
        job.config = target ? target : fitted;
        job.label = target != NULL;
        job.fitted_machine = pricing_machine(job.pricing)->name;
        status = run(&job, &a, out);
    }
    pricing_close(&job.pricing);
    if (job.fit) fit_destroy(&job.fit);
    if (job.anchored) fit_destroy(&job.anchored);
    config_destroy(&target);
    config_destroy(&fitted);
    free(none);
    arena_free(&arena);
    return status;
}
