/* foldscale validate: predictions beside the truth, with errors and the coverage of their intervals. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "analysis/validate.h"
#include "engine/output.h"
#include "experiments/commands.h"
#include "experiments/openfold.h"
#include "experiments/published.h"
#include "experiments/step_trace.h"
#include "experiments/study_files.h"
#include "experiments/validate_codes.h"
#include "experiments/validate_own.h"

#ifndef FOLDSCALE_SOURCE_DIR
#define FOLDSCALE_SOURCE_DIR "."
#endif

typedef struct ValidateArguments {
    const char *experiment, *published, *own, *out;
    int64_t fitted_ranks;
    bool simgrid;
    TextList overrides;
} ValidateArguments;

enum { MAX_CASES = 8 };

/* All rows of all sets. */
typedef struct Rows {
    Arena arena;
    ValidationRow *row;
    int count, room;
    TrainStep step[MAX_CASES]; /* predicted steps of published jobs, for their time to train */
    int steps;
} Rows;

static const Usage usage = {
    .command = "validate",
    .operands = "[DIR]",
    .text =
        "Reruns every prediction for which the truth is known and prints errors and interval coverage: time to train "
        "and\n"
        "step times of the published MLPerf HPC v3.0 runs (the step of one configuration calibrates, the others are\n"
        "predicted from their recorded programs), and, with the folder of a study, its larger rank counts from a fit "
        "to\n"
        "the smaller ones (--fitted-ranks). Steps of this engine on GPUs (--own) are predicted from op times of a few\n"
        "settings on one GPU and the collective benchmark. --simgrid adds SimGrid's time for the same step. --out "
        "writes\n"
        "the rows as CSV.",
    .example = "foldscale validate runs/study --fitted-ranks 2",
    .min_operands = 0,
    .max_operands = 1};

static Status append(Rows *rows, const ValidationRow *from, int count)
{
    if (rows->count + count > rows->room) {
        int room = 2 * (rows->count + count);
        ValidationRow *larger = arena_array(&rows->arena, (size_t)room, sizeof *larger);
        if (!larger) return status_fail(ERR_MEMORY, "validate: out of memory");
        for (int i = 0; i < rows->count; i++) larger[i] = rows->row[i];
        rows->row = larger;
        rows->room = room;
    }
    for (int i = 0; i < count; i++) rows->row[rows->count++] = from[i];
    return OK;
}

/* One case per published point. NVIDIA's version (workload.md): no fused pointwise ops, blocking collectives, blocks
 * recomputed where a rank holds whole samples; its loader leaves 27 to 32 ms of waiting. At DAP 8 the whole iteration
 * runs from a CUDA graph, without DAP the structure module alone: the program is priced as launched, and the graph's
 * published gain comes off. */
static Status published_cases(Pricing *pricing, const Config *config, const PublishedPoint *points, int count,
                              const OpenFold *openfold, TransferCase *cases)
{
    for (int i = 0; i < count; i++) {
        int dap = (int)(points[i].gpus / points[i].batch + 0.5);
        const SwitchSection switches = {.gemm_batching = true,
                                        .fused_attention = true,
                                        .fused_layernorm = true,
                                        .fused_optimizer = true,
                                        .bf16 = true,
                                        .checkpoint = dap == 1 ? CHECKPOINT_BLOCK : CHECKPOINT_NONE};
        cases[i] = (TransferCase){
            .what = points[i].label, .dp = (int64_t)points[i].batch, .step_s = points[i].step_s, .loader_s = 0.03};
        if (dap > 1) cases[i].gain = openfold->graph_gain, cases[i].spread = openfold->graph_gain_sd;
        TRY(pricing_cost(pricing, config, &switches, dap, &cases[i].cost));
    }
    return OK;
}

/* One transfer with launches of a given cost. */
static Status transfer(Pricing *pricing, const OpenFold *openfold, double launch_s, const TransferCase *cases,
                       int count, Arena *arena, ValidationRow *out)
{
    const FitOptions options = {.seed = 1};
    OpPrices *prices = NULL;
    TRY(openfold_prices(openfold, pricing_machine(pricing), launch_s, &prices));
    Status status = validate_transfer(prices, pricing_machine(pricing), cases, count, &options, arena, out);
    opprice_destroy(&prices);
    return status;
}

