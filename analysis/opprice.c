#include "analysis/opprice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/collective.h"
#include "analysis/lsq.h"

/* One op of the profile: roofline and measured seconds of a call. */
typedef struct Sample {
    const char *kind;
    double roofline_s, time_s, weight;
} Sample;

typedef struct CurveFit {
    const Sample *sample;
    int count;
    const char *kind; /* NULL: all */
    double prior[2], prior_sd[2];
} CurveFit;

/* logarithms of single ops scatter by about this much around a smooth curve; sets the weight of the priors */
static const double SAMPLE_SD = 0.15;

/* Fixed cost and slope, each as a logarithm. Ops that take long weigh more: errors of the total are what counts. */
static bool residuals(const double *x, void *context, double *out)
{
    const CurveFit *f = context;
    if (!(fabs(x[0]) < 60 && fabs(x[1]) < 30)) return false;
    int used = 0;
    for (int i = 0; i < f->count; i++) {
        const Sample *s = &f->sample[i];
        if (f->kind && strcmp(s->kind, f->kind)) continue;
        double model = exp(x[0]) + exp(x[1]) * s->roofline_s;
        out[used++] = (log(model) - log(s->time_s)) / SAMPLE_SD * s->weight;
    }
    out[used] = (x[0] - f->prior[0]) / f->prior_sd[0];
    out[used + 1] = (x[1] - f->prior[1]) / f->prior_sd[1];
    return true;
}

static Status fit_curve(CurveFit *f, OpCurve *out)
{
    int used = 0;
    for (int i = 0; i < f->count; i++) used += !f->kind || !strcmp(f->sample[i].kind, f->kind);
    double x[2] = {f->prior[0], f->prior[1]};
    TRY(lsq_solve(residuals, f, used + 2, 2, x, NULL));
    out->kind = f->kind ? f->kind : "";
    out->overhead_s = exp(x[0]);
    out->slowness = exp(x[1]);
    out->samples = used;
    double square = 0;
    for (int i = 0; i < f->count; i++) {
        const Sample *s = &f->sample[i];
        if (f->kind && strcmp(s->kind, f->kind)) continue;
        square += pow(log(s->time_s / (out->overhead_s + out->slowness * s->roofline_s)), 2);
    }
    /* two constants are fitted; with so few samples that nothing is left, the prior of a curve's misfit stands in */
    out->sd = sqrt((square + SAMPLE_SD * SAMPLE_SD * 2) / fmax(2, used));
    return OK;
}

double opprice_roofline(const Machine *m, CostRate rate, double flops, double bytes)
{
    const MachineDevice *d = &m->device;
    double peak = d->f32_flops.value;
    if (rate == RATE_BF16 && d->bf16_flops.value > 0) peak = d->bf16_flops.value;
    if (rate == RATE_F64) peak = d->f64_flops.value > 0 ? d->f64_flops.value : peak / 2;
    return fmax(flops / peak, bytes / d->copy_bytes_per_s.value);
}

static Status prices_new(const Machine *m, OpPrices **out)
{
    OpPrices *p = calloc(1, sizeof *p);
    if (!p) return status_fail(ERR_MEMORY, "op prices: out of memory");
    p->kernels_per_op = p->slowness_factor = 1;
    p->launch_s = m->device.launch_s.value;
    p->graph_launch_s = m->device.graph_launch_s.source ? m->device.graph_launch_s.value : p->launch_s;
    p->machine = arena_strdup(&p->arena, m->name);
    if (!p->machine) {
        opprice_destroy(&p);
        return status_fail(ERR_MEMORY, "op prices: out of memory");
    }
    *out = p;
    return OK;
}

void opprice_destroy(OpPrices **prices)
{
    if (!prices || !*prices) return;
    arena_free(&(*prices)->arena);
    free(*prices);
    *prices = NULL;
}

Status opprice_assume(const Machine *machine, double efficiency, double kernels_per_op, double sd,
                      OpPrices **prices_out)
{
    if (!(kernels_per_op > 0 && kernels_per_op <= 1000))
        return status_fail(ERR_USAGE, "op prices: %g kernels per op (expected above 0, at most 1000)", kernels_per_op);
    if (!(efficiency > 0 && efficiency <= 1))
        return status_fail(ERR_USAGE, "op prices: efficiency %g (expected above 0, at most 1)", efficiency);
    OpPrices *p;
    TRY(prices_new(machine, &p));
    p->kernels_per_op = kernels_per_op;
    p->pooled = (OpCurve){.kind = "", .overhead_s = p->launch_s * kernels_per_op, .slowness = 1 / efficiency, .sd = sd};
    *prices_out = p;
    return OK;
}

