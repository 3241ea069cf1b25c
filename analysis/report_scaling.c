/* Plots of runs and predictions: waterfall, strong scaling, step breakdown, residuals, time to train. */
#include "analysis/report_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analysis/plot.h"

static const char *const PHASE_LABELS[SCHEMA_PHASE_COUNT] = {
    "data wait", "forward, no grad", "forward", "backward", "communication", "optimizer", "evaluation", "other"};

#define GET(pointer, call)                                                                                             \
    do {                                                                                                               \
        (pointer) = (call);                                                                                            \
        if (!(pointer)) return status_fail(ERR_MEMORY, "report: out of memory");                                       \
    } while (0)

static Status plot_phases(const char *folder, const PlotBars *bars, const RunGroup **list, int count, Arena *arena)
{
    double *value, *low, *high;
    GET(value, arena_array(arena, (size_t)count * SCHEMA_PHASE_COUNT, sizeof *value));
    GET(low, arena_array(arena, (size_t)count, sizeof *low));
    GET(high, arena_array(arena, (size_t)count, sizeof *high));
    for (int i = 0; i < count; i++)
        for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) value[i * SCHEMA_PHASE_COUNT + p] = list[i]->phase_s[p];
    PlotBars b = *bars;
    b.categories = count;
    b.stack = PHASE_LABELS;
    b.stacks = SCHEMA_PHASE_COUNT;
    b.value = value;
    b.show_total = true;
    return plot_bars(folder, &b);
}

Status report_plot_waterfall(const char *folder, const ReportInput *input, Arena *arena)
{
    RunGroup *groups;
    const RunGroup **list;
    const char **label;
    int count, used;
    char title[160];
    TRY(report_group_runs(input, arena, &groups, &count));
    TRY(report_ablation(groups, count, arena, &list, &label, &used));
    snprintf(title, sizeof title, "Ablation: mean step time on %lld rank%s, DAP %lld (%.40s)",
             (long long)list[0]->first->ranks, list[0]->first->ranks == 1 ? "" : "s", (long long)list[0]->first->dap,
             list[0]->first->device);
    PlotBars bars = {
        .name = "waterfall", .title = title, .x_label = "switches", .y_label = "step time (s)", .category = label};
    return plot_phases(folder, &bars, list, used, arena);
}

Status report_plot_measured_breakdown(const char *folder, const ReportInput *input, Arena *arena)
{
    RunGroup *groups;
    const RunGroup **list;
    int count, used;
    TRY(report_group_runs(input, arena, &groups, &count));
    TRY(report_scaling(groups, count, arena, &list, &used));
    const char **label;
    GET(label, arena_array(arena, (size_t)used, sizeof *label));
    for (int i = 0; i < used; i++)
        GET(label[i],
            arena_printf(arena, "%lld (DAP %lld)", (long long)list[i]->first->ranks, (long long)list[i]->first->dap));
    PlotBars bars = {.name = "breakdown_measured",
                     .title = "Measured step by phase",
                     .x_label = "ranks",
                     .y_label = "step time (s)",
                     .category = label,
                     .horizontal_names = used <= 8};
    return plot_phases(folder, &bars, list, used, arena);
}

/* --- scaling curves
 * --------------------------------------------------------------------------------------------------- */

/* One curve of predictions: rows of one machine and DAP degree. */
typedef struct Curve {
    const char *machine, *label;
    int64_t dap;
    double *x, *y, *low, *high;
    int count;
} Curve;

enum { CURVE_LIMIT = 8 };

