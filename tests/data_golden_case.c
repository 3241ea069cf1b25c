#include "tests/data_golden_case.h"

#include <stdio.h>
#include <stdlib.h>

static const double TOLERANCE = 1e-5;

const char *case_label(Case *c, const char *what)
{
    const char *text = arena_printf(&c->arena, "%s %s", c->name, what);
    return text ? text : what;
}

float *case_floats(Case *c, const char *name, int64_t *count_out)
{
    return golden_f32(c->golden, c->file, name, &c->arena, count_out);
}

int64_t *case_integers(Case *c, const char *name, int64_t *count_out)
{
    return golden_i64(c->golden, c->file, name, &c->arena, count_out);
}

int64_t case_extent(Case *c, const char *name, int axis)
{
    const StTensor *tensor = st_find(c->file, name);
    return tensor && axis < tensor->rank ? tensor->shape[axis] : 0;
}

void *case_take(Case *c, int64_t count, size_t size)
{
    void *memory = arena_array(&c->arena, (size_t)count + 64, size); /* vector loads may start anywhere in a row */
    if (!memory) {
        fprintf(stderr, "data_golden: out of memory\n");
        exit(1);
    }
    return memory;
}

void case_match_f32(Case *c, const char *name, const float *got, const float *mask, int64_t each)
{
    int64_t count;
    const float *want = case_floats(c, name, &count);
    golden_match_f32(c->golden, case_label(c, name), got, want, count, TOLERANCE, mask, each);
}

void case_match_i32(Case *c, const char *name, const int32_t *got)
{
    int64_t count;
    const int64_t *want = case_integers(c, name, &count);
    golden_match_i32(c->golden, case_label(c, name), got, want, count);
}
