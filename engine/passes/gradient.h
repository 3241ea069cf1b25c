/* Shared by autodiff, gradient synchronisation and the verifier. */
#ifndef FOLDSCALE_ENGINE_PASSES_GRADIENT_H
#define FOLDSCALE_ENGINE_PASSES_GRADIENT_H

#include "engine/passes.h"
#include "engine/rules.h"

/* True for a value that is one parameter (real type or bf16 copy). */
bool value_is_param(const Value *v);

/* needs[v]: a parameter's influence reaches value v through differentiable forward ops. needs has n_values entries. */
void gradient_needs(const Program *p, bool *needs);

/* Appends (or, under comm_overlap, inserts right after the bucket's last gradient) the all-reduces of STAGE_SYNC. */
Status gradient_sync(Program *p, const Switches *switches);

#endif
