/* In the backward pass a collective's result is read at once: there is nothing to hide it behind, except the weight
 * gradients, which nobody waits for. Each of them is held back until the next collective has been started. */
#include "engine/passes/schedule.h"

#include <stdlib.h>

#include "engine/passes/edit.h"

/* Held back at a time: their operands stay in memory that much longer. A block has about 30 weight gradients and 12
 * collectives in its backward pass. */
enum { HELD_MAX = 4 };

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

Status schedule_defer(const Program *in, Program **out)
{
    Program *p = NULL;
    TRY(prog_clone(in, &p));
    free(edit_restart(p, in->n_ops));
    Op held[HELD_MAX];
    int n = 0, first = 0; /* a ring: the oldest at `first` */
    for (int32_t i = 0; i <= in->n_ops; i++) {
        const Op *op = i < in->n_ops ? &in->op[i] : NULL;
        if (op && writes_gradients_only(in, op)) {
            if (n == HELD_MAX) {
                edit_push_op(p, &held[first]);
                first = (first + 1) % HELD_MAX;
                n--;
            }
            held[(first + n++) % HELD_MAX] = *op;
            continue;
        }
        bool collective = op && (op_def(op->kind)->flags & OPF_COMM);
        bool reads = op && touches_gradients(in, op); /* a bucket, a sum of squares: what is held may belong to it */
        if (op && collective && !reads) edit_push_op(p, op);
        for (; (!op || collective || reads) && n; n--, first = (first + 1) % HELD_MAX) edit_push_op(p, &held[first]);
        if (op && (!collective || reads)) edit_push_op(p, op);
    }
    Status status = prog_status(p);
    if (status == OK)
        *out = p;
    else
        prog_destroy(&p);
    return status;
}
