/* The candidate forms, and the rows of the least-squares problem for each of them. */
#include "analysis/fit_internal.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <string.h>

const char *const FIT_PHASE_NAMES[FIT_PHASE_COUNT] = {"step", "compute", "communication", "loader", "host"};
const char *const FIT_PARAM_NAMES[FIT_PARAM_COUNT] = {"serial", "work", "latency", "wire", "noise",
                                                      "loader", "host", "extra",   "drift"};
const char *const FIT_FORM_WORDS[FORM_COUNT] = {"amdahl", "log", "linear", "usl", "anchored"};
const char *const FIT_FORM_NAMES[FORM_COUNT] = {"amdahl", "amdahl + log N", "amdahl + (N - 1)",
                                                "universal scalability law", "anchored"};

double fit_lack_freedom(const FitLack *lack)
{
    return fmax(2, lack->freedom);
}

double fit_expected_max(double n)
{
    if (n <= 1) return 0;
    return gsl_cdf_ugaussian_Pinv((n - 0.375) / (n + 0.25));
}

/* exp(drift log8(N / N_max)). Beyond the measured range only growth is believed: congestion and stragglers that a form
 * misses make communication worse with more ranks, and a form that fell as N grew would promise it for nothing. */
static double drifted(double drift, double n, double n_max)
{
    double distance = log(n / n_max) / log(8);
    return exp(distance > 0 ? fmax(drift, 0) * distance : drift * distance);
}

StepParts fit_parts(FitForm form, const double *p, bool has_loader, bool has_host, double n_max, const StepShape *shape)
{
    StepParts parts = {0};
    double n = shape->ranks, parallel = shape->work * exp(p[FIT_WORK]);
    if (form == FORM_USL) {
        /* T = T_1 work (1 + s (N-1) + k N (N-1)); s and k are exp(serial) and exp(extra) relative to T_1, so that both
         * stay logarithms of seconds like the other forms' */
        parts.compute_s = parallel;
        parts.serial_s = shape->work * exp(p[FIT_SERIAL]) * (n - 1);
        parts.comm_s = shape->work * exp(p[FIT_EXTRA]) * n * (n - 1);
    } else {
        parts.compute_s = parallel;
        parts.serial_s = exp(p[FIT_SERIAL]);
    }
    if (form == FORM_LOG && n > 1) parts.comm_s = exp(p[FIT_EXTRA]) * log2(n);
    if (form == FORM_LINEAR && n > 1) parts.comm_s = exp(p[FIT_EXTRA]) * (n - 1);
    if (form == FORM_ANCHORED && n > 1) {
        double nominal = exp(p[FIT_LATENCY]) * shape->latency_s + exp(p[FIT_WIRE]) * shape->wire_s;
        parts.comm_s = nominal * drifted(p[FIT_DRIFT], n, n_max);
        parts.straggler_s = exp(p[FIT_NOISE]) * fit_expected_max(n) * (parts.compute_s + parts.serial_s);
    }
    if (has_loader) parts.loader_s = exp(p[FIT_LOADER]);
    if (has_host) parts.host_s = exp(p[FIT_HOST]);
    parts.step_s = parts.serial_s + parts.compute_s + parts.comm_s + parts.straggler_s + parts.loader_s + parts.host_s;
    return parts;
}

void fit_problem_params(FitProblem *problem, bool phases, bool has_loader, bool has_host)
{
    bool *use = problem->free;
    memset(use, 0, sizeof problem->free);
    use[FIT_SERIAL] = use[FIT_WORK] = true;
    use[FIT_EXTRA] = problem->form == FORM_LOG || problem->form == FORM_LINEAR || problem->form == FORM_USL;
    use[FIT_LATENCY] = use[FIT_WIRE] = use[FIT_NOISE] = use[FIT_DRIFT] = problem->form == FORM_ANCHORED;
    use[FIT_LOADER] = phases && has_loader;
    use[FIT_HOST] = phases && has_host;
    problem->free_count = 0;
    for (int i = 0; i < FIT_PARAM_COUNT; i++) problem->index[i] = use[i] ? problem->free_count++ : -1;
}

/* Amdahl and the universal scalability law describe a total; only the other forms have a communication of their own
 * that a phase could be compared with. */
static bool form_has_phases(FitForm form)
{
    return form == FORM_LOG || form == FORM_LINEAR || form == FORM_ANCHORED;
}

/* Timers and the accounting between phases are good to about a two-thousandth of a step: a phase that small has a
 * logarithm without meaning. The result is relative to the phase. */
static double phase_sd(double phase_s, double step_s, double sd)
{
    double absolute = 5e-4 * step_s / fmax(phase_s, FIT_TINY_S);
    return sqrt(sd * sd + absolute * absolute);
}

static void add_row(FitProblem *problem, RowKind kind, int point, double measured_s, double sd)
{
    double floor_s = measured_s > FIT_TINY_S ? measured_s : FIT_TINY_S;
    problem->row[problem->rows++] =
        (FitRow){.kind = kind, .point = point, .target = log(floor_s), .sd = sd > FIT_SD_FLOOR ? sd : FIT_SD_FLOOR};
}

