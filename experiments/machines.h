/* Machine descriptions by name. */
#ifndef FOLDSCALE_EXPERIMENTS_MACHINES_H
#define FOLDSCALE_EXPERIMENTS_MACHINES_H

#include "analysis/machine.h"

/* A path, or the name of a file in experiments/machines (beside the sources this program was built from, or in
 * $FOLDSCALE_MACHINES). ERR_USAGE listing the names that there are. */
Status machines_open(const char *name, Machine **machine_out);

#endif
