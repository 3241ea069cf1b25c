/* How close a predicted chain is to the measured one, on CA atoms.
 *
 * Positions are [n, 3] in Angstrom, in double; residues whose mask is 0 are left out everywhere. Definitions as in the
 * MLPerf HPC OpenFold reference (golden README, "Metrics"). */
#ifndef FOLDSCALE_DATA_METRICS_H
#define FOLDSCALE_DATA_METRICS_H

#include <stdint.h>

#include "engine/status.h"

typedef struct StructureMetrics {
    double lddt_ca; /* 0..1: Mariani et al. 2013, pairs closer than 15 Angstrom, thresholds 0.5 1 2 4 */
    double drmsd;   /* root mean square difference of all pair distances */
    double rmsd;    /* after the best superposition */
    double gdt_ts;  /* share within 1 2 4 8 Angstrom after that one superposition */
    double gdt_ha;  /* 0.5 1 2 4 */
} StructureMetrics;

/* `per_residue_out` ([n], lDDT of each residue; 1 for one without neighbours, as the reference's epsilon makes it) may
 * be NULL. ERR_INPUT with fewer than 3 residues, ERR_NUMERIC when a position is not finite. */
Status metrics_compare(const double *predicted, const double *target, const uint8_t *mask, int64_t n,
                       double *per_residue_out, StructureMetrics *metrics_out);

#endif
