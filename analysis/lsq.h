/* Small nonlinear least-squares problems: gsl_multifit_nlinear, Levenberg-Marquardt trust region, numeric Jacobian. */
#ifndef FOLDSCALE_ANALYSIS_LSQ_H
#define FOLDSCALE_ANALYSIS_LSQ_H

#include <stdbool.h>

#include "engine/status.h"

/* Writes `rows` residuals (already divided by their standard deviations); false where x is out of bounds. */
typedef bool (*LsqResiduals)(const double *x, void *context, double *residual);

/* Minimises the sum of squares from x in place. residual_out (may be NULL) gets the residuals at the solution. */
Status lsq_solve(LsqResiduals f, void *context, int rows, int params, double *x, double *residual_out);

#endif
