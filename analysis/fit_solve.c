/* The nonlinear least-squares solver: gsl_multifit_nlinear, Levenberg-Marquardt trust region. */
#include "analysis/fit_internal.h"

#include <gsl/gsl_errno.h>
#include <gsl/gsl_linalg.h>
#include <gsl/gsl_multifit_nlinear.h>
#include <math.h>
#include <string.h>

enum { ITERATION_LIMIT = 200 };

static void unpack(const FitProblem *problem, const gsl_vector *x, double *param)
{
    for (int i = 0; i < FIT_PARAM_COUNT; i++)
        param[i] = problem->index[i] >= 0 ? gsl_vector_get(x, (size_t)problem->index[i]) : -INFINITY;
    if (!problem->free[FIT_DRIFT]) param[FIT_DRIFT] = 0;
}

void fit_clean_params(const double *in, double *out)
{
    for (int i = 0; i < FIT_PARAM_COUNT; i++) out[i] = isnan(in[i]) ? (i == FIT_DRIFT ? 0 : -INFINITY) : in[i];
}

StepParts fit_row_parts(const FitProblem *problem, const FitSolution *fit, const FitRow *row)
{
    double param[FIT_PARAM_COUNT];
    fit_clean_params(fit->param, param);
    return fit_parts(problem->form, param, problem->free[FIT_LOADER], problem->free[FIT_HOST], problem->n_max,
                     &problem->point[row->point].shape);
}

double fit_row_seconds(const FitRow *row, const StepParts *parts)
{
    switch (row->kind) {
    case ROW_STEP:
        return parts->step_s;
    case ROW_COMPUTE:
        return parts->serial_s + parts->compute_s;
    case ROW_COMM:
        return parts->comm_s + parts->straggler_s;
    case ROW_LOADER:
        return parts->loader_s;
    case ROW_HOST:
        return parts->host_s;
    default:
        return 1;
    }
}

double fit_row_value(const FitRow *row, const StepParts *parts)
{
    double seconds = fit_row_seconds(row, parts);
    return row->unit_s > 0 ? seconds / row->unit_s : log(seconds + FIT_TINY_S * 1e-3);
}

static bool residuals(const FitProblem *problem, const double *param, gsl_vector *out)
{
    StepParts parts = {0};
    int have = -1; /* consecutive rows mostly share their point */
    for (int r = 0; r < problem->rows; r++) {
        const FitRow *row = &problem->row[r];
        double value;
        if (row->kind == ROW_PRIOR) {
            value = param[row->param];
        } else if (row->kind == ROW_SHARE) {
            value = param[FIT_SERIAL] - param[FIT_WORK];
        } else {
            if (row->point != have)
                parts = fit_parts(problem->form, param, problem->free[FIT_LOADER], problem->free[FIT_HOST],
                                  problem->n_max, &problem->point[row->point].shape);
            have = row->point;
            value = fit_row_value(row, &parts);
        }
        value = (value - row->target) / row->sd;
        if (!isfinite(value)) return false;
        gsl_vector_set(out, (size_t)r, value);
    }
    return true;
}

static int residuals_gsl(const gsl_vector *x, void *context, gsl_vector *f)
{
    const FitProblem *problem = context;
    double param[FIT_PARAM_COUNT];
    unpack(problem, x, param);
    return residuals(problem, param, f) ? GSL_SUCCESS : GSL_EDOM;
}

static void take_solution(const FitProblem *problem, const gsl_multifit_nlinear_workspace *w, FitSolution *out,
                          double *jacobian)
{
    unpack(problem, gsl_multifit_nlinear_position(w), out->param);
    const gsl_vector *f = gsl_multifit_nlinear_residual(w);
    out->chi2 = out->chi2_data = 0;
    out->data_rows = 0;
    for (int r = 0; r < problem->rows; r++) {
        double square = pow(gsl_vector_get(f, (size_t)r), 2);
        out->chi2 += square;
        if (problem->row[r].kind >= ROW_PRIOR) continue;
        out->chi2_data += square;
        out->data_rows++;
    }
    for (int i = 0; i < FIT_PARAM_COUNT; i++)
        if (problem->index[i] < 0) out->param[i] = NAN;
    if (!jacobian) return;
    const gsl_matrix *j = gsl_multifit_nlinear_jac(w);
    for (int r = 0; r < problem->rows; r++)
        for (int c = 0; c < problem->free_count; c++)
            jacobian[r * problem->free_count + c] = gsl_matrix_get(j, (size_t)r, (size_t)c);
}

