/* foldscale fit: runs.csv -> fit.json */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/points.h"
#include "engine/output.h"
#include "engine/words.h"
#include "experiments/commands.h"
#include "experiments/pricing.h"
#include "experiments/study_files.h"

typedef struct FitArguments {
    const char *experiment, *machine, *ops, *out, *form;
    bool all, totals;
    bool alone; /* --out is a pipe or device: nothing can lie beside it */
    int64_t draws;
    TextList overrides;
} FitArguments;

static const Usage usage = {
    .command = "fit",
    .operands = "RUNS.csv...",
    .text =
        "Fits the cost model of a step to measured runs and writes fit.json and its diagnostics. Phases are fitted\n"
        "apart where they were timed; collectives and the work of each setting come from the recorded program, priced\n"
        "with the machine's constants (machine.yaml and ops.csv of calibrate, by default those in machine/ beside\n"
        "RUNS.csv). The form is chosen by forward chaining; --form forces one.",
    .example = "foldscale fit runs/study/runs.csv",
    .min_operands = 1,
    .max_operands = CLI_MAX_ITEMS};

/* The words of --help; the names that fit.json and its diagnostics print are taken as well. */
static Status form_of(const char *name, int *form_out)
{
    WordList expected = {0};
    *form_out = -1;
    if (!name) return OK;
    for (int i = 0; i < FORM_COUNT; i++) {
        if (strcmp(FIT_FORM_WORDS[i], name) == 0 || strcmp(FIT_FORM_NAMES[i], name) == 0) *form_out = i;
        words_add(&expected, FIT_FORM_WORDS[i]);
    }
    if (*form_out >= 0) return OK;
    return status_fail(ERR_USAGE, "fit: unknown form \"%s\" (expected one of %s)", name, expected.text);
}

/* The fit, its diagnostics and the anchored fit: all can be written, or nothing is. *alone_out: the fit itself only. */
static Status check_outputs(const char *out, const TextList *runs, bool *alone_out)
{
    Arena arena = {0};
    char *target = NULL, *text = arena_printf(&arena, "%s.txt", out), *anchored = fit_anchored_path(out, &arena);
    Status status = text && anchored ? OK : status_fail(ERR_MEMORY, "fit: out of memory");
    if (status == OK) status = output_check("fit: --out", out, FIT_BEGINS, runs->item, runs->count);
    if (status == OK) status = output_place(out, NULL, &arena, &target);
    *alone_out = status == OK && !target;
    if (*alone_out)
        fprintf(stderr, "foldscale: note: %s is not a file: no diagnostics and no anchored fit beside it\n", out);
    if (status == OK && target) status = output_check("fit: OUT.txt", text, FIT_TEXT_BEGINS, runs->item, runs->count);
    if (status == OK && target)
        status = output_check("fit: OUT_anchored.json", anchored, FIT_BEGINS, runs->item, runs->count);
    arena_free(&arena);
    return status;
}

static Status write_diagnostics(const char *out, const FitModel *model, const FitPoint *points, int count)
{
    char path[4096];
    Output output;
    snprintf(path, sizeof path, "%s.txt", out);
    TRY(output_open(path, FIT_TEXT_BEGINS, &output));
    Status status = fit_print(model, points, count, output.file);
    if (status == OK)
        status = output_close(&output);
    else
        output_abandon(&output);
    return status;
}

/* Other machines are only reached through the form that knows collectives and devices: kept beside the chosen one. */
static Status write_anchored(const FitArguments *a, const Pricing *pricing, const FitModel *chosen,
                             const FitPoint *points, int count, const char *out)
{
    Arena arena = {0};
    FitModel *model = NULL;
    FitOptions options = {.draws = (int)a->draws, .seed = 1, .form = FORM_ANCHORED};
    pricing_serial_share(pricing, &options);
    TRY(fit_run(points, count, &options, &model));
    model->backend = chosen->backend;
    model->device = chosen->device;
    const char *path = fit_anchored_path(out, &arena);
    Status status = path ? fit_write(model, path) : status_fail(ERR_MEMORY, "fit: out of memory");
    fit_destroy(&model);
    arena_free(&arena);
    return status;
}

