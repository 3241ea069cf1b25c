/* Nobody waits for the gradients of parameters before the end of the backward pass: the ops that compute them run
 * beside the chain that carries the gradient on, and fill what it leaves idle. They are held back until there are
 * enough for a group; an op that needs a result of a group waits for it, and so does the one behind the start of the
 * next group, so that operands do not stay in memory for long. What schedule_beside() found is a group where it
 * stands. */
#include "engine/passes/schedule.h"

#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "engine/passes/aside.h"
#include "engine/passes/edit.h"

/* Ops of a group: on an H200 16 ran faster than 8, by 0.5 to 1 % of a gradient step, and 8 faster than 2. Where the
 * computation ends nothing runs beside the last group: groups become smaller towards it, as many ops at most as a
 * quarter of those that are left of the computation. */
enum { GROUP_OPS = 16, LEAST_OPS = 2, LEFT_PER_OP = 4 };

/* Ops of a group beside an op that leaves room (schedule_room()): the product of a triangle and the gradient in front
 * of it wait for the wire some 20 us each on two H200; 6 ops ran faster there than 1 to 4. */
enum { BESIDE_OPS = 6 };

typedef struct Aside {
    const Program *in;
    Program *p;
    bool *late; /* per op of `in` */
    Op *side;   /* late ops in their order: first those that were started, then those held back */
    int32_t started, count;
    int32_t begin[ASIDE_GROUPS + 1]; /* of `side`: group g in flight is [begin[g], begin[g + 1]) */
    int groups;
} Aside;

static Val root_of(const Program *p, Val v)
{
    while (p->value[v].alias != VAL_NONE) v = p->value[v].alias;
    return v;
}

static bool lives_in(const Program *p, int n, const Val *v, Place place)
{
    int there = 0;
    for (int k = 0; k < n; k++) {
        if (v[k] == VAL_NONE) continue;
        if (p->value[v[k]].place != place) return false;
        there++;
    }
    return there > 0;
}

bool schedule_is_late(const Program *p, const bool *needed, const Op *op)
{
    bool backward = op->stage == STAGE_BACKWARD || op->stage == STAGE_SYNC;
    if (!backward || op->stream || op->send.active) return false;
    if (op_def(op->kind)->flags & (OPF_COMM | OPF_EFFECT | OPF_ALIAS)) return false;
    if (lives_in(p, op->n_in, op->in, PLACE_GRAD) && lives_in(p, op->n_out, op->out, PLACE_ARENA)) return true;
    for (int k = 0; k < op->n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        const Value *v = &p->value[op->out[k]];
        if (v->place == PLACE_GRAD) continue;
        if (v->place != PLACE_ARENA || v->output || needed[root_of(p, op->out[k])]) return false;
    }
    return op->n_out > 0;
}

bool *schedule_needed(const Program *p)
{
    bool *needed = calloc((size_t)p->n_values + 1, sizeof *needed);
    if (!needed) return NULL;
    if (p->loss != VAL_NONE) needed[root_of(p, p->loss)] = true;
    for (int32_t i = p->n_ops - 1; i >= 0; i--) {
        const Op *op = &p->op[i];
        bool adds_up = op->kind == OP_ADD || op->kind == OP_CAST;
        if (adds_up && schedule_is_late(p, needed, op)) continue;
        for (int k = 0; k < op->n_in; k++)
            if (op->in[k] != VAL_NONE) needed[root_of(p, op->in[k])] = true;
    }
    return needed;
}

/* The oldest of those held back, so many at most. */
static void start_group(Aside *a, int32_t most)
{
    Program *p = a->p;
    if (a->started == a->count) return;
    bool grows = p->n_ops && p->op[p->n_ops - 1].stream == STREAM_ASIDE;
    for (; a->started < a->count && most > 0; a->started++, most--) edit_push_op(p, &a->side[a->started]);
    if (!grows) a->groups++;
    a->begin[a->groups] = a->started;
}

static void push_main(Aside *a, const Op *op)
{
    Op main = *op;
    bool held_up = false;
    for (int32_t i = a->started; i < a->count && !held_up; i++) held_up = aside_conflicts(a->in, &a->side[i], op);
    if (held_up) start_group(a, a->count);
    bool backward = op->stage != STAGE_FORWARD && !op->recomputed; /* what is made again has not been tried */
    if (backward && a->started < a->count && schedule_room(a->in, op) > 0) {
        start_group(a, BESIDE_OPS);
        main.send.shares = true;
    }
    int joins = a->groups > 1 ? a->groups - 1 : 0;
    for (int32_t i = a->begin[joins]; i < a->begin[a->groups] && joins < a->groups; i++)
        if (aside_conflicts(a->in, &a->side[i], op))
            while (a->begin[joins] <= i) joins++;
    main.joins = (uint8_t)joins;
    a->groups -= joins;
    memmove(a->begin, a->begin + joins, (size_t)(a->groups + 1) * sizeof *a->begin);
    edit_push_op(a->p, &main);
}

static int32_t group_size(int32_t left)
{
    int32_t size = left / LEFT_PER_OP;
    return size > GROUP_OPS ? GROUP_OPS : size < LEAST_OPS ? LEAST_OPS : size;
}

static void take_aside(Aside *a)
{
    int32_t left = 0;
    for (int32_t i = 0; i < a->in->n_ops; i++) left += !a->late[i];
    free(edit_restart(a->p, a->in->n_ops));
    for (int32_t i = 0; i < a->in->n_ops; i++) {
        const Op *op = &a->in->op[i];
        if (!a->late[i] && op->stream != STREAM_ASIDE) {
            push_main(a, op);
            left--;
            continue;
        }
        Op *side = &a->side[a->count++];
        *side = *op;
        side->stream = STREAM_ASIDE;
        if (!a->late[i] || a->count - a->started >= group_size(left)) start_group(a, a->count);
    }
    start_group(a, a->count);
}

Status schedule_aside(const Program *in, const bool *needed, Program **out)
{
    Aside a = {.in = in};
    TRY(prog_clone(in, &a.p));
    a.late = calloc((size_t)in->n_ops + 1, sizeof *a.late);
    a.side = malloc(((size_t)in->n_ops + 1) * sizeof *a.side);
    Status status = OK;
    if (!a.late || !a.side) {
        status = status_fail(ERR_MEMORY, "out of memory for the schedule of %d ops", in->n_ops);
    } else {
        for (int32_t i = 0; i < in->n_ops; i++) a.late[i] = schedule_is_late(in, needed, &in->op[i]);
        take_aside(&a);
        status = prog_status(a.p);
    }
    free(a.late);
    free(a.side);
    if (status == OK)
        *out = a.p;
    else
        prog_destroy(&a.p);
    return status;
}
