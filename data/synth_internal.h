/* Shared by synth*.c only. */
#ifndef FOLDSCALE_DATA_SYNTH_INTERNAL_H
#define FOLDSCALE_DATA_SYNTH_INTERNAL_H

#include <stdbool.h>

#include "data/draws.h"
#include "data/synth.h"

/* A stream of random numbers: Philox at consecutive positions. */
typedef struct SynthStream {
    Draws draws;
    int copy; /* separates the streams of one chain */
    int64_t at;
} SynthStream;

typedef enum SynthPart { SYNTH_SHAPE, SYNTH_SEQUENCE, SYNTH_STRUCTURE, SYNTH_HITS, SYNTH_ROWS } SynthPart;

SynthStream synth_stream(const SynthOptions *options, int64_t chain, SynthPart part);
double synth_uniform(SynthStream *stream);
double synth_normal(SynthStream *stream);
/* 1, 2, 3, ...; mean 1 / stop */
int64_t synth_geometric(SynthStream *stream, double stop);
/* A letter of the background of UniProt. */
char synth_letter(SynthStream *stream);

/* The sequence of a chain, in the arena; its release date. */
Status synth_sequence(const SynthOptions *options, int64_t chain, Arena *arena, char **sequence_out);
void synth_date(int64_t chain, char date_out[11]);

Status synth_write_structure(const SynthOptions *options, int64_t chain, const char *sequence, Arena *arena);
Status synth_write_alignments(const SynthOptions *options, int64_t chain, const char *sequence, Arena *arena);
Status synth_write_hits(const SynthOptions *options, int64_t chain, const char *sequence, Arena *arena);

#endif
