/* foldscale sweep: every point of a study as a child `foldscale train`, in random order, resumable. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/commands.h"
#include "experiments/files.h"
#include "experiments/launch.h"
#include "experiments/progress.h"
#include "experiments/run_folder.h"
#include "experiments/run_summary.h"
#include "experiments/slurm.h"
#include "experiments/study.h"

typedef struct Sweep {
    const char *path, *folder; /* of the study, of its results */
    const TextList *overrides;
    Config *config;
    StudyPoint *points;
    int count;
    bool keep_going;
    int lock; /* of the folder, -1: none */
    char runs[4096];
} Sweep;

static const Usage usage = {
    .command = "sweep",
    .operands = "STUDY.yaml",
    .text = "Runs the matrix of a study, switches x (ranks, DAP) x repeats, in random order, each point as its own\n"
            "training run below DIR/points, and collects one row per point in DIR/runs.csv. Started again, it goes on\n"
            "with the points that have no row yet; it may ask for more points then, but not for another experiment.\n"
            "--slurm writes one job script per point instead; when the jobs are done, --collect gathers their rows.",
    .example = "foldscale sweep experiments/quickstart.yaml --out runs/study",
    .min_operands = 1,
    .max_operands = 1};

static bool is_done(const Sweep *sweep, const RunTable *done, const char *id)
{
    (void)sweep;
    for (int64_t i = 0; i < done->count; i++)
        if (strcmp(done->rows[i].run_id, id) == 0) return true;
    return false;
}

/* What stands in the folder is of this study; a point whose run.json is not here says nothing. */
static Status check_point(const Sweep *sweep, const char *id)
{
    Arena arena = {0};
    char *run = arena_printf(&arena, "%s/points/%s/run.json", sweep->folder, id);
    Status status = run ? OK : status_fail(ERR_MEMORY, "sweep: out of memory");
    if (status == OK && file_exists(run)) status = study_check_same(sweep->config, run);
    arena_free(&arena);
    return status;
}

/* Rows of an earlier start, which all must be of this study. */
static Status read_done(const Sweep *sweep, RunTable *done)
{
    *done = (RunTable){0};
    if (!file_exists(sweep->runs)) return OK;
    TRY(schema_read_runs(sweep->runs, done));
    Status status = OK;
    for (int64_t i = 0; i < done->count && status == OK; i++) status = check_point(sweep, done->rows[i].run_id);
    if (status != OK) schema_free_runs(done);
    return status;
}

/* The experiment of a point, as its run has it. */
static Status point_config(const Sweep *sweep, const StudyPoint *point, Arena *arena, TextList *set,
                           Config **config_out)
{
    *set = *sweep->overrides;
    TRY(study_overrides(sweep->config, point, arena, set));
    return config_load(sweep->path, set, config_out);
}

/* ERR_INPUT or ERR_IO when the point is not complete. Texts lie in the arena. */
static Status summarize(const Sweep *sweep, const StudyPoint *point, const Config *config, Arena *arena, RunRow *row)
{
    char folder[4096];
    snprintf(folder, sizeof folder, "%s/points/%s", sweep->folder, point->id);
    return run_summarize(folder, point->id, config, sweep->config->study.warmup, arena, row);
}

static Status append_row(const Sweep *sweep, const RunRow *row)
{
    TableWriter *writer = NULL;
    TRY(schema_runs_writer(sweep->runs, true, &writer));
    Status status = schema_write_run(writer, row), closed = table_writer_close(&writer);
    return status == OK ? closed : status;
}

static Status run_point(Sweep *sweep, const StudyPoint *point)
{
    enum { FIXED = 8 };
    Arena arena = {0};
    RunRow row;
    Config *config = NULL;
    int n = 0, exit_status = 0;
    char self[4096], folder[4096], log[4200];
    char **arguments = calloc(2 * CLI_MAX_ITEMS + FIXED, sizeof *arguments);
    TextList *set = calloc(1, sizeof *set);
    Status status = arguments && set ? launch_self(self, sizeof self) : status_fail(ERR_MEMORY, "sweep: out of memory");
    if (status == OK) status = point_config(sweep, point, &arena, set, &config);
    snprintf(folder, sizeof folder, "%s/points/%s", sweep->folder, point->id);
    snprintf(log, sizeof log, "%s/log.txt", folder);
    if (status == OK) status = files_make_folder(folder);
    if (status == OK) {
        const char *const fixed[] = {self, "train", sweep->path, "--replace", "--out", folder};
        for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) arguments[n++] = (char *)fixed[i];
        for (int i = 0; i < set->count; i++) {
            arguments[n++] = "--set";
            arguments[n++] = (char *)set->item[i];
        }
        status = launch_wait(arguments, log, &exit_status);
    }
    if (status == OK && launch_interrupted())
        status = status_fail(ERR_COMM, "stopped by a signal at point %s; the same command goes on", point->id);
    if (status == OK && exit_status != 0)
        status =
            status_fail(ERR_COMM, "point %s failed with status %d; its output is in %s", point->id, exit_status, log);
    if (status == OK) status = summarize(sweep, point, config, &arena, &row);
    if (status == OK) status = append_row(sweep, &row);
    config_destroy(&config);
    free(set);
    free(arguments);
    arena_free(&arena);
    return status;
}

