/* Micro-benchmarks of one backend, as small recorded programs run by the same executor as a training step. */
#ifndef FOLDSCALE_EXPERIMENTS_PROBE_H
#define FOLDSCALE_EXPERIMENTS_PROBE_H

#include "analysis/machine.h"
#include "engine/exec.h"

typedef struct ProbeResult {
    double seconds;  /* best of the repeats */
    double mean;     /* of their seconds */
    double relative; /* standard deviation / mean of the repeats */
} ProbeResult;

/* A product [n, n] x [n, n]: 2 n^3 operations. */
Status probe_product(Backend *backend, Precision precision, int64_t n, ProbeResult *result_out);
/* x -> 2 x over `count` elements of four bytes: reads and writes each once. */
Status probe_copy(Backend *backend, int64_t count, ProbeResult *result_out);
/* One op on 16 elements; `graph`: replayed from a captured graph, where the backend has them. */
Status probe_launch(Backend *backend, bool graph, ProbeResult *result_out);
/* A collective over the model-parallel group on a tensor of `count` f32 elements (the whole tensor, see MachineSample);
 * count must be a multiple of the ranks squared. Without what precedes it: one of several in a row. */
Status probe_collective(Backend *backend, Collective kind, int64_t count, bool graph, ProbeResult *result_out);
/* Of an exchange beside as much memory-bound computation, the share of time that hides (0 to 1, in `seconds`). */
Status probe_overlap(Backend *backend, ProbeResult *result_out);

#endif
