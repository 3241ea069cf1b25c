#include "engine/passes/edit.h"

#include <stdlib.h>
#include <string.h>

Op *edit_restart(Program *p, int32_t ops)
{
    Op *old = p->op;
    p->op = malloc(((size_t)ops + 1) * sizeof *p->op);
    p->n_ops = 0;
    p->cap_ops = p->op ? ops : 0;
    if (!p->op) prog_fail(p, ERR_MEMORY, "out of memory for %d ops", ops);
    return old;
}

void edit_push_op(Program *p, const Op *op)
{
    if (p->status != OK || prog_reserve(p, 1, 0) != OK) return;
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) p->value[op->out[k]].def_op = p->n_ops;
    p->op[p->n_ops++] = *op;
}

Val edit_push_value(Program *p, const Value *value)
{
    if (p->status != OK || prog_reserve(p, 0, 1) != OK) return VAL_NONE;
    p->value[p->n_values] = *value;
    return p->n_values++;
}

void edit_move_op(Program *p, int32_t from, int32_t to)
{
    Op op = p->op[from];
    if (from < to)
        memmove(&p->op[from], &p->op[from + 1], (size_t)(to - from) * sizeof op);
    else
        memmove(&p->op[to + 1], &p->op[to], (size_t)(from - to) * sizeof op);
    p->op[to] = op;
}

void edit_renumber(Program *p)
{
    for (int32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_out; k++)
            if (p->op[i].out[k] != VAL_NONE) p->value[p->op[i].out[k]].def_op = i;
}

void edit_close_gaps(Program *p, const bool *gone)
{
    int32_t count = 0;
    for (int32_t i = 0; i < p->n_ops; i++)
        if (!gone[i]) p->op[count++] = p->op[i];
    p->n_ops = count;
    edit_renumber(p);
}

bool edit_writes_persistent(const Program *p, const Op *op)
{
    if (op_def(op->kind)->flags & OPF_EFFECT) return true;
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE && p->value[op->out[k]].place != PLACE_ARENA) return true;
    return false;
}

int32_t *edit_count_uses(const Program *p)
{
    int32_t *uses = calloc((size_t)p->n_values + 1, sizeof *uses);
    for (int32_t i = 0; uses && i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_in; k++)
            if (p->op[i].in[k] != VAL_NONE) uses[p->op[i].in[k]]++;
    return uses;
}
