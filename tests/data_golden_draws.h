/* Recorded draws of a golden file as a DrawSource. */
#ifndef FOLDSCALE_TESTS_DATA_GOLDEN_DRAWS_H
#define FOLDSCALE_TESTS_DATA_GOLDEN_DRAWS_H

#include "data/draws.h"
#include "engine/safetensors.h"

typedef struct GoldenDraw {
    DrawPurpose purpose;
    int copy;
    const StTensor *tensor; /* NULL: not recorded */
} GoldenDraw;

typedef struct GoldenDraws {
    DrawSource source; /* set source.context to the GoldenDraws itself once it has its final address */
    const GoldenDraw *draw;
    int count;
} GoldenDraws;

GoldenDraws golden_draws(const GoldenDraw *draw, int count);

#endif
