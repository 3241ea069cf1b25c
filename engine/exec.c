#include "engine/exec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/convert.h"
#include "engine/scratch.h"
#include "engine/send.h"
#include "engine/steady.h"
#include "engine/timeline.h"

enum { IN_FLIGHT = 2, SAMPLE_EVERY = 64, SAMPLE_FIRST = 2 };

struct Workspace {
    Backend *backend;
    unsigned char *memory;
    size_t bytes;
};

/* One of the runs that may be in flight: its own marks, so that a run does not overwrite those that nobody has read
 * yet, and hence its own graph. */
typedef struct Flight {
    const Timeline *timeline;
    int first_mark;
    void *graph;
    bool pending; /* enqueued, its times not read */
} Flight;

struct Exec {
    Backend *backend;
    const Program *program;
    Store *store;
    Workspace *workspace;
    ExecOptions options;
    int n_calls;
    OpCall *call;     /* ops that run a kernel, in order */
    int *joins;       /* groups aside to wait for before call i */
    size_t *call_end; /* highest byte of the arena that call i touches */
    int n_slots;
    Timeline stages, fine;
    double *op_seconds; /* per op of the program; with time_ops */
    int64_t runs_timed, runs;
    bool samples;                     /* not every run has the fine marks */
    double comm_stage_s[STAGE_COUNT]; /* of the last run that had them */
    Flight flight[IN_FLIGHT], sample; /* see flight_of */
    ExecTimes times[EXEC_TIMES_KEPT]; /* of run i: i % EXEC_TIMES_KEPT */
    size_t touched;
    Arena arena;
};

Status workspace_create(Backend *backend, size_t bytes, Workspace **workspace_out)
{
    Workspace *workspace = calloc(1, sizeof *workspace);
    if (!workspace) return status_fail(ERR_MEMORY, "out of memory for a workspace");
    void *memory = NULL;
    Status status = backend->alloc(backend, bytes ? bytes : SCRATCH_ALIGN, &memory);
    if (status != OK) {
        free(workspace);
        return status;
    }
    *workspace = (Workspace){backend, memory, bytes};
    *workspace_out = workspace;
    return OK;
}

void workspace_destroy(Workspace **workspace)
{
    if (!*workspace) return;
    (*workspace)->backend->release((*workspace)->backend, (*workspace)->memory);
    free(*workspace);
    *workspace = NULL;
}

size_t exec_workspace_bytes(const Backend *backend, const Program *program)
{
    ScratchPlan plan;
    if (scratch_plan_make(backend, program, &plan) != OK) return SIZE_MAX;
    size_t bytes = scratch_padded(program->arena_bytes) + plan.bytes;
    scratch_plan_free(&plan);
    return bytes;
}

size_t exec_workspace_shared(const Backend *backend, Program *const *program, int count)
{
    size_t most = 0;
    for (int i = 0; i < count; i++) {
        size_t bytes = program[i] ? exec_workspace_bytes(backend, program[i]) : 0;
        if (bytes > most) most = bytes;
    }
    return most;
}

static Status resolve(const Exec *exec, Val v, void **address_out, size_t *arena_end)
{
    const Program *p = exec->program;
    const Tensor *t = &p->value[v].t;
    Val root = v;
    while (p->value[root].alias != VAL_NONE) root = p->value[root].alias;
    const Value *value = &p->value[root];
    if (value->place == PLACE_ARENA) {
        if (value->offset < 0)
            return status_fail(ERR_INTERNAL, "value %%%d has no place: the program is not planned", v);
        size_t end = (size_t)value->offset + tensor_bytes(t);
        if (end > *arena_end) *arena_end = end;
        *address_out = exec->workspace->memory + value->offset;
        return OK;
    }
    *address_out = store_place(exec->store, value->place, value->slot);
    if (!*address_out)
        return status_fail(ERR_INTERNAL, "value %%%d lives in block %d, slot %d, which the store does not have", v,
                           (int)value->place, (int)value->slot);
    return OK;
}

/* Groups aside run beside the computation. Times and values of single ops are for ops in a line. */
static bool runs_beside(const Exec *exec)
{
    return exec->backend->aside_begin && !exec->options.time_ops && !exec->options.check_finite;
}

static Status make_call(Exec *exec, int32_t index, const ScratchPlan *plan, unsigned char *scratch, OpCall *call,
                        size_t *end_out)
{
    const Program *p = exec->program;
    const Op *op = &p->op[index];
    *call = (OpCall){.op = op, .op_index = index, .comm_slot = plan->slot[index], .scratch = scratch + plan->at[index]};
    for (int k = 0; k < op->n_in; k++) {
        if (op->in[k] == VAL_NONE) continue;
        void *address;
        TRY(resolve(exec, op->in[k], &address, end_out));
        call->in[k] = address;
        call->in_tensor[k] = &p->value[op->in[k]].t;
    }
    for (int k = 0; k < op->n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        TRY(resolve(exec, op->out[k], &call->out[k], end_out));
        call->out_tensor[k] = &p->value[op->out[k]].t;
    }
    if (op->send.active) send_make_call(p, scratch + plan->at[index], call);
    call->beside = op->send.shares && runs_beside(exec);
    return OK;
}

