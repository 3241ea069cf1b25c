/* Time of the collectives of an Evoformer block, forward and backward, as a replayed graph runs them: chains of equal
 * ones, alone and started next to the computation.
 *
 *   mpirun -np 2 build/tests/bench_comm              # NCCL: FOLDSCALE_COMM=nccl
 *   build/tests/bench_comm --dap 8 --no-comm         # one rank sends to itself */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/clock.h"
#include "engine/exec.h"
#include "kernels/kernels.h"

enum { CHAIN = 20, REPEATS = 20, SKIPPED = 3 };

typedef struct Case {
    const char *what;
    OpKind kind;
    int64_t axis[2];
    int shard; /* of the input, SHARD_NONE: whole */
    int64_t dim[3];
    DType dtype;
} Case;

static const Case cases[] = {
    {"pair bias of the MSA", OP_ALL_GATHER, {0, 0}, 0, {256, 256, 8}, DT_BF16},
    {"bias of a triangle attention", OP_ALL_GATHER, {0, 0}, 0, {256, 256, 4}, DT_BF16},
    {"operand of the outer product", OP_ALL_GATHER, {1, 0}, 1, {128, 256, 32}, DT_BF16},
    {"operand of a triangle product", OP_ALL_GATHER, {0, 0}, 0, {256, 256, 128}, DT_BF16},
    {"its other way round", OP_ALL_GATHER, {1, 0}, 1, {256, 256, 128}, DT_BF16},
    {"MSA rows to columns", OP_ALL_TO_ALL, {0, 1}, 0, {128, 256, 256}, DT_BF16},
    {"MSA columns to rows", OP_ALL_TO_ALL, {1, 0}, 1, {128, 256, 256}, DT_BF16},
    {"pair rows to columns", OP_ALL_TO_ALL, {0, 1}, 0, {256, 256, 128}, DT_BF16},
    {"pair columns to rows", OP_ALL_TO_ALL, {1, 0}, 1, {256, 256, 128}, DT_BF16},
    {"gradient of a bias", OP_REDUCE_SCATTER, {0}, SHARD_NONE, {256, 256, 4}, DT_BF16},
    {"gradient of a product's operand", OP_REDUCE_SCATTER, {0}, SHARD_NONE, {256, 256, 128}, DT_BF16},
    {"its other way round", OP_REDUCE_SCATTER, {1}, SHARD_NONE, {256, 256, 128}, DT_BF16},
    {"bucket of gradients", OP_ALL_REDUCE, {GROUP_DAP}, SHARD_NONE, {25, 1024, 256}, DT_F32},
};

typedef struct Chain {
    Registry *registry;
    Program *recorded, *planned;
    Store *store;
    Workspace *workspace;
    Exec *exec;
    double bytes; /* of the tensor on this rank */
} Chain;

static Status record(Chain *c, const Case *k, int dap, bool started)
{
    int64_t dim[3];
    TRY(registry_create(&c->registry));
    TRY(prog_create(c->registry, &c->recorded));
    Program *p = c->recorded;
    p->dap = dap;
    for (int axis = 0; axis < 3; axis++) dim[axis] = k->dim[axis] / (axis == k->shard ? dap : 1);
    Val source = prog_input(p, "x", DT_F32, 3, dim);
    Val x = prog_add(p, OP_CAST, 1, &source, &(OpAttr){.i = {k->dtype}});
    TRY(prog_status(p));
    p->value[x].t.shard = (int8_t)k->shard;
    c->bytes = (double)tensor_bytes(&p->value[x].t);
    for (int i = 0; i < CHAIN; i++) {
        OpAttr attr = {.i = {k->axis[0], k->axis[1]}, .f = {1}};
        Val y = prog_add(p, k->kind, 1, &x, &attr);
        if (started) {
            p->op[p->n_ops - 1].stream = 1;
            y = prog_add(p, OP_COMM_WAIT, 1, &y, NULL);
        }
        char name[16];
        snprintf(name, sizeof name, "y%d", i);
        prog_output(p, name, y);
    }
    return prog_status(p);
}

static Status run(Chain *c, Backend *backend, double *seconds_out)
{
    double best = INFINITY;
    TRY(pass_plan(c->recorded, &(Switches){.dap = 1, .dp = 1}, &c->planned));
    TRY(store_create(backend, c->registry, PRECISION_F32, STORE_FORWARD, &c->store));
    TRY(workspace_create(backend, exec_workspace_bytes(backend, c->planned), &c->workspace));
    TRY(exec_create(backend, c->planned, c->store, c->workspace, &(ExecOptions){.graph = true, .time_comm = true},
                    &c->exec));
    for (int i = 0; i < REPEATS; i++) {
        ExecTimes t;
        TRY(backend->barrier(backend));
        TRY(exec_run(c->exec));
        TRY(exec_times(c->exec, &t));
        double seconds = t.comm_exposed_s / CHAIN;
        if (i >= SKIPPED && seconds < best) best = seconds;
    }
    *seconds_out = best;
    return OK;
}

static Status time_case(Backend *backend, const Case *k, bool started, double *bytes_out, double *seconds_out)
{
    Chain c = {0};
    Status status = record(&c, k, backend->layout.dap, started);
    if (status == OK) status = run(&c, backend, seconds_out);
    *bytes_out = c.bytes;
    exec_destroy(&c.exec);
    workspace_destroy(&c.workspace);
    store_destroy(&c.store);
    prog_destroy(&c.planned);
    prog_destroy(&c.recorded);
    registry_destroy(&c.registry);
    return status;
}

static Status time_cases(Backend *backend)
{
    int n = backend->layout.dap;
    bool speaks = backend->layout.rank == 0;
    if (speaks)
        printf("%s, dap %d, %s\n%-16s %-32s %8s %9s %9s %9s\n", backend->device, n, backend->comm ? backend->comm : "",
               "collective", "", "MB", "us", "started", "GB/s sent");
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        double bytes, seconds[2];
        for (int started = 0; started < 2; started++)
            TRY(time_case(backend, &cases[k], started, &bytes, &seconds[started]));
        OpKind kind = cases[k].kind;
        double sent = bytes * (kind == OP_ALL_GATHER ? n - 1 : (n - 1.0) / n * (kind == OP_ALL_REDUCE ? 2 : 1));
        if (speaks)
            printf("%-16s %-32s %8.2f %9.2f %9.2f %9.0f\n", op_def(kind)->name, cases[k].what, 1e-6 * bytes,
                   1e6 * seconds[0], 1e6 * seconds[1], 1e-9 * sent / seconds[0]);
    }
    return OK;
}

int main(int argc, char **argv)
{
    KernelOptions options = {.dap = 2};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--no-comm"))
            options.no_comm = true;
        else if (!strcmp(argv[i], "--dap") && i + 1 < argc)
            options.dap = atoi(argv[++i]);
        else {
            fprintf(stderr, "bench_comm: unknown argument %s (expected --dap N, --no-comm)\n", argv[i]);
            return 2;
        }
    }
    Backend *backend = NULL;
    Status status = kernels_open("cuda", &options, &backend);
    if (status == OK) status = time_cases(backend);
    if (status != OK) {
        fprintf(stderr, "bench_comm: %s\n", status_text());
        kernels_abort(status_exit_code(status));
    }
    kernels_close(&backend);
    kernels_finalize();
    return status_exit_code(status);
}
