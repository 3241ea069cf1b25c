/* parity --spread FILE: what rounding may do to a quantity, from what it did.
 *
 * FILE holds the lines of K runs on the CPU that rounded at random (--dither), each a fair sample of what
 * roundings do to a quantity on its way through the program: amplify, cancel, flip a bin. A run that rounds to nearest
 * has errors of the same kind and not larger ones. How their tails fall off nobody knows (Adam's second moments after
 * three steps are far from normal: limits from Student's distribution fail in 6 of 100 such runs), so nothing is
 * assumed but that this run is one more of the kind. The score of a run is its largest
 *
 *   (error - one rounding of the result itself) / root mean square of the other runs' errors
 *
 * over all quantities; the largest score of the K runs, times each quantity's root mean square, is the limit. One more
 * run of the kind exceeds it anywhere with a chance of about 1 / (K + 1) (conformal prediction: V. Vovk, A. Gammerman,
 * G. Shafer, Algorithmic Learning in a Random World, 2005; "about", as each of the K is scored against one run fewer).
 *
 * That bounds each alone. Faults that make many quantities a little worse show in two figures of error / root mean
 * square over all quantities whose errors vary: what 99 of 100 stay below is to be no larger than in the K runs, and
 * the median no larger than their mean plus t(K - 1, 1 - CHANCE) of their standard deviations. All in all a right
 * program fails in about 2 / (K + 1) + CHANCE of all cases.
 *
 * In f32 the K runs compute in f64 and round an op's result once; the sums within an op, which f32 rounds as well, they
 * do not have. The two figures, which would take such sums for faults, are not asked for, and limits are taken only
 * where none is stated (parity_report_unstated): elsewhere what the reference reaches holds. */
#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/array.h"
#include "tests/parity.h"

static const double CHANCE = 0.01;

typedef struct Sample {
    const char *name;
    double error;
    int32_t order; /* in the file: the k-th of a name is that of run k */
} Sample;

typedef struct Quantity {
    const char *name;
    const Sample *sample;
    int runs;
    double square, rms, least, most; /* of the errors; square: their sum of squares */
} Quantity;

struct ParitySpread {
    Precision precision;
    double rounding; /* of a result by itself: two units of roundoff, as dither rounds up or down */
    Sample *sample;
    Quantity *quantity;
    double *ratio; /* error / rms of this run's quantities */
    int32_t samples, room, quantities, ratios;
    int runs;
    double score; /* the largest of the runs */
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

/* What a share of the values stays below; sorts them. */
static double quantile(double *x, int32_t count, double share)
{
    qsort(x, (size_t)count, sizeof *x, by_value);
    return count ? x[(int32_t)(share * (count - 1) + 0.5)] : 0;
}

/* Of a run, against the others. */
static double score(const ParitySpread *s, const Quantity *q, int run)
{
    double error = q->sample[run].error, others = q->square - error * error;
    if (q->runs < 2 || !varies(q) || others <= 0 || error <= s->rounding) return 0;
    return (error - s->rounding) / sqrt(others / (q->runs - 1));
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
        if (k == 0 || strcmp(x->name, x[-1].name))
            s->quantity[s->quantities++] = (Quantity){.name = x->name, .sample = x};
        Quantity *q = &s->quantity[s->quantities - 1];
        q->runs++;
        q->square += x->error * x->error;
        q->least = q->runs == 1 ? x->error : fmin(q->least, x->error);
        q->most = fmax(q->most, x->error);
    }
    for (int32_t k = 0; k < s->quantities; k++) {
        Quantity *q = &s->quantity[k];
        q->rms = sqrt(q->square / q->runs);
        s->runs = q->runs > s->runs ? q->runs : s->runs;
        for (int run = 0; run < q->runs; run++) s->score = fmax(s->score, score(s, q, run));
    }
    return OK;
}

Status parity_spread_open(const char *path, Precision precision, ParitySpread **out)
{
    char line[1024];
    *out = NULL;
    if (!path) return OK;
    FILE *file = fopen(path, "r");
    if (!file) return status_fail_at(ERR_IO, path, 0, "cannot be opened");
    ParitySpread *s = calloc(1, sizeof *s);
    Status status = s ? OK : status_fail(ERR_MEMORY, "out of memory");
    if (s) s->precision = precision, s->rounding = precision == PRECISION_BF16 ? 0x1p-8 : 0x1p-23;
    while (status == OK && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        status = take_line(s, line);
    }
    fclose(file);
    if (status == OK && s->samples == 0)
        status = status_fail_at(ERR_INPUT, path, 0, "no line of a run (expected \"name error limit ok\")");
    if (status == OK) status = group_runs(s);
    if (status == OK && s->runs < 2)
        status = status_fail_at(ERR_INPUT, path, 0, "one run (expected the lines of several, see --dither)");
    if (status == OK)
        *out = s;
    else
        parity_spread_close(&s);
    return status;
}

double parity_spread_limit(ParitySpread *s, const char *name, double error, double other, bool stated)
{
    if (stated && s->precision != PRECISION_BF16) return other;
    const Quantity *q = bsearch(name, s->quantity, (size_t)s->quantities, sizeof *q, name_against);
    if (!q) return other;
    if (varies(q) && s->ratios < s->samples) s->ratio[s->ratios++] = error / q->rms;
    return s->score * q->rms + s->rounding;
}

/* Of error / rms over the quantities of run `run`. */
static double quantile_of_run(const ParitySpread *s, int run, double share, double *room)
{
    int32_t count = 0;
    for (int32_t k = 0; k < s->quantities; k++)
        if (run < s->quantity[k].runs && varies(&s->quantity[k]))
            room[count++] = s->quantity[k].sample[run].error / s->quantity[k].rms;
    return quantile(room, count, share);
}

void parity_spread_report(Parity *parity)
{
    ParitySpread *s = parity->spread;
    bool asked = s && s->precision == PRECISION_BF16;
    double sum = 0, square = 0, largest = 0, *room = asked ? malloc((size_t)s->quantities * sizeof *room) : NULL;
    if (!room) return;
    for (int run = 0; run < s->runs; run++) {
        double m = quantile_of_run(s, run, 0.5, room);
        sum += m;
        square += m * m;
        largest = fmax(largest, quantile_of_run(s, run, 0.99, room));
    }
    free(room);
    int runs = s->runs;
    double mean = sum / runs, deviation = runs > 1 ? sqrt(fmax(0, square - runs * mean * mean) / (runs - 1)) : 0;
    double limit = mean + (runs > 1 ? gsl_cdf_tdist_Qinv(CHANCE, runs - 1) * deviation * sqrt(1 + 1.0 / runs) : 0);
    parity_report(parity, "median of error / root mean square of the samples", quantile(s->ratio, s->ratios, 0.5),
                  limit);
    parity_report(parity, "what 99 of 100 of these stay below", quantile(s->ratio, s->ratios, 0.99), largest);
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
