/* foldscale train */
#include <stdio.h>

#include "experiments/commands.h"
#include "experiments/launch.h"
#include "experiments/runner.h"
#include "experiments/session.h"

typedef struct TrainArguments {
    const char *folder;
    bool resume, replace, profile, check_finite, quiet;
    int64_t ranks, dap;
    TextList overrides;
    char set_ranks[48], set_dap[48];
} TrainArguments;

static const Usage usage = {
    .command = "train",
    .operands = "EXP.yaml",
    .text = "Trains the model of an experiment file and writes a run directory: run.json, steps.csv, losses.csv,\n"
            "eval.csv, mlperf.log, ckpt_STEP.safetensors. SIGINT and SIGTERM end it after the current step, with a\n"
            "checkpoint. Under mpirun or srun each process is one rank; otherwise --ranks starts mpirun.",
    .example = "foldscale train experiments/quickstart.yaml --ranks 2 --out runs/first --set train.steps=10",
    .min_operands = 1,
    .max_operands = 1};

static Status load(const char *path, TrainArguments *a, Config **config_out)
{
    if (a->overrides.count + 2 > CLI_MAX_ITEMS) return status_fail(ERR_USAGE, "train: too many --set");
    if (a->ranks) {
        snprintf(a->set_ranks, sizeof a->set_ranks, "parallel.ranks=%d", (int)a->ranks);
        a->overrides.item[a->overrides.count++] = a->set_ranks;
    }
    if (a->dap) {
        snprintf(a->set_dap, sizeof a->set_dap, "parallel.dap=%d", (int)a->dap);
        a->overrides.item[a->overrides.count++] = a->set_dap;
    }
    return config_load(path, &a->overrides, config_out);
}

Status cmd_train(int argc, char **argv)
{
    TrainArguments a = {0};
    TextList operands;
    bool help;
    const Option options[] = {
        {"out", OPTION_TEXT, &a.folder, "DIR", "run directory (default runs/NAME of the experiment)", 0, 0},
        {"ranks", OPTION_INT, &a.ranks, "N", "ranks to start (parallel.ranks)", 1, 65536},
        {"dap", OPTION_INT, &a.dap, "N", "ranks of a model-parallel group (parallel.dap)", 1, 8},
        {"resume", OPTION_FLAG, &a.resume, NULL, "go on from the newest whole checkpoint in the run directory", 0, 0},
        {"replace", OPTION_FLAG, &a.replace, NULL, "remove the run that is in the run directory first", 0, 0},
        {"profile", OPTION_FLAG, &a.profile, NULL, "time every op and write ops.csv", 0, 0},
        {"check-finite", OPTION_FLAG, &a.check_finite, NULL,
         "stop at a loss or gradient that is not finite and name the first op", 0, 0},
        {"quiet", OPTION_FLAG, &a.quiet, NULL, "no summary on standard output", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the experiment; may be repeated", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Config *config = NULL;
    TRY(load(operands.item[0], &a, &config));
    Status status;
    if (config_processes(config) > 1 && !launch_under_mpi()) {
        status = session_check_split(config); /* said once, before there are ranks to say it */
        if (status == OK) status = launch_ranks(config->parallel.ranks, argc, argv);
    } else {
        char folder[CONFIG_NAME + 8];
        snprintf(folder, sizeof folder, "runs/%s", config->name);
        RunOptions run = {.folder = a.folder ? a.folder : folder,
                          .resume = a.resume,
                          .replace = a.replace,
                          .profile = a.profile,
                          .check_finite = a.check_finite,
                          .quiet = a.quiet,
                          .argc = argc,
                          .argv = argv};
        status = runner_train(config, &run);
    }
    config_destroy(&config);
    return status;
}
