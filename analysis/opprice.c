#include "analysis/opprice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/collective.h"
#include "analysis/opcurve.h"

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

Status opprice_assume_kind(OpPrices *p, const char *kind, double kernels)
{
    int at = p->count;
    OpCurve *curve = arena_array(&p->arena, (size_t)p->count + 1, sizeof *curve);
    char *name = arena_strdup(&p->arena, kind);
    if (!curve || !name) return status_fail(ERR_MEMORY, "op prices: out of memory");
    if (p->count) memcpy(curve, p->curve, (size_t)p->count * sizeof *curve);
    for (; at > 0 && strcmp(curve[at - 1].kind, kind) > 0; at--) curve[at] = curve[at - 1]; /* in order of kinds */
    curve[at] = p->pooled;
    curve[at].kind = name;
    curve[at].overhead_s = p->launch_s * kernels;
    p->curve = curve;
    p->count++;
    return OK;
}

void opprice_set_launch(OpPrices *p, double launch_s)
{
    double scale = launch_s / p->launch_s;
    p->pooled.overhead_s *= scale;
    for (int k = 0; k < p->count; k++) p->curve[k].overhead_s *= scale;
    p->launch_s = launch_s;
}

static int collect(const OpRow *rows, int64_t count, CostRate rate, OpTiming *timing)
{
    int used = 0;
    for (int64_t i = 0; i < count; i++) {
        const OpRow *r = &rows[i];
        if (!(r->calls > 0) || !(r->time_s > 0) || r->wire_bytes > 0) continue;
        timing[used++] = (OpTiming){r->kind, rate, r->flops, r->bytes, r->calls, r->time_s, 0};
    }
    return used;
}

Status opprice_fit_timings(const OpTiming *timing, int count, const Machine *machine, OpPrices **prices_out)
{
    OpPrices *p = NULL;
    TRY(prices_new(machine, &p));
    Status status = opcurve_fit(p, timing, count, machine);
    for (int i = 0; i < count && status == OK; i++) {
        const OpTiming *t = &timing[i];
        p->total_measured_s += t->time_s;
        p->total_priced_s +=
            t->calls * opprice_time(p, machine, t->kind, t->rate, t->flops, t->bytes, p->from_graphs, NULL);
    }
    if (status == OK)
        *prices_out = p;
    else
        opprice_destroy(&p);
    return status;
}

Status opprice_fit(const OpRow *rows, int64_t count, const Machine *machine, CostRate rate, OpPrices **prices_out)
{
    OpTiming *timing = count <= INT32_MAX ? malloc((size_t)(count > 0 ? count : 1) * sizeof *timing) : NULL;
    if (!timing) return status_fail(ERR_MEMORY, "op prices: out of memory for %lld rows", (long long)count);
    int used = collect(rows, count, rate, timing);
    Status status =
        used ? opprice_fit_timings(timing, used, machine, prices_out)
             : status_fail(ERR_INPUT, "op prices: no op with calls and time among %lld rows", (long long)count);
    free(timing);
    return status;
}

static bool other_machine(const OpPrices *p, const Machine *m)
{
    return strcmp(p->machine, m->name) != 0;
}

/* Overheads measured with host launches: in a graph the launch shrinks and the rest stays. Measured in graphs: a launch
 * adds its gap. On another machine both scale with its launch time. */
static double overhead(const OpPrices *p, const Machine *m, const OpCurve *curve, bool in_graph)
{
    double launch = m->device.launch_s.value;
    double graph = m->device.graph_launch_s.source ? m->device.graph_launch_s.value : launch;
    double scale = other_machine(p, m) && p->launch_s > 0 ? launch / p->launch_s : 1;
    double scaled = curve->overhead_s * scale;
    if (p->from_graphs) return scaled + (in_graph ? 0 : p->gap_s * scale);
    double saved = p->kernels_per_op * (launch - graph);
    return in_graph ? fmax(scaled - saved, fmin(p->kernels_per_op * graph, scaled)) : scaled;
}

/* `measured_out`: this very shape was timed. */
static double time_of(const OpPrices *p, const Machine *m, const CostClass *c, bool in_graph, const OpCurve **curve_out,
                      double *sd_out, bool *measured_out)
{
    const OpCurve *curve = opcurve_find(p, c->kind);
    double misfit = 0, sd = p->pooled.sd;
    *measured_out = false;
    if (curve)
        misfit = opcurve_misfit(p, curve, c->rate, c->flops, c->bytes, &sd, measured_out);
    else if (p->sample)
        sd *= 1.5; /* a kind that nobody measured */
    if (!curve) curve = &p->pooled;
    if (other_machine(p, m)) sd = sqrt(sd * sd + OPPRICE_OTHER_MACHINE_SD * OPPRICE_OTHER_MACHINE_SD);
    if (sd_out) *sd_out = sd;
    if (curve_out) *curve_out = curve;
    double kernel = curve->slowness * p->slowness_factor * opprice_roofline(m, c->rate, c->flops, c->bytes);
    double fixed = overhead(p, m, curve, p->from_graphs), launch = overhead(p, m, curve, in_graph) - fixed;
    return fmax((fixed + kernel) * exp(misfit) + launch, 0);
}

double opprice_time(const OpPrices *p, const Machine *m, const char *kind, CostRate rate, double flops, double bytes,
                    bool in_graph, double *sd_out)
{
    const CostClass c = {.kind = kind, .rate = rate, .flops = flops, .bytes = bytes};
    bool measured;
    return time_of(p, m, &c, in_graph, NULL, sd_out, &measured);
}

