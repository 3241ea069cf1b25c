/* foldscale predict: step times with intervals for GPUs nobody used. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/output.h"
#include "experiments/commands.h"
#include "experiments/files.h"
#include "experiments/machines.h"
#include "experiments/predictor.h"

typedef struct PredictArguments {
    PredictorOptions from;
    const char *gpus, *dap, *out;
    bool append;
    TextList machines, overrides, what_ifs;
} PredictArguments;

typedef struct PredictJob {
    Predictor *predictor;
    TableWriter *writer;
    int64_t gpus[CONFIG_LIST], dap[CONFIG_LIST];
    int gpu_count, dap_count, rows, skipped;
    const char *what_if; /* overrides of these rows, NULL for none */
} PredictJob;

static const Usage usage = {
    .command = "predict",
    .operands = "DIR",
    .text =
        "Predicts the step time, with a 90 % interval, for lists of machines, GPU counts and DAP degrees, from the fit "
        "of\n"
        "the study in DIR (fit.json). Rows that go beyond what was measured are flagged. --target predicts another\n"
        "experiment's step (e.g. the full-size model) from the same fit; machines, counts and degrees default to its\n"
        "`predict` section. Each --what-if adds the same rows with keys overridden (switches, crop, ...), all in one "
        "table.",
    .example = "foldscale predict runs/study --target experiments/initial_training.yaml --machine h100_sxm",
    .min_operands = 1,
    .max_operands = 1};

static Status predict_one(PredictJob *job, const Machine *machine, int64_t gpus, int64_t dap)
{
    Arena arena = {0};
    PredictionRow row;
    const SwitchSection *switches = &predictor_config(job->predictor)->switches;
    Status status = predictor_row(job->predictor, machine, switches, gpus, dap, &arena, &row);
    if (status == OK && job->what_if) {
        row.note = arena_printf(&arena, "what if %s%s%s", job->what_if, *row.note ? "; " : "", row.note);
        if (!row.note) status = status_fail(ERR_MEMORY, "predict: out of memory");
    }
    if (status == OK) status = schema_write_prediction(job->writer, &row);
    if (status == OK) job->rows++;
    arena_free(&arena);
    return status;
}

static Status predict_machine(PredictJob *job, const char *name)
{
    Machine *machine = NULL;
    TRY(machines_open(name, &machine));
    Status status = OK;
    for (int i = 0; i < job->gpu_count && status == OK; i++)
        for (int j = 0; j < job->dap_count && status == OK; j++) {
            int64_t gpus = job->gpus[i], dap = job->dap[j];
            if (gpus % dap != 0 || gpus > machine_devices(machine)) {
                job->skipped++;
                continue;
            }
            status = predict_one(job, machine, gpus, dap);
        }
    machine_destroy(&machine);
    return status;
}

static Status fill_lists(PredictJob *job, const PredictArguments *a)
{
    const PredictSection *p = &predictor_config(job->predictor)->predict;
    job->gpu_count = (int)p->gpus_count;
    job->dap_count = (int)p->dap_count;
    memcpy(job->gpus, p->gpus, sizeof job->gpus);
    memcpy(job->dap, p->dap, sizeof job->dap);
    if (a->gpus) TRY(cli_int_list(a->gpus, "GPU counts", 1, 1 << 20, CONFIG_LIST, job->gpus, &job->gpu_count));
    if (a->dap) TRY(cli_int_list(a->dap, "DAP degrees", 1, 8, CONFIG_LIST, job->dap, &job->dap_count));
    int asked = job->dap_count;
    TRY(predictor_keep_degrees(job->predictor, job->dap, &job->dap_count));
    job->skipped += asked - job->dap_count;
    return OK;
}

/* What --append goes on from: the rows of a file. Pipes and devices hold none: reading one would wait for ever. */
static Status read_old(const char *out, PredictionTable *old_out)
{
    Arena arena = {0};
    char *target;
    TRY(output_refuse_fifo(out));
    Status status = output_place(out, NULL, &arena, &target);
    if (status == OK && target && file_exists(target)) status = schema_read_predictions(out, old_out);
    arena_free(&arena);
    return status;
}

/* The file is written whole: what it held comes first. */
static Status copy_old(PredictJob *job, const PredictionTable *old)
{
    for (int64_t i = 0; i < old->count; i++) TRY(schema_write_prediction(job->writer, &old->rows[i]));
    return OK;
}

