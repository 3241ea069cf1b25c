#ifndef FOLDSCALE_ENGINE_PASSES_SCHEDULE_H
#define FOLDSCALE_ENGINE_PASSES_SCHEDULE_H

#include "engine/passes.h"

/* schedule_clip.c: the squared norm of the gradient, range by range as the gradients become final, into the state that
 * the optimizer program reads (fuse_optimizer.c). Program with a loss, after autodiff. */
Status schedule_clip(const Program *in, Program **out);
/* schedule_early.c: collectives move to where their operand is complete. */
Status schedule_early(const Program *in, Program **out);
/* schedule_fill.c: ops that do not need the result of a collective move ahead of those that do. */
Status schedule_fill(const Program *in, Program **out);
/* schedule_defer.c: weight gradients move behind the collectives that follow them. */
Status schedule_defer(const Program *in, Program **out);

/* schedule_send.c: collectives in line become part of the ops that compute what they exchange. */
Status schedule_send(const Program *in, Program **out);
/* Index of the op that could send what collective i takes, -1: none; *output_out: which of its outputs. */
int32_t schedule_sender(const Program *program, int32_t i, const int32_t *readers, int *output_out);
/* Per value: how many ops read it, and one more where it is kept for others. NULL: out of memory. */
int32_t *schedule_readers(const Program *program);
/* The collective becomes part of the op that writes its operand, as output number `output`. */
void schedule_merge(Program *program, Op *op, int output, const Op *collective);

/* schedule_wire.c: behind schedule_send(): collectives beside the computation start behind ops that send; needed: of
 * schedule_needed(), NULL where nothing runs aside. */
Status schedule_wire(const Program *in, const bool *needed, Program **out);

/* schedule_beside.c: in the forward pass, what can run aside while an op that sends waits for the wire. */
Status schedule_beside(const Program *in, Program **out);
/* Seconds of the whole GPU that the kernel of an op leaves to ops aside if it shares it with them (Send.shares); 0:
 * none. */
double schedule_room(const Program *program, const Op *op);

/* schedule_aside.c: gradients of parameters in groups beside the computation, and what runs aside by schedule_beside();
 * last of all. */
Status schedule_aside(const Program *in, const bool *needed, Program **out);
/* Per value: whether it, or what it is another name of, is read by an op that cannot run aside. NULL: out of memory.
 * Good for the program after later steps, too: what they add are other names of values that were there. */
bool *schedule_needed(const Program *program);
/* An op that writes gradients of parameters or what is added up to them; one that reads nothing else: runs aside. */
bool schedule_is_late(const Program *program, const bool *needed, const Op *op);

/* schedule_time.c: a guess of an op's seconds, good enough to weigh a collective against what could run meanwhile. */
double schedule_seconds(const Program *program, const Op *op);
/* The same, nothing for what runs aside; needed: of schedule_needed(), NULL where nothing does. */
double schedule_main_seconds(const Program *program, const bool *needed, const Op *op);
/* How long a collective takes beside a computation: with less than that to do meanwhile it stays in line, where it is
 * faster. */
double schedule_aside_seconds(const Program *program, const Op *collective);
/* How long a collective, or an op that sends, keeps the wire busy. */
double schedule_wire_seconds(const Program *program, const Op *op);
static inline bool schedule_is_collective(const Op *op)
{
    return (op_def(op->kind)->flags & OPF_COMM) && op->kind != OP_COMM_WAIT && op->out[0] != VAL_NONE;
}

#endif
