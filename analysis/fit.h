/* The cost model of a training step and its fit.
 *
 *   T(N) = serial + work x parallel + exposed communication + straggler + loader wait + host overhead
 *
 * A configuration enters as a StepShape: how many ranks, which share of the parallel work each one does, and what its
 * collectives would take at the machine's nominal constants. What those constants do not know (kernel efficiency,
 * achieved latency and bandwidth, noise) is fitted with gsl_multifit_nlinear on logarithms of parameters and times (of
 * the waits for loader and host on seconds, as these come near zero).
 *
 * Total times alone cannot tell serial / N from a ring's (N-1)/N, nor log N from the expected maximum of N delays;
 * therefore phases are fitted apart where they were timed, and priors (micro-benchmarks, per-rank noise) enter as rows
 * of the same least-squares problem. */
#ifndef FOLDSCALE_ANALYSIS_FIT_H
#define FOLDSCALE_ANALYSIS_FIT_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

/* What a configuration asks of the machine. */
typedef struct StepShape {
    double ranks;     /* N, training ranks that wait for one another */
    double work;      /* parallel work of one rank relative to the reference configuration (1 / DAP, or priced) */
    double latency_s; /* exposed collectives of a step at nominal constants: the part that does not depend on bytes */
    double wire_s;    /* ... and the part proportional to bytes */
} StepShape;

/* One measured run (one repeat). Phases are NAN where they were not timed apart. */
typedef struct FitPoint {
    StepShape shape;
    double step_s;    /* mean step without evaluation; > 0 */
    double compute_s; /* forward passes, backward, optimizer of a typical rank */
    double comm_s;    /* exposed communication, waiting for stragglers included; 0 with one rank */
    double loader_s, host_s;
    double sd_log;  /* standard deviation of log(step_s) known from elsewhere; 0: estimate from repeats */
    const char *id; /* for messages and tables */
} FitPoint;

typedef enum FitParam {
    FIT_SERIAL,  /* log seconds */
    FIT_WORK,    /* log seconds of the reference configuration's parallel work on one rank */
    FIT_LATENCY, /* log multiplier of shape.latency_s */
    FIT_WIRE,    /* log multiplier of shape.wire_s */
    FIT_NOISE,   /* log relative standard deviation of one rank's compute time from step to step */
    FIT_LOADER,  /* log seconds */
    FIT_HOST,    /* log seconds */
    FIT_EXTRA,   /* log seconds per unit of the form's growth term */
    FIT_DRIFT,   /* communication x exp(drift log8(N / N_max)): what the nominal form misses */
    FIT_PARAM_COUNT
} FitParam;

typedef enum FitForm {
    FORM_AMDAHL,   /* serial + work parallel */
    FORM_LOG,      /* + extra log2 N */
    FORM_LINEAR,   /* + extra (N - 1) */
    FORM_USL,      /* parallel work (1 + s (N-1) + k N (N-1)), Gunther's universal scalability law */
    FORM_ANCHORED, /* + communication from the machine's constants, straggler */
    FORM_COUNT
} FitForm;

/* What of a step is measured and fitted: the whole, where phases were not timed apart or the form has none; else the
 * others, which add up to it. */
typedef enum FitPhase {
    FIT_PHASE_STEP,
    FIT_PHASE_COMPUTE,
    FIT_PHASE_COMM, /* stragglers included */
    FIT_PHASE_LOADER,
    FIT_PHASE_HOST,
    FIT_PHASE_COUNT
} FitPhase;

extern const char *const FIT_PHASE_NAMES[FIT_PHASE_COUNT]; /* in files and tables */
extern const char *const FIT_PARAM_NAMES[FIT_PARAM_COUNT];
extern const char *const FIT_FORM_WORDS[FORM_COUNT]; /* on the command line */
extern const char *const FIT_FORM_NAMES[FORM_COUNT]; /* in files and tables */

/* A row "parameter ~ normal(mean, sd)", from a micro-benchmark or a per-rank noise measurement. */
typedef struct FitPrior {
    FitParam param;
    double mean, sd;
    const char *source;
} FitPrior;

