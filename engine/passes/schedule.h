#ifndef FOLDSCALE_ENGINE_PASSES_SCHEDULE_H
#define FOLDSCALE_ENGINE_PASSES_SCHEDULE_H

#include "engine/passes.h"

/* schedule_clip.c: the squared norm of the gradient, range by range as the gradients become final, into the state that
 * the optimizer program reads (fuse_optimizer.c). Program with a loss, after autodiff. */
Status schedule_clip(const Program *in, Program **out);
/* schedule_defer.c: weight gradients move behind the collectives that follow them. */
Status schedule_defer(const Program *in, Program **out);

#endif
