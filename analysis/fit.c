#include "analysis/fit_internal.h"

#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DRAWS_DEFAULT = 1000, DRAWS_LIMIT = 1000000, POINT_LIMIT = 100000, CHAIN_DRAWS = 120 };

static Status check_point(const FitPoint *p, int index)
{
    const StepShape *s = &p->shape;
    const char *id = p->id ? p->id : "";
    if (!isfinite(p->step_s) || p->step_s <= 0)
        return status_fail(ERR_INPUT, "fit: point %d %s has a step time of %g s (expected above 0)", index + 1, id,
                           p->step_s);
    if (!(s->ranks >= 1 && s->ranks <= 1e9) || !(s->work > 0 && s->work <= 1e6))
        return status_fail(ERR_INPUT, "fit: point %d %s has %g ranks and a work share of %g", index + 1, id, s->ranks,
                           s->work);
    if (!(s->latency_s >= 0 && s->wire_s >= 0) || !isfinite(s->latency_s + s->wire_s))
        return status_fail(ERR_INPUT, "fit: point %d %s has communication terms of %g and %g s", index + 1, id,
                           s->latency_s, s->wire_s);
    if (p->compute_s < 0 || p->comm_s < 0 || p->loader_s < 0 || p->host_s < 0 || isinf(p->compute_s) ||
        isinf(p->comm_s))
        return status_fail(ERR_INPUT, "fit: point %d %s has a phase that is negative or infinite", index + 1, id);
    return OK;
}

static bool same_shape(const FitPoint *a, const FitPoint *b)
{
    return a->shape.ranks == b->shape.ranks && a->shape.work == b->shape.work &&
           a->shape.latency_s == b->shape.latency_s && a->shape.wire_s == b->shape.wire_s;
}

/* Pooled standard deviation of the logarithm between repeats of one configuration; NAN without repeats. */
static double repeat_sd(const FitPoint *point, int count, size_t member)
{
    double square = 0;
    int freedom = 0;
    for (int i = 0; i < count; i++) {
        bool first = true;
        double sum = 0, squares = 0;
        int runs = 0;
        for (int j = 0; j < count; j++) {
            if (!same_shape(&point[i], &point[j])) continue;
            if (j < i) first = false;
            double value = *(const double *)((const char *)&point[j] + member);
            if (!(value > FIT_TINY_S)) continue;
            sum += log(value);
            squares += log(value) * log(value);
            runs++;
        }
        if (!first || runs < 2) continue;
        square += fmax(0, squares - sum * sum / runs);
        freedom += runs - 1;
    }
    return freedom > 0 ? sqrt(square / freedom) : NAN;
}

