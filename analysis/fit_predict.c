/* From a fitted model to step times with intervals. */
#include "analysis/fit_internal.h"

#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <stdlib.h>

enum { FLAG_BEYOND = 8 };

/* The fitted drift already carries tau across the measured range; what may set in only beyond it gets a quarter of that
 * variance. */
#define BEYOND_SHARE 0.5

StepParts fit_evaluate(const FitModel *model, const StepShape *shape)
{
    double param[FIT_PARAM_COUNT];
    fit_clean_params(model->param, param);
    return fit_parts(model->form, param, model->has_loader, model->has_host, model->n_max, shape);
}

static Status check_shape(const StepShape *s)
{
    if (!(s->ranks >= 1) || !(s->work > 0) || !(s->latency_s >= 0) || !(s->wire_s >= 0) ||
        !isfinite(s->ranks + s->work + s->latency_s + s->wire_s))
        return status_fail(ERR_USAGE,
                           "prediction asked for %g ranks with a work share of %g and communication of %g + %g s",
                           s->ranks, s->work, s->latency_s, s->wire_s);
    return OK;
}

/* A deviate of few degrees of freedom has no bound, and infinity times a phase of 0 is no number: no phase of a step is
 * 1e13 times another. */
static double factor(double exponent)
{
    return exp(fmin(fmax(exponent, -30), 30));
}

/* Factor by which a phase of a configuration lies off the drawn form. */
static double off(const FitLack *lack, const double *z, FitPhase phase)
{
    return factor(lack[phase].sd * z[FIT_Z_LACK + phase]);
}

/* A wait of a configuration, `lack` of the drawn form's own estimate off the drawn one. */
static double wait_s(const FitCandidate *form, FitPhase phase, FitParam param, double drawn_s, const double *z)
{
    if (!form->lack[phase].configurations || !(drawn_s > 0)) return drawn_s;
    return fmax(0, drawn_s + form->lack[phase].sd * z[FIT_Z_LACK + phase] * exp(form->param[param]));
}

Status fit_predict_draws(const FitModel *model, const StepShape *shape, double extra_sd, double *step_s)
{
    TRY(check_shape(shape));
    double beyond = fmax(0, log(shape->ranks / model->n_max) / log(8));
    for (int b = 0; b < model->draws; b++) {
        double param[FIT_PARAM_COUNT];
        const double *z = model->draw_z + (size_t)b * FIT_Z_COUNT;
        const FitCandidate *form = &model->candidate[model->draw_form[b]];
        const FitLack *lack = form->lack;
        fit_clean_params(model->draw + (size_t)b * FIT_PARAM_COUNT, param);
        StepParts parts =
            fit_parts((FitForm)model->draw_form[b], param, model->has_loader, model->has_host, model->n_max, shape);
        /* communication x exp(tau z log8(N / N_max)): forms without a communication term miss it in all they have */
        double growth = BEYOND_SHARE * model->tau * z[FIT_Z_BEYOND] * beyond;
        double time = (parts.serial_s + parts.compute_s) * off(lack, z, FIT_PHASE_COMPUTE) +
                      (parts.comm_s + parts.straggler_s) * factor(growth) * off(lack, z, FIT_PHASE_COMM) +
                      wait_s(form, FIT_PHASE_LOADER, FIT_LOADER, parts.loader_s, z) +
                      wait_s(form, FIT_PHASE_HOST, FIT_HOST, parts.host_s, z);
        step_s[b] =
            time * off(lack, z, FIT_PHASE_STEP) * factor(model->noise_sd * z[FIT_Z_NOISE] + extra_sd * z[FIT_Z_EXTRA]);
    }
    return OK;
}

Status fit_predict(const FitModel *model, const StepShape *shape, double extra_sd, FitInterval *out)
{
    double *step_s = malloc((size_t)model->draws * sizeof *step_s);
    if (!step_s) return status_fail(ERR_MEMORY, "predict: out of memory");
    Status status = fit_predict_draws(model, shape, extra_sd, step_s);
    if (status == OK) {
        FitInterval r = {.parts = fit_evaluate(model, shape), .n_over_nmax = shape->ranks / model->n_max};
        gsl_sort(step_s, 1, (size_t)model->draws);
        /* the point estimate belongs to the chosen form and draws may come from others: the interval holds both */
        r.lo90_s = fmin(gsl_stats_quantile_from_sorted_data(step_s, 1, (size_t)model->draws, 0.05), r.parts.step_s);
        r.hi90_s = fmax(gsl_stats_quantile_from_sorted_data(step_s, 1, (size_t)model->draws, 0.95), r.parts.step_s);
        r.flagged = r.n_over_nmax > FLAG_BEYOND;
        *out = r;
    }
    free(step_s);
    return status;
}