static int collect(const OpRow *rows, int64_t count, const Machine *m, CostRate rate, Sample *sample)
{
    int used = 0;
    double longest = 0;
    for (int64_t i = 0; i < count; i++) {
        const OpRow *r = &rows[i];
        if (r->calls < 1 || !(r->time_s > 0) || r->wire_bytes > 0) continue;
        double roofline = opprice_roofline(m, rate, r->flops, r->bytes);
        sample[used++] = (Sample){r->kind, roofline, r->time_s / (double)r->calls, r->time_s};
        longest = fmax(longest, r->time_s);
    }
    /* weight from 0.2 for the shortest to 1 for the longest op, by share of time */
    for (int i = 0; i < used; i++) sample[i].weight = fmax(0.2, sqrt(sample[i].weight / longest));
    return used;
}

static Status fit_kinds(OpPrices *p, CurveFit *f)
{
    p->curve = arena_array(&p->arena, (size_t)f->count, sizeof *p->curve);
    if (!p->curve) return status_fail(ERR_MEMORY, "op prices: out of memory");
    f->prior[0] = log(p->pooled.overhead_s), f->prior[1] = log(p->pooled.slowness);
    for (int i = 0; i < f->count; i++) {
        bool seen = false;
        for (int k = 0; k < p->count && !seen; k++) seen = !strcmp(p->curve[k].kind, f->sample[i].kind);
        if (seen) continue;
        f->kind = arena_strdup(&p->arena, f->sample[i].kind);
        if (!f->kind) return status_fail(ERR_MEMORY, "op prices: out of memory");
        TRY(fit_curve(f, &p->curve[p->count]));
        p->count++;
    }
    return OK;
}

Status opprice_fit(const OpRow *rows, int64_t count, const Machine *machine, CostRate rate, OpPrices **prices_out)
{
    OpPrices *p = NULL;
    Sample *sample = malloc((size_t)(count > 0 ? count : 1) * sizeof *sample);
    if (!sample) return status_fail(ERR_MEMORY, "op prices: out of memory for %lld rows", (long long)count);
    Status status;
    TRY_GOTO(status, prices_new(machine, &p), fail);
    CurveFit f = {.sample = sample, .count = collect(rows, count, machine, rate, sample)};
    if (f.count == 0) {
        status = status_fail(ERR_INPUT, "op prices: no op with calls and time among %lld rows", (long long)count);
        goto fail;
    }
    f.prior[0] = log(fmax(p->launch_s, 1e-8)), f.prior[1] = log(2);
    f.prior_sd[0] = 1.5, f.prior_sd[1] = 1;
    TRY_GOTO(status, fit_curve(&f, &p->pooled), fail);
    f.prior_sd[0] = 1, f.prior_sd[1] = 0.7;
    TRY_GOTO(status, fit_kinds(p, &f), fail);
    for (int i = 0; i < f.count; i++) p->total_measured_s += sample[i].time_s;
    for (int i = 0; i < f.count; i++)
        for (int k = 0; k < p->count; k++)
            if (!strcmp(p->curve[k].kind, sample[i].kind))
                p->total_priced_s += p->curve[k].overhead_s + p->curve[k].slowness * sample[i].roofline_s;
    free(sample);
    *prices_out = p;
    return OK;
fail:
    free(sample);
    opprice_destroy(&p);
    return status;
}

static const OpCurve *find_curve(const OpPrices *p, const char *kind)
{
    for (int k = 0; k < p->count; k++)
        if (!strcmp(p->curve[k].kind, kind)) return &p->curve[k];
    return &p->pooled;
}

static bool other_machine(const OpPrices *p, const Machine *m)
{
    return strcmp(p->machine, m->name) != 0;
}

/* Overheads were measured with host launches; in a graph the launch shrinks and the rest stays. On another machine they
 * scale with its launch time. */
static double overhead(const OpPrices *p, const Machine *m, const OpCurve *curve, bool in_graph)
{
    double launch = m->device.launch_s.value;
    double graph = m->device.graph_launch_s.source ? m->device.graph_launch_s.value : launch;
    double scaled = curve->overhead_s;
    if (other_machine(p, m) && p->launch_s > 0) scaled *= launch / p->launch_s;
    double saved = p->kernels_per_op * (launch - graph);
    return in_graph ? fmax(scaled - saved, fmin(p->kernels_per_op * graph, scaled)) : scaled;
}