static Status collect_curves(const ReportInput *input, Arena *arena, bool per_sample, Curve *curve, int *count_out)
{
    int count = 0;
    for (int64_t r = 0; r < input->prediction_count; r++) {
        const PredictionRow *row = &input->predictions[r];
        Curve *c = NULL;
        for (int k = 0; k < count && !c; k++)
            if (curve[k].dap == row->dap && !strcmp(curve[k].machine, row->machine)) c = &curve[k];
        if (!c && count == CURVE_LIMIT) continue;
        if (!c) {
            c = &curve[count++];
            *c = (Curve){.machine = row->machine, .dap = row->dap};
            GET(c->label, arena_printf(arena, "predicted, %.30s, DAP %lld", row->machine, (long long)row->dap));
            size_t n = (size_t)input->prediction_count;
            GET(c->x, arena_array(arena, n, sizeof *c->x));
            GET(c->y, arena_array(arena, n, sizeof *c->y));
            GET(c->low, arena_array(arena, n, sizeof *c->low));
            GET(c->high, arena_array(arena, n, sizeof *c->high));
        }
        /* several switch settings at one count: the fastest, which is the one a user would run */
        double unit = per_sample ? 1 / (double)row->dp : 1;
        int at = -1;
        for (int i = 0; i < c->count && at < 0; i++)
            if (c->x[i] == (double)row->gpus) at = i;
        if (at >= 0 && c->y[at] <= row->step_s * unit) continue;
        if (at < 0) at = c->count++;
        c->x[at] = (double)row->gpus;
        c->y[at] = row->step_s * unit;
        c->low[at] = row->lo90_s * unit;
        c->high[at] = row->hi90_s * unit;
    }
    *count_out = count;
    return OK;
}

/* Insertion sort by x of four parallel arrays: a few dozen points. */
static void sort_curve(Curve *c)
{
    for (int i = 1; i < c->count; i++)
        for (int j = i; j > 0 && c->x[j] < c->x[j - 1]; j--) {
            double *arrays[] = {c->x, c->y, c->low, c->high};
            for (int k = 0; k < 4; k++) {
                double swap = arrays[k][j];
                arrays[k][j] = arrays[k][j - 1];
                arrays[k][j - 1] = swap;
            }
        }
}

static Status add_measured(const ReportInput *input, Arena *arena, bool per_sample, PlotSeries *series, int *count)
{
    RunGroup *groups;
    const RunGroup **list;
    int all, used;
    double *x, *y;
    if (input->run_count < 1) return OK;
    TRY(report_group_runs(input, arena, &groups, &all));
    TRY(report_scaling(groups, all, arena, &list, &used));
    /* one series per DAP degree: they are different programs */
    static const int colors[] = {6, 3, 4, 1};
    int degrees = 0;
    for (int64_t dap = 1, left = used; left > 0 && dap < 1 << 20; dap++) {
        int n = 0;
        for (int i = 0; i < used; i++) n += list[i]->first->dap == dap;
        if (!n) continue;
        left -= n;
        if (degrees == 4) break;
        const char *label;
        GET(x, arena_array(arena, (size_t)n, sizeof *x));
        GET(y, arena_array(arena, (size_t)n, sizeof *y));
        GET(label, arena_printf(arena, "measured, DAP %lld", (long long)dap));
        n = 0;
        for (int i = 0; i < used; i++) {
            if (list[i]->first->dap != dap) continue;
            x[n] = (double)list[i]->first->ranks;
            y[n++] = per_sample ? list[i]->sample_s : list[i]->step_s;
        }
        series[(*count)++] =
            (PlotSeries){.label = label, .style = PLOT_POINTS, .color = colors[degrees++], .x = x, .y = y, .count = n};
    }
    return OK;
}

static Status add_published(const ReportInput *input, Arena *arena, bool per_sample, PlotSeries *series, int *count)
{
    for (int i = 0; i < input->published_count && i < 6; i++) {
        const PublishedPoint *p = &input->published[i];
        double *xy;
        if (per_sample && !(p->batch > 0)) continue;
        GET(xy, arena_array(arena, 2, sizeof *xy));
        xy[0] = p->gpus;
        xy[1] = per_sample ? p->step_s / p->batch : p->step_s;
        series[(*count)++] =
            (PlotSeries){.label = p->label, .style = PLOT_POINTS, .color = 1 + i % 5, .x = xy, .y = xy + 1, .count = 1};
    }
    return OK;
}

