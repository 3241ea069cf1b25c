/* Which form to believe: every candidate is fitted on the smaller rank counts and scored on the next larger one
 * (forward chaining), because that is what a prediction will ask of it; AICc decides between equals. The same errors
 * calibrate the discrepancy term. */
#include "analysis/fit_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* mean over the runs of one rank count of log(measured / predicted), totals and communication */
static void errors_at(const FitSetup *setup, double n, const FitSolution *fit, FitForm form, bool phases, double n_max,
                      double *total_out, double *comm_out)
{
    double total = 0, comm = 0, used = 0, used_comm = 0;
    for (int i = 0; i < setup->points; i++) {
        const FitPoint *p = &setup->point[i];
        if (p->shape.ranks != n) continue;
        StepParts parts =
            fit_parts(form, fit->param, phases && setup->has_loader, phases && setup->has_host, n_max, &p->shape);
        total += log(p->step_s / parts.step_s);
        used++;
        if (setup->phases && n > 1 && parts.comm_s + parts.straggler_s > FIT_TINY_S && p->comm_s > FIT_TINY_S) {
            comm += log(p->comm_s / (parts.comm_s + parts.straggler_s));
            used_comm++;
        }
    }
    *total_out = total / used;
    *comm_out = used_comm > 0 ? comm / used_comm : NAN;
}

static bool has_own_comm(FitForm form)
{
    return form == FORM_LOG || form == FORM_LINEAR || form == FORM_ANCHORED;
}

/* Evidence about the discrepancy: squared errors of communication per factor of 8, less what noise explains and what
 * configurations lie off the form wherever they are: the next count does, and so do those that it is predicted from. */
typedef struct Evidence {
    double sum;
    int count;
} Evidence;

static Status chain(const FitSetup *setup, FitForm form, double lack_sd, FitRow *row, FitCandidate *out,
                    Evidence *evidence)
{
    double square = 0, comm_square = 0;
    int steps = 0, comm_steps = 0;
    for (int k = 1; k + 1 < setup->counts; k++) {
        FitProblem problem;
        FitSolution fit;
        double total, comm;
        fit_problem_build(setup, form, setup->count[k], row, &problem);
        if (fit_solve(&problem, &fit, NULL) != OK) return OK; /* scores stay NAN: the form is not usable */
        bool phases = setup->phases && has_own_comm(form);
        errors_at(setup, setup->count[k + 1], &fit, form, phases, setup->count[k], &total, &comm);
        square += total * total;
        out->last_error = total;
        steps++;
        if (!isfinite(comm)) continue;
        comm_square += comm * comm;
        comm_steps++;
        double distance = log(setup->count[k + 1] / setup->count[k]) / log(8);
        double noise = setup->comm_sd * setup->comm_sd + 2 * lack_sd * lack_sd;
        evidence->sum += fmax(0, comm * comm - noise) / (distance * distance);
        evidence->count++;
    }
    if (steps > 0) out->forward_error = sqrt(square / steps);
    if (comm_steps > 0) out->comm_error = sqrt(comm_square / comm_steps);
    return OK;
}

/* Parameters that a prior holds to within a factor of e carry no freedom worth a penalty. */
static int free_params(const FitProblem *problem)
{
    int free = problem->free_count;
    for (int r = 0; r < problem->rows; r++) free -= problem->row[r].kind == ROW_PRIOR && problem->row[r].sd < 1;
    return free;
}

/* Corrected Akaike criterion of the step totals, the one quantity that all forms describe. */
static double aicc(const FitSetup *setup, FitForm form, const FitSolution *fit, int params)
{
    double n = setup->points, k = params + 1; /* and the variance */
    if (n - k - 1 <= 0) return NAN;
    bool phases = setup->phases && has_own_comm(form);
    double rss = 0;
    for (int i = 0; i < setup->points; i++) {
        const FitPoint *p = &setup->point[i];
        StepParts parts = fit_parts(form, fit->param, phases && setup->has_loader, phases && setup->has_host,
                                    setup->n_max, &p->shape);
        rss += pow(log(p->step_s / parts.step_s), 2);
    }
    rss = fmax(rss, n * 1e-10);
    return n * log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1);
}

/* Mean square of forward errors in units of the noise of a repeat; errors below it do not rank forms. Communication
 * is scored apart as well: where it is small at the measured counts and large at the wanted ones, totals say nothing.
 */
static double score(const FitSetup *setup, const FitCandidate *c)
{
    double error = isfinite(c->forward_error) ? c->forward_error / setup->noise_sd : 0;
    double square = fmax(error * error, 1);
    if (!setup->comm_matters) return square;
    double comm = isfinite(c->comm_error) ? c->comm_error / setup->comm_sd : 0;
    return square + fmax(comm * comm, 1);
}

/* A form that knows no communication is contradicted where some was measured: shown, never chosen. */
static bool eligible(const FitSetup *setup, const FitCandidate *c)
{
    if (!c->usable || (setup->comm_matters && !has_own_comm(c->form))) return false;
    return setup->counts < 3 || isfinite(c->forward_error);
}

