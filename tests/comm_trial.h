/* Programs of test_comm on their way through the executor. */
#ifndef FOLDSCALE_TESTS_COMM_TRIAL_H
#define FOLDSCALE_TESTS_COMM_TRIAL_H

#include <stdlib.h>
#include <string.h>

#include "engine/convert.h"
#include "engine/exec.h"
#include "engine/passes/schedule.h"

/* In one piece, split into start and wait, or part of the op that writes its operand. */
typedef enum Way { WHOLE, SPLIT, SENT, WAYS } Way;
static const char *const way_names[WAYS] = {"", " split", " sent"};

/* The last op becomes part of the one before it; shares: as if there were ops beside that. */
static void send(Program *p, bool shares)
{
    const Op *collective = &p->op[--p->n_ops];
    Op *op = &p->op[p->n_ops - 1];
    int output = 0;
    while (op->out[output] != collective->in[0]) output++;
    schedule_merge(p, op, output, collective);
    p->value[op->out[output]].def_op = p->n_ops - 1;
    op->send.shares = shares;
}

/* A program on its way through the executor, its inputs, and its outputs by name. */
enum { INPUTS = 8, OUTPUTS = 4 };
typedef struct Trial {
    Registry *registry;
    Program *p, *planned;
    Store *store;
    Workspace *workspace;
    Exec *exec;
    Val in[INPUTS];
    const char *name[OUTPUTS];
    Val out[OUTPUTS];
    int n_in, n_out;
} Trial;

static Status trial_open(Trial *trial, int dap)
{
    *trial = (Trial){0};
    TRY(registry_create(&trial->registry));
    TRY(prog_create(trial->registry, &trial->p));
    trial->p->dap = dap;
    return OK;
}

/* What is recorded can be run. */
static Status trial_prepare(Backend *backend, Trial *trial)
{
    TRY(pass_plan(trial->p, &(Switches){.dap = trial->p->dap, .dp = 1}, &trial->planned));
    TRY(store_create(backend, trial->registry, PRECISION_F32, STORE_FORWARD, &trial->store));
    TRY(workspace_create(backend, exec_workspace_bytes(backend, trial->planned), &trial->workspace));
    return exec_create(backend, trial->planned, trial->store, trial->workspace, NULL, &trial->exec);
}

static void trial_close(Trial *trial)
{
    exec_destroy(&trial->exec);
    workspace_destroy(&trial->workspace);
    store_destroy(&trial->store);
    prog_destroy(&trial->planned);
    prog_destroy(&trial->p);
    registry_destroy(&trial->registry);
}

typedef struct Values {
    double *v;
    int64_t count;
} Values;

static Values values_of(int64_t count)
{
    return (Values){calloc((size_t)count, sizeof(double)), count};
}

/* Runs a program with these inputs twice, since slots are used again: its output "z" has to be what is expected. Frees
 * all of them. */
static Status run_program(Backend *backend, Trial *trial, Values *in, int n_in, Values *expected, const char *what)
{
    Values z = values_of(expected->count);
    Status status = trial_prepare(backend, trial);
    for (int k = 0; k < n_in && status == OK; k++) status = store_write(trial->store, k, DT_F64, in[k].v, in[k].count);
    for (int turn = 0; turn < 2 && status == OK; turn++) {
        status = exec_run(trial->exec);
        if (status == OK) status = exec_output(trial->exec, "z", DT_F64, z.v, z.count);
        for (int64_t e = 0; e < z.count && status == OK; e++)
            if (z.v[e] != expected->v[e])
                status =
                    status_fail(ERR_COMM, "%s: element %ld is %g, expected %g", what, (long)e, z.v[e], expected->v[e]);
    }
    trial_close(trial);
    for (int k = 0; k < n_in; k++) free(in[k].v);
    free(expected->v);
    free(z.v);
    return status;
}

/* The CPU runs an op that sends and its collective apart, whatever the sizes: many and large ones are for a GPU. */
static bool on_gpu(const Backend *backend)
{
    return !strcmp(backend->name, "cuda");
}

static Val trial_input(Trial *trial, DType type, int8_t shard, int rank, const int64_t *dim)
{
    static const char *const names[INPUTS] = {"0", "1", "2", "3", "4", "5", "6", "7"};
    Val x = prog_input(trial->p, names[trial->n_in], DT_F32, rank, dim);
    trial->in[trial->n_in++] = x;
    if (type != DT_F32) x = prog_add(trial->p, OP_CAST, 1, &x, &(OpAttr){.i = {type}});
    trial->p->value[x].t.shard = shard;
    return x;
}

static void trial_output(Trial *trial, const char *name, Val v)
{
    prog_output(trial->p, name, v);
    trial->name[trial->n_out] = name;
    trial->out[trial->n_out++] = v;
}

/* Twice, since flags are used again; inputs differ from rank to rank. */
static Status trial_run(Backend *backend, Trial *trial, Values *out)
{
    for (int k = 0; k < trial->n_out; k++) out[k] = values_of(tensor_count(prog_tensor(trial->p, trial->out[k])));
    TRY(trial_prepare(backend, trial));
    for (int k = 0; k < trial->n_in; k++) {
        Values x = values_of(tensor_count(prog_tensor(trial->p, trial->in[k])));
        for (int64_t e = 0; e < x.count; e++)
            x.v[e] = (double)((e * 7919 + k * 61 + backend->layout.rank * 31) % 211) / 100 - 1;
        Status status = store_write(trial->store, k, DT_F64, x.v, x.count);
        free(x.v);
        TRY(status);
    }
    for (int turn = 0; turn < 2; turn++) {
        TRY(exec_run(trial->exec));
        for (int k = 0; k < trial->n_out; k++)
            TRY(exec_output(trial->exec, trial->name[k], DT_F64, out[k].v, out[k].count));
    }
    return OK;
}

#endif
