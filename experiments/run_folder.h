/* A run directory: whose it is, and whether it holds a run already. */
#ifndef FOLDSCALE_EXPERIMENTS_RUN_FOLDER_H
#define FOLDSCALE_EXPERIMENTS_RUN_FOLDER_H

#include <stdbool.h>

#include "engine/status.h"

/* Locks the folder until run_folder_release() or the end of the process: ERR_IO when another process has it. File
 * systems that know no locks are told of on standard error and taken at their word. */
Status run_folder_claim(const char *folder, int *lock_out);
void run_folder_release(int *lock);

/* ERR_IO when the folder has checkpoints or recorded steps. */
Status run_folder_expect_none(const char *folder);

/* Removes them, if any. */
Status run_folder_clear(const char *folder);

#endif