/* Anchored carries what is known of the machine; with two counts or fewer nothing else can be told apart from it. */
static FitForm select_form(const FitSetup *setup, const FitCandidate *candidate)
{
    int best = -1;
    if (setup->counts < 3 && candidate[FORM_ANCHORED].usable) return FORM_ANCHORED;
    for (int f = FORM_COUNT - 1; f >= 0; f--) {
        const FitCandidate *c = &candidate[f];
        if (!eligible(setup, c)) continue;
        if (best < 0) {
            best = f;
            continue;
        }
        double ratio = score(setup, c) / score(setup, &candidate[best]);
        bool tie = ratio > 0.77 && ratio < 1.3;
        if (tie ? c->aicc < candidate[best].aicc - 2 : ratio < 1) best = f;
    }
    return best < 0 ? FORM_AMDAHL : (FitForm)best;
}

/* Bootstrap draws spread over the forms that forward chaining cannot tell from the best one: likelihood of the forward
 * errors under normal noise of the best form's size. */
static void weigh(const FitSetup *setup, FitCandidate *candidate, FitForm best)
{
    double steps = setup->counts >= 3 ? setup->counts - 2 : 0, sum = 0;
    double scale = score(setup, &candidate[best]);
    for (int f = 0; f < FORM_COUNT; f++) {
        FitCandidate *c = &candidate[f];
        c->weight = 0;
        if (f == (int)best)
            c->weight = 1;
        else if (steps > 0 && eligible(setup, c))
            c->weight = 0.3 * exp(-0.5 * steps * fmax(0, score(setup, c) - scale) / fmax(1, scale / 2));
        if (c->weight < 0.02) c->weight = 0;
        sum += c->weight;
    }
    for (int f = 0; f < FORM_COUNT; f++) candidate[f].weight /= sum;
}

/* Room for the fits of one form. */
typedef struct Scratch {
    FitRow *row;
    double *jacobian, *variance;
    int *cluster, clusters;
} Scratch;

static Status try_form(const FitSetup *setup, FitForm form, const Scratch *scratch, FitCandidate *out,
                       Evidence *evidence)
{
    *out = (FitCandidate){.form = form, .forward_error = NAN, .comm_error = NAN, .last_error = NAN, .aicc = NAN};
    for (int i = 0; i < FIT_PARAM_COUNT; i++) out->param[i] = NAN;
    FitProblem problem;
    FitSolution fit;
    FitLack lack[FIT_PHASE_COUNT];
    fit_problem_build(setup, form, INFINITY, scratch->row, &problem);
    if (fit_solve(&problem, &fit, scratch->jacobian) != OK) return OK;
    memset(scratch->variance, 0, (size_t)scratch->clusters * FIT_PHASE_COUNT * sizeof *scratch->variance);
    TRY(fit_measure_lack(&problem, &fit, scratch->jacobian, scratch->cluster, scratch->clusters, scratch->variance,
                         lack));
    out->usable = true;
    for (int i = 0; i < FIT_PARAM_COUNT; i++) out->param[i] = fit.param[i];
    out->aicc = aicc(setup, form, &fit, free_params(&problem));
    return chain(setup, form, lack[FIT_PHASE_COMM].sd, scratch->row, out, evidence);
}

Status fit_choose(FitSetup *setup, FitModel *model)
{
    size_t points = (size_t)setup->points, rows = (size_t)FIT_ROW_LIMIT(setup->points);
    Scratch scratch = {.row = malloc(rows * sizeof(FitRow)),
                       .jacobian = malloc(rows * FIT_PARAM_COUNT * sizeof(double)),
                       .variance = malloc(points * FIT_PHASE_COUNT * sizeof(double)),
                       .cluster = malloc(points * sizeof(int))};
    Status status = scratch.row && scratch.jacobian && scratch.variance && scratch.cluster
                        ? OK
                        : status_fail(ERR_MEMORY, "fit: out of memory for %d points", setup->points);
    if (status == OK) scratch.clusters = fit_find_clusters(setup, scratch.cluster);
    Evidence evidence[FORM_COUNT] = {{0}};
    double tau0 = setup->options->tau0 > 0 ? setup->options->tau0 : FIT_TAU0;
    setup->tau = tau0;
    for (int f = 0; f < FORM_COUNT && status == OK; f++)
        status = try_form(setup, (FitForm)f, &scratch, &model->candidate[f], &evidence[f]);
    free(scratch.row);
    free(scratch.jacobian);
    free(scratch.variance);
    free(scratch.cluster);
    TRY(status);
    FitForm best = setup->options->form >= 0 ? (FitForm)setup->options->form : select_form(setup, model->candidate);
    if (!model->candidate[best].usable)
        return status_fail(ERR_NUMERIC, "fit: form \"%s\" could not be fitted", FIT_FORM_NAMES[best]);
    /* the prior counts as three observations; at least half of it stays, since agreement inside the measured range says
     * little of what lies beyond, and twice it is as far as a few noisy errors may widen it */
    double tau = sqrt((3 * tau0 * tau0 + evidence[best].sum) / (3 + evidence[best].count));
    setup->tau = fmin(fmax(tau, 0.5 * tau0), 2 * tau0);
    weigh(setup, model->candidate, best);
    if (setup->options->form >= 0)
        for (int f = 0; f < FORM_COUNT; f++) model->candidate[f].weight = f == (int)best;
    model->form = best;
    model->tau = setup->tau;
    return OK;
}
