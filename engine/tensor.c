#include "engine/tensor.h"

static const struct {
    const char *name;
    size_t size;
} dtypes[DT_COUNT] = {
    [DT_NONE] = {"none", 0}, [DT_F32] = {"f32", 4}, [DT_F64] = {"f64", 8},
    [DT_BF16] = {"bf16", 2}, [DT_I32] = {"i32", 4},
};

size_t dtype_size(DType dtype)
{
    return dtypes[dtype].size;
}

const char *dtype_name(DType dtype)
{
    return dtypes[dtype].name;
}

size_t tensor_bytes(const Tensor *t)
{
    return (size_t)tensor_count(t) * dtype_size(t->dtype);
}
