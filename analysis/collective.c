#include "analysis/collective.h"

#include <math.h>
#include <string.h>

typedef enum Protocol { LL, LL128, SIMPLE, PROTOCOL_COUNT } Protocol;
static const char *const PROTOCOL_NAMES[] = {"LL", "LL128", "Simple"};

/* Microseconds, in the order LL, LL128, Simple. NVLink, PCIe and network rows: NCCL 2.30 src/graph/tuning.cc. Shared
 * memory: the same shape with the few microseconds of a queue between processes; the fit on measured samples corrects
 * it. */
static const double BASE_TREE[] = {6.8, 14, 8.4}, BASE_RING[] = {6.6, 14, 8.4};
static const double HOP_TREE[][3] = {
    [FABRIC_NVLINK] = {0.6, 1.25, 4.0}, [FABRIC_PCIE] = {1, 1.9, 4}, [FABRIC_SHARED_MEMORY] = {2, 2, 4}};
static const double HOP_RING[][3] = {
    [FABRIC_NVLINK] = {0.6, 1.9, 3.4}, [FABRIC_PCIE] = {1, 2.5, 5.7}, [FABRIC_SHARED_MEMORY] = {2, 2, 4}};
static const double NET_TREE[] = {5, 8.5, 14}, NET_RING[] = {2.7, 4, 14};
static const double NVLS_HOP = 25, NVLS_TREE_NET = 20.9, PAT_BASE = 8, PAT_NET = 14;
static const double NVLS_EFFICIENCY = 0.85, PAT_EFFICIENCY = 0.75, TREE_EFFICIENCY = 0.92;
static const double MICRO = 1e-6;

Group group_model(const Machine *machine, int64_t dap, bool in_graph)
{
    int64_t devices = machine->node.devices;
    int64_t per_node = dap < devices ? dap : devices;
    int64_t concurrent = devices / per_node;
    return (Group){
        .ranks = dap, .per_node = per_node, .concurrent = concurrent > 0 ? concurrent : 1, .in_graph = in_graph};
}

Group group_data(const Machine *machine, int64_t dp, int64_t dap, bool in_graph)
{
    int64_t devices = machine->node.devices;
    int64_t per_node = devices / (dap < devices ? dap : devices);
    if (per_node > dp) per_node = dp;
    int64_t concurrent = dap < devices ? dap : devices; /* one group per place inside the DAP group */
    return (Group){.ranks = dp, .per_node = per_node, .concurrent = concurrent, .in_graph = in_graph};
}

bool group_shares_memory(const Machine *machine, Group group)
{
    return machine->kind == MACHINE_GPU && group.per_node >= group.ranks;
}

/* Bytes per second that one group can send out of a node. A card serves the devices next to it (rails-optimized
 * networks), so a group of few members per node uses few cards; concurrent groups divide all of them. */
static double network_rate(const Machine *m, Group g)
{
    double rails = (double)m->network.rails;
    double reach = fmax(1, rails * (double)g.per_node / (double)m->node.devices);
    double share = fmin(reach, rails / (double)g.concurrent);
    return share * m->network.rail_bytes_per_s.value / m->network.oversubscription.value;
}

typedef struct Way {
    double n, nodes;      /* ranks, nodes they spread over */
    double link, network; /* bytes/s of one device inside, of the group on one node outside (INFINITY on one node) */
    double net_extra_us;  /* switch latency per hop between nodes */
} Way;

static Way way_of(const Machine *m, Group g)
{
    Way w = {.n = (double)g.ranks, .nodes = ceil((double)g.ranks / (double)g.per_node), .network = INFINITY};
    w.link = m->node.link_bytes_per_s.value > 0 ? m->node.link_bytes_per_s.value : INFINITY;
    if (w.nodes > 1) {
        w.network = network_rate(m, g);
        w.net_extra_us = m->network.latency_s.value / MICRO;
        if (g.per_node == 1) w.link = INFINITY; /* nothing travels inside a node */
    }
    return w;
}

