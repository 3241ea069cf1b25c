#include "analysis/simulate.h"

#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/table.h"
#include "engine/philox.h"

enum { WORKER_LIMIT = 256, QUEUE_LIMIT = 1024, RANK_LIMIT = 1 << 20, STEP_LIMIT = 10000000 };

/* streams of random numbers, the last word of the counter */
enum { STREAM_RANK = 1, STREAM_STEP, STREAM_SAMPLE };

typedef struct Random {
    double normal, uniform, exponential;
} Random;

/* Box-Muller on the first two words, the other two give a uniform and an exponential number. */
static Random random_at(uint64_t seed, uint64_t who, uint64_t when, uint32_t stream)
{
    uint32_t counter[4] = {(uint32_t)who, (uint32_t)when, (uint32_t)(when >> 32), stream}, out[4];
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox4x32(counter, key, out);
    double u = ((double)out[0] + 0.5) * 0x1p-32, v = ((double)out[1] + 0.5) * 0x1p-32;
    return (Random){.normal = sqrt(-2 * log(u)) * cos(2 * M_PI * v),
                    .uniform = ((double)out[2] + 0.5) * 0x1p-32,
                    .exponential = -log(((double)out[3] + 0.5) * 0x1p-32)};
}

/* --- loader
 * -------------------------------------------------------------------------------------------------------------- */

typedef struct Loader {
    double *ready;  /* [queue] when each outstanding sample is ready */
    int64_t *index; /* [queue] which sample it is */
    double *worker; /* [workers] when each worker is free */
    int64_t next;   /* next sample to be started */
    int64_t taken;  /* next sample in order */
} Loader;

static void start_sample(const SimConfig *c, Loader *l, int slot, uint64_t replica, double free_s)
{
    const SimLoader *set = &c->loader;
    int first = 0;
    for (int w = 1; w < set->workers; w++)
        if (l->worker[w] < l->worker[first]) first = w;
    Random r = random_at(c->seed, replica, (uint64_t)l->next, STREAM_SAMPLE);
    double begin = fmax(free_s, l->worker[first]);
    l->worker[first] = l->ready[slot] = begin + set->prepare_s * exp(set->prepare_sd * r.normal);
    l->index[slot] = l->next++;
}

/* When the sample for the step that begins at `now` is in hand; the place in the queue is refilled. */
static double take_sample(const SimConfig *c, Loader *l, uint64_t replica, double now)
{
    int lowest_ready = -1, in_order = 0;
    for (int q = 0; q < c->loader.queue; q++) {
        if (l->index[q] < l->index[in_order]) in_order = q;
        if (l->ready[q] <= now && (lowest_ready < 0 || l->index[q] < l->index[lowest_ready])) lowest_ready = q;
    }
    int slot = in_order;
    if (c->loader.ready_first) {
        slot = lowest_ready;
        if (slot < 0) { /* nothing is ready: whichever comes first */
            slot = 0;
            for (int q = 1; q < c->loader.queue; q++)
                if (l->ready[q] < l->ready[slot]) slot = q;
        }
    }
    double at = fmax(now, l->ready[slot]);
    start_sample(c, l, slot, replica, at);
    return at;
}

typedef struct State {
    double *rank_factor; /* [ranks] */
    Loader *loader;      /* [replicas] */
    void *memory;
    int64_t replicas;
    double eval_busy_until;
} State;

static Status state_create(const SimConfig *c, State *s)
{
    *s = (State){.replicas = c->ranks / c->dap};
    size_t queue = (size_t)c->loader.queue, workers = (size_t)c->loader.workers, replicas = (size_t)s->replicas;
    size_t doubles = workers ? replicas * (2 * queue + workers) : 0;
    s->rank_factor = malloc((size_t)c->ranks * sizeof *s->rank_factor);
    s->loader = workers ? calloc(replicas, sizeof *s->loader) : NULL;
    s->memory = doubles ? calloc(doubles, sizeof(double)) : NULL;
    if (!s->rank_factor || (workers && (!s->loader || !s->memory)))
        return status_fail(ERR_MEMORY, "simulation: out of memory for %lld ranks", (long long)c->ranks);
    for (int64_t r = 0; r < c->ranks; r++) {
        Random x = random_at(c->seed, (uint64_t)r, 0, STREAM_RANK);
        s->rank_factor[r] = exp(c->rank_sd * x.normal - c->rank_sd * c->rank_sd / 2);
    }
    double *at = s->memory;
    for (size_t k = 0; workers && k < replicas; k++) {
        Loader *l = &s->loader[k];
        l->ready = at, at += queue;
        l->worker = at, at += workers;
        l->index = (int64_t *)(void *)at, at += queue;
        for (int q = 0; q < c->loader.queue; q++) start_sample(c, l, q, k, 0);
    }
    return OK;
}

