/* Moving and cutting values; reals and 32-bit integers alike. */
#include "kernels/cpu/math.h"

static size_t element_bytes(const Tensor *t)
{
    return t->dtype == DT_I32 ? sizeof(int32_t) : sizeof(real);
}

/* Elements `stride` apart in x become contiguous in y. */
static void gather_strided(size_t size, int64_t n, const char *x, int64_t stride, char *y)
{
    if (stride == 1)
        memcpy(y, x, (size_t)n * size);
    else if (size == sizeof(real))
        for (int64_t e = 0; e < n; e++) ((real *)y)[e] = ((const real *)x)[e * stride];
    else
        for (int64_t e = 0; e < n; e++) ((int32_t *)y)[e] = ((const int32_t *)x)[e * stride];
}

static Status transpose(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *x = call->in_tensor[0], *y = call->out_tensor[0];
    int64_t x_stride[TENSOR_MAX_RANK], stride[TENSOR_MAX_RANK] = {0}, step = 1;
    for (int axis = x->rank - 1; axis >= 0; axis--) {
        x_stride[axis] = step;
        step *= x->dim[axis];
    }
    for (int axis = 0; axis < y->rank; axis++) stride[axis] = x_stride[call->op->attr.i[axis]];
    size_t size = element_bytes(x);
    int64_t rows = tensor_rows(y), c = tensor_last(y), last = y->rank ? stride[y->rank - 1] : 1;
    PARALLEL_IF(rows * c)
    for (int64_t row = 0; row < rows; row++) {
        int64_t from = 0, rest = row;
        for (int axis = y->rank - 2; axis >= 0; axis--) {
            from += rest % y->dim[axis] * stride[axis];
            rest /= y->dim[axis];
        }
        gather_strided(size, c, (const char *)call->in[0] + (size_t)from * size, last,
                       (char *)call->out[0] + (size_t)(row * c) * size);
    }
    return OK;
}

/* Elements before and from `axis` on: a value is [outer, inner]. */
static int64_t outer_count(const Tensor *t, int64_t axis)
{
    int64_t outer = 1;
    for (int64_t a = 0; a < axis; a++) outer *= t->dim[a];
    return outer;
}

/* Copies `bytes` from each of `outer` rows. */
static void copy_rows(int64_t outer, size_t bytes, const char *x, size_t x_pitch, char *y, size_t y_pitch)
{
    for (int64_t r = 0; r < outer; r++) memcpy(y + (size_t)r * y_pitch, x + (size_t)r * x_pitch, bytes);
}

static size_t pitch_of(const Tensor *t, int64_t outer)
{
    return (size_t)(tensor_count(t) / outer) * element_bytes(t);
}

static Status concat(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t outer = outer_count(call->out_tensor[0], call->op->attr.i[0]);
    size_t y_pitch = pitch_of(call->out_tensor[0], outer);
    char *y = call->out[0];
    for (int k = 0; k < call->op->n_in; k++) {
        size_t pitch = pitch_of(call->in_tensor[k], outer);
        copy_rows(outer, pitch, call->in[k], pitch, y, y_pitch);
        y += pitch;
    }
    return OK;
}

static Status slice(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *x = call->in_tensor[0];
    int64_t axis = call->op->attr.i[0], outer = outer_count(x, axis);
    size_t x_pitch = pitch_of(x, outer), y_pitch = pitch_of(call->out_tensor[0], outer);
    size_t start = x_pitch / (size_t)x->dim[axis] * (size_t)call->op->attr.i[1];
    copy_rows(outer, y_pitch, (const char *)call->in[0] + start, x_pitch, call->out[0], y_pitch);
    return OK;
}

static Status pad(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *x = call->in_tensor[0], *y = call->out_tensor[0];
    int64_t axis = call->op->attr.i[0], outer = outer_count(x, axis);
    size_t x_pitch = pitch_of(x, outer), y_pitch = pitch_of(y, outer);
    size_t start = x_pitch / (size_t)x->dim[axis] * (size_t)call->op->attr.i[1];
    memset(call->out[0], 0, (size_t)outer * y_pitch);
    copy_rows(outer, x_pitch, call->in[0], x_pitch, (char *)call->out[0] + start, y_pitch);
    return OK;
}

/* RESHAPE when the plan could not alias it, COPY, and CAST: conversions to and from bf16 happen around the kernel. */
static Status copy(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    if (call->out[0] != call->in[0])
        memcpy(call->out[0], call->in[0], (size_t)tensor_count(call->in_tensor[0]) * element_bytes(call->in_tensor[0]));
    return OK;
}

static Status fill(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = tensor_count(call->out_tensor[0]);
    real value = (real)call->op->attr.f[0];
    real *y = OUT(0);
    for (int64_t e = 0; e < n; e++) y[e] = value;
    return OK;
}

const CpuEntry FN(cpu_layout)[] = {{OP_TRANSPOSE, transpose, NULL}, {OP_RESHAPE, copy, NULL}, {OP_CONCAT, concat, NULL},
                                   {OP_SLICE, slice, NULL},         {OP_PAD, pad, NULL},      {OP_CAST, copy, NULL},
                                   {OP_COPY, copy, NULL},           {OP_FILL, fill, NULL},    {0}};
