#include "analysis/report_internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/plot.h"
#include "engine/output.h"

typedef struct Entry {
    Status (*plot)(const char *folder, const ReportInput *input, Arena *arena);
    const char *name, *title, *caption;
} Entry;

static const Entry ENTRIES[] = {
    {report_plot_waterfall, "waterfall", "Ablation",
     "Mean step time at each switch setting, by phase; the number above a bar is the whole step in seconds."},
    {report_plot_scaling, "strong_scaling", "Strong scaling",
     "Step time divided by the samples of the step, so that runs with different batches compare. Band: 90 % prediction "
     "interval. Published points belong to other codes and are there for orientation, not fitted."},
    {report_plot_step_time, "step_time", "Step time", "The same runs and predictions, not divided by the batch."},
    {report_plot_breakdown, "breakdown", "Predicted step by part", "Parts of the predicted step against GPU count."},
    {report_plot_measured_breakdown, "breakdown_measured", "Measured step by phase", "Means over repeats."},
    {report_plot_train_time, "time_to_train", "Time to train", "Start-up, steps, stalls and the deciding evaluation."},
    {report_plot_residuals, "residuals", "Residuals of the fit",
     "Every row of the fit, in standard deviations; structure against the number of ranks would mean that the form is "
     "wrong."},
    {report_plot_ops, "ops_predicted", "Predicted against measured time per op",
     "One point per op of the profile, to which the prices were fitted."},
    {report_plot_roofline, "roofline", "Roofline of the ops", "Achieved rate against arithmetic intensity."},
    {report_plot_step_distribution, "step_distribution", "Distribution of step times", "All steps and ranks."},
    {report_plot_data_wait, "data_wait", "Wait for data", "All steps and ranks."},
    {report_plot_loss_step, "loss_step", "Loss against step", ""},
    {report_plot_loss_time, "loss_time", "Loss against time", ""},
    {report_plot_lddt_step, "lddt_step", "lDDT-Ca against step", ""},
    {report_plot_lddt_time, "lddt_time", "lDDT-Ca against time", ""},
};

enum { ENTRY_COUNT = sizeof ENTRIES / sizeof ENTRIES[0] };

static void put_escaped(FILE *f, const char *text)
{
    for (; *text; text++) switch (*text) {
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '&':
            fputs("&amp;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        default:
            fputc(*text, f);
        }
}

/* RFC 4648 */
static void put_base64(FILE *f, const unsigned char *data, size_t length)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        unsigned value = (unsigned)data[i] << 16;
        if (i + 1 < length) value |= (unsigned)data[i + 1] << 8;
        if (i + 2 < length) value |= data[i + 2];
        fputc(digit[value >> 18], f);
        fputc(digit[value >> 12 & 63], f);
        fputc(i + 1 < length ? digit[value >> 6 & 63] : '=', f);
        fputc(i + 2 < length ? digit[value & 63] : '=', f);
    }
}

static Status put_image(FILE *f, const char *folder, const char *name, const char *title)
{
    char path[4096];
    snprintf(path, sizeof path, "%.3900s/%.100s.png", folder, name);
    FILE *image = fopen(path, "rb");
    if (!image) return status_fail_at(ERR_IO, path, 0, "gnuplot left no image: %s", strerror(errno));
    long size = fseek(image, 0, SEEK_END) == 0 ? ftell(image) : -1;
    unsigned char *data = size > 0 ? malloc((size_t)size) : NULL;
    bool good = data && fseek(image, 0, SEEK_SET) == 0 && fread(data, 1, (size_t)size, image) == (size_t)size;
    fclose(image);
    if (good) {
        fputs("<img alt=\"", f);
        put_escaped(f, title);
        fputs("\" src=\"data:image/png;base64,", f);
        put_base64(f, data, (size_t)size);
        fputs("\">\n", f);
    }
    free(data);
    return good ? OK : status_fail_at(ERR_IO, path, 0, "cannot read the image (%ld bytes)", size);
}

static void put_head(FILE *f, const ReportInput *input)
{
    const char *title = input->title ? input->title : "foldscale report";
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>", f);
    put_escaped(f, title);
    fputs("</title>\n<style>body{font:16px/1.5 sans-serif;max-width:1140px;margin:2em auto;padding:0 1em;color:#222}"
          "img{max-width:100%;border:1px solid #ddd}figure{margin:1.5em 0}figcaption{color:#555;font-size:14px}"
          "table{border-collapse:collapse;font-size:14px}td,th{border:1px solid #ccc;padding:3px 8px;text-align:right}"
          "th:first-child,td:first-child{text-align:left}.flag{background:#fff3d6}</style></head><body>\n<h1>",
          f);
    put_escaped(f, title);
    fputs("</h1>\n", f);
}

