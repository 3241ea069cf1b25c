/* Synthetic truths for the recovery study: step times of several forms with the noise of real runs, measured on few
 * ranks, to be predicted at 2,048. Used by test_fit (reduced) and bench_fit_recovery (full size). */
#ifndef FOLDSCALE_TESTS_FIT_SYNTHETIC_H
#define FOLDSCALE_TESTS_FIT_SYNTHETIC_H

#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <math.h>

#include "analysis/fit.h"

typedef enum TruthForm { TRUTH_ANCHORED, TRUTH_LOG, TRUTH_LINEAR, TRUTH_AMDAHL, TRUTH_USL, TRUTH_COUNT } TruthForm;

typedef struct Truth {
    TruthForm form;
    double serial, parallel, latency, wire, noise, extra; /* seconds; noise relative */
    double nominal_latency, nominal_wire;                 /* what the machine file says */
    double worse; /* communication worse than the form by this factor per factor of 8 in ranks */
    double run_sd, comm_sd;
} Truth;

/* A ring or tree all-reduce: latency grows with the depth of a tree, the wire term as 2 (N - 1) / N. */
static inline StepShape truth_shape(const Truth *t, double n)
{
    return (StepShape){.ranks = n,
                       .work = 1 / n,
                       .latency_s = n > 1 ? t->nominal_latency * 2 * log2(n) : 0,
                       .wire_s = t->nominal_wire * 2 * (n - 1) / n};
}

static inline void truth_parts(const Truth *t, double n, double *compute, double *comm)
{
    double straggler = 0;
    *compute = t->serial + t->parallel / n;
    *comm = 0;
    if (n <= 1) return;
    switch (t->form) {
    case TRUTH_ANCHORED:
        straggler = t->noise * fit_expected_max(n) * *compute;
        *comm = t->latency * 2 * log2(n) + t->wire * 2 * (n - 1) / n;
        break;
    case TRUTH_LOG:
        *comm = t->extra * log2(n);
        break;
    case TRUTH_LINEAR:
        *comm = t->extra * 0.02 * (n - 1);
        break;
    case TRUTH_USL: /* T_1 (1 + s (N-1) + k N (N-1)) / N: the contention term belongs to the computation */
        *compute += t->serial * (n - 1) / n;
        *comm = t->extra * 0.02 * (n - 1);
        break;
    default:
        break;
    }
    *comm = *comm * pow(t->worse, log(n) / log(8)) + straggler;
}

static inline double log_uniform(gsl_rng *rng, double low, double high)
{
    return low * pow(high / low, gsl_rng_uniform(rng));
}

static inline Truth truth_draw(gsl_rng *rng, TruthForm form, double worse)
{
    Truth t = {.form = form, .parallel = 1, .worse = worse, .run_sd = log_uniform(rng, 0.005, 0.02), .comm_sd = 0.05};
    t.serial = log_uniform(rng, 0.01, 0.06);
    t.nominal_latency = 2e-4;
    t.nominal_wire = log_uniform(rng, 0.002, 0.01);
    /* the achieved constants scatter around the file's as micro-benchmarks do */
    t.latency = t.nominal_latency * exp(gsl_ran_gaussian(rng, 0.2));
    t.wire = t.nominal_wire * exp(gsl_ran_gaussian(rng, 0.15));
    t.noise = log_uniform(rng, 0.005, 0.03);
    t.extra = log_uniform(rng, 5e-4, 4e-3);
    return t;
}

enum { TRUTH_REPEATS = 3 };

/* Runs at 1, 2, 4 ... up to n_max, TRUTH_REPEATS each; returns how many. */
static inline int truth_measure(gsl_rng *rng, const Truth *t, int n_max, FitPoint *point)
{
    int count = 0;
    for (int n = 1; n <= n_max; n *= 2)
        for (int r = 0; r < TRUTH_REPEATS; r++) {
            double compute, comm;
            truth_parts(t, n, &compute, &comm);
            compute *= exp(gsl_ran_gaussian(rng, t->run_sd));
            comm *= exp(gsl_ran_gaussian(rng, t->comm_sd));
            point[count++] = (FitPoint){.shape = truth_shape(t, n),
                                        .step_s = compute + comm,
                                        .compute_s = compute,
                                        .comm_s = comm,
                                        .loader_s = NAN,
                                        .host_s = NAN};
        }
    return count;
}

typedef struct Recovery {
    double *error; /* |log predicted / true|, one per trial */
    double *width; /* hi90 / lo90 */
    int inside, trials;
} Recovery;

/* One trial: measure, fit, predict 2,048, compare with a fresh run there. */
static inline Status truth_trial(gsl_rng *rng, const Truth *t, const FitOptions *options, Recovery *out)
{
    FitPoint point[6 * TRUTH_REPEATS];
    int count = truth_measure(rng, t, 32, point);
    FitModel *model;
    FitInterval interval;
    /* what micro-benchmarks and per-rank step times would have told */
    FitPrior prior[] = {{FIT_LATENCY, 0, 0.2, "micro-benchmark"},
                        {FIT_WIRE, 0, 0.15, "micro-benchmark"},
                        {FIT_NOISE, log(t->noise) + gsl_ran_gaussian(rng, 0.15), 0.15, "per-rank step times"}};
    FitOptions with_priors = *options;
    if (!options->totals_only) with_priors.prior = prior, with_priors.priors = 3;
    TRY(fit_run(point, count, &with_priors, &model));
    StepShape far = truth_shape(t, 2048);
    Status status = fit_predict(model, &far, 0, &interval);
    fit_destroy(&model);
    TRY(status);
    double compute, comm;
    truth_parts(t, 2048, &compute, &comm);
    double seen = compute * exp(gsl_ran_gaussian(rng, t->run_sd)) + comm * exp(gsl_ran_gaussian(rng, t->comm_sd));
    out->error[out->trials] = fabs(log(interval.parts.step_s / (compute + comm)));
    out->width[out->trials] = interval.hi90_s / interval.lo90_s;
    out->trials++;
    out->inside += seen >= interval.lo90_s && seen <= interval.hi90_s;
    return OK;
}

#endif
