#include "experiments/own_prices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const double OWN_RUNS[OWN_PROGRAMS] = {1.5, 1, 1};

/* The optimizer of all switches is two ops, that of none is issued late by the host: neither tells what marks cost. */
enum { MARKED_PROGRAMS = 2 };

double own_distance(const OwnStep *a, const OwnStep *b)
{
    double distance = fabs(log2((double)a->dap / (double)b->dap)) + (a->switches.checkpoint != b->switches.checkpoint);
    for (int i = 0; own_switch_names[i]; i++) {
        /* without a group there is nothing to overlap */
        if (a->dap == 1 && b->dap == 1 && !strcmp(own_switch_names[i], "comm_overlap")) continue;
        distance += config_switch_get(&a->switches, own_switch_names[i]) !=
                    config_switch_get(&b->switches, own_switch_names[i]);
    }
    return distance;
}

static const OwnStep *step_of(const OwnPrices *p, int table)
{
    return &p->data->step[p->data->table[table].step];
}

static bool in_graph(const OwnPrices *p, int table)
{
    return step_of(p, table)->switches.cuda_graph;
}

/* --- what marks and launches add
 * ---------------------------------------------------------------------------------------------------- */

static double without_mark(const OwnPrices *p, const OpTiming *t, double mark_s)
{
    const MachineDevice *device = &p->machine->device;
    double call_s = t->time_s / t->calls, least_s = device->graph_launch_s.source ? device->graph_launch_s.value : 0;
    return t->calls * fmax(call_s - mark_s, fmin(call_s, least_s)); /* nothing in a graph is shorter */
}

/* Of the ops of programs [first, last] in a mean step, without marks of mark_s each. */
static double ops_seconds(const OwnPrices *p, int table, int first, int last, double mark_s)
{
    const OwnTable *t = &p->data->table[table];
    double sum = 0;
    for (int i = t->first; i < t->first + t->count; i++) {
        int program = p->data->program[i];
        if (program >= first && program <= last)
            sum += OWN_RUNS[program] * without_mark(p, &p->data->timing[i], mark_s);
    }
    return sum;
}

static double ops_of(const OwnPrices *p, int table, int first, int last)
{
    const OwnTable *t = &p->data->table[table];
    double sum = 0;
    for (int i = t->first; i < t->first + t->count; i++)
        if (p->data->program[i] >= first && p->data->program[i] <= last)
            sum += OWN_RUNS[p->data->program[i]] * p->data->timing[i].calls;
    return sum;
}

static double whole_seconds(const OwnPrices *p, int table, int first, int last)
{
    double sum = 0;
    for (int k = first; k <= last; k++) sum += OWN_RUNS[k] * step_of(p, table)->program_s[k];
    return sum;
}

/* The sum falls as the mark grows: bisection. */
static double solve_mark(const OwnPrices *p, int table)
{
    static const double MOST = 50e-6; /* the longest mark looked for, either way */
    double low = -MOST, high = MOST, whole = whole_seconds(p, table, 0, MARKED_PROGRAMS - 1);
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (ops_seconds(p, table, 0, MARKED_PROGRAMS - 1, middle) > whole)
            low = middle;
        else
            high = middle;
    }
    return high;
}

/* What a mark costs goes by how long the ops between are: long ones leave less to keep apart. Octaves between two
 * steps. */
static double length_distance(double ops, double seconds, const OwnPrices *p, int table)
{
    return fabs(log2(seconds / ops / (step_of(p, table)->step_s / ops_of(p, table, 0, OWN_PROGRAMS - 1))));
}

/* Where the host launches, gaps between kernels hide what marks add: graphs tell, those of as many ranks first. */
static void set_marks(OwnPrices *p)
{
    const OwnData *d = p->data;
    double sum = 0, squares = 0, distances = 0;
    int graphs = 0;
    for (int t = 0; t < d->tables; t++) {
        if (!in_graph(p, t)) continue;
        p->mark_s[t] = solve_mark(p, t);
        sum += p->mark_s[t];
        graphs++;
        for (int g = 0; g < t; g++) {
            if (!in_graph(p, g)) continue;
            squares += pow(p->mark_s[t] - p->mark_s[g], 2);
            distances += length_distance(ops_of(p, t, 0, OWN_PROGRAMS - 1), step_of(p, t)->step_s, p, g);
        }
    }
    for (int t = 0; t < d->tables; t++) {
        double near = 0;
        int count = 0;
        if (in_graph(p, t)) continue;
        for (int g = 0; g < d->tables; g++)
            if (in_graph(p, g) && d->table[g].dap == d->table[t].dap) near += p->mark_s[g], count++;
        p->mark_s[t] = count ? near / count : graphs ? sum / graphs : 0;
    }
    if (distances > 0) p->mark_drift = squares / distances;
}

/* What a launch by the host adds to an op: on the device between ops (long programs), or the host's own time where that
 * is longer (an optimizer of thousands of small ops). */
