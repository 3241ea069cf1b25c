#include "experiments/bench_ops.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/array.h"
#include "engine/output.h"

typedef struct OpGroup {
    char name[200];
    char shape[100]; /* of the first result, where it is the same of all of them */
    int64_t ops;
    double seconds, flops, bytes, floor_s;
    bool exchanges; /* has no floor: it waits for other ranks */
} OpGroup;

typedef struct OpGroups {
    OpGroup *group;
    int32_t count, capacity;
    double seconds, floor_s; /* of ops that have a floor */
    double exchanges_s;
} OpGroups;

bool bench_runs_kernel(const Op *op)
{
    return op->kind == OP_COMM_WAIT || !(op_def(op->kind)->flags & OPF_ALIAS);
}

/* 0: none */
static double op_floor(const Program *p, const Op *op, const BenchCeilings *c, const Cost *cost, bool exchanges)
{
    if (exchanges) return 0;
    return fmax(cost->flops / c->flops[cost_classify(p, op, 1, false).rate], cost->bytes / c->copy_bytes_per_s);
}

/* Scope with the numbers of blocks replaced by *, and kind. */
static void group_name(const Program *p, const Op *op, const char *stage, char *out, size_t size)
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

static Status find_group(OpGroups *table, const char *name, OpGroup **group_out)
{
    for (int i = 0; i < table->count; i++) {
        *group_out = &table->group[i];
        if (!strcmp(table->group[i].name, name)) return OK;
    }
    TRY(array_reserve((void **)&table->group, &table->capacity, (int64_t)table->count + 1, sizeof *table->group,
                      "groups of ops"));
    *group_out = &table->group[table->count++];
    **group_out = (OpGroup){0};
    snprintf((*group_out)->name, sizeof(*group_out)->name, "%s", name);
    return OK;
}

static int by_loss(const void *a, const void *b)
{
    const OpGroup *x = a, *y = b;
    double lost_x = x->seconds - x->floor_s, lost_y = y->seconds - y->floor_s;
    return lost_x > lost_y ? -1 : lost_x < lost_y;
}

static void shape_text(const Tensor *t, char *out, size_t size)
{
    int n = snprintf(out, size, "%s", dtype_name(t->dtype));
    for (int k = 0; k < t->rank && n < (int)size; k++)
        n += snprintf(out + n, size - (size_t)n, "%s%lld", k ? "x" : " ", (long long)t->dim[k]);
}

/* Adds the ops of one program; `seconds` per op of the program. by_kind: one group per op kind. */
static Status add_ops(OpGroups *table, const Program *p, const char *program, const double *seconds,
                      const BenchCeilings *ceilings, bool by_kind, FILE *csv)
{
    static const char *const stages[STAGE_COUNT] = {"fwd", "bwd", "sync", "opt"};
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (!bench_runs_kernel(op)) continue;
        Cost cost = {0};
        char name[200], full[300], shape[100] = "";
        prog_op_cost(p, op, &cost);
        bool exchanges = op->kind == OP_COMM_WAIT || op_def(op->kind)->flags & OPF_COMM;
        double floor_s = op_floor(p, op, ceilings, &cost, exchanges);
        if (by_kind)
            snprintf(name, sizeof name, "%s", op_def(op->kind)->name);
        else
            group_name(p, op, stages[op->stage], name, sizeof name);
        OpGroup *g;
        TRY(find_group(table, name, &g));
        if (op->out[0] != VAL_NONE) shape_text(prog_tensor(p, op->out[0]), shape, sizeof shape);
        if (g->ops == 0)
            snprintf(g->shape, sizeof g->shape, "%s", shape);
        else if (strcmp(g->shape, shape))
            g->shape[0] = '\0';
        g->ops++;
        g->seconds += seconds[i];
        g->flops += cost.flops;
        g->bytes += cost.bytes;
        g->floor_s += floor_s;
        g->exchanges = exchanges;
        *(exchanges ? &table->exchanges_s : &table->seconds) += seconds[i];
        table->floor_s += floor_s;
        if (!csv) continue;
        prog_op_name(p, i, full, sizeof full);
        fprintf(csv, "%s,%d,%s,%s,%s,%s,%.9g,%.17g,%.17g,%.17g,", program, i, op_def(op->kind)->name, full,
                stages[op->stage], shape, seconds[i], cost.flops, cost.bytes, cost.wire_bytes);
        if (!exchanges) fprintf(csv, "%.9g", floor_s);
        fputc('\n', csv);
    }
    return OK;
}

