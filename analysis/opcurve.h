/* Curves of op times over size, one per kind, and the shapes that were measured around them. */
#ifndef FOLDSCALE_ANALYSIS_OPCURVE_H
#define FOLDSCALE_ANALYSIS_OPCURVE_H

#include "analysis/opprice.h"

/* Fills sample, curve, pooled and context_sd of prices that are empty so far. ERR_INPUT without any timing. */
Status opcurve_fit(OpPrices *prices, const OpTiming *timing, int count, const Machine *machine);

/* Of a shape on the curve of its kind: logarithm of what measured shapes around it say beside the curve, and the spread
 * that is left. *measured_out: this very shape was measured. */
double opcurve_misfit(const OpPrices *prices, const OpCurve *curve, CostRate rate, double flops, double bytes,
                      double *sd_out, bool *measured_out);

/* Octaves of bytes by which a shape lies outside of what was measured of its kind. */
double opcurve_reach(const OpPrices *prices, const OpCurve *curve, CostRate rate, double bytes);

/* NULL for a kind that nobody measured. */
const OpCurve *opcurve_find(const OpPrices *prices, const char *kind);

#endif
