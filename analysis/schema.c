#include "analysis/schema.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

const char *const SCHEMA_SWITCH_NAMES[SCHEMA_SWITCH_COUNT] = {
#define X(id, name) #name,
    SCHEMA_SWITCHES(X)
#undef X
};

const char *const SCHEMA_PHASE_NAMES[SCHEMA_PHASE_COUNT] = {
#define X(id, name) #name,
    SCHEMA_PHASES(X)
#undef X
};

/* One column of a row struct. Tables of these drive both directions, so a reader and a writer cannot disagree. */
typedef enum FieldType {
    FIELD_TEXT,
    FIELD_COUNT,    /* whole number >= 0 */
    FIELD_POSITIVE, /* whole number >= 1 */
    FIELD_REAL,     /* any finite number, or empty */
    FIELD_AMOUNT,   /* >= 0 or empty */
    FIELD_MEAN,     /* >= 0, never empty */
    FIELD_MEASURED, /* > 0, never empty */
    FIELD_YES_NO    /* "yes" or "no" */
} FieldType;

typedef struct Field {
    const char *name;
    size_t offset;
    FieldType type;
    bool optional; /* the column may be absent: files of other tools */
} Field;

#define F(row, member, type)                                                                                           \
    {                                                                                                                  \
#member, offsetof(row, member), type, false                                                                    \
    }
#define OPTIONAL(row, member, type)                                                                                    \
    {                                                                                                                  \
#member, offsetof(row, member), type, true                                                                     \
    }
#define PHASE_FIELDS(row)                                                                                              \
    {"data_wait_s", offsetof(row, phase_s[PHASE_DATA_WAIT]), FIELD_AMOUNT, false},                                     \
        {"forward_nograd_s", offsetof(row, phase_s[PHASE_FORWARD_NOGRAD]), FIELD_AMOUNT, false},                       \
        {"forward_s", offsetof(row, phase_s[PHASE_FORWARD]), FIELD_AMOUNT, false},                                     \
        {"backward_s", offsetof(row, phase_s[PHASE_BACKWARD]), FIELD_AMOUNT, false},                                   \
        {"comm_exposed_s", offsetof(row, phase_s[PHASE_COMM_EXPOSED]), FIELD_AMOUNT, false},                           \
        {"optimizer_s", offsetof(row, phase_s[PHASE_OPTIMIZER]), FIELD_AMOUNT, false},                                 \
        {"eval_s", offsetof(row, phase_s[PHASE_EVAL]), FIELD_AMOUNT, false},                                           \
    {                                                                                                                  \
        "other_s", offsetof(row, phase_s[PHASE_OTHER]), FIELD_AMOUNT, false                                            \
    }
#define SWITCH_FIELD(row, id, name)                                                                                    \
    {                                                                                                                  \
#name, offsetof(row, switches[SWITCH_##id]), FIELD_TEXT, false                                                 \
    }

static const Field STEP_FIELDS[] = {
    F(StepRow, step, FIELD_COUNT),         F(StepRow, rank, FIELD_COUNT),
    F(StepRow, recycling, FIELD_COUNT),    F(StepRow, loss, FIELD_REAL),
    F(StepRow, gradient_norm, FIELD_REAL), F(StepRow, learning_rate, FIELD_REAL),
    F(StepRow, step_s, FIELD_MEASURED),    PHASE_FIELDS(StepRow),
};

static const Field RUN_FIELDS[] = {
    F(RunRow, run_id, FIELD_TEXT),
    F(RunRow, experiment, FIELD_TEXT),
    F(RunRow, backend, FIELD_TEXT),
    F(RunRow, device, FIELD_TEXT),
    F(RunRow, ranks, FIELD_POSITIVE),
    F(RunRow, dp, FIELD_POSITIVE),
    F(RunRow, dap, FIELD_POSITIVE),
#define X(id, name) SWITCH_FIELD(RunRow, id, name),
    SCHEMA_SWITCHES(X)
#undef X
        F(RunRow, samples, FIELD_POSITIVE),
    F(RunRow, step_s_mean, FIELD_MEASURED),
    F(RunRow, step_s_median, FIELD_MEASURED),
    F(RunRow, step_s_p05, FIELD_MEASURED),
    F(RunRow, step_s_p95, FIELD_MEASURED),
    PHASE_FIELDS(RunRow),
    F(RunRow, samples_per_s, FIELD_AMOUNT),
    F(RunRow, peak_bytes, FIELD_AMOUNT),
    F(RunRow, model_flops, FIELD_AMOUNT),
    F(RunRow, mfu, FIELD_AMOUNT),
    F(RunRow, wire_bytes, FIELD_AMOUNT),
    F(RunRow, data_wait_fraction, FIELD_AMOUNT),
    F(RunRow, provenance, FIELD_TEXT),
};

