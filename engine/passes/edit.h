/* For passes that reorder or copy ops of a finished program, where shapes are known: nothing is inferred again.
 * Failures stick to the program, as in recording. */
#ifndef FOLDSCALE_ENGINE_PASSES_EDIT_H
#define FOLDSCALE_ENGINE_PASSES_EDIT_H

#include "engine/passes.h"

/* Appends the op as it is and makes it the writer of its outputs. */
void edit_push_op(Program *p, const Op *op);
Val edit_push_value(Program *p, const Value *value);

#endif
