/* Contents of pack records. Decoding is in place: the results point into `data`, which must be aligned to 16 bytes and
 * live as long as they do; only small tables are put into the arena. Damaged records give ERR_INPUT, never more memory
 * than the record has. */
#ifndef FOLDSCALE_DATA_PACK_RECORD_H
#define FOLDSCALE_DATA_PACK_RECORD_H

#include "data/pack_bytes.h"
#include "data/prepared_msa.h"

enum { PACK_MOST_HITS = 1 << 16 }; /* of an alignment record */

/* One chain: header fields, sequence, coordinates of the resolved atoms. */
void pack_put_chain(ByteWriter *writer, const Chain *chain);
Status pack_get_chain(const char *name, ByteReader *reader, Arena *arena, Chain *chain_out);

/* A joined alignment and the hits that passed the prefilter, in the order of sum_probs. */
void pack_put_alignment(ByteWriter *writer, const PreparedMsa *msa, const TemplateHits *hits, const int32_t *order,
                        int64_t count);
Status pack_get_alignment(const char *name, ByteReader *reader, Arena *arena, PreparedMsa *msa_out,
                          TemplateHits *hits_out);

#endif
