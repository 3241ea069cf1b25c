/* CSV tables in and out (RFC 4180 through libcsv). Columns are found by name, cells are text until a typed getter reads
 * them; every error names the file, the line and, where it applies, the column. */
#ifndef FOLDSCALE_ANALYSIS_TABLE_H
#define FOLDSCALE_ANALYSIS_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef struct Table {
    Arena arena;      /* owns every string below */
    const char *file; /* for messages */
    int64_t rows;     /* without the header */
    int columns;
    char **names;      /* [columns] */
    char **cells;      /* [rows * columns], row major; never NULL, "" for an empty cell */
    long *lines;       /* [rows] line of the file on which the row starts, from 1 */
    int64_t row_limit; /* rows that fit in cells */
    long open_line;    /* line of a last row without an end, as a full disk or a crash leaves it; 0: none */
} Table;

/* Reads a whole file. A row with more or fewer cells than the header is refused, as are a repeated or empty column
 * name, a file without a header, and a quote that is never closed. Blank lines are skipped. */
Status table_read(const char *path, Table **table_out);

/* The same from memory; `label` stands for the file in messages. */
Status table_parse(const char *text, size_t length, const char *label, Table **table_out);

/* As table_read, without a last line that has no end; *line_out: which, 0 when all have one. */
Status table_read_ended(const char *path, long *line_out, Table **table_out);

/* ERR_INPUT when the last row has no end. */
Status table_check_end(const Table *table);

void table_destroy(Table **table);

/* Index of the column, or -1. */
int table_find(const Table *table, const char *name);

/* Index of a column that must be there; the error names it, the file and the columns that were found. */
Status table_column(const Table *table, const char *name, int *column_out);

/* Borrowed text of a cell ("" when empty or when column is -1). */
const char *table_cell(const Table *table, int64_t row, int column);

bool table_cell_empty(const Table *table, int64_t row, int column);

/* A finite number; an empty cell, text, NaN or infinity is refused with file, line and column. */
Status table_double(const Table *table, int64_t row, int column, double *value_out);

/* As above, but an empty cell or column -1 gives `fallback` (which may be NAN). */
Status table_double_or(const Table *table, int64_t row, int column, double fallback, double *value_out);

/* A whole number in [low, high]. */
Status table_int(const Table *table, int64_t row, int column, int64_t low, int64_t high, int64_t *value_out);

/* Fails with ERR_INPUT at the given row: FILE:LINE: message. */
Status table_fail(const Table *table, int64_t row, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* --- writing --------------------------------------------------------------------------------------------------------
 * Cells are put in the order of the header; numbers are written with 17 significant digits, so that they read back
 * as the same double; NAN is written as an empty cell. Errors of the operating system are kept and returned by
 * table_writer_row and table_writer_close. */
typedef struct TableWriter TableWriter;

/* A reader never sees half a table, and only a table whose first two columns have the same names is replaced
 * (engine/output.h). */
Status table_writer_create(const char *path, const char *const *names, int columns, TableWriter **writer_out);

/* Appends whole rows to `path` (a log of engine/output.h), flushing each one; writes the header when the file is new or
 * empty, and refuses a file whose header differs or whose last row has no end. For logs that must survive a crash
 * (steps.csv) and for sweeps that go on (runs.csv). */
Status table_writer_append(const char *path, const char *const *names, int columns, TableWriter **writer_out);

void table_put_text(TableWriter *writer, const char *text);
void table_put_double(TableWriter *writer, double value);
void table_put_int(TableWriter *writer, int64_t value);

/* Ends the row; ERR_INTERNAL when the number of cells differs from the header's. */
Status table_writer_row(TableWriter *writer);

/* Flushes, syncs and (after table_writer_create) renames. Clears the pointer; on an error nothing is renamed. */
Status table_writer_close(TableWriter **writer);

/* Drops what was written since table_writer_create. Accepts NULL. */
void table_writer_abandon(TableWriter **writer);

#endif
