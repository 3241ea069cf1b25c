/* Values that have to stay behind an op while others move ahead of it: what it writes, and what is made of that. `mark`
 * tells one such op from another, so that behind[values] is cleared but once. */
#ifndef FOLDSCALE_ENGINE_PASSES_BEHIND_H
#define FOLDSCALE_ENGINE_PASSES_BEHIND_H

#include "engine/program.h"

static inline bool behind_reads(const int32_t *behind, const Op *op, int32_t mark)
{
    for (int k = 0; k < op->n_in; k++)
        if (op->in[k] != VAL_NONE && behind[op->in[k]] == mark) return true;
    return false;
}

/* The op stays: so does what it writes. */
static inline void behind_keep(int32_t *behind, const Op *op, int32_t mark)
{
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) behind[op->out[k]] = mark;
}

#endif
