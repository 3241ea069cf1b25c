#include "experiments/probe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { REPEATS = 12, SKIPPED = 2 };

/* Everything a probe needs besides its program. */
typedef struct Bench {
    Registry *registry;
    Program *recorded, *planned;
    Store *store;
    Workspace *workspace;
    Exec *exec;
    bool graph; /* replayed from a captured graph, where the backend has them */
} Bench;

static void bench_free(Bench *b)
{
    exec_destroy(&b->exec);
    workspace_destroy(&b->workspace);
    store_destroy(&b->store);
    if (b->planned) prog_destroy(&b->planned);
    if (b->recorded) prog_destroy(&b->recorded);
    if (b->registry) registry_destroy(&b->registry);
}

static Status bench_start(Bench *b, int dap)
{
    memset(b, 0, sizeof *b);
    TRY(registry_create(&b->registry));
    TRY(prog_create(b->registry, &b->recorded));
    b->recorded->dap = dap;
    return OK;
}

/* Runs the recorded program REPEATS times; per_run: how many equal ops one run holds. */
static Status bench_time(Bench *b, Backend *backend, Precision precision, double per_run, ProbeResult *out)
{
    Switches switches = {.precision = precision, .dap = b->recorded->dap, .dp = 1};
    ExecOptions options = {.graph = b->graph, .time_comm = true};
    double best = INFINITY, sum = 0, squares = 0;
    TRY(prog_status(b->recorded));
    TRY(pass_plan(b->recorded, &switches, &b->planned));
    TRY(store_create(backend, b->registry, precision, STORE_FORWARD, &b->store));
    TRY(workspace_create(backend, exec_workspace_bytes(backend, b->planned), &b->workspace));
    TRY(exec_create(backend, b->planned, b->store, b->workspace, &options, &b->exec));
    for (int i = 0; i < REPEATS; i++) {
        ExecTimes times;
        TRY(backend->barrier(backend));
        TRY(exec_run(b->exec));
        TRY(exec_times(b->exec, &times));
        if (i < SKIPPED) continue;
        double seconds = times.total_s / per_run;
        if (seconds < best) best = seconds;
        sum += seconds;
        squares += seconds * seconds;
    }
    double n = REPEATS - SKIPPED, mean = sum / n, variance = squares / n - mean * mean;
    *out = (ProbeResult){best, mean, mean > 0 && variance > 0 ? sqrt(variance) / mean : 0};
    return OK;
}

static Status precision_program(Bench *b, Precision precision)
{
    Program *lowered = NULL;
    Switches switches = {.precision = precision, .dap = 1, .dp = 1};
    TRY(passes_run(b->recorded, &switches, PASS_PRECISION, &lowered));
    prog_destroy(&b->recorded);
    b->recorded = lowered;
    return OK;
}

Status probe_product(Backend *backend, Precision precision, int64_t n, ProbeResult *result_out)
{
    Bench b;
    Status status = bench_start(&b, 1);
    if (status == OK) {
        Val x = prog_input(b.recorded, "x", DT_F32, 2, (int64_t[]){n, n});
        Val w = prog_param(b.recorded, "w", 2, (int64_t[]){n, n}, INIT_ZERO, 0);
        prog_output(b.recorded, "y", prog_add(b.recorded, OP_LINEAR, 3, (Val[]){x, w, VAL_NONE}, NULL));
        status = prog_status(b.recorded);
    }
    if (status == OK) status = precision_program(&b, precision);
    if (status == OK) status = bench_time(&b, backend, precision, 1, result_out);
    bench_free(&b);
    return status;
}

static Status scale_chain(Backend *backend, int64_t count, int length, bool graph, ProbeResult *result_out)
{
    Bench b;
    Status status = bench_start(&b, 1);
    if (status == OK) {
        b.graph = graph;
        Val x = prog_input(b.recorded, "x", DT_F32, 1, &count);
        for (int i = 0; i < length; i++) x = prog_add(b.recorded, OP_SCALE, 1, &x, &(OpAttr){.f = {0.5}});
        prog_output(b.recorded, "y", x);
        status = bench_time(&b, backend, PRECISION_F32, length, result_out);
    }
    bench_free(&b);
    return status;
}

Status probe_copy(Backend *backend, int64_t count, ProbeResult *result_out)
{
    return scale_chain(backend, count, 1, false, result_out);
}

Status probe_launch(Backend *backend, bool graph, ProbeResult *result_out)
{
    return scale_chain(backend, 16, 200, graph, result_out);
}

/* Slices of several rows: what is cut along the columns must be packed first, as in the model. */
enum { SLICE_ROWS = 16 };

static bool starts_from_slice(Collective kind)
{
    return kind == COLLECTIVE_ALL_GATHER || kind == COLLECTIVE_ALL_TO_ALL;
}

static Val record_input(Program *p, Collective kind, int64_t count)
{
    int64_t ranks = p->dap, rows = count % (ranks * ranks * SLICE_ROWS) ? ranks : ranks * SLICE_ROWS;
    int64_t columns = (kind == COLLECTIVE_ALL_TO_ALL ? count * ranks : count) / rows;
    Val x = prog_input(p, "x", DT_F32, 2, (int64_t[]){rows, columns});
    return starts_from_slice(kind) ? prog_add(p, OP_SHARD_SLICE, 1, &x, &(OpAttr){.i = {0}}) : x;
}