static void offer(CollectiveTime *best, double latency_us, double bytes, double rate, const char *algorithm,
                  const char *protocol)
{
    double latency = latency_us * MICRO, wire = isinf(rate) ? 0 : bytes / rate;
    if (latency + wire >= best->total_s) return;
    *best = (CollectiveTime){latency, wire, latency + wire, algorithm, protocol};
}

static void offer_rings(const Machine *m, Collective kind, double bytes, Way w, CollectiveTime *best)
{
    static const double efficiency[] = {0.5, 0.92, 1};
    double rounds = kind == COLLECTIVE_ALL_REDUCE ? 2 : 1;
    double steps = rounds * (w.n - 1), inter = w.nodes > 1 ? rounds * (w.nodes - 1) : 0;
    /* broadcast pipelines the whole tensor through the ring; the others move (n-1)/n of it per round */
    double per_byte = kind == COLLECTIVE_BROADCAST ? 1 : steps / w.n;
    for (int p = 0; p < PROTOCOL_COUNT; p++) {
        double hop = HOP_RING[m->node.fabric][p];
        double latency = BASE_RING[p] + (steps - inter) * hop + inter * (NET_RING[p] + w.net_extra_us);
        double rate = fmin(w.link, w.network) * efficiency[p];
        offer(best, latency, bytes * per_byte, rate, "ring", PROTOCOL_NAMES[p]);
    }
}

static void offer_trees(const Machine *m, double bytes, Way w, CollectiveTime *best)
{
    double efficiency[] = {1 / 3.8, w.nodes > 1 ? 120.0 / 128 : 7.0 / 9, 1};
    double depth = w.nodes > 1 ? floor(log2(w.nodes)) : 0;
    for (int p = 0; p < PROTOCOL_COUNT; p++) {
        double inside = (w.n / w.nodes - 1) * HOP_TREE[m->node.fabric][p];
        double latency = BASE_TREE[p] + 2 * (inside + depth * (NET_TREE[p] + w.net_extra_us));
        double rate = fmin(w.link, w.network) * efficiency[p] * TREE_EFFICIENCY / 2;
        offer(best, latency, bytes, rate, "tree", PROTOCOL_NAMES[p]);
    }
}

static void offer_switch(const Machine *m, Collective kind, double bytes, Way w, CollectiveTime *best)
{
    /* reductions in the switch need every device of the node in the group */
    if (!m->node.nvls || w.n / w.nodes < (double)m->node.devices || kind != COLLECTIVE_ALL_REDUCE) return;
    double inside = w.link * NVLS_EFFICIENCY;
    if (w.nodes <= 1) {
        offer(best, BASE_RING[SIMPLE] + NVLS_HOP, bytes, inside, "nvls", "Simple");
    } else {
        double latency = BASE_TREE[SIMPLE] + NVLS_HOP + 2 * log2(w.nodes) * (NVLS_TREE_NET + w.net_extra_us) / 2;
        offer(best, latency, bytes, fmin(inside, w.network / 2), "nvls tree", "Simple");
    }
}

static void offer_pat(Collective kind, double bytes, Way w, Group g, CollectiveTime *best)
{
    if (g.per_node != 1 || w.nodes <= 1 || (kind != COLLECTIVE_ALL_GATHER && kind != COLLECTIVE_REDUCE_SCATTER)) return;
    double latency = PAT_BASE + log2(w.n) * (PAT_NET + w.net_extra_us);
    offer(best, latency, bytes * (w.n - 1) / w.n, w.network * PAT_EFFICIENCY, "pat", "Simple");
}

/* (n - 1) messages of bytes / n each: those inside a node leave through the device's links, those to other nodes share
 * the node's cards with the other members. Both ways work at the same time. */
static void offer_pairwise(const Machine *m, double bytes, Way w, Group g, CollectiveTime *best)
{
    double members = (double)g.per_node;
    double inside = w.link < INFINITY ? bytes * (members - 1) / w.n / w.link : 0;
    double outside = w.nodes > 1 ? bytes * (w.n - members) / w.n * members / w.network : 0;
    double hops = w.nodes > 1 ? NET_RING[SIMPLE] + w.net_extra_us : HOP_RING[m->node.fabric][SIMPLE];
    offer(best, BASE_RING[SIMPLE] + hops, fmax(inside, outside), 1, "pairwise", "");
}

