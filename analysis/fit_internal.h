/* Shared by the files of the fit; not for others. */
#ifndef FOLDSCALE_ANALYSIS_FIT_INTERNAL_H
#define FOLDSCALE_ANALYSIS_FIT_INTERNAL_H

#include <gsl/gsl_matrix.h>
#include <gsl/gsl_vector.h>

#include "analysis/fit.h"

/* Those up to ROW_HOST are the phases of FitPhase. */
typedef enum RowKind {
    ROW_STEP = FIT_PHASE_STEP,
    ROW_COMPUTE = FIT_PHASE_COMPUTE,
    ROW_COMM = FIT_PHASE_COMM,
    ROW_LOADER = FIT_PHASE_LOADER,
    ROW_HOST = FIT_PHASE_HOST,
    ROW_PRIOR,
    ROW_SHARE
} RowKind;

/* One row of the least-squares problem: (log model - log measured) / sd, or (parameter - mean) / sd. The waits for the
 * loader and the host are compared in seconds: they come near zero, where a logarithm makes a millisecond that is
 * missing as large as a factor of a thousand. */
typedef struct FitRow {
    RowKind kind;
    int point;      /* ROW_STEP .. ROW_HOST */
    FitParam param; /* ROW_PRIOR */
    double target;  /* log measured, measured / unit_s, or the prior's mean */
    double unit_s;  /* ROW_LOADER, ROW_HOST: mean of what is fitted; else 0 */
    double sd;
} FitRow;

typedef struct FitProblem {
    const FitPoint *point;
    int points;
    FitForm form;
    double n_max; /* reference of the drift */
    bool free[FIT_PARAM_COUNT];
    int index[FIT_PARAM_COUNT]; /* place in the solver's vector, -1 if not free */
    int free_count;
    FitRow *row;
    int rows;
    double start[FIT_PARAM_COUNT];
} FitProblem;

/* Seconds below which a phase is not worth a logarithm: a tenth of a microsecond. */
#define FIT_TINY_S 1e-7

/* Standard deviations of log times: no repeat is better than half a percent. Parameters of the weak built-in priors. */
#define FIT_SD_FLOOR 0.005

StepParts fit_parts(FitForm form, const double *param, bool has_loader, bool has_host, double n_max,
                    const StepShape *shape);

/* Which parameters a form uses, given the phases that were measured. */
void fit_problem_params(FitProblem *problem, bool phases, bool has_loader, bool has_host);

typedef struct FitSolution {
    double param[FIT_PARAM_COUNT];
    double chi2; /* of all rows, priors included */
    double chi2_data;
    int data_rows;
} FitSolution;

/* Parameters as fit_parts() takes them: those that were not fitted, NaN, are no part of a step. */
void fit_clean_params(const double *in, double *out);

/* The step that a solution has where a row was measured. */
StepParts fit_row_parts(const FitProblem *problem, const FitSolution *fit, const FitRow *row);

/* What a row of a measured phase is compared with, in seconds and as its target is written. */
double fit_row_seconds(const FitRow *row, const StepParts *parts);
double fit_row_value(const FitRow *row, const StepParts *parts);

/* Solves; optionally the Jacobian at the solution as a GSL matrix copied into jacobian[rows * free_count]. */
Status fit_solve(const FitProblem *problem, FitSolution *out, double *jacobian);

/* Singular value decomposition U S V' of a Jacobian [rows, free_count] whose columns are scaled to unit length, so that
 * units do not matter. The caller frees all three. */
typedef struct FitSpectrum {
    gsl_matrix *u, *v;
    gsl_vector *s;
} FitSpectrum;
Status fit_decompose(const FitProblem *problem, const double *jacobian, FitSpectrum *out);
void fit_spectrum_free(FitSpectrum *spectrum);

/* Leverage of a row, the diagonal of the hat matrix U U': summed over rows, the number of parameters they settle. */
double fit_leverage(const FitSpectrum *spectrum, int row);

typedef struct FitSetup {
    const FitPoint *point;
    int points;
    const FitOptions *options;
    bool phases; /* compute and communication were timed apart in every point */
    bool has_loader, has_host;
    double noise_sd; /* of log step time between repeats */
    double phase_sd; /* of log phase times between repeats */
    double comm_sd;
    bool comm_matters; /* timed apart and above a thousandth of some step */
    double n_min, n_max;
    int counts;
    double *count; /* [counts] distinct rank counts, ascending */
    double tau;
} FitSetup;

/* Builds the rows of a form for the points whose ranks are at most n_limit. `row` must hold FIT_ROW_LIMIT(points). */
#define FIT_ROW_LIMIT(points) (5 * (points) + FIT_PARAM_COUNT + 2)
void fit_problem_build(const FitSetup *setup, FitForm form, double n_limit, FitRow *row, FitProblem *problem);

/* Forward chaining, AICc and weights of all candidate forms; calibrates setup->tau. */
Status fit_choose(FitSetup *setup, FitModel *model);

/* Degrees of freedom of Student's t where the lack of fit is drawn: at least 2. The 90 % limits of one degree lie
 * at 6.3 standard deviations, where two or three configurations whose communication disagrees by a factor of 2 would
 * widen it by one of 80; those of two lie at 2.9. */
double fit_lack_freedom(const FitLack *lack);

/* The largest standard deviation of a logarithm, or relative one, that a fit writes and reads. */
#define FIT_SPREAD_LIMIT 10.0

/* Configuration of every point: points with one shape share one cluster. Returns how many there are. */
int fit_find_clusters(const FitSetup *setup, int *cluster);

/* FitLack of every phase, and to variance[FIT_PHASE_COUNT][clusters], zero before, that of the rows of one run.
 * `jacobian` as from fit_solve. */
Status fit_measure_lack(const FitProblem *problem, const FitSolution *fit, const double *jacobian, const int *cluster,
                        int clusters, double *variance, FitLack *lack);

/* Bootstrap draws of the parameters into model->draw; lack of fit of the forms that are drawn. */
Status fit_bootstrap(const FitSetup *setup, FitModel *model);

/* Random deviates of the draws and standard deviations of the parameters, after the draws are there. */
Status fit_finish_draws(FitModel *model);

#endif
