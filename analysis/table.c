#include "analysis/table.h"

#include <csv.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/input.h"
#include "engine/words.h"

enum { COLUMN_LIMIT = 4096, CHUNK_BYTES = 1 << 16 };

/* State of one pass of libcsv. The library reports fields and row ends but no line numbers: they are counted from the
 * bytes fed, one byte at a time at row ends only (line_of_row is updated when a row's first field arrives). */
typedef struct Parser {
    Table *table;
    char **row; /* cells of the row being read */
    int cells, row_capacity;
    long line;     /* line of the byte being fed */
    long row_line; /* line on which the present row began */
    bool have_header;
    Status status;
} Parser;

static Status out_of_memory(const char *file)
{
    return status_fail_at(ERR_MEMORY, file, 0, "out of memory while reading a table");
}

static void parser_field(void *text, size_t length, void *context)
{
    Parser *p = context;
    if (p->status != OK) return;
    if (p->cells == p->row_capacity) {
        if (p->row_capacity >= COLUMN_LIMIT) {
            p->status = status_fail_at(ERR_INPUT, p->table->file, p->row_line, "more than %d cells in one row",
                                       (int)COLUMN_LIMIT);
            return;
        }
        int capacity = p->row_capacity ? p->row_capacity * 2 : 32;
        char **row = realloc(p->row, (size_t)capacity * sizeof *row);
        if (!row) {
            p->status = out_of_memory(p->table->file);
            return;
        }
        p->row = row;
        p->row_capacity = capacity;
    }
    if (length && memchr(text, '\0', length)) {
        p->status = status_fail_at(ERR_INPUT, p->table->file, p->row_line, "a zero byte: this is not a CSV file");
        return;
    }
    char *copy = arena_strndup(&p->table->arena, length ? text : "", length);
    if (!copy) {
        p->status = out_of_memory(p->table->file);
        return;
    }
    p->row[p->cells++] = copy;
}

static Status take_header(Parser *p)
{
    Table *t = p->table;
    t->names = arena_array(&t->arena, (size_t)p->cells, sizeof *t->names);
    if (!t->names) return out_of_memory(t->file);
    /* a byte order mark, as some spreadsheets write, is not part of the first name */
    if (strncmp(p->row[0], "\xEF\xBB\xBF", 3) == 0) p->row[0] += 3;
    for (int c = 0; c < p->cells; c++) {
        if (!p->row[c][0]) return status_fail_at(ERR_INPUT, t->file, p->row_line, "column %d has no name", c + 1);
        for (int other = 0; other < c; other++)
            if (!strcmp(p->row[other], p->row[c]))
                return status_fail_at(ERR_INPUT, t->file, p->row_line, "column \"%s\" appears twice", p->row[c]);
        t->names[c] = p->row[c];
    }
    t->columns = p->cells;
    p->have_header = true;
    return OK;
}

static Status take_row(Parser *p)
{
    Table *t = p->table;
    if (!p->have_header) return take_header(p);
    if (p->cells != t->columns)
        return status_fail_at(ERR_INPUT, t->file, p->row_line, "row has %d cells (expected %d, as in the header)%s",
                              p->cells, t->columns, t->open_line ? " and no end: cut short?" : "");
    if (t->rows == t->row_limit) {
        int64_t limit = t->row_limit ? t->row_limit * 2 : 256;
        char **cells = realloc(t->cells, (size_t)limit * (size_t)t->columns * sizeof *cells);
        if (!cells) return out_of_memory(t->file);
        t->cells = cells;
        long *lines = realloc(t->lines, (size_t)limit * sizeof *lines);
        if (!lines) return out_of_memory(t->file);
        t->lines = lines;
        t->row_limit = limit;
    }
    memcpy(t->cells + t->rows * t->columns, p->row, (size_t)t->columns * sizeof *p->row);
    t->lines[t->rows++] = p->row_line;
    return OK;
}

static void parser_row(int terminator, void *context)
{
    Parser *p = context;
    if (p->status != OK) return;
    if (terminator == -1) p->table->open_line = p->row_line; /* called from csv_fini */
    if (p->cells > 0) p->status = take_row(p);
    p->cells = 0;
    p->row_line = p->line + 1;
}

static Status parse_with(struct csv_parser *csv, Parser *p, const char *text, size_t length)
{
    size_t done = 0;
    while (done < length && p->status == OK) {
        /* feed up to and including a newline, so that the callbacks know the line they are on */
        const char *newline = memchr(text + done, '\n', length - done);
        size_t count = newline ? (size_t)(newline - text) - done + 1 : length - done;
        if (csv_parse(csv, text + done, count, parser_field, parser_row, p) != count)
            return status_fail_at(ERR_INPUT, p->table->file, p->line, "malformed CSV: %s",
                                  csv_strerror(csv_error(csv)));
        if (newline) {
            p->line++;
            if (p->cells == 0 && !csv->quoted) p->row_line = p->line;
        }
        done += count;
    }
    if (p->status == OK && csv_fini(csv, parser_field, parser_row, p) != 0)
        return status_fail_at(ERR_INPUT, p->table->file, p->row_line, "a quoted cell that starts here never ends");
    TRY(p->status);
    if (!p->have_header)
        return status_fail_at(ERR_INPUT, p->table->file, 0, "empty (expected a header row of column names)");
    return OK;
}

