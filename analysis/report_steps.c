/* Plots of ops, steps and evaluations: roofline, predicted against measured, distributions, loss and accuracy. */
#include "analysis/report_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/plot.h"

#define GET(pointer, call)                                                                                             \
    do {                                                                                                               \
        (pointer) = (call);                                                                                            \
        if (!(pointer)) return status_fail(ERR_MEMORY, "report: out of memory");                                       \
    } while (0)

/* Points of the ops of each stage; x and y chosen by `pick` (false: leave out). */
typedef bool (*OpPick)(const OpRow *row, double *x, double *y);

static Status stage_series(const ReportInput *input, Arena *arena, OpPick pick, PlotSeries *series, int *count)
{
    for (int stage = 0; stage < COST_STAGE_COUNT; stage++) {
        double *x, *y;
        int64_t used = 0;
        GET(x, arena_array(arena, (size_t)input->op_count, sizeof *x));
        GET(y, arena_array(arena, (size_t)input->op_count, sizeof *y));
        for (int64_t i = 0; i < input->op_count; i++) {
            const OpRow *row = &input->ops[i];
            if (!strcmp(row->stage, COST_STAGE_NAMES[stage]) && row->calls > 0 && pick(row, &x[used], &y[used])) used++;
        }
        if (used)
            series[(*count)++] = (PlotSeries){
                .label = COST_STAGE_NAMES[stage], .style = PLOT_POINTS, .color = stage, .x = x, .y = y, .count = used};
    }
    return *count > 0 ? OK : status_fail(ERR_INPUT, "no timed ops");
}

static bool pick_roofline(const OpRow *row, double *x, double *y)
{
    if (!(row->flops > 0) || !(row->bytes > 0) || !(row->time_s > 0)) return false;
    *x = row->flops / row->bytes;
    *y = row->flops * row->calls / row->time_s * 1e-9;
    return true;
}

Status report_plot_roofline(const char *folder, const ReportInput *input, Arena *arena)
{
    PlotSeries series[COST_STAGE_COUNT + 1];
    int count = 0;
    TRY(stage_series(input, arena, pick_roofline, series, &count));
    double low = INFINITY, high = 0;
    for (int k = 0; k < count; k++)
        for (int64_t i = 0; i < series[k].count; i++) {
            low = fmin(low, series[k].x[i]);
            high = fmax(high, series[k].x[i]);
        }
    if (input->machine) {
        enum { STEPS = 60 };
        double *x, *y;
        GET(x, arena_array(arena, STEPS, sizeof *x));
        GET(y, arena_array(arena, STEPS, sizeof *y));
        for (int i = 0; i < STEPS; i++) {
            x[i] = low / 2 * pow(high / low * 8, (double)i / (STEPS - 1));
            y[i] = x[i] / opprice_roofline(input->machine, input->rate, x[i], 1) * 1e-9;
        }
        series[count++] =
            (PlotSeries){.label = "roofline", .style = PLOT_LINE, .color = 6, .x = x, .y = y, .count = STEPS};
    }
    PlotFigure figure = {.name = "roofline",
                         .title = "Roofline of the ops",
                         .x_label = "intensity (flop / byte)",
                         .y_label = "achieved rate (GFLOP/s)",
                         .log_x = true,
                         .log_y = true,
                         .legend_left = true,
                         .series = series,
                         .count = count};
    return plot_figure(folder, &figure);
}

static bool pick_predicted(const OpRow *row, double *x, double *y)
{
    if (!(row->predicted_s > 0) || !(row->time_s > 0)) return false;
    *x = row->time_s * 1e3;
    *y = row->predicted_s * 1e3;
    return true;
}

