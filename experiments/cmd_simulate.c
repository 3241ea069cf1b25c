/* foldscale simulate: a job of N ranks step by step: what averages hide. */
#include <stdio.h>

#include "analysis/advise.h"
#include "analysis/simulate.h"
#include "experiments/commands.h"
#include "experiments/machines.h"
#include "experiments/predictor.h"

typedef struct SimulateArguments {
    PredictorOptions from;
    const char *machine, *out;
    int64_t gpus, dap, steps, seed;
    bool blocking, sync_eval, to_target;
    double samples_sd, exponent;
    double rank_sd, hiccup_rate, hiccup_s, prepare_s, prepare_sd, startup_s, eval_s, checkpoint_s;
    TextList overrides;
} SimulateArguments;

static const Usage usage = {
    .command = "simulate",
    .operands = "DIR",
    .text = "Simulates a training job on --gpus of a machine: every rank draws its computation time each step, every "
            "loader\n"
            "its preparation times, the slowest decides; evaluation, checkpoints, start-up on the clock. Mean parts of "
            "a step\n"
            "come from the fit of the study in DIR. Prints totals as CSV; --out writes one row per step. --to-target "
            "adds the "
            "time to train\n"
            "(predict.samples_to_target at a batch of 128, evaluations every eval.every steps), that of half and of "
            "twice as many\n"
            "GPUs, and whether more of them help.",
    .example = "foldscale simulate runs/study --target experiments/initial_training.yaml --machine h100_sxm --gpus "
               "2048 --dap 8",
    .min_operands = 1,
    .max_operands = 1};

static SimConfig sim_config(const SimulateArguments *a, const Config *c, const Machine *m, const PredictionRow *row)
{
    return (SimConfig){.ranks = a->gpus,
                       .dap = a->dap,
                       .steps = a->steps,
                       .compute_s = row->serial_s + row->compute_s,
                       .rank_sd = a->rank_sd,
                       .step_sd = m->rank_noise.value,
                       .hiccup_rate = a->hiccup_rate,
                       .hiccup_s = a->hiccup_s,
                       .comm_s = row->comm_exposed_s,
                       .host_s = row->host_s,
                       .loader = {.workers = a->prepare_s > 0 ? c->data.workers : 0,
                                  .queue = c->data.workers + c->data.queue,
                                  .ready_first = !a->blocking,
                                  .prepare_s = a->prepare_s,
                                  .prepare_sd = a->prepare_sd},
                       .startup_s = a->startup_s,
                       .eval_every = a->eval_s > 0 ? c->eval.every : 0,
                       .eval_s = a->eval_s,
                       .async_eval = !a->sync_eval,
                       .checkpoint_every = a->checkpoint_s > 0 ? c->train.checkpoint_every : 0,
                       .checkpoint_s = a->checkpoint_s,
                       .seed = (uint64_t)a->seed};
}

