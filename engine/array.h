/* Arrays that grow as they are filled. */
#ifndef FOLDSCALE_ENGINE_ARRAY_H
#define FOLDSCALE_ENGINE_ARRAY_H

#include <stddef.h>
#include <stdint.h>

#include "engine/status.h"

/* Room for at least `need` elements of `size` bytes in *items (an allocation or NULL with *capacity 0; ends in free()).
 * Capacities double, so that filling an array one by one costs linear time. ERR_MEMORY, naming `what`, leaves both as
 * they were. New elements are not initialised. */
Status array_reserve(void **items, int32_t *capacity, int64_t need, size_t size, const char *what);

#endif
