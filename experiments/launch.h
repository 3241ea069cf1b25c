/* Starting several ranks: under mpirun or srun the process is already one of them; otherwise it starts mpirun. */
#ifndef FOLDSCALE_EXPERIMENTS_LAUNCH_H
#define FOLDSCALE_EXPERIMENTS_LAUNCH_H

#include <stdbool.h>

#include "engine/status.h"

bool launch_under_mpi(void);
/* Number of ranks the launcher (mpirun, srun) was asked for; 1 outside. */
int launch_world_size(void);

/* Runs `arguments` (NULL-terminated, arguments[0] = program) and waits; SIGINT and SIGTERM are passed on. Its
 * output goes to `log_path` (a log of engine/output.h, begun again) where that is not NULL. It ends with this process.
 * *exit_out: exit status, or 128 + signal. ERR_IO when it cannot be started or its log cannot be opened. */
Status launch_wait(char *const arguments[], const char *log_path, int *exit_out);

/* Whether a signal was passed on by launch_wait: what the caller was doing should end too. */
bool launch_interrupted(void);

/* Runs this very program with argv[0..argc) as its arguments on `ranks` ranks through mpirun (oversubscribed, as root
 * too, not bound to cores). ERR_COMM when a rank failed. */
Status launch_ranks(int ranks, int argc, char **argv);

/* Path of this program. */
Status launch_self(char *path_out, int size);

#endif
