/* Uncertainty of the parameters: a cluster bootstrap. Clusters are whole runs within a configuration and, above them,
 * configurations: runs are resampled inside each configuration, every configuration shifts as a whole by the lack of
 * fit that the residuals show, priors are redrawn, forms are drawn by their weight. Iterations inside a run are never
 * resampled: they share that run's luck. */
#include "analysis/fit_internal.h"

#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int fit_find_clusters(const FitSetup *setup, int *cluster)
{
    int clusters = 0;
    for (int i = 0; i < setup->points; i++) {
        cluster[i] = -1;
        for (int j = 0; j < i && cluster[i] < 0; j++)
            if (!memcmp(&setup->point[i].shape, &setup->point[j].shape, sizeof(StepShape))) cluster[i] = cluster[j];
        if (cluster[i] < 0) cluster[i] = clusters++;
    }
    return clusters;
}

typedef struct FormState {
    FitProblem problem;
    FitSolution fit;
    double *variance; /* [FIT_PHASE_COUNT][clusters] of the rows of one run */
    FitLack lack[FIT_PHASE_COUNT];
} FormState;

static double row_residual(const FitProblem *problem, const FitSolution *fit, const FitRow *row)
{
    StepParts parts = fit_row_parts(problem, fit, row);
    return row->target - fit_row_value(row, &parts);
}

/* What the rows of one configuration and phase say together. The residuals of configurations, each in units of its own
 * noise, are P times their deviations with P_cd = (c = d) - hat_c . hat_d. */
typedef struct Deviation {
    double sum; /* of the residuals of its runs */
    int runs;
    double weight;                 /* 1 / variance of the mean of its runs */
    double hat[FIT_PARAM_COUNT];   /* sum of its rows of U over the root of their number: U U' is the hat matrix */
    double twice[FIT_PARAM_COUNT]; /* (P P)_cd = (c = d) - hat_c . twice_d */
} Deviation;

static double dot(const double *a, const double *b)
{
    double sum = 0;
    for (int i = 0; i < FIT_PARAM_COUNT; i++) sum += a[i] * b[i];
    return sum;
}

static void gather(const FitProblem *problem, const FitSolution *fit, const FitSpectrum *spectrum, int kind,
                   const int *cluster, int clusters, double *variance, Deviation *of)
{
    double gram[FIT_PARAM_COUNT][FIT_PARAM_COUNT] = {{0}};
    memset(of, 0, (size_t)clusters * sizeof *of);
    for (int r = 0; r < problem->rows; r++) {
        const FitRow *row = &problem->row[r];
        if (row->kind != (RowKind)kind) continue;
        Deviation *d = &of[cluster[row->point]];
        d->sum += row_residual(problem, fit, row);
        for (int i = 0; i < problem->free_count; i++) d->hat[i] += gsl_matrix_get(spectrum->u, (size_t)r, (size_t)i);
        d->runs++;
        variance[cluster[row->point]] += row->sd * row->sd;
    }
    for (int c = 0; c < clusters; c++) {
        if (!of[c].runs) continue;
        variance[c] /= of[c].runs;
        of[c].weight = of[c].runs / variance[c];
        for (int i = 0; i < FIT_PARAM_COUNT; i++) of[c].hat[i] /= sqrt(of[c].runs);
        for (int i = 0; i < FIT_PARAM_COUNT; i++)
            for (int j = 0; j < FIT_PARAM_COUNT; j++) gram[i][j] += of[c].hat[i] * of[c].hat[j];
    }
    for (int c = 0; c < clusters; c++)
        for (int i = 0; i < FIT_PARAM_COUNT; i++) of[c].twice[i] = 2 * of[c].hat[i] - dot(gram[i], of[c].hat);
}

/* Configurations count by their precision: the logarithm of a phase that hardly exists in one of them says little of
 * the others. */
static FitLack lack_of(const Deviation *of, int clusters)
{
    double square = 0, weights = 0, left = 0, squares = 0, shares = 0;
    int used = 0;
    for (int c = 0; c < clusters; c++) {
        const Deviation *d = &of[c];
        if (!d->runs) continue;
        double share = 1 - dot(d->hat, d->hat);
        square += pow(d->sum / d->runs, 2) * d->weight - share;
        weights += d->weight;
        left += d->weight * (1 - dot(d->hat, d->twice));
        shares += share;
        used++;
        for (int e = 0; e < clusters; e++)
            squares += d->weight * of[e].weight * pow((c == e) - dot(d->hat, of[e].twice), 2);
    }
    if (!used) return (FitLack){0};
    /* at least one degree of freedom is divided by: where parameters meet every configuration, 0 / 0 is at hand; the
     * ratio that makes the degrees of freedom is blind to that, their sum is not */
    double excess = square / fmax(left, weights / used);
    double freedom = squares > 0 ? fmin(left * left / squares, shares) : shares;
    return (FitLack){.sd = fmin(sqrt(fmax(0, excess)), FIT_SPREAD_LIMIT),
                     .freedom = fmin(fmax(freedom, 0), used),
                     .configurations = used};
}

