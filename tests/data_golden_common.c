#include "tests/data_golden.h"

#include <csv.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

void golden_pass(Golden *golden, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("PASS %s ", golden->section);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    golden->passed++;
}

void golden_fail(Golden *golden, const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("FAIL %s %s: ", golden->section, name);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    golden->failed++;
}

void golden_skip(Golden *golden, const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("SKIP %s %s: ", golden->section, name);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    golden->skipped++;
}

char *golden_path(Arena *arena, const char *folder, const char *format, ...)
{
    char rest[512];
    va_list args;
    va_start(args, format);
    vsnprintf(rest, sizeof rest, format, args);
    va_end(args);
    char *path = arena_printf(arena, "%s/%s", folder, rest);
    if (!path) abort();
    return path;
}

bool golden_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

static bool same_count(const StTensor *tensor, int64_t count, char why[256])
{
    if (tensor && tensor->count == count) return true;
    snprintf(why, 256, "%lld values, expected %lld", (long long)count, (long long)(tensor ? tensor->count : -1));
    return false;
}

bool golden_equal_f32(const StTensor *tensor, const float *ours, int64_t count, char why[256])
{
    if (!same_count(tensor, count, why)) return false;
    for (int64_t i = 0; i < count; i++) {
        float expected = 0;
        if (st_read_f32(tensor, i, 1, &expected) == OK && (expected == ours[i] || (isnan(expected) && isnan(ours[i]))))
            continue;
        snprintf(why, 256, "element %lld is %.9g, expected %.9g", (long long)i, (double)ours[i], (double)expected);
        return false;
    }
    return true;
}

bool golden_equal_i32(const StTensor *tensor, const int32_t *ours, int64_t count, char why[256])
{
    if (!same_count(tensor, count, why)) return false;
    for (int64_t i = 0; i < count; i++) {
        int64_t expected = 0;
        if (st_read_i64(tensor, i, 1, &expected) == OK && expected == ours[i]) continue;
        snprintf(why, 256, "element %lld is %d, expected %lld", (long long)i, ours[i], (long long)expected);
        return false;
    }
    return true;
}

bool golden_equal_u8(const StTensor *tensor, const uint8_t *ours, int64_t count, char why[256])
{
    if (!same_count(tensor, count, why)) return false;
    for (int64_t i = 0; i < count; i++) {
        int64_t expected = 0;
        if (st_read_i64(tensor, i, 1, &expected) == OK && expected == ours[i]) continue;
        snprintf(why, 256, "element %lld is %d, expected %lld", (long long)i, ours[i], (long long)expected);
        return false;
    }
    return true;
}

/* libcsv hands out one field at a time, then the end of the row. */
typedef struct TableReader {
    Arena *arena;
    char **field;
    size_t fields, capacity;
    int64_t columns, rows, in_row;
    bool failed;
} TableReader;

static void on_field(void *data, size_t length, void *context)
{
    TableReader *reader = context;
    if (reader->fields == reader->capacity) {
        size_t capacity = reader->capacity ? 2 * reader->capacity : 256;
        char **grown = realloc(reader->field, capacity * sizeof *grown);
        if (!grown) abort();
        reader->field = grown;
        reader->capacity = capacity;
    }
    reader->field[reader->fields++] = arena_strndup(reader->arena, data, length);
    reader->in_row++;
}

static void on_row(int terminator, void *context)
{
    (void)terminator;
    TableReader *reader = context;
    if (reader->rows == 0) reader->columns = reader->in_row;
    if (reader->in_row != reader->columns) reader->failed = true;
    reader->in_row = 0;
    reader->rows++;
}

bool golden_table_read(Golden *golden, const char *path, Arena *arena, GoldenTable *table_out)
{
    FILE *stream = fopen(path, "rb");
    struct csv_parser parser;
    TableReader reader = {.arena = arena};
    if (!stream) {
        golden_skip(golden, path, "not there");
        return false;
    }
    if (csv_init(&parser, 0) != 0) abort();
    char bytes[65536];
    for (size_t got; (got = fread(bytes, 1, sizeof bytes, stream)) > 0;)
        if (csv_parse(&parser, bytes, got, on_field, on_row, &reader) != got) reader.failed = true;
    csv_fini(&parser, on_field, on_row, &reader);
    csv_free(&parser);
    fclose(stream);
    if (reader.failed || reader.rows == 0) {
        golden_fail(golden, path, "not a table");
        free(reader.field);
        return false;
    }
    *table_out = (GoldenTable){reader.rows - 1, reader.columns, arena_array(arena, reader.fields, sizeof(char *))};
    if (!table_out->cell) abort();
    memcpy(table_out->cell, reader.field, reader.fields * sizeof(char *));
    free(reader.field);
    return true;
}

const char *golden_cell(const GoldenTable *table, int64_t row, const char *column)
{
    for (int64_t c = 0; c < table->columns; c++)
        if (strcmp(table->cell[c], column) == 0) return table->cell[(row + 1) * table->columns + c];
    return "";
}