static void structural_time(const Machine *m, Collective kind, double bytes, Group g, CollectiveTime *out)
{
    *out = (CollectiveTime){.total_s = INFINITY, .algorithm = "", .protocol = ""};
    Way w = way_of(m, g);
    if (kind == COLLECTIVE_ALL_TO_ALL) {
        offer_pairwise(m, bytes, w, g, out);
        return;
    }
    offer_rings(m, kind, bytes, w, out);
    if (kind == COLLECTIVE_ALL_REDUCE) offer_trees(m, bytes, w, out);
    offer_switch(m, kind, bytes, w, out);
    offer_pat(kind, bytes, w, g, out);
}

void collective_structure(const Machine *m, Collective kind, double bytes, Group g, CollectiveTime *out)
{
    structural_time(m, kind, bytes, g, out);
}

static bool graph_was_measured(const Machine *m, Collective kind, Group g)
{
    return g.in_graph && m->fit[1][kind].floor_s > 0;
}

static void corrected_time(const Machine *m, Collective kind, double bytes, Group g, CollectiveTime *out)
{
    structural_time(m, kind, bytes, g, out);
    bool graph = graph_was_measured(m, kind, g);
    const CollectiveFit *fit = &m->fit[graph][kind];
    out->latency_s *= exp(fit->log_latency);
    out->wire_s *= exp(fit->log_wire);
    double floor = fit->floor_s > 0 ? fit->floor_s : m->node.collective_floor_s.value;
    if (g.in_graph && !graph) floor = m->device.graph_launch_s.value;
    out->latency_s = fmax(out->latency_s, floor - out->wire_s);
    out->total_s = out->latency_s + out->wire_s;
}

/* Logarithm of measured over modelled time, between the two samples next in size: only for groups as they were measured
 * (protocols change at sizes that no smooth model knows). 0 without such samples. */
static double measured_misfit(const Machine *m, Collective kind, double bytes, Group g)
{
    bool graph = graph_was_measured(m, kind, g);
    const MachineSample *below = NULL, *above = NULL;
    if (g.in_graph != graph || g.concurrent > 1 ||
        g.per_node != (g.ranks < m->node.devices ? g.ranks : m->node.devices))
        return 0;
    for (unsigned i = 0; i < m->samples; i++) {
        const MachineSample *s = &m->sample[i];
        if (s->collective != kind || s->ranks != g.ranks || s->graph != graph) continue;
        if (s->bytes <= bytes && (!below || s->bytes > below->bytes)) below = s;
        if (s->bytes >= bytes && (!above || s->bytes < above->bytes)) above = s;
    }
    if (!below && !above) return 0;
    if (!below) below = above;
    if (!above) above = below;
    CollectiveTime low, high;
    corrected_time(m, kind, below->bytes, g, &low);
    corrected_time(m, kind, above->bytes, g, &high);
    double at_low = log(below->time_s / low.total_s), at_high = log(above->time_s / high.total_s);
    double span = log(above->bytes / below->bytes);
    return span > 0 ? at_low + (at_high - at_low) * log(bytes / below->bytes) / span : at_low;
}

void collective_time(const Machine *machine, Collective kind, double bytes, Group group, CollectiveTime *out)
{
    if (group.ranks <= 1 || !(bytes > 0)) {
        *out = (CollectiveTime){.algorithm = "", .protocol = ""};
        return;
    }
    if (group.per_node < 1) group.per_node = 1;
    if (group.concurrent < 1) group.concurrent = 1;
    corrected_time(machine, kind, bytes, group, out);
    double factor = exp(measured_misfit(machine, kind, bytes, group));
    out->latency_s *= factor;
    out->wire_s *= factor;
    out->total_s *= factor;
}
