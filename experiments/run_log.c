#include "experiments/run_log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "analysis/cost.h"

struct RunLog {
    const Session *session;
    TableWriter *steps, *losses, *eval;
    double *all; /* rows of all ranks */
    int width;
};

enum { STEP_VALUES = 7 + SCHEMA_PHASE_COUNT, EVAL_COLUMNS = 10 };

static const char *const eval_columns[EVAL_COLUMNS] = {"step",   "elapsed_s", "chain",  "lddt_ca", "seconds",
                                                       "length", "drmsd",     "gdt_ts", "gdt_ha",  "plddt"};

/* Drops the rows of steps after `last` (a run that was killed between a checkpoint and its end), and a last row without
 * an end, which a full disk leaves: a row is whole before a later checkpoint begins. */
static Status cut_back(const char *path, int64_t last)
{
    Table *table = NULL;
    TableWriter *writer = NULL;
    int step_column;
    long open_line;
    struct stat info;
    /* empty: a power failure takes what only a checkpoint has synced */
    if (stat(path, &info) != 0 || info.st_size == 0) return OK;
    TRY(table_read_ended(path, &open_line, &table));
    if (open_line) fprintf(stderr, "foldscale: note: %s:%ld: a last row without an end is dropped\n", path, open_line);
    Status status = table_column(table, "step", &step_column);
    if (status == OK) status = table_writer_create(path, (const char *const *)table->names, table->columns, &writer);
    for (int64_t row = 0; status == OK && row < table->rows; row++) {
        int64_t step = 0;
        status = table_int(table, row, step_column, 0, INT64_MAX / 2, &step);
        if (status != OK || step > last) continue;
        for (int c = 0; c < table->columns; c++) table_put_text(writer, table_cell(table, row, c));
        status = table_writer_row(writer);
    }
    if (status == OK)
        status = table_writer_close(&writer);
    else
        table_writer_abandon(&writer);
    table_destroy(&table);
    return status;
}

static Status open_losses(const char *path, const Session *session, TableWriter **writer_out)
{
    const char *names[SESSION_MAX_LOSSES + 3] = {"step", "rank", "total"};
    for (int i = 0; i < session->losses; i++) names[3 + i] = session->loss[i].name;
    return table_writer_append(path, names, 3 + session->losses, writer_out);
}

static Status open_files(RunLog *log, const char *folder, int64_t first_step)
{
    static const char *const names[] = {"steps.csv", "losses.csv", "eval.csv"};
    char path[3][4096];
    for (int i = 0; i < 3; i++) {
        snprintf(path[i], sizeof path[i], "%s/%s", folder, names[i]);
        TRY(cut_back(path[i], first_step));
    }
    TRY(schema_steps_writer(path[0], true, &log->steps));
    TRY(open_losses(path[1], log->session, &log->losses));
    return table_writer_append(path[2], eval_columns, EVAL_COLUMNS, &log->eval);
}

Status run_log_open(const char *folder, const Session *session, int64_t first_step, RunLog **log_out)
{
    RunLog *log = calloc(1, sizeof *log);
    if (!log) return status_fail(ERR_MEMORY, "out of memory for the run's log");
    log->session = session;
    log->width = STEP_VALUES + 2 + session->losses;
    log->all = calloc((size_t)log->width * (size_t)session->backend->layout.world, sizeof *log->all);
    Status status = log->all ? OK : status_fail(ERR_MEMORY, "out of memory for the run's log");
    if (status == OK && session->backend->layout.rank == 0) status = open_files(log, folder, first_step);
    if (status == OK)
        *log_out = log;
    else
        run_log_close(&log);
    return status;
}

Status run_log_close(RunLog **log)
{
    RunLog *l = *log;
    if (!l) return OK;
    Status status = OK;
    TableWriter **writers[] = {&l->steps, &l->losses, &l->eval};
    for (int i = 0; i < 3; i++) {
        Status closed = *writers[i] ? table_writer_close(writers[i]) : OK;
        if (status == OK) status = closed;
    }
    free(l->all);
    free(l);
    *log = NULL;
    return status;
}

static void pack(const RunLog *log, const StepRow *row, const StepResult *result, bool stop, double *values)
{
    int n = 0;
    values[n++] = (double)row->step;
    values[n++] = (double)row->rank;
    values[n++] = (double)row->recycling;
    values[n++] = row->loss;
    values[n++] = row->gradient_norm;
    values[n++] = row->learning_rate;
    values[n++] = row->step_s;
    for (int i = 0; i < SCHEMA_PHASE_COUNT; i++) values[n++] = row->phase_s[i];
    values[n++] = stop;
    values[n++] = result->total_loss;
    for (int i = 0; i < log->session->losses; i++) values[n++] = result->loss[i];
}