static const Field OP_FIELDS[] = {
    F(OpRow, op, FIELD_COUNT),
    F(OpRow, kind, FIELD_TEXT),
    F(OpRow, name, FIELD_TEXT),
    F(OpRow, stage, FIELD_TEXT),
    F(OpRow, calls, FIELD_MEAN),
    F(OpRow, time_s, FIELD_AMOUNT),
    F(OpRow, flops, FIELD_AMOUNT),
    F(OpRow, bytes, FIELD_AMOUNT),
    F(OpRow, wire_bytes, FIELD_AMOUNT),
    F(OpRow, predicted_s, FIELD_AMOUNT),
    OPTIONAL(OpRow, flop_per_s, FIELD_AMOUNT),
    OPTIONAL(OpRow, bytes_per_s, FIELD_AMOUNT),
};

static const Field PREDICTION_FIELDS[] = {
    F(PredictionRow, machine, FIELD_TEXT),
    F(PredictionRow, gpus, FIELD_POSITIVE),
    F(PredictionRow, dp, FIELD_POSITIVE),
    F(PredictionRow, dap, FIELD_POSITIVE),
#define X(id, name) SWITCH_FIELD(PredictionRow, id, name),
    SCHEMA_SWITCHES(X)
#undef X
        F(PredictionRow, step_s, FIELD_MEASURED),
    F(PredictionRow, lo90_s, FIELD_MEASURED),
    F(PredictionRow, hi90_s, FIELD_MEASURED),
    F(PredictionRow, n_over_nmax, FIELD_AMOUNT),
    F(PredictionRow, flagged, FIELD_YES_NO),
    F(PredictionRow, serial_s, FIELD_AMOUNT),
    F(PredictionRow, compute_s, FIELD_AMOUNT),
    F(PredictionRow, comm_exposed_s, FIELD_AMOUNT),
    F(PredictionRow, straggler_s, FIELD_AMOUNT),
    F(PredictionRow, loader_s, FIELD_AMOUNT),
    F(PredictionRow, host_s, FIELD_AMOUNT),
    F(PredictionRow, note, FIELD_TEXT),
};

static const Field EVAL_FIELDS[] = {
    F(EvalRow, step, FIELD_COUNT),   OPTIONAL(EvalRow, elapsed_s, FIELD_AMOUNT), F(EvalRow, chain, FIELD_TEXT),
    F(EvalRow, lddt_ca, FIELD_REAL), OPTIONAL(EvalRow, seconds, FIELD_AMOUNT),
};

#define COUNT(fields) ((int)(sizeof(fields) / sizeof(fields)[0]))
enum { FIELD_LIMIT = 64 };
_Static_assert(sizeof RUN_FIELDS / sizeof RUN_FIELDS[0] <= FIELD_LIMIT, "raise FIELD_LIMIT");

/* a flag is stored in the row as bool, everything else as int64_t, double or const char * */
static Status read_number(const Table *t, int64_t row, int column, FieldType type, double *value)
{
    if (type == FIELD_MEAN)
        TRY(table_double(t, row, column, value));
    else
        TRY(table_double_or(t, row, column, NAN, value));
    if (type == FIELD_MEASURED && !(*value > 0))
        return table_fail(t, row, "column \"%s\" is \"%.60s\" (expected a number above 0)", t->names[column],
                          table_cell(t, row, column));
    if ((type == FIELD_AMOUNT || type == FIELD_MEAN) && *value < 0)
        return table_fail(t, row, "column \"%s\" is %.60s (expected 0 or more)", t->names[column],
                          table_cell(t, row, column));
    return OK;
}

static Status read_field(const Table *t, int64_t row, int column, const Field *field, void *target)
{
    switch (field->type) {
    case FIELD_TEXT:
        *(const char **)target = table_cell(t, row, column);
        return OK;
    case FIELD_COUNT:
        return table_int(t, row, column, 0, INT64_MAX, target);
    case FIELD_POSITIVE:
        return table_int(t, row, column, 1, INT64_MAX, target);
    case FIELD_YES_NO: {
        const char *cell = table_cell(t, row, column);
        if (strcmp(cell, "yes") && strcmp(cell, "no"))
            return table_fail(t, row, "column \"%s\" is \"%.60s\" (expected yes or no)", field->name, cell);
        *(bool *)target = !strcmp(cell, "yes");
        return OK;
    }
    case FIELD_REAL:
    case FIELD_AMOUNT:
    case FIELD_MEAN:
    case FIELD_MEASURED:
        return read_number(t, row, column, field->type, target);
    }
    return status_fail(ERR_INTERNAL, "unknown field type %d", (int)field->type);
}

