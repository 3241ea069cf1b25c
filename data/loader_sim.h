/* The loader in virtual time: the policy of loader_queue.h, workers with random preparation times, a consumer that
 * takes one sample per step. Answers in milliseconds what the real loader would do in hours.
 *
 * Preparation times are log-normal: median x exp(sigma x normal). Published measurements of OpenFold's data pipeline
 * span about three orders of magnitude between the fastest and the slowest chains; sigma = 1.2 gives a factor of 2,700
 * between the 0.05 % and the 99.95 % quantile. The mean is median x exp(sigma^2 / 2). */
#ifndef FOLDSCALE_DATA_LOADER_SIM_H
#define FOLDSCALE_DATA_LOADER_SIM_H

#include "data/loader_queue.h"

typedef struct LoaderTimes {
    double median_s, sigma;
    uint64_t seed;
} LoaderTimes;

/* Preparation time of a sample: a function of (seed, number). */
double loader_preparation_time(const LoaderTimes *times, int64_t number);

typedef struct LoaderSimOptions {
    int workers;
    QueueOptions queue;
    LoaderTimes times;
    double step_s;
    int64_t steps;
} LoaderSimOptions;

typedef struct LoaderSimReport {
    double first_wait_s, wait_s, longest_wait_s; /* wait_s without the first */
    double wait_fraction;                        /* wait_s / (steps x step_s) */
    int64_t waits, overtaken;
} LoaderSimReport;

/* `delivered_out` (may be NULL): [steps] numbers in the order of delivery. */
Status loader_simulate(const LoaderSimOptions *options, int64_t *delivered_out, LoaderSimReport *report_out);

#endif
