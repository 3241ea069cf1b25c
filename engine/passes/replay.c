#include "engine/passes/replay.h"

#include <stdlib.h>
#include <string.h>

Status replay_begin(const Program *in, Replay *replay_out)
{
    Replay replay = {.in = in};
    TRY(prog_clone_empty(in, &replay.out));
    replay.map = malloc(((size_t)in->n_values + 1) * sizeof *replay.map);
    /* room for as many ops and values as there were: growing step by step costs more than the copy itself */
    Status reserved = prog_reserve(replay.out, in->n_ops + 64, in->n_values + 64);
    if (!replay.map || reserved != OK) {
        free(replay.map);
        prog_destroy(&replay.out);
        return status_fail(ERR_MEMORY, "out of memory for the values of a pass");
    }
    memset(replay.map, 0xff, ((size_t)in->n_values + 1) * sizeof *replay.map); /* VAL_NONE = -1 */
    *replay_out = replay;
    return OK;
}

Status replay_end(Replay *replay, Status status, Program **out)
{
    if (status == OK && replay->in->loss != VAL_NONE) replay->out->loss = replay_value(replay, replay->in->loss);
    if (status == OK) status = prog_status(replay->out);
    if (status == OK)
        *out = replay->out;
    else
        prog_destroy(&replay->out);
    free(replay->map);
    return status;
}

Val replay_value(Replay *replay, Val old)
{
    if (old == VAL_NONE) return VAL_NONE;
    if (replay->map[old] != VAL_NONE) return replay->map[old];
    const Value *v = &replay->in->value[old];
    Program *p = replay->out;
    if (!replay_is_persistent(v))
        return prog_fail(p, ERR_INTERNAL, "a pass reads value %%%d before its op was replayed", old);
    Val made = prog_persistent(p, v->place, v->slot, v->t.rank, v->t.dim);
    if (made == VAL_NONE) return VAL_NONE;
    p->value[made].t = v->t;
    replay_bind(replay, old, made);
    return made;
}

void replay_inputs(Replay *replay, const Op *op, Val *in)
{
    for (int k = 0; k < OP_MAX_IN; k++) in[k] = k < op->n_in ? replay_value(replay, op->in[k]) : VAL_NONE;
}

void replay_bind(Replay *replay, Val old, Val made)
{
    if (old == VAL_NONE) return;
    replay->map[old] = made;
    const Value *former = &replay->in->value[old];
    bool named = made != VAL_NONE && replay->out->value[made].name; /* two values became one: an output's name wins */
    if (!named || former->output) prog_adopt(replay->out, made, former);
}

void replay_op(Replay *replay, const Op *op, const Val *in)
{
    Val out[OP_MAX_OUT];
    if (op->n_out && op->out[0] != VAL_NONE && replay_is_persistent(&replay->in->value[op->out[0]])) {
        for (int k = 0; k < OP_MAX_OUT; k++) out[k] = k < op->n_out ? replay_value(replay, op->out[k]) : VAL_NONE;
        prog_replay_into(replay->out, op, in, out);
        return;
    }
    prog_replay(replay->out, op, in, out);
    for (int k = 0; k < op->n_out; k++) replay_bind(replay, op->out[k], out[k]);
}
