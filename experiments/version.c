#include "experiments/version.h"

#ifndef FOLDSCALE_COMMIT
#define FOLDSCALE_COMMIT "unknown"
#endif

const char *version_commit(void)
{
    return FOLDSCALE_COMMIT;
}
