/* foldscale explain: an experiment as the program sees it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/cost.h"
#include "experiments/commands.h"
#include "experiments/pricing.h"
#include "experiments/session.h"

typedef struct ExplainArguments {
    const char *stage, *program, *machine, *ops;
    bool dump, each;
    TextList overrides;
} ExplainArguments;

/* One row of what is printed: all ops of a kind in a program, or one op. */
typedef struct Total {
    const char *name;
    int64_t ops;
    Cost cost;
    double predicted_s, measured_s; /* NAN: not known */
} Total;

typedef struct Explain {
    const ExplainArguments *a;
    const Config *config;
    SessionPlan plan;
    Pricing *pricing; /* NULL: no machine named */
    OpTable measured;
    bool has_measured;
    CostRate rate;
} Explain;

static const Usage usage = {
    .command = "explain",
    .operands = "EXP.yaml",
    .text =
        "Prints the recorded step of an experiment after a stage: record, fuse, shard, precision, autodiff, remat,\n"
        "schedule or plan (default); --stage experiment prints every key of the file instead, defaults filled in.\n"
        "By default one CSV row per program and kind of op: number, flops, bytes moved, bytes on the wire of one rank\n"
        "and, with --machine, the predicted time, with --ops the measured one (ops.csv of a profiled run with the "
        "same\n"
        "switches). --each prints one row per op, --dump the program's text.",
    .example =
        "foldscale explain experiments/initial_training.yaml --stage plan --set parallel.ranks=8 --set parallel.dap=8",
    .min_operands = 1,
    .max_operands = 1};

static Status print_experiment(const Config *config)
{
    char *text = NULL;
    TRY(config_to_json(config, &text));
    fputs(text, stdout);
    free(text);
    return OK;
}

/* Measured seconds of one call; rows are joined by id within their stage's program and must agree in kind. */
static double measured(const Explain *e, SessionProgram which, int32_t op)
{
    const Op *o = &e->plan.program[which]->op[op];
    const char *stage = COST_STAGE_NAMES[cost_stage(o, which == SESSION_NOGRAD)];
    for (int64_t i = 0; i < e->measured.count; i++) {
        const OpRow *row = &e->measured.rows[i];
        if (row->op == op && strcmp(row->stage, stage) == 0 && strcmp(row->kind, op_priced_as(o)) == 0)
            return row->calls > 0 ? row->time_s / row->calls : 0;
    }
    return NAN;
}

static void price(const Explain *e, SessionProgram which, int32_t op, Total *t)
{
    const Program *p = e->plan.program[which];
    double sd;
    prog_op_cost(p, &p->op[op], &t->cost);
    t->ops = 1;
    t->predicted_s = t->measured_s = NAN;
    bool comm = op_def(p->op[op].kind)->flags & OPF_COMM;
    if (e->pricing && !comm)
        t->predicted_s = opprice_time(pricing_ops(e->pricing), pricing_machine(e->pricing), op_priced_as(&p->op[op]),
                                      e->rate, t->cost.flops, t->cost.bytes, e->config->switches.cuda_graph, &sd);
    if (e->has_measured) t->measured_s = measured(e, which, op);
}

static void print_seconds(double value)
{
    if (isnan(value))
        printf(",");
    else
        printf(",%.6g", value);
}

static void print_row(const Explain *e, SessionProgram which, const Total *t)
{
    printf("%s,%s,%lld,%.6g,%.6g,%.6g", session_program_names[which], t->name, (long long)t->ops, t->cost.flops,
           t->cost.bytes, t->cost.wire_bytes);
    if (e->pricing) print_seconds(t->predicted_s);
    if (e->has_measured) print_seconds(t->measured_s);
    putchar('\n');
}

static void add(double *sum, double value)
{
    if (isnan(value)) return;
    *sum = isnan(*sum) ? value : *sum + value;
}

static void count(Total *totals, Total *all, OpKind kind, const Total *one)
{
    Total *targets[] = {&totals[kind], all};
    if (totals[kind].ops == 0) totals[kind].predicted_s = totals[kind].measured_s = NAN;
    totals[kind].name = op_def(kind)->name;
    for (int k = 0; k < 2; k++) {
        targets[k]->ops++;
        targets[k]->cost.flops += one->cost.flops;
        targets[k]->cost.bytes += one->cost.bytes;
        targets[k]->cost.wire_bytes += one->cost.wire_bytes;
        add(&targets[k]->predicted_s, one->predicted_s);
        add(&targets[k]->measured_s, one->measured_s);
    }
}