static Val record_collective(Program *p, Collective kind, Val x)
{
    switch (kind) {
    case COLLECTIVE_ALL_REDUCE:
        return prog_add(p, OP_ALL_REDUCE, 1, &x, &(OpAttr){.i = {GROUP_DAP}, .f = {1}});
    case COLLECTIVE_ALL_GATHER:
        return prog_add(p, OP_ALL_GATHER, 1, &x, &(OpAttr){.i = {0, 0}});
    case COLLECTIVE_REDUCE_SCATTER:
        return prog_add(p, OP_REDUCE_SCATTER, 1, &x, &(OpAttr){.i = {0}});
    case COLLECTIVE_ALL_TO_ALL: /* one rank holds `count` elements before */
        return prog_add(p, OP_ALL_TO_ALL, 1, &x, &(OpAttr){.i = {0, 1}});
    default:
        return prog_fail(p, ERR_INTERNAL, "no probe for the collective %d", (int)kind);
    }
}

/* `length` collectives on the same tensor, then `scales` vectors that depend on none of them. */
static Status record_chain(Bench *b, Collective kind, int64_t count, int length, int scales, int64_t vector)
{
    Val x = length ? record_input(b->recorded, kind, count) : VAL_NONE, v = VAL_NONE;
    char name[32];
    for (int i = 0; i < length; i++) {
        snprintf(name, sizeof name, "y%d", i);
        prog_output(b->recorded, name, record_collective(b->recorded, kind, x));
    }
    if (scales) v = prog_input(b->recorded, "v", DT_F32, 1, &vector);
    for (int i = 0; i < scales; i++) v = prog_add(b->recorded, OP_SCALE, 1, &v, &(OpAttr){.f = {0.5}});
    if (scales) prog_output(b->recorded, "w", v);
    return prog_status(b->recorded);
}

/* `length` equal collectives in a row and the slice that they start from. */
static Status time_collectives(Backend *backend, Collective kind, int64_t count, int length, bool graph,
                               ProbeResult *result_out)
{
    Bench b;
    *result_out = (ProbeResult){0};
    if (!length && !starts_from_slice(kind)) return OK;
    Status status = bench_start(&b, backend->layout.dap);
    b.graph = graph;
    if (status == OK && length) status = record_chain(&b, kind, count, length, 0, 0);
    if (status == OK && !length) prog_output(b.recorded, "x", record_input(b.recorded, kind, count));
    if (status == OK) status = bench_time(&b, backend, PRECISION_F32, 1, result_out);
    bench_free(&b);
    return status;
}

/* What more of them take: the slice, the marks and the launch of a graph are in both. From the host a single one, which
 * the ranks begin together: what a step without graphs pays. */
Status probe_collective(Backend *backend, Collective kind, int64_t count, bool graph, ProbeResult *result_out)
{
    static const double LEAST = 0.2; /* of the longer run: nothing is left where two runs differ more */
    int few = graph, many = graph ? 5 : 1;
    ProbeResult some, all;
    TRY(time_collectives(backend, kind, count, few, graph, &some));
    TRY(time_collectives(backend, kind, count, many, graph, &all));
    double seconds = (all.seconds - some.seconds) / (many - few);
    seconds = fmax(seconds, LEAST * all.seconds / many);
    *result_out = (ProbeResult){seconds, seconds, all.relative};
    return OK;
}

static Status time_chain(Backend *backend, int length, int scales, int64_t count, int64_t vector, double *seconds_out)
{
    Bench b;
    Program *overlapped = NULL;
    ProbeResult result = {0};
    Status status = bench_start(&b, backend->layout.dap);
    const Switches switches = {
        .precision = PRECISION_F32, .dap = backend->layout.dap, .dp = 1, .comm_overlap = true, .cuda_graph = true};
    b.graph = true;
    if (status == OK) status = record_chain(&b, COLLECTIVE_ALL_TO_ALL, count, length, scales, vector);
    if (status == OK) status = pass_schedule(b.recorded, &switches, &overlapped);
    if (status == OK) {
        prog_destroy(&b.recorded);
        b.recorded = overlapped;
        status = bench_time(&b, backend, PRECISION_F32, 1, &result);
    }
    bench_free(&b);
    *seconds_out = result.seconds;
    return status;
}

Status probe_overlap(Backend *backend, ProbeResult *result_out)
{
    enum { LENGTH = 8, TRIAL = 16, MOST_SCALES = 400 };
    static const int64_t COUNT = 1 << 22, VECTOR = 1 << 22;
    double alone, trial, both, computing;
    TRY(time_chain(backend, LENGTH, 0, COUNT, VECTOR, &alone));
    TRY(time_chain(backend, 0, TRIAL, COUNT, VECTOR, &trial));
    /* as much computation as communication, so that each could hide the other */
    int scales = (int)fmin(fmax(1, alone / (trial / TRIAL)), MOST_SCALES);
    TRY(backend->host_broadcast(backend, &scales, sizeof scales, 0));
    TRY(time_chain(backend, 0, scales, COUNT, VECTOR, &computing));
    TRY(time_chain(backend, LENGTH, scales, COUNT, VECTOR, &both));
    double hidden = (alone + computing - both) / fmin(alone, computing);
    hidden = fmin(fmax(hidden, 0), 1);
    *result_out = (ProbeResult){hidden, hidden, 0.15};
    return OK;
}
