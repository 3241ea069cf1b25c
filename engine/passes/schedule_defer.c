/* In the backward pass a collective's result is read at once: there is nothing to hide it behind, except the weight
 * gradients, which nobody waits for. They are held back, and as many of them as cover a collective follow its start. */
#include "engine/passes/schedule.h"

#include <math.h>
#include <stdlib.h>

#include "engine/passes/edit.h"

/* Held back at a time: their operands stay in memory that much longer. A block has about 30 weight gradients and 12
 * collectives in its backward pass. */
enum { HELD_MAX = 6 };

typedef struct Held {
    Op op[HELD_MAX];
    int first, n; /* a ring: the oldest at `first` */
} Held;

static Op release(Held *held)
{
    Op op = held->op[held->first];
    held->first = (held->first + 1) % HELD_MAX;
    held->n--;
    return op;
}

static bool writes_gradients_only(const Program *p, const Op *op)
{
    if (op->stage != STAGE_BACKWARD || (op_def(op->kind)->flags & (OPF_COMM | OPF_ALIAS))) return false;
    int written = 0;
    for (int k = 0; k < op->n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        if (p->value[op->out[k]].place != PLACE_GRAD) return false;
        written++;
    }
    return written > 0;
}

static bool touches_gradients(const Program *p, const Op *op)
{
    for (int k = 0; k < op->n_in; k++)
        if (op->in[k] != VAL_NONE && p->value[op->in[k]].place == PLACE_GRAD) return true;
    return false;
}

/* What a collective that starts at i and takes so long has to wait for at its first reader; weight gradients between
 * do not count: they are held back. */
static double uncovered(const Program *p, int32_t i, double seconds)
{
    Val result = p->op[i].out[0];
    for (int32_t k = i + 1; k < p->n_ops && seconds > 0; k++) {
        const Op *op = &p->op[k];
        for (int j = 0; j < op->n_in; j++)
            if (op->in[j] == result) return seconds;
        if (!writes_gradients_only(p, op)) seconds -= schedule_seconds(p, op);
    }
    return seconds;
}

/* Those that cover a collective of so many seconds. */
static void push_held(Program *p, Held *held, double seconds)
{
    while (held->n && seconds > 0) {
        Op op = release(held);
        seconds -= schedule_seconds(p, &op);
        edit_push_op(p, &op);
    }
}

static void defer(const Program *in, Program *p)
{
    Held held = {.n = 0};
    for (int32_t i = 0; i < in->n_ops; i++) {
        const Op *op = &in->op[i];
        if (writes_gradients_only(in, op)) {
            if (held.n == HELD_MAX) {
                Op oldest = release(&held);
                edit_push_op(p, &oldest);
            }
            held.op[(held.first + held.n++) % HELD_MAX] = *op;
            continue;
        }
        if (touches_gradients(in, op))
            push_held(p, &held, INFINITY); /* a bucket, a sum: what is held may belong to it */
        edit_push_op(p, op);
        if (!schedule_is_collective(op)) continue;
        push_held(p, &held, uncovered(in, i, schedule_aside_seconds(in, op)));
    }
    push_held(p, &held, INFINITY);
}

Status schedule_defer(const Program *in, Program **out)
{
    Program *p = NULL;
    TRY(prog_clone(in, &p));
    free(edit_restart(p, in->n_ops));
    defer(in, p);
    Status status = prog_status(p);
    if (status == OK)
        *out = p;
    else
        prog_destroy(&p);
    return status;
}
