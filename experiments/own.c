#include "experiments/own.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/array.h"

enum { ROW_LIMIT = 1 << 20 };

const char *const own_switch_names[] = {
#define SWITCH(name) #name,
#include "engine/switch_list.def"
#undef SWITCH
    "bf16", NULL};

static const char *const step_files[] = {"step.csv", "ablation.csv", "dap_local.csv", "two_gpus.csv"};
static const char *const program_names[OWN_PROGRAMS] = {"nograd", "grad", "optimizer"};

/* Reads cells of one row; the first failure stays. */
typedef struct Cells {
    const Table *table;
    int64_t row;
    Arena *arena;
    Status status;
} Cells;

static const char *cell_text(Cells *c, const char *name)
{
    int column = -1;
    if (c->status == OK) c->status = table_column(c->table, name, &column);
    char *text = arena_strdup(c->arena, table_cell(c->table, c->row, column));
    if (!text && c->status == OK) c->status = status_fail(ERR_MEMORY, "%s: out of memory", c->table->file);
    return text ? text : "";
}

static double cell_number(Cells *c, const char *name, double low)
{
    int column;
    double value = NAN;
    if (c->status == OK) c->status = table_column(c->table, name, &column);
    if (c->status == OK) c->status = table_double(c->table, c->row, column, &value);
    if (c->status == OK && !(value >= low))
        c->status = table_fail(c->table, c->row, "%s is %g (expected %g or more)", name, value, low);
    return value;
}

static int64_t cell_int(Cells *c, const char *name, int64_t low, int64_t high)
{
    int column;
    int64_t value = low;
    if (c->status == OK) c->status = table_column(c->table, name, &column);
    if (c->status == OK) c->status = table_int(c->table, c->row, column, low, high, &value);
    return value;
}

/* "on" or "off"; switches that the benchmark has no column for (loader, evaluation) stay off. */
static void read_switches(Cells *c, SwitchSection *out)
{
    for (int i = 0; config_switch_names[i] && c->status == OK; i++) {
        const char *name = config_switch_names[i];
        int column = table_find(c->table, name);
        if (column < 0 || !strcmp(name, "checkpoint")) continue;
        const char *text = table_cell(c->table, c->row, column);
        if (strcmp(text, "on") && strcmp(text, "off"))
            c->status = table_fail(c->table, c->row, "%s is \"%s\" (expected on or off)", name, text);
        config_switch_set(out, name, !strcmp(text, "on"));
    }
    const char *text = cell_text(c, "checkpoint");
    int mode = CHECKPOINT_NONE;
    while (mode <= CHECKPOINT_SELECTIVE && strcmp(text, config_checkpoint_name((Checkpointing)mode))) mode++;
    if (mode > CHECKPOINT_SELECTIVE && c->status == OK)
        c->status = table_fail(c->table, c->row, "checkpoint is \"%s\"", text);
    out->checkpoint = (Checkpointing)mode;
}

static Status read_step(Cells *c, OwnStep *s)
{
    static const char *const seconds[OWN_PROGRAMS] = {"nograd_s", "grad_s", "optimizer_s"};
    static const char *const ops[OWN_PROGRAMS] = {"nograd_ops", "grad_ops", "optimizer_ops"};
    int column;
    *s = (OwnStep){.line = c->table->lines[c->row], .sd_s = NAN};
    s->file = arena_strdup(c->arena, c->table->file);
    s->commit = cell_text(c, "commit");
    s->device = cell_text(c, "device");
    s->preset = cell_text(c, "preset");
    s->setting = cell_text(c, "setting");
    s->ranks = cell_int(c, "ranks", 1, 1 << 20);
    s->dp = cell_int(c, "dp", 1, 1 << 20);
    s->dap = cell_int(c, "dap", 1, 64);
    s->no_comm = cell_int(c, "no_comm", 0, 1);
    s->repeats = cell_int(c, "repeats", 1, 1 << 20);
    s->step_s = cell_number(c, "step_s", 1e-9);
    read_switches(c, &s->switches);
    for (int p = 0; p < OWN_PROGRAMS; p++) {
        s->program_s[p] = cell_number(c, seconds[p], 0);
        s->program_ops[p] = cell_number(c, ops[p], 0);
    }
    if (c->status == OK && s->repeats > 1) c->status = table_column(c->table, "step_sd_s", &column);
    if (c->status == OK && s->repeats > 1) c->status = table_double(c->table, c->row, column, &s->sd_s);
    if (c->status == OK && !s->file) c->status = status_fail(ERR_MEMORY, "%s: out of memory", c->table->file);
    if (c->status == OK && !s->no_comm && s->dp * s->dap != s->ranks)
        c->status = table_fail(c->table, c->row, "%lld ranks are not dp %lld x dap %lld", (long long)s->ranks,
                               (long long)s->dp, (long long)s->dap);
    return c->status;
}