static void put_predictions(FILE *f, const ReportInput *input)
{
    enum { ROW_LIMIT = 200 };
    if (input->prediction_count < 1) return;
    fputs("<h2>Predictions</h2>\n<table><tr><th>machine</th><th>GPUs</th><th>DP x DAP</th><th>step (s)</th><th>90 % "
          "interval "
          "(s)</th><th>N / N max</th><th>note</th></tr>\n",
          f);
    for (int64_t r = 0; r < input->prediction_count && r < ROW_LIMIT; r++) {
        const PredictionRow *p = &input->predictions[r];
        fprintf(f, "<tr%s><td>", p->flagged ? " class=\"flag\"" : "");
        put_escaped(f, p->machine);
        fprintf(f, "</td><td>%lld</td><td>%lld x %lld</td><td>%.4g</td><td>%.4g to %.4g</td><td>%.3g</td><td>",
                (long long)p->gpus, (long long)p->dp, (long long)p->dap, p->step_s, p->lo90_s, p->hi90_s,
                p->n_over_nmax);
        put_escaped(f, p->note ? p->note : "");
        fputs("</td></tr>\n", f);
    }
    fputs("</table>\n", f);
    if (input->prediction_count > ROW_LIMIT)
        fprintf(f, "<p>The first %d of %lld rows; predictions.csv has all of them.</p>\n", (int)ROW_LIMIT,
                (long long)input->prediction_count);
}

static Status put_diagnostics(FILE *f, const ReportInput *input)
{
    if (!input->fit || input->point_count < 1) return OK;
    char *text = NULL;
    size_t size = 0;
    FILE *memory = open_memstream(&text, &size);
    if (!memory) return status_fail(ERR_MEMORY, "report: out of memory");
    Status status = fit_print(input->fit, input->points, input->point_count, memory);
    fclose(memory);
    if (status == OK) {
        fputs("<h2>Diagnostics of the fit</h2>\n<pre>", f);
        put_escaped(f, text);
        fputs("</pre>\n", f);
    }
    free(text);
    return status;
}

static Status put_plots(FILE *f, const char *folder, const ReportInput *input)
{
    Arena arena = {0};
    char missing[2048] = "";
    size_t used = 0;
    Status status = OK;
    for (int i = 0; i < ENTRY_COUNT && status == OK; i++) {
        const Entry *e = &ENTRIES[i];
        status = e->plot(folder, input, &arena);
        if (status == ERR_INPUT) { /* its data are not there */
            used += (size_t)snprintf(missing + used, sizeof missing - used, "<li>%s: %.100s</li>\n", e->title,
                                     status_text());
            if (used >= sizeof missing) used = sizeof missing - 1;
            status = OK;
            continue;
        }
        if (status != OK) break;
        fprintf(f, "<figure><h2>%s</h2>\n", e->title);
        status = put_image(f, folder, e->name, e->title);
        fprintf(f, "<figcaption>%s Numbers: %s.csv, script: %s.gp.</figcaption></figure>\n", e->caption, e->name,
                e->name);
    }
    if (used) fprintf(f, "<h2>Left out</h2>\n<ul>\n%s</ul>\n", missing);
    arena_free(&arena);
    return status;
}

static Status write_body(FILE *f, const char *folder, const ReportInput *input)
{
    Arena arena = {0};
    char *text = report_conclusions(input, &arena);
    if (!text) return status_fail(ERR_MEMORY, "report: out of memory");
    put_head(f, input);
    fputs("<h2>Conclusions</h2>\n<p>", f);
    put_escaped(f, text);
    fputs("</p>\n", f);
    arena_free(&arena);
    TRY(put_plots(f, folder, input));
    put_predictions(f, input);
    TRY(put_diagnostics(f, input));
    fputs("</body></html>\n", f);
    return OK;
}

Status report_write(const char *folder, const ReportInput *input)
{
    char path[4096];
    Output output;
    if (!plot_available())
        return status_fail(ERR_UNSUPPORTED, "gnuplot cannot be started: install gnuplot-nox to get the plots");
    if (snprintf(path, sizeof path, "%s/report.html", folder) >= (int)sizeof path - 8)
        return status_fail(ERR_USAGE, "report: folder name too long");
    TRY(output_open(path, NULL, &output));
    Status status = write_body(output.file, folder, input);
    if (status == OK) return output_close(&output);
    output_abandon(&output);
    return status;
}
