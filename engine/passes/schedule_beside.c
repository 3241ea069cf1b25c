/* An op that sends more than it computes keeps the wire busy and the GPU idle. Where its kernel leaves multiprocessors
 * free, what follows and needs nothing of it runs aside meanwhile: in the forward pass, the start of the next block's
 * MSA branch beside the triangle multiplications. (In the backward pass there are gradients of parameters for that,
 * schedule_aside.c.) */
#include "engine/passes/schedule.h"

#include <stdlib.h>

#include "engine/passes/behind.h"
#include "engine/passes/edit.h"

/* Kinds whose kernels leave multiprocessors free where something runs beside them (Send.shares), and the part of all
 * that they leave. */
typedef struct Room {
    OpKind op;
    double part;
} Room;

static const Room rooms[] = {{OP_LINEAR_GATES, 1.0 / 6}, {OP_TRI_PRODUCT, 0.5}, {OP_GATE_NORM_CHANNELS_DX, 0.5}};

/* A kernel loses time by leaving room unless it waits for the wire at least that long, in its own time. */
static const double LEAST_IDLE = 0.25;

/* Ops looked at behind one that sends. */
enum { WINDOW = 16 };

double schedule_room(const Program *p, const Op *op)
{
    if (!op->send.active) return 0;
    double own = schedule_seconds(p, op), wire = schedule_wire_seconds(p, op);
    for (size_t k = 0; k < sizeof rooms / sizeof *rooms; k++)
        if (rooms[k].op == op->kind) return wire - own >= LEAST_IDLE * own ? rooms[k].part * wire : 0;
    return 0;
}

typedef struct Beside {
    Program *p;
    int32_t *behind; /* per value: the op (position + 1) behind which it has to stay */
} Beside;

static bool can_run_aside(const Program *p, const Op *op)
{
    if (op->stream || op->send.active || (op_def(op->kind)->flags & (OPF_COMM | OPF_EFFECT | OPF_ALIAS))) return false;
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE && p->value[op->out[k]].place != PLACE_ARENA) return false;
    return true;
}

/* Whether the collective that an op waits for has most likely ended in front of position `at`. */
static bool has_arrived(const Program *p, const Op *wait, int32_t at)
{
    double passed = 0;
    for (int32_t i = at; i-- > 0;) {
        const Op *op = &p->op[i];
        if (schedule_is_collective(op) && op->out[0] == wait->in[0]) return passed > schedule_aside_seconds(p, op);
        passed += schedule_seconds(p, op);
    }
    return false;
}

/* What runs beside the op at `sender` moves ahead of it, with the waits that come before: its position afterwards. */
static int32_t take_beside(Beside *b, int32_t sender, double room)
{
    Program *p = b->p;
    int32_t mark = sender + 1, end = sender + WINDOW;
    uint8_t stage = p->op[sender].stage;
    double taken = 0;
    behind_keep(b->behind, &p->op[sender], mark);
    for (int32_t i = sender + 1; i < p->n_ops && i <= end && p->op[i].stage == stage && taken < room; i++) {
        Op *op = &p->op[i];
        bool waits = op->kind == OP_COMM_WAIT && has_arrived(p, op, sender), beside = can_run_aside(p, op);
        if (behind_reads(b->behind, op, mark) || !(waits || beside)) {
            behind_keep(b->behind, op, mark);
            continue;
        }
        if (beside) {
            op->stream = STREAM_ASIDE;
            p->op[sender].send.shares = true;
            taken += schedule_seconds(p, op);
        }
        edit_move_op(p, i, sender++);
    }
    return sender;
}

Status schedule_beside(const Program *in, Program **out)
{
    Beside b = {0};
    TRY(prog_clone(in, &b.p));
    b.behind = calloc((size_t)in->n_values + 1, sizeof *b.behind);
    if (!b.behind) {
        prog_destroy(&b.p);
        return status_fail(ERR_MEMORY, "out of memory for the schedule of %d ops", in->n_ops);
    }
    for (int32_t i = 0; i < b.p->n_ops; i++) {
        double room = b.p->op[i].stage == STAGE_FORWARD ? schedule_room(b.p, &b.p->op[i]) : 0;
        if (room > 0) i = take_beside(&b, i, room);
    }
    edit_renumber(b.p);
    free(b.behind);
    *out = b.p;
    return OK;
}
