/* Operands that kernels may read ahead of their turn. */
#ifndef FOLDSCALE_ENGINE_STEADY_H
#define FOLDSCALE_ENGINE_STEADY_H

#include "engine/backend.h"

/* Fills OpCall.steady of the calls of a run, in their order: parameters of a program that does not write them, read by
 * calls that follow another one. The first one is the boundary to what ran before, perhaps an optimizer: a backend may
 * start a kernel before the end of the one in front of it, but not before its start. */
void steady_mark(const Program *program, int n_calls, OpCall *call);

#endif
