#include "experiments/published.h"

#include <stdio.h>
#include <string.h>

#ifndef FOLDSCALE_SOURCE_DIR
#define FOLDSCALE_SOURCE_DIR "."
#endif

static const char default_path[] = FOLDSCALE_SOURCE_DIR "/data/published/mlperf_hpc_v3_openfold.csv";

const char *published_default(void)
{
    return default_path;
}

const char *published_experiment(void)
{
    return FOLDSCALE_SOURCE_DIR "/experiments/initial_training.yaml";
}

typedef struct Columns {
    int organization, accelerator, gpus, dap, batch, step;
} Columns;

static Status find_columns(const Table *t, Columns *c)
{
    TRY(table_column(t, "organization", &c->organization));
    TRY(table_column(t, "accelerator", &c->accelerator));
    TRY(table_column(t, "train_gpus", &c->gpus));
    TRY(table_column(t, "dap", &c->dap));
    TRY(table_column(t, "global_batch", &c->batch));
    return table_column(t, "median_step_s", &c->step);
}

static Status add_row(const Table *t, const Columns *c, int64_t row, Arena *arena, PublishedPoint *points, int *runs,
                      int *count)
{
    double gpus, batch, step;
    TRY(table_double(t, row, c->gpus, &gpus));
    TRY(table_double(t, row, c->batch, &batch));
    TRY(table_double(t, row, c->step, &step));
    const char *gpu = strstr(table_cell(t, row, c->accelerator), "H100") ? "H100" : table_cell(t, row, c->accelerator);
    char *label = arena_printf(arena, "published: %s, %s, DAP %s", table_cell(t, row, c->organization), gpu,
                               table_cell(t, row, c->dap));
    if (!label) return status_fail(ERR_MEMORY, "%s: out of memory", t->file);
    int k = 0;
    while (k < *count && (points[k].gpus != gpus || strcmp(points[k].label, label) != 0)) k++;
    if (k == *count) points[(*count)++] = (PublishedPoint){.label = label, .gpus = gpus, .batch = batch};
    points[k].step_s += (step - points[k].step_s) / ++runs[k]; /* running mean */
    return OK;
}

Status published_read(const char *path, Arena *arena, PublishedPoint **points_out, int *count_out)
{
    Table *table = NULL;
    Columns columns;
    int count = 0;
    TRY(table_read(path ? path : default_path, &table));
    PublishedPoint *points = arena_array(arena, (size_t)table->rows + 1, sizeof *points);
    int *runs = arena_array(arena, (size_t)table->rows + 1, sizeof *runs);
    Status status = points && runs ? find_columns(table, &columns) : status_fail(ERR_MEMORY, "report: out of memory");
    for (int64_t row = 0; row < table->rows && status == OK; row++)
        if (!table_cell_empty(table, row, columns.step))
            status = add_row(table, &columns, row, arena, points, runs, &count);
    table_destroy(&table);
    *points_out = points;
    *count_out = count;
    return status;
}

Status published_submission(const char *path, double gpus, Arena *arena, const char **name_out)
{
    Table *t = NULL;
    int count, name;
    *name_out = NULL;
    TRY(table_read(path ? path : default_path, &t));
    Status status = table_column(t, "train_gpus", &count);
    if (status == OK) status = table_column(t, "submission", &name);
    for (int64_t row = 0; row < t->rows && status == OK && !*name_out; row++) {
        double here;
        status = table_double(t, row, count, &here);
        if (status != OK || here != gpus) continue;
        *name_out = arena_strdup(arena, table_cell(t, row, name));
        if (!*name_out) status = status_fail(ERR_MEMORY, "%s: out of memory", t->file);
    }
    table_destroy(&t);
    return status;
}

static Status find_cell(const Table *t, const PublishedCell *cell, double *value_out)
{
    int column[4], value;
    TRY(table_column(t, cell->value, &value));
    for (int k = 0; k < 4 && cell->where[k].column; k++) TRY(table_column(t, cell->where[k].column, &column[k]));
    for (int64_t row = 0; row < t->rows; row++) {
        bool match = true;
        for (int k = 0; k < 4 && cell->where[k].column && match; k++)
            match = strncmp(table_cell(t, row, column[k]), cell->where[k].starts, strlen(cell->where[k].starts)) == 0;
        if (match) return table_double(t, row, value, value_out);
    }
    return status_fail_at(ERR_INPUT, t->file, 0, "no row whose %s begins with \"%s\"", cell->where[0].column,
                          cell->where[0].starts);
}

Status published_cell(const PublishedCell *cell, double *value_out)
{
    Table *t = NULL;
    char path[4096];
    snprintf(path, sizeof path, FOLDSCALE_SOURCE_DIR "/data/published/%s", cell->file);
    TRY(table_read(path, &t));
    Status status = find_cell(t, cell, value_out);
    table_destroy(&t);
    return status;
}
