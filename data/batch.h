/* One training sample as the model reads it: all features of the reference by their names
 * (data/batch_features.def), without the batch axis, float32 or int32.
 *
 * Recycling copies. Features that differ between the copies (MSA sampling and masking) are stored as `copies` whole
 * tensors one after the other; all others once. batch_data(tensor, k) is the start of a contiguous tensor of `shape`
 * that holds copy k in either case, so copying copy k to the model's input is one copy of tensor_bytes. A sample drawn
 * with r recycling iterations has copies 0..r: iteration k of the forward pass reads copy k, the losses the last one.
 *
 * All tensors lie in one block, each aligned to 256 bytes, which may be the caller's (pinned memory of a backend). */
#ifndef FOLDSCALE_DATA_BATCH_H
#define FOLDSCALE_DATA_BATCH_H

#include <stdbool.h>

#include "engine/status.h"
#include "engine/tensor.h"

/* Sizes that shape a batch; the defaults of initial training are 256, 124, 1024, 4, 4. */
typedef struct BatchSizes {
    int64_t crop;      /* N_res */
    int64_t clusters;  /* N_clust */
    int64_t extra;     /* N_extra_seq */
    int64_t templates; /* N_templ */
    int64_t copies;    /* room for recycling copies, at least 1 */
} BatchSizes;

enum { BATCH_MAX_COPIES = 64, BATCH_MAX_RANK = 4 };

/* Feature numbers, in the order of features.csv (batch_features.def). */
typedef enum FeatureId {
#define FEATURE(id, name, dtype, per_copy, rank, d0, d1, d2, d3) FEAT_##id,
#include "data/batch_features.def"
#undef FEATURE
    FEATURE_COUNT
} FeatureId;

typedef struct BatchTensor {
    const char *name;
    Tensor tensor; /* dtype and shape of one copy */
    int64_t count; /* elements of one copy */
    bool per_copy; /* differs between recycling copies */
    void *data;    /* [copies or 1] whole tensors */
} BatchTensor;

typedef struct Batch {
    BatchSizes sizes;
    BatchTensor feature[FEATURE_COUNT];
    void *memory; /* one block */
    size_t bytes;
    bool owned;

    /* set by whoever fills the batch */
    int64_t copies_filled; /* 1 + recycling iterations of this sample */
    int64_t sample_index;  /* position in the epoch */
    int64_t epoch;
    int64_t residues; /* real residues in the crop (seq_length) */
    int64_t crop_start;
    char chain[32]; /* e.g. "4zey_A", cut to fit */
} Batch;

/* Bytes of the block of these sizes; ERR_USAGE for sizes that are not positive (extra and templates may be 0) or whose
 * product overflows. */
Status batch_bytes(const BatchSizes *sizes, size_t *bytes_out);

/* `memory` NULL: allocates zeroed memory. Otherwise uses `bytes` there (ERR_USAGE if too few), aligned to 16; the batch
 * must be filled before it is read. */
Status batch_create(const BatchSizes *sizes, void *memory, size_t bytes, Batch **batch_out);
void batch_destroy(Batch **batch);

/* Start of copy k (any k below copies_filled). */
static inline void *batch_data(const BatchTensor *feature, int64_t copy)
{
    size_t bytes = (size_t)feature->count * 4; /* both types have four bytes */
    return (char *)feature->data + (feature->per_copy ? bytes * (size_t)copy : 0);
}
float *batch_f32(const Batch *batch, FeatureId id, int64_t copy);
int32_t *batch_i32(const Batch *batch, FeatureId id, int64_t copy);

/* By name; NULL when there is no such feature. */
const BatchTensor *batch_find(const Batch *batch, const char *name);

#endif