static void print_program(const Explain *e, SessionProgram which)
{
    const Program *p = e->plan.program[which];
    Total totals[OP_COUNT] = {{0}}, all = {.name = "all", .predicted_s = NAN, .measured_s = NAN};
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Send *send = &p->op[i].send;
        Total one = {0};
        char name[512];
        price(e, which, i, &one);
        if (e->a->each) {
            prog_op_name(p, i, name, sizeof name);
            one.name = name;
            print_row(e, which, &one);
            continue;
        }
        if (send->active) { /* what it sends counts among its kind; the time is that of both */
            count(totals, &all, send->kind,
                  &(Total){.cost.wire_bytes = one.cost.wire_bytes, .predicted_s = NAN, .measured_s = NAN});
            one.cost.wire_bytes = 0;
        }
        count(totals, &all, p->op[i].kind, &one);
    }
    for (int k = 0; k < OP_COUNT && !e->a->each; k++)
        if (totals[k].ops) print_row(e, which, &totals[k]);
    if (!e->a->each) print_row(e, which, &all);
}

static Status check_program(const char *name)
{
    for (int i = 0; name && i < SESSION_PROGRAMS; i++)
        if (strcmp(name, session_program_names[i]) == 0) return OK;
    return name ? status_fail(ERR_USAGE, "explain: unknown program \"%s\" (expected nograd, grad or optimizer)", name)
                : OK;
}

static Status print_all(const Explain *e)
{
    if (!e->a->dump)
        printf("program,kind,ops,flops,bytes,wire_bytes%s%s\n", e->pricing ? ",predicted_s" : "",
               e->has_measured ? ",measured_s" : "");
    for (int i = 0; i < SESSION_PROGRAMS; i++) {
        const Program *p = e->plan.program[i];
        if (!p || (e->a->program && strcmp(e->a->program, session_program_names[i]) != 0)) continue;
        if (e->a->dump) {
            printf("# %s\n", session_program_names[i]);
            TRY(prog_dump(p, stdout));
        } else {
            print_program(e, (SessionProgram)i);
        }
        if (p->arena_bytes)
            fprintf(stderr, "%s: %d ops, peak of the temporaries %.1f MiB\n", session_program_names[i], p->n_ops,
                    (double)p->arena_bytes / 1048576.0);
    }
    fprintf(stderr, "%lld parameters; recorded and lowered in %.1f ms\n", (long long)e->plan.registry->param_count,
            e->plan.prepare_s * 1e3);
    return OK;
}

static Status explain(const ExplainArguments *a, const Config *config)
{
    Explain e = {.a = a, .config = config};
    PassStage stage;
    TRY(pass_from_name(a->stage, &stage));
    TRY(check_program(a->program));
    e.rate = config->switches.bf16 ? RATE_BF16 : config->train.real == REAL_F64 ? RATE_F64 : RATE_F32;
    Status status = session_plan(config, true, stage, &e.plan);
    if (status == OK && a->machine) status = pricing_open(config, a->machine, a->ops, &e.pricing);
    if (status == OK && a->ops) {
        status = schema_read_ops(a->ops, &e.measured);
        e.has_measured = status == OK;
    }
    if (status == OK) status = print_all(&e);
    if (e.has_measured) schema_free_ops(&e.measured);
    pricing_close(&e.pricing);
    session_plan_free(&e.plan);
    return status;
}

Status cmd_explain(int argc, char **argv)
{
    ExplainArguments a = {.stage = "plan"};
    TextList operands;
    bool help;
    const Option options[] = {
        {"stage", OPTION_TEXT, &a.stage, "STAGE", "after which pass (default plan), or experiment", 0, 0},
        {"program", OPTION_TEXT, &a.program, "NAME", "nograd, grad or optimizer alone", 0, 0},
        {"dump", OPTION_FLAG, &a.dump, NULL, "the program's text, one line per op", 0, 0},
        {"each", OPTION_FLAG, &a.each, NULL, "one row per op instead of totals by kind", 0, 0},
        {"machine", OPTION_TEXT, &a.machine, "NAME|FILE", "predict times on this machine", 0, 0},
        {"ops", OPTION_TEXT, &a.ops, "FILE", "ops.csv: measured times, and efficiencies for --machine", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key; may be repeated", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    Config *config = NULL;
    TRY(config_load(operands.item[0], &a.overrides, &config));
    Status status = strcmp(a.stage, "experiment") == 0 ? print_experiment(config) : explain(&a, config);
    config_destroy(&config);
    return status;
}
