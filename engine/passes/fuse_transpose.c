/* Swaps of two neighbouring axes (rows and columns of an MSA or a pair representation) are not carried out but
 * remembered, and carried out only in front of an op that needs the elements in order. Ops on the last axis pass a swap
 * through; attention reads its rows as columns, its bias transposed; a triangle product reads a factor transposed; two
 * swaps cancel. */
#include <stdlib.h>
#include <string.h>

#include "engine/passes/fuse.h"
#include "engine/passes/gradient.h"
#include "engine/passes/replay.h"

enum { IN_ORDER = -1 };

typedef struct Sink {
    Replay replay;
    int8_t *swap; /* per old value: its new value has axes (swap, swap + 1) exchanged; IN_ORDER */
    Val *ordered; /* per old value: the new value in order, once somebody needed it */
} Sink;

/* First axis of the pair that a TRANSPOSE exchanges, IN_ORDER when it does anything else. */
static int swapped_pair(const Op *op, int rank)
{
    int first = IN_ORDER;
    for (int axis = 0; axis < rank; axis++) {
        if (op->attr.i[axis] == axis) continue;
        if (first != IN_ORDER || axis + 1 >= rank || op->attr.i[axis] != axis + 1 || op->attr.i[axis + 1] != axis)
            return IN_ORDER;
        first = axis++;
    }
    return first;
}

static const Tensor *tensor(const Sink *s, Val old)
{
    return &s->replay.in->value[old].t;
}

/* The new value of `old` with its elements in order. */
static Val in_order(Sink *s, const Op *reader, Val old)
{
    if (old == VAL_NONE) return VAL_NONE;
    Val made = replay_value(&s->replay, old);
    if (made == VAL_NONE || s->swap[old] == IN_ORDER) return made;
    if (s->ordered[old] != VAL_NONE) return s->ordered[old];
    Op op = *reader;
    op.kind = OP_TRANSPOSE;
    op.n_in = 1;
    op.attr = (OpAttr){0};
    for (int axis = 0; axis < tensor(s, old)->rank; axis++) op.attr.i[axis] = axis;
    op.attr.i[s->swap[old]] = s->swap[old] + 1;
    op.attr.i[s->swap[old] + 1] = s->swap[old];
    Val out[OP_MAX_OUT];
    prog_replay(s->replay.out, &op, &made, out);
    return s->ordered[old] = out[0];
}

static void replay_in_order(Sink *s, const Op *op)
{
    Val in[OP_MAX_IN];
    for (int k = 0; k < op->n_in; k++) in[k] = in_order(s, op, op->in[k]);
    replay_op(&s->replay, op, in);
}

static bool wanted_in_order(const Sink *s, const Op *op)
{
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE &&
            (s->replay.in->value[op->out[k]].output || replay_is_persistent(&s->replay.in->value[op->out[k]])))
            return true;
    return false;
}

/* Appends `op` on the values as they lie; its outputs are swapped like its inputs. */
static void pass_through(Sink *s, const Op *op, int swap)
{
    Val in[OP_MAX_IN];
    replay_inputs(&s->replay, op, in);
    replay_op(&s->replay, op, in);
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) s->swap[op->out[k]] = (int8_t)swap;
}

static bool sink_transpose(Sink *s, const Op *op)
{
    Val x = op->in[0];
    int pair = swapped_pair(op, tensor(s, x)->rank);
    /* a swap of the last axis is a real change of layout for every op on it, but for masks, which have no channels */
    bool inner = pair != IN_ORDER && (pair + 2 < tensor(s, x)->rank || tensor(s, x)->rank == 2);
    if (!inner || (s->swap[x] != IN_ORDER && s->swap[x] != pair) || s->replay.in->value[op->out[0]].output)
        return false;
    Val made = replay_value(&s->replay, x);
    s->replay.map[op->out[0]] = made;
    s->swap[op->out[0]] = s->swap[x] == pair ? IN_ORDER : (int8_t)pair;
    return true;
}

static bool sink_reshard(Sink *s, const Op *op)
{
    int swap = s->swap[op->in[0]];
    if (swap == IN_ORDER) return false;
    Op moved = *op;
    if (op->attr.i[0] == swap || op->attr.i[0] == swap + 1) moved.attr.i[0] = 2 * swap + 1 - op->attr.i[0];
    pass_through(s, &moved, swap);
    return true;
}

