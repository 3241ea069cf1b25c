#include "data/name_index.h"

#include <string.h>

typedef struct Slot {
    const char *name;
    int64_t number;
} Slot;

struct NameIndex {
    uint64_t capacity; /* a power of two, at least twice the names: a free slot always ends a search */
    Slot *slot;
};

/* FNV-1a, 64 bits */
static uint64_t hash_name(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (; *name; ++name) hash = (hash ^ (unsigned char)*name) * 0x100000001b3ull;
    return hash ^ hash >> 32;
}

static Slot *locate(const NameIndex *index, const char *name)
{
    uint64_t at = hash_name(name) & (index->capacity - 1);
    while (index->slot[at].name && strcmp(index->slot[at].name, name) != 0) at = (at + 1) & (index->capacity - 1);
    return &index->slot[at];
}

Status name_index_create(int64_t most, Arena *arena, NameIndex **index_out)
{
    NameIndex *index = arena_alloc(arena, sizeof *index);
    uint64_t capacity = 16;
    while (capacity / 2 < (uint64_t)most && capacity < (uint64_t)1 << 40) capacity *= 2;
    Slot *slot = index ? arena_array(arena, capacity, sizeof *slot) : NULL;
    if (!slot) return status_fail(ERR_MEMORY, "no memory for an index of %lld names", (long long)most);
    index->capacity = capacity;
    index->slot = slot;
    *index_out = index;
    return OK;
}

void name_index_add(NameIndex *index, const char *name, int64_t number)
{
    Slot *slot = locate(index, name);
    if (!slot->name) *slot = (Slot){name, number};
}

int64_t name_index_find(const NameIndex *index, const char *name)
{
    const Slot *slot = locate(index, name);
    return slot->name ? slot->number : -1;
}
