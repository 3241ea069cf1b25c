#include "data/loader_sim.h"

#include <math.h>

#include "data/draws.h"

double loader_preparation_time(const LoaderTimes *times, int64_t number)
{
    /* Box and Muller: 1 - u is in (0, 1] */
    Draws draws = {.seed = times->seed, .index = (uint64_t)number};
    double u = 0.0, v = 0.0;
    if (draws_uniform_f64(&draws, DRAW_PREPARATION_TIME, 0, 0, &u) != OK ||
        draws_uniform_f64(&draws, DRAW_PREPARATION_TIME, 0, 1, &v) != OK)
        return times->median_s; /* Philox draws do not fail */
    return times->median_s * exp(times->sigma * sqrt(-2.0 * log(1.0 - u)) * cos(2.0 * M_PI * v));
}

typedef struct Simulation {
    const LoaderSimOptions *options;
    LoaderQueue *queue;
    double now, asked_at; /* the consumer asks for its next sample at asked_at */
    double *finish_at;    /* [workers]; infinity: idle */
    int *slot;            /* [workers] */
    int64_t delivered;
    LoaderSimReport report;
} Simulation;

/* Workers whose sample is done hand it in; idle ones claim the next. */
static void run_workers(Simulation *sim)
{
    for (int w = 0; w < sim->options->workers; ++w)
        if (sim->finish_at[w] <= sim->now) {
            loader_queue_finish(sim->queue, sim->slot[w], false);
            sim->finish_at[w] = INFINITY;
        }
    for (int w = 0; w < sim->options->workers; ++w) {
        int64_t number;
        if (!isinf(sim->finish_at[w])) continue;
        if (!loader_queue_claim(sim->queue, &sim->slot[w], &number)) return;
        sim->finish_at[w] = sim->now + loader_preparation_time(&sim->options->times, number);
    }
}

static bool run_consumer(Simulation *sim, int64_t *delivered_out)
{
    int slot;
    int64_t number;
    if (sim->now < sim->asked_at || !loader_queue_take(sim->queue, &slot, &number)) return false;
    loader_queue_release(sim->queue, slot);
    double waited = sim->now - sim->asked_at;
    if (delivered_out) delivered_out[sim->delivered] = number;
    if (sim->delivered++ == 0) {
        sim->report.first_wait_s = waited;
    } else if (waited > 0.0) {
        ++sim->report.waits;
        sim->report.wait_s += waited;
        sim->report.longest_wait_s = fmax(sim->report.longest_wait_s, waited);
    }
    sim->asked_at = sim->now + sim->options->step_s;
    return true;
}

static void advance(Simulation *sim)
{
    double next = sim->asked_at > sim->now ? sim->asked_at : INFINITY;
    for (int w = 0; w < sim->options->workers; ++w) next = fmin(next, sim->finish_at[w]);
    sim->now = next;
}

Status loader_simulate(const LoaderSimOptions *options, int64_t *delivered_out, LoaderSimReport *report_out)
{
    Arena arena = {0};
    Simulation sim = {.options = options};
    if (options->workers < 1) return status_fail(ERR_USAGE, "loader: %d workers", options->workers);
    Status status = loader_queue_create(&options->queue, 0, NULL, 0, &arena, &sim.queue);
    sim.finish_at = arena_array(&arena, (size_t)options->workers, sizeof *sim.finish_at);
    sim.slot = arena_array(&arena, (size_t)options->workers, sizeof *sim.slot);
    if (status == OK && (!sim.finish_at || !sim.slot)) status = status_fail(ERR_MEMORY, "loader: no memory");
    if (status == OK) {
        for (int w = 0; w < options->workers; ++w) sim.finish_at[w] = INFINITY;
        while (sim.delivered < options->steps && !loader_queue_at_end(sim.queue)) {
            run_workers(&sim);
            if (!run_consumer(&sim, delivered_out)) advance(&sim);
        }
        sim.report.overtaken = loader_queue_overtaken(sim.queue);
        sim.report.wait_fraction = sim.report.wait_s / ((double)options->steps * options->step_s);
        *report_out = sim.report;
    }
    arena_free(&arena);
    return status;
}
