/* Order and streams. Under comm_overlap a collective that has something to hide behind becomes a start on the
 * communication stream and a COMM_WAIT in front of the first op that reads its result; what lies between runs
 * meanwhile. */
#include "engine/passes/schedule.h"

#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"
#include "engine/passes/replay.h"

typedef struct Overlap {
    const Program *in;
    const bool *needed; /* of schedule_needed(), NULL: nothing runs aside */
    Program *p;
    int32_t *readers;    /* of schedule_readers() */
    int32_t *first_read; /* per value: first op that reads it after it was written, n_ops when none */
    int32_t *waits;      /* per op position: first collective to wait for there, -1 = none */
    int32_t *next_wait;  /* per collective */
    Val *arrived;        /* per value: what readers take after the wait */
} Overlap;

/* Whether an op could send what the collective takes, while beside the computation it would share the wire with another
 * one, in line, in front of its reader. Of bf16, which is what kernels send; where they cannot reach the other ranks'
 * memory, it is exposed instead. In the forward pass: sending gradients of layer norms took longer than it saved. */
static bool better_sent(const Overlap *o, int32_t collective, int32_t reader)
{
    Cost own = {0}, other = {0};
    int output;
    const Op *op = &o->in->op[collective];
    if (op->stage != STAGE_FORWARD || o->in->value[op->in[0]].t.dtype != DT_BF16) return false;
    if (schedule_sender(o->in, collective, o->readers, &output) < 0) return false;
    prog_op_cost(o->in, op, &own);
    for (int32_t i = collective + 1; i < reader; i++) {
        if (!schedule_is_collective(&o->in->op[i]) || o->p->op[i].stream) continue;
        prog_op_cost(o->in, &o->in->op[i], &other);
        if (other.wire_bytes >= own.wire_bytes / 2) return true;
    }
    return false;
}

/* Whether enough runs between a collective and the first reader of its result, at `reader`. What runs aside does not
 * stay there; but the sum of a bucket of gradients comes behind it anyway. */
static bool pays(const Overlap *o, int32_t collective, int32_t reader)
{
    const Program *p = o->in;
    const bool *needed = p->op[collective].kind == OP_ALL_REDUCE ? NULL : o->needed;
    double wanted = schedule_aside_seconds(p, &p->op[collective]), meanwhile = 0;
    for (int32_t i = collective + 1; i < reader && meanwhile <= wanted; i++)
        meanwhile += schedule_main_seconds(p, needed, &p->op[i]);
    return meanwhile > wanted;
}

static void find_waits(Overlap *o)
{
    const Program *p = o->in;
    for (int32_t v = 0; v < p->n_values; v++) o->first_read[v] = p->n_ops;
    for (int32_t i = p->n_ops - 1; i >= 0; i--) {
        const Op *op = &p->op[i];
        o->waits[i] = o->next_wait[i] = -1;
        if (schedule_is_collective(op)) {
            int32_t at = o->first_read[op->out[0]];
            if (pays(o, i, at) && !better_sent(o, i, at)) {
                o->next_wait[i] = o->waits[at];
                o->waits[at] = i;
                o->p->op[i].stream = STREAM_COMM;
            }
        }
        for (int k = 0; k < op->n_in; k++)
            if (op->in[k] != VAL_NONE) o->first_read[op->in[k]] = i;
    }
}

/* The result of a collective that wrote to the arena goes on as another name of it; a persistent place is waited for in
 * place. */
static void push_wait(Overlap *o, int32_t collective)
{
    const Op *start = &o->in->op[collective];
    Op wait = *start;
    wait.kind = OP_COMM_WAIT;
    wait.stream = 0;
    wait.n_in = wait.n_out = 1;
    wait.attr = (OpAttr){0};
    for (int k = 0; k < OP_MAX_IN; k++) wait.in[k] = VAL_NONE;
    for (int k = 0; k < OP_MAX_OUT; k++) wait.out[k] = VAL_NONE;
    Val v = start->out[0];
    wait.in[0] = wait.out[0] = v;
    if (!replay_is_persistent(&o->p->value[v])) {
        Value arrived = o->p->value[v];
        arrived.alias = v;
        wait.out[0] = edit_push_value(o->p, &arrived);
        if (wait.out[0] == VAL_NONE) return;
        o->arrived[v] = wait.out[0];
        o->p->value[v].name = NULL;
        o->p->value[v].output = false;
    }
    edit_push_op(o->p, &wait);
}

static void push_waits(Overlap *o, int32_t position)
{
    for (int32_t c = o->waits[position]; c >= 0; c = o->next_wait[c]) push_wait(o, c);
}

