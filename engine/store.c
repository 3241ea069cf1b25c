#include "engine/store.h"

#include <stdlib.h>
#include <string.h>

#include "engine/convert.h"
#include "engine/store_internal.h"

enum { STORE_ALIGN = 256 };

static size_t padded(size_t bytes)
{
    return (bytes + STORE_ALIGN - 1) / STORE_ALIGN * STORE_ALIGN;
}

static DType real_type(Precision precision)
{
    return precision == PRECISION_F64 ? DT_F64 : DT_F32;
}

DType store_place_dtype(const Store *store, Place place)
{
    return place == PLACE_PARAM_LOW ? DT_BF16 : store->real;
}

static bool place_exists(Place place, Precision precision, StoreUse use)
{
    switch (place) {
    case PLACE_PARAM:
        return true;
    case PLACE_PARAM_LOW:
        return precision == PRECISION_BF16;
    case PLACE_GRAD:
    case PLACE_ADAM_M:
    case PLACE_ADAM_V:
    case PLACE_SWA:
        return use == STORE_TRAINING;
    default:
        return false;
    }
}

/* Bytes of one persistent block or, for PLACE_BUFFER, of all buffers. */
static size_t place_bytes(const Registry *registry, Place place, DType real)
{
    if (place != PLACE_BUFFER)
        return padded((size_t)registry->param_elements * dtype_size(place == PLACE_PARAM_LOW ? DT_BF16 : real));
    size_t bytes = 0;
    for (int i = 0; i < registry->n_buffers; i++) {
        Tensor t = registry->buffer[i].tensor;
        if (t.dtype == DT_F32) t.dtype = real;
        bytes += padded(tensor_bytes(&t));
    }
    return bytes;
}

size_t store_bytes(const Registry *registry, Precision precision, StoreUse use)
{
    size_t bytes = place_bytes(registry, PLACE_BUFFER, real_type(precision));
    for (int place = 0; place < PLACE_COUNT; place++)
        if (place_exists((Place)place, precision, use))
            bytes += place_bytes(registry, (Place)place, real_type(precision));
    return bytes ? bytes : STORE_ALIGN;
}

static void lay_out(Store *store, Precision precision, StoreUse use)
{
    const Registry *registry = store->registry;
    unsigned char *at = store->memory;
    for (int place = 0; place < PLACE_COUNT; place++) {
        if (!place_exists((Place)place, precision, use)) continue;
        store->base[place] = at;
        at += place_bytes(registry, (Place)place, store->real);
    }
    for (int i = 0; i < store->n_buffers; i++) {
        Tensor t = registry->buffer[i].tensor;
        if (t.dtype == DT_F32) t.dtype = store->real;
        store->buffer_dtype[i] = t.dtype;
        store->buffer_count[i] = tensor_count(&t);
        store->buffer[i] = at;
        at += padded(tensor_bytes(&t));
    }
}

Status store_create(Backend *backend, const Registry *registry, Precision precision, StoreUse use, Store **store_out)
{
    Store *store = calloc(1, sizeof *store);
    if (!store) return status_fail(ERR_MEMORY, "out of memory for a store");
    store->backend = backend;
    store->registry = registry;
    store->real = real_type(precision);
    store->use = use;
    store->n_params = registry->n_params;
    store->n_buffers = registry->n_buffers;
    store->param_elements = registry->param_elements;
    size_t buffers = (size_t)registry->n_buffers;
    store->buffer = arena_array(&store->arena, buffers, sizeof *store->buffer);
    store->buffer_dtype = arena_array(&store->arena, buffers, sizeof *store->buffer_dtype);
    store->buffer_count = arena_array(&store->arena, buffers, sizeof *store->buffer_count);
    Status status = OK;
    if (!store->buffer || !store->buffer_dtype || !store->buffer_count)
        status = status_fail(ERR_MEMORY, "out of memory for a store");
    if (status == OK) status = backend->alloc(backend, store_bytes(registry, precision, use), &store->memory);
    if (status != OK) {
        store_destroy(&store);
        return status;
    }
    lay_out(store, precision, use);
    *store_out = store;
    return OK;
}

void store_destroy(Store **store)
{
    if (!*store) return;
    if ((*store)->memory) (*store)->backend->release((*store)->backend, (*store)->memory);
    free((*store)->staging);
    arena_free(&(*store)->arena);
    free(*store);
    *store = NULL;
}

DType store_real(const Store *store)
{
    return store->real;
}

const Registry *store_registry(const Store *store)
{
    return store->registry;
}

void *store_buffer(const Store *store, int buffer)
{
    return buffer >= 0 && buffer < store->n_buffers ? store->buffer[buffer] : NULL;
}

void *store_place(const Store *store, Place place, int slot)
{
    if (place == PLACE_BUFFER) return store_buffer(store, slot);
    if (!store->base[place] || slot >= store->n_params) return NULL;
    int64_t elements = slot == WHOLE_BLOCK ? 0 : store->registry->param[slot].offset;
    return (unsigned char *)store->base[place] + (size_t)elements * dtype_size(store_place_dtype(store, place));
}

