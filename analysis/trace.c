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
    int *sender; /* [values] trace op that computed what the writer, a collective beside it, sent; -1 for none */
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
    int from = op->in[0] == VAL_NONE ? -1 : b->writer[op->in[0]],
        by = op->in[0] == VAL_NONE ? -1 : b->sender[op->in[0]];
    for (int i = 0; i < op->n_out; i++)
        if (op->out[i] != VAL_NONE) b->writer[op->out[i]] = from, b->sender[op->out[i]] = by;
    if (op->kind == OP_COMM_WAIT && from >= 0) b->stream_s[0] = fmax(b->stream_s[0], b->end_s[from]);
}

static Status add_input(Builder *b, TraceOp *op, int on, double *ready)
{
    if (on >= 0) *ready = fmax(*ready, b->end_s[on]);
    return add_dep(b, op, on);
}

static Status add_op(Builder *b, const Program *p, const Op *op, const CostClass *c, double duration_s, int stream)
{
    Trace *t = b->trace;
    TRY(reserve((void **)&t->op, &b->op_capacity, t->count, sizeof *t->op, "ops"));
    TRY(reserve((void **)&b->end_s, &b->end_capacity, t->count, sizeof *b->end_s, "ops"));
    TraceOp *out = &t->op[t->count];
    *out = (TraceOp){.kind = c->kind,
                     .stage = c->stage,
                     .comm = c->comm,
                     .collective = c->collective,
                     .group = c->group,
                     .tensor_bytes = c->tensor_bytes,
                     .flops = c->flops,
                     .bytes = c->bytes,
                     .duration_s = duration_s,
                     .stream = stream,
                     .first_dep = t->dep_count};
    const char *scope = p->scope[op->scope];
    out->name = arena_printf(&t->arena, "%s%s%s", scope, *scope ? "/" : "", out->kind);
    if (!out->name) return status_fail(ERR_MEMORY, "trace: out of memory");
    double ready = 0;
    for (int i = 0; i < op->n_in; i++) {
        if (op->in[i] == VAL_NONE) continue;
        TRY(add_input(b, out, b->writer[op->in[i]], &ready));
        TRY(add_input(b, out, b->sender[op->in[i]], &ready));
    }
    if (!out->deps) TRY(add_dep(b, out, b->barrier));
    /* a collective on the side stream is issued by the host when stream 0 gets there */
    double issued = b->stream_s[0];
    out->start_s = fmax(fmax(ready, issued), b->stream_s[out->stream]);
    b->stream_s[out->stream] = b->end_s[t->count] = out->start_s + out->duration_s;
    for (int i = 0; i < op->n_out; i++)
        if (op->out[i] != VAL_NONE) b->writer[op->out[i]] = t->count, b->sender[op->out[i]] = -1;
    t->count++;
    return OK;
}

/* Where ops can send while they run, the collective is beside the computation; else it follows. sent_out: that which
 * is, -1: none. */
static Status begin_sending(Builder *b, const Program *p, const Op *op, bool nograd, int *sent_out)
{
    CostClass sent = cost_classify_sent(p, op, 1, nograd);
    *sent_out = -1;
    if (!group_shares_memory(b->machine, machine_group(b, sent.group))) return OK;
    double queued_s = b->stream_s[1];
    *sent_out = b->trace->count;
    b->stream_s[1] = 0; /* it waits for no collective of the other stream, nor do those for it */
    TRY(add_op(b, p, op, &sent, price(b, &sent), 1));
    b->stream_s[1] = queued_s;
    return OK;
}

static Status end_sending(Builder *b, const Program *p, const Op *op, bool nograd, int sent)
{
    CostClass c = cost_classify(p, op, 1, nograd), by = cost_classify_sent(p, op, 1, nograd);
    Op computation = prog_op_computation(op), collective = prog_op_collective(op);
    TRY(add_op(b, p, &computation, &c, price(b, &c), 0));
    if (sent < 0) return add_op(b, p, &collective, &by, price(b, &by), 0);
    b->sender[collective.out[0]] = b->trace->count - 1;
    b->stream_s[0] = fmax(b->stream_s[0], b->end_s[sent]);
    return OK;
}

static Status add_plain(Builder *b, const Program *p, const Op *op, bool nograd)
{
    CostClass c = cost_classify(p, op, 1, nograd);
    return add_op(b, p, op, &c, price(b, &c), op->stream == STREAM_COMM);
}

static Status run_program(Builder *b, const Program *p, bool nograd)
{
    size_t values = (size_t)p->n_values + 1;
    b->writer = malloc(values * sizeof *b->writer);
    b->sender = malloc(values * sizeof *b->sender);
    Status status = b->writer && b->sender ? OK : status_fail(ERR_MEMORY, "trace: out of memory");
    for (int v = 0; v < p->n_values && status == OK; v++) b->writer[v] = b->sender[v] = -1;
    int32_t sender = p->n_ops; /* one that sends already, as op `sent` of the trace */
    int sent = -1;
    for (int32_t i = 0; i < p->n_ops && status == OK; i++) {
        const Op *op = &p->op[i];
        /* what shares the device sends beside the whole group in front of it */
        int32_t sends = op->send.active ? i : prog_sharing_op(p, i);
        if (sends < p->n_ops && sends != sender) {
            sender = sends;
            status = begin_sending(b, p, &p->op[sender], nograd, &sent);
        }
        if (status != OK) break;
        if (op_def(op->kind)->flags & OPF_ALIAS)
            pass_through(b, op);
        else
            status = op->send.active ? end_sending(b, p, op, nograd, sent) : add_plain(b, p, op, nograd);
    }
    free(b->writer);
    free(b->sender);
    b->writer = b->sender = NULL;
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
