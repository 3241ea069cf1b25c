#include "engine/array.h"

#include <stdlib.h>

enum { FIRST_CAPACITY = 64 };

Status array_reserve(void **items, int32_t *capacity, int64_t need, size_t size, const char *what)
{
    if (need <= *capacity) return OK;
    int64_t wanted = *capacity ? 2 * (int64_t)*capacity : FIRST_CAPACITY;
    if (wanted > INT32_MAX) wanted = INT32_MAX;
    if (wanted < need) wanted = need;
    void *larger = wanted <= INT32_MAX ? realloc(*items, (size_t)wanted * size) : NULL;
    if (!larger) return status_fail(ERR_MEMORY, "out of memory for %lld %s", (long long)wanted, what);
    *items = larger;
    *capacity = (int32_t)wanted;
    return OK;
}
