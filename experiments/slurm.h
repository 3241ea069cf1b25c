/* Job scripts for the points of a study. */
#ifndef FOLDSCALE_EXPERIMENTS_SLURM_H
#define FOLDSCALE_EXPERIMENTS_SLURM_H

#include "experiments/study.h"

typedef struct SlurmOptions {
    bool write;
    int64_t gpus_per_node, minutes;
    const char *partition; /* NULL: the cluster's default */
} SlurmOptions;

/* Before the folder is made: ERR_USAGE when the partition or the folder's path needs quoting. */
Status slurm_check(const SlurmOptions *options, const char *folder);

/* Writes FOLDER/slurm/ID.sh per point and FOLDER/slurm/submit.sh, which submits those that are neither complete nor,
 * where squeue can be asked, queued or running. What slurm_check takes. `folder`: absolute. */
Status slurm_write(const SlurmOptions *options, const Config *config, const char *study, const TextList *overrides,
                   const char *folder, const StudyPoint *points, int count);

#endif
