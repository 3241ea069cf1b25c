/* A priced step as a timeline of one rank: the program executed by charging time instead of computing. The common
 * source of the exporters and of the simulated half of a timeline. */
#ifndef FOLDSCALE_ANALYSIS_TRACE_H
#define FOLDSCALE_ANALYSIS_TRACE_H

#include "analysis/opprice.h"

typedef struct TraceOp {
    const char *kind, *name; /* name: scope of the model and kind */
    CostStage stage;
    int stream; /* 0 compute, 1 communication */
    bool comm;
    Collective collective;
    CostGroup group;
    double tensor_bytes, flops, bytes;
    double start_s, duration_s;
    int first_dep, deps; /* Trace.dep[first_dep .. first_dep + deps): indices of earlier ops */
} TraceOp;

typedef struct Trace {
    Arena arena;
    TraceOp *op;
    int count;
    int *dep;
    int dep_count;
    double total_s;
    int64_t dp, dap;
} Trace;

typedef struct TracePart {
    const Program *program; /* after the schedule pass */
    int times;              /* runs in a row */
    bool nograd;
} TracePart;

/* Runs the parts one after the other on a machine. Compute ops run in order on stream 0; a collective on stream 1
 * starts when its input is there and the stream is free, and its wait holds stream 0 until it ends; one on stream 0
 * blocks. */
Status trace_create(const TracePart *parts, int count, const OpPrices *prices, const Machine *machine, int64_t dp,
                    int64_t dap, bool in_graph, Trace **trace_out);
void trace_destroy(Trace **trace);

/* Members of the group that `rank` belongs to, ranks numbered dp-major (rank = replica * dap + place). Returns how
 * many; member i is first + i * stride. */
int64_t trace_group(const Trace *trace, CostGroup group, int64_t rank, int64_t *first_out, int64_t *stride_out);

/* --- exporters
 * -------------------------------------------------------------------------------------------------------- */

/* Chakra execution traces (MLCommons et_def.proto, version 0.0.4): FOLDER/NAME.RANK.et for the given number of ranks
 * (one step repeats on every rank; groups differ). */
Status export_chakra(const Trace *trace, const char *folder, const char *name, int64_t ranks);

/* SimGrid: FOLDER/trace.idx with one time-independent trace per rank, platform.xml, hostfile and replay.sh. Collectives
 * of groups are lowered to point-to-point messages, because replay knows no sub-communicators: one round between all
 * members of a small group (all-to-all in any), else recursive halving and doubling where the group is a power of two,
 * else a ring. Computation is written in flops of a host of 1 Gflop/s, so that 1e9 of them are a second of priced
 * time. */
Status export_simgrid(const Trace *trace, const Machine *machine, const char *folder);

/* Replays such a folder and reads the simulated time of the step. ERR_UNSUPPORTED where SimGrid is not installed. */
Status simgrid_replay(const char *folder, double *seconds_out);

/* Chrome / Perfetto JSON: the simulated timeline, and beside it measured ops (may be NULL) laid end to end. */
Status export_perfetto(const Trace *trace, const OpRow *measured, int64_t measured_count, const char *path);

#endif
