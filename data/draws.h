/* Every random decision of the data pipeline, through one interface.
 *
 * A drawn number is a pure function of (seed, epoch, index, purpose, copy, element): Philox4x32-10 with the seed as key
 * and the rest as counter. Any sample can so be rebuilt from four numbers, whatever thread or rank prepares it. For
 * checks against recorded draws the numbers come from a DrawSource instead. */
#ifndef FOLDSCALE_DATA_DRAWS_H
#define FOLDSCALE_DATA_DRAWS_H

#include <stdint.h>

#include "engine/status.h"

/* The first nine are the draws of one sample in the order of their use; the others are drawn once per epoch. */
typedef enum DrawPurpose {
    DRAW_TEMPLATE_HIT_SHUFFLE, /* permutation of the accepted hits, at most 20 */
    DRAW_MSA_PERMUTATION,      /* per copy; permutation of rows 1 .. N-1 */
    DRAW_MASK,                 /* per copy; uniform float, clusters x L */
    DRAW_REPLACE,              /* per copy; uniform double, clusters x L */
    DRAW_EXTRA_PERMUTATION,    /* per copy; permutation of the extra rows */
    DRAW_TEMPLATE_CROP,        /* integer 0..T */
    DRAW_TEMPLATE_PERMUTATION, /* permutation of the T templates */
    DRAW_RESIDUE_CROP,         /* integer 0..max(L - crop, 0) */
    DRAW_CLAMP,                /* uniform double */
    DRAW_CHAIN,                /* sampler: which chain a position of the epoch gets */
    DRAW_SAMPLE_SEED,          /* sampler: 63-bit seed of a sample */
    DRAW_RECYCLING,            /* sampler: shuffle of the recycling counts */
    DRAW_PREPARATION_TIME,     /* simulated preparation times of the loader's tests */
    DRAW_SYNTH,                /* synthetic chains and alignments */
    DRAW_PURPOSES
} DrawPurpose;

/* Recorded draws. `read` copies `count` values from element `first` on; ERR_INPUT when they were not recorded. All
 * values (integers, floats, doubles) fit a double. `size` is the number of recorded values. */
typedef struct DrawSource {
    void *context;
    Status (*read)(void *context, DrawPurpose purpose, int copy, int64_t first, int64_t count, double *values_out);
    Status (*size)(void *context, DrawPurpose purpose, int copy, int64_t *size_out);
} DrawSource;

typedef struct Draws {
    uint64_t seed, epoch, index; /* epoch < 2^32, index < 2^48 */
    const DrawSource *given;     /* NULL: Philox */
} Draws;

/* A permutation of 0..count-1 (Fisher-Yates). A recorded one is checked to be a permutation. */
Status draws_permutation(const Draws *draws, DrawPurpose purpose, int copy, int64_t count, int32_t *permutation_out);

/* Uniform in [0, 1). */
Status draws_uniform_f32(const Draws *draws, DrawPurpose purpose, int copy, int64_t first, int64_t count,
                         float *values_out);

/* Element `position` alone; uniform in [0, 1). */
Status draws_uniform_f64(const Draws *draws, DrawPurpose purpose, int copy, int64_t position, double *value_out);

/* Uniform integer in 0..high inclusive. A recorded one outside the range is an error. */
Status draws_integer(const Draws *draws, DrawPurpose purpose, int copy, int64_t high, int64_t *value_out);

/* 64 random bits of element `position` (Philox only). */
uint64_t draws_bits(const Draws *draws, DrawPurpose purpose, int copy, int64_t position);

#endif
