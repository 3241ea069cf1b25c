/* A predicted structure as mmCIF, with pLDDT in the B-factor column (as AlphaFold's own files have it). */
#ifndef FOLDSCALE_EXPERIMENTS_STRUCTURE_OUT_H
#define FOLDSCALE_EXPERIMENTS_STRUCTURE_OUT_H

#include <stdint.h>

#include "engine/status.h"

typedef struct PredictedChain {
    const char *name; /* ENTRY_CHAIN */
    int64_t length;
    const int32_t *aatype;    /* [L] 0..20 */
    const float *positions;   /* [L, 37, 3] Angstrom */
    const float *atom_exists; /* [L, 37] */
    const float *plddt;       /* [L] 0..100 */
} PredictedChain;

/* Written whole or not at all. */
Status structure_write(const char *path, const PredictedChain *chain);

#endif
