/* Time to train of published MLPerf runs from the parts that their logs give. */
#include "analysis/validate.h"

#include <gsl/gsl_cdf.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <string.h>

#include "analysis/table.h"

enum { PARTS = 8, RUN_LIMIT = 256 };
enum { P_STEP, P_STARTUP, P_FIRST, P_LATER, P_FIRST_GAP, P_GAP, P_EVAL, P_SAMPLES };

typedef struct MlperfRun {
    const char *submission;
    int64_t run, gpus, batch, cycle;
    double part[PARTS], total_s;
} MlperfRun;

static Status read_run(const Table *t, int64_t row, MlperfRun *out)
{
    static const char *const names[PARTS] = {
        "median_step_s", "run_start_to_first_epoch_s", "first_epoch_s",       "median_later_epoch_s",
        "first_gap_s",   "median_later_gap_s",         "median_later_eval_s", "samples_at_target"};
    int column;
    for (int p = 0; p < PARTS; p++) {
        TRY(table_column(t, names[p], &column));
        TRY(table_double(t, row, column, &out->part[p]));
    }
    TRY(table_column(t, "time_to_train_s", &column));
    TRY(table_double(t, row, column, &out->total_s));
    TRY(table_column(t, "run", &column));
    TRY(table_int(t, row, column, 0, 100000, &out->run));
    TRY(table_column(t, "gpus", &column));
    TRY(table_int(t, row, column, 1, 1 << 24, &out->gpus));
    TRY(table_column(t, "global_batch", &column));
    TRY(table_int(t, row, column, 1, 1 << 24, &out->batch));
    TRY(table_column(t, "steps_per_epoch", &column));
    TRY(table_int(t, row, column, 1, 1 << 24, &out->cycle));
    TRY(table_column(t, "submission", &column));
    out->submission = table_cell(t, row, column);
    return OK;
}

/* Median of a part over the runs of a submission, all but `without` (-1: all). */
static double median_part(const MlperfRun *runs, int count, const char *submission, int without, int part,
                          double *sd_log)
{
    double value[RUN_LIMIT], log_sum = 0, log_squares = 0;
    int used = 0;
    for (int i = 0; i < count; i++) {
        if (i == without || strcmp(runs[i].submission, submission)) continue;
        value[used] = runs[i].part[part];
        double l = log(fmax(value[used++], 1e-9));
        log_sum += l, log_squares += l * l;
    }
    if (sd_log) *sd_log = used > 1 ? sqrt(fmax(0, (log_squares - log_sum * log_sum / used) / (used - 1))) : 0.2;
    if (!used) return NAN;
    gsl_sort(value, 1, (size_t)used);
    return gsl_stats_median_from_sorted_data(value, 1, (size_t)used);
}

static Status predict_run(const MlperfRun *runs, int count, int like, int without, const TrainStep *step, Arena *arena,
                          TrainTime *out)
{
    enum { DRAWS = 2000 };
    const MlperfRun *r = &runs[like];
    TrainPlan plan = {.global_batch = (double)r->batch, .eval_every = r->cycle};
    plan.samples_to_target = median_part(runs, count, r->submission, without, P_SAMPLES, &plan.samples_sd);
    double logged = median_part(runs, count, r->submission, without, P_STEP, NULL);
    plan.startup_s = median_part(runs, count, r->submission, without, P_STARTUP, NULL);
    plan.warmup_extra_s = fmax(0, median_part(runs, count, r->submission, without, P_FIRST, NULL) -
                                      median_part(runs, count, r->submission, without, P_LATER, NULL));
    plan.first_gap_s = median_part(runs, count, r->submission, without, P_FIRST_GAP, NULL);
    plan.gap_s = median_part(runs, count, r->submission, without, P_GAP, NULL);
    plan.eval_s = median_part(runs, count, r->submission, without, P_EVAL, NULL);
    /* a synchronous evaluation is the gap; with an asynchronous one the gap is only its hand-over */
    plan.async_eval = plan.gap_s < 0.5 * plan.eval_s;
    double *draws = arena_array(arena, DRAWS, sizeof *draws);
    if (!draws) return status_fail(ERR_MEMORY, "validation: out of memory");
    double step_s = step ? step->step_s : logged, sd = step ? step->sd : 0.005;
    /* quantiles of a normal in scattered order (golden ratio sequence), so that they do not follow the draws of samples
     */
    for (int i = 0; i < DRAWS; i++)
        draws[i] = step_s * exp(sd * gsl_cdf_ugaussian_Pinv(fmod(0.5 + i * 0.6180339887498949, 1) * 0.9998 + 1e-4));
    return predict_train_time(&plan, step_s, draws, DRAWS, 1, out);
}

