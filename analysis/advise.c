#include "analysis/advise.h"

#include <gsl/gsl_cdf.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double Z90 = 1.6448536269514722; /* two-sided 90 % of a normal */

Status advise_times(const PredictionRow *rows, int64_t count, const TrainPlan *plan, double samples_per_replica,
                    double batch_exponent, uint64_t seed, AdviseOption *options)
{
    enum { DRAWS = 400 };
    double draws[DRAWS];
    if (!(samples_per_replica > 0) || !(batch_exponent >= 0 && batch_exponent <= 1))
        return status_fail(ERR_USAGE, "advise: %g samples per replica, batch exponent %g (expected 0 to 1)",
                           samples_per_replica, batch_exponent);
    for (int64_t i = 0; i < count; i++) {
        const PredictionRow *row = &rows[i];
        TrainPlan p = *plan;
        p.global_batch = samples_per_replica * (double)row->dp;
        if (p.global_batch > plan->global_batch)
            p.samples_to_target *= pow(p.global_batch / plan->global_batch, batch_exponent);
        /* step times as a lognormal with the row's interval, in scattered order */
        double sd = log(row->hi90_s / row->lo90_s) / (2 * Z90), middle = sqrt(row->hi90_s * row->lo90_s);
        for (int k = 0; k < DRAWS; k++) {
            double u = fmod(0.5 + k * 0.6180339887498949, 1);
            draws[k] = middle * exp(sd * gsl_cdf_ugaussian_Pinv(u * 0.9998 + 1e-4));
        }
        TRY(predict_train_time(&p, row->step_s, draws, DRAWS, seed, &options[i].time));
        options[i].row = row;
        options[i].gpu_hours = options[i].time.total_s / 3600 * (double)row->gpus;
        options[i].gpu_hours_high = options[i].time.hi90_s / 3600 * (double)row->gpus;
        options[i].fits = false;
    }
    return OK;
}

int64_t advise_cheapest(AdviseOption *options, int64_t count, double deadline_s)
{
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++) {
        options[i].fits = options[i].time.hi90_s <= deadline_s;
        if (options[i].fits && (best < 0 || options[i].gpu_hours < options[best].gpu_hours)) best = i;
    }
    return best;
}

int64_t advise_fastest(AdviseOption *options, int64_t count, double budget_gpu_hours)
{
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++) {
        options[i].fits = options[i].gpu_hours_high <= budget_gpu_hours;
        if (options[i].fits && (best < 0 || options[i].time.total_s < options[best].time.total_s)) best = i;
    }
    return best;
}

static int by_width(const void *a, const void *b)
{
    const AdviseRun *x = a, *y = b;
    if (x->width_expected != y->width_expected) return x->width_expected < y->width_expected ? -1 : 1;
    return x->candidate - y->candidate;
}

/* Standard deviation of the normal with the 90 % interval of the logarithms: of heavy tails the part that is used. */
static double spread(const double *draws, double *scratch, int count)
{
    memcpy(scratch, draws, (size_t)count * sizeof *scratch);
    gsl_sort(scratch, 1, (size_t)count);
    double low = gsl_stats_quantile_from_sorted_data(scratch, 1, (size_t)count, 0.05);
    return log(gsl_stats_quantile_from_sorted_data(scratch, 1, (size_t)count, 0.95) / low) / (2 * Z90);
}

static double correlation(const double *x, const double *y, int count)
{
    double sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0, n = count;
    for (int i = 0; i < count; i++) {
        double a = log(x[i]), b = log(y[i]);
        sx += a, sy += b, sxx += a * a, syy += b * b, sxy += a * b;
    }
    double squares = (sxx - sx * sx / n) * (syy - sy * sy / n);
    return squares > 0 ? (sxy - sx * sy / n) / sqrt(squares) : 0;
}

/* Draws of repeat noise and of lack of fit are shared between configurations and would look like correlation. */
static FitModel without(const FitModel *fit, bool lack)
{
    FitModel quiet = *fit;
    quiet.noise_sd = 0;
    for (int f = 0; f < FORM_COUNT && lack; f++)
        for (int k = 0; k < FIT_PHASE_COUNT; k++) quiet.candidate[f].lack[k].sd = 0;
    return quiet;
}

Status advise_next_run(const FitModel *fit, const StepShape *candidates, int count, const StepShape *target,
                       double extra_sd, int repeats, AdviseRun *out)
{
    if (count < 1 || repeats < 1) return status_fail(ERR_USAGE, "advise: %d candidates, %d repeats", count, repeats);
    const FitModel quiet = without(fit, false), form = without(fit, true);
    size_t bytes = (size_t)fit->draws * sizeof(double);
    double *x = malloc(bytes), *y = malloc(bytes), *scratch = malloc(bytes);
    Status status = x && y && scratch ? OK : status_fail(ERR_MEMORY, "advise: out of memory");
    if (status == OK) status = fit_predict_draws(&quiet, target, extra_sd, x);
    double sd_y = status == OK ? spread(x, scratch, fit->draws) : 0;
    if (status == OK) status = fit_predict_draws(&form, target, extra_sd, y);
    double form_y = status == OK ? spread(y, scratch, fit->draws) : 0;
    for (int i = 0; i < count && status == OK; i++) {
        const StepShape *c = &candidates[i];
        status = fit_predict_draws(&quiet, c, extra_sd, x);
        if (status != OK) break;
        double sd_x = spread(x, scratch, fit->draws);
        status = fit_predict_draws(&form, c, extra_sd, x);
        if (status != OK) break;
        double cov = memcmp(c, target, sizeof *c)
                         ? correlation(x, y, fit->draws) * spread(x, scratch, fit->draws) * form_y
                         : sd_y * sd_y;
        double noise = fit->noise_sd * fit->noise_sd / repeats, left = sd_y * sd_y - cov * cov / (sd_x * sd_x + noise);
        out[i] = (AdviseRun){
            .candidate = i, .width_now = exp(2 * Z90 * sd_y), .width_expected = exp(2 * Z90 * sqrt(fmax(0, left)))};
    }
    if (status == OK) qsort(out, (size_t)count, sizeof *out, by_width);
    free(x);
    free(y);
    free(scratch);
    return status;
}
