/* Chooses the types. Programs are recorded in "the real type" (DT_F32).
 *
 * f64: every real value becomes f64. bf16: values between ops of the bf16 regions are bf16; casts stand at the borders
 * (one per value and direction), parameters are read from their bf16 copy instead of being cast, and what the op table
 * calls exact (masks, biases, norm scales, statistics, parameter gradients) stays f32. */
#include "engine/passes.h"

#include <stdlib.h>
#include <string.h>

#include "engine/passes/gradient.h"
#include "engine/passes/replay.h"

typedef struct PrecisionPass {
    Replay replay;
    Val *low, *high; /* per new value: its bf16 and its real form, VAL_NONE = not made yet */
    int32_t cap;
} PrecisionPass;

/* --- f64 --- */

static OpAttr widened_attr(const Op *op)
{
    OpAttr attr = op->attr;
    if (op->kind == OP_CAST && attr.i[0] == DT_F32) attr.i[0] = DT_F64;
    if (op->kind == OP_FILL && attr.i[7] % 16 != DT_F64) attr.i[7] = attr.i[7] / 16 * 16 + DT_F64;
    return attr;
}

static Status widen(Replay *replay)
{
    const Program *in = replay->in;
    for (int32_t v = 0; v < in->n_values; v++) {
        if (!replay_is_persistent(&in->value[v])) continue;
        Val made = replay_value(replay, v);
        if (made != VAL_NONE && replay->out->value[made].t.dtype == DT_F32) replay->out->value[made].t.dtype = DT_F64;
    }
    for (int32_t i = 0; i < in->n_ops && replay->out->status == OK; i++) {
        Op op = in->op[i];
        Val inputs[OP_MAX_IN];
        op.attr = widened_attr(&in->op[i]);
        replay_inputs(replay, &op, inputs);
        replay_op(replay, &op, inputs);
    }
    return prog_status(replay->out);
}

/* --- bf16 --- */

/* Ops that move elements and take them as they come. */
static bool keeps_type(const Program *p, const Op *op, const Val *in)
{
    switch (op->kind) {
    case OP_CONCAT: /* masks stay exact */
        for (int k = 1; k < op->n_in; k++)
            if (prog_tensor(p, in[k])->dtype != prog_tensor(p, in[0])->dtype) return false;
        return true;
    case OP_TRANSPOSE:
    case OP_RESHAPE:
    case OP_SLICE:
    case OP_PAD:
    case OP_COPY:
    case OP_CAST:
    case OP_SHARD_SLICE:
    case OP_ALL_GATHER:
    case OP_REDUCE_SCATTER:
    case OP_ALL_TO_ALL:
    case OP_ALL_REDUCE:
        return true;
    default:
        return false;
    }
}

static Status grow(PrecisionPass *s, int32_t values)
{
    if (values <= s->cap) return OK;
    int32_t cap = values + values / 2 + 1024;
    Val *low = realloc(s->low, (size_t)cap * sizeof *low);
    if (low) s->low = low;
    Val *high = realloc(s->high, (size_t)cap * sizeof *high);
    if (high) s->high = high;
    if (!low || !high) return status_fail(ERR_MEMORY, "out of memory for the casts of %d values", cap);
    memset(s->low + s->cap, 0xff, (size_t)(cap - s->cap) * sizeof *low);
    memset(s->high + s->cap, 0xff, (size_t)(cap - s->cap) * sizeof *high);
    s->cap = cap;
    return OK;
}

static Val cast(PrecisionPass *s, const Op *reader, Val v, DType to)
{
    Program *p = s->replay.out;
    const Value *value = &p->value[v];
    if (to == DT_BF16 && value->place == PLACE_PARAM && value->alias == VAL_NONE)
        return prog_persistent(p, PLACE_PARAM_LOW, value->slot, value->t.rank, value->t.dim);
    Op op = *reader;
    op.kind = OP_CAST;
    op.n_in = 1;
    op.attr = (OpAttr){.i = {to}};
    Val out[OP_MAX_OUT];
    prog_replay(p, &op, &v, out);
    return out[0];
}

