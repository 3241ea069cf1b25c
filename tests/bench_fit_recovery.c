/* The recovery study at full size: 200 truths of several forms measured on up to 32 ranks and predicted at 2,048, with
 * the form right and with communication 25 % worse per factor of 8 than any form says. Prints coverage of the nominal
 * 90 % interval, median error and median width, for our choice and for the naive fits; then the speed of one fit.
 * Arguments: trials (at most 200), seed. */
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/clock.h"
#include "tests/fit_synthetic.h"

enum { TRIALS = 200, DRAWS = 400 };

static double median(double *value, int count)
{
    gsl_sort(value, 1, (size_t)count);
    return gsl_stats_median_from_sorted_data(value, 1, (size_t)count);
}

static int study(const char *label, int first, int last, double worse, FitOptions options, int trials,
                 unsigned long seed)
{
    double error[TRIALS], width[TRIALS];
    Recovery recovery = {.error = error, .width = width};
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    gsl_rng_set(rng, seed);
    for (int i = 0; i < trials; i++) {
        Truth truth = truth_draw(rng, (TruthForm)(first + i % (last - first + 1)), worse);
        options.seed = (uint64_t)i + 1;
        if (truth_trial(rng, &truth, &options, &recovery) != OK) {
            fprintf(stderr, "bench_fit_recovery: %s\n", status_text());
            return 1;
        }
    }
    gsl_rng_free(rng);
    printf("%-44s coverage %5.1f %%  median error %6.2f %%  median hi/lo %.2f\n", label,
           100.0 * recovery.inside / trials, 100 * median(error, trials), median(width, trials));
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    int trials = argc > 1 ? atoi(argv[1]) : TRIALS;
    if (trials < 1 || trials > TRIALS) trials = TRIALS;
    unsigned long seed = argc > 2 ? strtoul(argv[2], NULL, 10) : 7;
    FitOptions ours = {.draws = DRAWS, .form = -1};
    FitOptions naive = {.draws = DRAWS, .totals_only = true};
    static const char *const names[] = {"anchored", "log", "linear", "amdahl", "usl"};
    int bad = study("truths of five forms, chosen form", TRUTH_ANCHORED, TRUTH_USL, 1, ours, trials, seed);
    for (int f = 0; f < TRUTH_COUNT; f++) bad |= study(names[f], f, f, 1, ours, trials / 5 ? trials / 5 : 1, seed);
    bad |= study("communication 25 % worse per 8x", TRUTH_ANCHORED, TRUTH_ANCHORED, 1.25, ours, trials, seed);
    for (int f = 0; f < FORM_COUNT; f++) {
        char label[80];
        naive.form = f;
        snprintf(label, sizeof label, "five forms, naive: totals, %s", FIT_FORM_NAMES[f]);
        bad |= study(label, TRUTH_ANCHORED, TRUTH_USL, 1, naive, trials, seed);
    }
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    Truth truth = truth_draw(rng, TRUTH_ANCHORED, 1);
    FitPoint point[6 * TRUTH_REPEATS];
    int count = truth_measure(rng, &truth, 32, point);
    gsl_rng_free(rng);
    FitOptions full = {.draws = 1000, .form = -1, .seed = 1};
    FitModel *model;
    double start = clock_now_s();
    if (fit_run(point, count, &full, &model) != OK) return 1;
    printf("fit of %d runs with 1000 bootstrap draws: %.2f s (limit 5 s)\n", count, clock_now_s() - start);
    fit_destroy(&model);
    return bad;
}
