/* Starting another program (gnuplot, SimGrid's smpirun) and waiting for it. */
#ifndef FOLDSCALE_ANALYSIS_PROCESS_H
#define FOLDSCALE_ANALYSIS_PROCESS_H

#include "engine/status.h"

/* Runs argv[0] (found through PATH) in `folder` (NULL: here) with standard output and error going to the named files
 * (NULL: dropped). ERR_UNSUPPORTED when it cannot be started, ERR_INTERNAL with its exit code when it fails. */
Status process_run(const char *folder, char *const *argv, const char *output, const char *errors);

#endif
