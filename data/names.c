#include "data/names.h"

#include <string.h>

typedef struct NameSlot {
    const char *name; /* NULL: free */
    int64_t number;
} NameSlot;

static size_t hash_name(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return (size_t)(hash ^ hash >> 29);
}

static NameSlot *find_slot(const NameMap *map, const char *name)
{
    size_t at = hash_name(name) & (map->slots - 1);
    while (map->slot[at].name && strcmp(map->slot[at].name, name) != 0) at = (at + 1) & (map->slots - 1);
    return &map->slot[at];
}

static Status grow(NameMap *map)
{
    NameMap larger = {.arena = map->arena, .slots = map->slots ? 2 * map->slots : 64, .count = map->count};
    larger.slot = arena_array(map->arena, larger.slots, sizeof *larger.slot);
    if (!larger.slot) return status_fail(ERR_MEMORY, "no memory for %zu names", larger.slots);
    for (size_t i = 0; i < map->slots; i++)
        if (map->slot[i].name) *find_slot(&larger, map->slot[i].name) = map->slot[i];
    *map = larger; /* the old slots stay in the arena: at most as much again */
    return OK;
}

Status names_add(NameMap *map, const char *name, int64_t number, int64_t *number_out)
{
    if (2 * (map->count + 1) > map->slots) TRY(grow(map));
    NameSlot *slot = find_slot(map, name);
    if (!slot->name) {
        *slot = (NameSlot){name, number};
        map->count++;
    }
    if (number_out) *number_out = slot->number;
    return OK;
}

int64_t names_find(const NameMap *map, const char *name)
{
    if (!map->slots) return -1;
    const NameSlot *slot = find_slot(map, name);
    return slot->name ? slot->number : -1;
}