static void print_group(const OpGroup *g, double lost)
{
    printf("%9.3f ", 1e3 * g->seconds);
    if (g->exchanges)
        printf("%9s %6s %6s", "", "", "");
    else
        printf("%9.3f %6.2f %6.1f", 1e3 * g->floor_s, g->floor_s > 0 ? g->seconds / g->floor_s : 0,
               lost > 0 ? 100 * (g->seconds - g->floor_s) / lost : 0);
    printf(" %5lld %8.3f %8.0f  %s%s%s\n", (long long)g->ops, 1e-12 * g->flops / g->seconds,
           1e-9 * g->bytes / g->seconds, g->name, *g->shape ? "  " : "", g->shape);
}

static void print_ops(OpGroups *table, int rows)
{
    qsort(table->group, (size_t)table->count, sizeof *table->group, by_loss);
    printf("%9s %9s %6s %6s %5s %8s %8s  %s\n", "ms", "floor ms", "ratio", "lost%", "ops", "TFLOP/s", "GB/s", "what");
    double lost = table->seconds - table->floor_s;
    double rest_s = 0, rest_floor_s = 0;
    for (int i = 0; i < table->count; i++) {
        const OpGroup *g = &table->group[i];
        if (i < rows && g->seconds > 0) print_group(g, lost);
        if (i < rows) continue;
        rest_s += g->seconds;
        rest_floor_s += g->floor_s;
    }
    if (table->count > rows)
        printf("%9.3f %9.3f %*s %d more\n", 1e3 * rest_s, 1e3 * rest_floor_s, 37, "", table->count - rows);
    printf("%9.3f %9.3f %6.2f  sum\n", 1e3 * table->seconds, 1e3 * table->floor_s,
           table->floor_s > 0 ? table->seconds / table->floor_s : 0);
    if (table->exchanges_s > 0) printf("%9.3f  exchanges with other ranks\n", 1e3 * table->exchanges_s);
}

Status bench_time_ops(BenchSession *s, int which, bool graph, int repeats, double *seconds_out)
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

static const char *const columns = "program,op,kind,name,stage,shape,time_s,flops,bytes,wire_bytes,floor_s";

/* One program; `csv` is NULL on ranks that write nothing and where no file was asked for. */
static Status report_program(BenchSession *s, int which, bool graph, int repeats, const BenchCeilings *c, FILE *csv)
{
    const Program *p = s->program[which];
    const char *name = BENCH_PROGRAM_NAMES[which];
    OpGroups kinds = {0}, places = {0};
    double *seconds = calloc((size_t)p->n_ops + 1, sizeof *seconds);
    Status status =
        seconds ? bench_time_ops(s, which, graph, repeats, seconds) : status_fail(ERR_MEMORY, "no memory for times");
    if (status == OK) status = add_ops(&kinds, p, name, seconds, c, true, csv);
    if (status == OK) status = add_ops(&places, p, name, seconds, c, false, NULL);
    if (status == OK && s->backend->layout.rank == 0) {
        printf("\nops of %s by kind, sorted by time above the floor (copy %.3g TB/s; bf16 %.3g, f32 %.3g TFLOP/s)\n",
               name, 1e-12 * c->copy_bytes_per_s, 1e-12 * c->flops[RATE_BF16], 1e-12 * c->flops[RATE_F32]);
        print_ops(&kinds, 60);
        printf("\nops of %s by place\n", name);
        print_ops(&places, 70);
    }
    free(kinds.group);
    free(places.group);
    free(seconds);
    return status;
}

Status bench_report_ops(BenchSession *s, bool graph, int repeats, const BenchCeilings *ceilings, const char *csv_path)
{
    Output csv = {0};
    bool file = csv_path && s->backend->layout.rank == 0;
    if (file) TRY(output_open(csv_path, "program,op,", &csv));
    if (file) fprintf(csv.file, "%s\n", columns);
    Status status = OK;
    for (int k = 0; k < BENCH_PROGRAMS && status == OK; k++)
        if (s->program[k]) status = report_program(s, k, graph, repeats, ceilings, csv.file);
    if (!file) return status;
    if (status == OK) return output_close(&csv);
    output_abandon(&csv);
    return status;
}
