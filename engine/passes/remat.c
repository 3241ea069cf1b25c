/* Rematerialisation (Chen et al. 2016; selective: Korthikanti et al. 2022): forward values that only the backward pass
 * still needs are dropped and computed again, by clones of their ops placed right before the first backward op that
 * reads them. A clone keeps its op's origin and attributes, hence draws the same dropout mask.
 *
 *   block      keeps what leaves a checkpointing unit (prog_block_begin/end) and recomputes everything inside it
 *   selective  recomputes the outputs of cheap ops (OPF_CHEAP) and keeps all others
 */
#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"

typedef struct Remat {
    const Program *in;
    Program *p;
    bool *again; /* per old value: recompute it */
    Val *clone;  /* per old value: its recomputed form, VAL_NONE = not yet */
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

static void rebuild(Remat *r)
{
    const Program *in = r->in;
    free(edit_restart(r->p, in->n_ops + in->n_ops / 2));
    for (int32_t i = 0; i < in->n_ops && r->p->status == OK; i++) {
        Op op = in->op[i];
        for (int k = 0; op.stage == STAGE_BACKWARD && k < op.n_in; k++) op.in[k] = recomputed(r, op.in[k]);
        edit_push_op(r->p, &op);
    }
}

Status pass_remat(const Program *in, const Switches *switches, Program **out)
{
    Remat r = {.in = in};
    TRY(prog_clone(in, &r.p));
    Status status = OK;
    if (in->loss != VAL_NONE && switches->checkpoint != CHECKPOINT_NONE) {
        size_t values = (size_t)in->n_values + 1;
        r.again = calloc(values, sizeof *r.again);
        r.clone = malloc(values * sizeof *r.clone);
        if (r.again && r.clone) {
            memset(r.clone, 0xff, values * sizeof *r.clone);
            choose(&r, switches->checkpoint);
            rebuild(&r);
            status = prog_status(r.p);
        } else {
            status = status_fail(ERR_MEMORY, "out of memory for %zu values", values);
        }
        free(r.again);
        free(r.clone);
    }
    if (status == OK)
        *out = r.p;
    else
        prog_destroy(&r.p);
    return status;
}
