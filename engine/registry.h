/* What outlives a program: parameters and named buffers. All programs of a workload (no-gradient forward, gradient
 * step, optimizer) are recorded against one Registry, so that they share memory by index.
 *
 * Parameters lie in one block in registration order, each at a multiple of PARAM_ALIGN elements; gradients, Adam
 * moments, the weight average and the bf16 copy use the same offsets in blocks of their own. Padding elements are zero
 * and stay zero. Registering q, k, v and gate weights one after the other is what lets a fused product read them as one
 * matrix. */
#ifndef FOLDSCALE_ENGINE_REGISTRY_H
#define FOLDSCALE_ENGINE_REGISTRY_H

#include <stdbool.h>

#include "engine/arena.h"
#include "engine/status.h"
#include "engine/tensor.h"

enum { PARAM_ALIGN = 64 };

typedef enum InitRule {
    INIT_ZERO,
    INIT_ONE,
    INIT_NORMAL,   /* truncated normal at +-2 sigma, rescaled to the given std after truncation */
    INIT_GAUSSIAN, /* untruncated normal with the given std */
    INIT_UNIFORM,  /* uniform with the given std: Glorot */
    INIT_CONSTANT
} InitRule;

typedef struct ParamInfo {
    const char *name; /* full path as in a checkpoint */
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    int64_t count;
    int64_t offset; /* elements from the start of the block, multiple of PARAM_ALIGN */
    InitRule init;
    double init_value; /* std, or the constant */
} ParamInfo;

typedef enum BufferKind {
    BUFFER_INPUT, /* written by the host before a run */
    BUFFER_STATE  /* written by programs, survives between them (recycled tensors, loss history ...) */
} BufferKind;

typedef struct BufferInfo {
    const char *name;
    BufferKind kind;
    Tensor tensor; /* dtype F32 means the real type of the session */
} BufferInfo;

typedef struct Registry {
    Arena arena;
    int n_params, n_buffers;
    int cap_params, cap_buffers;
    ParamInfo *param;
    BufferInfo *buffer;
    int64_t param_elements; /* block length in elements, padding included */
    int64_t param_count;    /* sum of counts: the number a paper states */
    struct RegistryIndex *index;
} Registry;

Status registry_create(Registry **registry_out);
void registry_destroy(Registry **registry);

/* Index of the parameter; registering an existing name with the same shape returns the old index (weight sharing),
 * with another shape fails (ERR_INTERNAL). */
Status registry_param(Registry *registry, const char *name, int rank, const int64_t *dim, InitRule init,
                      double init_value, int *index_out);
Status registry_buffer(Registry *registry, const char *name, BufferKind kind, const Tensor *tensor, int *index_out);

int registry_find_param(const Registry *registry, const char *name);  /* -1 when absent */
int registry_find_buffer(const Registry *registry, const char *name); /* -1 when absent */

#endif
