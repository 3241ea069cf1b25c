/* Checkpoints of a run directory: ckpt_STEP.safetensors. */
#ifndef FOLDSCALE_EXPERIMENTS_CHECKPOINT_H
#define FOLDSCALE_EXPERIMENTS_CHECKPOINT_H

#include "engine/store.h"

/* What a run must know besides the tensors to go on as if it had never stopped. */
typedef struct RunState {
    int64_t step;    /* optimizer steps done */
    int64_t samples; /* samples seen by all replicas */
    int64_t seed;
    double elapsed_s;     /* of training so far */
    char loader[1 << 18]; /* state of the loader as text, a line per replica, "" when the step says it all */
} RunState;

/* Writes ckpt_STEP.safetensors (whole or not at all), then removes all but the newest `keep`, and those of later steps:
 * they were damaged when the run resumed. */
Status checkpoint_save(Store *store, const char *folder, const RunState *state, int keep);

/* Reads the state of one checkpoint without its tensors. ERR_INPUT where it is of another format, where something is
 * missing or no number, or where its step is not that of its name. */
Status checkpoint_state(const char *path, RunState *state_out);

/* Step of the newest checkpoint of a folder by its name, -1: none. */
Status checkpoint_newest(const char *folder, int64_t *step_out);

/* Removes all checkpoints of a folder. */
Status checkpoint_remove_all(const char *folder);

/* Loads the newest checkpoint that is whole; one that is not is named on standard error and passed over. *found_out is
 * false when the folder has none at all; ERR_INPUT when it has only broken ones. */
Status checkpoint_resume(Store *store, const char *folder, bool report, RunState *state_out, bool *found_out);

/* Path of the newest checkpoint of a run directory, or the path itself when it is a file. */
Status checkpoint_find(const char *path, Arena *arena, char **path_out);

#endif