Status fit_measure_lack(const FitProblem *problem, const FitSolution *fit, const double *jacobian, const int *cluster,
                        int clusters, double *variance, FitLack *lack)
{
    FitSpectrum spectrum;
    Deviation *of = calloc((size_t)clusters, sizeof *of);
    if (!of) return status_fail(ERR_MEMORY, "fit: out of memory");
    Status status = fit_decompose(problem, jacobian, &spectrum);
    for (int kind = 0; kind < FIT_PHASE_COUNT && status == OK; kind++) {
        gather(problem, fit, &spectrum, kind, cluster, clusters, variance + (size_t)kind * (size_t)clusters, of);
        lack[kind] = lack_of(of, clusters);
    }
    if (status == OK) fit_spectrum_free(&spectrum);
    free(of);
    return status;
}

typedef struct Draw {
    gsl_rng *rng;
    const int *cluster;
    int clusters, points;
    int *pick;     /* [points] which run stands in for each */
    int *member;   /* [points] scratch */
    double *shift; /* [clusters * FIT_PHASE_COUNT] */
} Draw;

static void draw_runs(const Draw *d)
{
    for (int c = 0; c < d->clusters; c++) {
        int runs = 0;
        for (int i = 0; i < d->points; i++)
            if (d->cluster[i] == c) d->member[runs++] = i;
        for (int i = 0; i < runs; i++)
            d->pick[d->member[i]] = d->member[gsl_rng_uniform_int(d->rng, (unsigned long)runs)];
    }
}

/* The standard deviation of the lack of fit is drawn as well, from the scaled inverse chi-square of its degrees of
 * freedom, for the parameters' errors are Student's as those of configurations are. Six times its estimate, 3 % of
 * draws at two degrees, is as far as the solver has to follow. */
static double draw_lack(gsl_rng *rng, const FitLack *lack)
{
    double freedom = fit_lack_freedom(lack);
    return lack->sd > 0 ? lack->sd * fmin(sqrt(freedom / gsl_ran_chisq(rng, freedom)), 6) : 0;
}

/* A wait that is drawn below zero is none. The parameter is a logarithm: a twentieth of the mean stands for it, or what
 * was measured where that is less. */
static double shifted(const FitRow *row, double target, double shift)
{
    return row->unit_s > 0 ? fmax(target + shift, fmin(target, 0.05)) : target + shift;
}

/* Resampling n runs gives (n-1)/n of their variance and none at all for n = 1: the rest is added as noise. */
static void draw_shifts(const Draw *d, const FormState *state)
{
    double lack_sd[FIT_PHASE_COUNT];
    for (int k = 0; k < FIT_PHASE_COUNT; k++) lack_sd[k] = draw_lack(d->rng, &state->lack[k]);
    for (int c = 0; c < d->clusters; c++) {
        int runs = 0;
        for (int i = 0; i < d->points; i++) runs += d->cluster[i] == c;
        for (int kind = 0; kind < FIT_PHASE_COUNT; kind++) {
            double missing = state->variance[kind * d->clusters + c] / runs / runs;
            double total = sqrt(missing + pow(lack_sd[kind], 2));
            d->shift[c * FIT_PHASE_COUNT + kind] = gsl_ran_gaussian_ziggurat(d->rng, total);
        }
    }
}

/* Row of the same kind of another point: rows of one kind are in the order of points. */
static double target_of(const FitProblem *problem, RowKind kind, int point)
{
    for (int r = 0; r < problem->rows; r++)
        if (problem->row[r].kind == kind && problem->row[r].point == point) return problem->row[r].target;
    return NAN;
}

