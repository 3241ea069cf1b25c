/* bench_loader [STEPS] [SCALE]: waits of the ordered and the ready-first loader with 16 workers and steps of 0.2 s,
 * preparation times log-normal (median 0.6 s, sigma 1.2). First in virtual time (STEPS steps), then with real threads
 * that sleep, everything SCALE times faster. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "data/loader.h"
#include "data/loader_sim.h"

enum { WORKERS = 16, SLOTS = 32 };

static const LoaderTimes TIMES = {.median_s = 0.6, .sigma = 1.2, .seed = 1};
static const double STEP_S = 0.2;

static void sleep_for(double seconds)
{
    struct timespec span = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&span, NULL);
}

static QueueOptions queue_options(bool ready_first, int64_t end)
{
    return (QueueOptions){.slots = SLOTS, .ready_first = ready_first, .window = 1024, .end = end};
}

static Status simulate(bool ready_first, int64_t steps)
{
    LoaderSimOptions options = {
        .workers = WORKERS, .queue = queue_options(ready_first, -1), .times = TIMES, .step_s = STEP_S, .steps = steps};
    LoaderSimReport report;
    TRY(loader_simulate(&options, NULL, &report));
    printf("%-12s virtual  %9lld steps: waits %.4f %% of step time in %lld waits, longest %.2f s, first %.2f s, "
           "overtaken by at most %lld\n",
           ready_first ? "ready-first" : "ordered", (long long)steps, 100.0 * report.wait_fraction,
           (long long)report.waits, report.longest_wait_s, report.first_wait_s, (long long)report.overtaken);
    return OK;
}

static Status prepare(void *context, int worker, int slot, int64_t number)
{
    (void)worker;
    (void)slot;
    sleep_for(loader_preparation_time(&TIMES, number) / *(const double *)context);
    return OK;
}

static Status run(bool ready_first, int64_t steps, double scale)
{
    LoaderOptions options = {.workers = WORKERS, .queue = queue_options(ready_first, steps)};
    Loader *loader;
    LoaderReport report;
    TRY(loader_create(&options, prepare, &scale, 0, NULL, 0, &loader));
    for (int64_t step = 0; step < steps; ++step) {
        LoaderSample sample;
        TRY(loader_next(loader, &sample));
        sleep_for(STEP_S / scale);
        loader_release(loader, sample.slot);
    }
    loader_report(loader, &report);
    loader_destroy(&loader);
    printf("%-12s threads  %9lld steps: waits %.4f %% of step time in %lld waits, longest %.4f s / %g, overtaken by at "
           "most %lld\n",
           ready_first ? "ready-first" : "ordered", (long long)steps,
           100.0 * report.wait_s * scale / (STEP_S * (double)steps), (long long)report.waits, report.longest_wait_s,
           scale, (long long)report.overtaken);
    return OK;
}

int main(int argc, char **argv)
{
    int64_t steps = argc > 1 ? strtoll(argv[1], NULL, 10) : 100000;
    double scale = argc > 2 ? strtod(argv[2], NULL) : 20.0;
    if (steps < 1 || !(scale > 0.0)) {
        fprintf(stderr, "usage: bench_loader [STEPS] [SCALE]\n");
        return 2;
    }
    int64_t real = steps < 500 ? steps : 500;
    Status status = simulate(false, steps);
    if (status == OK) status = simulate(true, steps);
    if (status == OK) status = run(false, real, scale);
    if (status == OK) status = run(true, real, scale);
    if (status != OK) fprintf(stderr, "%s\n", status_text());
    return status_exit_code(status);
}
