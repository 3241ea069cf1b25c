/* In the forward pass most collectives stand between two ops of one chain. What the other representation (MSA or pairs)
 * does next needs no result of theirs: it moves ahead of the first op that does, until the collective is covered. */
#include "engine/passes/schedule.h"

#include <stdlib.h>

#include "engine/passes/behind.h"
#include "engine/passes/edit.h"

/* Ops looked at behind a collective: the start of the next block, not more, for operands stay in memory that much
 * longer. */
enum { WINDOW = 16 };
static const double SHORT_S = 25e-6; /* of biases of attention and the like */

typedef struct Fill {
    Program *p;
    int32_t *behind; /* per value: the collective (position + 1) behind which it has to stay */
} Fill;

static void fill(Fill *f, int32_t collective)
{
    Program *p = f->p;
    const Op *start = &p->op[collective];
    double wanted = schedule_aside_seconds(p, start), found = 0;
    int32_t mark = collective + 1, first = -1; /* first op that has to stay */
    if (wanted <= SHORT_S) return;             /* what could move is kept for a longer one */
    behind_keep(f->behind, start, mark);
    for (int32_t i = collective + 1; i < p->n_ops && i <= collective + WINDOW && found < wanted; i++) {
        Op op = p->op[i];
        if (op.stage != start->stage || edit_writes_persistent(p, &op)) return;
        if (schedule_is_collective(&op) || behind_reads(f->behind, &op, mark)) {
            if (first < 0) first = i;
            behind_keep(f->behind, &op, mark);
            continue;
        }
        found += schedule_seconds(p, &op);
        if (first < 0) continue;
        edit_move_op(p, i, first++);
    }
}

Status schedule_fill(const Program *in, Program **out)
{
    Fill f = {0};
    TRY(prog_clone(in, &f.p));
    f.behind = calloc((size_t)in->n_values + 1, sizeof *f.behind);
    if (!f.behind) {
        prog_destroy(&f.p);
        return status_fail(ERR_MEMORY, "out of memory for the schedule of %d ops", in->n_ops);
    }
    for (int32_t i = 0; i < f.p->n_ops; i++)
        if (f.p->op[i].stage == STAGE_FORWARD && schedule_is_collective(&f.p->op[i])) fill(&f, i);
    edit_renumber(f.p);
    free(f.behind);
    *out = f.p;
    return OK;
}
