/* What a fit on one machine says about another. */
#ifndef FOLDSCALE_ANALYSIS_TRANSFER_H
#define FOLDSCALE_ANALYSIS_TRANSFER_H

#include "analysis/fit.h"

/* Turns a fit of the anchored form into what carries over to other machines: the work of a step (scaled by its price
 * there), the noise of a rank, loader and host. How well collectives ran on the fitted machine, and how that changed
 * with the number of ranks, does not: those parameters become the nominal ones (the other machine's own constants),
 * with a log standard deviation of `comm_sd` in every draw. ERR_USAGE for another form. */
Status transfer_fit(FitModel *model, double comm_sd);

/* ASTRA-sim's errors on all-reduce of 2 to 8 GPUs: 10 to 21 % (fitting.md). */
#define TRANSFER_COMM_SD 0.2

#endif