typedef struct FitOptions {
    int draws;             /* bootstrap draws; 0: 1000 */
    uint64_t seed;         /* same seed, same intervals */
    int form;              /* FitForm, or -1: choose by forward chaining */
    bool totals_only;      /* ignore the phases (naive fits) */
    const FitPrior *prior; /* replace the built-in weak priors of the same parameter */
    int priors;
    double tau0;         /* discrepancy before any evidence, per factor of 8; 0: FIT_TAU0 */
    double serial_share; /* expected serial / parallel and its log sd; 0: 0.03 with sd 1.2 */
    double serial_share_sd;
} FitOptions;

/* ASTRA-sim, with every constant known, misses a measured all-reduce by 10 to 21 %: the lower end per factor of 8 is
 * the discrepancy assumed before the data say more. tests/bench_fit_recovery shows what it does to coverage. */
#define FIT_TAU0 0.10

typedef struct StepParts {
    double serial_s, compute_s, comm_s, straggler_s, loader_s, host_s;
    double step_s; /* their sum */
} StepParts;

/* How far configurations lie off a form, as a standard deviation of the logarithm of a phase beyond what repeats of one
 * of them scatter: the form is not the machine, and more repeats do not make it so. Of the waits for loader and host,
 * which come near zero, it is a standard deviation in seconds over the fitted ones: one configuration in seven that
 * waits twenty times as long as the others tells of waits of that length, not of a factor of twenty on any wait. With
 * r_c the mean residual of the n_c runs of configuration c, v_c their variance, w_c = n_c / v_c and P what the fit
 * leaves of deviations e_c (r sqrt(w) = P (e sqrt(w)); P_cd = (c = d) less the hat matrix, runs taken together),
 *
 *   sd^2 = sum(w_c r_c^2 - P_cc) / sum(w_d P_cd^2),   freedom = tr(M)^2 / tr(M^2),   M = P w P,
 *
 * sd never below 0, its divisor never below the mean w_c (one degree of freedom), freedom never above sum(P_cc): the
 * residual sum of squares less what noise alone would leave in it, over what a unit of variance adds to it (analysis of
 * variance estimator of a variance component: Searle, Casella and McCulloch, "Variance Components", 1992), and the
 * degrees of freedom of the chi-square that has the mean and variance of that sum (Satterthwaite, Biometrics Bulletin
 * 2, 1946): a configuration that hardly weighs is hardly one. */
typedef struct FitLack {
    double sd;          /* relative; 0: none seen */
    double freedom;     /* degrees of freedom it is known by; below 1 there is little to see it by */
    int configurations; /* with such rows; 0: none, or the form is not drawn */
} FitLack;

/* Score of one candidate form. */
typedef struct FitCandidate {
    FitForm form;
    bool usable;          /* false: fewer rows than it needs, or the solver failed */
    double forward_error; /* root mean square of log errors of forward chaining; NAN with fewer than three counts */
    double comm_error;    /* the same of the communication phase alone; NAN where it was not timed or not modelled */
    double last_error;    /* log error of the largest count predicted from the smaller ones; NAN likewise */
    double aicc;
    double weight; /* share of bootstrap draws that use this form */
    double param[FIT_PARAM_COUNT];
    FitLack lack[FIT_PHASE_COUNT]; /* of the forms that are drawn */
} FitCandidate;

/* One residual row of the chosen fit. */
typedef struct FitResidual {
    int point;        /* index of the FitPoint */
    const char *what; /* FIT_PHASE_NAMES */
    double measured_s, fitted_s;
    double standardized; /* residual, of the logarithm or of a wait in seconds, / its standard deviation */
    double leverage;     /* diagonal of the hat matrix, 0..1 */
} FitResidual;

/* Random deviates of a draw: normals, and for the lack of fit of each phase Student's t of the drawn form's degrees of
 * freedom, since the standard deviation that they multiply is itself known from few configurations. */
enum { FIT_Z_BEYOND, FIT_Z_NOISE, FIT_Z_EXTRA, FIT_Z_LACK, FIT_Z_COUNT = FIT_Z_LACK + FIT_PHASE_COUNT };