static void set_launches(OwnPrices *p)
{
    enum { MANY_OPS = 100 };
    const MachineDevice *device = &p->machine->device;
    double ops = 0, late = 0;
    p->host_s = device->launch_s.value;
    p->gap_s = device->graph_launch_s.source ? device->launch_s.value - device->graph_launch_s.value : 0;
    for (int t = 0; t < p->data->tables; t++) {
        if (in_graph(p, t)) continue;
        ops += ops_of(p, t, 0, MARKED_PROGRAMS - 1);
        late += whole_seconds(p, t, 0, MARKED_PROGRAMS - 1) - ops_seconds(p, t, 0, MARKED_PROGRAMS - 1, p->mark_s[t]);
    }
    if (ops > 0) p->gap_s = fmax(late / ops, 0);
    for (int t = 0; t < p->data->tables; t++) {
        double count = ops_of(p, t, 2, 2), whole = whole_seconds(p, t, 2, 2);
        if (in_graph(p, t) || count < MANY_OPS) continue;
        if (whole > ops_seconds(p, t, 2, 2, p->mark_s[t]) + count * p->gap_s) p->host_s = whole / count;
    }
}

/* --- one shape in several settings
 * ---------------------------------------------------------------------------------------------------- */

static bool same_shape(const OpTiming *a, const OpTiming *b)
{
    return a->bytes == b->bytes && a->flops == b->flops && a->rate == b->rate && !strcmp(a->kind, b->kind);
}

/* Of times, not of ops: what a step feels is the error of those that take long. */
static void set_drift(OwnPrices *p)
{
    static const double ALONE = 0.0005; /* without a shape in two settings: 5 % over five switches */
    const OwnData *d = p->data;
    double square = 0, weights = 0;
    for (int a = 0; a < d->tables; a++)
        for (int b = 0; b < a; b++) {
            double distance = own_distance(step_of(p, a), step_of(p, b));
            for (int i = d->table[a].first; i < d->table[a].first + d->table[a].count; i++)
                for (int j = d->table[b].first; j < d->table[b].first + d->table[b].count; j++) {
                    const OpTiming *x = &d->timing[i], *y = &d->timing[j];
                    if (d->program[i] != d->program[j] || !same_shape(x, y) || !(x->time_s > 0 && y->time_s > 0))
                        continue;
                    double one = without_mark(p, x, p->mark_s[a]), other = without_mark(p, y, p->mark_s[b]);
                    square += pow(one * log(one / x->calls * y->calls / other), 2);
                    weights += one * one * distance;
                }
        }
    p->time_drift = weights > 0 ? square / weights : ALONE;
}

Status own_prices_open(const OwnData *d, const Machine *machine, OwnPrices *out)
{
    OwnPrices p = {.data = d, .machine = machine};
    for (int t = 0; t < d->tables; t++)
        if (d->table[t].step < 0)
            return status_fail(ERR_INPUT, "op_table.csv: setting %s (dap %lld) has op times but no whole step",
                               d->table[t].setting, (long long)d->table[t].dap);
    p.mark_s = calloc((size_t)d->tables + 1, sizeof *p.mark_s);
    if (!p.mark_s) return status_fail(ERR_MEMORY, "op prices: out of memory");
    set_marks(&p);
    set_launches(&p);
    set_drift(&p);
    *out = p;
    return OK;
}

void own_prices_close(OwnPrices *p)
{
    free(p->mark_s);
    *p = (OwnPrices){0};
}

double own_prices_mark_sd(const OwnPrices *p, double ops, double step_s)
{
    double nearest = INFINITY;
    for (int t = 0; t < p->data->tables; t++)
        if (in_graph(p, t)) nearest = fmin(nearest, length_distance(ops, step_s, p, t));
    return isfinite(nearest) ? ops * sqrt(p->mark_drift * nearest) / step_s : 0;
}

Status own_prices_fit(const OwnPrices *p, const OwnStep *step, int except, OpPrices **prices_out)
{
    static const double LEAST = 0.01; /* of the logarithm of one op's time from run to run */
    const OwnData *d = p->data;
    int used = 0;
    OpTiming *timing = calloc((size_t)d->timings + 1, sizeof *timing);
    if (!timing) return status_fail(ERR_MEMORY, "op prices: out of memory");
    for (int t = 0; t < d->tables; t++)
        for (int i = d->table[t].first; i < d->table[t].first + d->table[t].count && t != except; i++) {
            timing[used] = d->timing[i];
            timing[used].time_s = without_mark(p, &d->timing[i], p->mark_s[t]);
            timing[used].sd = fmax(LEAST, sqrt(p->time_drift * own_distance(step, step_of(p, t))));
            used += timing[used].time_s > 0;
        }
    Status status = opprice_fit_timings(timing, used, p->machine, prices_out);
    free(timing);
    TRY(status);
    (*prices_out)->from_graphs = true;
    (*prices_out)->gap_s = p->gap_s;
    (*prices_out)->host_s = p->host_s;
    return OK;
}
