/* Diagnostics of a fit as plain text. */
#include "analysis/fit.h"

#include <math.h>

static void print_params(const FitModel *m, FILE *f)
{
    fprintf(f, "form: %s; %d runs at %d rank counts from %g to %g\n", FIT_FORM_NAMES[m->form], m->points, m->counts,
            m->n_min, m->n_max);
    for (int i = 0; i < FIT_PARAM_COUNT; i++) {
        if (isnan(m->param[i])) continue;
        if (i == FIT_DRIFT)
            fprintf(f, "  %-8s %10.4g per factor of 8, sd %.3g\n", FIT_PARAM_NAMES[i], m->param[i], m->param_sd[i]);
        else
            fprintf(f, "  %-8s %10.4g%s, sd of the logarithm %.3g\n", FIT_PARAM_NAMES[i], exp(m->param[i]),
                    i == FIT_LATENCY || i == FIT_WIRE ? " x nominal"
                    : i == FIT_NOISE                  ? " of compute"
                                                      : " s",
                    m->param_sd[i]);
    }
    fprintf(f, "repeat noise %.2f %% of a step; discrepancy tau %.3f per factor of 8\n", 100 * m->noise_sd, m->tau);
    fprintf(f, "lack of fit of a configuration, relative sd:");
    const FitLack *lack = m->candidate[m->form].lack;
    for (int k = 0, listed = 0; k < FIT_PHASE_COUNT; k++) {
        if (!lack[k].configurations) continue;
        fprintf(f, "%s %s %.3g (%.1f degrees of freedom%s)", listed++ ? "," : "", FIT_PHASE_NAMES[k], lack[k].sd,
                lack[k].freedom, lack[k].freedom < 1 ? ": hardly seen" : "");
    }
    fputc('\n', f);
}

static void print_candidates(const FitModel *m, FILE *f)
{
    fprintf(f, "\ncandidate forms (forward chaining: fitted on the smaller counts, scored on the next)\n");
    fprintf(f, "  %-28s %12s %14s %14s %10s %8s\n", "form", "step rms", "communication", "largest count", "AICc",
            "weight");
    for (int c = 0; c < FORM_COUNT; c++) {
        const FitCandidate *k = &m->candidate[c];
        if (!k->usable) {
            fprintf(f, "  %-28s not usable on these points\n", FIT_FORM_NAMES[c]);
            continue;
        }
        fprintf(f, "  %-28s %10.2f %% %12.2f %% %+12.2f %% %10.2f %8.2f%s\n", FIT_FORM_NAMES[c], 100 * k->forward_error,
                100 * k->comm_error, 100 * k->last_error, k->aicc, k->weight, c == (int)m->form ? "  chosen" : "");
    }
}

static void print_correlations(const FitModel *m, FILE *f)
{
    fprintf(f, "\ncondition number of the scaled Jacobian %.3g; correlations of the parameters\n%10s", m->condition,
            "");
    for (int j = 0; j < FIT_PARAM_COUNT; j++)
        if (!isnan(m->param[j])) fprintf(f, "%9s", FIT_PARAM_NAMES[j]);
    fputc('\n', f);
    for (int i = 0; i < FIT_PARAM_COUNT; i++) {
        if (isnan(m->param[i])) continue;
        fprintf(f, "  %-8s", FIT_PARAM_NAMES[i]);
        for (int j = 0; j < FIT_PARAM_COUNT; j++)
            if (!isnan(m->param[j])) fprintf(f, "%9.2f", m->correlation[i][j]);
        fputc('\n', f);
    }
}

Status fit_print(const FitModel *m, const FitPoint *point, int count, FILE *f)
{
    print_params(m, f);
    print_candidates(m, f);
    fprintf(f, "\nresiduals; reduced chi-square %.3g\n", m->reduced_chi2);
    fprintf(f, "  %8s %-14s %12s %12s %9s %9s %9s  %s\n", "ranks", "phase", "measured s", "fitted s", "error", "std.",
            "leverage", "run");
    for (int r = 0; r < m->residuals; r++) {
        const FitResidual *e = &m->residual[r];
        if (e->point < 0 || e->point >= count) continue;
        const FitPoint *p = &point[e->point];
        fprintf(f, "  %8g %-14s %12.6g %12.6g %+8.2f%% %+9.2f %9.2f  %s\n", p->shape.ranks, e->what, e->measured_s,
                e->fitted_s, 100 * (e->fitted_s / e->measured_s - 1), e->standardized, e->leverage, p->id ? p->id : "");
    }
    print_correlations(m, f);
    if (m->coverage_of > 0)
        fprintf(f, "\ncoverage: %.0f %% of %d forward predictions inside their 90 %% interval\n", 100 * m->coverage,
                m->coverage_of);
    return ferror(f) ? status_fail(ERR_IO, "cannot write the diagnostics") : OK;
}
