#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "engine/passes/aside.h"
#include "engine/passes/verify.h"

static bool is_start(const Op *op)
{
    return op->stream == STREAM_COMM && op->kind != OP_COMM_WAIT && op->out[0] != VAL_NONE;
}

Status verify_waits(const Program *p, PassStage after)
{
    int32_t *started = malloc(((size_t)p->n_values + 1) * sizeof *started); /* by which op; -1 = not in flight */
    if (!started) return status_fail(ERR_MEMORY, "out of memory in verify");
    memset(started, 0xff, ((size_t)p->n_values + 1) * sizeof *started);
    Status status = OK;
    for (int32_t i = 0; i < p->n_ops && status == OK; i++) {
        const Op *op = &p->op[i];
        bool waits = op->kind == OP_COMM_WAIT;
        if (waits && started[op->in[0]] < 0) status = verify_fail(p, i, after, "waits for what nobody has started");
        if (waits) started[op->in[0]] = -1;
        for (int k = 0; !waits && k < op->n_in && status == OK; k++)
            if (op->in[k] != VAL_NONE && started[op->in[k]] >= 0)
                status = verify_fail(p, i, after, "reads the result of a collective before it has arrived");
        for (int k = 0; !waits && k < op->n_out && status == OK; k++)
            if (op->out[k] != VAL_NONE && started[op->out[k]] >= 0)
                status = verify_fail(p, i, after, "writes the result of a collective in flight");
        if (is_start(op)) started[op->out[0]] = i;
    }
    for (int32_t v = 0; v < p->n_values && status == OK; v++)
        if (started[v] >= 0) status = verify_fail(p, started[v], after, "a collective is started and never waited for");
    free(started);
    return status;
}

Status verify_groups(const Program *p, PassStage after)
{
    int32_t oldest = 0, end = 0;
    int groups = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        bool aside = op->stream == STREAM_ASIDE;
        if (op->joins > groups) return verify_fail(p, i, after, "waits for more groups than there are");
        for (int left = op->joins; left > 0 && aside_next(p, &oldest, &end); left--) oldest = end;
        groups -= op->joins;
        if (aside && op->joins) return verify_fail(p, i, after, "waits for a group within a group");
        if (aside && (op->send.active || (op_def(op->kind)->flags & (OPF_COMM | OPF_ALIAS))))
            return verify_fail(p, i, after, "cannot run aside");
        if (op->send.shares && (i == 0 || p->op[i - 1].stream != STREAM_ASIDE))
            return verify_fail(p, i, after, "leaves room to nothing");
        groups += aside && (i == 0 || p->op[i - 1].stream != STREAM_ASIDE);
        if (groups > ASIDE_GROUPS) return verify_fail(p, i, after, "too many groups run aside");
        for (int32_t k = oldest; !aside && groups && k < i; k++)
            if (p->op[k].stream == STREAM_ASIDE && aside_conflicts(p, &p->op[k], op))
                return verify_fail(p, i, after, "touches what a group aside is working on");
    }
    return OK;
}

/* Births and deaths of values in program order against a tree over the offsets that occur: a birth in a stretch that is
 * not empty is an overlap. Each node counts the values that cover it wholly, and knows whether anything below is
 * covered. */
typedef struct Occupancy {
    int64_t *edge; /* sorted distinct offsets and ends */
    int32_t n, leaves;
    int32_t *cover;
    bool *any;
} Occupancy;

