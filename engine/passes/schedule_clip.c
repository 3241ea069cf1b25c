#include "engine/passes/schedule.h"

#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"
#include "engine/rules.h"

/* Elements per sum where no bucket sets the size: as the buckets of gradient synchronisation. */
enum { RANGE_ELEMENTS = 25 * 1024 * 1024 / 4 };

/* A stretch of the gradient block and the op after which its sum of squares is taken. */
typedef struct Range {
    Val grad;
    int32_t after;
} Range;

typedef struct Clip {
    Program *p;
    int32_t ops; /* before anything was appended */
    Range *range;
    int n;
    bool *summed;        /* per parameter: in a bucket that is all-reduced */
    int32_t *last_write; /* per parameter */
} Clip;

static bool is_bucket(const Program *p, const Op *op)
{
    return op->kind == OP_ALL_REDUCE && op->out[0] != VAL_NONE && p->value[op->out[0]].place == PLACE_GRAD;
}

/* Parameters that a value of the gradient block covers: from its slot on, below *end_out. */
static int covered(const Program *p, const Value *v)
{
    const Registry *r = p->registry;
    int first = v->slot == WHOLE_BLOCK ? 0 : v->slot, last = first;
    int64_t end = r->param[first].offset + tensor_count(&v->t);
    while (last < r->n_params && r->param[last].offset < end) last++;
    return last;
}

/* The sum of a bucket waits until the next bucket is under way, so that it never stalls the computation. */
static void take_buckets(Clip *c)
{
    const Program *p = c->p;
    int open = -1;
    for (int32_t i = 0; i < c->ops; i++) {
        const Op *op = &p->op[i];
        for (int k = 0; k < op->n_out; k++) {
            const Value *v = op->out[k] == VAL_NONE ? NULL : &p->value[op->out[k]];
            if (!v || v->place != PLACE_GRAD) continue;
            int end = covered(p, v);
            for (int q = v->slot == WHOLE_BLOCK ? 0 : v->slot; q < end; q++) {
                c->last_write[q] = i;
                c->summed[q] |= is_bucket(p, op);
            }
        }
        if (!is_bucket(p, op)) continue;
        if (open >= 0) c->range[open].after = i;
        open = c->n;
        c->range[c->n++] = (Range){op->out[0], c->ops - 1};
    }
}

static void take_rest(Clip *c)
{
    const Registry *r = c->p->registry;
    for (int first = 0; first < r->n_params;) {
        int last = first;
        int32_t after = c->last_write[first];
        while (!c->summed[first] && last + 1 < r->n_params && !c->summed[last + 1] &&
               r->param[last + 1].offset + r->param[last + 1].count - r->param[first].offset <= RANGE_ELEMENTS) {
            last++;
            if (c->last_write[last] > after) after = c->last_write[last];
        }
        if (!c->summed[first]) {
            int64_t length = r->param[last].offset + r->param[last].count - r->param[first].offset;
            Val grad = prog_persistent(c->p, PLACE_GRAD, first, 1, &length);
            if (grad == VAL_NONE) return;
            c->p->value[grad].t.dtype = c->p->value[c->p->loss].t.dtype;
            c->range[c->n++] = (Range){grad, after};
        }
        first = last + 1;
    }
}

/* Appends the sums and what adds them up. */
static void append_sums(Clip *c)
{
    Program *p = c->p;
    Val *list = malloc(((size_t)c->n + 1) * sizeof *list);
    if (!list) {
        prog_fail(p, ERR_MEMORY, "out of memory for %d sums", c->n);
        return;
    }
    p->stage_now = STAGE_SYNC;
    p->block_now = p->origin_now = -1;
    p->scope_now = 0;
    for (int k = 0; k < c->n; k++) list[k] = prog_add(p, OP_SUM_SQUARES, 1, &c->range[k].grad, NULL);
    for (int n = c->n; n > 1;) {
        int groups = 0;
        for (int first = 0; first < n; first += OP_MAX_IN) {
            int count = n - first < OP_MAX_IN ? n - first : OP_MAX_IN;
            list[groups++] = count == 1 ? list[first] : prog_add(p, OP_CONCAT, count, list + first, NULL);
        }
        n = groups;
    }
    Val total = rule_add1(p, OP_SUM_LEADING, list[0], &(OpAttr){.i = {1}});
    Val state = prog_state(p, "grad_squares", DT_F32, 1, (int64_t[]){1});
    if (state != VAL_NONE) p->value[state].t.dtype = p->value[p->loss].t.dtype;
    prog_add_into(p, OP_COPY, 1, &total, NULL, 1, &state);
    free(list);
}

static void interleave(Clip *c, int32_t *first_at, int32_t *next)
{
    Program *p = c->p;
    int32_t total = p->n_ops;
    Op *appended = edit_restart(p, total);
    memset(first_at, 0xff, ((size_t)c->ops + 1) * sizeof *first_at);
    for (int k = c->n - 1; k >= 0; k--) {
        next[k] = first_at[c->range[k].after];
        first_at[c->range[k].after] = k;
    }
    for (int32_t i = 0; i < c->ops; i++) {
        edit_push_op(p, &appended[i]);
        for (int32_t k = first_at[i]; k >= 0; k = next[k]) edit_push_op(p, &appended[c->ops + k]);
    }
    for (int32_t i = c->ops + c->n; i < total; i++) edit_push_op(p, &appended[i]);
    free(appended);
}

Status schedule_clip(const Program *in, Program **out)
{
    Clip c = {0};
    TRY(prog_clone(in, &c.p));
    c.ops = c.p->n_ops;
    size_t params = (size_t)in->registry->n_params + 1, ops = (size_t)in->n_ops + 1;
    c.range = malloc((params + ops) * sizeof *c.range);
    c.summed = calloc(params, sizeof *c.summed);
    c.last_write = calloc(params, sizeof *c.last_write);
    int32_t *first_at = malloc(ops * sizeof *first_at), *next = malloc((params + ops) * sizeof *next);
    if (c.range && c.summed && c.last_write && first_at && next) {
        take_buckets(&c);
        take_rest(&c);
        append_sums(&c);
        if (c.p->status == OK) interleave(&c, first_at, next);
    } else {
        prog_fail(c.p, ERR_MEMORY, "out of memory for the sums of %zu parameters", params);
    }
    free(c.range);
    free(c.summed);
    free(c.last_write);
    free(first_at);
    free(next);
    Status status = prog_status(c.p);
    if (status == OK)
        *out = c.p;
    else
        prog_destroy(&c.p);
    return status;
}
