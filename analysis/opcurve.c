#include "analysis/opcurve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/lsq.h"

typedef struct CurveFit {
    const OpSample *sample;
    int count;
    double prior[2], prior_sd[2];
} CurveFit;

/* logarithms of single shapes scatter by about this much around a smooth curve; sets the weight of the priors */
static const double SAMPLE_SD = 0.15;
/* context_sd before any shape was measured in two programs */
static const double CONTEXT_SD = 0.05;

/* Fixed cost and slope, each as a logarithm. Ops that take long weigh more: errors of the total are what counts. */
static bool residuals(const double *x, void *context, double *out)
{
    const CurveFit *f = context;
    if (!(fabs(x[0]) < 60 && fabs(x[1]) < 30)) return false;
    for (int i = 0; i < f->count; i++) {
        const OpSample *s = &f->sample[i];
        out[i] = (log(exp(x[0]) + exp(x[1]) * s->roofline_s) - log(s->time_s)) / SAMPLE_SD * s->weight;
    }
    out[f->count] = (x[0] - f->prior[0]) / f->prior_sd[0];
    out[f->count + 1] = (x[1] - f->prior[1]) / f->prior_sd[1];
    return true;
}

static Status fit_curve(CurveFit *f, OpCurve *out)
{
    double x[2] = {f->prior[0], f->prior[1]}, square = 0;
    TRY(lsq_solve(residuals, f, f->count + 2, 2, x, NULL));
    out->overhead_s = exp(x[0]);
    out->slowness = exp(x[1]);
    out->samples = f->count;
    for (int i = 0; i < f->count; i++)
        square += pow(log(f->sample[i].time_s / (out->overhead_s + out->slowness * f->sample[i].roofline_s)), 2);
    /* two constants are fitted; with so few samples that nothing is left, the prior of a curve's misfit stands in */
    out->sd = sqrt((square + SAMPLE_SD * SAMPLE_SD * 2) / fmax(2, f->count));
    return OK;
}

/* --- samples: equal shapes merged -----------------------------------------------------------------------------------
 */

