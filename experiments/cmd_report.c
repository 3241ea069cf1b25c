/* foldscale report: one HTML file with plots from everything a study's folder holds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/report.h"
#include "experiments/commands.h"
#include "experiments/files.h"
#include "experiments/pricing.h"
#include "experiments/published.h"
#include "experiments/study_files.h"

typedef struct ReportArguments {
    const char *out, *experiment, *run, *published, *title;
} ReportArguments;

/* What was found, so that it can be freed. */
typedef struct Report {
    Arena arena;
    const ReportArguments *a;
    const char *folder;
    RunFiles runs;
    PredictionTable predictions;
    OpTable ops;
    StepTable steps, blocking, curve;
    EvalTable evals;
    Config *config;
    Pricing *pricing;
    FitModel *fit;
    FitPoint *points;
    int64_t *used;
    ReportInput input;
} Report;

static const Usage usage = {.command = "report",
                            .operands = "DIR",
                            .text = "Writes DIR/report/report.html, one self-contained file, with every plot as PNG "
                                    "and its numbers as CSV beside it,\n"
                                    "from what DIR holds: runs.csv, fit.json, predictions.csv, machine/. --run adds "
                                    "the loss and lDDT-Ca curves of a\n"
                                    "training run.",
                            .example = "foldscale report runs/study --run runs/overfit",
                            .min_operands = 1,
                            .max_operands = 1};

static Status find(Report *r, const char *folder, const char *name, char **path_out)
{
    return study_file(folder, name, &r->arena, path_out);
}

/* The first run of the study with the loader switched this way: shows data wait step by step. */
static Status read_loader_steps(Report *r, bool ready_first, StepTable *table)
{
    const char *wanted = ready_first ? "on" : "off";
    for (int64_t i = 0; i < r->runs.all.count; i++) {
        const RunRow *row = &r->runs.all.rows[i];
        char name[256], *path = NULL;
        const char *value = row->switches[SWITCH_NONBLOCKING_LOADER];
        if (!value || strcmp(value, wanted) != 0 || row->ranks != r->runs.all.rows[0].ranks) continue;
        snprintf(name, sizeof name, "points/%s/steps.csv", row->run_id);
        TRY(find(r, r->folder, name, &path));
        if (path) return schema_read_steps(path, table);
    }
    return OK;
}

static Status read_tables(Report *r)
{
    char *runs = NULL, *predictions = NULL, *ops = NULL;
    TRY(find(r, r->folder, "runs.csv", &runs));
    TRY(find(r, r->folder, "predictions.csv", &predictions));
    TRY(find(r, r->folder, "machine/profile/ops.csv", &ops));
    if (!runs && !predictions && !r->a->run)
        return status_fail(ERR_INPUT, "%s: nothing to report (expected runs.csv or predictions.csv)", r->folder);
    if (runs) {
        const TextList paths = {.count = 1, .item = {runs}};
        TRY(study_read_runs(&paths, &r->runs));
        TRY(read_loader_steps(r, true, &r->steps));
        TRY(read_loader_steps(r, false, &r->blocking));
    }
    if (predictions) TRY(schema_read_predictions(predictions, &r->predictions));
    if (ops) TRY(schema_read_ops(ops, &r->ops));
    return OK;
}

static Status read_run(Report *r)
{
    char *steps = NULL, *evals = NULL;
    if (!r->a->run) return OK;
    TRY(find(r, r->a->run, "steps.csv", &steps));
    TRY(find(r, r->a->run, "eval.csv", &evals));
    if (!steps) return status_fail(ERR_INPUT, "%s: not a run directory (expected steps.csv)", r->a->run);
    TRY(schema_read_steps(steps, &r->curve));
    return evals ? schema_read_eval(evals, &r->evals) : OK;
}

