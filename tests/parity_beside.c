/* parity --save FILE and --beside FILE: what one run computed, beside another one.
 *
 * bf16 on the GPU is compared with the CPU's emulation of it, which rounds at the same places and sums in another
 * order. Both lie as far from the golden values as those roundings take them (parity_spread.c), and as they round
 * nearly the same numbers, they should be nearer to one another than either is to the golden values. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/array.h"
#include "tests/parity.h"

typedef struct Distances {
    double apart, ours, theirs; /* between the runs; of each to the golden values: l2, relative */
} Distances;

struct ParityBeside {
    const char *path;
    StWriter *writer; /* --save */
    StFile *file;     /* --beside */
    Arena arena;      /* of the saved values */
    Distances *seen;
    int32_t count, room;
};

Status parity_beside_open(const char *save, const char *beside, ParityBeside **out)
{
    *out = NULL;
    if (!save && !beside) return OK;
    if (save && beside) return status_fail(ERR_USAGE, "--save and --beside: one of them at a time");
    ParityBeside *b = calloc(1, sizeof *b);
    if (!b) return status_fail(ERR_MEMORY, "out of memory");
    b->path = save ? save : beside;
    Status status = save ? st_writer_create(save, &b->writer) : st_open(beside, &b->file);
    if (status == OK)
        *out = b;
    else
        free(b);
    return status;
}

static Status save(ParityBeside *b, const char *name, const double *ours, int64_t count)
{
    float *copy = arena_array(&b->arena, (size_t)count, sizeof *copy);
    char *label = arena_strdup(&b->arena, name);
    if (!copy || !label) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
    for (int64_t i = 0; i < count; i++) copy[i] = (float)ours[i];
    return st_writer_add(b->writer, label, ST_F32, 1, &count, copy);
}

/* What the other run kept of this name; NULL: nothing of this size. */
static Status kept(const ParityBeside *b, const char *name, int64_t count, Arena *arena, double **theirs_out)
{
    const StTensor *t = st_find(b->file, name);
    *theirs_out = NULL;
    if (!t || t->count != count) return OK;
    double *theirs = arena_array(arena, (size_t)count, sizeof *theirs);
    if (!theirs) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
    *theirs_out = theirs;
    return st_read_f64(t, 0, count, theirs);
}

Status parity_beside(Parity *parity, const char *name, const double *ours, const double *truth, int64_t count,
                     Arena *arena)
{
    ParityBeside *b = parity->beside;
    double *theirs;
    if (!b) return OK;
    if (b->writer) return save(b, name, ours, count);
    TRY(kept(b, name, count, arena, &theirs));
    if (!theirs) return OK;
    TRY(array_reserve((void **)&b->seen, &b->room, (int64_t)b->count + 1, sizeof *b->seen, "compared quantities"));
    b->seen[b->count++] = (Distances){.apart = parity_l2_error(ours, theirs, count, 0),
                                      .ours = parity_l2_error(ours, truth, count, 0),
                                      .theirs = parity_l2_error(theirs, truth, count, 0)};
    return OK;
}

Status parity_beside_instead(Parity *parity, const char *name, const double *ours, int64_t count, double floor,
                             double limit, Arena *arena, bool *done_out)
{
    ParityBeside *b = parity->beside;
    char label[900];
    double *theirs;
    *done_out = false;
    if (!b) return OK;
    if (b->writer) return save(b, name, ours, count);
    TRY(kept(b, name, count, arena, &theirs));
    snprintf(label, sizeof label, "%s (to the other run)", name);
    double error = theirs ? parity_l2_error(ours, theirs, count, floor) : NAN; /* it has none of this size: a failure */
    parity_report_unstated(parity, label, error, 2 * limit);
    *done_out = true;
    return OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(const ParityBeside *b, size_t member)
{
    double *value = malloc(((size_t)b->count + 1) * sizeof *value), result = NAN;
    for (int32_t i = 0; value && i < b->count; i++) value[i] = *(const double *)((const char *)&b->seen[i] + member);
    if (value) {
        qsort(value, (size_t)b->count, sizeof *value, by_value);
        result = b->count ? value[b->count / 2] : NAN;
    }
    free(value);
    return result;
}

Status parity_beside_close(ParityBeside **beside, bool whole)
{
    ParityBeside *b = *beside;
    Status status = OK;
    if (!b) return OK;
    if (b->writer) {
        if (whole) status = st_writer_commit(b->writer);
        st_writer_destroy(&b->writer);
    } else {
        int32_t nearer = 0;
        for (int32_t i = 0; i < b->count; i++) nearer += b->seen[i].apart <= fmax(b->seen[i].ours, b->seen[i].theirs);
        printf("beside %s, %d quantities, median l2 distance: to the other run %.3g, to the golden values %.3g (the "
               "other run %.3g); nearer to the other run than the farther of the two is to the golden values: %d\n",
               b->path, b->count, median_of(b, offsetof(Distances, apart)), median_of(b, offsetof(Distances, ours)),
               median_of(b, offsetof(Distances, theirs)), nearer);
        st_close(&b->file);
    }
    arena_free(&b->arena);
    free(b->seen);
    free(b);
    *beside = NULL;
    return status;
}
