/* Time of every op of a program against its floor: the larger of flops over the rate of products and bytes over the
 * copy bandwidth (engine cost rules: each operand read or written once). */
#ifndef FOLDSCALE_TESTS_BENCH_OPS_H
#define FOLDSCALE_TESTS_BENCH_OPS_H

#include <ctype.h>

#include "tests/bench_session.h"

/* Achievable rates of one device. */
typedef struct BenchCeilings {
    double copy_bytes_per_s, bf16_flops, f32_flops;
} BenchCeilings;

/* H200 and H100: measured copies and bf16 products (gpu floors of one Evoformer block); f32 without TF32: data sheet of
 * both, 67 TFLOP/s. Others, and the CPU: all ratios are to the H200. */
static inline BenchCeilings bench_ceilings(const Backend *backend)
{
    bool h100 = strstr(backend->device, "H100") != NULL;
    return (BenchCeilings){h100 ? 3.0e12 : 4.25e12, 810e12, 67e12};
}

typedef struct OpGroup {
    char name[200]; /* scope with the numbers of blocks replaced by *, kind */
    const char *kind;
    int64_t ops;
    double seconds, flops, bytes, floor_s;
} OpGroup;

typedef struct OpTable {
    OpGroup *group;
    int count, capacity;
    double seconds, floor_s;
} OpTable;

static inline bool bench_runs_kernel(const Op *op)
{
    return op->kind == OP_COMM_WAIT || !(op_def(op->kind)->flags & OPF_ALIAS);
}

static inline double bench_op_floor(const Program *p, const Op *op, const BenchCeilings *c, const Cost *cost)
{
    bool low = false;
    for (int k = 0; k < op->n_in; k++) low |= op->in[k] != VAL_NONE && prog_tensor(p, op->in[k])->dtype == DT_BF16;
    double products = cost->flops / (low ? c->bf16_flops : c->f32_flops), copies = cost->bytes / c->copy_bytes_per_s;
    return products > copies ? products : copies;
}

static inline void bench_group_name(const Program *p, const Op *op, const char *stage, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "%s ", stage);
    for (const char *at = p->scope[op->scope]; *at && n + 1 < size; at++) {
        if (isdigit((unsigned char)*at) && at > p->scope[op->scope] && at[-1] == '.') {
            while (isdigit((unsigned char)at[1])) at++;
            out[n++] = '*';
        } else {
            out[n++] = *at;
        }
    }
    out[n] = '\0';
    snprintf(out + n, size - n, " %s", op_def(op->kind)->name);
}

static inline OpGroup *bench_find_group(OpTable *table, const char *name)
{
    for (int i = 0; i < table->count; i++)
        if (!strcmp(table->group[i].name, name)) return &table->group[i];
    if (table->count == table->capacity) {
        int capacity = table->capacity ? 2 * table->capacity : 256;
        OpGroup *grown = realloc(table->group, (size_t)capacity * sizeof *grown);
        if (!grown) return NULL;
        table->group = grown;
        table->capacity = capacity;
    }
    OpGroup *g = &table->group[table->count++];
    *g = (OpGroup){0};
    snprintf(g->name, sizeof g->name, "%s", name);
    return g;
}

static inline int bench_by_loss(const void *a, const void *b)
{
    const OpGroup *x = a, *y = b;
    double lost_x = x->seconds - x->floor_s, lost_y = y->seconds - y->floor_s;
    return lost_x > lost_y ? -1 : lost_x < lost_y;
}

static inline void bench_shape_text(const Tensor *t, char *out, size_t size)
{
    int n = snprintf(out, size, "%s", dtype_name(t->dtype));
    for (int k = 0; k < t->rank && n < (int)size; k++)
        n += snprintf(out + n, size - (size_t)n, "%s%lld", k ? "x" : " ", (long long)t->dim[k]);
}

/* Adds the ops of one program; `seconds` per op of the program. by_kind: one group per op kind. */
static inline Status bench_add_ops(OpTable *table, const Program *p, const char *program, const double *seconds,
                                   const BenchCeilings *ceilings, bool by_kind, FILE *csv)
{
    static const char *const stages[STAGE_COUNT] = {"fwd", "bwd", "sync", "opt"};
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (!bench_runs_kernel(op)) continue;
        Cost cost = {0};
        char name[200], full[300], shape[100] = "";
        prog_op_cost(p, op, &cost);
        double floor_s = bench_op_floor(p, op, ceilings, &cost);
        if (by_kind)
            snprintf(name, sizeof name, "%s", op_def(op->kind)->name);
        else
            bench_group_name(p, op, stages[op->stage], name, sizeof name);
        OpGroup *g = bench_find_group(table, name);
        if (!g) return status_fail(ERR_MEMORY, "no memory for a table of ops");
        g->ops++;
        g->seconds += seconds[i];
        g->flops += cost.flops;
        g->bytes += cost.bytes;
        g->floor_s += floor_s;
        table->seconds += seconds[i];
        table->floor_s += floor_s;
        if (!csv) continue;
        prog_op_name(p, i, full, sizeof full);
        if (op->out[0] != VAL_NONE) bench_shape_text(prog_tensor(p, op->out[0]), shape, sizeof shape);
        fprintf(csv, "%s,%d,%s,%s,%s,%s,%.9g,%.6g,%.6g,%.6g,%.9g\n", program, i, op_def(op->kind)->name, full,
                stages[op->stage], shape, seconds[i], cost.flops, cost.bytes, cost.wire_bytes, floor_s);
    }
    return OK;
}

