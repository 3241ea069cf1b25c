/* Persistent memory of a session on one backend: the parameter block and its companions (gradients, moments, average,
 * bf16 copy) in one allocation, and the named buffers of the registry. */
#ifndef FOLDSCALE_ENGINE_STORE_H
#define FOLDSCALE_ENGINE_STORE_H

#include "engine/backend.h"
#include "engine/passes.h"

typedef struct Store Store;

typedef enum StoreUse {
    STORE_FORWARD, /* parameters (+ bf16 copy under PRECISION_BF16) and buffers alone: evaluation */
    STORE_TRAINING /* + gradients, moments, average */
} StoreUse;

/* Bytes that store_create() would take: to foresee an out-of-memory before it happens. */
size_t store_bytes(const Registry *registry, Precision precision, StoreUse use);

/* Allocates zeroed memory for everything registered so far. */
Status store_create(Backend *backend, const Registry *registry, Precision precision, StoreUse use, Store **store_out);
void store_destroy(Store **store);

/* Parameters by their initial rule, from Philox(seed, parameter name, element): independent of ranks and order. Fills
 * the bf16 copy too. */
Status store_init_params(Store *store, uint64_t seed);

void *store_buffer(const Store *store, int buffer);           /* address in backend memory */
void *store_place(const Store *store, Place place, int slot); /* address in backend memory, NULL when not there */
Status store_find_buffer(const Store *store, const char *name, int *buffer_out);

/* Host <-> buffer with conversion between the given host dtype (float32/float64/int32: DT_F32, DT_F64, DT_I32) and the
 * session's. count must equal the buffer's. */
Status store_write(Store *store, int buffer, DType host_type, const void *values, int64_t count);
Status store_read(Store *store, int buffer, DType host_type, void *values, int64_t count);
Status store_write_param(Store *store, Place place, int param, DType host_type, const void *values, int64_t count);
Status store_read_param(Store *store, Place place, int param, DType host_type, void *values, int64_t count);
/* Brings the bf16 copy up to date after parameters were written from the host. */
Status store_lower_params(Store *store);

DType store_real(const Store *store); /* DT_F32 or DT_F64 */
const Registry *store_registry(const Store *store);

/* Checkpoints: safetensors, names as registered ("param", "adam_m.NAME", "adam_v.NAME", "swa.NAME"), real type as
 * stored; plus caller's metadata pairs (step, sampler and random state). Atomic: TARGET.tmp, fsync, rename. */
typedef struct MetaPair {
    const char *key, *value;
} MetaPair;
Status store_save(Store *store, const char *path, int n_meta, const MetaPair *meta);
/* ERR_INPUT: truncated, damaged or foreign file, missing or extra parameter, wrong shape or dtype, each with its
 * reason; the store is untouched then. Metadata is read by the caller through st_open. `use` FORWARD loads parameters
 * (or the average when `swa_as_params`) alone. */
Status store_load(Store *store, const char *path, bool swa_as_params);

#endif