static bool uses_graph(const Exec *exec)
{
    return exec->options.graph && !exec->options.check_finite && exec->backend->replay;
}

static Status make_flights(Exec *exec)
{
    Backend *backend = exec->backend;
    TRY(timelines_create(exec->n_calls, exec->call, exec->options.time_ops, &exec->arena, &exec->stages, &exec->fine));
    bool always = exec->options.time_ops || exec->options.time_comm || !uses_graph(exec);
    exec->samples = !always && exec->fine.n > exec->stages.n;
    for (int k = 0; k < IN_FLIGHT; k++) {
        Flight *flight = &exec->flight[k];
        flight->timeline = exec->samples ? &exec->stages : &exec->fine;
        TRY(backend->marks_reserve(backend, flight->timeline->n + 1, &flight->first_mark));
    }
    exec->sample.timeline = &exec->fine;
    return exec->samples ? backend->marks_reserve(backend, exec->fine.n + 1, &exec->sample.first_mark) : OK;
}

static Status make_calls(Exec *exec, const ScratchPlan *plan)
{
    const Program *p = exec->program;
    Backend *backend = exec->backend;
    size_t ops = (size_t)p->n_ops + 1;
    exec->call = arena_array(&exec->arena, ops, sizeof *exec->call);
    exec->joins = arena_array(&exec->arena, ops, sizeof *exec->joins);
    exec->call_end = arena_array(&exec->arena, ops, sizeof *exec->call_end);
    if (exec->options.time_ops) exec->op_seconds = arena_array(&exec->arena, ops, sizeof *exec->op_seconds);
    if (!exec->call || !exec->joins || !exec->call_end || (exec->options.time_ops && !exec->op_seconds))
        return status_fail(ERR_MEMORY, "out of memory for an executor of %d ops", p->n_ops);
    unsigned char *scratch = exec->workspace->memory + scratch_padded(p->arena_bytes);
    bool collectives = false;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        exec->joins[exec->n_calls] += op->joins; /* another name runs nothing: the next op waits */
        if (!scratch_runs_kernel(op)) continue;
        TRY(send_supports(backend, p, op));
        collectives |= op->send.active || (op_def(op->kind)->flags & OPF_COMM);
        int n = exec->n_calls++;
        TRY(make_call(exec, i, plan, scratch, &exec->call[n], &exec->call_end[n]));
    }
    steady_mark(p, exec->n_calls, exec->call);
    exec->n_slots = plan->slots;
    if (collectives && backend->comm_reserve)
        TRY(backend->comm_reserve(backend, plan->slots, exec->workspace->memory, exec->workspace->bytes));
    return make_flights(exec);
}

Status exec_create(Backend *backend, const Program *program, Store *store, Workspace *workspace,
                   const ExecOptions *options, Exec **exec_out)
{
    if (program->dap != 1 && program->dap != backend->layout.dap)
        return status_fail(ERR_INTERNAL, "a program for dap %d on a backend with dap %d", program->dap,
                           backend->layout.dap);
    size_t needed = exec_workspace_bytes(backend, program);
    if (needed > workspace->bytes)
        return status_fail(ERR_MEMORY, "the program needs %zu bytes of workspace, there are %zu", needed,
                           workspace->bytes);
    Exec *exec = calloc(1, sizeof *exec);
    if (!exec) return status_fail(ERR_MEMORY, "out of memory for an executor");
    exec->backend = backend;
    exec->program = program;
    exec->store = store;
    exec->workspace = workspace;
    if (options) exec->options = *options;
    ScratchPlan plan;
    Status status = scratch_plan_make(backend, program, &plan);
    if (status == OK) {
        status = make_calls(exec, &plan);
        scratch_plan_free(&plan);
    }
    if (status != OK)
        exec_destroy(&exec);
    else
        *exec_out = exec;
    return status;
}

void exec_destroy(Exec **exec)
{
    if (!*exec) return;
    Backend *backend = (*exec)->backend;
    for (int k = 0; k <= IN_FLIGHT; k++) {
        void *graph = k < IN_FLIGHT ? (*exec)->flight[k].graph : (*exec)->sample.graph;
        if (!graph) continue;
        backend->finish(backend); /* failures of the last run were reported by whoever read its results */
        backend->graph_release(backend, graph);
    }
    arena_free(&(*exec)->arena);
    free(*exec);
    *exec = NULL;
}

