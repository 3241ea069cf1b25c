#include "analysis/validate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/table.h"

ValidationScore validate_score(const ValidationRow *rows, int count, const char *set)
{
    ValidationScore s = {.coverage = NAN, .naive_mean_error = NAN, .naive2_mean_error = NAN};
    double naive = 0, naive2 = 0;
    int inside = 0, naive_rows = 0;
    for (int i = 0; i < count; i++) {
        const ValidationRow *r = &rows[i];
        if (r->fitted || (set && strcmp(set, r->set))) continue;
        double error = fabs(r->predicted / r->truth - 1);
        s.rows++;
        s.mean_error += error;
        s.max_error = fmax(s.max_error, error);
        inside += r->truth >= r->low && r->truth <= r->high;
        if (isnan(r->naive) || isnan(r->naive2)) continue;
        naive += fabs(r->naive / r->truth - 1);
        naive2 += fabs(r->naive2 / r->truth - 1);
        naive_rows++;
    }
    if (s.rows) {
        s.mean_error /= s.rows;
        s.coverage = (double)inside / s.rows;
    }
    if (naive_rows) {
        s.naive_mean_error = naive / naive_rows;
        s.naive2_mean_error = naive2 / naive_rows;
    }
    return s;
}

static void print_score(const ValidationRow *rows, int count, const char *set, FILE *f)
{
    ValidationScore s = validate_score(rows, count, set);
    if (!s.rows) return;
    fprintf(f, "%-11s %d held-out rows: mean error %.2f %%, maximum %.2f %%, %.0f %% inside the 90 %% interval", set,
            s.rows, 100 * s.mean_error, 100 * s.max_error, 100 * s.coverage);
    double amdahl = s.naive_mean_error, linear = s.naive2_mean_error;
    if (!isnan(amdahl))
        fprintf(f, "; naive fits on the same points: Amdahl %.2f %%, Amdahl + (N - 1) %.2f %%", 100 * amdahl,
                100 * linear);
    fputc('\n', f);
}

Status validate_print(const ValidationRow *rows, int count, FILE *f)
{
    fprintf(f, "%-11s %-58s %12s %25s %12s %9s %9s %9s  %s\n", "set", "what", "predicted", "90 % interval", "truth",
            "error", "Amdahl", "+(N-1)", "basis");
    for (int i = 0; i < count; i++) {
        const ValidationRow *r = &rows[i];
        fprintf(f, "%-11s %-58.58s ", r->set, r->what);
        if (r->fitted) {
            fprintf(f, "%12s %25s %12.5g %9s %9s %9s  %s\n", "(fitted)", "", r->truth, "", "", "", r->basis);
            continue;
        }
        fprintf(f, "%12.5g %11.5g .. %-10.5g %12.5g %+8.2f%% ", r->predicted, r->low, r->high, r->truth,
                100 * (r->predicted / r->truth - 1));
        if (isnan(r->naive))
            fprintf(f, "%9s %9s", "-", "-");
        else
            fprintf(f, "%+8.1f%% %+8.1f%%", 100 * (r->naive / r->truth - 1), 100 * (r->naive2 / r->truth - 1));
        fprintf(f, "  %s%s\n", r->truth < r->low || r->truth > r->high ? "[outside] " : "", r->basis);
    }
    for (int i = 0; i < count; i++) {
        bool first = true;
        for (int j = 0; j < i && first; j++) first = strcmp(rows[j].set, rows[i].set) != 0;
        if (first) print_score(rows, count, rows[i].set, f);
    }
    return ferror(f) ? status_fail(ERR_IO, "cannot write the validation") : OK;
}

