/* Where a run's samples come from: the archive of an experiment, its sampler and its loader; and whole chains for
 * evaluation. All ranks of a model-parallel group get the same sample. */
#ifndef FOLDSCALE_EXPERIMENTS_SOURCE_H
#define FOLDSCALE_EXPERIMENTS_SOURCE_H

#include "data/batch.h"
#include "data/log.h"
#include "engine/backend.h"
#include "experiments/config.h"

typedef struct Source Source;

/* ERR_INPUT when no chain is left after the filters. `state` is what source_state wrote ("" from the start). */
Status source_open(const Config *config, Backend *backend, const char *state, Source **source_out);
void source_close(Source **source);

/* Looks for the structures of named chains and reads the first sample, which source_next then hands out: that the data
 * can be read is known before anything else begins. All ranks call it together, once, before source_next and
 * source_state. */
Status source_peek(Source *source);

typedef struct SourceSample {
    const Batch *batch; /* valid until the next call */
    int recycling;      /* iterations without gradient: the same on every rank */
    double wait_s;      /* until it was ready */
} SourceSample;
Status source_next(Source *source, SourceSample *sample_out);

/* Text from which source_open goes on after the samples handed out so far. All ranks call it together. */
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
