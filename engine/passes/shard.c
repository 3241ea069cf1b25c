/* Dynamic axial parallelism: every RESHARD mark becomes the collective that turns the layout at hand into the wanted
 * one, and everything between follows from the ops' shape rules.
 *
 * A replicated value's gradient is either whole on every rank (its readers are replicated) or a part of a sum over the
 * ranks (its readers are sharded). The difference decides the vjp of a gather and whether a parameter's gradient has to
 * be summed over the group; share_* below work it out backwards from the loss. */
#include "engine/passes.h"

#include <stdlib.h>
#include <string.h>

#include "engine/passes/gradient.h"
#include "engine/passes/replay.h"

/* How the gradient of a value arrives; a value with none of them gets no gradient. */
enum {
    SHARE_WHOLE = 1, /* replicated value: every rank holds the whole gradient */
    SHARE_PART = 2,  /* replicated value: the ranks hold parts of a sum */
    SHARE_SLICE = 4  /* sharded value: every rank holds the gradient of its slice */
};

typedef struct ShardPass {
    Replay replay;
    bool *needs; /* per old value: carries gradient */
    Val *cached; /* per old value and target axis + 1: slice already made of a value without gradient */
} ShardPass;

enum { AXES = TENSOR_MAX_RANK + 1 };

static Val indivisible(Program *p, const Op *op, const Value *v, int64_t axis)
{
    return prog_fail(
        p, ERR_INPUT, "%s%s%s: axis %d of a value has extent %ld, which cannot be split over dap = %d ranks",
        p->scope[op->scope], v->name ? ", " : "", v->name ? v->name : "", (int)axis, (long)v->t.dim[axis], p->dap);
}

/* What sums over a sharded axis leaves every rank a part of the sum. */
static bool is_part(const Program *p, Val x)
{
    const Value *v = &p->value[x];
    if (v->t.shard != SHARD_NONE || v->place != PLACE_ARENA) return false;
    const Op *op = &p->op[v->def_op];
    if (op_def(op->kind)->flags & OPF_COMM) return false;
    for (int k = 0; k < op->n_in; k++)
        if (op->in[k] != VAL_NONE && p->value[op->in[k]].t.shard != SHARD_NONE) return true;
    return false;
}

/* The collective from x's layout to `axis`, or x itself. */
static Val lower(Program *p, const Op *mark, Val x)
{
    if (x == VAL_NONE) return VAL_NONE;
    const Value *v = &p->value[x];
    int64_t from = v->t.shard, to = mark->attr.i[0];
    if (from == to) return x;
    if (to != SHARD_NONE && v->t.dim[to] % p->dap) return indivisible(p, mark, v, to);
    Op op = *mark;
    op.attr = (OpAttr){.i = {to}};
    op.kind = is_part(p, x) ? OP_REDUCE_SCATTER : OP_SHARD_SLICE;
    if (to == SHARD_NONE) {
        op.kind = OP_ALL_GATHER;
        op.attr.i[0] = from;
    } else if (from != SHARD_NONE) {
        op.kind = OP_ALL_TO_ALL;
        op.attr = (OpAttr){.i = {from, to}};
    }
    Val out[OP_MAX_OUT];
    prog_replay(p, &op, &x, out);
    return out[0];
}

static void reshard(ShardPass *s, const Op *mark)
{
    Program *p = s->replay.out;
    Val old = mark->in[0], x = replay_value(&s->replay, old);
    int64_t to = mark->attr.i[0];
    Val *cached = s->needs[old] || to == SHARD_NONE ? NULL : &s->cached[(size_t)old * AXES + (size_t)to];
    Val y = cached && *cached != VAL_NONE ? *cached : lower(p, mark, x);
    if (cached) *cached = y;
    if (y == VAL_NONE) return;
    s->replay.map[mark->out[0]] = y;
    const Value *named = &s->replay.in->value[mark->out[0]];
    if (named->name && !p->value[y].name) prog_adopt(p, y, named);
}

/* An output is fetched whole: a sharded one is gathered, and the gathered value takes its name. */
static void gather_outputs(ShardPass *s, const Op *op)
{
    Program *p = s->replay.out;
    for (int k = 0; k < op->n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        Val v = s->replay.map[op->out[k]];
        if (v == VAL_NONE || !p->value[v].output || p->value[v].t.shard == SHARD_NONE) continue;
        Op gather = *op;
        gather.kind = OP_ALL_GATHER;
        gather.n_in = 1;
        gather.attr = (OpAttr){.i = {p->value[v].t.shard}};
        Val out[OP_MAX_OUT];
        prog_replay(p, &gather, &v, out);
        if (out[0] == VAL_NONE) return;
        p->value[out[0]].name = p->value[v].name;
        p->value[out[0]].output = true;
        p->value[v].name = NULL;
        p->value[v].output = false;
    }
}

static int share_of_outputs(const Program *p, const Op *op, const uint8_t *share)
{
    int bits = 0;
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) bits |= share[op->out[k]];
    if (bits & SHARE_SLICE) bits = (bits & ~SHARE_SLICE) | SHARE_PART;
    (void)p;
    return bits;
}

