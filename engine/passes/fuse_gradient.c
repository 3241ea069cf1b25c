/* What autodiff leaves behind an op of the backward pass moves into it: the sum with the gradient that arrived on
 * another way, the mask of a relu, the mask of a dropout. A rule looks at the op that disappears and names the op that
 * takes it in, which stays where it is. */
#include <stdlib.h>

#include "engine/passes/fuse.h"
#include "engine/rules.h"

typedef struct Absorb {
    Program *p;
    int32_t *uses; /* per value: readers, outputs count as one */
    bool *gone;    /* per op */
} Absorb;

/* The backward op that computes v, if it is of `kind`; a sole reader may change what it computes. */
static Op *computed_by(const Absorb *a, Val v, OpKind kind, bool sole_reader)
{
    const Value *value = &a->p->value[v];
    if (value->def_op < 0 || value->place != PLACE_ARENA || value->alias != VAL_NONE) return NULL;
    Op *op = &a->p->op[value->def_op];
    bool fits = op->kind == kind && op->stage == STAGE_BACKWARD && op->out[0] == v;
    return fits && (!sole_reader || a->uses[v] == 1) ? op : NULL;
}

static bool written_before(const Absorb *a, Val v, const Op *op)
{
    return a->p->value[v].def_op < op - a->p->op;
}

static void set_input(Op *op, int at, Val v)
{
    while (op->n_in <= at) op->in[op->n_in++] = VAL_NONE;
    op->in[at] = v;
}

static bool has_input(const Op *op, int at)
{
    return op->n_in > at && op->in[at] != VAL_NONE;
}

/* ADD(r, DX(..)) -> DX(.., r) for the kinds that take another gradient, r computed before */
static Op *absorb_add(const Absorb *a, const Op *add)
{
    const Program *p = a->p;
    const Tensor *first = &p->value[add->in[0]].t, *second = &p->value[add->in[1]].t;
    if (!rule_same(first, second) || first->dtype != second->dtype) return NULL;
    for (int side = 1; side >= 0; side--) {
        static const OpKind kinds[] = {OP_LAYER_NORM_FUSED_BWD, OP_LINEAR_DX, OP_LINEAR_GROUP_DX};
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            Op *op = computed_by(a, add->in[side], kinds[k], true);
            if (!op || op->full_precision != add->full_precision || !written_before(a, add->in[1 - side], op)) continue;
            int at = kinds[k] == OP_LAYER_NORM_FUSED_BWD ? 5 : kinds[k] == OP_LINEAR_DX ? 2 : 2 * (int)op->attr.i[0];
            /* a mask comes after the sum */
            if (has_input(op, at) || (kinds[k] == OP_LINEAR_DX && has_input(op, 3))) continue;
            set_input(op, at, add->in[1 - side]);
            return op;
        }
    }
    return NULL;
}

/* RELU_BWD(LINEAR_DX(..), y) -> LINEAR_DX(.., y) */
static Op *absorb_relu(const Absorb *a, const Op *relu)
{
    Op *op = computed_by(a, relu->in[0], OP_LINEAR_DX, true);
    if (!op || op->full_precision != relu->full_precision || has_input(op, 3)) return NULL;
    set_input(op, 3, relu->in[1]);
    return op;
}

typedef Op *(*Rule)(const Absorb *a, const Op *op);

static Rule rule_of(OpKind kind)
{
    switch (kind) {
    case OP_ADD:
        return absorb_add;
    case OP_RELU_BWD:
        return absorb_relu;
    default:
        return NULL;
    }
}

/* Of a dropout whose input stays: an output more of the layer norm's gradient. */
static bool absorb_dropout(const Absorb *a, const Op *dropout)
{
    if (dropout->kind != OP_DROPOUT) return false;
    Op *op = computed_by(a, dropout->in[0], OP_LAYER_NORM_FUSED_BWD, false);
    if (!op || op->n_out != 3 || op->full_precision != dropout->full_precision) return false;
    set_input(op, 6, dropout->in[1]);
    op->attr = dropout->attr;
    op->out[op->n_out++] = dropout->out[0];
    return true;
}

static void close_gaps(Program *p, const bool *gone)
{
    int32_t count = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (gone[i]) continue;
        for (int k = 0; k < p->op[i].n_out; k++)
            if (p->op[i].out[k] != VAL_NONE) p->value[p->op[i].out[k]].def_op = count;
        p->op[count++] = p->op[i];
    }
    p->n_ops = count;
}

static void count_uses(Absorb *a)
{
    const Program *p = a->p;
    for (int32_t v = 0; v < p->n_values; v++) a->uses[v] = p->value[v].output || v == p->loss;
    for (int32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_in; k++)
            if (p->op[i].in[k] != VAL_NONE) a->uses[p->op[i].in[k]]++;
}

static void absorb(Absorb *a)
{
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *op = &p->op[i];
        if (op->stage != STAGE_BACKWARD || op->n_out != 1) continue;
        Rule rule = rule_of(op->kind);
        Op *taker = rule ? rule(a, op) : NULL;
        if (taker) {
            p->value[taker->out[0]].def_op = -1;
            taker->out[0] = op->out[0];
            p->value[op->out[0]].def_op = (int32_t)(taker - p->op);
        } else if (absorb_dropout(a, op)) {
            p->value[op->out[0]].def_op = p->value[op->in[0]].def_op;
        } else {
            continue;
        }
        a->gone[i] = true;
    }
}

Status fuse_gradient(Program *p)
{
    Absorb a = {.p = p};
    a.uses = calloc((size_t)p->n_values + 1, sizeof *a.uses);
    a.gone = calloc((size_t)p->n_ops + 1, sizeof *a.gone);
    bool room = a.uses && a.gone;
    if (room) {
        count_uses(&a);
        absorb(&a);
        close_gaps(p, a.gone);
    }
    free(a.uses);
    free(a.gone);
    return room ? OK : status_fail(ERR_MEMORY, "out of memory for the fusion of %d ops", p->n_ops);
}
