/* Shared by store.c, store_init.c and store_checkpoint.c only. */
#ifndef FOLDSCALE_ENGINE_STORE_INTERNAL_H
#define FOLDSCALE_ENGINE_STORE_INTERNAL_H

#include "engine/store.h"

struct Store {
    Arena arena;
    Backend *backend;
    const Registry *registry;
    DType real;
    StoreUse use;
    int n_params, n_buffers; /* registered when the store was made */
    int64_t param_elements;
    void *memory;            /* the one allocation */
    void *base[PLACE_COUNT]; /* NULL where this store has no such block */
    void **buffer;
    DType *buffer_dtype;
    int64_t *buffer_count;
    void *staging; /* host memory for conversions; grows */
    size_t staging_bytes;
};

DType store_place_dtype(const Store *store, Place place);

/* Host memory of at least `bytes`, valid until the next call. */
Status store_staging(Store *store, size_t bytes, void **staging_out);

#endif
