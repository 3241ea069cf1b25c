/* SimGrid 3.32 time-independent traces: lines "rank verb arguments". Verbs used: init, compute FLOPS, isend TO TAG
 * BYTES, irecv FROM TAG BYTES, wait FROM TO TAG, waitall, finalize; sizes in elements of type 6 (MPI_BYTE in replay's
 * table). An exchange beside computation is one round of messages, waited for by the first op that reads its result. */
#include "analysis/trace.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/collective.h"

static const double HOST_FLOPS = 1e9; /* speed written into the platform: one flop is a nanosecond of priced time */

typedef struct Writer {
    FILE *f;
    int64_t rank;
    double pending_s; /* computation not yet written: consecutive ops become one line */
} Writer;

static void flush_compute(Writer *w)
{
    if (w->pending_s > 0) fprintf(w->f, "%lld compute %.17g\n", (long long)w->rank, w->pending_s * HOST_FLOPS);
    w->pending_s = 0;
}

static void exchange(Writer *w, int64_t to, int64_t from, double bytes, int tag)
{
    double size = ceil(bytes > 1 ? bytes : 1);
    fprintf(w->f, "%lld isend %lld %d %.0f 6\n", (long long)w->rank, (long long)to, tag, size);
    fprintf(w->f, "%lld irecv %lld %d %.0f 6\n", (long long)w->rank, (long long)from, tag, size);
}

static void wait_all(Writer *w)
{
    fprintf(w->f, "%lld waitall\n", (long long)w->rank);
}

typedef struct Members {
    int64_t first, stride, members, index;
} Members;

static int64_t member(const Members *g, int64_t index)
{
    return g->first + index * g->stride;
}

/* Every member sends a slice to every other: all-to-all, and the one-round forms of all-gather and reduce-scatter. */
static void send_slices(Writer *w, const Members *g, double bytes, int tag)
{
    for (int64_t k = 1; k < g->members; k++)
        exchange(w, member(g, (g->index + k) % g->members), member(g, (g->index - k + g->members) % g->members),
                 bytes / (double)g->members, tag);
}

static void wait_slices(Writer *w, const Members *g, int tag)
{
    for (int64_t k = 1; k < g->members; k++) {
        long long to = member(g, (g->index + k) % g->members), me = w->rank;
        long long from = member(g, (g->index - k + g->members) % g->members);
        fprintf(w->f, "%lld wait %lld %lld %d\n%lld wait %lld %lld %d\n", me, me, to, tag, me, from, me, tag);
    }
}

/* Recursive halving (scatter) sends B/2, B/4 ... to partners at distance n/2, n/4 ...; doubling (gather) the reverse.
 */
static void halving(Writer *w, const Members *g, double bytes)
{
    for (int64_t distance = g->members / 2; distance >= 1; distance /= 2) {
        int64_t partner = member(g, g->index ^ distance);
        bytes /= 2;
        exchange(w, partner, partner, bytes, 0);
        wait_all(w);
    }
}

static void doubling(Writer *w, const Members *g, double bytes)
{
    bytes /= (double)g->members;
    for (int64_t distance = 1; distance < g->members; distance *= 2) {
        int64_t partner = member(g, g->index ^ distance);
        exchange(w, partner, partner, bytes, 0);
        wait_all(w);
        bytes *= 2;
    }
}

static void ring(Writer *w, const Members *g, double bytes, int64_t rounds)
{
    int64_t next = member(g, (g->index + 1) % g->members), before = member(g, (g->index - 1 + g->members) % g->members);
    for (int64_t step = 0; step < rounds * (g->members - 1); step++) {
        exchange(w, next, before, bytes / (double)g->members, 0);
        wait_all(w);
    }
}

/* In a group of this size every member writes to all others at once, as the engine's collectives do. */
enum { ONE_ROUND = 16 };