Status report_plot_ops(const char *folder, const ReportInput *input, Arena *arena)
{
    PlotSeries series[COST_STAGE_COUNT + 1];
    int count = 0;
    TRY(stage_series(input, arena, pick_predicted, series, &count));
    double *line, low = INFINITY, high = 0;
    GET(line, arena_array(arena, 2, sizeof *line));
    for (int k = 0; k < count; k++)
        for (int64_t i = 0; i < series[k].count; i++) {
            low = fmin(low, fmin(series[k].x[i], series[k].y[i]));
            high = fmax(high, fmax(series[k].x[i], series[k].y[i]));
        }
    line[0] = low, line[1] = high;
    series[count++] =
        (PlotSeries){.label = "equal", .style = PLOT_DASHED, .color = 6, .x = line, .y = line, .count = 2};
    PlotFigure figure = {.name = "ops_predicted",
                         .title = "Predicted against measured time per op",
                         .x_label = "measured time per step (ms)",
                         .y_label = "predicted time per step (ms)",
                         .log_x = true,
                         .log_y = true,
                         .legend_left = true,
                         .series = series,
                         .count = count};
    return plot_figure(folder, &figure);
}

/* --- distributions over steps
 * ------------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Empirical distribution of a column over steps and ranks. */
static Status add_distribution(const StepRow *rows, int64_t count, bool wait, const char *label, int color,
                               Arena *arena, PlotSeries *series, int *used)
{
    double *x, *y;
    int64_t n = 0;
    if (count < 2) return OK;
    GET(x, arena_array(arena, (size_t)count, sizeof *x));
    GET(y, arena_array(arena, (size_t)count, sizeof *y));
    for (int64_t i = 0; i < count; i++) {
        double value = wait ? rows[i].phase_s[PHASE_DATA_WAIT] : rows[i].step_s;
        if (isfinite(value)) x[n++] = value;
    }
    qsort(x, (size_t)n, sizeof *x, compare);
    for (int64_t i = 0; i < n; i++) y[i] = 100.0 * (double)(i + 1) / (double)n;
    series[(*used)++] = (PlotSeries){.label = label, .style = PLOT_STEPS, .color = color, .x = x, .y = y, .count = n};
    return OK;
}

static Status plot_distribution(const char *folder, const ReportInput *input, Arena *arena, bool wait)
{
    PlotSeries series[2];
    int used = 0;
    bool both = input->step_blocking_count > 1;
    TRY(add_distribution(input->steps, input->step_count, wait, both ? "ready-first loader" : "this run", 0, arena,
                         series, &used));
    TRY(add_distribution(input->steps_blocking, input->step_blocking_count, wait, "blocking loader", 1, arena, series,
                         &used));
    if (!used) return status_fail(ERR_INPUT, "no steps");
    PlotFigure figure = {.name = wait ? "data_wait" : "step_distribution",
                         .title = wait ? "Wait for data per step" : "Distribution of step times",
                         .x_label = wait ? "wait (s)" : "step time (s)",
                         .y_label = "steps at most this long (%)",
                         .legend_bottom = true,
                         .y_from_zero = true,
                         .series = series,
                         .count = used};
    return plot_figure(folder, &figure);
}

Status report_plot_step_distribution(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_distribution(folder, input, arena, false);
}

Status report_plot_data_wait(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_distribution(folder, input, arena, true);
}

/* --- learning
 * ------------------------------------------------------------------------------------------------------------ */

static int64_t curve_count(const ReportInput *input)
{
    return input->curve_steps ? input->curve_step_count : input->step_count;
}

static const StepRow *curve_rows(const ReportInput *input)
{
    return input->curve_steps ? input->curve_steps : input->steps;
}