static inline void bench_print_ops(OpTable *table, int rows)
{
    qsort(table->group, (size_t)table->count, sizeof *table->group, bench_by_loss);
    printf("%9s %9s %6s %6s %5s %8s %8s  %s\n", "ms", "floor ms", "ratio", "lost%", "ops", "TFLOP/s", "GB/s", "what");
    double lost = table->seconds - table->floor_s;
    for (int i = 0; i < table->count && i < rows; i++) {
        const OpGroup *g = &table->group[i];
        if (g->seconds <= 0) continue;
        printf("%9.3f %9.3f %6.2f %6.1f %5lld %8.1f %8.0f  %s\n", 1e3 * g->seconds, 1e3 * g->floor_s,
               g->floor_s > 0 ? g->seconds / g->floor_s : 0, 100 * (g->seconds - g->floor_s) / lost, (long long)g->ops,
               1e-12 * g->flops / g->seconds, 1e-9 * g->bytes / g->seconds, g->name);
    }
    printf("%9.3f %9.3f %6.2f  sum\n", 1e3 * table->seconds, 1e3 * table->floor_s, table->seconds / table->floor_s);
}

/* Seconds of every op: `repeats` runs after one that does not count, replayed as a graph where the switches say so. */
static inline Status bench_time_ops(BenchSession *s, int which, bool graph, int repeats, double *seconds_out)
{
    const Program *p = s->program[which];
    Exec *exec = NULL;
    int64_t calls = 0;
    Status status =
        exec_create(s->backend, p, s->store, s->workspace, &(ExecOptions){.time_ops = true, .graph = graph}, &exec);
    if (status == OK) status = exec_run(exec);
    for (int32_t i = 0; status == OK && i < p->n_ops; i++) status = exec_op_times(exec, i, &seconds_out[i], &calls);
    for (int r = 0; status == OK && r < repeats; r++) status = exec_run(exec);
    for (int32_t i = 0; status == OK && i < p->n_ops; i++) {
        double all = 0;
        status = exec_op_times(exec, i, &all, &calls);
        seconds_out[i] = (all - seconds_out[i]) / repeats;
    }
    exec_destroy(&exec);
    return status;
}

/* Tables of all programs of the session, which every rank runs and rank 0 writes. A step runs the no-gradient program
 * 1.5 times on average. */
static inline Status bench_report_ops(BenchSession *s, bool graph, int repeats, const char *csv_path)
{
    static const char *const names[BENCH_PROGRAMS] = {"nograd", "grad", "optimizer"};
    BenchCeilings ceilings = bench_ceilings(s->backend);
    bool writes = s->backend->layout.rank == 0;
    FILE *csv = csv_path && writes ? fopen(csv_path, "w") : NULL;
    if (csv_path && writes && !csv) return status_fail(ERR_IO, "%s: cannot write", csv_path);
    if (csv) fprintf(csv, "program,op,kind,name,stage,shape,time_s,flops,bytes,wire_bytes,floor_s\n");
    Status status = OK;
    for (int k = 0; k < BENCH_PROGRAMS && status == OK; k++) {
        const Program *p = s->program[k];
        if (!p) continue;
        OpTable kinds = {0}, groups = {0};
        double *seconds = calloc((size_t)p->n_ops + 1, sizeof *seconds);
        status = seconds ? bench_time_ops(s, k, graph, repeats, seconds) : status_fail(ERR_MEMORY, "no memory");
        if (status == OK) status = bench_add_ops(&kinds, p, names[k], seconds, &ceilings, true, csv);
        if (status == OK) status = bench_add_ops(&groups, p, names[k], seconds, &ceilings, false, NULL);
        if (status == OK && writes) {
            printf("\nops of %s by kind, sorted by time above the floor (copy %.2f TB/s, bf16 %.0f TFLOP/s)\n",
                   names[k], 1e-12 * ceilings.copy_bytes_per_s, 1e-12 * ceilings.bf16_flops);
            bench_print_ops(&kinds, 60);
            printf("\nops of %s by place\n", names[k]);
            bench_print_ops(&groups, 70);
        }
        free(kinds.group);
        free(groups.group);
        free(seconds);
    }
    if (csv && fclose(csv) && status == OK) status = status_fail(ERR_IO, "%s: cannot write", csv_path);
    return status;
}

#endif