/* What a launch of this code costs lies between the device's own gap and OpenFold's on an older host, every logarithm
 * between as likely: the middle predicts, what both ends would have said is spread. */
static Status transfer_between(Pricing *pricing, const OpenFold *openfold, TransferCase *cases, int count, Arena *arena,
                               ValidationRow *out)
{
    ValidationRow ends[2][MAX_CASES];
    double low = openfold->launch_low_s, high = openfold->launch_s;
    TRY(transfer(pricing, openfold, low, cases, count, arena, ends[0]));
    TRY(transfer(pricing, openfold, high, cases, count, arena, ends[1]));
    for (int i = 1; i < count; i++)
        cases[i].spread = hypot(cases[i].spread, fabs(log(ends[1][i].predicted / ends[0][i].predicted)) / sqrt(12));
    return transfer(pricing, openfold, sqrt(low * high), cases, count, arena, out);
}

/* Predicted steps go into the time to train of their jobs. */
static Status keep_steps(const ValidateArguments *a, const PublishedPoint *points, const ValidationRow *row, int count,
                         Rows *rows)
{
    static const double SPAN = 2 * 1.6449; /* standard deviations of a 90 % interval */
    for (int i = 0; i < count; i++) {
        const char *name;
        if (row[i].fitted) continue;
        TRY(published_submission(a->published, points[i].gpus, &rows->arena, &name));
        if (name) rows->step[rows->steps++] = (TrainStep){name, row[i].predicted, log(row[i].high / row[i].low) / SPAN};
    }
    return OK;
}

/* The full-size step on the published machine: the first point calibrates, the others are predicted. */
static Status published_steps(const ValidateArguments *a, Rows *rows)
{
    PublishedPoint *points = NULL;
    int count = 0;
    TransferCase cases[MAX_CASES];
    ValidationRow out[MAX_CASES];
    Config *config = NULL, *fine = NULL;
    Pricing *pricing = NULL;
    OpenFold openfold;
    const TextList none = {0};
    Status status = published_read(a->published, &rows->arena, &points, &count);
    if (count > MAX_CASES) count = MAX_CASES;
    if (status == OK && count < 2) return OK; /* nothing to predict from one point */
    if (status == OK) status = config_load(a->experiment, &a->overrides, &config);
    if (status == OK) status = config_load(FOLDSCALE_SOURCE_DIR "/experiments/fine_tuning.yaml", &none, &fine);
    if (status == OK) status = openfold_read(config, fine, &openfold);
    if (status == OK) status = pricing_open(config, "h100_sxm", NULL, &pricing);
    if (status == OK) status = published_cases(pricing, config, points, count, &openfold, cases);
    if (status == OK) status = transfer_between(pricing, &openfold, cases, count, &rows->arena, out);
    if (status == OK) status = append(rows, out, count);
    if (status == OK) status = keep_steps(a, points, out, count, rows);
    pricing_close(&pricing);
    config_destroy(&config);
    config_destroy(&fine);
    return status;
}

static Status published_times(const ValidateArguments *a, Rows *rows)
{
    ValidationRow *out = NULL;
    int count = 0;
    const char *path = a->published ? a->published : published_default();
    TRY(validate_time_to_train(path, rows->step, rows->steps, &rows->arena, &out, &count));
    return append(rows, out, count);
}

static Status other_codes(Rows *rows)
{
    ValidationRow out[VALIDATE_CODES_ROWS];
    int count = 0;
    TRY(validate_codes(&rows->arena, out, &count));
    return append(rows, out, count);
}

static Status own_steps(const ValidateArguments *a, Rows *rows, char **note_out)
{
    ValidationRow *out = NULL;
    int count = 0;
    const char *folder = a->own ? a->own : validate_own_default();
    if (!folder) return OK;
    TRY(validate_own(folder, &rows->arena, &out, &count, note_out));
    return append(rows, out, count);
}

