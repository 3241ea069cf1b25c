#include "engine/convert.h"

#define LOOP(FROM, TO, EXPR)                                                                                           \
    do {                                                                                                               \
        const FROM *x = source;                                                                                        \
        TO *y = target;                                                                                                \
        for (int64_t i = 0; i < count; i++) y[i] = (EXPR);                                                             \
    } while (0)

#define PAIR(a, b) ((a)*DT_COUNT + (b))

Status convert_array(DType from, const void *source, DType to, void *target, int64_t count)
{
    if (from == to && from != DT_NONE) {
        if (count) memcpy(target, source, (size_t)count * dtype_size(from));
        return OK;
    }
    switch (PAIR(from, to)) {
    case PAIR(DT_F32, DT_F64):
        LOOP(float, double, x[i]);
        break;
    case PAIR(DT_F32, DT_BF16):
        LOOP(float, uint16_t, bf16_from_f32(x[i]));
        break;
    case PAIR(DT_F32, DT_I32):
        LOOP(float, int32_t, (int32_t)x[i]);
        break;
    case PAIR(DT_F64, DT_F32):
        LOOP(double, float, (float)x[i]);
        break;
    case PAIR(DT_F64, DT_BF16):
        LOOP(double, uint16_t, bf16_from_f32((float)x[i]));
        break;
    case PAIR(DT_F64, DT_I32):
        LOOP(double, int32_t, (int32_t)x[i]);
        break;
    case PAIR(DT_BF16, DT_F32):
        LOOP(uint16_t, float, bf16_to_f32(x[i]));
        break;
    case PAIR(DT_BF16, DT_F64):
        LOOP(uint16_t, double, (double)bf16_to_f32(x[i]));
        break;
    case PAIR(DT_I32, DT_F32):
        LOOP(int32_t, float, (float)x[i]);
        break;
    case PAIR(DT_I32, DT_F64):
        LOOP(int32_t, double, x[i]);
        break;
    case PAIR(DT_I32, DT_BF16):
        LOOP(int32_t, uint16_t, bf16_from_f32((float)x[i]));
        break;
    default:
        return status_fail(ERR_INTERNAL, "no conversion from %s to %s", dtype_name(from), dtype_name(to));
    }
    return OK;
}