/* From the first predicted point of the first curve: time per sample falls as 1 / N. */
static Status add_ideal(const Curve *c, Arena *arena, PlotSeries *series, int *count)
{
    double *x, *y;
    if (c->count < 2) return OK;
    GET(x, arena_array(arena, 2, sizeof *x));
    GET(y, arena_array(arena, 2, sizeof *y));
    x[0] = c->x[0], x[1] = c->x[c->count - 1];
    y[0] = c->y[0], y[1] = c->y[0] * x[0] / x[1];
    series[(*count)++] = (PlotSeries){.label = "ideal", .style = PLOT_DASHED, .color = 7, .x = x, .y = y, .count = 2};
    return OK;
}

static Status plot_scaling(const char *folder, const ReportInput *input, Arena *arena, bool per_sample)
{
    Curve curve[CURVE_LIMIT];
    PlotSeries series[2 * CURVE_LIMIT + 12];
    int curves = 0, count = 0;
    TRY(collect_curves(input, arena, per_sample, curve, &curves));
    for (int k = 0; k < curves; k++) {
        Curve *c = &curve[k];
        sort_curve(c);
        series[count++] = (PlotSeries){.label = k == 0 ? "90 % interval" : NULL,
                                       .style = PLOT_BAND,
                                       .color = k,
                                       .x = c->x,
                                       .y = c->low,
                                       .y2 = c->high,
                                       .count = c->count};
        series[count++] =
            (PlotSeries){.label = c->label, .style = PLOT_LINE, .color = k, .x = c->x, .y = c->y, .count = c->count};
    }
    if (per_sample && curves > 0) TRY(add_ideal(&curve[0], arena, series, &count));
    TRY(add_measured(input, arena, per_sample, series, &count));
    TRY(add_published(input, arena, per_sample, series, &count));
    if (count == 0) return status_fail(ERR_INPUT, "neither runs nor predictions");
    PlotFigure figure = {.name = per_sample ? "strong_scaling" : "step_time",
                         .title = per_sample ? "Strong scaling: time per training sample" : "Step time",
                         .x_label = "GPUs (ranks)",
                         .y_label = per_sample ? "step time / samples in the step (s)" : "step time (s)",
                         .log_x = true,
                         .log_y = true,
                         .integer_ticks = true,
                         .series = series,
                         .count = count};
    return plot_figure(folder, &figure);
}

Status report_plot_scaling(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_scaling(folder, input, arena, true);
}

Status report_plot_step_time(const char *folder, const ReportInput *input, Arena *arena)
{
    return plot_scaling(folder, input, arena, false);
}

/* --- predicted parts
 * ---------------------------------------------------------------------------------------------------- */

Status report_plot_breakdown(const char *folder, const ReportInput *input, Arena *arena)
{
    static const char *const parts[] = {"serial", "compute", "communication", "straggler", "loader", "host"};
    enum { PARTS = 6, LIMIT = 16 };
    if (input->prediction_count < 1) return status_fail(ERR_INPUT, "no predictions");
    const char *label[LIMIT];
    double value[LIMIT * PARTS], low[LIMIT], high[LIMIT];
    int used = 0;
    const char *machine = input->predictions[0].machine;
    int64_t rows = 0, at = 0;
    for (int64_t r = 0; r < input->prediction_count; r++) rows += !strcmp(input->predictions[r].machine, machine);
    /* more bars than fit: every second or third, and always the last of each DAP degree */
    int64_t stride = (rows + LIMIT - 3) / (LIMIT - 2);
    for (int64_t r = 0; r < input->prediction_count && used < LIMIT; r++) {
        const PredictionRow *p = &input->predictions[r];
        if (strcmp(p->machine, machine)) continue;
        bool last = r + 1 == input->prediction_count || input->predictions[r + 1].dap != p->dap;
        if (at++ % stride && !last) continue;
        if (last) at = 0;
        GET(label[used], arena_printf(arena, "%lld (DAP %lld)", (long long)p->gpus, (long long)p->dap));
        const double row[PARTS] = {p->serial_s,    p->compute_s, p->comm_exposed_s,
                                   p->straggler_s, p->loader_s,  p->host_s};
        memcpy(value + used * PARTS, row, sizeof row);
        low[used] = p->lo90_s;
        high[used++] = p->hi90_s;
    }
    char title[120];
    snprintf(title, sizeof title, "Predicted step by part (%.60s)", machine);
    PlotBars bars = {.name = "breakdown",
                     .title = title,
                     .x_label = "GPUs",
                     .y_label = "step time (s)",
                     .category = label,
                     .categories = used,
                     .stack = parts,
                     .stacks = PARTS,
                     .value = value,
                     .low = low,
                     .high = high,
                     .show_total = true,
                     .horizontal_names = used <= 6};
    return plot_bars(folder, &bars);
}

