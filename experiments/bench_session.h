/* A training step, or a chain of Evoformer blocks, on made-up inputs: recording, memory, executors. What benchmarks
 * time: `foldscale calibrate --ops` and tests/bench_step.c. */
#ifndef FOLDSCALE_EXPERIMENTS_BENCH_SESSION_H
#define FOLDSCALE_EXPERIMENTS_BENCH_SESSION_H

#include "engine/exec.h"
#include "engine/passes.h"
#include "model/model.h"

enum { BENCH_PROGRAMS = 3 };
enum { BENCH_NOGRAD, BENCH_GRAD, BENCH_OPTIMIZER };

extern const char *const BENCH_PROGRAM_NAMES[BENCH_PROGRAMS]; /* "nograd", "grad", "optimizer" */

/* Programs that share parameters, buffers and one workspace; those that are NULL do not exist. Zero but for the
 * backend, it is empty. */
typedef struct BenchSession {
    Backend *backend; /* borrowed */
    Registry *registry;
    Program *program[BENCH_PROGRAMS];
    Store *store;
    Workspace *workspace;
    Exec *exec[BENCH_PROGRAMS];
    size_t store_bytes, workspace_bytes;
    double prepare_s; /* recording and passes */
} BenchSession;

/* The three programs of a step. */
Status bench_record_step(BenchSession *s, const ModelConfig *config, const Switches *switches);
/* A chain of Evoformer blocks alone: the programs without and with gradient. */
Status bench_record_chain(BenchSession *s, const ModelConfig *config, const Switches *switches, int blocks);
/* What the recorded programs will take; ERR_MEMORY when the device has less. */
Status bench_measure_memory(BenchSession *s, Precision precision);
/* Parameters, inputs and executors, after bench_measure_memory. */
Status bench_allocate(BenchSession *s, const ModelConfig *config, const Switches *switches);
/* Empty again. */
void bench_close(BenchSession *s);

#endif