Status fit_solve(const FitProblem *problem, FitSolution *out, double *jacobian)
{
    if (problem->rows < problem->free_count)
        return status_fail(ERR_NUMERIC, "fit: %d rows for %d parameters", problem->rows, problem->free_count);
    /* GSL's default handler aborts the process; with it off, every failure comes back as a code */
    gsl_set_error_handler_off();
    gsl_multifit_nlinear_parameters settings = gsl_multifit_nlinear_default_parameters();
    gsl_multifit_nlinear_workspace *w = gsl_multifit_nlinear_alloc(gsl_multifit_nlinear_trust, &settings,
                                                                   (size_t)problem->rows, (size_t)problem->free_count);
    if (!w) return status_fail(ERR_MEMORY, "fit: out of memory for the solver");
    double start[FIT_PARAM_COUNT];
    for (int i = 0; i < FIT_PARAM_COUNT; i++)
        if (problem->index[i] >= 0) start[problem->index[i]] = problem->start[i];
    gsl_vector_view view = gsl_vector_view_array(start, (size_t)problem->free_count);
    gsl_multifit_nlinear_fdf fdf = {
        .f = residuals_gsl, .n = (size_t)problem->rows, .p = (size_t)problem->free_count, .params = (void *)problem};
    int info = 0;
    int code = gsl_multifit_nlinear_init(&view.vector, &fdf, w);
    if (code == GSL_SUCCESS) code = gsl_multifit_nlinear_driver(ITERATION_LIMIT, 1e-8, 1e-8, 0, NULL, NULL, &info, w);
    /* GSL_ENOPROG: no step lowers the sum further, the minimum to rounding; GSL_EMAXITER is judged by the caller's
     * residuals like any other poor fit */
    Status status = OK;
    if (code != GSL_SUCCESS && code != GSL_ENOPROG && code != GSL_EMAXITER)
        status = status_fail(ERR_NUMERIC, "fit of form \"%s\" failed: %s", FIT_FORM_NAMES[problem->form],
                             gsl_strerror(code));
    if (status == OK) take_solution(problem, w, out, jacobian);
    gsl_multifit_nlinear_free(w);
    return status;
}

Status fit_decompose(const FitProblem *problem, const double *jacobian, FitSpectrum *out)
{
    size_t rows = (size_t)problem->rows, cols = (size_t)problem->free_count;
    FitSpectrum f = {gsl_matrix_alloc(rows, cols), gsl_matrix_alloc(cols, cols), gsl_vector_alloc(cols)};
    gsl_vector *work = gsl_vector_alloc(cols);
    Status status = f.u && f.v && f.s && work ? OK : status_fail(ERR_MEMORY, "fit: out of memory");
    for (size_t c = 0; c < cols && status == OK; c++) {
        double square = 0;
        for (size_t r = 0; r < rows; r++) square += pow(jacobian[r * cols + c], 2);
        for (size_t r = 0; r < rows; r++)
            gsl_matrix_set(f.u, r, c, jacobian[r * cols + c] / (square > 0 ? sqrt(square) : 1));
    }
    if (status == OK && gsl_linalg_SV_decomp(f.u, f.v, f.s, work))
        status = status_fail(ERR_NUMERIC, "fit: singular value decomposition");
    gsl_vector_free(work);
    if (status == OK)
        *out = f;
    else
        fit_spectrum_free(&f);
    return status;
}

void fit_spectrum_free(FitSpectrum *spectrum)
{
    gsl_matrix_free(spectrum->u);
    gsl_matrix_free(spectrum->v);
    gsl_vector_free(spectrum->s);
}

double fit_leverage(const FitSpectrum *spectrum, int row)
{
    double square = 0;
    for (size_t c = 0; c < spectrum->u->size2; c++) square += pow(gsl_matrix_get(spectrum->u, (size_t)row, c), 2);
    return square;
}
