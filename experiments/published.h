/* Step times other people measured, for the report's scaling plot. */
#ifndef FOLDSCALE_EXPERIMENTS_PUBLISHED_H
#define FOLDSCALE_EXPERIMENTS_PUBLISHED_H

#include "analysis/report.h"

/* data/published/mlperf_hpc_v3_openfold.csv: one point per GPU count, DAP degree and accelerator, the mean over its
 * runs. `path` NULL: the file beside the sources this program was built from. */
Status published_read(const char *path, Arena *arena, PublishedPoint **points_out, int *count_out);

/* Name of the submission that trained on so many GPUs; NULL when none did. */
Status published_submission(const char *path, double gpus, Arena *arena, const char **name_out);

const char *published_default(void);    /* path of that file */
const char *published_experiment(void); /* path of the experiment those runs trained */

/* One figure of a file in data/published: column `value` of the first row whose cells begin with these texts. */
typedef struct PublishedCell {
    const char *file, *value;
    struct {
        const char *column, *starts;
    } where[4];
} PublishedCell;

Status published_cell(const PublishedCell *cell, double *value_out);

#endif
