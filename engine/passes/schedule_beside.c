/* An op that sends more than it computes keeps the wire busy and the GPU idle. Where its kernel leaves multiprocessors
 * free, what follows and needs nothing of it runs aside meanwhile: in the forward pass, the start of the next block's
 * MSA branch beside the triangle multiplications. (In the backward pass there are gradients of parameters for that,
 * schedule_aside.c.) */
#include "engine/passes/schedule.h"

#include <stdlib.h>

#include "engine/passes/behind.h"
#include "engine/passes/edit.h"

/* Kinds whose kernels leave multiprocessors free where something runs beside them (Send.shares), and the part of all
 * that they leave: as GATES_SHARING, TRI_SHARING and GATE_NORM_SHARING in kernels/cuda say, measured at DAP 2 on two
 * H200. */
typedef struct Room {
    OpKind op;
    double part;
} Room;

static const Room rooms[] = {{OP_LINEAR_GATES, 1.0 / 6}, {OP_TRI_PRODUCT, 0.5}, {OP_GATE_NORM_CHANNELS_DX, 0.5}};

/* A kernel loses time by leaving room unless it waits for the wire at least that long, in its own time: gates that keep
 * their products, the least of the three, wait 0.3 of theirs and are faster for it. Nor does it pay for less than a
 * part of the room. */
static const double LEAST_IDLE = 0.25, LEAST_FILLED = 0.25;

/* Ops looked at behind one that sends: as in schedule_fill.c, the start of the next block. */
enum { WINDOW = 16 };

double schedule_room(const Program *p, const Op *op)
{
    size_t k = 0, kinds = sizeof rooms / sizeof *rooms;
    while (k < kinds && rooms[k].op != op->kind) k++;
    if (k == kinds || !op->send.active) return 0;
    double own = schedule_seconds(p, op), wire = schedule_wire_seconds(p, op);
    return wire - own >= LEAST_IDLE * own ? rooms[k].part * wire : 0;
}

static bool can_run_aside(const Program *p, const Op *op)
{
    bool computes = !op->stream && !op->send.active && !(op_def(op->kind)->flags & (OPF_COMM | OPF_ALIAS));
    return computes && !edit_writes_persistent(p, op);
}

/* Whether the collective that an op waits for has most likely ended in front of position `at`. */
static bool has_arrived(const Program *p, const Op *wait, int32_t at)
{
    double passed = 0;
    for (int32_t i = at; i-- > 0;) {
        const Op *op = &p->op[i];
        if (schedule_is_collective(op) && op->out[0] == wait->in[0]) return passed > schedule_aside_seconds(p, op);
        if (!op->stream) passed += schedule_seconds(p, op);
    }
    return false;
}

/* Whether what the wait at i lets pass is read next by an op that may run aside. */
static bool opens(const Program *p, int32_t i, int32_t end)
{
    for (int32_t k = i + 1; k < p->n_ops && k <= end; k++)
        for (int j = 0; j < p->op[k].n_in; j++)
            if (p->op[k].in[j] == p->op[i].out[0]) return can_run_aside(p, &p->op[k]);
    return false;
}

/* Seconds of what may run beside the op at *sender until the room is filled. With `take`, it moves ahead of that op,
 * and in front of it the waits that it needs: *sender is the op's position afterwards. */
static double take_beside(Program *p, int32_t *behind, int32_t *sender, double room, bool take)
{
    int32_t front = *sender, mark = front + 1, end = front + WINDOW;
    uint8_t stage = p->op[front].stage;
    double taken = 0;
    behind_keep(behind, &p->op[front], mark);
    for (int32_t i = front + 1; i < p->n_ops && i <= end && p->op[i].stage == stage && taken < room; i++) {
        Op *op = &p->op[i];
        bool beside = can_run_aside(p, op);
        bool waits = op->kind == OP_COMM_WAIT && opens(p, i, end) && has_arrived(p, op, front);
        if (behind_reads(behind, op, mark) || !(waits || beside)) {
            behind_keep(behind, op, mark);
            continue;
        }
        if (beside) taken += schedule_seconds(p, op);
        if (!take) continue;
        if (beside) op->stream = STREAM_ASIDE;
        edit_move_op(p, i, waits ? front++ : *sender);
        ++*sender;
    }
    return taken;
}

Status schedule_beside(const Program *in, Program **out)
{
    Program *p = NULL;
    TRY(prog_clone(in, &p));
    int32_t *behind = calloc((size_t)in->n_values + 1, sizeof *behind);
    if (!behind) {
        prog_destroy(&p);
        return status_fail(ERR_MEMORY, "out of memory for the schedule of %d ops", in->n_ops);
    }
    for (int32_t i = 0; i < p->n_ops; i++) {
        double room = p->op[i].stage == STAGE_FORWARD ? schedule_room(p, &p->op[i]) : 0;
        if (room <= 0 || take_beside(p, behind, &i, room, false) < LEAST_FILLED * room) continue;
        take_beside(p, behind, &i, room, true);
        p->op[i].send.shares = true;
    }
    edit_renumber(p);
    free(behind);
    *out = p;
    return OK;
}
