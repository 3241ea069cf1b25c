#include "analysis/transfer.h"

#include <math.h>

Status transfer_fit(FitModel *model, const Machine *machine, double comm_sd)
{
    if (model->form != FORM_ANCHORED)
        return status_fail(ERR_USAGE, "a fit of the form \"%s\" says nothing about another machine (expected \"%s\")",
                           FIT_FORM_NAMES[model->form], FIT_FORM_NAMES[FORM_ANCHORED]);
    model->param[FIT_LATENCY] = model->param[FIT_WIRE] = model->param[FIT_DRIFT] = 0;
    model->param_sd[FIT_LATENCY] = model->param_sd[FIT_WIRE] = comm_sd;
    model->param_sd[FIT_DRIFT] = 0;
    double noise = log(fmax(machine->rank_noise.value, 1e-4)), spread = machine->rank_noise.spread;
    model->param[FIT_NOISE] = noise;
    model->param_sd[FIT_NOISE] = spread;
    /* communication is the other machine's, with comm_sd for what its constants miss; computation, loader and host are
     * still the fitted ones and lie off the form as they did */
    model->candidate[FORM_ANCHORED].lack[FIT_PHASE_COMM].sd = 0;
    model->noise_sd = fmax(machine->rank_noise.value, 0.005);
    for (int i = 0; i < model->draws; i++) {
        const double *z = model->draw_z + (size_t)i * FIT_Z_COUNT;
        double *draw = model->draw + (size_t)i * FIT_PARAM_COUNT;
        /* one normal for both terms: what a model of collectives misses, it misses in both */
        draw[FIT_LATENCY] = draw[FIT_WIRE] = comm_sd * z[FIT_Z_EXTRA];
        draw[FIT_DRIFT] = 0;
        draw[FIT_NOISE] = noise + spread * z[FIT_Z_BEYOND];
        model->draw_form[i] = FORM_ANCHORED;
    }
    return OK;
}