/* All runs weigh the same, as their waits are compared in seconds: the fit is the mean, which is what adds up to steps.
 */
static void add_wait(FitProblem *problem, RowKind kind, int point, double measured_s, double mean_s, double sd)
{
    double unit_s = fmax(mean_s, FIT_TINY_S), target = fmax(measured_s, FIT_TINY_S) / unit_s;
    problem->row[problem->rows++] =
        (FitRow){.kind = kind, .point = point, .target = target, .unit_s = unit_s, .sd = fmax(sd, FIT_SD_FLOOR)};
}

static void add_prior(FitProblem *problem, const FitSetup *setup, FitParam param, double mean, double sd)
{
    if (!problem->free[param]) return;
    for (int i = 0; i < setup->options->priors; i++) {
        const FitPrior *prior = &setup->options->prior[i];
        if (prior->param == param) mean = prior->mean, sd = prior->sd;
    }
    problem->row[problem->rows++] = (FitRow){.kind = ROW_PRIOR, .param = param, .target = mean, .sd = sd};
    problem->start[param] = mean;
}

/* Weak priors keep every parameter finite where the data say nothing of it (one rank count, no phases); the widths are
 * wide enough to lose against any measurement: a factor of 3 on the serial share, 1.35 and 1.2 on latency and
 * bandwidth of a collective, 2 on the noise of a rank, 12 on a form's growth term. */
static void add_priors(FitProblem *problem, const FitSetup *setup, double typical_s)
{
    const FitOptions *o = setup->options;
    double share = o->serial_share > 0 ? o->serial_share : 0.03;
    double share_sd = o->serial_share_sd > 0 ? o->serial_share_sd : 1.2;
    problem->row[problem->rows++] = (FitRow){.kind = ROW_SHARE, .target = log(share), .sd = share_sd};
    problem->start[FIT_SERIAL] = problem->start[FIT_WORK] + log(share);
    add_prior(problem, setup, FIT_LATENCY, 0, 0.3);
    add_prior(problem, setup, FIT_WIRE, 0, 0.2);
    add_prior(problem, setup, FIT_NOISE, log(0.01), 0.7);
    add_prior(problem, setup, FIT_EXTRA, log(0.01 * typical_s), 2.5);
    add_prior(problem, setup, FIT_DRIFT, 0, setup->tau);
}

static void add_point(FitProblem *problem, const FitSetup *setup, int i, bool phases, const StepParts *mean)
{
    const FitPoint *p = &setup->point[i];
    double sd = p->sd_log > 0 ? p->sd_log : setup->noise_sd;
    if (!phases) {
        /* loader and host wait are inside the total and, in these forms, inside the serial part */
        add_row(problem, ROW_STEP, i, p->step_s, sd);
        return;
    }
    add_row(problem, ROW_COMPUTE, i, p->compute_s, p->sd_log > 0 ? sd : setup->phase_sd);
    if (p->shape.ranks > 1) add_row(problem, ROW_COMM, i, p->comm_s, phase_sd(p->comm_s, p->step_s, setup->comm_sd));
    if (problem->free[FIT_LOADER])
        add_wait(problem, ROW_LOADER, i, p->loader_s, mean->loader_s,
                 phase_sd(mean->loader_s, mean->step_s, setup->comm_sd));
    if (problem->free[FIT_HOST])
        add_wait(problem, ROW_HOST, i, p->host_s, mean->host_s, phase_sd(mean->host_s, mean->step_s, setup->comm_sd));
}

void fit_problem_build(const FitSetup *setup, FitForm form, double n_limit, FitRow *row, FitProblem *problem)
{
    *problem = (FitProblem){.point = setup->point, .points = setup->points, .form = form, .row = row};
    bool phases = setup->phases && form_has_phases(form);
    fit_problem_params(problem, phases, setup->has_loader, setup->has_host);
    StepParts mean = {0};
    double work = 0, used = 0;
    for (int i = 0; i < setup->points; i++) {
        const FitPoint *p = &setup->point[i];
        if (p->shape.ranks > n_limit) continue;
        double compute = phases ? p->compute_s : p->step_s;
        mean.step_s += p->step_s;
        work += log(compute / p->shape.work);
        mean.loader_s += phases && setup->has_loader ? p->loader_s : 0;
        mean.host_s += phases && setup->has_host ? p->host_s : 0;
        used++;
        if (p->shape.ranks > problem->n_max) problem->n_max = p->shape.ranks;
    }
    mean.step_s /= used, mean.loader_s /= used, mean.host_s /= used;
    for (int i = 0; i < setup->points; i++)
        if (setup->point[i].shape.ranks <= n_limit) add_point(problem, setup, i, phases, &mean);
    problem->start[FIT_WORK] = work / used;
    problem->start[FIT_LOADER] = log(fmax(mean.loader_s, FIT_TINY_S));
    problem->start[FIT_HOST] = log(fmax(mean.host_s, FIT_TINY_S));
    add_priors(problem, setup, mean.step_s);
}