static Group group_of(const Machine *m, CostGroup group, int64_t dp, int64_t dap, bool in_graph)
{
    if (group == COST_GROUP_MODEL) return group_model(m, dap, in_graph);
    if (group == COST_GROUP_DATA) return group_data(m, dp, dap, in_graph);
    return group_data(m, dp * dap, 1, in_graph);
}

static double cover_of(const OpPrices *p, const Machine *m, const StepCost *cost, const CostClass *c)
{
    if (!(c->cover_kernels > 0)) return 0;
    return c->cover_kernels * overhead(p, m, &p->pooled, cost->in_graph) +
           p->pooled.slowness * p->slowness_factor * opprice_roofline(m, c->rate, c->cover_flops, c->cover_bytes);
}

/* What is left of a collective after the computation it runs beside; shrinks both terms alike. Both share the device:
 * a machine that was measured says how much of it hides. What an op sends while it computes it takes nothing from it.
 */
static void add_comm(const OpPrices *p, const Machine *m, const StepCost *cost, const CostClass *c, int64_t dp,
                     StepPrice *out)
{
    CollectiveTime t;
    Group group = group_of(m, c->group, dp, cost->dap, cost->in_graph);
    collective_time(m, c->collective, c->tensor_bytes, group, &t);
    if (!(t.total_s > 0)) return;
    double cover = cover_of(p, m, cost, c), share = m->node.overlap.value > 0 ? m->node.overlap.value : 1;
    if (c->sender) share = group_shares_memory(m, group) ? 1 : 0;
    double exposed = 1 - share * fmin(cover, t.total_s) / t.total_s;
    out->comm_total_s += c->calls * t.total_s;
    out->latency_s += c->calls * exposed * t.latency_s;
    out->wire_s += c->calls * exposed * t.wire_s;
}

/* Sums over the classes of a step. Spreads add within a kind, whose shapes err together; kinds are apart. */
typedef struct StepSum {
    StepPrice price;
    double launches[COST_STAGE_COUNT]; /* ops that the host issues */
    double measured_s;
    double reach_s;   /* time of shapes outside of those measured, times octaves */
    double *spread_s; /* [kinds + 1], the last for those without a curve */
} StepSum;

static void add_compute(const OpPrices *p, const Machine *m, const StepCost *cost, const CostClass *c, StepSum *sum)
{
    const OpCurve *curve;
    double sd;
    bool measured;
    double time = c->calls * time_of(p, m, c, cost->in_graph, &curve, &sd, &measured);
    sum->price.compute_s += time;
    sum->price.stage_s[c->stage] += time;
    sum->price.overhead_s += time - c->calls * opprice_roofline(m, c->rate, c->flops, c->bytes);
    if (!c->sharded && cost->dap > 1) sum->price.unsharded_s += time;
    sum->launches[c->stage] += c->calls;
    if (measured)
        sum->measured_s += time;
    else if (curve != &p->pooled)
        sum->reach_s += time * opcurve_reach(p, curve, c->rate, c->bytes);
    sum->spread_s[curve == &p->pooled ? p->count : (int)(curve - p->curve)] += sd * time;
}

/* A stage cannot end before the host has issued its ops. */
static void wait_for_host(const OpPrices *p, const Machine *m, StepSum *sum)
{
    double scale = other_machine(p, m) && p->launch_s > 0 ? m->device.launch_s.value / p->launch_s : 1;
    for (int stage = 0; stage < COST_STAGE_COUNT; stage++) {
        double late = sum->launches[stage] * p->host_s * scale - sum->price.stage_s[stage];
        if (late <= 0) continue;
        sum->price.stage_s[stage] += late;
        sum->price.compute_s += late;
        sum->price.overhead_s += late;
    }
}

Status opprice_step(const OpPrices *p, const Machine *m, const StepCost *cost, int64_t dp, StepPrice *out)
{
    int64_t share = cost->comm_left_out ? 1 : cost->dap; /* the others need not exist */
    if (dp < 1 || dp > INT64_MAX / share || dp * share > machine_devices(m))
        return status_fail(ERR_USAGE, "%lld x %lld ranks do not fit on %s (%lld devices)", (long long)dp,
                           (long long)cost->dap, m->name, (long long)machine_devices(m));
    StepSum sum = {.spread_s = calloc((size_t)p->count + 1, sizeof(double))};
    if (!sum.spread_s) return status_fail(ERR_MEMORY, "op prices: out of memory");
    for (int i = 0; i < cost->count; i++) {
        const CostClass *c = &cost->item[i];
        if (c->comm && !cost->comm_left_out) add_comm(p, m, cost, c, dp, &sum.price);
        /* starting a collective aside, waiting for it, and the packing of one that is left out are ops like others
         * where they were measured; an op that sends packs as it computes */
        CostClass op = *c;
        if (c->comm && c->aside) op.kind = COST_ASIDE_NAMES[c->collective];
        bool local = c->wait || (c->comm && (c->aside || cost->comm_left_out) && !c->sender);
        if (local ? opcurve_find(p, op.kind) != NULL : !c->comm) add_compute(p, m, cost, &op, &sum);
    }
    if (p->from_graphs && !cost->in_graph) wait_for_host(p, m, &sum);
    double variance = pow(OPPRICE_OCTAVE_SD * sum.reach_s, 2);
    for (int k = 0; k <= p->count; k++) variance += sum.spread_s[k] * sum.spread_s[k];
    free(sum.spread_s);
    if (sum.price.compute_s > 0) {
        sum.price.sd = sqrt(variance) / sum.price.compute_s;
        sum.price.measured = sum.measured_s / sum.price.compute_s;
    }
    *out = sum.price;
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
