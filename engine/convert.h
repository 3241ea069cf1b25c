/* Element types: bf16 by hand (round to nearest even) and arrays between any two types. */
#ifndef FOLDSCALE_ENGINE_CONVERT_H
#define FOLDSCALE_ENGINE_CONVERT_H

#include <string.h>

#include "engine/status.h"
#include "engine/tensor.h"

static inline float bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* Ties to even; NaN stays NaN (the quiet bit is set, so that rounding cannot turn its payload into infinity). */
static inline uint16_t bf16_from_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* count elements of `from` at source -> `to` at target; the arrays do not overlap. ERR_INTERNAL for a pair of types
 * that has no meaning (real to integer and back are converted by value; DT_NONE is refused). */
Status convert_array(DType from, const void *source, DType to, void *target, int64_t count);

#endif