static int compare_edges(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int32_t edge_index(const Occupancy *o, int64_t offset)
{
    return (int32_t)((int64_t *)bsearch(&offset, o->edge, (size_t)o->n, sizeof offset, compare_edges) - o->edge);
}

static bool occupied(const Occupancy *o, int32_t node, int32_t low, int32_t high, int32_t from, int32_t to)
{
    if (to <= low || high <= from || !o->any[node]) return false;
    if (o->cover[node] || (from <= low && high <= to)) return true;
    int32_t middle = (low + high) / 2;
    return occupied(o, 2 * node, low, middle, from, to) || occupied(o, 2 * node + 1, middle, high, from, to);
}

static void occupy(Occupancy *o, int32_t node, int32_t low, int32_t high, int32_t from, int32_t to, int change)
{
    if (to <= low || high <= from) return;
    if (from <= low && high <= to) {
        o->cover[node] += change;
    } else {
        int32_t middle = (low + high) / 2;
        occupy(o, 2 * node, low, middle, from, to, change);
        occupy(o, 2 * node + 1, middle, high, from, to, change);
    }
    bool below = node < o->leaves && (o->any[2 * node] || o->any[2 * node + 1]);
    o->any[node] = o->cover[node] > 0 || below;
}

typedef struct Lives {
    int32_t *last;        /* per root: last op that touches it; n_ops for outputs */
    int32_t *dies, *next; /* values that die after op i, as lists */
    int32_t *starter;     /* per value: op that started its transfer */
} Lives;

static Val root_of(const Program *p, Val v)
{
    while (p->value[v].alias != VAL_NONE) v = p->value[v].alias;
    return v;
}

static void find_last(const Program *p, Lives *l, const Op *op, int32_t at)
{
    for (int k = 0; k < op->n_in + op->n_out; k++) {
        Val v = k < op->n_in ? op->in[k] : op->out[k - op->n_in];
        if (v != VAL_NONE && at > l->last[root_of(p, v)]) l->last[root_of(p, v)] = at;
    }
}

static void find_deaths(const Program *p, Lives *l)
{
    memset(l->last, 0xff, (size_t)p->n_values * sizeof *l->last);
    memset(l->starter, 0xff, (size_t)p->n_values * sizeof *l->starter);
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        find_last(p, l, op, i);
        if (is_start(op)) l->starter[op->out[0]] = i;
        if (op->kind == OP_COMM_WAIT && l->starter[op->in[0]] >= 0) /* what is sent must stay until it has gone */
            l->last[root_of(p, p->op[l->starter[op->in[0]]].in[0])] = i;
    }
    int32_t first = 0, end;
    for (int32_t i = 0; i <= p->n_ops; i++) /* what a group aside touches must stay until it was waited for */
        for (int left = i < p->n_ops ? p->op[i].joins : p->n_ops; left > 0 && aside_next(p, &first, &end); left--)
            for (; first < end; first++) find_last(p, l, &p->op[first], i);
    for (int32_t v = 0; v < p->n_values; v++)
        if (p->value[v].output) l->last[root_of(p, v)] = p->n_ops;
    memset(l->dies, 0xff, ((size_t)p->n_ops + 1) * sizeof *l->dies);
    for (int32_t v = 0; v < p->n_values; v++)
        if (p->value[v].place == PLACE_ARENA && p->value[v].alias == VAL_NONE && l->last[v] >= 0) {
            l->next[v] = l->dies[l->last[v]];
            l->dies[l->last[v]] = v;
        }
}

static void stretch(const Program *p, const Occupancy *o, Val v, int32_t *from, int32_t *to)
{
    *from = edge_index(o, p->value[v].offset);
    *to = edge_index(o, p->value[v].offset + (int64_t)tensor_bytes(&p->value[v].t));
}

static Status sweep(const Program *p, PassStage after, Occupancy *o, const Lives *l)
{
    int32_t from, to;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        for (int k = 0; k < op->n_out; k++) {
            Val v = op->out[k];
            if (v == VAL_NONE || p->value[v].place != PLACE_ARENA || p->value[v].alias != VAL_NONE) continue;
            stretch(p, o, v, &from, &to);
            if (occupied(o, 1, 0, o->leaves, from, to))
                return verify_fail(p, i, after, "an output lies on a value that is still needed");
            occupy(o, 1, 0, o->leaves, from, to, 1);
        }
        for (Val v = l->dies[i]; v != VAL_NONE; v = l->next[v]) {
            stretch(p, o, v, &from, &to);
            occupy(o, 1, 0, o->leaves, from, to, -1);
        }
    }
    return OK;
}

static void collect_edges(const Program *p, Occupancy *o)
{
    for (int32_t v = 0; v < p->n_values; v++) {
        const Value *value = &p->value[v];
        if (value->place != PLACE_ARENA || value->alias != VAL_NONE || value->offset < 0) continue;
        o->edge[o->n++] = value->offset;
        o->edge[o->n++] = value->offset + (int64_t)tensor_bytes(&value->t);
    }
    qsort(o->edge, (size_t)o->n, sizeof *o->edge, compare_edges);
    int32_t distinct = 0;
    for (int32_t i = 0; i < o->n; i++)
        if (!distinct || o->edge[i] != o->edge[distinct - 1]) o->edge[distinct++] = o->edge[i];
    o->n = distinct;
    for (o->leaves = 1; o->leaves < o->n; o->leaves *= 2) continue;
}

Status verify_arena(const Program *p, PassStage after)
{
    size_t values = (size_t)p->n_values + 1, ops = (size_t)p->n_ops + 1;
    Occupancy o = {.edge = malloc(2 * values * sizeof *o.edge)};
    Lives l = {malloc(values * sizeof *l.last), malloc(ops * sizeof *l.dies), malloc(values * sizeof *l.next),
               malloc(values * sizeof *l.starter)};
    Status status = OK;
    if (o.edge) collect_edges(p, &o);
    o.cover = calloc(2 * (size_t)(o.leaves + 1), sizeof *o.cover);
    o.any = calloc(2 * (size_t)(o.leaves + 1), sizeof *o.any);
    if (!o.edge || !l.last || !l.dies || !l.next || !l.starter || !o.cover || !o.any) {
        status = status_fail(ERR_MEMORY, "out of memory in verify");
    } else {
        find_deaths(p, &l);
        status = sweep(p, after, &o, &l);
    }
    free(o.edge);
    free(o.cover);
    free(o.any);
    free(l.last);
    free(l.dies);
    free(l.next);
    free(l.starter);
    return status;
}
