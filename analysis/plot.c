#include "analysis/plot.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "analysis/process.h"
#include "analysis/table.h"

enum { PATH_BYTES = 4096, COLORS = 8 };

/* Okabe and Ito 2008, ordered so that neighbours differ in lightness */
static const char *const COLOR[COLORS] = {"#0072B2", "#D55E00", "#009E73", "#E69F00",
                                          "#CC79A7", "#56B4E9", "#000000", "#999999"};

static Status run_gnuplot(const char *folder, const char *script)
{
    char name[PATH_BYTES];
    if (snprintf(name, sizeof name, "%s", script) >= (int)sizeof name)
        return status_fail(ERR_USAGE, "plot: name too long");
    char *argv[] = {"gnuplot", name, NULL};
    char errors[PATH_BYTES];
    if (snprintf(errors, sizeof errors, "%s/%s.log", folder, script) >= (int)sizeof errors)
        return status_fail(ERR_USAGE, "plot: folder name too long: %.200s", folder);
    Status status = process_run(folder, argv, NULL, errors);
    if (status == ERR_UNSUPPORTED) return status_fail(status, "cannot start gnuplot: install gnuplot-nox");
    if (status != OK) {
        char text[300] = "";
        FILE *log = fopen(errors, "rb");
        size_t got = log ? fread(text, 1, sizeof text - 1, log) : 0;
        text[got] = '\0';
        for (char *c = text; *c; c++) /* the caret lines of gnuplot's messages are of no use in one line */
            if (*c == '\n') *c = ' ';
        if (log) fclose(log);
        return status_fail_at(status, errors, 0, "gnuplot failed: %s", text);
    }
    unlink(errors);
    return OK;
}

bool plot_available(void)
{
    char *argv[] = {"gnuplot", "--version", NULL};
    return process_run(NULL, argv, NULL, NULL) == OK;
}

/* Text inside a double-quoted gnuplot string: quotes, backslashes and control characters would end or change it. */
static void put_quoted(FILE *f, const char *text)
{
    fputc('"', f);
    for (; text && *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        if ((unsigned char)*text >= ' ') fputc(*text, f);
    }
    fputc('"', f);
}

static void put_setting(FILE *f, const char *setting, const char *text)
{
    fprintf(f, "set %s ", setting);
    put_quoted(f, text);
    fputc('\n', f);
}

static FILE *open_script(const char *folder, const char *name, char *path)
{
    if (snprintf(path, PATH_BYTES, "%s/%s.gp", folder, name) >= PATH_BYTES) return NULL;
    FILE *f = fopen(path, "wb");
    if (!f) return NULL;
    fputs("set terminal pngcairo size 1100,680 font \"DejaVu Sans,13\" noenhanced background \"#ffffff\"\n", f);
    fprintf(f, "set output \"%s.png\"\nset datafile separator comma\nset datafile missing \"\"\n", name);
    fputs("set border 3 lw 1.2\nset tics nomirror out\nset grid lc rgb \"#dddddd\" lw 1\n", f);
    fputs("set style fill solid 0.9 border lc rgb \"#ffffff\"\n", f);
    return f;
}

static Status finish_script(FILE *f, const char *folder, const char *name, const char *path)
{
    bool bad = ferror(f) != 0;
    if (fclose(f) || bad) return status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    char script[300];
    snprintf(script, sizeof script, "%.200s.gp", name);
    return run_gnuplot(folder, script);
}

static Status csv_path(const char *folder, const char *name, char *path)
{
    if (snprintf(path, PATH_BYTES, "%s/%s.csv", folder, name) >= PATH_BYTES)
        return status_fail(ERR_USAGE, "plot: folder name too long: %.200s", folder);
    return OK;
}

/* --- lines and points
 * ------------------------------------------------------------------------------------------------- */

static bool usable(const PlotFigure *g, const PlotSeries *s, int64_t i)
{
    if (!isfinite(s->x[i]) || !isfinite(s->y[i]) || (s->y2 && !isfinite(s->y2[i]))) return false;
    if (g->log_x && s->x[i] <= 0) return false;
    return !(g->log_y && (s->y[i] <= 0 || (s->style == PLOT_BAND && s->y2[i] <= 0)));
}