static Status run_points(Sweep *sweep)
{
    RunTable done;
    Progress progress;
    TRY(read_done(sweep, &done));
    int ready = 0, failed = 0;
    Status status = OK;
    for (int i = 0; i < sweep->count; i++) ready += is_done(sweep, &done, sweep->points[i].id);
    progress_begin(&progress, "point", ready, sweep->count, true);
    for (int i = 0; i < sweep->count && status == OK; i++) {
        if (is_done(sweep, &done, sweep->points[i].id)) continue;
        progress_update(&progress, ready, sweep->points[i].id);
        status = run_point(sweep, &sweep->points[i]);
        if (status != OK && sweep->keep_going && !launch_interrupted()) {
            fprintf(stderr, "foldscale: %s\n", status_text());
            failed++;
            status = OK;
            continue;
        }
        if (status == OK) progress_update(&progress, ++ready, sweep->points[i].id);
    }
    progress_end(&progress);
    schema_free_runs(&done);
    if (status == OK && failed) status = status_fail(ERR_COMM, "%d of %d points failed", failed, sweep->count);
    if (status == OK) printf("%d points -> %s\n", sweep->count, sweep->runs);
    return status;
}

/* *complete_out: whether the point could be summed up; the reason is said. */
static Status collect_point(const Sweep *sweep, const StudyPoint *point, bool *complete_out)
{
    Arena arena = {0};
    Config *config = NULL;
    RunRow row;
    TextList *set = calloc(1, sizeof *set);
    Status status =
        set ? point_config(sweep, point, &arena, set, &config) : status_fail(ERR_MEMORY, "sweep: out of memory");
    if (status == OK) status = check_point(sweep, point->id);
    if (status == OK) {
        status = summarize(sweep, point, config, &arena, &row);
        *complete_out = status == OK;
        if (status == OK) {
            status = append_row(sweep, &row);
        } else if (status == ERR_INPUT || status == ERR_IO) { /* it still runs, or its job was ended */
            fprintf(stderr, "foldscale: %s\n", status_text());
            status = OK;
        }
    }
    config_destroy(&config);
    free(set);
    arena_free(&arena);
    return status;
}

/* Rows of the points that ran elsewhere. */
static Status collect(Sweep *sweep)
{
    RunTable done;
    int added = 0, missing = 0;
    TRY(read_done(sweep, &done));
    Status status = OK;
    for (int i = 0; i < sweep->count && status == OK; i++) {
        const StudyPoint *point = &sweep->points[i];
        char steps[4096];
        snprintf(steps, sizeof steps, "%s/points/%s/steps.csv", sweep->folder, point->id);
        if (is_done(sweep, &done, point->id)) continue;
        bool complete = false;
        if (file_exists(steps)) status = collect_point(sweep, point, &complete);
        if (complete)
            added++;
        else
            missing++;
    }
    schema_free_runs(&done);
    if (status == OK)
        printf("%d rows added, %d points have not run or are not complete -> %s\n", added, missing, sweep->runs);
    return status;
}

static Status run(Sweep *sweep, bool gather, const SlurmOptions *slurm)
{
    TRY(config_load(sweep->path, sweep->overrides, &sweep->config));
    TRY(study_points(sweep->config, &sweep->points, &sweep->count));
    if (slurm->write) TRY(slurm_check(slurm, sweep->folder));
    TRY(files_make_folder(sweep->folder));
    TRY(run_folder_claim(sweep->folder, &sweep->lock));
    snprintf(sweep->runs, sizeof sweep->runs, "%s/runs.csv", sweep->folder);
    if (slurm->write) { /* jobs start in another folder */
        char study[PATH_MAX], folder[PATH_MAX];
        RunTable done;
        TRY(read_done(sweep, &done));
        schema_free_runs(&done);
        if (!realpath(sweep->path, study) || !realpath(sweep->folder, folder))
            return status_fail(ERR_IO, "%s: cannot make the path absolute", sweep->path);
        return slurm_write(slurm, sweep->config, study, sweep->overrides, folder, sweep->points, sweep->count);
    }
    return gather ? collect(sweep) : run_points(sweep);
}

Status cmd_sweep(int argc, char **argv)
{
    TextList overrides = {0}, operands;
    Sweep sweep = {.overrides = &overrides, .folder = "runs/study", .lock = -1};
    SlurmOptions slurm = {.gpus_per_node = 8, .minutes = 30};
    bool help, gather = false;
    const Option options[] = {
        {"out", OPTION_TEXT, &sweep.folder, "DIR", "folder of the results (default runs/study)", 0, 0},
        {"keep-going", OPTION_FLAG, &sweep.keep_going, NULL, "go on when a point fails", 0, 0},
        {"slurm", OPTION_FLAG, &slurm.write, NULL, "write job scripts to DIR/slurm instead of running", 0, 0},
        {"gpus-per-node", OPTION_INT, &slurm.gpus_per_node, "N", "for --slurm (default 8)", 1, 64},
        {"minutes", OPTION_INT, &slurm.minutes, "N", "time limit of a job, for --slurm (default 30)", 1, 10080},
        {"partition", OPTION_TEXT, &slurm.partition, "NAME", "for --slurm", 0, 0},
        {"collect", OPTION_FLAG, &gather, NULL, "add the rows of points that ran elsewhere", 0, 0},
        {"set", OPTION_LIST, &overrides, "A.B=C", "override a key of the study; may be repeated", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    sweep.path = operands.item[0];
    Status status = run(&sweep, gather, &slurm);
    run_folder_release(&sweep.lock);
    free(sweep.points);
    config_destroy(&sweep.config);
    return status;
}
