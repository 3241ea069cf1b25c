/* Shape, element type and placement of a value. Row-major, always contiguous. */
#ifndef FOLDSCALE_ENGINE_TENSOR_H
#define FOLDSCALE_ENGINE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

typedef enum DType {
    DT_NONE, /* an optional output that this op does not produce */
    DT_F32,  /* while recording: "the real type"; the precision pass turns it into F64 or, in places, BF16 */
    DT_F64,
    DT_BF16,
    DT_I32,
    DT_COUNT
} DType;

enum { TENSOR_MAX_RANK = 6, SHARD_NONE = -1 };

typedef struct Tensor {
    DType dtype;
    int8_t rank;
    int8_t
        shard; /* axis on which the ranks of a model-parallel (DAP) group hold equal slices; SHARD_NONE = replicated */
    int64_t dim[TENSOR_MAX_RANK]; /* local extents: a sharded value's extent on `shard` is global / dap */
} Tensor;

size_t dtype_size(DType dtype);
const char *dtype_name(DType dtype); /* "f32", "f64", "bf16", "i32", "none" */

static inline int64_t tensor_count(const Tensor *t)
{
    int64_t count = 1;
    for (int axis = 0; axis < t->rank; axis++) count *= t->dim[axis];
    return count;
}
size_t tensor_bytes(const Tensor *t);

static inline int64_t tensor_last(const Tensor *t)
{
    return t->rank ? t->dim[t->rank - 1] : 1;
}

/* product of all extents but the last: the number of rows of a position-wise op */
static inline int64_t tensor_rows(const Tensor *t)
{
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < t->rank; axis++) rows *= t->dim[axis];
    return rows;
}

#endif