static void lower(Writer *w, const TraceOp *op, const Members *g)
{
    bool power = (g->members & (g->members - 1)) == 0, all_reduce = op->collective == COLLECTIVE_ALL_REDUCE;
    if (op->collective == COLLECTIVE_ALL_TO_ALL || (g->members <= ONE_ROUND && !all_reduce)) {
        send_slices(w, g, op->tensor_bytes, 0);
        wait_all(w);
    } else if (!power) {
        ring(w, g, op->tensor_bytes, all_reduce ? 2 : 1);
    } else { /* an all-gather doubles; a broadcast is a scatter and an all-gather */
        if (all_reduce || op->collective == COLLECTIVE_REDUCE_SCATTER) halving(w, g, op->tensor_bytes);
        if (op->collective != COLLECTIVE_REDUCE_SCATTER) doubling(w, g, op->tensor_bytes);
    }
}

static Members members_of(const Trace *t, const TraceOp *op, int64_t rank)
{
    Members g;
    g.members = trace_group(t, op->group, rank, &g.first, &g.stride);
    g.index = (rank - g.first) / g.stride;
    return g;
}

/* In a small group an all-reduce beside computation is one round of twice the bytes; in a large one its rounds depend
 * on one another and are waited for at once. */
static bool runs_aside(const TraceOp *op, const Members *g)
{
    return op->stream == STREAM_COMM && (g->members <= ONE_ROUND || op->collective == COLLECTIVE_ALL_TO_ALL);
}

/* Waits for the exchanges whose results op i reads; in_flight[] by op. Tags are op numbers, from 1. */
static void land(Writer *w, const Trace *t, int i, bool *in_flight)
{
    for (int d = t->op[i].first_dep; d < t->op[i].first_dep + t->op[i].deps; d++) {
        int from = t->dep[d];
        if (!in_flight[from]) continue;
        Members g = members_of(t, &t->op[from], w->rank);
        flush_compute(w);
        wait_slices(w, &g, from + 1);
        in_flight[from] = false;
    }
}

static void write_op(Writer *w, const Trace *t, int i, bool *in_flight)
{
    const TraceOp *op = &t->op[i];
    land(w, t, i, in_flight);
    if (!op->comm) w->pending_s += op->duration_s;
    Members g = op->comm ? members_of(t, op, w->rank) : (Members){.members = 1};
    if (g.members <= 1) return;
    flush_compute(w);
    if (runs_aside(op, &g)) {
        send_slices(w, &g, op->tensor_bytes * (op->collective == COLLECTIVE_ALL_REDUCE ? 2 : 1), i + 1);
        in_flight[i] = true;
        return;
    }
    lower(w, op, &g);
    memset(in_flight, 0, (size_t)i * sizeof *in_flight); /* its waitall has waited for all that was under way */
}

static Status write_rank(const Trace *t, const char *path, int64_t rank)
{
    Writer w = {.f = fopen(path, "wb"), .rank = rank};
    bool *in_flight = calloc((size_t)t->count + 1, sizeof *in_flight);
    if (!w.f || !in_flight) {
        if (w.f) fclose(w.f);
        free(in_flight);
        return status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    }
    fprintf(w.f, "%lld init\n", (long long)rank);
    for (int i = 0; i < t->count; i++) write_op(&w, t, i, in_flight);
    flush_compute(&w);
    wait_all(&w);
    free(in_flight);
    fprintf(w.f, "%lld finalize\n", (long long)rank);
    bool bad = ferror(w.f) != 0;
    if (fclose(w.f)) bad = true;
    return bad ? status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno)) : OK;
}

/* A node is a star of its devices around a switch (full link rate each way), nodes hang on a fat switch through their
 * cards. Latency per hop: half the model's smallest exchange inside a node, the network's own between nodes. */