static void state_free(State *s)
{
    free(s->rank_factor);
    free(s->loader);
    free(s->memory);
}

/* --- one step
 * -------------------------------------------------------------------------------------------------------------- */

static double rank_compute(const SimConfig *c, const State *s, int64_t rank, int64_t step, double *pause_out)
{
    Random x = random_at(c->seed, (uint64_t)rank, (uint64_t)step, STREAM_STEP);
    *pause_out = x.uniform < c->hiccup_rate ? c->hiccup_s * x.exponential : 0;
    return c->compute_s * s->rank_factor[rank] * exp(c->step_sd * x.normal - c->step_sd * c->step_sd / 2);
}

static SimStep run_step(const SimConfig *c, State *s, int64_t step, double now)
{
    double last = 0, longest = 0;
    double behind = 0; /* sum over ranks of longest - computation, of terms >= 0: rounding cannot turn it negative */
    SimStep out = {.start_s = now};
    for (int64_t k = 0; k < s->replicas; k++) {
        double wait = s->loader ? take_sample(c, &s->loader[k], (uint64_t)k, now) - now : 0;
        for (int64_t r = k * c->dap; r < (k + 1) * c->dap; r++) {
            double pause, compute = rank_compute(c, s, r, step, &pause), busy = compute + pause;
            if (busy > longest) behind += (double)r * (busy - longest), longest = busy;
            behind += longest - compute;
            if (wait + busy > last) last = wait + busy, out.slowest = r;
        }
    }
    /* Without waits the step would end with the longest computation; without spread with the mean one, of these very
     * ranks. Against the mean that all draws share (compute_s of the configuration) the maximum of a few ranks falls
     * short as often as not. */
    out.loader_s = last - longest;
    out.straggler_s = behind / (double)c->ranks;
    out.compute_s = longest - out.straggler_s;
    out.step_s = last + c->comm_s + c->host_s;
    return out;
}

/* What stops training after a step: evaluation (or its hand-over) and checkpoints. */
static double stall_after(const SimConfig *c, State *s, int64_t step, double now, double *eval, double *checkpoint)
{
    *eval = *checkpoint = 0;
    if (c->eval_every > 0 && (step + 1) % c->eval_every == 0) {
        *eval = c->eval_s;
        if (c->async_eval) {
            *eval = c->gap_s + fmax(0, s->eval_busy_until - now);
            s->eval_busy_until = now + *eval + c->eval_s;
        }
    }
    if (c->checkpoint_every > 0 && (step + 1) % c->checkpoint_every == 0) *checkpoint = c->checkpoint_s;
    return *eval + *checkpoint;
}

static Status check_number(const char *name, double value, double low, double high)
{
    if (value >= low && value <= high) return OK;
    return status_fail(ERR_USAGE, "simulation: %s is %g (expected %g to %g)", name, value, low, high);
}

static Status check(const SimConfig *c)
{
    TRY(check_number("ranks", (double)c->ranks, 1, RANK_LIMIT));
    TRY(check_number("steps", (double)c->steps, 1, STEP_LIMIT));
    TRY(check_number("dap", (double)c->dap, 1, (double)c->ranks));
    if (c->ranks % c->dap)
        return status_fail(ERR_USAGE, "simulation: %lld ranks are not a multiple of dap %lld", (long long)c->ranks,
                           (long long)c->dap);
    TRY(check_number("compute_s", c->compute_s, 1e-9, 1e6));
    TRY(check_number("rank_sd", c->rank_sd, 0, 1));
    TRY(check_number("step_sd", c->step_sd, 0, 1));
    TRY(check_number("hiccup_rate", c->hiccup_rate, 0, 1));
    const double seconds[] = {c->hiccup_s, c->comm_s, c->host_s,       c->startup_s,       c->warmup_extra_s,
                              c->eval_s,   c->gap_s,  c->checkpoint_s, c->loader.prepare_s};
    for (size_t i = 0; i < sizeof seconds / sizeof *seconds; i++) TRY(check_number("a duration", seconds[i], 0, 1e7));
    TRY(check_number("loader.workers", c->loader.workers, 0, WORKER_LIMIT));
    TRY(check_number("loader.prepare_sd", c->loader.prepare_sd, 0, 5));
    if (c->loader.workers > 0) TRY(check_number("loader.queue", c->loader.queue, c->loader.workers, QUEUE_LIMIT));
    return OK;
}