static Status fit(const FitArguments *a, int form, const RunTable *runs, Pricing *pricing, const char *out)
{
    FitPoint *points = NULL;
    int64_t *used = NULL;
    int count = 0;
    FitModel *model = NULL;
    TRY(pricing_points(pricing, runs, a->all, &points, &used, &count));
    FitOptions options = {.draws = (int)a->draws, .seed = 1, .form = form, .totals_only = a->totals};
    pricing_serial_share(pricing, &options);
    Status status = fit_run(points, count, &options, &model);
    if (status == OK) {
        model->backend = runs->rows[used[0]].backend;
        model->device = runs->rows[used[0]].device;
        status = fit_write(model, out);
    }
    if (status == OK && !a->alone) status = write_diagnostics(out, model, points, count);
    /* what follows the fit on one stream would make it something else than JSON */
    FILE *words = a->alone ? stderr : stdout;
    if (status == OK) status = fit_print(model, points, count, words);
    if (status == OK && !a->alone) status = write_anchored(a, pricing, model, points, count, out);
    if (status == OK) fprintf(words, "%d runs -> %s\n", count, out);
    if (model) fit_destroy(&model);
    free(points);
    free(used);
    return status;
}

Status cmd_fit(int argc, char **argv)
{
    FitArguments a = {0};
    TextList operands;
    bool help;
    int form;
    const Option options[] = {
        {"experiment", OPTION_TEXT, &a.experiment, "EXP.yaml",
         "model of the runs (default: run.json of the first point)", 0, 0},
        {"machine", OPTION_TEXT, &a.machine, "NAME|FILE",
         "where they ran (default: machine/machine.yaml beside RUNS.csv, or cpu)", 0, 0},
        {"ops", OPTION_TEXT, &a.ops, "FILE|DIR",
         "measured ops, or a folder of bench_step's op_table.csv (default: machine/profile/ops.csv beside RUNS.csv)", 0,
         0},
        {"out", OPTION_TEXT, &a.out, "FILE", "fit.json (default: beside RUNS.csv)", 0, 0},
        {"form", OPTION_TEXT, &a.form, "FORM", "amdahl, log, linear, usl or anchored (default: the best)", 0, 0},
        {"draws", OPTION_INT, &a.draws, "N", "bootstrap draws (default 1000)", 50, 100000},
        {"all", OPTION_FLAG, &a.all, NULL, "fit all switch settings, not only the one with the most rank counts", 0, 0},
        {"totals", OPTION_FLAG, &a.totals, NULL, "ignore the phases (naive fit)", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the experiment", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    TRY(form_of(a.form, &form));
    Arena arena = {0};
    RunFiles *runs = calloc(1, sizeof *runs);
    Config *config = NULL;
    Pricing *pricing = NULL;
    char *folder = study_folder_of(operands.item[0], &arena), *machine = (char *)a.machine, *ops = (char *)a.ops;
    char *out = a.out ? (char *)a.out : arena_printf(&arena, "%s/fit.json", folder);
    Status status = runs && folder && out ? OK : status_fail(ERR_MEMORY, "fit: out of memory");
    if (status == OK) status = check_outputs(out, &operands, &a.alone);
    if (status == OK) status = study_read_runs(&operands, runs);
    if (status == OK) status = points_check(runs->all.rows, runs->all.count);
    if (status == OK && !machine) status = study_file(folder, "machine/machine.yaml", &arena, &machine);
    if (status == OK && !ops) status = study_file(folder, "machine/profile/ops.csv", &arena, &ops);
    if (status == OK) status = study_experiment(a.experiment, folder, &a.overrides, &config);
    if (status == OK) status = pricing_open(config, machine ? machine : "cpu", ops, &pricing);
    if (status == OK) status = fit(&a, form, &runs->all, pricing, out);
    pricing_close(&pricing);
    config_destroy(&config);
    if (runs) study_free_runs(runs);
    free(runs);
    arena_free(&arena);
    return status;
}