static void overlap(Overlap *o)
{
    const Program *in = o->in;
    memset(o->arrived, 0xff, ((size_t)in->n_values + 1) * sizeof *o->arrived);
    o->waits[in->n_ops] = -1;
    find_waits(o);
    Op *marked = edit_restart(o->p, in->n_ops + in->n_ops / 8); /* the streams are set; the list is built anew */
    for (int32_t i = 0; i < in->n_ops; i++) {
        push_waits(o, i);
        Op op = marked[i];
        for (int k = 0; k < op.n_in; k++)
            if (op.in[k] != VAL_NONE && o->arrived[op.in[k]] != VAL_NONE) op.in[k] = o->arrived[op.in[k]];
        edit_push_op(o->p, &op);
    }
    push_waits(o, in->n_ops);
    free(marked);
    for (int32_t v = in->n_values; v-- > 0;) /* a reshaped result is another name of what has arrived */
        if (o->p->value[v].alias != VAL_NONE && o->arrived[o->p->value[v].alias] != VAL_NONE)
            o->p->value[v].alias = o->arrived[o->p->value[v].alias];
    if (o->p->loss != VAL_NONE && o->arrived[o->p->loss] != VAL_NONE) o->p->loss = o->arrived[o->p->loss];
}

static Status split_collectives(const Program *in, const bool *needed, Program **out)
{
    Overlap o = {.in = in, .needed = needed};
    TRY(prog_clone(in, &o.p));
    size_t values = (size_t)in->n_values + 1, ops = (size_t)in->n_ops + 1;
    o.first_read = malloc(values * sizeof *o.first_read);
    o.arrived = malloc(values * sizeof *o.arrived);
    o.waits = malloc(ops * sizeof *o.waits);
    o.next_wait = malloc(ops * sizeof *o.next_wait);
    Status status = OK;
    o.readers = schedule_readers(in);
    if (!o.readers || !o.first_read || !o.arrived || !o.waits || !o.next_wait) {
        status = status_fail(ERR_MEMORY, "out of memory for the schedule of %d ops", in->n_ops);
    } else {
        overlap(&o);
        status = prog_status(o.p);
    }
    free(o.readers);
    free(o.first_read);
    free(o.arrived);
    free(o.waits);
    free(o.next_wait);
    if (status == OK)
        *out = o.p;
    else
        prog_destroy(&o.p);
    return status;
}

/* Replaces *now by what a step made of it. */
static Status advance(Program **now, Status status, Program **next)
{
    if (status != OK) {
        prog_destroy(now);
        return status;
    }
    prog_destroy(now);
    *now = *next;
    return OK;
}

/* What collectives hide behind; needed: as above. */
static Status hide_collectives(Program **now, const bool *needed, const Switches *switches)
{
    Program *next = NULL;
    bool groups = (*now)->dap > 1;
    if (groups) TRY(advance(now, schedule_early(*now, &next), &next));
    if (groups) TRY(advance(now, schedule_fill(*now, &next), &next));
    if (groups && (*now)->loss != VAL_NONE && !switches->cuda_graph)
        TRY(advance(now, schedule_defer(*now, &next), &next));
    TRY(advance(now, split_collectives(*now, needed, &next), &next));
    if (groups) TRY(advance(now, schedule_send(*now, &next), &next));
    if (groups) TRY(advance(now, schedule_wire(*now, needed, &next), &next));
    return groups && switches->cuda_graph ? advance(now, schedule_beside(*now, &next), &next) : OK;
}

Status pass_schedule(const Program *in, const Switches *switches, Program **out)
{
    Program *now = NULL, *next = NULL;
    bool aside = switches->cuda_graph && (in->loss != VAL_NONE || in->dap > 1); /* gradients; schedule_beside() */
    bool clip = switches->overlap_clip && in->loss != VAL_NONE;
    TRY(clip ? schedule_clip(in, &now) : prog_clone(in, &now));
    bool *needed = aside ? schedule_needed(now) : NULL;
    Status status = OK;
    if (aside && !needed) {
        status = status_fail(ERR_MEMORY, "out of memory for the schedule of %d ops", now->n_ops);
        prog_destroy(&now);
    }
    if (status == OK && switches->comm_overlap) status = hide_collectives(&now, needed, switches);
    if (status == OK && aside) status = advance(&now, schedule_aside(now, needed, &next), &next);
    free(needed);
    TRY(status);
    for (int32_t i = 0; i < now->n_ops; i++) now->op[i].segment = switches->cuda_graph ? 0 : -1;
    *out = now;
    return OK;
}
