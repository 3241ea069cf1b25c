#include "data/batch.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 256, LARGEST_SIZE = 1 << 24 };

/* Placeholders of the shapes in batch_features.def: sizes that are only known at run time. */
enum { R = -1, C = -2, E = -3, T = -4 };

typedef struct FeatureRow {
    const char *name;
    DType dtype;
    bool per_copy;
    int rank;
    int shape[BATCH_MAX_RANK];
} FeatureRow;

static const FeatureRow FEATURES[FEATURE_COUNT] = {
#define FEATURE(id, name, dtype, per_copy, rank, d0, d1, d2, d3)                                                       \
    [FEAT_##id] = {name, dtype, per_copy, rank, {d0, d1, d2, d3}},
#include "data/batch_features.def"
#undef FEATURE
};

static int64_t extent(const BatchSizes *sizes, int code)
{
    switch (code) {
    case R:
        return sizes->crop;
    case C:
        return sizes->clusters;
    case E:
        return sizes->extra;
    case T:
        return sizes->templates;
    default:
        return code;
    }
}

static Status check_size(const char *name, int64_t value, int64_t low, int64_t high)
{
    if (value >= low && value <= high) return OK;
    return status_fail(ERR_USAGE, "batch: %s is %lld, expected %lld to %lld", name, (long long)value, (long long)low,
                       (long long)high);
}

static Status check_sizes(const BatchSizes *sizes)
{
    TRY(check_size("crop", sizes->crop, 1, LARGEST_SIZE));
    TRY(check_size("clusters", sizes->clusters, 1, LARGEST_SIZE));
    TRY(check_size("extra", sizes->extra, 0, LARGEST_SIZE));
    TRY(check_size("templates", sizes->templates, 0, LARGEST_SIZE));
    return check_size("recycling copies", sizes->copies, 1, BATCH_MAX_COPIES);
}

/* Fills shapes and counts; returns the total bytes, 0 on overflow. Offsets go to `offset`. */
static size_t lay_out(const BatchSizes *sizes, BatchTensor *feature, size_t *offset)
{
    size_t total = 0;
    for (int i = 0; i < FEATURE_COUNT; ++i) {
        const FeatureRow *row = &FEATURES[i];
        BatchTensor *f = &feature[i];
        *f = (BatchTensor){.name = row->name, .per_copy = row->per_copy};
        f->tensor = (Tensor){.dtype = row->dtype, .rank = (int8_t)row->rank, .shard = SHARD_NONE};
        size_t elements = 1;
        for (int axis = 0; axis < row->rank; ++axis) {
            f->tensor.dim[axis] = extent(sizes, row->shape[axis]);
            if (__builtin_mul_overflow(elements, (size_t)f->tensor.dim[axis], &elements)) return 0;
        }
        f->count = (int64_t)elements;
        size_t bytes;
        if (__builtin_mul_overflow(elements, 4 * (row->per_copy ? (size_t)sizes->copies : 1), &bytes)) return 0;
        offset[i] = total;
        if (bytes > SIZE_MAX / 4 - total) return 0;
        total += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    return total;
}

Status batch_bytes(const BatchSizes *sizes, size_t *bytes_out)
{
    BatchTensor feature[FEATURE_COUNT];
    size_t offset[FEATURE_COUNT];
    TRY(check_sizes(sizes));
    size_t bytes = lay_out(sizes, feature, offset);
    if (!bytes) return status_fail(ERR_USAGE, "batch: sizes overflow");
    *bytes_out = bytes;
    return OK;
}

Status batch_create(const BatchSizes *sizes, void *memory, size_t bytes, Batch **batch_out)
{
    size_t offset[FEATURE_COUNT], need;
    TRY(batch_bytes(sizes, &need));
    if (memory && bytes < need) return status_fail(ERR_USAGE, "batch: %zu bytes given, %zu needed", bytes, need);
    Batch *batch = calloc(1, sizeof *batch);
    void *block = memory;
    if (batch && !block) {
        block = aligned_alloc(ALIGN, need);
        if (block) memset(block, 0, need);
    }
    if (!batch || !block) {
        free(batch);
        return status_fail(ERR_MEMORY, "batch: no memory for %zu bytes", need);
    }
    lay_out(sizes, batch->feature, offset);
    batch->sizes = *sizes;
    batch->memory = block;
    batch->bytes = need;
    batch->owned = !memory;
    for (int i = 0; i < FEATURE_COUNT; ++i) batch->feature[i].data = (char *)block + offset[i];
    *batch_out = batch;
    return OK;
}

void batch_destroy(Batch **batch)
{
    if (!*batch) return;
    if ((*batch)->owned) free((*batch)->memory);
    free(*batch);
    *batch = NULL;
}

float *batch_f32(const Batch *batch, FeatureId id, int64_t copy)
{
    return batch_data(&batch->feature[id], copy);
}

int32_t *batch_i32(const Batch *batch, FeatureId id, int64_t copy)
{
    return batch_data(&batch->feature[id], copy);
}

const BatchTensor *batch_find(const Batch *batch, const char *name)
{
    for (int i = 0; i < FEATURE_COUNT; ++i)
        if (strcmp(batch->feature[i].name, name) == 0) return &batch->feature[i];
    return NULL;
}