Status table_parse(const char *text, size_t length, const char *label, Table **table_out)
{
    Table *table = calloc(1, sizeof *table);
    if (!table) return out_of_memory(label);
    Parser parser = {.table = table, .line = 1, .row_line = 1};
    struct csv_parser csv;
    Status status = OK;
    table->file = arena_strdup(&table->arena, label);
    if (!table->file || csv_init(&csv, CSV_STRICT | CSV_STRICT_FINI | CSV_APPEND_NULL)) {
        table_destroy(&table);
        return out_of_memory(label);
    }
    status = parse_with(&csv, &parser, text, length);
    csv_free(&csv);
    free(parser.row);
    if (status != OK) {
        table_destroy(&table);
        return status;
    }
    *table_out = table;
    return OK;
}

static Status read_all(const char *path, char **text_out, size_t *length_out)
{
    FILE *file;
    TRY(input_open(path, &file));
    char *text = NULL;
    size_t length = 0, capacity = 0, got;
    do {
        if (capacity - length < CHUNK_BYTES) {
            capacity = capacity ? capacity * 2 : 2 * CHUNK_BYTES;
            char *larger = realloc(text, capacity);
            if (!larger) {
                free(text);
                fclose(file);
                return out_of_memory(path);
            }
            text = larger;
        }
        got = fread(text + length, 1, CHUNK_BYTES, file);
        length += got;
    } while (got > 0);
    if (ferror(file)) {
        Status status = status_fail_at(ERR_IO, path, 0, "cannot read: %s", strerror(errno));
        free(text);
        fclose(file);
        return status;
    }
    fclose(file);
    *text_out = text;
    *length_out = length;
    return OK;
}

Status table_read(const char *path, Table **table_out)
{
    char *text = NULL;
    size_t length = 0;
    TRY(read_all(path, &text, &length));
    Status status = table_parse(text, length, path, table_out);
    free(text);
    return status;
}

Status table_read_ended(const char *path, long *line_out, Table **table_out)
{
    char *text = NULL;
    size_t length = 0, whole;
    TRY(read_all(path, &text, &length));
    for (whole = length; whole > 0 && text[whole - 1] != '\n';) whole--;
    *line_out = 0;
    for (size_t i = 0; whole < length && i < whole; i++) *line_out += text[i] == '\n';
    if (whole < length) ++*line_out;
    Status status = table_parse(text, whole, path, table_out);
    free(text);
    return status;
}

Status table_check_end(const Table *table)
{
    if (!table->open_line) return OK;
    return status_fail_at(ERR_INPUT, table->file, table->open_line,
                          "the last row has no end (cut short?): remove it, or end it with a line break");
}

void table_destroy(Table **table)
{
    if (!table || !*table) return;
    arena_free(&(*table)->arena);
    free((*table)->cells);
    free((*table)->lines);
    free(*table);
    *table = NULL;
}

int table_find(const Table *table, const char *name)
{
    for (int c = 0; c < table->columns; c++)
        if (!strcmp(table->names[c], name)) return c;
    return -1;
}

Status table_column(const Table *table, const char *name, int *column_out)
{
    int column = table_find(table, name);
    if (column < 0) {
        WordList found = {0};
        for (int c = 0; c < table->columns; c++) {
            char start[31]; /* a table with another separator has all names in one */
            snprintf(start, sizeof start, "%s", table->names[c]);
            words_add(&found, start);
        }
        return status_fail_at(ERR_INPUT, table->file, 1, "column \"%s\" is missing (found: %s)", name, found.text);
    }
    *column_out = column;
    return OK;
}

const char *table_cell(const Table *table, int64_t row, int column)
{
    if (column < 0 || column >= table->columns || row < 0 || row >= table->rows) return "";
    return table->cells[row * table->columns + column];
}

bool table_cell_empty(const Table *table, int64_t row, int column)
{
    return table_cell(table, row, column)[0] == '\0';
}

Status table_fail(const Table *table, int64_t row, const char *format, ...)
{
    char text[700];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    long line = row >= 0 && row < table->rows ? table->lines[row] : 0;
    return status_fail_at(ERR_INPUT, table->file, line, "%s", text);
}

Status table_double(const Table *table, int64_t row, int column, double *value_out)
{
    const char *cell = table_cell(table, row, column);
    const char *name = column >= 0 && column < table->columns ? table->names[column] : "?";
    char *end;
    double value = strtod(cell, &end);
    if (!*cell) return table_fail(table, row, "column \"%s\" is empty (expected a number)", name);
    if (end == cell || *end)
        return table_fail(table, row, "column \"%s\" is \"%.60s\" (expected a number)", name, cell);
    if (!isfinite(value))
        return table_fail(table, row, "column \"%s\" is \"%.60s\" (expected a finite number)", name, cell);
    *value_out = value;
    return OK;
}

Status table_double_or(const Table *table, int64_t row, int column, double fallback, double *value_out)
{
    if (table_cell_empty(table, row, column)) {
        *value_out = fallback;
        return OK;
    }
    return table_double(table, row, column, value_out);
}

Status table_int(const Table *table, int64_t row, int column, int64_t low, int64_t high, int64_t *value_out)
{
    const char *cell = table_cell(table, row, column);
    const char *name = column >= 0 && column < table->columns ? table->names[column] : "?";
    char *end;
    errno = 0;
    long long value = strtoll(cell, &end, 10);
    if (end == cell || *end || errno || value < low || value > high)
        return table_fail(table, row, "column \"%s\" is \"%.60s\" (expected a whole number from %lld to %lld)", name,
                          cell, (long long)low, (long long)high);
    *value_out = value;
    return OK;
}
