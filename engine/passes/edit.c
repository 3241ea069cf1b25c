#include "engine/passes/edit.h"

#include <stdlib.h>

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
    if (p->status != OK) return;
    if (p->n_ops == p->cap_ops) {
        int32_t cap = p->cap_ops + p->cap_ops / 2 + 64;
        Op *bigger = realloc(p->op, (size_t)cap * sizeof *bigger);
        if (!bigger) {
            prog_fail(p, ERR_MEMORY, "out of memory for %d ops", cap);
            return;
        }
        p->op = bigger;
        p->cap_ops = cap;
    }
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) p->value[op->out[k]].def_op = p->n_ops;
    p->op[p->n_ops++] = *op;
}

Val edit_push_value(Program *p, const Value *value)
{
    if (p->status != OK) return VAL_NONE;
    if (p->n_values == p->cap_values) {
        int32_t cap = p->cap_values + p->cap_values / 2 + 64;
        Value *bigger = realloc(p->value, (size_t)cap * sizeof *bigger);
        if (!bigger) return prog_fail(p, ERR_MEMORY, "out of memory for %d values", cap);
        p->value = bigger;
        p->cap_values = cap;
    }
    p->value[p->n_values] = *value;
    return p->n_values++;
}
