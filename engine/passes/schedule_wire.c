/* A collective beside the computation and an op that sends share the wire, and the computation waits for the latter.
 * The collective starts behind it where enough is left to hide behind. */
#include "engine/passes/schedule.h"

#include "engine/passes/edit.h"

/* What ops [from, until) send within so many seconds; *enough_out: they take that long. needed: of schedule_needed().
 */
static double sent_within(const Program *p, const bool *needed, int32_t from, int32_t until, double wanted,
                          bool *enough_out)
{
    double sent = 0, passed = 0;
    for (int32_t i = from; i < until && passed <= wanted; i++) {
        const Op *op = &p->op[i];
        Cost cost = {0};
        if (op->send.active) prog_op_cost(p, op, &cost);
        sent += cost.wire_bytes;
        passed += schedule_main_seconds(p, needed, op);
    }
    *enough_out = passed > wanted;
    return sent;
}

/* Where collective i starts, whose result is waited for at `wait`: in front of which op. Where less is sent meanwhile
 * than half of what it sends, as early as it can. */
static int32_t best_start(const Program *p, const bool *needed, int32_t i, int32_t wait)
{
    bool enough;
    Cost cost = {0};
    prog_op_cost(p, &p->op[i], &cost);
    double wanted = schedule_aside_seconds(p, &p->op[i]), least = sent_within(p, needed, i + 1, wait, wanted, &enough);
    int32_t best = i + 1;
    for (int32_t from = i + 2; from < wait && p->op[from].stage == p->op[i].stage; from++) {
        if (least < cost.wire_bytes / 2) break;
        if (!p->op[from - 1].send.active) continue;
        double sent = sent_within(p, needed, from, wait, wanted, &enough);
        if (!enough) break;
        if (sent < least) best = from, least = sent;
    }
    return best;
}

static int32_t wait_of(const Program *p, int32_t i)
{
    int32_t at = i + 1;
    while (at < p->n_ops && !(p->op[at].kind == OP_COMM_WAIT && p->op[at].in[0] == p->op[i].out[0])) at++;
    return at;
}

Status schedule_wire(const Program *in, const bool *needed, Program **out)
{
    Program *p = NULL;
    TRY(prog_clone(in, &p));
    for (int32_t i = p->n_ops; i-- > 0;) { /* what moves, moves behind what was looked at */
        const Op *op = &p->op[i];
        if (op->stream != STREAM_COMM || op->kind == OP_ALL_REDUCE || !schedule_is_collective(op)) continue;
        edit_move_op(p, i, best_start(p, needed, i, wait_of(p, i)) - 1);
    }
    edit_renumber(p);
    *out = p;
    return OK;
}
