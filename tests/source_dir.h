/* Where the tests find the files of the tree. */
#ifndef FOLDSCALE_TESTS_SOURCE_DIR_H
#define FOLDSCALE_TESTS_SOURCE_DIR_H

#include <stdlib.h>

/* Root of the tree: FOLDSCALE_SOURCE, or the present folder. */
static inline const char *source_dir(void)
{
    const char *dir = getenv("FOLDSCALE_SOURCE");
    return dir ? dir : ".";
}

#endif