Status report_plot_residuals(const char *folder, const ReportInput *input, Arena *arena)
{
    static const char *const what[] = {"step", "compute", "communication", "loader", "host"};
    enum { KINDS = 5 };
    if (!input->fit || input->fit->residuals < 1 || input->point_count < 1) return status_fail(ERR_INPUT, "no fit");
    PlotSeries series[KINDS + 1];
    int count = 0;
    double *line;
    GET(line, arena_array(arena, 4, sizeof *line));
    line[0] = input->fit->n_min, line[1] = input->fit->n_max;
    double *ranks;
    GET(ranks, arena_array(arena, (size_t)input->point_count, sizeof *ranks));
    for (int i = 0; i < input->point_count; i++) ranks[i] = input->points[i].shape.ranks;
    for (int k = 0; k < KINDS; k++) {
        double *x, *y;
        int64_t used = 0;
        GET(x, arena_array(arena, (size_t)input->fit->residuals, sizeof *x));
        GET(y, arena_array(arena, (size_t)input->fit->residuals, sizeof *y));
        for (int r = 0; r < input->fit->residuals; r++) {
            const FitResidual *e = &input->fit->residual[r];
            if (strcmp(e->what, what[k]) || e->point >= input->point_count) continue;
            /* phases side by side rather than on top of one another */
            x[used] = input->points[e->point].shape.ranks * (1 + 0.03 * (k - 2));
            y[used++] = e->standardized;
        }
        if (used)
            series[count++] =
                (PlotSeries){.label = what[k], .style = PLOT_POINTS, .color = k, .x = x, .y = y, .count = used};
    }
    series[count++] = (PlotSeries){.style = PLOT_DASHED, .color = 6, .x = line, .y = line + 2, .count = 2};
    PlotFigure figure = {.name = "residuals",
                         .title = "Residuals of the fit",
                         .x_label = "ranks",
                         .y_label = "measured off fitted, in standard deviations",
                         .integer_ticks = true,
                         .x_tick = ranks,
                         .x_ticks = input->point_count,
                         .log_x = input->fit->n_max > input->fit->n_min,
                         .series = series,
                         .count = count};
    return plot_figure(folder, &figure);
}

Status report_plot_train_time(const char *folder, const ReportInput *input, Arena *arena)
{
    static const char *const parts[] = {"start-up", "warm-up", "steps", "stalls", "last evaluation"};
    enum { PARTS = 5 };
    int n = input->train_time_count;
    if (n < 1) return status_fail(ERR_INPUT, "no time to train was computed");
    double *value, *low, *high;
    GET(value, arena_array(arena, (size_t)n * PARTS, sizeof *value));
    GET(low, arena_array(arena, (size_t)n, sizeof *low));
    GET(high, arena_array(arena, (size_t)n, sizeof *high));
    for (int i = 0; i < n; i++) {
        const TrainTime *t = &input->train_times[i];
        const double row[PARTS] = {t->startup_s / 60, t->warmup_s / 60, t->steps_s / 60, t->gaps_s / 60,
                                   t->eval_s / 60};
        memcpy(value + i * PARTS, row, sizeof row);
        low[i] = t->lo90_s / 60;
        high[i] = t->hi90_s / 60;
    }
    PlotBars bars = {.name = "time_to_train",
                     .title = "Time to train",
                     .x_label = "configuration",
                     .y_label = "minutes",
                     .category = input->train_labels,
                     .categories = n,
                     .stack = parts,
                     .stacks = PARTS,
                     .value = value,
                     .low = low,
                     .high = high,
                     .show_total = true,
                     .horizontal_names = n <= 4};
    return plot_bars(folder, &bars);
}