static Status read_rows(const char *path, const Field *fields, int count, size_t row_bytes, Table **table_out,
                        void **rows_out)
{
    Table *t = NULL;
    Status status;
    int columns[FIELD_LIMIT];
    TRY(table_read(path, &t));
    for (int f = 0; f < count; f++) {
        if (fields[f].optional)
            columns[f] = table_find(t, fields[f].name);
        else
            TRY_GOTO(status, table_column(t, fields[f].name, &columns[f]), fail);
    }
    char *rows = arena_array(&t->arena, (size_t)t->rows + 1, row_bytes);
    if (!rows) {
        status = status_fail_at(ERR_MEMORY, path, 0, "out of memory for %lld rows", (long long)t->rows);
        goto fail;
    }
    for (int64_t r = 0; r < t->rows; r++)
        for (int f = 0; f < count; f++) {
            char *target = rows + (size_t)r * row_bytes + fields[f].offset;
            TRY_GOTO(status, read_field(t, r, columns[f], &fields[f], target), fail);
        }
    *table_out = t;
    *rows_out = rows;
    return OK;
fail:
    table_destroy(&t);
    return status;
}

static Status open_writer(const char *path, const Field *fields, int count, bool append, TableWriter **out)
{
    const char *names[FIELD_LIMIT];
    for (int f = 0; f < count; f++) names[f] = fields[f].name;
    return append ? table_writer_append(path, names, count, out) : table_writer_create(path, names, count, out);
}

static Status write_row(TableWriter *w, const Field *fields, int count, const void *row)
{
    for (int f = 0; f < count; f++) {
        const void *source = (const char *)row + fields[f].offset;
        switch (fields[f].type) {
        case FIELD_TEXT: {
            const char *text = *(const char *const *)source;
            table_put_text(w, text ? text : "");
            break;
        }
        case FIELD_COUNT:
        case FIELD_POSITIVE:
            table_put_int(w, *(const int64_t *)source);
            break;
        case FIELD_YES_NO:
            table_put_text(w, *(const bool *)source ? "yes" : "no");
            break;
        default:
            table_put_double(w, *(const double *)source);
        }
    }
    return table_writer_row(w);
}

