#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment_rows.h"

/* A piece of a row: rows of a long alignment come in blocks, each with a piece of every row. */
typedef struct Piece {
    const char *at;
    size_t length;
    int64_t next; /* piece of the same row in the next block, -1 for the last */
} Piece;

typedef struct StockholmRow {
    const char *name;
    size_t name_length;
    int64_t first, last; /* pieces */
    size_t width;
} StockholmRow;

typedef struct Stockholm {
    const Text *text;
    Piece *piece;
    int64_t pieces, piece_capacity;
    StockholmRow *row;
    int64_t rows, row_capacity;
    int64_t *slot; /* hash of names -> row + 1 */
    size_t slots;  /* a power of two */
    int64_t last_row;
} Stockholm;

static Status no_memory(const Stockholm *file)
{
    return status_fail_at(ERR_MEMORY, file->text->name, 0, "no memory for the alignment");
}

static uint64_t hash_name(const char *name, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)name[i]) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

static Status grow_slots(Stockholm *file)
{
    size_t slots = file->slots ? 2 * file->slots : 1024;
    int64_t *slot = calloc(slots, sizeof *slot);
    if (!slot) return no_memory(file);
    for (int64_t r = 0; r < file->rows; r++) {
        size_t at = hash_name(file->row[r].name, file->row[r].name_length) & (slots - 1);
        while (slot[at]) at = (at + 1) & (slots - 1);
        slot[at] = r + 1;
    }
    free(file->slot);
    file->slot = slot;
    file->slots = slots;
    return OK;
}

static bool same_name(const StockholmRow *row, const char *name, size_t length)
{
    return row->name_length == length && memcmp(row->name, name, length) == 0;
}

/* Later blocks repeat the order of the first, so the row after the last one is tried before the hash. */
static Status find_row(Stockholm *file, const char *name, size_t length, int64_t *row_out)
{
    int64_t guess = file->last_row + 1 < file->rows ? file->last_row + 1 : 0;
    if (file->rows && same_name(&file->row[guess], name, length)) {
        *row_out = guess;
        return OK;
    }
    if ((size_t)file->rows * 2 >= file->slots) TRY(grow_slots(file));
    size_t at = hash_name(name, length) & (file->slots - 1);
    for (; file->slot[at]; at = (at + 1) & (file->slots - 1)) {
        *row_out = file->slot[at] - 1;
        if (same_name(&file->row[*row_out], name, length)) return OK;
    }
    if (file->rows == file->row_capacity) {
        int64_t capacity = file->row_capacity ? 2 * file->row_capacity : 256;
        StockholmRow *grown = realloc(file->row, (size_t)capacity * sizeof *grown);
        if (!grown) return no_memory(file);
        file->row = grown;
        file->row_capacity = capacity;
    }
    file->row[file->rows] = (StockholmRow){.name = name, .name_length = length, .first = -1, .last = -1};
    file->slot[at] = file->rows + 1;
    *row_out = file->rows++;
    return OK;
}

static Status add_piece(Stockholm *file, int64_t r, const char *at, size_t length)
{
    if (file->pieces == file->piece_capacity) {
        int64_t capacity = file->piece_capacity ? 2 * file->piece_capacity : 256;
        Piece *grown = realloc(file->piece, (size_t)capacity * sizeof *grown);
        if (!grown) return no_memory(file);
        file->piece = grown;
        file->piece_capacity = capacity;
    }
    StockholmRow *row = &file->row[r];
    file->piece[file->pieces] = (Piece){at, length, -1};
    if (row->last >= 0)
        file->piece[row->last].next = file->pieces;
    else
        row->first = file->pieces;
    row->last = file->pieces++;
    row->width += length;
    file->last_row = r;
    return OK;
}

static const char *skip_to(const char *at, const char *end, int blank)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r') != blank) at++;
    return at;
}

static Status collect_line(Stockholm *file, const char *line, const char *end)
{
    const Text *text = file->text;
    const char *name_end = skip_to(line, end, 1), *row = skip_to(name_end, end, 0), *row_end = skip_to(row, end, 1);
    if (row == row_end)
        return status_fail_at(ERR_INPUT, text->name, text_line(text, line), "\"%.*s\" without a sequence",
                              (int)(name_end - line < 60 ? name_end - line : 60), line);
    if (skip_to(row_end, end, 0) != end)
        return status_fail_at(ERR_INPUT, text->name, text_line(text, line), "three words, expected a name and a row");
    int64_t r = 0;
    TRY(find_row(file, line, (size_t)(name_end - line), &r));
    return add_piece(file, r, row, (size_t)(row_end - row));
}

