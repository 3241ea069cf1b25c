/* Inside of the alignment readers: rows of HHblits ids as they are found. */
#ifndef FOLDSCALE_DATA_ALIGNMENT_ROWS_H
#define FOLDSCALE_DATA_ALIGNMENT_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/alignment.h"

/* Classes of a character: an id (0..21), perhaps with the flag ODD; or one of the following. */
enum {
    LETTER_ODD = 0x20,      /* B Z U J O: shares its id with another letter */
    LETTER_INSERTED = 0x40, /* lower case */
    LETTER_ILLEGAL = 0x80,
    LETTER_ID = 0x1f
};

typedef struct LetterTable {
    uint8_t of[256];
} LetterTable;

/* a3m: lower case is an insertion, '.' is refused (in a2m it marks gaps inside insertions, which are no columns).
 * Stockholm: case does not matter, '.' is a gap. */
void letter_table_fill(LetterTable *table, bool is_a3m);

typedef struct Insertion {
    int64_t row, column;
    int32_t count;
} Insertion;

/* Ids go to `id`, which is as large as the text: every id comes from one character, so it cannot overflow. */
typedef struct RowBuilder {
    const Text *text;
    uint8_t *id;
    int64_t used;    /* ids so far, of all rows */
    int64_t columns; /* of the first row; -1 before it */
    int64_t rows;
    long query_line; /* of the first row */
    Insertion *insertion;
    size_t insertions, insertion_capacity;
    uint64_t *odd;
    size_t odd_capacity;
} RowBuilder;

Status rows_begin(RowBuilder *builder, const Text *text, Arena *arena);
Status rows_insert(RowBuilder *builder, int64_t column, int64_t count);
/* Ends a row of `width` ids (already stored at id + used); `odd` as in Msa. */
Status rows_end(RowBuilder *builder, int64_t width, uint64_t odd, const char *at);
void rows_free(RowBuilder *builder);

/* A whole file, by the ending of `name`. After an error there is nothing to free; builder->text must not be used once
 * the text is closed. */
Status rows_parse(const Text *text, const char *name, const DataLog *log, Arena *arena, RowBuilder *builder);
Status rows_parse_a3m(RowBuilder *builder);
Status rows_parse_stockholm(RowBuilder *builder, const DataLog *log);
/* The rows as an Msa. */
Status rows_finish(const RowBuilder *builder, Arena *arena, Msa *msa_out);
/* alignment_join without a deletion matrix for every part: most of its pages would be touched for nothing. */
Status rows_join(const RowBuilder *parts, int64_t count, const char *sequence, Arena *arena, Msa *msa_out);

/* Adds a letter that shares its id to the hash of a row. */
uint64_t odd_letter_add(uint64_t hash, int64_t column, char letter);

Status illegal_character(const Text *text, const char *at);

#endif
