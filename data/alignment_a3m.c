#include <string.h>

#include "data/alignment_rows.h"

/* One row of an a3m file, perhaps on several lines. */
typedef struct A3mRow {
    const char *start; /* first line of letters, NULL before it */
    int64_t width;     /* ids so far */
    int64_t inserted;  /* letters since the last column */
    uint64_t odd;
} A3mRow;

static void collect_odd(const char *line, const char *end, const LetterTable *letters, int64_t column, A3mRow *row,
                        uint8_t *id)
{
    for (; line < end; line++) {
        uint8_t class = letters->of[(unsigned char)*line];
        if (class == LETTER_INSERTED) continue;
        if (class & LETTER_ODD) row->odd = odd_letter_add(row->odd, column, *line);
        id[column++] = class & LETTER_ID;
    }
}

/* The hot loop of the file: one table look-up and one store per column. */
static Status add_line(RowBuilder *builder, const LetterTable *letters, A3mRow *row, const char *line, const char *end)
{
    uint8_t *id = builder->id + builder->used;
    const int64_t first_column = row->width;
    int64_t column = row->width;
    uint8_t seen = 0;
    const char *at = line;
    if (!row->start) row->start = line;
    while (at < end) {
        uint8_t class = letters->of[(unsigned char)*at];
        if (class < LETTER_INSERTED) {
            if (row->inserted) {
                TRY(rows_insert(builder, column, row->inserted));
                row->inserted = 0;
            }
            do {
                id[column++] = class;
                seen |= class;
                at++;
            } while (at < end && (class = letters->of[(unsigned char)*at]) < LETTER_INSERTED);
        } else if (class == LETTER_INSERTED) {
            row->inserted++;
            at++;
        } else {
            return illegal_character(builder->text, at);
        }
    }
    row->width = column;
    if (seen & LETTER_ODD) collect_odd(line, end, letters, first_column, row, id);
    return OK;
}

static Status end_row(RowBuilder *builder, const A3mRow *row, const char *header)
{
    const Text *text = builder->text;
    if (!row->start)
        return status_fail_at(ERR_INPUT, text->name, text_line(text, header),
                              "a header without a sequence, expected letters on the next line");
    size_t before = builder->insertions;
    if (builder->rows == 0 && (before || row->inserted))
        return status_fail_at(ERR_INPUT, text->name, text_line(text, row->start),
                              "insertions (lower case) in the first row: its columns are not the query's");
    return rows_end(builder, row->width, row->odd, row->start);
}

static const char *trim(const char *line, const char *end)
{
    while (end > line && (end[-1] == '\r' || end[-1] == ' ' || end[-1] == '\t')) end--;
    return end;
}

Status rows_parse_a3m(RowBuilder *builder)
{
    const Text *text = builder->text;
    const char *next = text->data, *stop = text->data + text->size, *header = NULL;
    LetterTable letters;
    A3mRow row = {0};
    letter_table_fill(&letters, true);
    while (next < stop) {
        const char *line = next, *newline = memchr(line, '\n', (size_t)(stop - line));
        const char *end = newline ? newline : stop;
        next = newline ? newline + 1 : stop;
        if (*line == '>') {
            if (header) TRY(end_row(builder, &row, header));
            header = line;
            row = (A3mRow){0};
            continue;
        }
        end = trim(line, end);
        if (line == end || *line == '#') continue;
        if (!header)
            return status_fail_at(ERR_INPUT, text->name, text_line(text, line), "a row before the first '>' header");
        TRY(add_line(builder, &letters, &row, line, end));
    }
    return header ? end_row(builder, &row, header) : OK;
}