static Status mixed(const Program *p, const Op *reader, const Value *v)
{
    return status_fail(
        ERR_INTERNAL, "%s/%s reads %s %s that sharded and replicated ops share: their gradients cannot be summed",
        p->scope[reader->scope], op_def(reader->kind)->name, value_is_param(v) ? "the parameter" : "a value",
        value_is_param(v) ? p->registry->param[v->slot].name : "");
}

/* Fills share[] and the gathers' `reduce`, from the last op to the first. */
static Status find_shares(Program *p, const bool *needs, uint8_t *share)
{
    if (p->loss != VAL_NONE) share[p->loss] = SHARE_WHOLE;
    for (int32_t i = p->n_ops - 1; i >= 0; i--) {
        Op *op = &p->op[i];
        if (op_def(op->kind)->flags & OPF_NODIFF) continue;
        int bits = share_of_outputs(p, op, share);
        if (!bits) continue;
        if (op->kind == OP_ALL_GATHER) op->attr.i[1] = (bits & SHARE_PART) != 0;
        if (op->kind == OP_SHARD_SLICE || op->kind == OP_REDUCE_SCATTER) bits = SHARE_WHOLE;
        for (int k = 0; k < op->n_in; k++) {
            Val v = op->in[k];
            if (v == VAL_NONE || !needs[v]) continue;
            bool sharded = p->value[v].t.shard != SHARD_NONE;
            share[v] |= (uint8_t)(sharded ? SHARE_SLICE : bits);
            if ((share[v] & SHARE_WHOLE) && (share[v] & SHARE_PART)) return mixed(p, op, &p->value[v]);
        }
    }
    return OK;
}

static Status mark_params(Program *p, const uint8_t *share)
{
    size_t params = (size_t)p->registry->n_params;
    uint8_t *of_param = calloc(params + 1, 1);
    free(p->param_partial);
    p->param_partial = calloc(params + 1, sizeof *p->param_partial);
    Status status = OK;
    if (!of_param || !p->param_partial) status = status_fail(ERR_MEMORY, "out of memory for %zu parameters", params);
    for (int32_t v = 0; v < p->n_values && status == OK; v++) {
        if (!value_is_param(&p->value[v])) continue;
        int32_t slot = p->value[v].slot;
        of_param[slot] |= share[v];
        p->param_partial[slot] = of_param[slot] & SHARE_PART;
        if (of_param[slot] == (SHARE_WHOLE | SHARE_PART))
            status = status_fail(ERR_INTERNAL, "parameter %s is shared by sharded and replicated ops",
                                 p->registry->param[slot].name);
    }
    free(of_param);
    return status;
}

static Status infer_shares(Program *p)
{
    bool *needs = calloc((size_t)p->n_values + 1, sizeof *needs);
    uint8_t *share = calloc((size_t)p->n_values + 1, 1);
    Status status = OK;
    if (!needs || !share) {
        status = status_fail(ERR_MEMORY, "out of memory for %d values", p->n_values);
    } else {
        gradient_needs(p, needs);
        status = find_shares(p, needs, share);
        if (status == OK) status = mark_params(p, share);
    }
    free(needs);
    free(share);
    return status;
}

/* Without a group the mark is nothing; only where both of its sides carry a name does an alias keep them apart. */
static void drop_mark(ShardPass *s, const Op *op)
{
    const Program *old = s->replay.in;
    Val v = replay_value(&s->replay, op->in[0]);
    if (old->value[op->in[0]].name && old->value[op->out[0]].name) {
        const Tensor *t = &old->value[op->in[0]].t;
        OpAttr shape = {.i = {t->rank}};
        for (int axis = 0; axis < t->rank; axis++) shape.i[1 + axis] = t->dim[axis];
        v = prog_add(s->replay.out, OP_RESHAPE, 1, &v, &shape);
    }
    replay_bind(&s->replay, op->out[0], v);
}

static Status run(ShardPass *s, int dap)
{
    Program *p = s->replay.out;
    p->dap = dap;
    for (int32_t i = 0; i < s->replay.in->n_ops && p->status == OK; i++) {
        const Op *op = &s->replay.in->op[i];
        if (op->kind == OP_RESHARD) {
            if (dap > 1)
                reshard(s, op);
            else
                drop_mark(s, op);
        } else {
            Val in[OP_MAX_IN];
            replay_inputs(&s->replay, op, in);
            replay_op(&s->replay, op, in);
        }
        if (dap > 1 && p->status == OK) gather_outputs(s, op);
    }
    TRY(prog_status(p));
    if (s->replay.in->loss != VAL_NONE) p->loss = s->replay.map[s->replay.in->loss];
    return dap > 1 ? infer_shares(p) : OK;
}

Status pass_shard(const Program *in, const Switches *switches, Program **out)
{
    int dap = switches->dap > 1 ? switches->dap : 1;
    ShardPass s = {0};
    TRY(replay_begin(in, &s.replay));
    size_t values = (size_t)in->n_values + 1;
    s.needs = calloc(values, sizeof *s.needs);
    s.cached = malloc(values * AXES * sizeof *s.cached);
    Status status;
    if (!s.needs || !s.cached) {
        status = status_fail(ERR_MEMORY, "out of memory for %zu values", values);
    } else {
        gradient_needs(in, s.needs);
        memset(s.cached, 0xff, values * AXES * sizeof *s.cached);
        status = run(&s, dap);
    }
    free(s.needs);
    free(s.cached);
    return replay_end(&s.replay, status, out);
}
