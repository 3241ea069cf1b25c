/* Name -> number, a hash table of fixed capacity. Reading is thread-safe once all names are in. */
#ifndef FOLDSCALE_DATA_NAME_INDEX_H
#define FOLDSCALE_DATA_NAME_INDEX_H

#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef struct NameIndex NameIndex;

/* Room for `most` names. */
Status name_index_create(int64_t most, Arena *arena, NameIndex **index_out);
/* Borrows `name`; the first of equal names stays. */
void name_index_add(NameIndex *index, const char *name, int64_t number);
/* -1 when there is no such name. */
int64_t name_index_find(const NameIndex *index, const char *name);

#endif