/* All machines, counts and degrees with the present predictor. */
static Status predict_lists(PredictJob *job, const PredictArguments *a)
{
    const PredictSection *p = &predictor_config(job->predictor)->predict;
    TRY(fill_lists(job, a));
    for (int i = 0; i < a->machines.count; i++) TRY(predict_machine(job, a->machines.item[i]));
    for (unsigned i = 0; a->machines.count == 0 && i < p->machines_count; i++)
        TRY(predict_machine(job, p->machines[i]));
    return OK;
}

/* One what-if: "A.B=C", or several with commas between. Its overrides come after those of --set. */
static Status predict_what_if(PredictJob *job, const PredictArguments *a, const char *what_if)
{
    Arena arena = {0};
    TextList overrides = a->overrides;
    PredictorOptions from = a->from;
    char *rest = what_if ? arena_strdup(&arena, what_if) : NULL;
    Status status = !what_if || rest ? OK : status_fail(ERR_MEMORY, "predict: out of memory");
    for (char *item = rest; item && status == OK;) {
        char *comma = strchr(item, ',');
        if (comma) *comma = '\0';
        if (overrides.count == CLI_MAX_ITEMS)
            status = status_fail(ERR_USAGE, "predict: more than %d overrides", (int)CLI_MAX_ITEMS);
        else
            overrides.item[overrides.count++] = item;
        item = comma ? comma + 1 : NULL;
    }
    from.overrides = &overrides;
    job->what_if = what_if;
    if (status == OK) status = predictor_open(&from, &job->predictor);
    if (status == OK) status = predict_lists(job, a);
    predictor_close(&job->predictor);
    arena_free(&arena);
    return status;
}

static Status run(PredictJob *job, const PredictArguments *a, const char *out)
{
    PredictionTable old = {0};
    if (a->append) TRY(read_old(out, &old));
    Status status = schema_predictions_writer(out, &job->writer);
    if (status == OK) status = copy_old(job, &old);
    schema_free_predictions(&old);
    if (status == OK) status = predict_what_if(job, a, NULL);
    for (int i = 0; i < a->what_ifs.count && status == OK; i++) status = predict_what_if(job, a, a->what_ifs.item[i]);
    if (status == OK && job->rows == 0)
        status = status_fail(ERR_USAGE, "predict: nothing to predict (machines with enough GPUs and counts and a model "
                                        "that a DAP degree divides are needed)");
    if (status != OK) {
        if (job->writer) table_writer_abandon(&job->writer);
        return status;
    }
    TRY(table_writer_close(&job->writer));
    printf("%d predictions%s -> %s\n", job->rows, job->skipped ? " (what does not divide or fit left out)" : "", out);
    return OK;
}

Status cmd_predict(int argc, char **argv)
{
    PredictArguments a = {0};
    TextList operands;
    bool help;
    const Option options[] = {
        {"target", OPTION_TEXT, &a.from.target, "EXP.yaml", "predict this experiment (default: the study's own)", 0, 0},
        {"machine", OPTION_LIST, &a.machines, "NAME|FILE", "machine; may be repeated (default: predict.machines)", 0,
         0},
        {"gpus", OPTION_TEXT, &a.gpus, "N,N,...", "GPU counts (default: predict.gpus)", 0, 0},
        {"dap", OPTION_TEXT, &a.dap, "N,N,...", "DAP degrees (default: predict.dap)", 0, 0},
        {"fit", OPTION_TEXT, &a.from.fit, "FILE", "default: DIR/fit.json", 0, 0},
        {"experiment", OPTION_TEXT, &a.from.experiment, "EXP.yaml",
         "what was fitted (default: run.json of the first point)", 0, 0},
        {"measured-machine", OPTION_TEXT, &a.from.machine, "NAME|FILE",
         "where it ran (default: DIR/machine/machine.yaml)", 0, 0},
        {"ops", OPTION_TEXT, &a.from.ops, "FILE|DIR", "measured ops, as for fit (default: DIR/machine/profile/ops.csv)",
         0, 0},
        {"out", OPTION_TEXT, &a.out, "FILE", "default: DIR/predictions.csv", 0, 0},
        {"what-if", OPTION_LIST, &a.what_ifs, "A.B=C,...", "the same rows with these keys overridden; may be repeated",
         0, 0},
        {"append", OPTION_FLAG, &a.append, NULL, "add to the file instead of replacing it", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the predicted experiment", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Arena arena = {0};
    PredictJob job = {0};
    a.from.folder = operands.item[0];
    char *out = a.out ? (char *)a.out : arena_printf(&arena, "%s/predictions.csv", a.from.folder);
    Status status = out ? predictor_check_output("predict: --out", out, &a.from, &a.machines)
                        : status_fail(ERR_MEMORY, "predict: out of memory");
    if (status == OK) status = run(&job, &a, out);
    arena_free(&arena);
    return status;
}