/* All inputs but parameters swapped alike, with an axis beyond the pair (or a mask without channels). */
static bool sink_elementwise(Sink *s, const Op *op)
{
    int swap = IN_ORDER;
    for (int k = 0; k < op->n_in; k++) {
        if (op->in[k] == VAL_NONE || value_is_param(&s->replay.in->value[op->in[k]])) continue;
        if (s->swap[op->in[k]] == IN_ORDER || (swap != IN_ORDER && s->swap[op->in[k]] != swap)) return false;
        if (op->kind == OP_ADD && tensor(s, op->in[k])->rank != tensor(s, op->out[0])->rank) return false;
        swap = s->swap[op->in[k]];
    }
    if (swap == IN_ORDER || tensor(s, op->in[0])->rank < swap + 3) return false;
    pass_through(s, op, swap);
    return true;
}

/* q, k, v and gate swapped: rows become columns, and so do the outputs. bias swapped: read transposed. */
static bool sink_attention(Sink *s, const Op *op)
{
    int off = tensor(s, op->in[0])->rank - 3;
    bool rows = s->swap[op->in[0]] == off && s->swap[op->in[1]] == off && s->swap[op->in[2]] == off;
    Val bias = op->n_in > 4 ? op->in[4] : VAL_NONE, gate = op->n_in > 5 ? op->in[5] : VAL_NONE;
    rows = rows && (gate == VAL_NONE || s->swap[gate] == off);
    bool transposed = bias != VAL_NONE && s->swap[bias] == off;
    if ((!rows && !transposed) || wanted_in_order(s, op)) return false;
    Op moved = *op;
    Val in[OP_MAX_IN];
    for (int k = 0; k < op->n_in; k++) {
        bool as_it_lies = ((k < 3 || k == 5) && rows) || (k == 4 && transposed);
        in[k] = as_it_lies ? replay_value(&s->replay, op->in[k]) : in_order(s, op, op->in[k]);
    }
    if (rows) moved.attr.i[1] = !moved.attr.i[1];
    if (transposed) moved.attr.i[2] = !moved.attr.i[2];
    replay_op(&s->replay, &moved, in);
    for (int k = 0; rows && k < op->n_out; k += 2) /* the log-sum-exp keeps its layout [G?,B,H,N] */
        s->swap[op->out[k]] = (int8_t)off;
    return true;
}

static bool sink_triangle(Sink *s, const Op *op)
{
    int off = tensor(s, op->in[0])->rank - 3;
    Op moved = *op;
    Val in[OP_MAX_IN];
    bool any = false;
    for (int k = 0; k < 2; k++) {
        bool flips = s->swap[op->in[k]] == off;
        any |= flips;
        in[k] = flips ? replay_value(&s->replay, op->in[k]) : in_order(s, op, op->in[k]);
        if (flips) moved.attr.i[k] = !moved.attr.i[k];
    }
    if (!any) return false;
    replay_op(&s->replay, &moved, in);
    return true;
}

static bool sink(Sink *s, const Op *op)
{
    switch (op->kind) {
    case OP_TRANSPOSE:
        return sink_transpose(s, op);
    case OP_RESHARD:
        return !wanted_in_order(s, op) && sink_reshard(s, op);
    case OP_ATTENTION:
        return sink_attention(s, op);
    case OP_TRI_PRODUCT:
        return sink_triangle(s, op);
    case OP_ADD:
    case OP_GATE:
    case OP_LINEAR_GATES:
    case OP_MASK_MUL:
    case OP_SCALE:
        return !wanted_in_order(s, op) && sink_elementwise(s, op);
    default:
        return (op_def(op->kind)->flags & OPF_POSITION) && !wanted_in_order(s, op) && sink_elementwise(s, op);
    }
}

Status fuse_transpose(const Program *in, Program **out)
{
    Sink s = {0};
    TRY(replay_begin(in, &s.replay));
    size_t values = (size_t)in->n_values + 1;
    s.swap = malloc(values);
    s.ordered = malloc(values * sizeof *s.ordered);
    Status status = OK;
    if (!s.swap || !s.ordered) {
        status = status_fail(ERR_MEMORY, "out of memory for %zu values", values);
    } else {
        memset(s.swap, IN_ORDER, values);
        memset(s.ordered, 0xff, values * sizeof *s.ordered);
        for (int32_t i = 0; i < in->n_ops && s.replay.out->status == OK; i++)
            if (in->op[i].stage != STAGE_FORWARD || !sink(&s, &in->op[i])) replay_in_order(&s, &in->op[i]);
    }
    free(s.swap);
    free(s.ordered);
    return replay_end(&s.replay, status, out);
}
