/* foldscale advise: which configuration, and which run to measure next. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/advise.h"
#include "experiments/commands.h"
#include "experiments/machines.h"
#include "experiments/predictor.h"

typedef struct AdviseArguments {
    PredictorOptions from;
    const char *machine;
    double deadline_h, budget, exponent, startup_s;
    TextList overrides;
} AdviseArguments;

/* Predictions of the experiment's own lists, and the shapes they came from. */
typedef struct Choices {
    Arena arena;
    PredictionRow *row;
    int count;
} Choices;

static const Usage usage = {
    .command = "advise",
    .operands = "DIR",
    .text = "From the fit of the study in DIR: the cheapest configuration of predict.gpus x predict.dap that meets "
            "--deadline\n"
            "(hours, by the upper end of its 90 % interval), and the fastest within --budget (GPU hours); and which "
            "smaller\n"
            "configuration to measure next for the narrowest interval of the largest one. Samples to the\n"
            "target come from predict.samples_to_target.",
    .example =
        "foldscale advise runs/study --target experiments/initial_training.yaml --machine h100_sxm --deadline 24",
    .min_operands = 1,
    .max_operands = 1};

static Status predict_all(Predictor *predictor, const Machine *machine, Choices *out)
{
    const Config *c = predictor_config(predictor);
    const PredictSection *p = &c->predict;
    int64_t dap[CONFIG_LIST];
    int degrees = (int)p->dap_count;
    memcpy(dap, p->dap, sizeof dap);
    TRY(predictor_keep_degrees(predictor, dap, &degrees));
    out->row = arena_array(&out->arena, (size_t)p->gpus_count * p->dap_count + 1, sizeof *out->row);
    if (!out->row) return status_fail(ERR_MEMORY, "advise: out of memory");
    for (unsigned i = 0; i < p->gpus_count; i++)
        for (int j = 0; j < degrees; j++) {
            if (p->gpus[i] % dap[j] != 0 || p->gpus[i] > machine_devices(machine)) continue;
            TRY(predictor_row(predictor, machine, &c->switches, p->gpus[i], dap[j], &out->arena,
                              &out->row[out->count++]));
        }
    return out->count ? OK
                      : status_fail(ERR_USAGE, "advise: nothing of predict.gpus and predict.dap divides and fits on %s",
                                    machine->name);
}

static void print_option(const char *what, const AdviseOption *o)
{
    printf("%s,%s,%lld,%lld,%.6g,%.6g,%.6g,%.6g\n", what, o->row->machine, (long long)o->row->gpus,
           (long long)o->row->dap, o->row->step_s, o->time.total_s / 3600, o->time.hi90_s / 3600, o->gpu_hours);
}

static void print_choice(const char *what, const AdviseOption *options, int64_t index)
{
    if (index >= 0)
        print_option(what, &options[index]);
    else
        printf("%s,none fits,,,,,,\n", what);
}

static Status advise(const AdviseArguments *a, const Config *config, const Choices *choices)
{
    AdviseOption *options = calloc((size_t)choices->count, sizeof *options);
    if (!options) return status_fail(ERR_MEMORY, "advise: out of memory");
    /* 128 replicas is the batch that samples_to_target belongs to; 0.12: its spread between seeds (26 runs of MLPerf
     * HPC v3.0) */
    TrainPlan plan = {.samples_to_target = config->predict.samples_to_target,
                      .samples_sd = 0.12,
                      .global_batch = 128,
                      .startup_s = a->startup_s};
    Status status = advise_times(choices->row, choices->count, &plan, 1, a->exponent, 1, options);
    if (status == OK) {
        printf("what,machine,gpus,dap,step_s,hours,hours_hi90,gpu_hours\n");
        for (int i = 0; i < choices->count; i++) print_option("option", &options[i]);
        if (a->deadline_h > 0)
            print_choice("cheapest within the deadline", options,
                         advise_cheapest(options, choices->count, a->deadline_h * 3600));
        if (a->budget > 0)
            print_choice("fastest within the budget", options, advise_fastest(options, choices->count, a->budget));
    }
    free(options);
    return status;
}