static Status measured(const ValidateArguments *a, const char *folder, Rows *rows)
{
    RunFiles *runs = calloc(1, sizeof *runs);
    Config *config = NULL;
    Pricing *pricing = NULL;
    FitPoint *points = NULL;
    int64_t *used = NULL;
    int count = 0;
    char *path = arena_printf(&rows->arena, "%s/runs.csv", folder), *machine = NULL, *ops = NULL;
    Status status = runs && path ? OK : status_fail(ERR_MEMORY, "validate: out of memory");
    if (status == OK) {
        const TextList paths = {.count = 1, .item = {path}};
        status = study_read_runs(&paths, runs);
    }
    if (status == OK) status = study_file(folder, "machine/machine.yaml", &rows->arena, &machine);
    if (status == OK) status = study_file(folder, "machine/profile/ops.csv", &rows->arena, &ops);
    if (status == OK) status = study_experiment(NULL, folder, NULL, &config);
    if (status == OK) status = pricing_open(config, machine ? machine : "cpu", ops, &pricing);
    if (status == OK) status = pricing_points(pricing, &runs->all, false, &points, &used, &count);
    bool *fitted = calloc((size_t)count + 1, sizeof *fitted);
    ValidationRow *out = calloc((size_t)count + 1, sizeof *out);
    if (status == OK && (!fitted || !out)) status = status_fail(ERR_MEMORY, "validate: out of memory");
    for (int i = 0; status == OK && i < count; i++) fitted[i] = points[i].shape.ranks <= (double)a->fitted_ranks;
    FitOptions options = {.seed = 1, .form = -1};
    if (status == OK) status = validate_points(points, count, fitted, NULL, &options, &rows->arena, out);
    for (int i = 0; status == OK && i < count; i++) /* texts of a row may be those of its point */
        if (!(out[i].what = arena_strdup(&rows->arena, out[i].what)))
            status = status_fail(ERR_MEMORY, "validate: out of memory");
    if (status == OK) status = append(rows, out, count);
    free(fitted);
    free(out);
    free(points);
    free(used);
    pricing_close(&pricing);
    config_destroy(&config);
    if (runs) study_free_runs(runs);
    free(runs);
    return status;
}

static Status print_replays(const char *experiment)
{
    StepReplay replay[STEP_REPLAYS];
    TRY(step_trace_replay(experiment, replay));
    for (int i = 0; i < STEP_REPLAYS; i++)
        printf("simgrid     %4d x %d H100: %9.6f s by our simulator, %9.6f s by SimGrid, %+6.2f %%\n", replay[i].dp,
               replay[i].dap, replay[i].ours_s, replay[i].simgrid_s,
               100 * (replay[i].ours_s / replay[i].simgrid_s - 1));
    return OK;
}

Status cmd_validate(int argc, char **argv)
{
    ValidateArguments a = {.fitted_ranks = 2, .experiment = published_experiment()};
    TextList operands;
    bool help;
    const Option options[] = {
        {"fitted-ranks", OPTION_INT, &a.fitted_ranks, "N", "fit the study's runs up to N ranks (default 2)", 1, 65536},
        {"published", OPTION_TEXT, &a.published, "FILE", "published runs (default: data/published)", 0, 0},
        {"experiment", OPTION_TEXT, &a.experiment, "EXP.yaml", "what they ran (default: initial_training.yaml)", 0, 0},
        {"own", OPTION_TEXT, &a.own, "DIR", "this engine's measured steps (default: .../results/h200/validation)", 0,
         0},
        {"simgrid", OPTION_FLAG, &a.simgrid, NULL, "replay the same step with SimGrid and print both times", 0, 0},
        {"out", OPTION_TEXT, &a.out, "FILE", "write the rows as CSV", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of that experiment", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (a.out)
        TRY(output_check("validate: --out", a.out, "set,what,", (const char *const[]){a.published, a.experiment}, 2));
    Rows rows = {0};
    char *note = NULL;
    Status status = published_steps(&a, &rows);
    if (status == OK) status = published_times(&a, &rows);
    if (status == OK) status = other_codes(&rows);
    if (status == OK) status = own_steps(&a, &rows, &note);
    if (status == OK && operands.count) status = measured(&a, operands.item[0], &rows);
    if (status == OK) status = validate_print(rows.row, rows.count, stdout);
    if (status == OK && note && *note) printf("%s\n", note);
    if (status == OK && a.simgrid) status = print_replays(a.experiment);
    if (status == OK && a.out) status = validate_write(rows.row, rows.count, a.out);
    arena_free(&rows.arena);
    return status;
}
