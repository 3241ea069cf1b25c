/* Where the pieces of a study lie when the user does not say: a study's folder holds runs.csv, fit.json,
 * predictions.csv, machine/machine.yaml, machine/profile/ops.csv, points/ID/run.json. */
#ifndef FOLDSCALE_EXPERIMENTS_STUDY_FILES_H
#define FOLDSCALE_EXPERIMENTS_STUDY_FILES_H

#include "analysis/schema.h"
#include "experiments/config.h"

/* Joins `folder` and `name`; NULL in *path_out when there is no such file. */
Status study_file(const char *folder, const char *name, Arena *arena, char **path_out);
/* Folder part of a path, "." when it has none. */
char *study_folder_of(const char *path, Arena *arena);
/* The experiment of a study: `given`, or what run.json of the first point has. */
Status study_experiment(const char *given, const char *folder, const TextList *overrides, Config **config_out);
/* The rows of several runs.csv one after the other. */
typedef struct RunFiles {
    RunTable all; /* rows borrowed from the tables */
    RunTable table[CLI_MAX_ITEMS];
    int count;
} RunFiles;
Status study_read_runs(const TextList *paths, RunFiles *files_out);
void study_free_runs(RunFiles *files);

#endif