static Status check_finite(Exec *exec, const OpCall *call)
{
    for (int k = 0; k < call->op->n_out; k++) {
        const Tensor *t = call->out[k] ? prog_tensor(exec->program, call->op->out[k]) : NULL;
        if (!t || t->dtype == DT_I32 || call->comm_slot >= 0) continue;
        int64_t count = tensor_count(t);
        double *values = malloc(((size_t)count + 1) * sizeof *values);
        if (!values) return status_fail(ERR_MEMORY, "out of memory for %ld values", (long)count);
        Status status = exec_read_value(exec, call->op->out[k], DT_F64, values, count);
        int64_t bad = 0;
        while (status == OK && bad < count && isfinite(values[bad])) bad++;
        if (status == OK && bad < count) {
            char name[300];
            prog_op_name(exec->program, call->op_index, name, sizeof name);
            status = status_fail(ERR_NUMERIC, "%s: output %d has the value %g at element %ld", name, k, values[bad],
                                 (long)bad);
        }
        free(values);
        TRY(status);
    }
    return OK;
}

/* Groups aside, of one run. */
typedef struct Groups {
    bool beside, within; /* there are groups; the last call belongs to one */
    int begun, joined;
} Groups;

static Status join(Backend *backend, Groups *groups, int count)
{
    for (; count > 0; count--) TRY(backend->aside_wait(backend, groups->joined++ % ASIDE_GROUPS));
    return OK;
}

static Status enter(Backend *backend, Groups *groups, bool aside)
{
    if (aside == groups->within) return OK;
    groups->within = aside;
    return aside ? backend->aside_begin(backend) : backend->aside_end(backend, groups->begun++ % ASIDE_GROUPS);
}

static Status run_calls(Exec *exec, const Flight *flight)
{
    Backend *backend = exec->backend;
    const Timeline *timeline = flight->timeline;
    const Interval *next = timeline->interval;
    Groups groups = {.beside = runs_beside(exec)};
    for (int n = 0; n < exec->n_calls; n++) {
        if (next->first_call == n) {
            TRY(backend->mark(backend, flight->first_mark + (int)(next - timeline->interval)));
            next++;
        }
        if (groups.beside) {
            TRY(enter(backend, &groups, exec->call[n].op->stream == STREAM_ASIDE));
            TRY(join(backend, &groups, exec->joins[n]));
        }
        TRY(backend->run(backend, &exec->call[n]));
        if (exec->call_end[n] > exec->touched) exec->touched = exec->call_end[n];
        if (exec->options.check_finite) TRY(check_finite(exec, &exec->call[n]));
    }
    TRY(enter(backend, &groups, false));
    TRY(join(backend, &groups, groups.begun - groups.joined));
    return backend->mark(backend, flight->first_mark + timeline->n);
}

/* A mark inside a graph costs as much as a small kernel and keeps kernels from overlapping: those around collectives
 * are set in the second replay and in every SAMPLE_EVERYth run after it, from a graph of their own; in the first one
 * ranks that were not ready together wait for each other. */
static Flight *flight_of(Exec *exec, int64_t run)
{
    bool sampled = exec->samples && run % SAMPLE_EVERY == SAMPLE_FIRST;
    return sampled ? &exec->sample : &exec->flight[run % IN_FLIGHT];
}

/* What a run without marks around its collectives spent in them: as much as the last that had them. */
static void share_comm(Exec *exec, const Flight *flight, ExecTimes *times)
{
    bool measured = flight->timeline == &exec->fine;
    for (int stage = 0; stage < STAGE_COUNT; stage++) {
        if (measured) exec->comm_stage_s[stage] = times->comm_stage_s[stage];
        times->comm_stage_s[stage] = fmin(exec->comm_stage_s[stage], times->stage_s[stage]);
        times->comm_exposed_s += times->comm_stage_s[stage];
    }
}

/* Waits for a run and reads its marks. */
static Status collect(Exec *exec, int64_t run)
{
    Flight *flight = flight_of(exec, run);
    ExecTimes times;
    if (!flight->pending) return OK;
    flight->pending = false;
    TRY(timeline_read(flight->timeline, exec->backend, flight->first_mark, exec->call, &times, exec->op_seconds));
    share_comm(exec, flight, &times);
    exec->times[run % EXEC_TIMES_KEPT] = times;
    exec->runs_timed++;
    return OK;
}

static Status capture(Exec *exec, Flight *flight)
{
    Backend *backend = exec->backend;
    TRY(backend->capture_begin(backend));
    Status status = run_calls(exec, flight);
    Status ended = backend->capture_end(backend, &flight->graph);
    TRY(status);
    return ended;
}