static double at_least(double value, double otherwise, double floor)
{
    return fmax(isnan(value) ? otherwise : value, floor);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Status prepare(const FitPoint *point, int count, const FitOptions *options, FitSetup *setup)
{
    if (count < 1 || count > POINT_LIMIT)
        return status_fail(ERR_INPUT, "fit: %d measured runs (expected 1 to %d)", count, (int)POINT_LIMIT);
    *setup = (FitSetup){.point = point, .points = count, .options = options};
    setup->phases = setup->has_loader = setup->has_host = !options->totals_only;
    double loader = 0, host = 0, total = 0;
    for (int i = 0; i < count; i++) {
        const FitPoint *p = &point[i];
        TRY(check_point(p, i));
        if (!(p->compute_s > 0) || isnan(p->comm_s)) setup->phases = false;
        if (isnan(p->loader_s)) setup->has_loader = false;
        if (isnan(p->host_s)) setup->has_host = false;
        if (p->comm_s > 1e-3 * p->step_s) setup->comm_matters = true;
        loader += p->loader_s, host += p->host_s, total += p->step_s;
    }
    /* phases that hardly exist are not worth a parameter */
    if (!(loader > 1e-3 * total)) setup->has_loader = false;
    if (!(host > 1e-3 * total)) setup->has_host = false;
    if (!setup->phases) setup->has_loader = setup->has_host = setup->comm_matters = false;
    setup->noise_sd = at_least(repeat_sd(point, count, offsetof(FitPoint, step_s)), 0.02, FIT_SD_FLOOR);
    setup->phase_sd = at_least(repeat_sd(point, count, offsetof(FitPoint, compute_s)), 0.02, FIT_SD_FLOOR);
    setup->comm_sd = at_least(repeat_sd(point, count, offsetof(FitPoint, comm_s)), 0.1, 0.02);
    setup->count = malloc((size_t)count * sizeof *setup->count);
    if (!setup->count) return status_fail(ERR_MEMORY, "fit: out of memory");
    for (int i = 0; i < count; i++) setup->count[i] = point[i].shape.ranks;
    qsort(setup->count, (size_t)count, sizeof *setup->count, compare_doubles);
    for (int i = 0; i < count; i++)
        if (i == 0 || setup->count[i] != setup->count[i - 1]) setup->count[setup->counts++] = setup->count[i];
    setup->n_min = setup->count[0];
    setup->n_max = setup->count[setup->counts - 1];
    return OK;
}

/* Diagnostics at the solution of the chosen form: J'J gives correlations and leverage, its singular values the
 * condition number. */
static Status diagnose_jacobian(FitModel *model, const FitProblem *problem, const double *jacobian)
{
    FitSpectrum f;
    TRY(fit_decompose(problem, jacobian, &f));
    size_t cols = (size_t)problem->free_count;
    double smallest = gsl_vector_get(f.s, cols - 1);
    model->condition = smallest > 0 ? gsl_vector_get(f.s, 0) / smallest : INFINITY;
    for (int a = 0; a < FIT_PARAM_COUNT; a++)
        for (int b = 0; b < FIT_PARAM_COUNT; b++) {
            int i = problem->index[a], j = problem->index[b];
            if (i < 0 || j < 0) continue;
            double ab = 0, aa = 0, bb = 0;
            for (size_t k = 0; k < cols; k++) {
                double inverse = pow(fmax(gsl_vector_get(f.s, k), 1e-300), -2);
                double vi = gsl_matrix_get(f.v, (size_t)i, k), vj = gsl_matrix_get(f.v, (size_t)j, k);
                ab += vi * vj * inverse, aa += vi * vi * inverse, bb += vj * vj * inverse;
            }
            model->correlation[a][b] = ab / sqrt(aa * bb);
        }
    for (int r = 0, k = 0; r < problem->rows; r++)
        if (problem->row[r].kind < ROW_PRIOR) model->residual[k++].leverage = fit_leverage(&f, r);
    fit_spectrum_free(&f);
    return OK;
}

static void take_residuals(FitModel *model, const FitProblem *problem, const FitSolution *fit)
{
    for (int r = 0; r < problem->rows; r++) {
        const FitRow *row = &problem->row[r];
        if (row->kind >= ROW_PRIOR) continue;
        StepParts parts = fit_row_parts(problem, fit, row);
        FitResidual *out = &model->residual[model->residuals++];
        *out = (FitResidual){.point = row->point,
                             .what = FIT_PHASE_NAMES[row->kind],
                             .measured_s = row->unit_s > 0 ? row->target * row->unit_s : exp(row->target),
                             .fitted_s = fit_row_seconds(row, &parts)};
        out->standardized = (row->target - fit_row_value(row, &parts)) / row->sd;
    }
}

static Status final_fit(const FitSetup *setup, FitModel *model)
{
    int limit = FIT_ROW_LIMIT(setup->points);
    FitRow *row = arena_array(&model->arena, (size_t)limit, sizeof *row);
    double *jacobian = arena_array(&model->arena, (size_t)limit * FIT_PARAM_COUNT, sizeof *jacobian);
    model->residual = arena_array(&model->arena, (size_t)limit, sizeof *model->residual);
    if (!row || !jacobian || !model->residual) return status_fail(ERR_MEMORY, "fit: out of memory");
    FitProblem problem;
    FitSolution fit;
    fit_problem_build(setup, model->form, INFINITY, row, &problem);
    TRY(fit_solve(&problem, &fit, jacobian));
    memcpy(model->param, fit.param, sizeof model->param);
    model->has_loader = problem.free[FIT_LOADER];
    model->has_host = problem.free[FIT_HOST];
    take_residuals(model, &problem, &fit);
    /* all rows count, the priors' included: their parameters are free */
    int freedom = problem.rows - problem.free_count;
    model->reduced_chi2 = freedom > 0 ? fit.chi2 / freedom : NAN;
    return diagnose_jacobian(model, &problem, jacobian);
}

/* gsl_ran_tdist rejects nearly all it draws just above two degrees of freedom and may not come back. */
static double draw_student(gsl_rng *rng, double freedom)
{
    double normal = gsl_ran_gaussian_ziggurat(rng, 1);
    return normal / sqrt(gsl_ran_chisq(rng, freedom) / freedom);
}

Status fit_finish_draws(FitModel *model)
{
    static const double SPAN = 2 * 1.6448536269514722; /* standard deviations of a 90 % interval */
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    model->draw_z = arena_array(&model->arena, (size_t)model->draws * FIT_Z_COUNT, sizeof *model->draw_z);
    if (!rng || !model->draw_z) {
        if (rng) gsl_rng_free(rng);
        return status_fail(ERR_MEMORY, "fit: out of memory for %d draws", model->draws);
    }
    gsl_rng_set(rng, (unsigned long)(model->seed ^ 0x9e3779b9u));
    for (int b = 0; b < model->draws; b++) {
        double *z = model->draw_z + (size_t)b * FIT_Z_COUNT;
        const FitLack *lack = model->candidate[model->draw_form[b]].lack;
        for (int i = 0; i < FIT_Z_LACK; i++) z[i] = gsl_ran_gaussian_ziggurat(rng, 1);
        for (int k = 0; k < FIT_PHASE_COUNT; k++)
            z[FIT_Z_LACK + k] = lack[k].configurations > 0 ? draw_student(rng, fit_lack_freedom(&lack[k])) : 0;
    }
    gsl_rng_free(rng);
    double *value = malloc((size_t)model->draws * sizeof *value);
    if (!value) return status_fail(ERR_MEMORY, "fit: out of memory for %d draws", model->draws);
    for (int i = 0; i < FIT_PARAM_COUNT; i++) {
        size_t used = 0;
        for (int b = 0; b < model->draws; b++) {
            double drawn = model->draw[(size_t)b * FIT_PARAM_COUNT + (size_t)i];
            if (!isnan(drawn) && model->draw_form[b] == (int)model->form) value[used++] = drawn;
        }
        gsl_sort(value, 1, used);
        model->param_sd[i] = used > 1 ? (gsl_stats_quantile_from_sorted_data(value, 1, used, 0.95) -
                                         gsl_stats_quantile_from_sorted_data(value, 1, used, 0.05)) /
                                            SPAN
                                      : NAN;
    }
    free(value);
    return OK;
}

static Status fit_setup(FitSetup *setup, FitModel *model)
{
    const FitOptions *o = setup->options;
    model->draws = o->draws > 0 ? (o->draws < DRAWS_LIMIT ? o->draws : DRAWS_LIMIT) : DRAWS_DEFAULT;
    model->seed = o->seed;
    model->n_min = setup->n_min, model->n_max = setup->n_max;
    model->counts = setup->counts, model->points = setup->points;
    model->noise_sd = setup->noise_sd;
    model->backend = model->device = "";
    model->coverage = NAN;
    model->draw = arena_array(&model->arena, (size_t)model->draws * FIT_PARAM_COUNT, sizeof *model->draw);
    model->draw_form = arena_array(&model->arena, (size_t)model->draws, sizeof *model->draw_form);
    if (!model->draw || !model->draw_form)
        return status_fail(ERR_MEMORY, "fit: out of memory for %d draws", model->draws);
    TRY(fit_choose(setup, model));
    TRY(final_fit(setup, model));
    TRY(fit_bootstrap(setup, model));
    return fit_finish_draws(model);
}

/* Interval check inside the data: refit on the smaller counts, ask whether the next one falls inside. */
static Status chain_coverage(const FitSetup *setup, FitModel *model)
{
    FitPoint *part = malloc((size_t)setup->points * sizeof *part);
    if (!part) return status_fail(ERR_MEMORY, "fit: out of memory");
    Status status = OK;
    int inside = 0, total = 0;
    for (int k = 1; k + 1 < setup->counts && status == OK; k++) {
        int used = 0;
        for (int i = 0; i < setup->points; i++)
            if (setup->point[i].shape.ranks <= setup->count[k]) part[used++] = setup->point[i];
        FitOptions options = *setup->options;
        options.draws = CHAIN_DRAWS;
        FitSetup sub;
        FitModel *m = calloc(1, sizeof *m);
        status = m ? prepare(part, used, &options, &sub) : status_fail(ERR_MEMORY, "fit: out of memory");
        if (status == OK) {
            status = fit_setup(&sub, m);
            free(sub.count);
        }
        for (int i = 0; i < setup->points && status == OK; i++) {
            if (setup->point[i].shape.ranks != setup->count[k + 1]) continue;
            FitInterval interval;
            status = fit_predict(m, &setup->point[i].shape, 0, &interval);
            inside += setup->point[i].step_s >= interval.lo90_s && setup->point[i].step_s <= interval.hi90_s;
            total++;
        }
        fit_destroy(&m);
    }
    free(part);
    model->coverage = total > 0 ? (double)inside / total : NAN;
    model->coverage_of = total;
    return status;
}

Status fit_run(const FitPoint *point, int count, const FitOptions *options, FitModel **model_out)
{
    static const FitOptions defaults = {.form = -1, .seed = 1};
    if (!options) options = &defaults;
    if (options->form >= FORM_COUNT) return status_fail(ERR_USAGE, "fit: unknown form %d", options->form);
    FitSetup setup = {0};
    FitModel *model = calloc(1, sizeof *model);
    if (!model) return status_fail(ERR_MEMORY, "fit: out of memory");
    Status status = prepare(point, count, options, &setup);
    if (status == OK) status = fit_setup(&setup, model);
    if (status == OK && !options->totals_only) status = chain_coverage(&setup, model);
    free(setup.count);
    if (status != OK) {
        fit_destroy(&model);
        return status;
    }
    *model_out = model;
    return OK;
}

void fit_destroy(FitModel **model)
{
    if (!model || !*model) return;
    arena_free(&(*model)->arena);
    free(*model);
    *model = NULL;
}
