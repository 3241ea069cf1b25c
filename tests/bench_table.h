/* Mean times of equal ops of a measured setting, in the classes that op prices use (analysis/cost.h): the table that
 * `foldscale validate --own` fits its curves on. */
#ifndef FOLDSCALE_TESTS_BENCH_TABLE_H
#define FOLDSCALE_TESTS_BENCH_TABLE_H

#include "analysis/cost.h"
#include "experiments/bench_ops.h"
#include "experiments/version.h"

/* The setting that a row belongs to, as in the rows of --csv. */
typedef struct OpTableRow {
    const char *preset, *setting;
    int dap;
    bool no_comm;
} OpTableRow;

typedef struct OpTimes {
    CostClass *item; /* calls: ops of the program in this class */
    double *seconds; /* of all of them */
    int count;
} OpTimes;

static inline void op_times_add(OpTimes *t, const CostClass *c, double seconds)
{
    for (int i = t->count - 1; i >= 0; i--) {
        CostClass *at = &t->item[i];
        if (at->kind != c->kind || at->stage != c->stage || at->rate != c->rate || at->flops != c->flops ||
            at->bytes != c->bytes || at->tensor_bytes != c->tensor_bytes || at->aside != c->aside)
            continue;
        at->calls += 1;
        t->seconds[i] += seconds;
        return;
    }
    t->item[t->count] = *c;
    t->seconds[t->count++] = seconds;
}

static inline void op_times_print(const OpTimes *t, const BenchSession *s, const OpTableRow *row, const char *program,
                                  FILE *csv)
{
    char device[200];
    snprintf(device, sizeof device, "%s", s->backend->device);
    for (char *c = device; *c; c++) *c = *c == ',' ? ';' : *c;
    for (int i = 0; i < t->count; i++) {
        const CostClass *c = &t->item[i];
        fprintf(csv, "%s,%s,%s,%s,%d,%d,%s,%s,%s,%d,%s,%.0f,%.9g,%.17g,%.17g,%.17g\n", version_commit(), device,
                row->preset, row->setting, row->dap, row->no_comm, program, COST_STAGE_NAMES[c->stage], c->kind,
                c->aside, COST_RATE_NAMES[c->rate], c->calls, t->seconds[i], c->flops, c->bytes, c->tensor_bytes);
    }
}

static inline Status op_table_program(BenchSession *s, int which, const OpTableRow *row, FILE *csv)
{
    const Program *p = s->program[which];
    size_t ops = (size_t)p->n_ops + 1;
    double *seconds = calloc(ops, sizeof *seconds);
    OpTimes times = {.item = malloc(ops * sizeof *times.item), .seconds = malloc(ops * sizeof *times.seconds)};
    Status status =
        seconds && times.item && times.seconds ? OK : status_fail(ERR_MEMORY, "no memory for a table of ops");
    if (status == OK) status = bench_time_ops(s, which, true, 3, seconds);
    for (int32_t i = 0; status == OK && i < p->n_ops; i++) {
        if (!bench_runs_kernel(&p->op[i])) continue;
        CostClass c = cost_classify(p, &p->op[i], 1, which == BENCH_NOGRAD);
        op_times_add(&times, &c, seconds[i]);
    }
    if (status == OK && csv) op_times_print(&times, s, row, BENCH_PROGRAM_NAMES[which], csv);
    free(seconds);
    free(times.item);
    free(times.seconds);
    return status;
}

/* Every rank runs it, rank 0 writes. */
static inline Status op_table_write(BenchSession *s, const OpTableRow *row, const char *path)
{
    FILE *csv = s->backend->layout.rank == 0 ? fopen(path, "a") : NULL;
    if (s->backend->layout.rank == 0 && !csv) return status_fail(ERR_IO, "%s: cannot write", path);
    if (csv && ftell(csv) == 0)
        fprintf(csv, "commit,device,preset,setting,dap,no_comm,program,stage,kind,aside,rate,calls,time_s,flops,bytes,"
                     "tensor_bytes\n");
    Status status = OK;
    for (int k = 0; k < BENCH_PROGRAMS && status == OK; k++)
        if (s->program[k]) status = op_table_program(s, k, row, csv);
    if (csv && fclose(csv) && status == OK) status = status_fail(ERR_IO, "%s: cannot write", path);
    return status;
}

#endif