#define DEFINE_TABLE(name, Name, FIELDS)                                                                               \
    void schema_free_##name(Name##Table *table)                                                                        \
    {                                                                                                                  \
        table_destroy(&table->table);                                                                                  \
        *table = (Name##Table){0};                                                                                     \
    }                                                                                                                  \
    static Status read_##name(const char *path, Name##Table *out)                                                      \
    {                                                                                                                  \
        Name##Table result = {0};                                                                                      \
        TRY(read_rows(path, FIELDS, COUNT(FIELDS), sizeof(Name##Row), &result.table, (void **)&result.rows));          \
        result.count = result.table->rows;                                                                             \
        *out = result;                                                                                                 \
        return OK;                                                                                                     \
    }

DEFINE_TABLE(steps, Step, STEP_FIELDS)
DEFINE_TABLE(runs, Run, RUN_FIELDS)
DEFINE_TABLE(ops, Op, OP_FIELDS)
DEFINE_TABLE(predictions, Prediction, PREDICTION_FIELDS)
DEFINE_TABLE(eval, Eval, EVAL_FIELDS)

Status schema_read_steps(const char *path, StepTable *out)
{
    return read_steps(path, out);
}
Status schema_read_predictions(const char *path, PredictionTable *out)
{
    return read_predictions(path, out);
}
Status schema_read_eval(const char *path, EvalTable *out)
{
    return read_eval(path, out);
}

/* The hash of run.json; rows of another origin have none. */
static Status check_provenance(const Table *t, int64_t r, const RunRow *row)
{
    enum { DIGITS = 16 };
    const char *text = row->provenance;
    size_t digits = strspn(text, "0123456789abcdef");
    if (!*text || (digits == DIGITS && !text[digits])) return OK;
    return table_fail(t, r, "provenance is \"%.40s\" (expected %d hexadecimal digits, or nothing)", text, DIGITS);
}

/* "on" or "off", checkpointing by name, or nothing: a word that no reader knows would pass for "off". */
static Status check_switches(const Table *t, int64_t r, const RunRow *row)
{
    static const char *const flags[] = {"", "on", "off", NULL}, *const modes[] = {"", "none", "block", "selective",
                                                                                  NULL};
    for (int s = 0; s < SCHEMA_SWITCH_COUNT; s++) {
        const char *text = row->switches[s] ? row->switches[s] : "";
        const char *const *known = s == SWITCH_CHECKPOINT ? modes : flags;
        while (*known && strcmp(*known, text)) known++;
        if (!*known)
            return table_fail(t, r, "column \"%s\" is \"%.40s\" (expected %s)", SCHEMA_SWITCH_NAMES[s], text,
                              s == SWITCH_CHECKPOINT ? "none, block or selective" : "on or off");
    }
    return OK;
}

/* Phases that were timed add up to the step; clocks of their own leave a few percent. */
static Status check_phases(const Table *t, int64_t r, const RunRow *row)
{
    double sum = 0;
    for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) sum += row->phase_s[p];
    if (isnan(sum) || (sum > 0.8 * row->step_s_mean && sum < 1.25 * row->step_s_mean)) return OK;
    return table_fail(t, r, "phases add up to %g s, the step is %g s: one of them is wrong", sum, row->step_s_mean);
}

static Status check_run(const Table *t, int64_t r, const RunRow *row)
{
    if (row->ranks > 1 << 22)
        return table_fail(t, r, "ranks is %lld (expected at most %d)", (long long)row->ranks, 1 << 22);
    if (row->dp > INT64_MAX / row->dap || row->dp * row->dap != row->ranks)
        return table_fail(t, r, "ranks is %lld but dp x dap is %lld x %lld", (long long)row->ranks, (long long)row->dp,
                          (long long)row->dap);
    if (!(row->step_s_mean > 0) || !isfinite(row->step_s_mean))
        return table_fail(t, r, "step_s_mean is empty (expected a time in seconds)");
    if (row->step_s_mean > 1e6) return table_fail(t, r, "step_s_mean is %g s: 12 days a step", row->step_s_mean);
    if (row->step_s_p05 > row->step_s_median || row->step_s_median > row->step_s_p95)
        return table_fail(t, r, "percentiles out of order: p05 %g, median %g, p95 %g", row->step_s_p05,
                          row->step_s_median, row->step_s_p95);
    TRY(check_switches(t, r, row));
    TRY(check_provenance(t, r, row));
    return check_phases(t, r, row);
}

Status schema_read_runs(const char *path, RunTable *out)
{
    RunTable result;
    TRY(read_runs(path, &result));
    Status status = table_check_end(result.table);
    for (int64_t r = 0; r < result.count && status == OK; r++) {
        result.rows[r].file = result.table->file;
        result.rows[r].line = result.table->lines[r];
        status = check_run(result.table, r, &result.rows[r]);
    }
    if (status != OK) {
        schema_free_runs(&result);
        return status;
    }
    *out = result;
    return OK;
}

Status schema_read_ops(const char *path, OpTable *out)
{
    TRY(read_ops(path, out));
    for (int64_t r = 0; r < out->count; r++) out->rows[r].line = out->table->lines[r];
    return OK;
}

Status schema_steps_writer(const char *path, bool append, TableWriter **out)
{
    return open_writer(path, STEP_FIELDS, COUNT(STEP_FIELDS), append, out);
}

Status schema_runs_writer(const char *path, bool append, TableWriter **out)
{
    return open_writer(path, RUN_FIELDS, COUNT(RUN_FIELDS), append, out);
}

Status schema_ops_writer(const char *path, TableWriter **out)
{
    return open_writer(path, OP_FIELDS, COUNT(OP_FIELDS), false, out);
}

Status schema_predictions_writer(const char *path, TableWriter **out)
{
    return open_writer(path, PREDICTION_FIELDS, COUNT(PREDICTION_FIELDS), false, out);
}

Status schema_eval_writer(const char *path, bool append, TableWriter **out)
{
    return open_writer(path, EVAL_FIELDS, COUNT(EVAL_FIELDS), append, out);
}

Status schema_write_step(TableWriter *w, const StepRow *row)
{
    return write_row(w, STEP_FIELDS, COUNT(STEP_FIELDS), row);
}

Status schema_write_run(TableWriter *w, const RunRow *row)
{
    return write_row(w, RUN_FIELDS, COUNT(RUN_FIELDS), row);
}
Status schema_write_op(TableWriter *w, const OpRow *row)
{
    return write_row(w, OP_FIELDS, COUNT(OP_FIELDS), row);
}

Status schema_write_prediction(TableWriter *w, const PredictionRow *row)
{
    return write_row(w, PREDICTION_FIELDS, COUNT(PREDICTION_FIELDS), row);
}

Status schema_write_eval(TableWriter *w, const EvalRow *row)
{
    return write_row(w, EVAL_FIELDS, COUNT(EVAL_FIELDS), row);
}
