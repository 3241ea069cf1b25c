/* Time of a collective: NCCL's own tuning model (2.30, src/graph/tuning.cc) with the latencies, efficiencies and step
 * counts listed in the specification of collectives; all-to-all, which that model lacks, as pairwise messages that
 * share the links. Corrected per machine by what was measured there. */
#ifndef FOLDSCALE_ANALYSIS_COLLECTIVE_H
#define FOLDSCALE_ANALYSIS_COLLECTIVE_H

#include "analysis/machine.h"

/* Who takes part, and what shares the way. */
typedef struct Group {
    int64_t ranks;
    int64_t per_node;   /* members of the group on each node, 1..ranks */
    int64_t concurrent; /* groups on one node that communicate at the same time, 1 or more */
    bool in_graph;      /* inside a captured graph: no host launch */
} Group;

/* Groups of a job of dp x dap ranks placed in order: a DAP group occupies neighbouring devices, a data-parallel group
 * takes every dap-th. */
Group group_model(const Machine *machine, int64_t dap, bool in_graph);
Group group_data(const Machine *machine, int64_t dp, int64_t dap, bool in_graph);

/* Whether kernels can write into the memory of all members, and send what they compute while they run. */
bool group_shares_memory(const Machine *machine, Group group);

typedef struct CollectiveTime {
    double latency_s; /* does not depend on bytes; the floor of the host's launch counts here */
    double wire_s;    /* proportional to bytes */
    double total_s;
    const char *algorithm; /* "ring", "tree", "nvls", "nvls tree", "pat", "pairwise" */
    const char *protocol;  /* "LL", "LL128", "Simple", "" */
} CollectiveTime;

/* Fastest algorithm and protocol for `bytes` (whole tensor, see MachineSample). One rank or no bytes: zero. */
void collective_time(const Machine *machine, Collective kind, double bytes, Group group, CollectiveTime *out);

/* Fits latency and wire multipliers and the floor per collective on machine->sample (GSL, logarithms); collectives
 * without samples take the mean of the measured ones. */
Status collective_calibrate(Machine *machine);

/* Bytes that one rank must send (the field's convention for bus bandwidth). */
double collective_wire_bytes(const MachineSample *sample);

/* What one kind of collective was measured to take, as latency + wire bytes / rate: least squares of relative
 * deviations. */
typedef struct CollectiveRate {
    double latency_s, wire_bytes_per_s; /* rate NAN: the times do not grow with the bytes */
    double deviation;                   /* the largest, relative to what was measured */
    int sizes;                          /* 0: not measured; one tells nothing of latency */
} CollectiveRate;
CollectiveRate collective_rate(const MachineSample *sample, unsigned count, Collective kind, bool graph);

#endif
