#include "analysis/advise.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stdlib.h>

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

typedef struct Moments {
    double var_x, var_y, cov;
} Moments;

static Moments moments(const double *x, const double *y, int count)
{
    double sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0, n = count;
    for (int i = 0; i < count; i++) {
        double a = log(x[i]), b = log(y[i]);
        sx += a, sy += b, sxx += a * a, syy += b * b, sxy += a * b;
    }
    return (Moments){fmax(0, sxx / n - sx * sx / n / n), fmax(0, syy / n - sy * sy / n / n), sxy / n - sx * sy / n / n};
}

Status advise_next_run(const FitModel *fit, const StepShape *candidates, int count, const StepShape *target,
                       double extra_sd, int repeats, AdviseRun *out)
{
    if (count < 1 || repeats < 1) return status_fail(ERR_USAGE, "advise: %d candidates, %d repeats", count, repeats);
    /* the draws of repeat noise are shared between configurations and would look like correlation */
    FitModel quiet = *fit;
    quiet.noise_sd = 0;
    double *x = malloc((size_t)fit->draws * sizeof *x), *y = malloc((size_t)fit->draws * sizeof *y);
    Status status =
        x && y ? fit_predict_draws(&quiet, target, extra_sd, y) : status_fail(ERR_MEMORY, "advise: out of memory");
    for (int i = 0; i < count && status == OK; i++) {
        status = fit_predict_draws(&quiet, &candidates[i], extra_sd, x);
        if (status != OK) break;
        Moments m = moments(x, y, fit->draws);
        double noise = fit->noise_sd * fit->noise_sd / repeats, left = m.var_y - m.cov * m.cov / (m.var_x + noise);
        out[i] = (AdviseRun){.candidate = i,
                             .width_now = exp(2 * Z90 * sqrt(m.var_y)),
                             .width_expected = exp(2 * Z90 * sqrt(fmax(0, left)))};
    }
    if (status == OK) qsort(out, (size_t)count, sizeof *out, by_width);
    free(x);
    free(y);
    return status;
}
