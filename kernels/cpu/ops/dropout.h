/* One uniform number per element of the mask, whose shape is the global shape of x with the shared axis collapsed. Four
 * consecutive elements share one Philox block. */
#ifndef FOLDSCALE_KERNELS_CPU_OPS_DROPOUT_H
#define FOLDSCALE_KERNELS_CPU_OPS_DROPOUT_H

#include "engine/philox.h"
#include "kernels/cpu/math.h"

typedef struct Dropout {
    int64_t stride[TENSOR_MAX_RANK]; /* of x's axes in the mask; 0 along the shared axis */
    int64_t first;                   /* mask element of this rank's element 0 */
    uint32_t key[2], counter[4];
    double rate;
    real kept;
} Dropout;

static inline Dropout dropout_make(const RankLayout *layout, const Op *op, const Tensor *x, const int32_t *rng)
{
    Dropout d = {.rate = op->attr.f[0], .kept = (real)(1.0 / (1.0 - op->attr.f[0]))};
    int64_t stride = 1;
    for (int axis = x->rank - 1; axis >= 0; axis--) {
        if (axis == op->attr.i[1]) continue;
        d.stride[axis] = stride;
        stride *= x->dim[axis] * (axis == x->shard ? layout->dap : 1);
        if (axis == x->shard) d.first = d.stride[axis] * x->dim[axis] * layout->dap_rank;
    }
    uint32_t seed = (uint32_t)rng[0], step = (uint32_t)rng[1], sample = (uint32_t)rng[2], pass = (uint32_t)rng[3];
    d.key[0] = seed;
    d.key[1] = sample;
    d.counter[2] = (uint32_t)op->attr.i[0];
    d.counter[3] = step * 8 + pass;
    return d;
}

/* Mask element of the first element of row `row` of x (all axes but the last). */
static inline int64_t dropout_row(const Dropout *d, const Tensor *x, int64_t row)
{
    int64_t element = d->first;
    for (int axis = x->rank - 2; axis >= 0; axis--) {
        element += row % x->dim[axis] * d->stride[axis];
        row /= x->dim[axis];
    }
    return element;
}

/* y = (r) + x mask; r may be NULL */
static inline void dropout_apply(const Dropout *d, const Tensor *x_tensor, const real *r, const real *x, real *y)
{
    int64_t rows = tensor_rows(x_tensor), c = tensor_last(x_tensor);
    int64_t step = x_tensor->rank ? d->stride[x_tensor->rank - 1] : 0;
    PARALLEL_IF(rows * c)
    for (int64_t row = 0; row < rows; row++) {
        int64_t element = dropout_row(d, x_tensor, row), block = -1;
        uint32_t counter[4] = {0, 0, d->counter[2], d->counter[3]}, word[4] = {0};
        for (int64_t e = row * c; e < (row + 1) * c; e++, element += step) {
            if (element / 4 != block) {
                block = element / 4;
                counter[0] = (uint32_t)block;
                counter[1] = (uint32_t)((uint64_t)block >> 32);
                philox4x32(counter, d->key, word);
            }
            bool keep = (double)philox_uniform_f32(word[element % 4]) >= d->rate;
            real value = keep ? x[e] * d->kept : 0;
            y[e] = r ? r[e] + value : value;
        }
    }
}

#endif
