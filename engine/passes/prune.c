#include <stdlib.h>

#include "engine/passes.h"
#include "engine/rules.h"

/* keep[op]: its effect or one of its results is wanted. Backwards, so that consumers are decided before producers. */
static void mark(const Program *p, bool *keep, bool *read)
{
    for (int32_t v = 0; v < p->n_values; v++) read[v] = p->value[v].output || v == p->loss;
    for (int32_t i = p->n_ops - 1; i >= 0; i--) {
        const Op *op = &p->op[i];
        bool wanted = op_def(op->kind)->flags & OPF_EFFECT;
        for (int k = 0; k < op->n_out; k++)
            if (op->out[k] != VAL_NONE) {
                const Value *v = &p->value[op->out[k]];
                wanted |= read[op->out[k]] || (v->place != PLACE_ARENA && v->alias == VAL_NONE);
            }
        keep[i] = wanted;
        for (int k = 0; wanted && k < op->n_in; k++)
            if (op->in[k] != VAL_NONE) read[op->in[k]] = true;
    }
}

/* Drops the ops in place and renumbers; values of dropped ops stay in the table without a writer or reader. */
static void compact(Program *p, const bool *keep)
{
    int32_t count = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        int32_t target = keep[i] ? count : -1;
        for (int k = 0; k < p->op[i].n_out; k++)
            if (p->op[i].out[k] != VAL_NONE) p->value[p->op[i].out[k]].def_op = target;
        if (keep[i]) p->op[count++] = p->op[i];
    }
    p->n_ops = count;
}

Status pass_prune(const Program *in, Program **out)
{
    Program *p = NULL;
    TRY(prog_clone(in, &p));
    bool *keep = calloc((size_t)p->n_ops + 1, sizeof *keep), *read = calloc((size_t)p->n_values + 1, sizeof *read);
    if (keep && read) {
        mark(p, keep, read);
        compact(p, keep);
        *out = p;
    } else {
        prog_destroy(&p);
    }
    free(keep);
    free(read);
    return p ? OK : status_fail(ERR_MEMORY, "out of memory in prune");
}
