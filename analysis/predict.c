#include "analysis/predict.h"

#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <stdlib.h>

#include "analysis/collective.h"

static Status check_fit(const Machine *m, int64_t dp, int64_t dap)
{
    if (dp < 1 || dap < 1 || dp > INT64_MAX / dap || dp * dap > machine_devices(m))
        return status_fail(ERR_USAGE, "%lld x %lld ranks do not fit on %s (%lld devices)", (long long)dp,
                           (long long)dap, m->name, (long long)machine_devices(m));
    return OK;
}

Status predict_shape(const OpPrices *prices, const Machine *machine, const StepCost *cost, int64_t dp,
                     double reference_s, StepShape *shape_out, StepPrice *price_out)
{
    StepPrice price;
    if (!(reference_s > 0))
        return status_fail(ERR_USAGE, "prediction relative to a reference of %g s (expected above 0)", reference_s);
    TRY(opprice_step(prices, machine, cost, dp, &price));
    if (!(price.compute_s > 0)) return status_fail(ERR_INPUT, "prediction of a step without any computation");
    *shape_out = (StepShape){.ranks = (double)(dp * cost->dap),
                             .work = price.compute_s / reference_s,
                             .latency_s = price.latency_s,
                             .wire_s = price.wire_s};
    if (price_out) *price_out = price;
    return OK;
}

Status predict_plain_shape(const Machine *machine, const PlainStep *step, int64_t dp, int64_t dap, StepShape *shape_out)
{
    TRY(check_fit(machine, dp, dap));
    CollectiveTime data, model;
    collective_time(machine, COLLECTIVE_ALL_REDUCE, step->gradient_bytes, group_data(machine, dp, dap, step->in_graph),
                    &data);
    collective_time(machine, step->model_kind, step->model_bytes, group_model(machine, dap, step->in_graph), &model);
    *shape_out = (StepShape){.ranks = (double)(dp * dap),
                             .work = 1 / (double)dap,
                             .latency_s = data.latency_s + step->model_collectives * model.latency_s,
                             .wire_s = data.wire_s + step->model_collectives * model.wire_s};
    return OK;
}

Status predict_row(const FitModel *fit, const PredictRequest *request, Arena *arena, PredictionRow *row_out)
{
    TRY(check_fit(request->machine, request->dp, request->dap));
    const Machine *m = request->machine;
    double extra = request->extra_sd;
    if (request->other_machine) {
        /* a step mixes products and copies: the wider of the two spreads, and the transfer of efficiencies */
        double ceiling = fmax(m->device.copy_bytes_per_s.spread, m->device.f32_flops.spread);
        if (m->device.bf16_flops.value > 0)
            ceiling = fmax(m->device.copy_bytes_per_s.spread, m->device.bf16_flops.spread);
        extra = sqrt(extra * extra + ceiling * ceiling + OPPRICE_OTHER_MACHINE_SD * OPPRICE_OTHER_MACHINE_SD);
    }
    FitInterval interval;
    TRY(fit_predict(fit, &request->shape, extra, &interval));
    const char *reasons[] = {interval.flagged ? "beyond 8 x the largest measured rank count" : "",
                             request->other_machine ? "another machine than the measured one" : "",
                             request->outside ? request->outside : ""};
    char *note = arena_strdup(arena, "");
    for (int i = 0; i < 3 && note; i++)
        if (*reasons[i]) note = arena_printf(arena, "%s%s%s", note, *note ? "; " : "", reasons[i]);
    if (!note) return status_fail(ERR_MEMORY, "predict: out of memory");
    PredictionRow row = {.machine = m->name,
                         .gpus = request->dp * request->dap,
                         .dp = request->dp,
                         .dap = request->dap,
                         .step_s = interval.parts.step_s,
                         .lo90_s = interval.lo90_s,
                         .hi90_s = interval.hi90_s,
                         .n_over_nmax = interval.n_over_nmax,
                         .flagged = note[0] != '\0',
                         .serial_s = interval.parts.serial_s,
                         .compute_s = interval.parts.compute_s,
                         .comm_exposed_s = interval.parts.comm_s,
                         .straggler_s = interval.parts.straggler_s,
                         .loader_s = interval.parts.loader_s,
                         .host_s = interval.parts.host_s,
                         .note = note};
    for (int s = 0; s < SCHEMA_SWITCH_COUNT; s++) row.switches[s] = request->switches[s];
    *row_out = row;
    return OK;
}

