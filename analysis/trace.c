#include "analysis/trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/collective.h"
#include "engine/array.h"

enum { OP_LIMIT = 1 << 22, TIMES_LIMIT = 64 };

typedef struct Builder {
    Trace *trace;
    const OpPrices *prices;
    const Machine *machine;
    bool in_graph;
    int op_capacity, dep_capacity;
    double stream_s[2]; /* when each stream is free */
    double *end_s;      /* [ops so far] */
    int end_capacity;
    int *writer; /* [values of the present program] trace op that wrote it, -1 for none */
    int barrier; /* last op of the program before: everything follows it */
} Builder;

static Status reserve(void **array, int *capacity, int count, size_t size, const char *what)
{
    if (count >= OP_LIMIT) return status_fail(ERR_MEMORY, "trace: more than %d %s", (int)OP_LIMIT, what);
    return array_reserve(array, capacity, count + 1, size, what);
}

static Status add_dep(Builder *b, TraceOp *op, int on)
{
    Trace *t = b->trace;
    if (on < 0) return OK;
    for (int i = op->first_dep; i < t->dep_count; i++)
        if (t->dep[i] == on) return OK;
    TRY(reserve((void **)&t->dep, &b->dep_capacity, t->dep_count, sizeof *t->dep, "dependences"));
    t->dep[t->dep_count++] = on;
    op->deps++;
    return OK;
}

static Group machine_group(const Builder *b, CostGroup group)
{
    const Trace *t = b->trace;
    if (group == COST_GROUP_MODEL) return group_model(b->machine, t->dap, b->in_graph);
    if (group == COST_GROUP_DATA) return group_data(b->machine, t->dp, t->dap, b->in_graph);
    return group_data(b->machine, t->dp * t->dap, 1, b->in_graph);
}

static double price(const Builder *b, const CostClass *c)
{
    if (!c->comm) return opprice_time(b->prices, b->machine, c->kind, c->rate, c->flops, c->bytes, b->in_graph, NULL);
    CollectiveTime time;
    collective_time(b->machine, c->collective, c->tensor_bytes, machine_group(b, c->group), &time);
    return time.total_s;
}

/* A reshape or a wait makes no op of its own: its output is what its input was. */
static void pass_through(Builder *b, const Op *op)
{
    int from = op->in[0] == VAL_NONE ? -1 : b->writer[op->in[0]];
    for (int i = 0; i < op->n_out; i++)
        if (op->out[i] != VAL_NONE) b->writer[op->out[i]] = from;
    if (op->kind == OP_COMM_WAIT && from >= 0) b->stream_s[0] = fmax(b->stream_s[0], b->end_s[from]);
}

static Status add_op(Builder *b, const Program *p, const Op *op, bool nograd)
{
    Trace *t = b->trace;
    TRY(reserve((void **)&t->op, &b->op_capacity, t->count, sizeof *t->op, "ops"));
    TRY(reserve((void **)&b->end_s, &b->end_capacity, t->count, sizeof *b->end_s, "ops"));
    TraceOp *out = &t->op[t->count];
    CostClass c = cost_classify(p, op, 1, nograd);
    *out = (TraceOp){.kind = c.kind,
                     .stage = c.stage,
                     .comm = c.comm,
                     .collective = c.collective,
                     .group = c.group,
                     .tensor_bytes = c.tensor_bytes,
                     .flops = c.flops,
                     .bytes = c.bytes,
                     .duration_s = price(b, &c),
                     .stream = op->stream == STREAM_COMM,
                     .first_dep = t->dep_count};
    const char *scope = p->scope[op->scope];
    out->name = arena_printf(&t->arena, "%s%s%s", scope, *scope ? "/" : "", out->kind);
    if (!out->name) return status_fail(ERR_MEMORY, "trace: out of memory");
    double ready = 0;
    for (int i = 0; i < op->n_in; i++) {
        int writer = op->in[i] == VAL_NONE ? -1 : b->writer[op->in[i]];
        TRY(add_dep(b, out, writer));
        if (writer >= 0) ready = fmax(ready, b->end_s[writer]);
    }
    if (!out->deps) TRY(add_dep(b, out, b->barrier));
    /* a collective on the side stream is issued by the host when stream 0 gets there */
    double issued = b->stream_s[0];
    out->start_s = fmax(fmax(ready, issued), b->stream_s[out->stream]);
    b->stream_s[out->stream] = b->end_s[t->count] = out->start_s + out->duration_s;
    for (int i = 0; i < op->n_out; i++)
        if (op->out[i] != VAL_NONE) b->writer[op->out[i]] = t->count;
    t->count++;
    return OK;
}