static void put_platform(FILE *f, const Machine *m, int64_t ranks)
{
    int64_t nodes = (ranks + m->node.devices - 1) / m->node.devices;
    double link = m->node.link_bytes_per_s.value > 0 ? m->node.link_bytes_per_s.value : 1e12;
    CollectiveTime small;
    collective_time(m, COLLECTIVE_ALL_TO_ALL, 8,
                    (Group){.ranks = 2, .per_node = m->node.devices > 1 ? 2 : 1, .concurrent = 1, .in_graph = true},
                    &small);
    double latency = fmax(small.latency_s / 2, 1e-7);
    fputs("<?xml version='1.0'?>\n<!DOCTYPE platform SYSTEM \"https://simgrid.org/simgrid.dtd\">\n<platform "
          "version=\"4.1\">\n"
          "<zone id=\"machine\" routing=\"Full\">\n",
          f);
    for (int64_t n = 0; n < nodes; n++)
        fprintf(f,
                "<cluster id=\"node%lld\" prefix=\"host\" suffix=\"\" radical=\"%lld-%lld\" speed=\"%.17gf\" "
                "bw=\"%.17gBps\" "
                "lat=\"%.17gs\" router_id=\"router%lld\"/>\n",
                (long long)n, (long long)(n * m->node.devices), (long long)((n + 1) * m->node.devices - 1), HOST_FLOPS,
                link, latency, (long long)n);
    double rate = (double)m->network.rails * m->network.rail_bytes_per_s.value / m->network.oversubscription.value;
    for (int64_t n = 0; nodes > 1 && n < nodes; n++)
        fprintf(f, "<link id=\"net%lld\" bandwidth=\"%.17gBps\" latency=\"%.17gs\" sharing_policy=\"SPLITDUPLEX\"/>\n",
                (long long)n, rate, m->network.latency_s.value / 2 + 1e-6);
    for (int64_t a = 0; a < nodes; a++)
        for (int64_t b = a + 1; b < nodes; b++)
            fprintf(f,
                    "<zoneRoute src=\"node%lld\" dst=\"node%lld\" gw_src=\"router%lld\" gw_dst=\"router%lld\">"
                    "<link_ctn id=\"net%lld\" direction=\"UP\"/><link_ctn id=\"net%lld\" "
                    "direction=\"DOWN\"/></zoneRoute>\n",
                    (long long)a, (long long)b, (long long)a, (long long)b, (long long)a, (long long)b);
    fputs("</zone>\n</platform>\n", f);
}

typedef void (*PutFile)(FILE *f, const Machine *m, int64_t ranks);

static void put_hosts(FILE *f, const Machine *m, int64_t ranks)
{
    (void)m;
    for (int64_t r = 0; r < ranks; r++) fprintf(f, "host%lld\n", (long long)r);
}

static void put_index(FILE *f, const Machine *m, int64_t ranks)
{
    (void)m;
    for (int64_t r = 0; r < ranks; r++) fprintf(f, "rank%lld.ti\n", (long long)r);
}

/* Plain flow model: SMPI's default factors describe TCP over Ethernet (13 times the latency, a congestion window). */
static void put_script(FILE *f, const Machine *m, int64_t ranks)
{
    (void)m;
    fprintf(f,
            "#!/bin/sh\n# prints the simulated time of one step\ncd \"$(dirname \"$0\")\" && smpirun -np %lld "
            "-platform platform.xml -hostfile hostfile -replay trace.idx \\\n"
            "  --cfg=network/model:CM02 --cfg=network/TCP-gamma:0 --cfg=smpi/display-timing:yes \\\n"
            "  --log=smpi_replay.thresh:error --log=xbt_cfg.thresh:error\n",
            (long long)ranks);
}

static Status write_file(const char *folder, const char *name, PutFile put, const Machine *m, int64_t ranks)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return status_fail(ERR_USAGE, "export: folder name too long");
    FILE *f = fopen(path, "wb");
    if (!f) return status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    put(f, m, ranks);
    bool bad = ferror(f) != 0;
    if (fclose(f)) bad = true;
    return bad ? status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno)) : OK;
}

Status export_simgrid(const Trace *trace, const Machine *machine, const char *folder)
{
    int64_t ranks = trace->dp * trace->dap;
    char path[4096];
    TRY(write_file(folder, "platform.xml", put_platform, machine, ranks));
    TRY(write_file(folder, "hostfile", put_hosts, machine, ranks));
    TRY(write_file(folder, "trace.idx", put_index, machine, ranks));
    TRY(write_file(folder, "replay.sh", put_script, machine, ranks));
    for (int64_t r = 0; r < ranks; r++) {
        if (snprintf(path, sizeof path, "%s/rank%lld.ti", folder, (long long)r) >= (int)sizeof path)
            return status_fail(ERR_USAGE, "export: folder name too long");
        TRY(write_rank(trace, path, r));
    }
    return OK;
}