static Status capture_all(Exec *exec)
{
    for (int k = 0; k < IN_FLIGHT; k++) TRY(capture(exec, &exec->flight[k]));
    return exec->samples ? capture(exec, &exec->sample) : OK;
}

Status exec_run(Exec *exec)
{
    Backend *backend = exec->backend;
    Flight *flight = flight_of(exec, exec->runs);
    if (exec->runs >= IN_FLIGHT) TRY(collect(exec, exec->runs - IN_FLIGHT));
    exec->touched = 0;
    /* the first run is eager: libraries choose their kernels in it, which a capture does not allow */
    if (!uses_graph(exec) || exec->runs == 0) {
        TRY(run_calls(exec, flight));
    } else {
        if (!flight->graph) TRY(capture_all(exec));
        exec->touched = exec->program->arena_bytes;
        TRY(backend->replay(backend, flight->graph));
    }
    flight->pending = true;
    exec->runs++;
    return OK;
}

int64_t exec_runs(const Exec *exec)
{
    return exec->runs;
}

/* All runs so far, in their order. */
static Status collect_all(Exec *exec)
{
    for (int64_t run = exec->runs > IN_FLIGHT ? exec->runs - IN_FLIGHT : 0; run < exec->runs; run++)
        TRY(collect(exec, run));
    return OK;
}

Status exec_count_kernels(Exec *exec, int64_t *kernels_out)
{
    const Backend *backend = exec->backend;
    Flight *flight = &exec->flight[0];
    bool captured = flight->graph;
    *kernels_out = 0;
    if (exec->runs == 0 || !backend->graph_kernels) return OK;
    TRY(collect_all(exec)); /* a capture writes the marks of the run before */
    if (!captured) TRY(capture(exec, flight));
    *kernels_out = backend->graph_kernels(backend, flight->graph);
    if (captured) return OK;
    backend->graph_release(exec->backend, flight->graph);
    flight->graph = NULL;
    return OK;
}

Status exec_run_times(Exec *exec, int64_t run, ExecTimes *times_out)
{
    if (run < 0 || run >= exec->runs || run < exec->runs - EXEC_TIMES_KEPT)
        return status_fail(ERR_INTERNAL, "times of run %lld of %lld are not kept", (long long)run,
                           (long long)exec->runs);
    if (run >= exec->runs - IN_FLIGHT) TRY(collect(exec, run));
    *times_out = exec->times[run % EXEC_TIMES_KEPT];
    return OK;
}

Status exec_times(Exec *exec, ExecTimes *times_out)
{
    TRY(exec->backend->finish(exec->backend));
    return exec_run_times(exec, exec->runs - 1, times_out);
}

Status exec_op_times(Exec *exec, int op, double *seconds_out, int64_t *calls_out)
{
    if (!exec->options.time_ops || op < 0 || op >= exec->program->n_ops)
        return status_fail(ERR_INTERNAL, "op %d of %d was not timed", op, exec->program->n_ops);
    TRY(collect_all(exec));
    *seconds_out = exec->op_seconds[op];
    *calls_out = exec->runs_timed;
    return OK;
}

Status exec_read_value(Exec *exec, Val value, DType host_type, void *values_out, int64_t count)
{
    const Tensor *t = &exec->program->value[value].t;
    if (count != tensor_count(t))
        return status_fail(ERR_INTERNAL, "value %%%d has %ld elements, not %ld", value, (long)tensor_count(t),
                           (long)count);
    void *address;
    size_t end = 0;
    TRY(resolve(exec, value, &address, &end));
    Backend *backend = exec->backend;
    if (t->dtype == host_type) return backend->download(backend, values_out, address, tensor_bytes(t));
    void *copy = malloc(tensor_bytes(t) + 1);
    if (!copy) return status_fail(ERR_MEMORY, "out of memory for a value of %zu bytes", tensor_bytes(t));
    Status status = backend->download(backend, copy, address, tensor_bytes(t));
    if (status == OK) status = convert_array(t->dtype, copy, host_type, values_out, count);
    free(copy);
    return status;
}

Status exec_read_later(Exec *exec, Val value, void *pinned)
{
    void *address;
    size_t end = 0;
    TRY(resolve(exec, value, &address, &end));
    return exec->backend->read_later(exec->backend, pinned, address, tensor_bytes(&exec->program->value[value].t));
}

Status exec_output(Exec *exec, const char *name, DType host_type, void *values_out, int64_t count)
{
    Val value = prog_find(exec->program, name);
    if (value == VAL_NONE) return status_fail(ERR_INTERNAL, "the program has no output named \"%s\"", name);
    return exec_read_value(exec, value, host_type, values_out, count);
}

size_t exec_touched_bytes(const Exec *exec)
{
    return exec->touched;
}
