#include "analysis/points.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

Status points_check(const RunRow *rows, int64_t count)
{
    if (count < 1) return status_fail(ERR_INPUT, "no runs");
    for (int64_t i = 1; i < count; i++) {
        const RunRow *a = &rows[0], *b = &rows[i];
        if (strcmp(a->backend, b->backend))
            return status_fail_at(ERR_INPUT, b->file, b->line,
                                  "backend \"%.40s\", but %.200s:%ld has \"%.40s\": fit one backend at a time",
                                  b->backend, a->file, a->line, a->backend);
        if (strcmp(a->device, b->device))
            return status_fail_at(ERR_INPUT, b->file, b->line,
                                  "device \"%.60s\", but %.200s:%ld has \"%.60s\": fit one machine at a time",
                                  b->device, a->file, a->line, a->device);
        if (a->experiment && b->experiment && strcmp(a->experiment, b->experiment))
            return status_fail_at(ERR_INPUT, b->file, b->line,
                                  "experiment \"%.60s\", but %.200s:%ld has \"%.60s\": fit one model at a time",
                                  b->experiment, a->file, a->line, a->experiment);
        for (int64_t j = 0; j < i; j++)
            if (*b->provenance && !strcmp(rows[j].provenance, b->provenance))
                return status_fail_at(
                    ERR_INPUT, b->file, b->line,
                    "provenance %.40s is also in %.200s:%ld: the same run twice would count as a repeat", b->provenance,
                    rows[j].file, rows[j].line);
    }
    return OK;
}

void points_fill(const RunRow *row, FitPoint *out)
{
    const double *phase = row->phase_s;
    double eval = isfinite(phase[PHASE_EVAL]) ? phase[PHASE_EVAL] : 0;
    *out = (FitPoint){.step_s = row->step_s_mean - eval, .id = row->run_id};
    out->compute_s =
        phase[PHASE_FORWARD_NOGRAD] + phase[PHASE_FORWARD] + phase[PHASE_BACKWARD] + phase[PHASE_OPTIMIZER];
    out->comm_s = phase[PHASE_COMM_EXPOSED];
    out->loader_s = phase[PHASE_DATA_WAIT];
    /* whatever the other phases do not explain is overhead of the host; never negative through rounding */
    out->host_s = fmax(0, out->step_s - out->compute_s - out->comm_s - out->loader_s);
    if (isnan(out->compute_s + out->comm_s + out->loader_s)) out->host_s = NAN;
}

static int by_step(const void *a, const void *b)
{
    const StepRow *x = *(const StepRow *const *)a, *y = *(const StepRow *const *)b;
    return (x->step > y->step) - (x->step < y->step);
}

static double own_work(const StepRow *row)
{
    return row->phase_s[PHASE_FORWARD_NOGRAD] + row->phase_s[PHASE_FORWARD] + row->phase_s[PHASE_BACKWARD] +
           row->phase_s[PHASE_OPTIMIZER];
}

Status points_noise_prior(const StepRow *steps, int64_t count, FitPrior *out)
{
    const StepRow **sorted = malloc((size_t)(count > 0 ? count : 1) * sizeof *sorted);
    if (!sorted) return status_fail(ERR_MEMORY, "noise of ranks: out of memory");
    for (int64_t i = 0; i < count; i++) sorted[i] = &steps[i];
    qsort(sorted, (size_t)count, sizeof *sorted, by_step);
    double square = 0;
    int64_t freedom = 0, used = 0;
    for (int64_t from = 0, to; from < count; from = to) {
        double sum = 0, squares = 0;
        for (to = from; to < count && sorted[to]->step == sorted[from]->step; to++) {
            double work = own_work(sorted[to]);
            sum += work, squares += work * work;
        }
        double n = (double)(to - from), mean = sum / n;
        if (n < 2 || !(mean > 0)) continue; /* NAN phases fall out here as well */
        square += fmax(0, squares - n * mean * mean) / (mean * mean);
        freedom += to - from - 1;
        used++;
    }
    free(sorted);
    if (used < 10 || !(square > 0))
        return status_fail(ERR_INPUT, "noise of ranks: %lld steps with timed phases of two or more ranks (expected 10)",
                           (long long)used);
    /* standard error of a logarithm of a standard deviation: 1 / sqrt(2 nu); steps of one job share its placement, so
     * never better than 10 % */
    *out = (FitPrior){.param = FIT_NOISE,
                      .mean = 0.5 * log(square / (double)freedom),
                      .sd = fmax(0.1, 1 / sqrt(2.0 * (double)freedom)),
                      .source = "per-rank step times"};
    return OK;
}