/* The largest configuration of the lists, and which smaller one, measured three times, would narrow its interval most.
 */
static Status next_run(Predictor *predictor, const Machine *machine, const Choices *choices)
{
    enum { REPEATS = 3 };
    const Config *c = predictor_config(predictor);
    StepShape *shape = calloc((size_t)choices->count + 1, sizeof *shape);
    AdviseRun *run = calloc((size_t)choices->count + 1, sizeof *run);
    const FitModel *fit = NULL;
    double extra_sd = 0;
    int last = 0;
    Status status = shape && run ? OK : status_fail(ERR_MEMORY, "advise: out of memory");
    for (int i = 0; i < choices->count && status == OK; i++) {
        const PredictionRow *row = &choices->row[i];
        if (row->gpus >= choices->row[last].gpus) last = i;
        status = predictor_shape(predictor, machine, &c->switches, row->gpus, row->dap, &fit, &shape[i], &extra_sd);
    }
    if (status == OK) status = advise_next_run(fit, shape, choices->count, &shape[last], extra_sd, REPEATS, run);
    if (status == OK)
        printf("\nnext measurement (%d runs),gpus,dap,interval of %lld GPUs DAP %lld then spans a factor of,now\n",
               (int)REPEATS, (long long)choices->row[last].gpus, (long long)choices->row[last].dap);
    /* the best degree of each smaller count: what a user can get hold of is theirs to know */
    for (int i = 0; i < choices->count && status == OK; i++) {
        const PredictionRow *row = &choices->row[run[i].candidate];
        bool better = false;
        for (int j = 0; j < i && !better; j++) better = choices->row[run[j].candidate].gpus == row->gpus;
        if (row->gpus < choices->row[last].gpus && !better)
            printf("measure,%lld,%lld,%.4g,%.4g\n", (long long)row->gpus, (long long)row->dap, run[i].width_expected,
                   run[i].width_now);
    }
    free(shape);
    free(run);
    return status;
}

Status cmd_advise(int argc, char **argv)
{
    AdviseArguments a = {.machine = "h100_sxm", .exponent = 0.6};
    TextList operands;
    bool help;
    const Option options[] = {
        {"machine", OPTION_TEXT, &a.machine, "NAME|FILE", "default h100_sxm", 0, 0},
        {"target", OPTION_TEXT, &a.from.target, "EXP.yaml", "experiment to train (default: the study's own)", 0, 0},
        {"experiment", OPTION_TEXT, &a.from.experiment, "EXP.yaml",
         "what was fitted (default: run.json of the first point)", 0, 0},
        {"deadline", OPTION_REAL, &a.deadline_h, "HOURS", "cheapest that is done by then", 0, 1e6},
        {"budget", OPTION_REAL, &a.budget, "GPU-HOURS", "fastest that costs no more", 0, 1e9},
        {"batch-exponent", OPTION_REAL, &a.exponent, "E",
         "samples to the target grow as batch^E (default 0.6: 88,832 at 128 and 133,120 at 256)", 0, 1},
        {"startup-s", OPTION_REAL, &a.startup_s, "S", "before the first step (default 0)", 0, 1e6},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the experiment", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Predictor *predictor = NULL;
    Machine *machine = NULL;
    Choices choices = {0};
    a.from.folder = operands.item[0];
    a.from.overrides = &a.overrides;
    Status status = machines_open(a.machine, &machine);
    if (status == OK) status = predictor_open(&a.from, &predictor);
    if (status == OK) status = predict_all(predictor, machine, &choices);
    if (status == OK) status = advise(&a, predictor_config(predictor), &choices);
    if (status == OK) status = next_run(predictor, machine, &choices);
    predictor_close(&predictor);
    if (machine) machine_destroy(&machine);
    arena_free(&choices.arena);
    return status;
}
