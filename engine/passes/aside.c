#include "engine/passes/aside.h"

static const Value *root_of(const Program *p, Val v)
{
    while (p->value[v].alias != VAL_NONE) v = p->value[v].alias;
    return &p->value[v];
}

/* Elements [*from, *to) of a block of parameters. */
static void range_of(const Program *p, const Value *v, int64_t *from, int64_t *to)
{
    *from = v->slot == WHOLE_BLOCK ? 0 : p->registry->param[v->slot].offset;
    *to = *from + tensor_count(&v->t);
}

static bool overlap(const Program *p, Val x, Val y)
{
    if (x == VAL_NONE || y == VAL_NONE) return false;
    const Value *a = root_of(p, x), *b = root_of(p, y);
    int64_t from[2], to[2];
    if (a->place != b->place) return false;
    if (a->place == PLACE_ARENA) return a == b;
    if (a->place == PLACE_BUFFER) return a->slot == b->slot;
    range_of(p, a, &from[0], &to[0]);
    range_of(p, b, &from[1], &to[1]);
    return from[0] < to[1] && from[1] < to[0];
}

static bool writes_what(const Program *p, const Op *writer, int n, const Val *touched)
{
    for (int k = 0; k < writer->n_out; k++)
        for (int j = 0; j < n; j++)
            if (overlap(p, writer->out[k], touched[j])) return true;
    return false;
}

bool aside_conflicts(const Program *p, const Op *side, const Op *op)
{
    return writes_what(p, side, op->n_in, op->in) || writes_what(p, side, op->n_out, op->out) ||
           writes_what(p, op, side->n_in, side->in);
}
