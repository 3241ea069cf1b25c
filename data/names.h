/* Hash map from names to numbers, in an arena. Keys are borrowed: they must outlive the map. */
#ifndef FOLDSCALE_DATA_NAMES_H
#define FOLDSCALE_DATA_NAMES_H

#include <stddef.h>
#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef struct NameMap {
    Arena *arena; /* set by the owner before the first name; the rest starts as zero */
    struct NameSlot *slot;
    size_t slots, count; /* slots: a power of two or 0 */
} NameMap;

/* Sets the number of a name unless it has one; *number_out (may be NULL) is the number it has afterwards. Numbers are
 * not negative. */
Status names_add(NameMap *map, const char *name, int64_t number, int64_t *number_out);
/* -1 when absent. */
int64_t names_find(const NameMap *map, const char *name);

#endif
