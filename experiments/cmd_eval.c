/* foldscale eval: a checkpoint's predictions for whole chains. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/table.h"
#include "engine/output.h"
#include "experiments/checkpoint.h"
#include "experiments/commands.h"
#include "experiments/evaluate.h"
#include "experiments/files.h"
#include "experiments/launch.h"
#include "experiments/study_files.h"
#include "kernels/kernels.h"

typedef struct EvalArguments {
    const char *experiment, *csv, *structures, *weights;
    int64_t ranks;
    TextList overrides;
} EvalArguments;

static const Usage usage = {
    .command = "eval",
    .operands = "CKPT",
    .text =
        "Predicts whole chains with a checkpoint (a file, or a run directory: its newest) and compares them with the\n"
        "measured structures: lDDT-Ca, dRMSD, RMSD, GDT-TS, GDT-HA, pLDDT, one CSV row per chain. --structures writes\n"
        "the predictions as mmCIF with pLDDT in the B-factor column. The experiment is the one in run.json beside\n"
        "the checkpoint unless --experiment names another.",
    .example = "foldscale eval runs/overfit --structures runs/overfit/predicted",
    .min_operands = 1,
    .max_operands = 1};

static const char *const columns[] = {"chain",  "length", "lddt_ca", "drmsd",  "rmsd",
                                      "gdt_ts", "gdt_ha", "plddt",   "seconds"};
enum { COLUMNS = sizeof columns / sizeof *columns };

static Status write_csv(const char *path, const ChainScore *scores, int count)
{
    TableWriter *writer = NULL;
    TRY(table_writer_create(path, columns, COLUMNS, &writer));
    Status status = OK;
    for (int i = 0; i < count && status == OK; i++) {
        const ChainScore *s = &scores[i];
        const double values[] = {s->lddt_ca, s->drmsd, s->rmsd, s->gdt_ts, s->gdt_ha, s->plddt, s->seconds};
        table_put_text(writer, s->chain);
        table_put_int(writer, s->length);
        for (int k = 0; k < COLUMNS - 2; k++) table_put_double(writer, values[k]);
        status = table_writer_row(writer);
    }
    if (status == OK) return table_writer_close(&writer);
    table_writer_abandon(&writer);
    return status;
}

static void print_csv(const ChainScore *scores, int count)
{
    double sum = 0;
    for (int i = 0; i < COLUMNS; i++) printf("%s%s", columns[i], i + 1 < COLUMNS ? "," : "\n");
    for (int i = 0; i < count; i++) {
        const ChainScore *s = &scores[i];
        printf("%s,%lld,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.3g\n", s->chain, (long long)s->length, s->lddt_ca, s->drmsd,
               s->rmsd, s->gdt_ts, s->gdt_ha, s->plddt, s->seconds);
        sum += s->lddt_ca;
    }
    fprintf(stderr, "mean lDDT-Ca %.4f over %d chains\n", count ? sum / count : 0, count);
}

static Status evaluate(const Config *config, const char *checkpoint, const EvalArguments *a)
{
    Backend *backend = NULL;
    Evaluator *evaluator = NULL;
    ChainScore *scores = NULL;
    RunState *state = calloc(1, sizeof *state);
    KernelOptions kernels = {.dap = 1, .threads = config->parallel.threads};
    Weights weights = {.checkpoint = checkpoint, .average = strcmp(a->weights, "swa") == 0};
    Status status = state ? checkpoint_state(checkpoint, state) : status_fail(ERR_MEMORY, "eval: out of memory");
    if (status == OK && a->structures) status = files_make_folder(a->structures);
    if (status == OK) status = kernels_open(config_backend_name(config->backend), &kernels, &backend);
    if (status == OK) status = evaluator_create(backend, config, &evaluator);
    int count = status == OK ? evaluator_chains(evaluator) : 0;
    if (status == OK) scores = calloc((size_t)count + 1, sizeof *scores);
    if (status == OK && !scores) status = status_fail(ERR_MEMORY, "eval: out of memory");
    if (status == OK) status = evaluator_run(evaluator, &weights, state->step, a->structures, scores);
    if (status == OK && backend->layout.rank == 0) {
        if (a->csv)
            status = write_csv(a->csv, scores, count);
        else
            print_csv(scores, count);
    }
    free(scores);
    free(state);
    if (!kernels_may_close(backend, status)) return status;
    evaluator_destroy(&evaluator);
    kernels_close(&backend);
    return status;
}

static Status load(const EvalArguments *a, const char *checkpoint, Arena *arena, Config **config_out)
{
    if (strcmp(a->weights, "swa") != 0 && strcmp(a->weights, "current") != 0)
        return status_fail(ERR_USAGE, "eval: unknown --weights \"%s\" (expected swa or current)", a->weights);
    if (a->experiment) return config_load(a->experiment, &a->overrides, config_out);
    const char *folder = study_folder_of(checkpoint, arena);
    char *run = folder ? arena_printf(arena, "%s/run.json", folder) : NULL;
    return run ? config_load_run(run, &a->overrides, config_out) : status_fail(ERR_MEMORY, "eval: out of memory");
}

Status cmd_eval(int argc, char **argv)
{
    EvalArguments a = {.weights = "swa", .ranks = 1};
    TextList operands;
    bool help;
    const Option options[] = {
        {"experiment", OPTION_TEXT, &a.experiment, "EXP.yaml", "model and chains (default: run.json beside CKPT)", 0,
         0},
        {"weights", OPTION_TEXT, &a.weights, "swa|current", "average (default) or current parameters", 0, 0},
        {"structures", OPTION_TEXT, &a.structures, "DIR", "write predicted structures as mmCIF", 0, 0},
        {"csv", OPTION_TEXT, &a.csv, "FILE", "write the rows to a file instead of standard output", 0, 0},
        {"ranks", OPTION_INT, &a.ranks, "N", "ranks that share the chains", 1, 4096},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key, e.g. eval.chains=[1ubq_A]", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (a.ranks > 1 && !launch_under_mpi()) return launch_ranks((int)a.ranks, argc, argv);
    Arena arena = {0};
    char *checkpoint = NULL;
    Config *config = NULL;
    Status status = checkpoint_find(operands.item[0], &arena, &checkpoint);
    if (status == OK) status = load(&a, checkpoint, &arena, &config);
    if (status == OK && a.csv)
        status =
            output_check("eval: --csv", a.csv, "chain,length,", (const char *const[]){checkpoint, a.experiment}, 2);
    if (status == OK) status = evaluate(config, checkpoint, &a);
    config_destroy(&config);
    arena_free(&arena);
    return status;
}