Status validate_write(const ValidationRow *rows, int count, const char *path)
{
    static const char *const names[] = {"set",   "what",  "use",    "predicted",     "lo90", "hi90",
                                        "truth", "error", "amdahl", "amdahl_linear", "basis"};
    TableWriter *w;
    TRY(table_writer_create(path, names, 11, &w));
    Status status = OK;
    for (int i = 0; i < count && status == OK; i++) {
        const ValidationRow *r = &rows[i];
        table_put_text(w, r->set);
        table_put_text(w, r->what);
        table_put_text(w, r->fitted ? "fitted" : "predicted");
        table_put_double(w, r->fitted ? NAN : r->predicted);
        table_put_double(w, r->fitted ? NAN : r->low);
        table_put_double(w, r->fitted ? NAN : r->high);
        table_put_double(w, r->truth);
        table_put_double(w, r->fitted ? NAN : r->predicted / r->truth - 1);
        table_put_double(w, r->naive);
        table_put_double(w, r->naive2);
        table_put_text(w, r->basis);
        status = table_writer_row(w);
    }
    if (status != OK) {
        table_writer_abandon(&w);
        return status;
    }
    return table_writer_close(&w);
}

/* --- measured points
 * ------------------------------------------------------------------------------------------------------ */

static Status naive_fit(const FitPoint *part, int used, const FitOptions *options, FitForm form, FitModel **out)
{
    FitOptions naive = options ? *options : (FitOptions){0};
    naive.form = (int)form;
    naive.totals_only = true;
    naive.draws = 50;
    return fit_run(part, used, &naive, out);
}

Status validate_points(const FitPoint *point, int count, const bool *fitted, const double *extra_sd,
                       const FitOptions *options, Arena *arena, ValidationRow *rows_out)
{
    int used = 0;
    FitPoint *part = arena_array(arena, (size_t)count, sizeof *part);
    if (!part) return status_fail(ERR_MEMORY, "validation: out of memory");
    for (int i = 0; i < count; i++)
        if (fitted[i]) part[used++] = point[i];
    FitModel *ours = NULL, *amdahl = NULL, *linear = NULL;
    Status status;
    TRY_GOTO(status, fit_run(part, used, options, &ours), done);
    TRY_GOTO(status, naive_fit(part, used, options, FORM_AMDAHL, &amdahl), done);
    TRY_GOTO(status, naive_fit(part, used, options, FORM_LINEAR, &linear), done);
    for (int i = 0; i < count; i++) {
        FitInterval interval;
        TRY_GOTO(status, fit_predict(ours, &point[i].shape, extra_sd ? extra_sd[i] : 0, &interval), done);
        rows_out[i] = (ValidationRow){.set = "measured",
                                      .fitted = fitted[i],
                                      .predicted = interval.parts.step_s,
                                      .low = interval.lo90_s,
                                      .high = interval.hi90_s,
                                      .truth = point[i].step_s};
        rows_out[i].naive = fit_evaluate(amdahl, &point[i].shape).step_s;
        rows_out[i].naive2 = fit_evaluate(linear, &point[i].shape).step_s;
        rows_out[i].what = arena_printf(arena, "%.40s: %g ranks, work share %.3g, step (s)",
                                        point[i].id ? point[i].id : "", point[i].shape.ranks, point[i].shape.work);
        rows_out[i].basis = arena_printf(arena, "%d runs up to %g ranks", used, ours->n_max);
        if (!rows_out[i].what || !rows_out[i].basis) {
            status = status_fail(ERR_MEMORY, "validation: out of memory");
            goto done;
        }
    }
done:
    fit_destroy(&ours);
    fit_destroy(&amdahl);
    fit_destroy(&linear);
    return status;
}

/* --- one configuration of a published code calibrates the others
 * ---------------------------------------------------------- */

/* Computation that is left of a published step once everything else is taken off. The straggler's share is relative to
 * computation, hence the division. */
static Status calibrate(OpPrices *prices, const Machine *machine, const TransferCase *c, double *noise_out)
{
    StepPrice price;
    TRY(opprice_step(prices, machine, c->cost, c->dp, &price));
    double loader = isnan(c->loader_s) ? 0 : c->loader_s;
    double noise = machine->rank_noise.value, ranks = (double)(c->dp * c->cost->dap);
    double compute = (c->step_s - loader - price.latency_s - price.wire_s) / (1 + noise * fit_expected_max(ranks));
    *noise_out = noise;
    return opprice_calibrate(prices, machine, c->cost, c->dp, compute);
}

