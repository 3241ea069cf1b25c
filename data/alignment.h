/* Multiple sequence alignments: a3m and Stockholm -> Msa; joining of several databases.
 *
 * Ids are those of the HHblits alphabet (data/residue/msa_alphabet.csv), gap 21. deletions[row, column] counts the
 * letters of the row inserted before this column; those after the last column are dropped.
 * A file without rows gives rows = 0 ("no alignment") and a remark. Stockholm rows may be spread over several blocks;
 * columns where the first row has a gap become insertions; letters are read in either case and '.' is a gap. */
#ifndef FOLDSCALE_DATA_ALIGNMENT_H
#define FOLDSCALE_DATA_ALIGNMENT_H

#include "data/log.h"
#include "data/text.h"
#include "data/types.h"

/* ERR_INPUT with file and line: rows of unequal width, characters that are not letters or gaps, a row before the first
 * header, a header without a row, insertions in the first row. */
Status alignment_parse_a3m(const Text *text, const DataLog *log, Arena *arena, Msa *msa_out);
Status alignment_parse_stockholm(const Text *text, const DataLog *log, Arena *arena, Msa *msa_out);

/* By the ending of text->name (or of `name` within a database): .a3m or .sto, each also with .gz. */
Status alignment_parse(const Text *text, const char *name, const DataLog *log, Arena *arena, Msa *msa_out);

/* ERR_INPUT unless the first row is exactly `sequence` (compared as HHblits ids) and there is a column per residue. The
 * reference never compares them; a shifted alignment would train on noise. An empty alignment passes. */
Status alignment_check_query(const Msa *msa, const char *name, const char *chain_id, const char *sequence);

/* Rows of all parts in their order; a row whose aligned letters were seen before is dropped, so the first one keeps its
 * deletions. Parts without rows are skipped; if none has rows, the result is the one row `sequence`. ERR_INPUT when a
 * part has another number of columns. */
Status alignment_join(const Msa *parts, int64_t count, const char *sequence, Arena *arena, Msa *msa_out);

/* Order of the databases of one chain: uniref90, bfd_uniclust (or small_bfd), mgnify, then others by name, uniprot
 * last. Negative, 0 or positive as strcmp. Names are file names such as "uniref90_hits.a3m". */
int alignment_order(const char *name, const char *other);

/* Letter -> HHblits id (either case), gaps -> 21, 255 for anything else. */
uint8_t alignment_letter_id(char letter);

#endif
