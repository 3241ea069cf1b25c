/* The residue tables that a recorded AlphaFold2 program reads as inputs (model/constants.h), taken from data/residue.h:
 * model and data are siblings, so somebody above both has to introduce them. */
#ifndef FOLDSCALE_EXPERIMENTS_CONSTANTS_H
#define FOLDSCALE_EXPERIMENTS_CONSTANTS_H

#include "engine/store.h"

/* Writes every buffer "const.*" that the store has. */
Status constants_bind(Store *store);

#endif