static Status read_steps(const char *path, OwnData *d, int *capacity)
{
    Table *t = NULL;
    TRY(table_read(path, &t));
    Status status = OK;
    for (int64_t row = 0; row < t->rows && status == OK; row++) {
        Cells c = {t, row, &d->arena, OK};
        status = array_reserve((void **)&d->step, capacity, d->steps + 1, sizeof *d->step, "measured steps");
        if (status == OK) status = read_step(&c, &d->step[d->steps]);
        if (status == OK) d->steps++;
    }
    table_destroy(&t);
    return status;
}

/* --- tables of op times
 * ---------------------------------------------------------------------------------------------- */

static void read_op(Cells *c, OpTiming *t, int *program_out)
{
    const char *kind = cell_text(c, "kind"), *rate = cell_text(c, "rate"), *program = cell_text(c, "program");
    bool aside = cell_int(c, "aside", 0, 1);
    *t = (OpTiming){.kind = aside ? arena_printf(c->arena, "%s_aside", kind) : kind};
    while (t->rate < RATE_COUNT && strcmp(rate, COST_RATE_NAMES[t->rate])) t->rate++;
    for (*program_out = 0; *program_out < OWN_PROGRAMS && strcmp(program, program_names[*program_out]);) ++*program_out;
    t->calls = cell_number(c, "calls", 1);
    t->time_s = cell_number(c, "time_s", 0);
    t->flops = cell_number(c, "flops", 0);
    t->bytes = cell_number(c, "bytes", 0);
    if (c->status != OK) return;
    if (t->rate == RATE_COUNT) c->status = table_fail(c->table, c->row, "rate is \"%s\"", rate);
    if (*program_out == OWN_PROGRAMS) c->status = table_fail(c->table, c->row, "program is \"%s\"", program);
    if (!t->kind) c->status = status_fail(ERR_MEMORY, "%s: out of memory", c->table->file);
}

/* The table that the row belongs to: rows of one follow one another. */
static void place_op(Cells *c, OwnData *d)
{
    OwnTable now = {.commit = cell_text(c, "commit"),
                    .setting = cell_text(c, "setting"),
                    .dap = cell_int(c, "dap", 1, 64),
                    .no_comm = cell_int(c, "no_comm", 0, 1),
                    .first = d->timings,
                    .step = -1};
    OwnTable *last = d->tables ? &d->table[d->tables - 1] : NULL;
    bool same = last && !strcmp(last->commit, now.commit) && !strcmp(last->setting, now.setting) &&
                last->dap == now.dap && last->no_comm == now.no_comm;
    if (!same) d->table[d->tables++] = now;
    d->table[d->tables - 1].count++;
}

static Status read_table(const char *path, OwnData *d)
{
    Table *t = NULL;
    TRY(table_read(path, &t));
    size_t rows = (size_t)t->rows;
    Status status =
        t->rows > 0 && t->rows < ROW_LIMIT
            ? OK
            : status_fail_at(ERR_INPUT, path, 0, "%lld ops (expected 1 to %d)", (long long)t->rows, (int)ROW_LIMIT);
    if (status == OK) {
        d->timing = arena_array(&d->arena, rows, sizeof *d->timing);
        d->program = arena_array(&d->arena, rows, sizeof *d->program);
        d->table = arena_array(&d->arena, rows, sizeof *d->table);
        if (!d->timing || !d->program || !d->table) status = status_fail(ERR_MEMORY, "%s: out of memory", path);
    }
    for (int64_t row = 0; row < t->rows && status == OK; row++) {
        Cells c = {t, row, &d->arena, OK};
        read_op(&c, &d->timing[d->timings], &d->program[d->timings]);
        if (c.status == OK) place_op(&c, d);
        d->timings++;
        status = c.status;
    }
    table_destroy(&t);
    return status;
}

static void match_steps(OwnData *d)
{
    for (int t = 0; t < d->tables; t++)
        for (int s = 0; s < d->steps; s++) {
            const OwnStep *step = &d->step[s];
            OwnTable *table = &d->table[t];
            if (table->step >= 0 || step->dap != table->dap || step->no_comm != table->no_comm || step->dp != 1)
                continue;
            if (!strcmp(step->commit, table->commit) && !strcmp(step->setting, table->setting)) table->step = s;
        }
}

Status own_read(const char *folder, OwnData *out)
{
    OwnData d = {0};
    char path[4096];
    int capacity = 0;
    snprintf(path, sizeof path, "%s/op_table.csv", folder);
    Status status = read_table(path, &d);
    for (size_t i = 0; i < sizeof step_files / sizeof *step_files && status == OK; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, step_files[i]);
        if (access(path, R_OK) == 0) status = read_steps(path, &d, &capacity);
    }
    if (status == OK && !d.steps) status = status_fail_at(ERR_INPUT, folder, 0, "no measured step (step.csv, ...)");
    match_steps(&d);
    *out = d;
    if (status != OK) own_free(out);
    return status;
}

void own_free(OwnData *d)
{
    free(d->step);
    arena_free(&d->arena);
    *d = (OwnData){0};
}
