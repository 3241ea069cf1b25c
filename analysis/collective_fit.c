/* Corrections of the collective model on measured samples: t = max(floor, a latency + b wire), fitted on logarithms
 * with gsl_multifit_nlinear; priors keep constants that the samples do not reach (no large message: b) near the
 * model's. */
#include "analysis/collective.h"

#include <math.h>
#include <stdlib.h>

#include "analysis/lsq.h"

void collective_structure(const Machine *m, Collective kind, double bytes, Group g, CollectiveTime *out);

/* The maximum is rounded off so that the solver sees a slope on both sides: (x^8 + floor^8)^(1/8). */
static const double SHARPNESS = 8;

typedef struct Samples {
    int count;
    double *latency, *wire, *log_time; /* [count] */
    double shortest;
} Samples;

static double modelled(const Samples *s, int i, double a, double b, double floor)
{
    double free = exp(a) * s->latency[i] + exp(b) * s->wire[i];
    double larger = fmax(free, floor), smaller = fmin(free, floor);
    return larger * pow(1 + pow(smaller / larger, SHARPNESS), 1 / SHARPNESS);
}

enum { PARAMS = 3, PRIOR_ROWS = 3 };
/* spread of logarithms: latencies of another library or process layout within a factor of e, rates within 1.6 */
static const double PRIOR_SD[PARAMS] = {1.0, 0.5, 0.7};
static const double SAMPLE_SD = 0.1;

static bool residuals(const double *x, void *context, double *f)
{
    const Samples *s = context;
    double a = x[0], b = x[1], c = x[2];
    if (!(fabs(a) < 30 && fabs(b) < 30 && fabs(c) < 60)) return false;
    for (int i = 0; i < s->count; i++) f[i] = (log(modelled(s, i, a, b, exp(c))) - s->log_time[i]) / SAMPLE_SD;
    f[s->count] = a / PRIOR_SD[0];
    f[s->count + 1] = b / PRIOR_SD[1];
    f[s->count + 2] = (c - log(s->shortest)) / PRIOR_SD[2];
    return true;
}

static Status solve(Samples *s, CollectiveFit *out)
{
    double x[PARAMS] = {0, 0, log(s->shortest)};
    double *residual = malloc((size_t)(s->count + PRIOR_ROWS) * sizeof *residual);
    if (!residual) return status_fail(ERR_MEMORY, "collectives: out of memory");
    Status status = lsq_solve(residuals, s, s->count + PRIOR_ROWS, PARAMS, x, residual);
    double square = 0;
    for (int i = 0; status == OK && i < s->count; i++) square += pow(residual[i] * SAMPLE_SD, 2);
    if (status == OK)
        *out = (CollectiveFit){.log_latency = x[0],
                               .log_wire = x[1],
                               .floor_s = exp(x[2]),
                               .sd = sqrt(square / fmax(1, s->count - 2)),
                               .samples = s->count};
    free(residual);
    return status;
}

static Status fit_kind(Machine *m, Collective kind, bool graph)
{
    Samples s = {.shortest = INFINITY};
    double *memory = malloc((size_t)m->samples * 3 * sizeof *memory);
    if (!memory) return status_fail(ERR_MEMORY, "collectives: out of memory");
    s.latency = memory;
    s.wire = memory + m->samples;
    s.log_time = memory + 2 * m->samples;
    for (unsigned i = 0; i < m->samples; i++) {
        const MachineSample *sample = &m->sample[i];
        if (sample->collective != kind || sample->graph != graph) continue;
        int64_t per_node = sample->ranks < m->node.devices ? sample->ranks : m->node.devices;
        CollectiveTime t;
        collective_structure(m, kind, sample->bytes,
                             (Group){.ranks = sample->ranks, .per_node = per_node, .concurrent = 1}, &t);
        s.latency[s.count] = t.latency_s;
        s.wire[s.count] = t.wire_s;
        s.log_time[s.count++] = log(sample->time_s);
        s.shortest = fmin(s.shortest, sample->time_s);
    }
    Status status = s.count > 0 ? solve(&s, &m->fit[graph][kind]) : OK;
    free(memory);
    return status;
}

/* Kinds without samples take the mean of the measured ones; without any, a mode keeps no floor of its own. */
static Status calibrate_mode(Machine *m, bool graph)
{
    double latency = 0, wire = 0, floor = 0, sd = 0;
    int measured = 0;
    CollectiveFit *fit = m->fit[graph];
    for (int k = 0; k < COLLECTIVE_COUNT; k++) {
        fit[k] = (CollectiveFit){.sd = 0.2};
        if (m->samples > 0) TRY(fit_kind(m, (Collective)k, graph));
        if (!fit[k].samples) continue;
        latency += fit[k].log_latency, wire += fit[k].log_wire, floor += log(fit[k].floor_s);
        sd = fmax(sd, fit[k].sd);
        measured++;
    }
    for (int k = 0; k < COLLECTIVE_COUNT && measured > 0; k++) {
        if (fit[k].samples) continue;
        fit[k] = (CollectiveFit){.log_latency = latency / measured,
                                 .log_wire = wire / measured,
                                 .floor_s = exp(floor / measured),
                                 .sd = fmax(sd, 0.2)};
    }
    return OK;
}

Status collective_calibrate(Machine *m)
{
    TRY(calibrate_mode(m, false));
    return calibrate_mode(m, true);
}
