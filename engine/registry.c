#include "engine/registry.h"

#include <stdlib.h>
#include <string.h>

#include "engine/array.h"

/* Open-addressing table from name to index + 1; two per registry (parameters, buffers). The full model registers 5044
 * parameters several times over, so a linear search would take longer than all passes together. */
typedef struct NameTable {
    int capacity; /* power of two */
    int used;
    int *slot;
} NameTable;

struct RegistryIndex {
    NameTable params, buffers;
};

static uint64_t name_hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

static const char *entry_name(const Registry *r, bool params, int index)
{
    return params ? r->param[index].name : r->buffer[index].name;
}

static int table_find(const Registry *r, bool params, const char *name)
{
    const NameTable *t = params ? &r->index->params : &r->index->buffers;
    if (!t->capacity) return -1;
    for (uint64_t i = name_hash(name);; i++) {
        int entry = t->slot[i & (uint64_t)(t->capacity - 1)];
        if (!entry) return -1;
        if (!strcmp(entry_name(r, params, entry - 1), name)) return entry - 1;
    }
}

static Status table_insert(Registry *r, bool params, int index)
{
    NameTable *t = params ? &r->index->params : &r->index->buffers;
    if (2 * (t->used + 1) > t->capacity) {
        int capacity = t->capacity ? 2 * t->capacity : 256;
        int *slot = calloc((size_t)capacity, sizeof *slot);
        if (!slot) return status_fail(ERR_MEMORY, "out of memory for %d names", capacity);
        for (int old = 0; old < index; old++) {
            uint64_t i = name_hash(entry_name(r, params, old));
            while (slot[i & (uint64_t)(capacity - 1)]) i++;
            slot[i & (uint64_t)(capacity - 1)] = old + 1;
        }
        free(t->slot);
        t->slot = slot;
        t->capacity = capacity;
    }
    uint64_t i = name_hash(entry_name(r, params, index));
    while (t->slot[i & (uint64_t)(t->capacity - 1)]) i++;
    t->slot[i & (uint64_t)(t->capacity - 1)] = index + 1;
    t->used++;
    return OK;
}

Status registry_create(Registry **registry_out)
{
    Registry *r = calloc(1, sizeof *r);
    if (r) r->index = calloc(1, sizeof *r->index);
    if (!r || !r->index) {
        free(r);
        return status_fail(ERR_MEMORY, "out of memory for a registry");
    }
    *registry_out = r;
    return OK;
}

void registry_destroy(Registry **registry)
{
    Registry *r = *registry;
    if (!r) return;
    arena_free(&r->arena);
    free(r->index->params.slot);
    free(r->index->buffers.slot);
    free(r->index);
    free(r->param);
    free(r->buffer);
    free(r);
    *registry = NULL;
}

Status registry_param(Registry *r, const char *name, int rank, const int64_t *dim, InitRule init, double init_value,
                      int *index_out)
{
    int index = table_find(r, true, name);
    if (index >= 0) {
        const ParamInfo *old = &r->param[index];
        if (old->rank != rank || memcmp(old->dim, dim, (size_t)rank * sizeof *dim))
            return status_fail(ERR_INTERNAL, "parameter %s registered again with another shape", name);
        *index_out = index;
        return OK;
    }
    TRY(array_reserve((void **)&r->param, &r->cap_params, r->n_params + 1, sizeof *r->param, "parameters"));
    ParamInfo info = {.rank = rank, .count = 1, .offset = r->param_elements, .init = init, .init_value = init_value};
    for (int axis = 0; axis < rank; axis++) {
        if (dim[axis] <= 0) return status_fail(ERR_INTERNAL, "parameter %s: extent %ld", name, (long)dim[axis]);
        info.dim[axis] = dim[axis];
        info.count *= dim[axis];
    }
    info.name = arena_strdup(&r->arena, name);
    if (!info.name) return status_fail(ERR_MEMORY, "out of memory for parameter names");
    r->param[r->n_params] = info;
    TRY(table_insert(r, true, r->n_params));
    r->param_count += info.count;
    r->param_elements += (info.count + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
    *index_out = r->n_params++;
    return OK;
}

Status registry_buffer(Registry *r, const char *name, BufferKind kind, const Tensor *tensor, int *index_out)
{
    int index = table_find(r, false, name);
    if (index >= 0) {
        const Tensor *old = &r->buffer[index].tensor;
        if (old->dtype != tensor->dtype || old->rank != tensor->rank ||
            memcmp(old->dim, tensor->dim, (size_t)tensor->rank * sizeof *tensor->dim))
            return status_fail(ERR_INTERNAL, "buffer %s registered again with another type or shape", name);
        if (kind == BUFFER_STATE) r->buffer[index].kind = BUFFER_STATE;
        *index_out = index;
        return OK;
    }
    TRY(array_reserve((void **)&r->buffer, &r->cap_buffers, r->n_buffers + 1, sizeof *r->buffer, "buffers"));
    BufferInfo info = {.kind = kind, .tensor = *tensor};
    info.tensor.shard = SHARD_NONE;
    info.name = arena_strdup(&r->arena, name);
    if (!info.name) return status_fail(ERR_MEMORY, "out of memory for buffer names");
    r->buffer[r->n_buffers] = info;
    TRY(table_insert(r, false, r->n_buffers));
    *index_out = r->n_buffers++;
    return OK;
}

int registry_find_param(const Registry *registry, const char *name)
{
    return table_find(registry, true, name);
}

int registry_find_buffer(const Registry *registry, const char *name)
{
    return table_find(registry, false, name);
}
