#include "analysis/lsq.h"

#include <gsl/gsl_errno.h>
#include <gsl/gsl_multifit_nlinear.h>
#include <math.h>
#include <stdlib.h>

enum { ITERATION_LIMIT = 200 };

typedef struct Adapter {
    LsqResiduals f;
    void *context;
    double *x, *residual; /* contiguous copies: GSL hands out strided vectors while it differentiates */
    int rows, params;
} Adapter;

static int call(const gsl_vector *x, void *context, gsl_vector *f)
{
    Adapter *a = context;
    for (int i = 0; i < a->params; i++) a->x[i] = gsl_vector_get(x, (size_t)i);
    if (!a->f(a->x, a->context, a->residual)) return GSL_EDOM;
    for (int i = 0; i < a->rows; i++) {
        if (!isfinite(a->residual[i])) return GSL_EDOM;
        gsl_vector_set(f, (size_t)i, a->residual[i]);
    }
    return GSL_SUCCESS;
}

Status lsq_solve(LsqResiduals f, void *context, int rows, int params, double *x, double *residual_out)
{
    if (rows < params || params < 1)
        return status_fail(ERR_NUMERIC, "least squares: %d rows for %d parameters", rows, params);
    gsl_set_error_handler_off(); /* GSL's default handler aborts the process */
    gsl_multifit_nlinear_parameters settings = gsl_multifit_nlinear_default_parameters();
    gsl_multifit_nlinear_workspace *w =
        gsl_multifit_nlinear_alloc(gsl_multifit_nlinear_trust, &settings, (size_t)rows, (size_t)params);
    Adapter adapter = {.f = f, .context = context, .rows = rows, .params = params};
    adapter.x = malloc((size_t)params * sizeof *adapter.x);
    adapter.residual = malloc((size_t)rows * sizeof *adapter.residual);
    Status status = w && adapter.x && adapter.residual ? OK : status_fail(ERR_MEMORY, "least squares: out of memory");
    if (status == OK) {
        gsl_vector_view start = gsl_vector_view_array(x, (size_t)params);
        gsl_multifit_nlinear_fdf fdf = {.f = call, .n = (size_t)rows, .p = (size_t)params, .params = &adapter};
        int info, code = gsl_multifit_nlinear_init(&start.vector, &fdf, w);
        if (code == GSL_SUCCESS)
            code = gsl_multifit_nlinear_driver(ITERATION_LIMIT, 1e-8, 1e-8, 0, NULL, NULL, &info, w);
        /* no further progress: the minimum to rounding */
        if (code != GSL_SUCCESS && code != GSL_ENOPROG && code != GSL_EMAXITER)
            status = status_fail(ERR_NUMERIC, "least squares: %s", gsl_strerror(code));
    }
    for (int i = 0; status == OK && i < params; i++) x[i] = gsl_vector_get(gsl_multifit_nlinear_position(w), (size_t)i);
    for (int i = 0; status == OK && residual_out && i < rows; i++)
        residual_out[i] = gsl_vector_get(gsl_multifit_nlinear_residual(w), (size_t)i);
    free(adapter.x);
    free(adapter.residual);
    if (w) gsl_multifit_nlinear_free(w);
    return status;
}