/* Loss of rank 0 against step or elapsed training time, with a running mean over a twentieth of the run. */
static Status plot_loss(const char *folder, const ReportInput *input, Arena *arena, bool time)
{
    double *x, *y, *mean, elapsed = 0;
    int64_t n = 0;
    GET(x, arena_array(arena, (size_t)curve_count(input) + 1, sizeof *x));
    GET(y, arena_array(arena, (size_t)curve_count(input) + 1, sizeof *y));
    GET(mean, arena_array(arena, (size_t)curve_count(input) + 1, sizeof *mean));
    for (int64_t i = 0; i < curve_count(input); i++) {
        const StepRow *row = &curve_rows(input)[i];
        if (row->rank != 0) continue;
        elapsed += row->step_s;
        if (!isfinite(row->loss)) continue;
        x[n] = time ? elapsed : (double)row->step;
        y[n++] = row->loss;
    }
    if (n < 2) return status_fail(ERR_INPUT, "no losses");
    int64_t window = n / 20 > 1 ? n / 20 : 1;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += y[i] - (i >= window ? y[i - window] : 0);
        mean[i] = sum / (double)(i < window ? i + 1 : window);
    }
    PlotSeries series[] = {{.label = "loss", .style = PLOT_LINE, .color = 5, .x = x, .y = y, .count = n},
                           {.label = "running mean", .style = PLOT_LINE, .color = 0, .x = x, .y = mean, .count = n}};
    PlotFigure figure = {.name = time ? "loss_time" : "loss_step",
                         .title = "Training loss",
                         .x_label = time ? "training time (s)" : "step",
                         .y_label = "loss",
                         .series = series,
                         .count = 2};
    return plot_figure(folder, &figure);
}

Status report_plot_loss_step(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_loss(folder, input, arena, false);
}

Status report_plot_loss_time(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_loss(folder, input, arena, true);
}

/* Time at which a step ended, from steps.csv, where eval.csv does not say. */
static double elapsed_at(const ReportInput *input, int64_t step)
{
    double elapsed = 0;
    for (int64_t i = 0; i < curve_count(input); i++)
        if (curve_rows(input)[i].rank == 0 && curve_rows(input)[i].step <= step) elapsed += curve_rows(input)[i].step_s;
    return elapsed;
}

static Status plot_lddt(const char *folder, const ReportInput *input, Arena *arena, bool time)
{
    double *x, *y, *low, *high;
    int64_t n = 0;
    GET(x, arena_array(arena, (size_t)input->eval_count + 1, sizeof *x));
    GET(y, arena_array(arena, (size_t)input->eval_count + 1, sizeof *y));
    GET(low, arena_array(arena, (size_t)input->eval_count + 1, sizeof *low));
    GET(high, arena_array(arena, (size_t)input->eval_count + 1, sizeof *high));
    for (int64_t i = 0; i < input->eval_count;) {
        /* chains of one evaluation stand together */
        int64_t step = input->evals[i].step, chains = 0;
        double when = input->evals[i].elapsed_s;
        low[n] = INFINITY, high[n] = -INFINITY, y[n] = 0;
        for (; i < input->eval_count && input->evals[i].step == step; i++, chains++) {
            y[n] += input->evals[i].lddt_ca;
            low[n] = fmin(low[n], input->evals[i].lddt_ca);
            high[n] = fmax(high[n], input->evals[i].lddt_ca);
        }
        y[n] /= (double)chains;
        x[n++] = !time ? (double)step : isfinite(when) ? when : elapsed_at(input, step);
    }
    if (n < 1) return status_fail(ERR_INPUT, "no evaluations");
    PlotSeries series[] = {
        {.label = "lowest to highest chain", .style = PLOT_BAND, .color = 2, .x = x, .y = low, .y2 = high, .count = n},
        {.label = "mean over chains", .style = PLOT_LINE_POINTS, .color = 2, .x = x, .y = y, .count = n}};
    PlotFigure figure = {.name = time ? "lddt_time" : "lddt_step",
                         .title = "Accuracy",
                         .legend_bottom = true,
                         .x_label = time ? "training time (s)" : "step",
                         .y_label = "lDDT-Ca",
                         .series = series,
                         .count = 2};
    return plot_figure(folder, &figure);
}

Status report_plot_lddt_step(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_lddt(folder, input, arena, false);
}

Status report_plot_lddt_time(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_lddt(folder, input, arena, true);
}
