/* Plots through gnuplot. Each one leaves three files beside one another: NAME.csv (the numbers), NAME.gp (the script,
 * run again with `gnuplot NAME.gp` in that folder) and NAME.png. */
#ifndef FOLDSCALE_ANALYSIS_PLOT_H
#define FOLDSCALE_ANALYSIS_PLOT_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/status.h"

typedef enum PlotStyle {
    PLOT_POINTS,
    PLOT_LINE,
    PLOT_LINE_POINTS,
    PLOT_DASHED,
    PLOT_BAND, /* between y and y2 */
    PLOT_BARS, /* points with vertical bars from y - y2 to y + y2 */
    PLOT_STEPS
} PlotStyle;

typedef struct PlotSeries {
    const char *label; /* in the legend; NULL: none */
    PlotStyle style;
    int color; /* 0..7, a palette that survives grey print and colour blindness (Okabe and Ito) */
    const double *x, *y, *y2;
    int64_t count;
} PlotSeries;

typedef struct PlotFigure {
    const char *name, *title, *x_label, *y_label; /* labels with units */
    bool log_x, log_y, y_from_zero;
    bool integer_ticks; /* a tick at each x that occurs, or at x_tick[x_ticks] where given */
    const double *x_tick;
    int x_ticks;
    bool legend_left, legend_bottom; /* default: right, top; more than five entries go below the plot */
    const PlotSeries *series;
    int count;
} PlotFigure;

/* Values that are not finite, or not positive on a logarithmic axis, are left out. ERR_INPUT when nothing remains. */
Status plot_figure(const char *folder, const PlotFigure *figure);

/* Bars, one per category, stacked from `stacks` parts; value[category * stacks + stack]. */
typedef struct PlotBars {
    const char *name, *title, *x_label, *y_label;
    const char *const *category;
    int categories;
    const char *const *stack;
    int stacks;
    const double *value;
    const double *low, *high; /* [categories] interval of the whole bar, or NULL */
    bool show_total;          /* the sum above each bar */
    bool horizontal_names;    /* category names fit side by side; default: slanted */
} PlotBars;
Status plot_bars(const char *folder, const PlotBars *bars);

/* Whether gnuplot can be started. */
bool plot_available(void);

#endif