/* One block of rows per series; from_out and to_out are its first and last row, -1 for an empty one. */
static Status write_series(const char *folder, const PlotFigure *g, int64_t *from_out, int64_t *to_out)
{
    static const char *const names[] = {"series", "x", "y", "y2"};
    char path[PATH_BYTES];
    TRY(csv_path(folder, g->name, path));
    TableWriter *w;
    TRY(table_writer_create(path, names, 4, &w));
    int64_t row = 0;
    Status status = OK;
    for (int k = 0; k < g->count && status == OK; k++) {
        const PlotSeries *s = &g->series[k];
        from_out[k] = row;
        for (int64_t i = 0; i < s->count && status == OK; i++) {
            if (!usable(g, s, i)) continue;
            table_put_text(w, s->label ? s->label : "");
            table_put_double(w, s->x[i]);
            table_put_double(w, s->y[i]);
            table_put_double(w, s->y2 ? s->y2[i] : NAN);
            status = table_writer_row(w);
            row++;
        }
        to_out[k] = row - 1;
        if (to_out[k] < from_out[k]) from_out[k] = to_out[k] = -1;
    }
    if (status != OK) {
        table_writer_abandon(&w);
        return status;
    }
    TRY(table_writer_close(&w));
    if (row == 0) return status_fail_at(ERR_INPUT, path, 0, "nothing to plot");
    return OK;
}

