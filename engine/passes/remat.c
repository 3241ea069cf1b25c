/* Rematerialisation (Chen et al. 2016; selective: Korthikanti et al. 2022): forward values that only the backward pass
 * still needs are dropped and computed again, by clones of their ops placed right before the first backward op that
 * reads them. A clone keeps its op's origin and attributes, hence draws the same dropout mask.
 *
 *   block      keeps what leaves a checkpointing unit (prog_block_begin/end) and recomputes everything inside it
 *   selective  recomputes the outputs of cheap ops (OPF_CHEAP) and keeps all others
 *
 * Writes to states move behind the last reader of the former content: a backward op means the content that its forward
 * op read. */
#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"

typedef struct Remat {
    const Program *in;
    Program *p;
    bool *again; /* per old value: recompute it */
    Val *clone;  /* per old value: its recomputed form, VAL_NONE = not yet */
    bool *moved; /* per old op: goes to the end */
} Remat;

/* The value a backward op reads in place of old value v; clones the ops it takes. */
static Val recomputed(Remat *r, Val v)
{
    if (v == VAL_NONE || v >= r->in->n_values || !r->again[v] || r->p->status != OK) return v;
    if (r->clone[v] != VAL_NONE) return r->clone[v];
    Op op = r->in->op[r->in->value[v].def_op];
    for (int k = 0; k < op.n_in; k++) op.in[k] = recomputed(r, op.in[k]);
    op.stage = STAGE_BACKWARD;
    op.recomputed = true;
    for (int k = 0; k < op.n_out && r->p->status == OK; k++) {
        Val old = op.out[k];
        if (old == VAL_NONE) continue;
        Value value = r->in->value[old];
        value.name = NULL;
        value.output = false;
        if (value.alias != VAL_NONE) value.alias = op.in[0];
        op.out[k] = edit_push_value(r->p, &value);
        if (r->again[old]) r->clone[old] = op.out[k];
    }
    edit_push_op(r->p, &op);
    return r->clone[v];
}

/* Whether the outputs of this op may be computed again at all. */
static bool repeatable(const Program *p, const Op *op, Checkpointing mode)
{
    uint32_t flags = op_def(op->kind)->flags;
    if (op->stage != STAGE_FORWARD || (flags & OPF_EFFECT)) return false;
    for (int k = 0; k < op->n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        const Value *v = &p->value[op->out[k]];
        if ((v->place != PLACE_ARENA && v->alias == VAL_NONE) || v->output || op->out[k] == p->loss) return false;
    }
    return mode == CHECKPOINT_BLOCK ? op->block >= 0 : (flags & (OPF_CHEAP | OPF_ALIAS)) != 0;
}

static void choose(Remat *r, Checkpointing mode)
{
    const Program *p = r->in;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        bool again = repeatable(p, op, mode);
        /* another name of a kept value is kept: nothing would be gained */
        if (again && mode == CHECKPOINT_SELECTIVE && (op_def(op->kind)->flags & OPF_ALIAS)) again = r->again[op->in[0]];
        for (int k = 0; k < op->n_out; k++)
            if (op->out[k] != VAL_NONE) r->again[op->out[k]] = again;
    }
    if (mode != CHECKPOINT_BLOCK) return;
    for (int32_t i = 0; i < p->n_ops; i++) { /* what leaves its block stays, and what it is another name of */
        const Op *op = &p->op[i];
        if (op->stage != STAGE_FORWARD) continue;
        for (int k = 0; k < op->n_in; k++)
            for (Val v = op->in[k]; v != VAL_NONE; v = p->value[v].alias)
                if (p->value[v].def_op >= 0 && p->op[p->value[v].def_op].block != op->block) r->again[v] = false;
    }
}

/* A write moves when its buffer is read at all, unless a later forward op wants the new content. */
static Status find_early_writes(Remat *r)
{
    const Program *p = r->in;
    size_t buffers = (size_t)p->registry->n_buffers + 1;
    int32_t *last_forward = malloc(buffers * sizeof *last_forward);
    bool *is_read = calloc(buffers, sizeof *is_read);
    if (last_forward) memset(last_forward, 0xff, buffers * sizeof *last_forward);
    for (int32_t i = 0; last_forward && is_read && i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_in; k++) {
            const Value *v = p->op[i].in[k] != VAL_NONE ? &p->value[p->op[i].in[k]] : NULL;
            if (!v || v->place != PLACE_BUFFER) continue;
            is_read[v->slot] = true;
            if (p->op[i].stage == STAGE_FORWARD) last_forward[v->slot] = i;
        }
    for (int32_t i = 0; last_forward && is_read && i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->kind != OP_COPY || op->stage != STAGE_FORWARD || op->out[0] == VAL_NONE) continue;
        const Value *v = &p->value[op->out[0]];
        r->moved[i] = v->place == PLACE_BUFFER && is_read[v->slot] && last_forward[v->slot] < i;
    }
    bool enough = last_forward && is_read;
    free(last_forward);
    free(is_read);
    return enough ? OK : status_fail(ERR_MEMORY, "out of memory for %zu buffers", buffers);
}

static void rebuild(Remat *r, bool any_backward)
{
    const Program *in = r->in;
    free(edit_restart(r->p, any_backward ? in->n_ops + in->n_ops / 2 : in->n_ops));
    for (int32_t i = 0; i < in->n_ops && r->p->status == OK; i++) {
        Op op = in->op[i];
        if (r->moved[i]) continue;
        for (int k = 0; any_backward && op.stage == STAGE_BACKWARD && k < op.n_in; k++)
            op.in[k] = recomputed(r, op.in[k]);
        edit_push_op(r->p, &op);
    }
    for (int32_t i = 0; i < in->n_ops && r->p->status == OK; i++)
        if (r->moved[i]) edit_push_op(r->p, &in->op[i]);
}

static Status run(Remat *r, const Switches *switches)
{
    size_t values = (size_t)r->in->n_values + 1;
    r->again = calloc(values, sizeof *r->again);
    r->clone = malloc(values * sizeof *r->clone);
    r->moved = calloc((size_t)r->in->n_ops + 1, sizeof *r->moved);
    if (!r->again || !r->clone || !r->moved) return status_fail(ERR_MEMORY, "out of memory for %zu values", values);
    memset(r->clone, 0xff, values * sizeof *r->clone);
    if (r->in->loss == VAL_NONE) return OK;
    TRY(find_early_writes(r));
    bool remat = switches->checkpoint != CHECKPOINT_NONE;
    if (remat) choose(r, switches->checkpoint);
    rebuild(r, remat);
    return prog_status(r->p);
}

Status pass_remat(const Program *in, const Switches *switches, Program **out)
{
    Remat r = {.in = in};
    TRY(prog_clone(in, &r.p));
    Status status = run(&r, switches);
    free(r.again);
    free(r.clone);
    free(r.moved);
    if (status == OK)
        *out = r.p;
    else
        prog_destroy(&r.p);
    return status;
}
