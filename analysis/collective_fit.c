/* Corrections of the collective model on measured samples: t = max(floor, a latency + b wire), fitted on logarithms
 * with gsl_multifit_nlinear; priors keep constants that the samples do not reach (no large message: b) near the
 * model's. */
#include "analysis/collective.h"

#include <gsl/gsl_errno.h>
#include <gsl/gsl_multifit_nlinear.h>
#include <math.h>
#include <stdlib.h>

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

static int residuals(const gsl_vector *x, void *context, gsl_vector *f)
{
    const Samples *s = context;
    double a = gsl_vector_get(x, 0), b = gsl_vector_get(x, 1), c = gsl_vector_get(x, 2);
    if (!(fabs(a) < 30 && fabs(b) < 30 && fabs(c) < 60)) return GSL_EDOM;
    for (int i = 0; i < s->count; i++)
        gsl_vector_set(f, (size_t)i, (log(modelled(s, i, a, b, exp(c))) - s->log_time[i]) / SAMPLE_SD);
    gsl_vector_set(f, (size_t)s->count, a / PRIOR_SD[0]);
    gsl_vector_set(f, (size_t)s->count + 1, b / PRIOR_SD[1]);
    gsl_vector_set(f, (size_t)s->count + 2, (c - log(s->shortest)) / PRIOR_SD[2]);
    return GSL_SUCCESS;
}

static Status solve(Samples *s, CollectiveFit *out)
{
    gsl_set_error_handler_off();
    gsl_multifit_nlinear_parameters settings = gsl_multifit_nlinear_default_parameters();
    size_t rows = (size_t)s->count + PRIOR_ROWS;
    gsl_multifit_nlinear_workspace *w = gsl_multifit_nlinear_alloc(gsl_multifit_nlinear_trust, &settings, rows, PARAMS);
    if (!w) return status_fail(ERR_MEMORY, "collectives: out of memory for the fit");
    double start[PARAMS] = {0, 0, log(s->shortest)};
    gsl_vector_view view = gsl_vector_view_array(start, PARAMS);
    gsl_multifit_nlinear_fdf fdf = {.f = residuals, .n = rows, .p = PARAMS, .params = s};
    int info;
    int code = gsl_multifit_nlinear_init(&view.vector, &fdf, w);
    if (code == GSL_SUCCESS) code = gsl_multifit_nlinear_driver(200, 1e-8, 1e-8, 0, NULL, NULL, &info, w);
    Status status = code == GSL_SUCCESS || code == GSL_ENOPROG || code == GSL_EMAXITER
                        ? OK
                        : status_fail(ERR_NUMERIC, "collectives: fit failed: %s", gsl_strerror(code));
    if (status == OK) {
        const gsl_vector *x = gsl_multifit_nlinear_position(w);
        out->log_latency = gsl_vector_get(x, 0);
        out->log_wire = gsl_vector_get(x, 1);
        out->floor_s = exp(gsl_vector_get(x, 2));
        double square = 0;
        for (int i = 0; i < s->count; i++)
            square += pow(gsl_vector_get(gsl_multifit_nlinear_residual(w), (size_t)i) * SAMPLE_SD, 2);
        out->sd = sqrt(square / fmax(1, s->count - 2));
        out->samples = s->count;
    }
    gsl_multifit_nlinear_free(w);
    return status;
}

static Status fit_kind(Machine *m, Collective kind)
{
    Samples s = {.shortest = INFINITY};
    double *memory = malloc((size_t)m->samples * 3 * sizeof *memory);
    if (!memory) return status_fail(ERR_MEMORY, "collectives: out of memory");
    s.latency = memory;
    s.wire = memory + m->samples;
    s.log_time = memory + 2 * m->samples;
    for (unsigned i = 0; i < m->samples; i++) {
        const MachineSample *sample = &m->sample[i];
        if (sample->collective != kind) continue;
        int64_t per_node = sample->ranks < m->node.devices ? sample->ranks : m->node.devices;
        CollectiveTime t;
        collective_structure(m, kind, sample->bytes,
                             (Group){.ranks = sample->ranks, .per_node = per_node, .concurrent = 1}, &t);
        s.latency[s.count] = t.latency_s;
        s.wire[s.count] = t.wire_s;
        s.log_time[s.count++] = log(sample->time_s);
        s.shortest = fmin(s.shortest, sample->time_s);
    }
    Status status = s.count > 0 ? solve(&s, &m->fit[kind]) : OK;
    free(memory);
    return status;
}

Status collective_calibrate(Machine *m)
{
    double latency = 0, wire = 0, floor = 0, sd = 0;
    int measured = 0;
    for (int k = 0; k < COLLECTIVE_COUNT; k++) {
        m->fit[k] = (CollectiveFit){.sd = 0.2};
        if (m->samples > 0) TRY(fit_kind(m, (Collective)k));
        if (!m->fit[k].samples) continue;
        latency += m->fit[k].log_latency, wire += m->fit[k].log_wire, floor += log(m->fit[k].floor_s);
        sd = fmax(sd, m->fit[k].sd);
        measured++;
    }
    for (int k = 0; k < COLLECTIVE_COUNT && measured > 0; k++) {
        if (m->fit[k].samples) continue;
        m->fit[k] = (CollectiveFit){.log_latency = latency / measured,
                                    .log_wire = wire / measured,
                                    .floor_s = exp(floor / measured),
                                    .sd = fmax(sd, 0.2)};
    }
    return OK;
}