static int by_shape(const void *a, const void *b)
{
    const OpTiming *x = a, *y = b;
    int kind = strcmp(x->kind, y->kind);
    if (kind) return kind;
    if (x->rate != y->rate) return x->rate < y->rate ? -1 : 1;
    if (x->flops != y->flops) return x->flops < y->flops ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Timings [first, end) are of one shape; those that are known better weigh more. *square_sum and *degrees collect how
 * its time differs between them. */
static OpSample merge(const OpTiming *t, int first, int end, const Machine *m, double *square_sum, double *degrees)
{
    double all = 0, calls = 0, time_s = 0, weight = 0, mean = 0, sd = t[first].sd;
    for (int i = first; i < end; i++) {
        double trust = t[i].sd > 0 ? 1 / (t[i].sd * t[i].sd) : 1;
        all += t[i].calls;
        calls += trust * t[i].calls;
        time_s += trust * t[i].time_s;
        sd = fmin(sd, t[i].sd);
    }
    for (int i = first; i < end; i++) {
        double l = log(t[i].time_s / t[i].calls);
        mean += t[i].time_s * l;
        weight += t[i].time_s;
    }
    mean /= weight;
    for (int i = first; i < end && end - first > 1; i++)
        *square_sum += t[i].time_s * pow(log(t[i].time_s / t[i].calls) - mean, 2);
    if (end - first > 1) *degrees += weight * (end - first - 1) / (end - first);
    return (OpSample){.kind = t[first].kind,
                      .rate = t[first].rate,
                      .log_flops = log2(1 + t[first].flops),
                      .log_bytes = log2(1 + t[first].bytes),
                      .roofline_s = opprice_roofline(m, t[first].rate, t[first].flops, t[first].bytes),
                      .time_s = time_s / calls,
                      .weight = sqrt(all),
                      .sd = sd};
}

/* Weight from 0.2 for the shortest to 1 for the longest call, by share of time, times the root of how often it ran. */
static void weigh(OpSample *sample, int count)
{
    double longest = 0;
    for (int i = 0; i < count; i++) longest = fmax(longest, sample[i].time_s);
    for (int i = 0; i < count; i++) sample[i].weight *= fmax(0.2, sqrt(sample[i].time_s / longest));
}

static Status make_samples(OpPrices *p, const OpTiming *timing, int count, const Machine *m, int *count_out)
{
    OpTiming *sorted = malloc((size_t)count * sizeof *sorted);
    int used = 0;
    double square_sum = 0, degrees = 0;
    p->sample = arena_array(&p->arena, (size_t)count, sizeof *p->sample);
    if (!sorted || !p->sample) {
        free(sorted);
        return status_fail(ERR_MEMORY, "op prices: out of memory for %d timings", count);
    }
    memcpy(sorted, timing, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_shape);
    for (int first = 0, end; first < count; first = end) {
        for (end = first + 1; end < count && by_shape(&sorted[first], &sorted[end]) == 0;) end++;
        p->sample[used++] = merge(sorted, first, end, m, &square_sum, &degrees);
    }
    free(sorted);
    weigh(p->sample, used);
    p->context_sd = degrees > 0 ? fmax(sqrt(square_sum / degrees), 0.01) : CONTEXT_SD;
    *count_out = used;
    return OK;
}

/* --- curves
 * ---------------------------------------------------------------------------------------------------------- */

static void set_misfits(OpPrices *p, const OpCurve *curve)
{
    for (int i = curve->first; i < curve->first + curve->samples; i++) {
        OpSample *s = &p->sample[i];
        s->misfit = log(s->time_s / (curve->overhead_s + curve->slowness * s->roofline_s));
    }
}

static double neighbours(const OpPrices *p, const OpCurve *curve, int except, CostRate rate, double log_flops,
                         double log_bytes);

/* Spread of shapes that were not measured: every sample from its neighbours, as if it were one of them. */
static double left_out_sd(const OpPrices *p, const OpCurve *curve)
{
    double square = 0;
    for (int i = curve->first; i < curve->first + curve->samples; i++) {
        const OpSample *s = &p->sample[i];
        square += pow(s->misfit - neighbours(p, curve, i, s->rate, s->log_flops, s->log_bytes), 2);
    }
    return sqrt((square + SAMPLE_SD * SAMPLE_SD * 2) / fmax(2, curve->samples + 2));
}

static Status fit_kinds(OpPrices *p, CurveFit *f, int samples)
{
    p->curve = arena_array(&p->arena, (size_t)samples, sizeof *p->curve);
    if (!p->curve) return status_fail(ERR_MEMORY, "op prices: out of memory");
    f->prior[0] = log(p->pooled.overhead_s), f->prior[1] = log(p->pooled.slowness);
    for (int first = 0, end; first < samples; first = end) {
        OpCurve *curve = &p->curve[p->count];
        const char *kind = arena_strdup(&p->arena, p->sample[first].kind);
        if (!kind) return status_fail(ERR_MEMORY, "op prices: out of memory");
        for (end = first; end < samples && !strcmp(p->sample[end].kind, kind);) end++;
        for (int i = first; i < end; i++) p->sample[i].kind = kind;
        f->sample = p->sample + first;
        f->count = end - first;
        *curve = (OpCurve){.kind = kind, .first = first};
        TRY(fit_curve(f, curve));
        set_misfits(p, curve);
        curve->sd = left_out_sd(p, curve);
        p->count++;
    }
    return OK;
}

Status opcurve_fit(OpPrices *p, const OpTiming *timing, int count, const Machine *machine)
{
    int samples = 0;
    if (count < 1) return status_fail(ERR_INPUT, "op prices: no op with calls and time");
    TRY(make_samples(p, timing, count, machine, &samples));
    CurveFit f = {.sample = p->sample, .count = samples};
    f.prior[0] = log(fmax(p->launch_s, 1e-8)), f.prior[1] = log(2);
    f.prior_sd[0] = 1.5, f.prior_sd[1] = 1;
    TRY(fit_curve(&f, &p->pooled));
    p->pooled.kind = "";
    f.prior_sd[0] = 1, f.prior_sd[1] = 0.7;
    return fit_kinds(p, &f, samples);
}

const OpCurve *opcurve_find(const OpPrices *p, const char *kind)
{
    int low = 0, high = p->count - 1; /* curves are in order of kinds, as the samples are */
    while (low <= high) {
        int middle = (low + high) / 2, order = strcmp(kind, p->curve[middle].kind);
        if (order == 0) return &p->curve[middle];
        if (order < 0)
            high = middle - 1;
        else
            low = middle + 1;
    }
    return NULL;
}

/* --- shapes around a shape
 * ------------------------------------------------------------------------------------------- */

/* Mean misfit by inverse squared distance in octaves, drawn to zero where all are far: the weight of the curve is that
 * of a neighbour three octaves away. */
static const double CURVE_WEIGHT = 0.1, SAME_OCTAVE = 0.05;

static double neighbours(const OpPrices *p, const OpCurve *curve, int except, CostRate rate, double log_flops,
                         double log_bytes)
{
    double sum = 0, weights = 0;
    for (int i = curve->first; i < curve->first + curve->samples; i++) {
        const OpSample *s = &p->sample[i];
        if (i == except || s->rate != rate) continue;
        double flops = log_flops - s->log_flops, bytes = log_bytes - s->log_bytes;
        double weight = 1 / (flops * flops + bytes * bytes + SAME_OCTAVE);
        sum += weight * s->misfit;
        weights += weight;
    }
    return sum / (weights + CURVE_WEIGHT);
}

double opcurve_misfit(const OpPrices *p, const OpCurve *curve, CostRate rate, double flops, double bytes,
                      double *sd_out, bool *measured_out)
{
    double log_flops = log2(1 + flops), log_bytes = log2(1 + bytes);
    for (int i = curve->first; i < curve->first + curve->samples; i++) {
        const OpSample *s = &p->sample[i];
        if (s->rate != rate || s->log_flops != log_flops || s->log_bytes != log_bytes) continue;
        *sd_out = s->sd > 0 ? s->sd : p->context_sd;
        *measured_out = true;
        return s->misfit;
    }
    *measured_out = false;
    *sd_out = curve->sd;
    return neighbours(p, curve, -1, rate, log_flops, log_bytes);
}

double opcurve_reach(const OpPrices *p, const OpCurve *curve, CostRate rate, double bytes)
{
    double low = INFINITY, high = -INFINITY, log_bytes = log2(1 + bytes);
    for (int i = curve->first; i < curve->first + curve->samples; i++) {
        if (p->sample[i].rate != rate) continue;
        low = fmin(low, p->sample[i].log_bytes);
        high = fmax(high, p->sample[i].log_bytes);
    }
    return low <= high ? fmax(0, fmax(low - log_bytes, log_bytes - high)) : 0;
}