double opprice_time(const OpPrices *p, const Machine *m, const char *kind, CostRate rate, double flops, double bytes,
                    bool in_graph, double *sd_out)
{
    const OpCurve *curve = find_curve(p, kind);
    double slowness = curve->slowness * p->slowness_factor, sd = curve->sd;
    if (curve == &p->pooled && p->count > 0) sd *= 1.5; /* a kind that nobody measured */
    if (other_machine(p, m)) sd = sqrt(sd * sd + OPPRICE_OTHER_MACHINE_SD * OPPRICE_OTHER_MACHINE_SD);
    if (sd_out) *sd_out = sd;
    return overhead(p, m, curve, in_graph) + slowness * opprice_roofline(m, rate, flops, bytes);
}

static Group group_of(const Machine *m, CostGroup group, int64_t dp, int64_t dap, bool in_graph)
{
    if (group == COST_GROUP_MODEL) return group_model(m, dap, in_graph);
    if (group == COST_GROUP_DATA) return group_data(m, dp, dap, in_graph);
    return group_data(m, dp * dap, 1, in_graph);
}

/* What is left of a collective after the computation it runs beside; shrinks both terms alike. */
static void add_comm(const OpPrices *p, const Machine *m, const StepCost *cost, const CostClass *c, int64_t dp,
                     StepPrice *out)
{
    CollectiveTime t;
    collective_time(m, c->collective, c->tensor_bytes, group_of(m, c->group, dp, cost->dap, cost->in_graph), &t);
    if (!(t.total_s > 0)) return;
    double cover = 0;
    if (c->cover_kernels > 0)
        cover = c->cover_kernels * overhead(p, m, &p->pooled, cost->in_graph) +
                p->pooled.slowness * p->slowness_factor * opprice_roofline(m, c->rate, c->cover_flops, c->cover_bytes);
    double exposed = fmax(0, t.total_s - cover) / t.total_s;
    out->comm_total_s += c->calls * t.total_s;
    out->latency_s += c->calls * exposed * t.latency_s;
    out->wire_s += c->calls * exposed * t.wire_s;
}

Status opprice_step(const OpPrices *p, const Machine *m, const StepCost *cost, int64_t dp, StepPrice *out)
{
    if (dp < 1 || dp > INT64_MAX / cost->dap || dp * cost->dap > machine_devices(m))
        return status_fail(ERR_USAGE, "%lld x %lld ranks do not fit on %s (%lld devices)", (long long)dp,
                           (long long)cost->dap, m->name, (long long)machine_devices(m));
    StepPrice r = {0};
    double variance = 0;
    /* curves of one kind err together, different kinds apart */
    for (int i = 0; i < cost->count; i++) {
        const CostClass *c = &cost->item[i];
        if (c->comm) {
            add_comm(p, m, cost, c, dp, &r);
            continue;
        }
        double sd, time = c->calls * opprice_time(p, m, c->kind, c->rate, c->flops, c->bytes, cost->in_graph, &sd);
        r.compute_s += time;
        r.stage_s[c->stage] += time;
        r.overhead_s += time - c->calls * opprice_roofline(m, c->rate, c->flops, c->bytes);
        if (!c->sharded && cost->dap > 1) r.unsharded_s += time;
        variance += pow(sd * time, 2);
    }
    r.sd = r.compute_s > 0 ? sqrt(variance) / r.compute_s : 0;
    *out = r;
    return OK;
}

Status opprice_calibrate(OpPrices *p, const Machine *m, const StepCost *cost, int64_t dp, double compute_s)
{
    /* time is linear in the factor: two prices give it */
    StepPrice none, one;
    p->slowness_factor = 0;
    TRY(opprice_step(p, m, cost, dp, &none));
    p->slowness_factor = 1;
    TRY(opprice_step(p, m, cost, dp, &one));
    double factor = (compute_s - none.compute_s) / (one.compute_s - none.compute_s);
    if (!(factor >= 0.01 && factor <= 1000))
        return status_fail(ERR_INPUT,
                           "op prices: a step of %g s needs a factor of %g on kernels (overheads %g s, kernels %g s)",
                           compute_s, factor, none.compute_s, one.compute_s - none.compute_s);
    p->slowness_factor = factor;
    return OK;
}
