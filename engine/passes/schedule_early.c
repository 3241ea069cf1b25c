/* The model records an exchange where its result is wanted. It may start where its operand is complete, and hide behind
 * what lies between. */
#include "engine/passes/schedule.h"

#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"

typedef struct Early {
    Program *p;
    const Op *op;          /* in the old order */
    int32_t *first, *next; /* per op: the first collective that moves behind it; of a collective: the next one there */
    int32_t *last;
} Early;

/* The op behind which a collective may run: the one that writes its operand, in the same stage; -1: where it is. */
static int32_t earliest(const Program *in, int32_t i)
{
    const Op *op = &in->op[i];
    if (!schedule_is_collective(op) || op->kind == OP_ALL_REDUCE) return -1; /* a bucket has several writers */
    const Value *v = &in->value[op->in[0]];
    if (v->place != PLACE_ARENA || v->def_op < 0 || in->op[v->def_op].stage != op->stage) return -1;
    return v->def_op;
}

static void push(Early *e, int32_t i)
{
    edit_push_op(e->p, &e->op[i]);
    for (int32_t k = e->first[i]; k >= 0; k = e->next[k]) push(e, k);
}

static void reorder(const Program *in, Early *e)
{
    for (int32_t i = 0; i < in->n_ops; i++) e->first[i] = e->last[i] = e->next[i] = -1;
    for (int32_t i = 0; i < in->n_ops; i++) {
        int32_t at = earliest(in, i);
        if (at < 0) continue;
        if (e->first[at] < 0)
            e->first[at] = i;
        else
            e->next[e->last[at]] = i;
        e->last[at] = i;
    }
    for (int32_t i = 0; i < in->n_ops; i++)
        if (earliest(in, i) < 0) push(e, i);
}

Status schedule_early(const Program *in, Program **out)
{
    Early e = {.op = in->op};
    TRY(prog_clone(in, &e.p));
    size_t ops = (size_t)in->n_ops + 1;
    e.first = malloc(ops * sizeof *e.first);
    e.next = malloc(ops * sizeof *e.next);
    e.last = malloc(ops * sizeof *e.last);
    if (e.first && e.next && e.last) {
        free(edit_restart(e.p, in->n_ops));
        reorder(in, &e);
    } else {
        prog_fail(e.p, ERR_MEMORY, "out of memory for the schedule of %d ops", in->n_ops);
    }
    free(e.first);
    free(e.next);
    free(e.last);
    Status status = prog_status(e.p);
    if (status == OK)
        *out = e.p;
    else
        prog_destroy(&e.p);
    return status;
}
