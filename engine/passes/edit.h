/* For passes that reorder or copy ops of a finished program, where shapes are known: nothing is inferred again.
 * Failures stick to the program, as in recording. */
#ifndef FOLDSCALE_ENGINE_PASSES_EDIT_H
#define FOLDSCALE_ENGINE_PASSES_EDIT_H

#include "engine/passes.h"

/* Empties the list of ops and makes room for `ops` of them; the old list goes to the caller, who frees it. */
Op *edit_restart(Program *p, int32_t ops);
/* Appends the op as it is and makes it the writer of its outputs. */
void edit_push_op(Program *p, const Op *op);
Val edit_push_value(Program *p, const Value *value);

/* Moves an op to another place in the list; those between close up. */
void edit_move_op(Program *p, int32_t from, int32_t to);

/* Ops have moved in place: their outputs learn where they are written now. */
void edit_renumber(Program *p);

/* Drops ops in place and renumbers the writers of what is left; gone: per op. Values that a dropped op alone wrote are
 * the caller's to reset (def_op). */
void edit_close_gaps(Program *p, const bool *gone);

/* Whether others than the ops behind it may see that an op has run: it has an effect, or writes what is no temporary.
 */
bool edit_writes_persistent(const Program *p, const Op *op);

/* How often ops read each value; NULL when out of memory, freed by the caller. Values that are kept for others than ops
 * (outputs, the loss) are not counted for that. */
int32_t *edit_count_uses(const Program *p);

#endif