static Status draw_once(const Draw *d, const FormState *state, FitRow *scratch, double *param_out)
{
    FitProblem problem = state->problem;
    memcpy(scratch, state->problem.row, (size_t)problem.rows * sizeof *scratch);
    problem.row = scratch;
    draw_runs(d);
    draw_shifts(d, state);
    for (int r = 0; r < problem.rows; r++) {
        FitRow *row = &scratch[r];
        if (row->kind <= ROW_HOST)
            row->target = shifted(row, target_of(&state->problem, row->kind, d->pick[row->point]),
                                  d->shift[d->cluster[row->point] * FIT_PHASE_COUNT + (int)row->kind]);
        else
            row->target += gsl_ran_gaussian_ziggurat(d->rng, row->sd);
    }
    for (int i = 0; i < FIT_PARAM_COUNT; i++)
        if (problem.free[i]) problem.start[i] = state->fit.param[i];
    FitSolution fit;
    TRY(fit_solve(&problem, &fit, NULL));
    memcpy(param_out, fit.param, sizeof fit.param);
    return OK;
}

static int pick_form(const FitModel *model, double u)
{
    for (int f = 0; f < FORM_COUNT; f++) {
        u -= model->candidate[f].weight;
        if (u < 0) return f;
    }
    return (int)model->form;
}

static Status prepare_forms(const FitSetup *setup, FitModel *model, const int *cluster, int clusters, FitRow *rows,
                            FormState *state)
{
    Status status = OK;
    double *jacobian = calloc((size_t)FIT_ROW_LIMIT(setup->points) * FIT_PARAM_COUNT, sizeof *jacobian);
    if (!jacobian) status = status_fail(ERR_MEMORY, "fit: out of memory");
    for (int f = 0; f < FORM_COUNT && status == OK; f++) {
        if (model->candidate[f].weight <= 0) continue;
        fit_problem_build(setup, (FitForm)f, INFINITY, rows + f * FIT_ROW_LIMIT(setup->points), &state[f].problem);
        status = fit_solve(&state[f].problem, &state[f].fit, jacobian);
        state[f].variance = calloc((size_t)clusters * FIT_PHASE_COUNT, sizeof *state[f].variance);
        if (status == OK && !state[f].variance) status = status_fail(ERR_MEMORY, "fit: out of memory");
        if (status == OK)
            status = fit_measure_lack(&state[f].problem, &state[f].fit, jacobian, cluster, clusters, state[f].variance,
                                      state[f].lack);
        memcpy(model->candidate[f].lack, state[f].lack, sizeof state[f].lack);
    }
    free(jacobian);
    return status;
}

static Status draw_all(const Draw *d, const FormState *state, FitRow *scratch, FitModel *model)
{
    int failed = 0;
    for (int b = 0; b < model->draws;) {
        int f = pick_form(model, gsl_rng_uniform(d->rng));
        Status status = draw_once(d, &state[f], scratch, model->draw + (size_t)b * FIT_PARAM_COUNT);
        if (status != OK) {
            /* a resample on which the solver fails is drawn again; many of them mean that the fit itself is broken */
            if (++failed > 20 + model->draws / 5) return status;
            continue;
        }
        model->draw_form[b++] = f;
    }
    return OK;
}

Status fit_bootstrap(const FitSetup *setup, FitModel *model)
{
    int n = setup->points, limit = FIT_ROW_LIMIT(n);
    FormState state[FORM_COUNT];
    memset(state, 0, sizeof state);
    Draw d = {.points = n, .rng = gsl_rng_alloc(gsl_rng_mt19937)};
    int *cluster = calloc((size_t)n, sizeof *cluster);
    FitRow *rows = calloc((size_t)limit * (FORM_COUNT + 1), sizeof *rows);
    d.pick = calloc((size_t)n, sizeof *d.pick);
    d.member = calloc((size_t)n, sizeof *d.member);
    d.shift = calloc((size_t)n * FIT_PHASE_COUNT, sizeof *d.shift);
    Status status = OK;
    if (!d.rng || !cluster || !rows || !d.pick || !d.member || !d.shift)
        status = status_fail(ERR_MEMORY, "fit: out of memory for %d points", n);
    if (status == OK) {
        gsl_rng_set(d.rng, (unsigned long)(model->seed * 2654435761u + 1));
        d.clusters = fit_find_clusters(setup, cluster);
        d.cluster = cluster;
        status = prepare_forms(setup, model, cluster, d.clusters, rows, state);
    }
    if (status == OK) status = draw_all(&d, state, rows + (size_t)limit * FORM_COUNT, model);
    if (d.rng) gsl_rng_free(d.rng);
    for (int f = 0; f < FORM_COUNT; f++) free(state[f].variance);
    free(cluster);
    free(rows);
    free(d.pick);
    free(d.member);
    free(d.shift);
    return status;
}
