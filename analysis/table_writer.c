#include "analysis/table.h"

#include <csv.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/output.h"

struct TableWriter {
    Arena arena;
    FILE *file;
    char *path;
    Output output; /* unused when appending */
    bool appends;
    int columns, cells;
    bool failed;
    int error; /* errno of the first failure */
};

static void note_error(TableWriter *w, bool bad)
{
    if (!bad || w->failed) return;
    w->failed = true;
    w->error = errno;
}

static Status writer_status(const TableWriter *w)
{
    if (!w->failed) return OK;
    return status_fail_at(ERR_IO, w->path, 0, "cannot write: %s", strerror(w->error));
}

static void release(TableWriter *w)
{
    if (w->file) fclose(w->file);
    arena_free(&w->arena);
    free(w);
}

static Status put_header(TableWriter *w, const char *const *names)
{
    for (int c = 0; c < w->columns; c++) table_put_text(w, names[c]);
    return table_writer_row(w);
}

static Status writer_new(const char *path, int columns, TableWriter **writer_out)
{
    TableWriter *w = calloc(1, sizeof *w);
    if (!w) return status_fail_at(ERR_MEMORY, path, 0, "out of memory while writing a table");
    w->columns = columns;
    w->path = arena_strdup(&w->arena, path);
    if (!w->path) {
        release(w);
        return status_fail_at(ERR_MEMORY, path, 0, "out of memory while writing a table");
    }
    *writer_out = w;
    return OK;
}

Status table_writer_create(const char *path, const char *const *names, int columns, TableWriter **writer_out)
{
    TableWriter *w = NULL;
    TRY(writer_new(path, columns, &w));
    /* one name is not enough to know a table by: several begin with "step" */
    char *begins = arena_printf(&w->arena, "%s%s%s%s", names[0], columns > 1 ? "," : "", columns > 1 ? names[1] : "",
                                columns > 2 ? "," : "");
    Status status = begins ? output_open(path, begins, &w->output)
                           : status_fail_at(ERR_MEMORY, path, 0, "out of memory while writing a table");
    if (status != OK) {
        release(w);
        return status;
    }
    w->file = w->output.file;
    status = put_header(w, names);
    if (status != OK) {
        table_writer_abandon(&w);
        return status;
    }
    *writer_out = w;
    return OK;
}

/* The header of an existing log must be the one about to be written: rows of two schemas in one file cannot be read. */
static Status check_header(const char *path, const char *const *names, int columns)
{
    Table *table;
    TRY(table_read(path, &table));
    Status status = OK;
    if (table->columns != columns)
        status =
            status_fail_at(ERR_INPUT, path, 1, "has %d columns (expected %d): made by another version? move it away",
                           table->columns, columns);
    for (int c = 0; status == OK && c < columns; c++)
        if (strcmp(table->names[c], names[c]))
            status = status_fail_at(ERR_INPUT, path, 1, "column %d is \"%s\" (expected \"%s\")", c + 1, table->names[c],
                                    names[c]);
    if (status == OK) status = table_check_end(table);
    table_destroy(&table);
    return status;
}

Status table_writer_append(const char *path, const char *const *names, int columns, TableWriter **writer_out)
{
    TableWriter *w = NULL;
    int handle;
    bool fresh;
    TRY(output_open_log(path, true, NULL, &handle, &fresh)); /* check_header says what differs */
    FILE *file = fdopen(handle, "wb"); /* "a" would make the standard output of others append too */
    if (!file) {
        close(handle);
        return status_fail_at(ERR_MEMORY, path, 0, "out of memory while writing a table");
    }
    Status status = fresh ? OK : check_header(path, names, columns);
    if (status == OK) status = writer_new(path, columns, &w);
    if (status != OK) {
        fclose(file);
        return status;
    }
    w->file = file;
    w->appends = true;
    if (fresh) status = put_header(w, names);
    if (status != OK) {
        release(w);
        return status;
    }
    *writer_out = w;
    return OK;
}

void table_put_text(TableWriter *w, const char *text)
{
    if (w->cells++) note_error(w, fputc(',', w->file) == EOF);
    if (!text[strcspn(text, ",\"\r\n")] && text[0] != ' ' && (!*text || text[strlen(text) - 1] != ' '))
        note_error(w, fputs(text, w->file) == EOF);
    else
        note_error(w, csv_fwrite(w->file, text, strlen(text)) != 0);
}

void table_put_double(TableWriter *w, double value)
{
    char text[40] = "";
    /* the shortest of 15, 16 and 17 digits that reads back as the same number */
    for (int digits = 15; digits <= 17 && !isnan(value); digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    table_put_text(w, text);
}

void table_put_int(TableWriter *w, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    table_put_text(w, text);
}

Status table_writer_row(TableWriter *w)
{
    if (w->cells != w->columns)
        return status_fail_at(ERR_INTERNAL, w->path, 0, "row of %d cells under a header of %d", w->cells, w->columns);
    w->cells = 0;
    note_error(w, fputc('\n', w->file) == EOF);
    if (w->appends) note_error(w, fflush(w->file) != 0);
    return writer_status(w);
}

Status table_writer_close(TableWriter **writer)
{
    if (!writer || !*writer) return OK;
    TableWriter *w = *writer;
    *writer = NULL;
    note_error(w, fflush(w->file) != 0);
    if (w->appends) note_error(w, fclose(w->file) != 0);
    Status status = writer_status(w);
    if (!w->appends && status == OK)
        status = output_close(&w->output);
    else if (!w->appends)
        output_abandon(&w->output);
    w->file = NULL;
    release(w);
    return status;
}

void table_writer_abandon(TableWriter **writer)
{
    if (!writer || !*writer) return;
    TableWriter *w = *writer;
    *writer = NULL;
    if (!w->appends) {
        output_abandon(&w->output);
        w->file = NULL;
    }
    release(w);
}
