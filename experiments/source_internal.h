/* Shared by source.c, source_weights.c and chain_reader.c only. */
#ifndef FOLDSCALE_EXPERIMENTS_SOURCE_INTERNAL_H
#define FOLDSCALE_EXPERIMENTS_SOURCE_INTERNAL_H

#include "data/dataset.h"
#include "experiments/source.h"

const char *source_given(const char *path); /* NULL for "" */
void source_print_remark(void *context, const char *file, long line, const char *text);
/* Only the first 200, then a line that says so: during training they come again in every epoch. `context`: an
 * atomic_int that starts at 0. */
void source_print_few_remarks(void *context, const char *file, long line, const char *text);
/* `count` 0: all chains. */
Status source_open_dataset(const DataSection *d, const char (*chains)[CONFIG_NAME], unsigned count, const DataLog *log,
                           Dataset **dataset_out);

/* Weight of each chain by the reference's rule; *weights_out is NULL when the experiment names no chain table (all
 * chains equal then). */
Status source_weights(const DataSection *d, const Dataset *dataset, Arena *arena, double **weights_out);

#endif
