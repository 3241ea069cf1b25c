#include "tests/data_golden_draws.h"

static const StTensor *find(const GoldenDraws *draws, DrawPurpose purpose, int copy)
{
    for (int i = 0; i < draws->count; ++i)
        if (draws->draw[i].purpose == purpose && draws->draw[i].copy == copy) return draws->draw[i].tensor;
    return NULL;
}

static Status read_draw(void *context, DrawPurpose purpose, int copy, int64_t first, int64_t count, double *values_out)
{
    const StTensor *tensor = find(context, purpose, copy);
    if (!tensor) return status_fail(ERR_INPUT, "draw %d of copy %d is not recorded", (int)purpose, copy);
    return st_read_f64(tensor, first, count, values_out);
}

static Status size_of_draw(void *context, DrawPurpose purpose, int copy, int64_t *size_out)
{
    const StTensor *tensor = find(context, purpose, copy);
    if (!tensor) return status_fail(ERR_INPUT, "draw %d of copy %d is not recorded", (int)purpose, copy);
    *size_out = tensor->count;
    return OK;
}

GoldenDraws golden_draws(const GoldenDraw *draw, int count)
{
    return (GoldenDraws){.source = {.read = read_draw, .size = size_of_draw}, .draw = draw, .count = count};
}