/* v in the wanted type; remembers both forms, so that nothing is cast twice or cast forth and back. */
static Val in_type(PrecisionPass *s, const Op *reader, Val v, DType wanted)
{
    Program *p = s->replay.out;
    DType type = p->value[v].t.dtype;
    if (type == wanted || (type != DT_F32 && type != DT_BF16)) return v;
    if (grow(s, p->n_values + 2) != OK) return prog_fail(p, ERR_MEMORY, "%s", status_text());
    Val *form = wanted == DT_BF16 ? &s->low[v] : &s->high[v];
    if (*form == VAL_NONE) {
        Val made = cast(s, reader, v, wanted);
        if (made == VAL_NONE) return VAL_NONE;
        *form = made;
        (wanted == DT_BF16 ? s->high : s->low)[made] = v;
    }
    return *form;
}

static void lower_op(PrecisionPass *s, const Op *op)
{
    Program *p = s->replay.out;
    const OpDef *def = op_def(op->kind);
    Val in[OP_MAX_IN];
    replay_inputs(&s->replay, op, in);
    bool real = op->full_precision || (def->flags & OPF_FULL);
    if (p->status != OK) return;
    bool keeps = keeps_type(p, op, in);
    for (int k = 0; !keeps && k < op->n_in && p->status == OK; k++) {
        if (in[k] == VAL_NONE) continue;
        bool exact = real || (def->exact_in >> k & 1);
        in[k] = in_type(s, op, in[k], exact ? DT_F32 : DT_BF16);
    }
    if (p->status != OK) return;
    Op typed = *op;
    if (def->flags & OPF_TYPED && !op->full_precision) typed.attr.i[ATTR_TYPE] = DT_BF16;
    replay_op(&s->replay, &typed, in);
    if (op->kind != OP_ADAM) return;
    /* the copy follows every update of the parameter */
    const Value *param = &p->value[in[0]];
    Op lower = *op;
    lower.kind = OP_PARAM_LOWER;
    lower.n_in = lower.n_out = 1;
    lower.attr = (OpAttr){0};
    Val low = prog_persistent(p, PLACE_PARAM_LOW, param->slot, param->t.rank, param->t.dim);
    prog_replay_into(p, &lower, in, &low);
}

/* A fused update writes the copy of the whole block itself. */
static Op with_low_block(PrecisionPass *s, const Op *op, Val *in)
{
    Program *p = s->replay.out;
    Op fused = *op;
    replay_inputs(&s->replay, op, in);
    if (p->status != OK) return fused;
    const Value *param = &p->value[in[0]];
    in[7] = prog_persistent(p, PLACE_PARAM_LOW, param->slot, param->t.rank, param->t.dim);
    fused.n_in = 8;
    return fused;
}

static void lower_fused_update(PrecisionPass *s, const Op *op)
{
    Val in[OP_MAX_IN], out[OP_MAX_OUT];
    Op fused = with_low_block(s, op, in);
    for (int k = 0; k < OP_MAX_OUT; k++) out[k] = k < op->n_out ? replay_value(&s->replay, op->out[k]) : VAL_NONE;
    out[4] = in[7];
    fused.n_out = 5;
    prog_replay_into(s->replay.out, &fused, in, out);
}

static Status lower(PrecisionPass *s)
{
    const Program *in = s->replay.in;
    for (int32_t i = 0; i < in->n_ops && s->replay.out->status == OK; i++)
        if (in->op[i].kind == OP_ADAM_FUSED)
            lower_fused_update(s, &in->op[i]);
        else
            lower_op(s, &in->op[i]);
    return prog_status(s->replay.out);
}

Status pass_precision(const Program *in, const Switches *switches, Program **out)
{
    if (switches->precision == PRECISION_F32) return prog_clone(in, out);
    PrecisionPass s = {0};
    TRY(replay_begin(in, &s.replay));
    Status status = switches->precision == PRECISION_F64 ? widen(&s.replay) : lower(&s);
    free(s.low);
    free(s.high);
    return replay_end(&s.replay, status, out);
}
