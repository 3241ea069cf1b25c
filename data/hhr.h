/* hhr files of HHsearch -> template hits, in file order.
 *
 * Indices count from 0; the name is the first word of the '>' line. An empty file, or one that ends before the first
 * hit section, has no hits. ERR_INPUT with file and line: a hit whose summary line cannot be read, whose name is not
 * PDBID_chain, rows of different width, numbers that do not match the letters of their row, a hit with another number
 * of aligned columns than its summary says (a file that ends inside a hit). */
#ifndef FOLDSCALE_DATA_HHR_H
#define FOLDSCALE_DATA_HHR_H

#include "data/log.h"
#include "data/text.h"
#include "data/types.h"

Status hhr_parse(const Text *text, const DataLog *log, Arena *arena, TemplateHits *hits_out);

/* "3U8V_A" or "3u8v_A" -> entry "3u8v" (lower case), chain "A"; ERR_INPUT otherwise. Buffers hold the terminator. */
Status hhr_split_name(const char *name, char *entry_out, size_t entry_size, char *chain_out, size_t chain_size);

#endif