/* --- time to train
 * ---------------------------------------------------------------------------------------------------- */

static Status check_plan(const TrainPlan *p, double step_s)
{
    if (!(p->samples_to_target > 0) || !(p->global_batch > 0) || !(step_s > 0))
        return status_fail(ERR_USAGE, "time to train from %g samples, a batch of %g and steps of %g s",
                           p->samples_to_target, p->global_batch, step_s);
    if (p->samples_sd < 0 || p->startup_s < 0 || p->warmup_extra_s < 0 || p->eval_s < 0 || p->first_gap_s < 0 ||
        p->gap_s < 0 || p->eval_every < 0)
        return status_fail(ERR_USAGE, "time to train from negative parts");
    return OK;
}

/* Training goes on in whole cycles: the target is seen only where an evaluation looks. */
static TrainTime add_up(const TrainPlan *p, double samples, double step_s)
{
    TrainTime t = {.startup_s = p->startup_s, .warmup_s = p->warmup_extra_s};
    t.steps = ceil(samples / p->global_batch - 1e-9);
    if (p->eval_every > 0) {
        double cycle = (double)p->eval_every;
        t.evaluations = (int64_t)ceil(t.steps / cycle - 1e-9);
        if (t.evaluations < 1) t.evaluations = 1;
        t.steps = (double)t.evaluations * cycle;
        /* synchronous: the gap after the last cycle is the deciding evaluation itself. Asynchronous: that evaluation
         * runs on other GPUs while training goes on, and ends the clock eval_s after its cycle */
        double gaps = (double)(t.evaluations - 1);
        t.gaps_s = (t.evaluations > 1 ? p->first_gap_s : 0) + (gaps > 1 ? gaps - 1 : 0) * p->gap_s;
        t.eval_s = p->async_eval ? p->gap_s + p->eval_s : p->eval_s;
    }
    t.steps_s = t.steps * step_s;
    t.total_s = t.startup_s + t.warmup_s + t.steps_s + t.gaps_s + t.eval_s;
    return t;
}

Status predict_train_time(const TrainPlan *plan, double step_s, const double *draws, int count, uint64_t seed,
                          TrainTime *out)
{
    TRY(check_plan(plan, step_s));
    TrainTime result = add_up(plan, plan->samples_to_target, step_s);
    int n = draws && count > 0 ? count : 2000;
    double *total = malloc((size_t)n * sizeof *total);
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    if (!total || !rng) {
        free(total);
        if (rng) gsl_rng_free(rng);
        return status_fail(ERR_MEMORY, "time to train: out of memory");
    }
    gsl_rng_set(rng, (unsigned long)(seed + 1));
    for (int i = 0; i < n; i++) {
        double samples = plan->samples_to_target * exp(plan->samples_sd * gsl_ran_gaussian_ziggurat(rng, 1));
        total[i] = add_up(plan, samples, draws && count > 0 ? draws[i] : step_s).total_s;
    }
    gsl_sort(total, 1, (size_t)n);
    result.lo90_s = fmin(result.total_s, gsl_stats_quantile_from_sorted_data(total, 1, (size_t)n, 0.05));
    result.hi90_s = fmax(result.total_s, gsl_stats_quantile_from_sorted_data(total, 1, (size_t)n, 0.95));
    gsl_rng_free(rng);
    free(total);
    *out = result;
    return OK;
}