typedef struct FitModel {
    Arena arena;
    FitForm form;
    double param[FIT_PARAM_COUNT];    /* NAN where the form has none */
    double param_sd[FIT_PARAM_COUNT]; /* of the normal with the bootstrap's 90 % interval: its tails are Student's */
    bool has_loader, has_host;        /* these phases were measured */
    double n_min, n_max;              /* smallest and largest measured ranks */
    int counts, points;               /* distinct rank counts, measured runs */
    double tau;      /* calibrated discrepancy of communication per factor of 8, beyond noise and lack of fit */
    double noise_sd; /* of log step time between repeats */
    int draws;
    double *draw;   /* [draws, FIT_PARAM_COUNT] */
    int *draw_form; /* [draws] FitForm */
    double *draw_z; /* [draws, FIT_Z_COUNT]; equal for all predictions, so that differences between configurations are
                       not blurred by sampling */
    uint64_t seed;
    /* diagnostics */
    FitCandidate candidate[FORM_COUNT];
    FitResidual *residual;
    int residuals;
    double reduced_chi2, condition;
    double correlation[FIT_PARAM_COUNT][FIT_PARAM_COUNT]; /* of the free parameters; 0 elsewhere */
    double coverage; /* share of forward-chaining predictions inside their 90 % interval; NAN if there were none */
    int coverage_of;
    const char *backend, *device; /* where the points come from; "" if unknown */
} FitModel;

/* Fits. Refuses (ERR_INPUT, naming the point) times that are not positive and finite, shapes out of range, and an empty
 * set. One rank count alone is fitted from priors, with the wide intervals that follow. */
Status fit_run(const FitPoint *point, int count, const FitOptions *options, FitModel **model_out);
void fit_destroy(FitModel **model);

/* Point estimate of the parts of a step. */
StepParts fit_evaluate(const FitModel *model, const StepShape *shape);

typedef struct FitInterval {
    StepParts parts; /* at the point estimate */
    double lo90_s, hi90_s;
    double n_over_nmax;
    bool flagged; /* beyond 8 x the largest measured count */
} FitInterval;

/* Prediction interval of a run: bootstrap draws x discrepancy beyond the measured range, each phase off the drawn form
 * by its lack of fit, x repeat noise:
 *
 *   T = (A exp(s_compute t_1) + B exp(s_comm t_2) + max(0, loader + s_loader t_3 L) + max(0, host + s_host t_4 H))
 *       x exp(s_step t_5 + noise z_1 + extra_sd z_2)
 *   A = serial + compute,   B = (communication + straggler) exp(tau z_3 log8(N / N_max) / 2) beyond N_max
 *
 * with s the lack of fit (FitLack; that of the step where only the step is fitted), L and H the form's estimates of the
 * two waits (the draws' own would multiply two errors), t Student's and z normal. A
 * configuration that was measured has it as well: where the form misses it, so does the estimate. `extra_sd` is a
 * further log standard deviation on the whole step (another machine, unmeasured kernels); 0 for none. */
Status fit_predict(const FitModel *model, const StepShape *shape, double extra_sd, FitInterval *out);

/* All draws of the step time (model->draws of them) into step_s: for simulations and time to train. */
Status fit_predict_draws(const FitModel *model, const StepShape *shape, double extra_sd, double *step_s);

/* fit.json: everything above, so that predict needs no refit; numbers round-trip. Replaces nothing but a fit
 * (engine/output.h). */
#define FIT_BEGINS "{\"format\": \"foldscale fit\""
Status fit_write(const FitModel *model, const char *path);
Status fit_read(const char *path, FitModel **model_out);
/* Where the fit of the anchored form lies that belongs to a fit.json: fit_anchored.json beside it. NULL: out of memory.
 */
char *fit_anchored_path(const char *path, Arena *arena);

/* What the text of fit_print begins with. */
#define FIT_TEXT_BEGINS "form:"
/* Plain-text diagnostics: residuals against N, reduced chi-square, correlations, condition number, leverage, the
 * forward-chaining table, coverage. */
#include <stdio.h>
Status fit_print(const FitModel *model, const FitPoint *point, int count, FILE *stream);

/* Expected largest of n standard normal variables (Blom 1958: Phi^-1((n - 0.375) / (n + 0.25))); 0 for n <= 1. */
double fit_expected_max(double n);

#endif
