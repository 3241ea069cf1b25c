/* Scaffolding of passes that rebuild a program op by op. */
#ifndef FOLDSCALE_ENGINE_PASSES_REPLAY_H
#define FOLDSCALE_ENGINE_PASSES_REPLAY_H

#include "engine/passes.h"

typedef struct Replay {
    const Program *in;
    Program *out;
    Val *map; /* value of `in` -> value of `out`, VAL_NONE = not made yet */
} Replay;

Status replay_begin(const Program *in, Replay *replay_out);
/* Hands the new program over when nothing failed, else destroys it; frees the rest. */
Status replay_end(Replay *replay, Status status, Program **out);

/* The new value for an old one; persistent values are created on first use. */
Val replay_value(Replay *replay, Val old);
void replay_inputs(Replay *replay, const Op *op, Val *in);
/* Appends a copy of `op` (possibly edited) that reads in[] and stands for the outputs of `op`. */
void replay_op(Replay *replay, const Op *op, const Val *in);
/* Lets `made` stand for the old value: later readers get it, names and outputs move to it. */
void replay_bind(Replay *replay, Val old, Val made);

/* True for a value that lives in a persistent place by itself, not as another name of something. */
static inline bool replay_is_persistent(const Value *v)
{
    return v->place != PLACE_ARENA && v->alias == VAL_NONE;
}

#endif
