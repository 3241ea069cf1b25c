/* A structure of one chain as mmCIF, readable by any viewer: atoms in atom37 order; for predictions pLDDT (0 to 100) as
 * B factor, as AlphaFold's own files have it. */
#ifndef FOLDSCALE_DATA_MMCIF_WRITE_H
#define FOLDSCALE_DATA_MMCIF_WRITE_H

#include <stdint.h>

#include "engine/status.h"

typedef struct MmcifChain {
    const char *name;         /* data block and entry id: letters, digits, '_', '-' (others become '_') */
    const char *chain_id;     /* author chain id, the same rule */
    int64_t length;           /* L */
    const int32_t *aatype;    /* [L] 0..20 */
    const float *positions;   /* [L, 37, 3] Angstrom */
    const float *atom_exists; /* [L, 37] atoms to write */
    const float *plddt;       /* [L] 0 to 100; NULL: 0 */
    const char *release_date; /* YYYY-MM-DD; NULL: none */
    double resolution;        /* Angstrom; 0: none */
} MmcifChain;

/* Written to PATH.tmp and renamed. ERR_IO, ERR_NUMERIC (a coordinate that is not finite or beyond +-99999 A). */
Status mmcif_write_chain(const char *path, const MmcifChain *structure);

#endif