static Status write_rank(RunLog *log, const double *v)
{
    StepRow row = {.step = (int64_t)v[0],
                   .rank = (int64_t)v[1],
                   .recycling = (int64_t)v[2],
                   .loss = v[3],
                   .gradient_norm = v[4],
                   .learning_rate = v[5],
                   .step_s = v[6]};
    for (int i = 0; i < SCHEMA_PHASE_COUNT; i++) row.phase_s[i] = v[7 + i];
    TRY(schema_write_step(log->steps, &row));
    table_put_int(log->losses, row.step);
    table_put_int(log->losses, row.rank);
    for (int i = STEP_VALUES + 1; i < log->width; i++) table_put_double(log->losses, v[i]);
    return table_writer_row(log->losses);
}

Status run_log_step(RunLog *log, const StepRow *row, const StepResult *result, bool stop, bool *stop_out)
{
    Backend *backend = log->session->backend;
    int world = backend->layout.world;
    double mine[STEP_VALUES + 2 + SESSION_MAX_LOSSES];
    pack(log, row, result, stop, mine);
    TRY(backend->host_all_gather(backend, mine, log->width, log->all));
    *stop_out = false;
    for (int r = 0; r < world; r++) {
        if (log->all[r * log->width + STEP_VALUES] != 0) *stop_out = true;
        if (log->steps) TRY(write_rank(log, log->all + r * log->width));
    }
    return OK;
}

Status run_log_eval(RunLog *log, int64_t step, double elapsed_s, const ChainScore *scores, int count)
{
    for (int i = 0; log->eval && i < count; i++) {
        const ChainScore *s = &scores[i];
        table_put_int(log->eval, step);
        table_put_double(log->eval, elapsed_s);
        table_put_text(log->eval, s->chain);
        table_put_double(log->eval, s->lddt_ca);
        table_put_double(log->eval, s->seconds);
        table_put_int(log->eval, s->length);
        table_put_double(log->eval, s->drmsd);
        table_put_double(log->eval, s->gdt_ts);
        table_put_double(log->eval, s->gdt_ha);
        table_put_double(log->eval, s->plddt);
        TRY(table_writer_row(log->eval));
    }
    return OK;
}

static Status write_program(TableWriter *writer, Session *s, SessionProgram which, double runs_per_step)
{
    const Program *p = s->program[which];
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        Cost cost = {0};
        double seconds = 0;
        int64_t calls = 0;
        char name[512];
        prog_op_cost(p, op, &cost);
        prog_op_name(p, i, name, sizeof name);
        TRY(exec_op_times(s->exec[which], i, &seconds, &calls));
        OpRow row = {.op = i,
                     .kind = op_priced_as(op),
                     .name = name,
                     .stage = COST_STAGE_NAMES[cost_stage(op, which == SESSION_NOGRAD)],
                     .calls = runs_per_step,
                     .time_s = calls ? seconds / (double)calls * runs_per_step : 0,
                     .flops = cost.flops,
                     .bytes = cost.bytes,
                     .wire_bytes = cost.wire_bytes,
                     .predicted_s = NAN};
        row.flop_per_s = row.time_s > 0 ? row.calls * row.flops / row.time_s : NAN;
        row.bytes_per_s = row.time_s > 0 ? row.calls * row.bytes / row.time_s : NAN;
        TRY(schema_write_op(writer, &row));
    }
    return OK;
}

Status run_log_ops(const char *folder, Session *session, int64_t steps, int64_t nograd_runs)
{
    char path[4096];
    TableWriter *writer = NULL;
    snprintf(path, sizeof path, "%s/ops.csv", folder);
    TRY(schema_ops_writer(path, &writer));
    Status status = OK;
    for (int i = 0; i < SESSION_PROGRAMS && status == OK; i++) {
        if (!session->program[i] || (i == SESSION_NOGRAD && nograd_runs == 0)) continue;
        double runs = i == SESSION_NOGRAD ? (double)nograd_runs / (double)(steps ? steps : 1) : 1;
        status = write_program(writer, session, (SessionProgram)i, runs);
    }
    if (status == OK) return table_writer_close(&writer);
    table_writer_abandon(&writer);
    return status;
}
