/* parity --spread FILE: what rounding may do to a quantity, from what it did.
 *
 * FILE holds the lines of K runs on the CPU that rounded bf16 at random (--dither), each a fair sample of what
 * roundings do to a quantity on its way through the program: amplify, cancel, flip a bin. A run that rounds to nearest
 * has errors of the same kind and not larger ones. If the error of a quantity has one degree of freedom, its ratio to
 * the root mean square r of the samples is Student's with K degrees; with more it is nearer to one. So an error above
 *
 *   t(K, 1 - CHANCE / 2Q) r + one rounding of the result itself
 *
 * in any of the Q quantities happens to a program that rounds as it should once in 1 / CHANCE runs. That bounds each
 * alone; all together (those whose errors vary) are bounded by the median of error / r, which is to be no larger than
 * the samples' own medians say: their mean plus t(K - 1, 1 - CHANCE) of their standard deviations. */
#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/array.h"
#include "tests/parity.h"

static const double CHANCE = 0.01, RESULT_ROUNDING = 0x1p-8;

typedef struct Sample {
    const char *name;
    double error;
    int32_t order; /* in the file: the k-th of a name is that of run k */
} Sample;

typedef struct Quantity {
    const char *name;
    const Sample *sample;
    int runs;
    double rms, least, most; /* of the errors */
} Quantity;

struct ParitySpread {
    Sample *sample;
    Quantity *quantity;
    double *ratio; /* error / rms of this run's quantities */
    int32_t samples, room, quantities, ratios;
    Arena memory;
};

static int by_name(const void *a, const void *b)
{
    const Sample *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->order > y->order) - (x->order < y->order);
}

/* Whether roundings of results make the error: it does not vary where only the parameters were rounded. */
static bool varies(const Quantity *q)
{
    return q->most - q->least > 0.01 * q->rms;
}

static int name_against(const void *name, const void *quantity)
{
    return strcmp(name, ((const Quantity *)quantity)->name);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int32_t count)
{
    qsort(x, (size_t)count, sizeof *x, by_value);
    return count ? x[count / 2] : 0;
}

/* "name   error   limit   ok|FAIL"; names hold spaces. Other lines are passed over. */
static Status take_line(ParitySpread *s, char *line)
{
    char *end = strrchr(line, ' '), *field[2];
    for (int k = 0; k < 2; k++) {
        while (end > line && end[-1] == ' ') end--;
        if (!end || end == line) return OK;
        *end = 0;
        end = strrchr(line, ' ');
        if (!end) return OK;
        field[k] = end + 1;
    }
    while (end > line && end[-1] == ' ') end--;
    *end = 0;
    char *rest;
    double error = strtod(field[1], &rest);
    if (*rest || rest == field[1] || !isfinite(error)) return OK;
    TRY(array_reserve((void **)&s->sample, &s->room, (int64_t)s->samples + 1, sizeof *s->sample, "samples"));
    char *name = arena_strdup(&s->memory, line);
    if (!name) return status_fail(ERR_MEMORY, "out of memory for '%s'", line);
    s->sample[s->samples] = (Sample){name, error, s->samples};
    s->samples++;
    return OK;
}

static Status group_runs(ParitySpread *s)
{
    s->quantity = arena_array(&s->memory, (size_t)s->samples, sizeof *s->quantity);
    s->ratio = arena_array(&s->memory, (size_t)s->samples, sizeof *s->ratio);
    if (!s->quantity || !s->ratio) return status_fail(ERR_MEMORY, "out of memory for %d samples", s->samples);
    qsort(s->sample, (size_t)s->samples, sizeof *s->sample, by_name);
    for (int32_t k = 0; k < s->samples; k++) {
        const Sample *x = &s->sample[k];
        if (k == 0 || strcmp(x->name, x[-1].name)) s->quantity[s->quantities++] = (Quantity){x->name, x, 0, 0, 0, 0};
        Quantity *q = &s->quantity[s->quantities - 1];
        q->runs++;
        q->rms += x->error * x->error;
        q->least = q->runs == 1 ? x->error : fmin(q->least, x->error);
        q->most = fmax(q->most, x->error);
    }
    for (int32_t k = 0; k < s->quantities; k++) s->quantity[k].rms = sqrt(s->quantity[k].rms / s->quantity[k].runs);
    return OK;
}

Status parity_spread_open(const char *path, ParitySpread **out)
{
    char line[1024];
    *out = NULL;
    if (!path) return OK;
    FILE *file = fopen(path, "r");
    if (!file) return status_fail_at(ERR_IO, path, 0, "cannot be opened");
    ParitySpread *s = calloc(1, sizeof *s);
    Status status = s ? OK : status_fail(ERR_MEMORY, "out of memory");
    while (status == OK && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        status = take_line(s, line);
    }
    fclose(file);
    if (status == OK && s->samples == 0)
        status = status_fail_at(ERR_INPUT, path, 0, "no line of a run (expected \"name error limit ok\")");
    if (status == OK) status = group_runs(s);
    if (status == OK)
        *out = s;
    else
        parity_spread_close(&s);
    return status;
}

double parity_spread_limit(ParitySpread *s, const char *name, double error, double other)
{
    const Quantity *q = bsearch(name, s->quantity, (size_t)s->quantities, sizeof *q, name_against);
    if (!q) return other;
    if (varies(q) && s->ratios < s->samples) s->ratio[s->ratios++] = error / q->rms;
    return gsl_cdf_tdist_Qinv(CHANCE / (2.0 * s->quantities), q->runs) * q->rms + RESULT_ROUNDING;
}

/* The median of error / rms over the quantities of run `run`. */
static double median_of_run(const ParitySpread *s, int run, double *room)
{
    int32_t count = 0;
    for (int32_t k = 0; k < s->quantities; k++)
        if (run < s->quantity[k].runs && varies(&s->quantity[k]))
            room[count++] = s->quantity[k].sample[run].error / s->quantity[k].rms;
    return median(room, count);
}

void parity_spread_report(Parity *parity)
{
    ParitySpread *s = parity->spread;
    double sum = 0, square = 0, *room = s ? malloc((size_t)s->quantities * sizeof *room) : NULL;
    int runs = 0;
    if (!room) return;
    for (int32_t k = 0; k < s->quantities; k++) runs = s->quantity[k].runs > runs ? s->quantity[k].runs : runs;
    for (int run = 0; run < runs; run++) {
        double m = median_of_run(s, run, room);
        sum += m;
        square += m * m;
    }
    free(room);
    double mean = sum / runs, deviation = runs > 1 ? sqrt(fmax(0, square - runs * mean * mean) / (runs - 1)) : 0;
    double limit = mean + (runs > 1 ? gsl_cdf_tdist_Qinv(CHANCE, runs - 1) * deviation * sqrt(1 + 1.0 / runs) : 0);
    parity_report(parity, "median of error / root mean square of the samples", median(s->ratio, s->ratios), limit);
}

void parity_spread_close(ParitySpread **spread)
{
    ParitySpread *s = *spread;
    if (!s) return;
    arena_free(&s->memory);
    free(s->sample);
    free(s);
    *spread = NULL;
}