static void print_result(const SimResult *r)
{
    const struct {
        const char *name;
        double value;
    } rows[] = {{"steps", (double)r->steps},     {"total_s", r->total_s},        {"step_mean_s", r->mean_s},
                {"step_p05_s", r->p05_s},        {"step_median_s", r->median_s}, {"step_p95_s", r->p95_s},
                {"step_p99_s", r->p99_s},        {"startup_s", r->startup_s},    {"compute_s", r->compute_s},
                {"comm_s", r->comm_s},           {"host_s", r->host_s},          {"loader_s", r->loader_s},
                {"straggler_s", r->straggler_s}, {"eval_s", r->eval_s},          {"checkpoint_s", r->checkpoint_s}};
    printf("quantity,value\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) printf("%s,%.6g\n", rows[i].name, rows[i].value);
}

/* One job of `gpus`, and its predicted step. */
static Status simulate_job(const SimulateArguments *a, Predictor *predictor, const Machine *machine, int64_t gpus,
                           Arena *arena, PredictionRow *row_out, SimResult *result_out)
{
    SimulateArguments job = *a;
    const Config *config = predictor_config(predictor);
    job.gpus = gpus;
    if (gpus % a->dap != 0)
        return status_fail(ERR_USAGE, "simulate: dap %lld does not divide %lld GPUs", (long long)a->dap,
                           (long long)gpus);
    TRY(predictor_row(predictor, machine, &config->switches, gpus, a->dap, arena, row_out));
    SimConfig sim = sim_config(&job, config, machine, row_out);
    return simulate_run(&sim, result_out);
}

/* The simulated mean in place of the predicted one: the interval moves along. */
static Status time_to_train(const SimulateArguments *a, const Config *c, const PredictionRow *row, const SimResult *sim,
                            TrainTime *out)
{
    const TrainPlan plan = {.samples_to_target = c->predict.samples_to_target,
                            .samples_sd = a->samples_sd,
                            .global_batch = 128,
                            .startup_s = a->startup_s,
                            .eval_every = a->eval_s > 0 ? c->eval.every : 0,
                            .eval_s = a->eval_s,
                            .first_gap_s = a->sync_eval ? a->eval_s : 0,
                            .gap_s = a->sync_eval ? a->eval_s : 0,
                            .async_eval = !a->sync_eval};
    PredictionRow moved = *row;
    AdviseOption option;
    double scale = sim->mean_s / row->step_s;
    moved.step_s = sim->mean_s;
    moved.lo90_s *= scale;
    moved.hi90_s *= scale;
    TRY(advise_times(&moved, 1, &plan, 1, a->exponent, (uint64_t)a->seed, &option));
    *out = option.time;
    return OK;
}

/* Half as many GPUs, these, twice as many: those that the machine has and the DAP degree divides. */
static Status print_to_target(const SimulateArguments *a, Predictor *predictor, const Machine *machine)
{
    const int64_t counts[] = {a->gpus / 2, a->gpus, 2 * a->gpus};
    double hours[3] = {0};
    for (int i = 0; i < 3; i++) {
        Arena arena = {0};
        PredictionRow row;
        SimResult result;
        TrainTime t;
        if (counts[i] < 1 || counts[i] % a->dap || counts[i] > machine_devices(machine)) continue;
        Status status = simulate_job(a, predictor, machine, counts[i], &arena, &row, &result);
        if (status == OK) {
            status = time_to_train(a, predictor_config(predictor), &row, &result, &t);
            simulate_free(&result);
        }
        arena_free(&arena);
        TRY(status);
        hours[i] = t.total_s / 3600;
        printf("time_to_train_h of %lld GPUs,%.6g\n", (long long)counts[i], hours[i]);
        if (i != 1) continue;
        printf("time_to_train_lo90_h,%.6g\ntime_to_train_hi90_h,%.6g\nsteps_to_target,%.0f\nsteps_h,%.6g\n"
               "evaluations_h,%.6g\n",
               t.lo90_s / 3600, t.hi90_s / 3600, t.steps, t.steps_s / 3600, (t.gaps_s + t.eval_s) / 3600);
    }
    if (!hours[2]) return OK;
    double gain = hours[1] / hours[2];
    printf("verdict,twice the GPUs train %.2f times as fast: %s\n", gain,
           gain <= 1     ? "more GPUs do not help"
           : gain <= 1.5 ? "more GPUs cost more than they save"
                         : "more GPUs pay");
    return OK;
}

static Status simulate(const SimulateArguments *a, Predictor *predictor, const Machine *machine)
{
    Arena arena = {0};
    PredictionRow row;
    SimResult result;
    Status status = simulate_job(a, predictor, machine, a->gpus, &arena, &row, &result);
    arena_free(&arena);
    if (status != OK) return status;
    print_result(&result);
    if (a->out) status = simulate_write(&result, a->out);
    simulate_free(&result);
    return status == OK && a->to_target ? print_to_target(a, predictor, machine) : status;
}

Status cmd_simulate(int argc, char **argv)
{
    SimulateArguments a = {.machine = "h100_sxm",
                           .gpus = 128,
                           .dap = 1,
                           .steps = 200,
                           .seed = 1,
                           .prepare_sd = 1,
                           .samples_sd = 0.12,
                           .exponent = 0.6};
    TextList operands;
    bool help;
    const Option options[] = {
        {"machine", OPTION_TEXT, &a.machine, "NAME|FILE", "default h100_sxm", 0, 0},
        {"gpus", OPTION_INT, &a.gpus, "N", "default 128", 1, 1 << 20},
        {"dap", OPTION_INT, &a.dap, "N", "default 1", 1, 8},
        {"steps", OPTION_INT, &a.steps, "N", "default 200", 1, 1e7},
        {"target", OPTION_TEXT, &a.from.target, "EXP.yaml", "simulate this experiment (default: the study's own)", 0,
         0},
        {"experiment", OPTION_TEXT, &a.from.experiment, "EXP.yaml",
         "what was fitted (default: run.json of the first point)", 0, 0},
        {"prepare-s", OPTION_REAL, &a.prepare_s, "S", "median time to prepare a sample (default 0: data are there)", 0,
         1e5},
        {"prepare-sd", OPTION_REAL, &a.prepare_sd, "SD", "of its logarithm (default 1)", 0, 5},
        {"blocking", OPTION_FLAG, &a.blocking, NULL, "ordered loader instead of ready-first", 0, 0},
        {"rank-sd", OPTION_REAL, &a.rank_sd, "SD", "spread between ranks that stays (default 0)", 0, 1},
        {"hiccup-rate", OPTION_REAL, &a.hiccup_rate, "P", "pauses per rank and step (default 0)", 0, 1},
        {"hiccup-s", OPTION_REAL, &a.hiccup_s, "S", "mean length of a pause", 0, 1e4},
        {"startup-s", OPTION_REAL, &a.startup_s, "S", "before the first step (default 0)", 0, 1e6},
        {"eval-s", OPTION_REAL, &a.eval_s, "S", "time of one evaluation (default 0: none)", 0, 1e6},
        {"sync-eval", OPTION_FLAG, &a.sync_eval, NULL, "evaluate on the training GPUs", 0, 0},
        {"checkpoint-s", OPTION_REAL, &a.checkpoint_s, "S", "time of one checkpoint (default 0: none)", 0, 1e6},
        {"to-target", OPTION_FLAG, &a.to_target, NULL, "time to train, and whether more GPUs help", 0, 0},
        {"samples-sd", OPTION_REAL, &a.samples_sd, "SD",
         "of the logarithm of samples to the target (default 0.12: MLPerf HPC v3.0 between seeds)", 0, 2},
        {"batch-exponent", OPTION_REAL, &a.exponent, "E", "samples grow as batch^E beyond 128 (default 0.6)", 0, 1},
        {"seed", OPTION_INT, &a.seed, "N", "default 1", 0, 9e15},
        {"out", OPTION_TEXT, &a.out, "FILE", "write one row per step", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the simulated experiment", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Predictor *predictor = NULL;
    Machine *machine = NULL;
    a.from.folder = operands.item[0];
    a.from.overrides = &a.overrides;
    const TextList machines = {1, {a.machine}};
    Status status = a.out ? predictor_check_output("simulate: --out", a.out, &a.from, &machines) : OK;
    if (status == OK) status = machines_open(a.machine, &machine);
    if (status == OK) status = predictor_open(&a.from, &predictor);
    if (status == OK) status = simulate(&a, predictor, machine);
    predictor_close(&predictor);
    if (machine) machine_destroy(&machine);
    return status;
}