static Status predict_transfer(const FitModel *fit, const OpPrices *prices, const Machine *machine,
                               const TransferCase *cases, int i, double reference_s, Arena *arena, ValidationRow *out)
{
    StepShape shape;
    StepPrice price;
    FitInterval interval;
    TRY(predict_shape(prices, machine, cases[i].cost, cases[i].dp, reference_s, &shape, &price));
    /* one factor for all kernels: what shifts between kinds and between kernels and overheads is left, about the spread
     * of a single curve */
    double spread = hypot(prices->pooled.sd, cases[i].spread), gain = cases[i].gain > 0 ? cases[i].gain : 1;
    TRY(fit_predict(fit, &shape, i == 0 ? 0 : spread, &interval));
    double wait = isnan(cases[i].loader_s) ? (isnan(cases[0].loader_s) ? 0 : cases[0].loader_s) : cases[i].loader_s;
    *out = (ValidationRow){.set = "published",
                           .what = cases[i].what,
                           .fitted = i == 0,
                           .predicted = (interval.parts.step_s + wait) / gain,
                           .low = (interval.lo90_s + wait) / gain,
                           .high = (interval.hi90_s + wait) / gain,
                           .truth = cases[i].step_s,
                           .naive = NAN,
                           .naive2 = NAN};
    /* what a user without the model would say: all of the step divides by DAP (Amdahl without serial part), or nothing
     * of the communication is free */
    double dap = (double)cases[i].cost->dap / (double)cases[0].cost->dap;
    if (i > 0) out->naive = cases[0].step_s / dap, out->naive2 = cases[0].step_s / dap + price.comm_total_s;
    out->basis = i == 0 ? "calibrates this code's kernels" : arena_printf(arena, "calibrated on: %s", cases[0].what);
    return out->basis ? OK : status_fail(ERR_MEMORY, "validation: out of memory");
}

Status validate_transfer(OpPrices *prices, const Machine *machine, const TransferCase *cases, int count,
                         const FitOptions *options, Arena *arena, ValidationRow *rows_out)
{
    FitOptions one = options ? *options : (FitOptions){.seed = 1};
    FitModel *fit = NULL;
    StepPrice reference;
    StepShape shape;
    double noise;
    if (count < 2) return status_fail(ERR_USAGE, "validation: a transfer needs a fitted case and another one");
    TRY(calibrate(prices, machine, &cases[0], &noise));
    TRY(opprice_step(prices, machine, cases[0].cost, cases[0].dp, &reference));
    TRY(predict_shape(prices, machine, cases[0].cost, cases[0].dp, reference.compute_s, &shape, NULL));
    /* unsharded work is priced op by op: little is left for an unexplained serial part */
    FitPrior prior[] = {{FIT_NOISE, log(noise), machine->rank_noise.spread, machine->rank_noise.source}};
    one.form = FORM_ANCHORED;
    if (!(one.serial_share > 0)) one.serial_share = 0.003, one.serial_share_sd = 1;
    if (!one.priors) one.prior = prior, one.priors = 1;
    double loader = isnan(cases[0].loader_s) ? 0 : cases[0].loader_s;
    FitPoint point = {.shape = shape,
                      .step_s = cases[0].step_s - loader,
                      .compute_s = NAN,
                      .comm_s = NAN,
                      .loader_s = NAN,
                      .host_s = NAN,
                      .id = cases[0].what};
    TRY(fit_run(&point, 1, &one, &fit));
    Status status = OK;
    for (int i = 0; i < count && status == OK; i++)
        status = predict_transfer(fit, prices, machine, cases, i, reference.compute_s, arena, &rows_out[i]);
    fit_destroy(&fit);
    return status;
}
