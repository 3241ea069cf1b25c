/* Parts of prog_verify that look at a scheduled and a planned program. */
#ifndef FOLDSCALE_ENGINE_PASSES_VERIFY_H
#define FOLDSCALE_ENGINE_PASSES_VERIFY_H

#include "engine/passes.h"

/* Every started collective is waited for once, and nobody reads or writes its result before. */
Status verify_waits(const Program *p, PassStage after);
/* Groups aside are waited for before anybody touches what they work on. */
Status verify_groups(const Program *p, PassStage after);
/* No two values that live at the same time share bytes of the arena. */
Status verify_arena(const Program *p, PassStage after);
/* ERR_INTERNAL naming the op. */
Status verify_fail(const Program *p, int32_t op, PassStage after, const char *what);

#endif