static void put_style(FILE *f, const PlotSeries *s)
{
    const char *color = COLOR[(unsigned)s->color % COLORS];
    switch (s->style) {
    case PLOT_POINTS:
        fprintf(f, "using 2:3 with points pt 7 ps 1.5 lc rgb \"%s\"", color);
        break;
    case PLOT_LINE:
        fprintf(f, "using 2:3 with lines lw 2.5 lc rgb \"%s\"", color);
        break;
    case PLOT_LINE_POINTS:
        fprintf(f, "using 2:3 with linespoints lw 2.5 pt 7 ps 1.1 lc rgb \"%s\"", color);
        break;
    case PLOT_DASHED:
        fprintf(f, "using 2:3 with lines lw 2 dt 2 lc rgb \"%s\"", color);
        break;
    case PLOT_STEPS:
        fprintf(f, "using 2:3 with steps lw 2.5 lc rgb \"%s\"", color);
        break;
    case PLOT_BARS:
        fprintf(f, "using 2:3:4 with yerrorbars pt 7 ps 1.3 lw 1.5 lc rgb \"%s\"", color);
        break;
    case PLOT_BAND:
        fprintf(f, "using 2:3:4 with filledcurves fill transparent solid 0.22 noborder lc rgb \"%s\"", color);
        break;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Ticks where the data are; on a logarithmic axis those closer than a factor of 1.6 to the one before would overlap. */
static void put_ticks(FILE *f, const PlotFigure *g)
{
    double tick[512];
    int count = 0;
    for (int k = 0; k < g->x_ticks && count < 512; k++) tick[count++] = g->x_tick[k];
    for (int k = 0; !g->x_ticks && k < g->count; k++)
        for (int64_t i = 0; i < g->series[k].count && count < 512; i++)
            if (usable(g, &g->series[k], i)) tick[count++] = g->series[k].x[i];
    qsort(tick, (size_t)count, sizeof *tick, compare);
    fputs("set xtics (", f);
    double last = NAN;
    int put = 0;
    double span = count > 1 ? tick[count - 1] - tick[0] : 1;
    for (int i = 0; i < count; i++) {
        if (!isnan(last) && (g->log_x ? tick[i] < last * 1.6 : tick[i] < last + span / 20)) continue;
        fprintf(f, "%s\"%g\" %.17g", put++ ? ", " : "", tick[i], tick[i]);
        last = tick[i];
    }
    fputs(")\n", f);
}

/* Fewer than two decades: 1, 2 and 5 of each, since powers of ten alone would leave one or two labels. */
static void put_log_ticks(FILE *f, const char *axis, double low, double high)
{
    static const double lead[] = {1, 2, 5};
    if (high / low > 100) return;
    fprintf(f, "set %stics (", axis);
    int put = 0;
    for (int power = (int)floor(log10(low)); power <= (int)ceil(log10(high)); power++)
        for (int k = 0; k < 3; k++) {
            double tick = lead[k] * pow(10, power);
            if (tick >= low && tick <= high) fprintf(f, "%s\"%g\" %.17g", put++ ? ", " : "", tick, tick);
        }
    fputs(")\n", f);
}

/* Axis limits around the data: gnuplot's own end at the next round tick, on a logarithmic axis a decade away. */
static void put_range(FILE *f, const char *axis, double low, double high, bool log_axis, bool from_zero)
{
    if (log_axis) {
        double room = pow(high / low, 0.05) * 1.05;
        fprintf(f, "set %srange [%.17g:%.17g]\n", axis, low / room, high * room);
        put_log_ticks(f, axis, low / room, high * room);
        return;
    }
    double room = high > low ? 0.04 * (high - low) : fmax(0.1 * fabs(high), 1e-12);
    if (from_zero && low >= 0)
        fprintf(f, "set %srange [0:%.17g]\n", axis, high + room);
    else
        fprintf(f, "set %srange [%.17g:%.17g]\n", axis, low - room, high + room);
}

static void put_ranges(FILE *f, const PlotFigure *g)
{
    double low[2] = {INFINITY, INFINITY}, high[2] = {-INFINITY, -INFINITY};
    for (int k = 0; k < g->count; k++) {
        const PlotSeries *s = &g->series[k];
        for (int64_t i = 0; i < s->count; i++) {
            if (!usable(g, s, i)) continue;
            double top = s->y[i], bottom = s->y[i];
            if (s->style == PLOT_BAND) bottom = fmin(top, s->y2[i]), top = fmax(top, s->y2[i]);
            if (s->style == PLOT_BARS && s->y2) bottom -= s->y2[i], top += s->y2[i];
            if (g->log_y && bottom <= 0) bottom = top;
            low[0] = fmin(low[0], s->x[i]), high[0] = fmax(high[0], s->x[i]);
            low[1] = fmin(low[1], bottom), high[1] = fmax(high[1], top);
        }
    }
    put_range(f, "x", low[0], high[0], g->log_x, false);
    put_range(f, "y", low[1], high[1], g->log_y, g->y_from_zero);
}

Status plot_figure(const char *folder, const PlotFigure *g)
{
    int64_t from[64], to[64];
    if (g->count < 1 || g->count > 64) return status_fail(ERR_INTERNAL, "plot %s: %d series", g->name, g->count);
    TRY(write_series(folder, g, from, to));
    char path[PATH_BYTES];
    FILE *f = open_script(folder, g->name, path);
    if (!f) return status_fail_at(ERR_IO, folder, 0, "cannot write %s.gp: %s", g->name, strerror(errno));
    put_setting(f, "title", g->title);
    put_setting(f, "xlabel", g->x_label);
    put_setting(f, "ylabel", g->y_label);
    if (g->log_x) fputs("set logscale x\n", f);
    if (g->log_y) fputs("set logscale y\nset format y \"%g\"\n", f);
    put_ranges(f, g);
    if (g->integer_ticks) put_ticks(f, g);
    int entries = 0;
    for (int k = 0; k < g->count; k++) entries += from[k] >= 0 && g->series[k].label;
    if (entries > 5)
        fprintf(f, "set key below vertical maxrows %d Left reverse samplen 2 width -2 font \",11\"\n",
                (entries + 1) / 2);
    else
        fprintf(f, "set key %s %s box lc rgb \"#cccccc\" opaque samplen 2.5 width 1\n",
                g->legend_left ? "left" : "right", g->legend_bottom ? "bottom" : "top");
    fputs("plot ", f);
    bool first = true;
    for (int k = 0; k < g->count; k++) {
        if (from[k] < 0) continue;
        fprintf(f, "%s\"%s.csv\" skip 1 every ::%lld::%lld ", first ? "" : ", \\\n     ", g->name, (long long)from[k],
                (long long)to[k]);
        put_style(f, &g->series[k]);
        if (g->series[k].label) {
            fputs(" title ", f);
            put_quoted(f, g->series[k].label);
        } else {
            fputs(" notitle", f);
        }
        first = false;
    }
    fputc('\n', f);
    return finish_script(f, folder, g->name, path);
}

/* --- bars
 * --------------------------------------------------------------------------------------------------------------- */

static Status write_bars(const char *folder, const PlotBars *b)
{
    enum { LIMIT = 40 };
    const char *names[LIMIT];
    char path[PATH_BYTES];
    TRY(csv_path(folder, b->name, path));
    if (b->stacks < 1 || b->stacks > LIMIT - 4 || b->categories < 1)
        return status_fail_at(ERR_INPUT, path, 0, "%d bars of %d parts", b->categories, b->stacks);
    names[0] = "category";
    for (int k = 0; k < b->stacks; k++) names[1 + k] = b->stack[k];
    names[b->stacks + 1] = "total", names[b->stacks + 2] = "low", names[b->stacks + 3] = "high";
    TableWriter *w;
    TRY(table_writer_create(path, names, b->stacks + 4, &w));
    for (int c = 0; c < b->categories; c++) {
        double total = 0;
        table_put_text(w, b->category[c]);
        for (int k = 0; k < b->stacks; k++) {
            double value = b->value[c * b->stacks + k];
            value = isfinite(value) && value > 0 ? value : 0;
            table_put_double(w, value);
            total += value;
        }
        table_put_double(w, total);
        table_put_double(w, b->low ? b->low[c] : NAN);
        table_put_double(w, b->high ? b->high[c] : NAN);
        Status status = table_writer_row(w);
        if (status != OK) {
            table_writer_abandon(&w);
            return status;
        }
    }
    return table_writer_close(&w);
}

Status plot_bars(const char *folder, const PlotBars *b)
{
    TRY(write_bars(folder, b));
    char path[PATH_BYTES];
    FILE *f = open_script(folder, b->name, path);
    if (!f) return status_fail_at(ERR_IO, folder, 0, "cannot write %s.gp: %s", b->name, strerror(errno));
    put_setting(f, "title", b->title);
    put_setting(f, "xlabel", b->x_label);
    put_setting(f, "ylabel", b->y_label);
    fputs("set style data histograms\nset style histogram rowstacked\nset boxwidth 0.7\nset yrange [0:*]\n", f);
    fputs("set offsets 0, 0, graph 0.08, 0\nset grid noxtics ytics lc rgb \"#dddddd\"\n", f);
    if (!b->horizontal_names) fputs("set xtics rotate by -25 left\n", f);
    fprintf(f, "set rmargin %d\n", b->stacks > 1 ? 24 : 9); /* the key stands there */
    if (b->stacks > 1) fputs("set key outside right top vertical Left reverse invert samplen 1.5 width 1\n", f);
    if (b->stacks == 1) fputs("set key off\n", f);
    fputs("plot ", f);
    for (int k = 0; k < b->stacks; k++) {
        fprintf(f, "%s\"%s.csv\" skip 1 using %d:xtic(1) lc rgb \"%s\" title ", k ? ", \\\n     " : "", b->name, k + 2,
                COLOR[(unsigned)k % COLORS]);
        put_quoted(f, b->stack[k]);
    }
    if (b->low && b->high)
        fprintf(f,
                ", \\\n     \"%s.csv\" skip 1 using 0:%d:%d:%d with yerrorbars pt 0 lw 1.5 lc rgb \"#000000\" title "
                "\"90 %% interval\"",
                b->name, b->stacks + 2, b->stacks + 3, b->stacks + 4);
    if (b->show_total)
        fprintf(f, ", \\\n     \"%s.csv\" skip 1 using 0:%d:(sprintf(\"%%.3g\", $%d)) with labels offset 0,0.8 notitle",
                b->name, b->low ? b->stacks + 4 : b->stacks + 2, b->stacks + 2);
    fputc('\n', f);
    return finish_script(f, folder, b->name, path);
}
