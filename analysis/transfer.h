/* What a fit on one machine says about another. */
#ifndef FOLDSCALE_ANALYSIS_TRANSFER_H
#define FOLDSCALE_ANALYSIS_TRANSFER_H

#include "analysis/fit.h"
#include "analysis/machine.h"

/* Turns a fit of the anchored form into what carries over to `machine`: the work of a step (scaled by its price there),
 * loader and host. What belongs to the fitted machine does not carry over and is replaced by the other machine's own:
 * how well collectives ran and how that changed with the number of ranks (nominal constants, with a log standard
 * deviation of `comm_sd` in every draw, instead of its lack of fit here), the noise of a rank and the noise between
 * repeats (its rank_noise: ranks that share cores of a CPU say nothing about GPUs). May be called again for the next
 * machine. ERR_USAGE for another form. */
Status transfer_fit(FitModel *model, const Machine *machine, double comm_sd);

/* ASTRA-sim's errors on all-reduce of 2 to 8 GPUs: 10 to 21 % (fitting.md). */
#define TRANSFER_COMM_SD 0.2

#endif