static const TrainStep *find_step(const TrainStep *steps, int count, const char *submission)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(steps[i].submission, submission)) return &steps[i];
    return NULL;
}

/* The published score: mean without the fastest and the slowest run. */
static double score_of(const MlperfRun *runs, int count, const char *submission)
{
    double sum = 0, low = INFINITY, high = 0;
    int used = 0;
    for (int i = 0; i < count; i++) {
        if (strcmp(runs[i].submission, submission)) continue;
        sum += runs[i].total_s, used++;
        low = fmin(low, runs[i].total_s), high = fmax(high, runs[i].total_s);
    }
    return used > 2 ? (sum - low - high) / (used - 2) : sum / used;
}

static Status add_row(const MlperfRun *runs, int count, int i, bool score, const TrainStep *step, Arena *arena,
                      ValidationRow *out)
{
    TrainTime t;
    const MlperfRun *r = &runs[i];
    TRY(predict_run(runs, count, i, score ? -1 : i, step, arena, &t));
    double truth = score ? score_of(runs, count, r->submission) : r->total_s;
    *out = (ValidationRow){.set = score ? "published" : "single run",
                           .predicted = t.total_s / 60,
                           .low = t.lo90_s / 60,
                           .high = t.hi90_s / 60,
                           .truth = truth / 60,
                           .naive = NAN,
                           .naive2 = NAN};
    out->basis = step    ? "predicted step, logged parts"
                 : score ? "medians of the logged parts"
                         : "parts of the other runs";
    out->what = score ? arena_printf(arena, "MLPerf HPC v3.0 %s, %lld GPUs: time to train (min)", r->submission,
                                     (long long)r->gpus)
                      : arena_printf(arena, "MLPerf HPC v3.0 %s run %lld: time to train (min)", r->submission,
                                     (long long)r->run);
    return out->what ? OK : status_fail(ERR_MEMORY, "validation: out of memory");
}

static Status add_rows(const MlperfRun *runs, int count, const TrainStep *steps, int step_count, Arena *arena,
                       ValidationRow *rows, int *used)
{
    for (int i = 0; i < count; i++) {
        bool first = true;
        for (int j = 0; j < i && first; j++) first = strcmp(runs[j].submission, runs[i].submission) != 0;
        const TrainStep *step = find_step(steps, step_count, runs[i].submission);
        if (first) TRY(add_row(runs, count, i, true, step, arena, &rows[(*used)++]));
        TRY(add_row(runs, count, i, false, step, arena, &rows[(*used)++]));
    }
    return OK;
}

Status validate_time_to_train(const char *csv_path, const TrainStep *steps, int step_count, Arena *arena,
                              ValidationRow **rows_out, int *count_out)
{
    Table *t = NULL;
    TRY(table_read(csv_path, &t));
    Status status = OK;
    int count = 0, used = 0;
    MlperfRun *runs = arena_array(arena, RUN_LIMIT, sizeof *runs);
    ValidationRow *rows = arena_array(arena, 2 * RUN_LIMIT, sizeof *rows);
    if (!runs || !rows) status = status_fail(ERR_MEMORY, "validation: out of memory");
    if (t->rows < 1 || t->rows > RUN_LIMIT)
        status =
            status_fail_at(ERR_INPUT, csv_path, 0, "%lld runs (expected 1 to %d)", (long long)t->rows, (int)RUN_LIMIT);
    for (int64_t r = 0; r < t->rows && status == OK; r++) {
        status = read_run(t, r, &runs[count]);
        if (status != OK) break;
        runs[count].submission = arena_strdup(arena, runs[count].submission);
        if (!runs[count++].submission) status = status_fail(ERR_MEMORY, "validation: out of memory");
    }
    if (status == OK) status = add_rows(runs, count, steps, step_count, arena, rows, &used);
    table_destroy(&t);
    if (status != OK) return status;
    *rows_out = rows;
    *count_out = used;
    return OK;
}
