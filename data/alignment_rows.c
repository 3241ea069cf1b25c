#include "data/alignment_rows.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "data/residue.h"

void letter_table_fill(LetterTable *table, bool is_a3m)
{
    const uint8_t *ids = residue_tables()->letter_to_hhblits;
    memset(table->of, LETTER_ILLEGAL, sizeof table->of);
    for (int letter = 'A'; letter <= 'Z'; letter++) {
        uint8_t class = ids[letter];
        if (strchr("BZUJO", letter)) class |= LETTER_ODD;
        table->of[letter] = class;
        table->of[tolower(letter)] = is_a3m ? LETTER_INSERTED : class;
    }
    table->of['-'] = RESTYPE_GAP;
    if (!is_a3m) table->of['.'] = RESTYPE_GAP;
}

uint64_t odd_letter_add(uint64_t hash, int64_t column, char letter)
{
    /* multiply and xor-shift with the constants of splitmix64 (Steele, Lea, Flood 2014) */
    hash ^= (uint64_t)column << 8 | (unsigned char)toupper((unsigned char)letter);
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    hash ^= hash >> 31;
    return hash ? hash : 1;
}

Status illegal_character(const Text *text, const char *at)
{
    unsigned char c = (unsigned char)*at;
    if (c > 32 && c < 127)
        return status_fail_at(ERR_INPUT, text->name, text_line(text, at), "'%c' in a row, expected letters and gaps",
                              c);
    return status_fail_at(ERR_INPUT, text->name, text_line(text, at), "byte 0x%02x in a row, expected letters and gaps",
                          c);
}

static Status no_memory(const RowBuilder *builder)
{
    return status_fail_at(ERR_MEMORY, builder->text->name, 0, "no memory for the alignment");
}

Status rows_begin(RowBuilder *builder, const Text *text, Arena *arena)
{
    *builder = (RowBuilder){.text = text, .columns = -1};
    builder->id = arena_array(arena, text->size + 1, 1);
    return builder->id ? OK : no_memory(builder);
}

Status rows_insert(RowBuilder *builder, int64_t column, int64_t count)
{
    if (builder->insertions == builder->insertion_capacity) {
        size_t capacity = builder->insertion_capacity ? 2 * builder->insertion_capacity : 256;
        Insertion *grown = realloc(builder->insertion, capacity * sizeof *grown);
        if (!grown) return no_memory(builder);
        builder->insertion = grown;
        builder->insertion_capacity = capacity;
    }
    int32_t clipped = count < INT32_MAX ? (int32_t)count : INT32_MAX;
    builder->insertion[builder->insertions++] = (Insertion){builder->rows, column, clipped};
    return OK;
}

Status rows_end(RowBuilder *builder, int64_t width, uint64_t odd, const char *at)
{
    if (builder->columns < 0) {
        if (width == 0)
            return status_fail_at(ERR_INPUT, builder->text->name, text_line(builder->text, at),
                                  "the first row has no columns");
        builder->columns = width;
        builder->query_line = text_line(builder->text, at);
    }
    if (width != builder->columns)
        return status_fail_at(ERR_INPUT, builder->text->name, text_line(builder->text, at),
                              "row %lld has %lld columns, expected %lld as in the first row",
                              (long long)builder->rows + 1, (long long)width, (long long)builder->columns);
    if ((size_t)builder->rows == builder->odd_capacity) {
        size_t capacity = builder->odd_capacity ? 2 * builder->odd_capacity : 256;
        uint64_t *grown = realloc(builder->odd, capacity * sizeof *grown);
        if (!grown) return no_memory(builder);
        builder->odd = grown;
        builder->odd_capacity = capacity;
    }
    builder->odd[builder->rows++] = odd;
    builder->used += width;
    return OK;
}

void rows_free(RowBuilder *builder)
{
    free(builder->insertion);
    free(builder->odd);
    builder->insertion = NULL;
    builder->odd = NULL;
}

Status rows_finish(const RowBuilder *builder, Arena *arena, Msa *msa_out)
{
    size_t rows = (size_t)builder->rows, columns = rows ? (size_t)builder->columns : 0;
    Msa msa = {.rows = builder->rows,
               .columns = (int64_t)columns,
               .hhblits_id = builder->id,
               .query_line = builder->query_line};
    /* zeroed by the arena; pages of rows without insertions are never touched */
    msa.deletions = arena_array(arena, rows * columns, sizeof *msa.deletions);
    msa.odd_letters = arena_array(arena, rows, sizeof *msa.odd_letters);
    if (!msa.deletions || !msa.odd_letters) return no_memory(builder);
    if (rows) memcpy(msa.odd_letters, builder->odd, rows * sizeof *msa.odd_letters);
    for (size_t i = 0; i < builder->insertions; i++) {
        const Insertion *insertion = &builder->insertion[i];
        /* letters after the last column are counted nowhere */
        if (insertion->column < builder->columns)
            msa.deletions[insertion->row * builder->columns + insertion->column] = insertion->count;
    }
    *msa_out = msa;
    return OK;
}
