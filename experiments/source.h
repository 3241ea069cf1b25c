/* Where a run's samples come from: the archive of an experiment, its sampler and its loader; and whole chains for
 * evaluation. All ranks of a model-parallel group get the same sample. */
#ifndef FOLDSCALE_EXPERIMENTS_SOURCE_H
#define FOLDSCALE_EXPERIMENTS_SOURCE_H

#include "data/batch.h"
#include "data/log.h"
#include "engine/backend.h"
#include "experiments/config.h"

typedef struct Source Source;

/* ERR_INPUT when no chain is left after the filters. `first_step` (from 0) is where a resumed run goes on; `state` is
 * what source_state wrote then ("" from the start). */
Status source_open(const Config *config, const RankLayout *layout, int64_t first_step, const char *state,
                   Source **source_out);
void source_close(Source **source);

/* The batch of the next step; valid until the next call. *wait_s_out: time until it was ready. */
Status source_next(Source *source, const Batch **batch_out, double *wait_s_out);
/* Extra recycling iterations of a step (from 1): the same on every rank. */
Status source_recycling(const Source *source, int64_t step, int *recycling_out);

/* Text from which source_open goes on after the steps handed out so far; "" when the step says it all. */
Status source_state(const Source *source, char *text, size_t size);

/* --- whole chains
 * ------------------------------------------------------------------------------------------------------ */

typedef struct ChainReader ChainReader; /* the archive alone */

Status chain_reader_open(const Config *config, ChainReader **reader_out);
void chain_reader_close(ChainReader **reader);
Status chain_reader_list(ChainReader *reader, Arena *arena, char ***names_out, int *count_out);
Status chain_reader_length(ChainReader *reader, const char *chain, int64_t *length_out);
/* The features of a whole chain (no crop), padded to `length`, with copies 0..recycling. */
Status chain_reader_batch(ChainReader *reader, const char *chain, int64_t length, int recycling, Batch **batch_out);

#endif
