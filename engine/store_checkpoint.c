/* Checkpoints of a store: safetensors files named as the parameters are registered. */
#include "engine/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"
#include "engine/store_internal.h"

/* The blocks of a checkpoint and the prefix of their tensors' names. */
static const struct Block {
    Place place;
    const char *prefix;
} blocks[] = {{PLACE_PARAM, ""}, {PLACE_ADAM_M, "adam_m."}, {PLACE_ADAM_V, "adam_v."}, {PLACE_SWA, "swa."}};

enum { BLOCKS = sizeof blocks / sizeof blocks[0], NAME_BYTES = 600 };

static StDtype file_dtype(const Store *store)
{
    return store->real == DT_F64 ? ST_F64 : ST_F32;
}

static size_t block_bytes(const Store *store)
{
    return (size_t)store->param_elements * dtype_size(store->real);
}

static Status add_block(const Store *store, StWriter *writer, const char *prefix, const unsigned char *values)
{
    for (int i = 0; i < store->n_params; i++) {
        const ParamInfo *param = &store->registry->param[i];
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%s%s", prefix, param->name);
        TRY(st_writer_add(writer, name, file_dtype(store), param->rank, param->dim,
                          values + (size_t)param->offset * dtype_size(store->real)));
    }
    return OK;
}

static Status write_file(Store *store, StWriter *writer, unsigned char *host, int n_meta, const MetaPair *meta)
{
    for (int i = 0; i < n_meta; i++) TRY(st_writer_metadata(writer, meta[i].key, meta[i].value));
    for (int b = 0; b < BLOCKS; b++) {
        const void *source = store->base[blocks[b].place];
        if (!source) continue;
        unsigned char *copy = host + (size_t)b * block_bytes(store);
        TRY(store->backend->download(store->backend, copy, source, block_bytes(store)));
        TRY(add_block(store, writer, blocks[b].prefix, copy));
    }
    TRY(st_writer_checksum(writer));
    return st_writer_commit(writer);
}

Status store_save(Store *store, const char *path, int n_meta, const MetaPair *meta)
{
    StWriter *writer = NULL;
    TRY(st_writer_create(path, &writer));
    unsigned char *host = malloc(BLOCKS * block_bytes(store) + 1);
    Status status;
    if (host)
        status = write_file(store, writer, host, n_meta, meta);
    else
        status = status_fail(ERR_MEMORY, "out of memory for a checkpoint of %zu bytes", BLOCKS * block_bytes(store));
    st_writer_destroy(&writer);
    free(host);
    return status;
}

static void shape_text(int rank, const int64_t *dim, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (int axis = 0; axis < rank && used < size; axis++)
        used += (size_t)snprintf(text + used, size - used, axis ? ", %ld" : "%ld", (long)dim[axis]);
    if (used < size) snprintf(text + used, size - used, "]");
}

static Status check_tensor(const Store *store, const char *path, const ParamInfo *param, const StTensor *tensor)
{
    bool same = tensor->rank == param->rank;
    for (int axis = 0; same && axis < param->rank; axis++) same = tensor->shape[axis] == param->dim[axis];
    if (!same) {
        char found[160], expected[160];
        shape_text(tensor->rank, tensor->shape, found, sizeof found);
        shape_text(param->rank, param->dim, expected, sizeof expected);
        return status_fail_at(ERR_INPUT, path, 0, "tensor \"%s\" has shape %s, expected %s", tensor->name, found,
                              expected);
    }
    if (tensor->dtype != file_dtype(store))
        return status_fail_at(ERR_INPUT, path, 0, "tensor \"%s\" is %s, expected %s", tensor->name,
                              st_dtype_name(tensor->dtype), st_dtype_name(file_dtype(store)));
    return OK;
}

/* Copies the tensors of one block into `values` (padding stays zero). */
static Status read_block(const Store *store, StFile *file, const char *prefix, unsigned char *values)
{
    for (int i = 0; i < store->n_params; i++) {
        const ParamInfo *param = &store->registry->param[i];
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%s%s", prefix, param->name);
        const StTensor *tensor = st_find(file, name);
        if (!tensor)
            return status_fail_at(ERR_INPUT, st_path(file), 0, "tensor \"%s\" is missing (the model has %d parameters)",
                                  name, store->n_params);
        TRY(check_tensor(store, st_path(file), param, tensor));
        unsigned char *target = values + (size_t)param->offset * dtype_size(store->real);
        if (store->real == DT_F64)
            TRY(st_read_f64(tensor, 0, param->count, (double *)target));
        else
            TRY(st_read_f32(tensor, 0, param->count, (float *)target));
    }
    return OK;
}

/* Every tensor of the file must belong to a parameter of the model, whether this store keeps its block or not. */
static Status refuse_foreign(const Store *store, const StFile *file)
{
    for (int64_t i = 0; i < st_count(file); i++) {
        const char *name = st_at(file, i)->name;
        bool known = false;
        for (int b = 0; b < BLOCKS && !known; b++) {
            size_t length = strlen(blocks[b].prefix);
            if (strncmp(name, blocks[b].prefix, length)) continue;
            int param = registry_find_param(store->registry, name + length);
            known = param >= 0 && param < store->n_params;
        }
        if (!known)
            return status_fail_at(ERR_INPUT, st_path(file), 0, "tensor \"%s\" is no parameter of this model", name);
    }
    return OK;
}

static Status load_blocks(Store *store, StFile *file, bool swa_as_params, unsigned char *host)
{
    TRY(refuse_foreign(store, file));
    for (int b = 0; b < BLOCKS; b++) {
        if (!store->base[blocks[b].place]) continue;
        bool average = blocks[b].place == PLACE_PARAM && swa_as_params;
        TRY(read_block(store, file, average ? "swa." : blocks[b].prefix, host + (size_t)b * block_bytes(store)));
    }
    for (int b = 0; b < BLOCKS; b++) {
        void *target = store->base[blocks[b].place];
        if (!target) continue;
        TRY(store->backend->upload(store->backend, target, host + (size_t)b * block_bytes(store), block_bytes(store)));
    }
    TRY(store->backend->finish(store->backend));
    return store_lower_params(store);
}

Status store_load(Store *store, const char *path, bool swa_as_params)
{
    StFile *file = NULL;
    TRY(st_open(path, &file));
    unsigned char *host = calloc(1, BLOCKS * block_bytes(store) + 1);
    Status status;
    if (host) {
        status = st_verify(file);
        if (status == OK) status = load_blocks(store, file, swa_as_params, host);
    } else
        status = status_fail(ERR_MEMORY, "out of memory for a checkpoint of %zu bytes", BLOCKS * block_bytes(store));
    free(host);
    st_close(&file);
    return status;
}