Status store_find_buffer(const Store *store, const char *name, int *buffer_out)
{
    int buffer = registry_find_buffer(store->registry, name);
    if (buffer < 0 || buffer >= store->n_buffers)
        return status_fail(ERR_INTERNAL, "the program has no buffer named \"%s\"", name);
    *buffer_out = buffer;
    return OK;
}

Status store_staging(Store *store, size_t bytes, void **staging_out)
{
    if (bytes > store->staging_bytes) {
        void *bigger = realloc(store->staging, bytes);
        if (!bigger) return status_fail(ERR_MEMORY, "out of memory for a copy of %zu bytes", bytes);
        store->staging = bigger;
        store->staging_bytes = bytes;
    }
    *staging_out = store->staging;
    return OK;
}

static Status write_converted(Store *store, void *target, DType type, DType host_type, const void *values,
                              int64_t count)
{
    Backend *backend = store->backend;
    size_t bytes = (size_t)count * dtype_size(type);
    if (type == host_type) return backend->upload(backend, target, values, bytes);
    void *staging = NULL;
    TRY(store_staging(store, bytes, &staging));
    TRY(convert_array(host_type, values, type, staging, count));
    return backend->upload(backend, target, staging, bytes); /* the staging memory may change at once (backend.h) */
}

static Status read_converted(Store *store, const void *source, DType type, DType host_type, void *values, int64_t count)
{
    Backend *backend = store->backend;
    size_t bytes = (size_t)count * dtype_size(type);
    if (type == host_type) return backend->download(backend, values, source, bytes);
    void *staging = NULL;
    TRY(store_staging(store, bytes, &staging));
    TRY(backend->download(backend, staging, source, bytes));
    return convert_array(type, staging, host_type, values, count);
}

static Status check_buffer(const Store *store, int buffer, int64_t count)
{
    if (buffer < 0 || buffer >= store->n_buffers)
        return status_fail(ERR_INTERNAL, "buffer %d of %d does not exist", buffer, store->n_buffers);
    if (count != store->buffer_count[buffer])
        return status_fail(ERR_INTERNAL, "buffer %s holds %ld elements, not %ld", store->registry->buffer[buffer].name,
                           (long)store->buffer_count[buffer], (long)count);
    return OK;
}

Status store_write(Store *store, int buffer, DType host_type, const void *values, int64_t count)
{
    TRY(check_buffer(store, buffer, count));
    return write_converted(store, store->buffer[buffer], store->buffer_dtype[buffer], host_type, values, count);
}

Status store_read(Store *store, int buffer, DType host_type, void *values, int64_t count)
{
    TRY(check_buffer(store, buffer, count));
    return read_converted(store, store->buffer[buffer], store->buffer_dtype[buffer], host_type, values, count);
}

static Status check_param(const Store *store, Place place, int param, int64_t count, void **address_out)
{
    if (place == PLACE_BUFFER || place == PLACE_ARENA || param < 0 || param >= store->n_params)
        return status_fail(ERR_INTERNAL, "parameter %d of %d does not exist", param, store->n_params);
    *address_out = store_place(store, place, param);
    if (!*address_out) return status_fail(ERR_INTERNAL, "this store keeps no block of kind %d", (int)place);
    if (count != store->registry->param[param].count)
        return status_fail(ERR_INTERNAL, "parameter %s holds %ld elements, not %ld", store->registry->param[param].name,
                           (long)store->registry->param[param].count, (long)count);
    return OK;
}

Status store_write_param(Store *store, Place place, int param, DType host_type, const void *values, int64_t count)
{
    void *address = NULL;
    TRY(check_param(store, place, param, count, &address));
    return write_converted(store, address, store_place_dtype(store, place), host_type, values, count);
}

Status store_read_param(Store *store, Place place, int param, DType host_type, void *values, int64_t count)
{
    void *address = NULL;
    TRY(check_param(store, place, param, count, &address));
    return read_converted(store, address, store_place_dtype(store, place), host_type, values, count);
}

Status store_lower_params(Store *store)
{
    void *low = store->base[PLACE_PARAM_LOW];
    if (!low) return OK;
    Backend *backend = store->backend;
    int64_t count = store->param_elements;
    size_t wide_bytes = (size_t)count * dtype_size(store->real), low_bytes = (size_t)count * dtype_size(DT_BF16);
    void *staging = NULL;
    TRY(store_staging(store, wide_bytes + low_bytes, &staging));
    void *narrow = (unsigned char *)staging + wide_bytes;
    TRY(backend->download(backend, staging, store->base[PLACE_PARAM], wide_bytes));
    TRY(convert_array(store->real, staging, DT_BF16, narrow, count));
    TRY(backend->upload(backend, low, narrow, low_bytes));
    return backend->finish(backend);
}