static Status run_program(Builder *b, const Program *p, bool nograd)
{
    b->writer = malloc((size_t)(p->n_values + 1) * sizeof *b->writer);
    if (!b->writer) return status_fail(ERR_MEMORY, "trace: out of memory");
    for (int v = 0; v < p->n_values; v++) b->writer[v] = -1;
    Status status = OK;
    for (int32_t i = 0; i < p->n_ops && status == OK; i++) {
        const Op *op = &p->op[i];
        if (op_def(op->kind)->flags & OPF_ALIAS)
            pass_through(b, op);
        else
            status = add_op(b, p, op, nograd);
    }
    free(b->writer);
    b->writer = NULL;
    b->barrier = b->trace->count - 1;
    /* the next program begins when both streams are through */
    b->stream_s[0] = b->stream_s[1] = fmax(b->stream_s[0], b->stream_s[1]);
    return status;
}

Status trace_create(const TracePart *parts, int count, const OpPrices *prices, const Machine *machine, int64_t dp,
                    int64_t dap, bool in_graph, Trace **trace_out)
{
    if (dp < 1 || dap < 1 || dp > INT64_MAX / dap || dp * dap > machine_devices(machine))
        return status_fail(ERR_USAGE, "%lld x %lld ranks do not fit on %s (%lld devices)", (long long)dp,
                           (long long)dap, machine->name, (long long)machine_devices(machine));
    Trace *trace = calloc(1, sizeof *trace);
    if (!trace) return status_fail(ERR_MEMORY, "trace: out of memory");
    trace->dp = dp;
    trace->dap = dap;
    Builder b = {.trace = trace, .prices = prices, .machine = machine, .in_graph = in_graph, .barrier = -1};
    Status status = OK;
    for (int i = 0; i < count && status == OK; i++) {
        if (parts[i].times < 0 || parts[i].times > TIMES_LIMIT)
            status = status_fail(ERR_USAGE, "trace: a program run %d times (expected 0 to %d)", parts[i].times,
                                 (int)TIMES_LIMIT);
        for (int k = 0; k < parts[i].times && status == OK; k++)
            status = run_program(&b, parts[i].program, parts[i].nograd);
    }
    free(b.end_s);
    trace->total_s = b.stream_s[0];
    if (status != OK) {
        trace_destroy(&trace);
        return status;
    }
    *trace_out = trace;
    return OK;
}

void trace_destroy(Trace **trace)
{
    if (!trace || !*trace) return;
    arena_free(&(*trace)->arena);
    free((*trace)->op);
    free((*trace)->dep);
    free(*trace);
    *trace = NULL;
}

int64_t trace_group(const Trace *t, CostGroup group, int64_t rank, int64_t *first_out, int64_t *stride_out)
{
    switch (group) {
    case COST_GROUP_MODEL:
        *first_out = rank / t->dap * t->dap;
        *stride_out = 1;
        return t->dap;
    case COST_GROUP_DATA:
        *first_out = rank % t->dap;
        *stride_out = t->dap;
        return t->dp;
    default:
        *first_out = 0;
        *stride_out = 1;
        return t->dp * t->dap;
    }
}