static void summarize(SimResult *r)
{
    double *sorted = malloc((size_t)r->steps * sizeof *sorted);
    if (!sorted) return;
    for (int64_t i = 0; i < r->steps; i++) sorted[i] = r->step[i].step_s;
    r->mean_s = gsl_stats_mean(sorted, 1, (size_t)r->steps);
    gsl_sort(sorted, 1, (size_t)r->steps);
    r->p05_s = gsl_stats_quantile_from_sorted_data(sorted, 1, (size_t)r->steps, 0.05);
    r->median_s = gsl_stats_quantile_from_sorted_data(sorted, 1, (size_t)r->steps, 0.5);
    r->p95_s = gsl_stats_quantile_from_sorted_data(sorted, 1, (size_t)r->steps, 0.95);
    r->p99_s = gsl_stats_quantile_from_sorted_data(sorted, 1, (size_t)r->steps, 0.99);
    free(sorted);
}

static void run_all(const SimConfig *c, State *s, SimResult *r)
{
    double now = c->startup_s;
    r->startup_s = c->startup_s;
    for (int64_t i = 0; i < c->steps; i++) {
        double eval, checkpoint;
        SimStep step = run_step(c, s, i, now);
        if (i == 0) r->startup_s += c->warmup_extra_s, now += c->warmup_extra_s;
        now += step.step_s;
        step.stall_s = stall_after(c, s, i, now, &eval, &checkpoint);
        now += step.stall_s;
        r->step[i] = step;
        r->compute_s += step.compute_s;
        r->comm_s += c->comm_s;
        r->host_s += c->host_s;
        r->loader_s += step.loader_s;
        r->straggler_s += step.straggler_s;
        r->eval_s += eval;
        r->checkpoint_s += checkpoint;
    }
    /* an evaluation that still runs elsewhere decides when the result is known */
    double tail = c->async_eval ? fmax(0, s->eval_busy_until - now) : 0;
    r->eval_s += tail;
    r->total_s = now + tail;
}

Status simulate_run(const SimConfig *config, SimResult *out)
{
    TRY(check(config));
    SimResult result = {.steps = config->steps};
    State state;
    result.step = malloc((size_t)config->steps * sizeof *result.step);
    if (!result.step)
        return status_fail(ERR_MEMORY, "simulation: out of memory for %lld steps", (long long)config->steps);
    Status status = state_create(config, &state);
    if (status == OK) {
        run_all(config, &state, &result);
        summarize(&result);
    }
    state_free(&state);
    if (status != OK) {
        simulate_free(&result);
        return status;
    }
    *out = result;
    return OK;
}

void simulate_free(SimResult *result)
{
    free(result->step);
    *result = (SimResult){0};
}

Status simulate_write(const SimResult *r, const char *path)
{
    static const char *const names[] = {"step",     "start_s",     "step_s",  "compute_s",
                                        "loader_s", "straggler_s", "stall_s", "slowest_rank"};
    TableWriter *w;
    TRY(table_writer_create(path, names, 8, &w));
    Status status = OK;
    for (int64_t i = 0; i < r->steps && status == OK; i++) {
        const SimStep *s = &r->step[i];
        table_put_int(w, i);
        table_put_double(w, s->start_s);
        table_put_double(w, s->step_s);
        table_put_double(w, s->compute_s);
        table_put_double(w, s->loader_s);
        table_put_double(w, s->straggler_s);
        table_put_double(w, s->stall_s);
        table_put_int(w, s->slowest);
        status = table_writer_row(w);
    }
    if (status != OK) {
        table_writer_abandon(&w);
        return status;
    }
    return table_writer_close(&w);
}