static Status read_fit(Report *r)
{
    char *fit = NULL, *machine = NULL, *ops = NULL;
    int count = 0;
    TRY(find(r, r->folder, "fit.json", &fit));
    if (!fit || r->runs.all.count == 0) return OK;
    TRY(fit_read(fit, &r->fit));
    TRY(find(r, r->folder, "machine/machine.yaml", &machine));
    TRY(find(r, r->folder, "machine/profile/ops.csv", &ops));
    TRY(study_experiment(r->a->experiment, r->folder, NULL, &r->config));
    TRY(pricing_open(r->config, machine ? machine : "cpu", ops, &r->pricing));
    TRY(pricing_points(r->pricing, &r->runs.all, false, &r->points, &r->used, &count));
    r->input.fit = r->fit;
    r->input.points = r->points;
    r->input.point_count = count;
    r->input.machine = pricing_machine(r->pricing);
    r->input.rate = r->config->switches.bf16 ? RATE_BF16 : RATE_F32;
    return OK;
}

/* What the prices say of the profiled ops, which ran one by one, not from a graph; those that exchange have none. */
static void price_ops(Report *r)
{
    double sd;
    for (int64_t i = 0; r->pricing && i < r->ops.count; i++) {
        OpRow *row = &r->ops.rows[i];
        if (row->predicted_s > 0 || row->wire_bytes > 0) continue;
        row->predicted_s = row->calls * opprice_time(pricing_ops(r->pricing), pricing_machine(r->pricing), row->kind,
                                                     r->input.rate, row->flops, row->bytes, false, &sd);
    }
}

static Status write(Report *r)
{
    ReportInput *in = &r->input;
    PublishedPoint *published = NULL;
    TRY(read_tables(r));
    TRY(read_run(r));
    TRY(read_fit(r));
    price_ops(r);
    TRY(published_read(r->a->published, &r->arena, &published, &in->published_count));
    in->title = r->a->title;
    in->runs = r->runs.all.rows;
    in->run_count = r->runs.all.count;
    in->predictions = r->predictions.rows;
    in->prediction_count = r->predictions.count;
    in->ops = r->ops.rows;
    in->op_count = r->ops.count;
    in->published = published;
    in->steps = r->steps.rows;
    in->step_count = r->steps.count;
    in->steps_blocking = r->blocking.rows;
    in->step_blocking_count = r->blocking.count;
    in->curve_steps = r->curve.rows;
    in->curve_step_count = r->curve.count;
    in->evals = r->evals.rows;
    in->eval_count = r->evals.count;
    const char *out = r->a->out ? r->a->out : arena_printf(&r->arena, "%s/report", r->folder);
    TRY(files_make_folder(out));
    TRY(report_write(out, in));
    printf("%s/report.html\n", out);
    return OK;
}

static void release(Report *r)
{
    study_free_runs(&r->runs);
    schema_free_predictions(&r->predictions);
    schema_free_ops(&r->ops);
    schema_free_steps(&r->steps);
    schema_free_steps(&r->blocking);
    schema_free_steps(&r->curve);
    schema_free_eval(&r->evals);
    if (r->fit) fit_destroy(&r->fit);
    pricing_close(&r->pricing);
    config_destroy(&r->config);
    free(r->points);
    free(r->used);
    arena_free(&r->arena);
}

Status cmd_report(int argc, char **argv)
{
    ReportArguments a = {.title = "foldscale study"};
    TextList operands;
    bool help;
    const Option options[] = {
        {"out", OPTION_TEXT, &a.out, "DIR", "folder of the report (default DIR/report)", 0, 0},
        {"run", OPTION_TEXT, &a.run, "RUNDIR", "training run whose loss and lDDT-Ca curves to show", 0, 0},
        {"experiment", OPTION_TEXT, &a.experiment, "EXP.yaml", "what was fitted (default: run.json of the first point)",
         0, 0},
        {"published", OPTION_TEXT, &a.published, "FILE", "published step times (default: data/published)", 0, 0},
        {"title", OPTION_TEXT, &a.title, "TEXT", "heading", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Report *r = calloc(1, sizeof *r);
    if (!r) return status_fail(ERR_MEMORY, "report: out of memory");
    r->a = &a;
    r->folder = operands.item[0];
    Status status = write(r);
    release(r);
    free(r);
    return status;
}
