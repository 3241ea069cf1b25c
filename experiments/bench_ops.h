/* Time of every op of a program against its floor: the larger of flops over the rate of products and bytes over the
 * copy bandwidth (engine cost rules: each operand read or written once). Exchanges with other ranks have none. */
#ifndef FOLDSCALE_EXPERIMENTS_BENCH_OPS_H
#define FOLDSCALE_EXPERIMENTS_BENCH_OPS_H

#include "analysis/cost.h"
#include "experiments/bench_session.h"

/* Achievable rates of one device. */
typedef struct BenchCeilings {
    double copy_bytes_per_s, flops[RATE_COUNT];
} BenchCeilings;

/* Whether an op costs time: all but views. */
bool bench_runs_kernel(const Op *op);

/* Seconds of every op: `repeats` runs after one that does not count, replayed as a graph where the switches say so. */
Status bench_time_ops(BenchSession *s, int which, bool graph, int repeats, double *seconds_out);

/* Prints time, floor and their ratio by kind of op and by place in the model (blocks together), longest above the
 * floor first, of every program of the session; `csv_path` (may be NULL): one row per op. Every rank runs it, rank 0
 * writes. */
Status bench_report_ops(BenchSession *s, bool graph, int repeats, const BenchCeilings *ceilings, const char *csv_path);

#endif
