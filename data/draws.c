#include "data/draws.h"

#include <stdlib.h>

#include "engine/philox.h"

static const char *const PURPOSE_NAMES[DRAW_PURPOSES] = {
    [DRAW_TEMPLATE_HIT_SHUFFLE] = "template hit shuffle",
    [DRAW_MSA_PERMUTATION] = "MSA permutation",
    [DRAW_MASK] = "mask",
    [DRAW_REPLACE] = "replacement",
    [DRAW_EXTRA_PERMUTATION] = "extra permutation",
    [DRAW_TEMPLATE_CROP] = "template crop start",
    [DRAW_TEMPLATE_PERMUTATION] = "template permutation",
    [DRAW_RESIDUE_CROP] = "residue crop start",
    [DRAW_CLAMP] = "clamp",
    [DRAW_CHAIN] = "chain",
    [DRAW_SAMPLE_SEED] = "sample seed",
    [DRAW_RECYCLING] = "recycling count",
    [DRAW_PREPARATION_TIME] = "preparation time",
    [DRAW_SYNTH] = "synthetic data",
};

/* Counter words: block of four, index (low), epoch, then index (high 16) | copy (8) | purpose (8). */
static void block_words(const Draws *draws, DrawPurpose purpose, int copy, uint64_t block, uint32_t out[4])
{
    const uint32_t key[2] = {(uint32_t)draws->seed, (uint32_t)(draws->seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)draws->index, (uint32_t)draws->epoch,
                                 (uint32_t)(draws->index >> 32) << 16 | (uint32_t)(copy & 255) << 8 |
                                     (uint32_t)purpose};
    philox4x32(counter, key, out);
}

uint64_t draws_bits(const Draws *draws, DrawPurpose purpose, int copy, int64_t position)
{
    uint32_t words[4];
    block_words(draws, purpose, copy, (uint64_t)position / 2, words);
    int half = (int)(position & 1) * 2;
    return (uint64_t)words[half + 1] << 32 | words[half];
}

/* floor(bits * bound / 2^64): uniform up to a bias of bound / 2^64 */
static uint64_t bounded(uint64_t bits, uint64_t bound)
{
    return (uint64_t)(((unsigned __int128)bits * bound) >> 64);
}

static Status check_permutation(const Draws *draws, DrawPurpose purpose, int copy, int64_t count, int32_t *permutation)
{
    enum { PIECE = 256 };
    double values[PIECE];
    int64_t size;
    TRY(draws->given->size(draws->given->context, purpose, copy, &size));
    if (size != count)
        return status_fail(ERR_INPUT, "recorded %s of copy %d has %lld entries, expected %lld", PURPOSE_NAMES[purpose],
                           copy, (long long)size, (long long)count);
    unsigned char *seen = calloc((size_t)count + 1, 1);
    if (!seen) return status_fail(ERR_MEMORY, "no memory to check a permutation of %lld", (long long)count);
    Status status = OK;
    for (int64_t first = 0; first < count && status == OK; first += PIECE) {
        int64_t n = count - first < PIECE ? count - first : PIECE;
        status = draws->given->read(draws->given->context, purpose, copy, first, n, values);
        for (int64_t i = 0; i < n && status == OK; ++i) {
            int64_t value = values[i] >= 0 && values[i] < (double)count ? (int64_t)values[i] : -1;
            if (value < 0 || seen[value])
                status = status_fail(ERR_INPUT, "recorded %s of copy %d: entry %lld is %g, not part of a permutation",
                                     PURPOSE_NAMES[purpose], copy, (long long)(first + i), values[i]);
            else {
                seen[value] = 1;
                permutation[first + i] = (int32_t)value;
            }
        }
    }
    free(seen);
    return status;
}

Status draws_permutation(const Draws *draws, DrawPurpose purpose, int copy, int64_t count, int32_t *permutation_out)
{
    if (draws->given) return check_permutation(draws, purpose, copy, count, permutation_out);
    for (int64_t i = 0; i < count; ++i) permutation_out[i] = (int32_t)i;
    for (int64_t i = count - 1; i > 0; --i) {
        int64_t j = (int64_t)bounded(draws_bits(draws, purpose, copy, i), (uint64_t)i + 1);
        int32_t swap = permutation_out[i];
        permutation_out[i] = permutation_out[j];
        permutation_out[j] = swap;
    }
    return OK;
}

Status draws_uniform_f32(const Draws *draws, DrawPurpose purpose, int copy, int64_t first, int64_t count,
                         float *values_out)
{
    if (draws->given) {
        enum { PIECE = 256 };
        double values[PIECE];
        for (int64_t done = 0; done < count; done += PIECE) {
            int64_t n = count - done < PIECE ? count - done : PIECE;
            TRY(draws->given->read(draws->given->context, purpose, copy, first + done, n, values));
            for (int64_t i = 0; i < n; ++i) values_out[done + i] = (float)values[i];
        }
        return OK;
    }
    uint32_t words[4] = {0};
    for (int64_t i = 0; i < count; ++i) {
        int64_t position = first + i;
        if (i == 0 || (position & 3) == 0) block_words(draws, purpose, copy, (uint64_t)position / 4, words);
        values_out[i] = philox_uniform_f32(words[position & 3]);
    }
    return OK;
}

Status draws_uniform_f64(const Draws *draws, DrawPurpose purpose, int copy, int64_t position, double *value_out)
{
    if (draws->given) return draws->given->read(draws->given->context, purpose, copy, position, 1, value_out);
    uint64_t bits = draws_bits(draws, purpose, copy, position);
    *value_out = philox_uniform_f64((uint32_t)bits, (uint32_t)(bits >> 32));
    return OK;
}

Status draws_integer(const Draws *draws, DrawPurpose purpose, int copy, int64_t high, int64_t *value_out)
{
    if (draws->given) {
        double value;
        TRY(draws->given->read(draws->given->context, purpose, copy, 0, 1, &value));
        if (!(value >= 0 && value <= (double)high))
            return status_fail(ERR_INPUT, "recorded %s is %g, expected 0 to %lld", PURPOSE_NAMES[purpose], value,
                               (long long)high);
        *value_out = (int64_t)value;
        return OK;
    }
    *value_out = (int64_t)bounded(draws_bits(draws, purpose, copy, 0), (uint64_t)high + 1);
    return OK;
}