static Status collect(Stockholm *file, const DataLog *log)
{
    const Text *text = file->text;
    const char *next = text->data, *stop = text->data + text->size;
    bool headed = false, ended = false;
    while (next < stop) {
        const char *line = next, *newline = memchr(line, '\n', (size_t)(stop - line));
        const char *end = newline ? newline : stop;
        next = newline ? newline + 1 : stop;
        line = skip_to(line, end, 0);
        if (line == end) continue;
        if (ended)
            return status_fail_at(ERR_INPUT, text->name, text_line(text, line),
                                  "more after the end mark //, expected one alignment");
        if (*line == '#') {
            headed = headed || (end - line >= 11 && memcmp(line, "# STOCKHOLM", 11) == 0);
            continue;
        }
        if (end - line >= 2 && line[0] == '/' && line[1] == '/') {
            ended = true;
            continue;
        }
        TRY(collect_line(file, line, end));
    }
    if (!headed) data_warn(log, text->name, 1, "no \"# STOCKHOLM\" line");
    if (!ended && file->rows) data_warn(log, text->name, 0, "no end mark //: truncated?");
    return OK;
}

/* Columns where the first row has a gap are insertions. `kept` is a byte per raw column. */
static Status mark_columns(const Stockholm *file, const LetterTable *letters, uint8_t **kept_out)
{
    const StockholmRow *query = &file->row[0];
    uint8_t *kept = malloc(query->width + 1);
    if (!kept) return no_memory(file);
    size_t column = 0;
    for (int64_t p = query->first; p >= 0; p = file->piece[p].next)
        for (size_t i = 0; i < file->piece[p].length; i++)
            kept[column++] = letters->of[(unsigned char)file->piece[p].at[i]] != RESTYPE_GAP;
    *kept_out = kept;
    return OK;
}

static Status add_row(RowBuilder *builder, const Stockholm *file, const LetterTable *letters, int64_t r,
                      const uint8_t *kept)
{
    const StockholmRow *row = &file->row[r];
    const char *first = file->piece[row->first].at;
    if (row->width != file->row[0].width)
        return status_fail_at(ERR_INPUT, file->text->name, text_line(file->text, first),
                              "row %lld (%.*s) has %zu columns, expected %zu as in the first row", (long long)r + 1,
                              (int)(row->name_length < 60 ? row->name_length : 60), row->name, row->width,
                              file->row[0].width);
    uint8_t *id = builder->id + builder->used;
    int64_t column = 0, inserted = 0;
    uint64_t odd = 0;
    for (int64_t p = row->first; p >= 0; p = file->piece[p].next) {
        const char *at = file->piece[p].at, *end = at + file->piece[p].length;
        for (; at < end; at++, kept++) {
            uint8_t class = letters->of[(unsigned char)*at];
            if (class == LETTER_ILLEGAL) return illegal_character(file->text, at);
            if (!*kept) {
                inserted += class != RESTYPE_GAP;
                continue;
            }
            if (inserted) {
                TRY(rows_insert(builder, column, inserted));
                inserted = 0;
            }
            if (class & LETTER_ODD) odd = odd_letter_add(odd, column, *at);
            id[column++] = class & LETTER_ID;
        }
    }
    return rows_end(builder, column, odd, first);
}

static Status build(const Stockholm *file, RowBuilder *builder)
{
    LetterTable letters;
    uint8_t *kept = NULL;
    if (!file->rows) return OK;
    letter_table_fill(&letters, false);
    TRY(mark_columns(file, &letters, &kept));
    Status status = OK;
    for (int64_t r = 0; r < file->rows && status == OK; r++) status = add_row(builder, file, &letters, r, kept);
    free(kept);
    return status;
}

Status rows_parse_stockholm(RowBuilder *builder, const DataLog *log)
{
    Stockholm file = {.text = builder->text, .last_row = -1};
    Status status = collect(&file, log);
    if (status == OK) status = build(&file, builder);
    free(file.piece);
    free(file.row);
    free(file.slot);
    return status;
}
