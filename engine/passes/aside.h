/* Ops that run beside the computation (STREAM_ASIDE): what the passes and the verifier have to know about them.
 *
 * Neighbours in the program are a group. A group starts when all that precedes it has run; Op.joins tells how many
 * groups, oldest first, an op waits for; the end of the program waits for all. Until it is waited for, a group may read
 * and write its operands. */
#ifndef FOLDSCALE_ENGINE_PASSES_ASIDE_H
#define FOLDSCALE_ENGINE_PASSES_ASIDE_H

#include "engine/program.h"

/* The first group from op *first on: [*first, *end). False when there is none. */
static inline bool aside_next(const Program *p, int32_t *first, int32_t *end)
{
    while (*first < p->n_ops && p->op[*first].stream != STREAM_ASIDE) ++*first;
    for (*end = *first; *end < p->n_ops && p->op[*end].stream == STREAM_ASIDE; ++*end) continue;
    return *first < p->n_ops;
}

/* Whether `op` must not run at the same time as `side`: one writes what the other touches. */
bool aside_conflicts(const Program *p, const Op *side, const Op *op);

#endif
