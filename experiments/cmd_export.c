/* foldscale export: the priced step in the formats of other tools. */
#include <stdio.h>
#include <string.h>

#include "experiments/commands.h"
#include "experiments/files.h"
#include "experiments/step_trace.h"

typedef struct ExportArguments {
    const char *format, *machine, *ops, *out;
    int64_t gpus, recycling, traces;
    TextList overrides;
} ExportArguments;

static const Usage usage = {.command = "export",
                            .operands = "EXP.yaml",
                            .text = "Writes one training step, priced on a machine, as chakra (MLCommons execution "
                                    "traces), simgrid (time-independent\n"
                                    "traces with platform and replay script) or perfetto (a timeline for "
                                    "ui.perfetto.dev; with --ops of a profiled\n"
                                    "run the measured ops beside the simulated ones).",
                            .example = "foldscale export experiments/initial_training.yaml --format perfetto --machine "
                                       "h100_sxm --gpus 8 --set parallel.dap=8",
                            .min_operands = 1,
                            .max_operands = 1};

static Status write_perfetto(const ExportArguments *a, const Trace *trace)
{
    char path[4096];
    OpTable ops = {0};
    snprintf(path, sizeof path, "%s/timeline.json", a->out);
    if (a->ops) TRY(schema_read_ops(a->ops, &ops));
    Status status = export_perfetto(trace, ops.rows, ops.count, path);
    schema_free_ops(&ops);
    if (status == OK) printf("%s\n", path);
    return status;
}

static Status export_step(const ExportArguments *a, const Config *config)
{
    Pricing *pricing = NULL;
    Trace *trace = NULL;
    TRY(files_make_folder(a->out));
    Status status = pricing_open(config, a->machine, a->ops, &pricing);
    if (status == OK) status = step_trace(config, (int)a->recycling, pricing, &trace);
    if (status == OK) {
        int64_t ranks = a->traces ? a->traces : config->parallel.ranks;
        if (strcmp(a->format, "chakra") == 0)
            status = export_chakra(trace, a->out, config->name, ranks);
        else if (strcmp(a->format, "simgrid") == 0)
            status = export_simgrid(trace, pricing_machine(pricing), a->out);
        else
            status = write_perfetto(a, trace);
        if (status == OK) printf("%d ops, %.6g s a step -> %s\n", trace->count, trace->total_s, a->out);
    }
    if (trace) trace_destroy(&trace);
    pricing_close(&pricing);
    return status;
}

Status cmd_export(int argc, char **argv)
{
    ExportArguments a = {.format = "perfetto", .machine = "h100_sxm", .out = "export", .recycling = 1};
    TextList operands;
    bool help;
    char set_ranks[48];
    const Option options[] = {
        {"format", OPTION_TEXT, &a.format, "FORMAT", "chakra, simgrid or perfetto (default)", 0, 0},
        {"machine", OPTION_TEXT, &a.machine, "NAME|FILE", "default h100_sxm", 0, 0},
        {"gpus", OPTION_INT, &a.gpus, "N", "ranks of the job (parallel.ranks)", 1, 65536},
        {"recycling", OPTION_INT, &a.recycling, "N", "iterations without gradient (default 1)", 0, 3},
        {"traces", OPTION_INT, &a.traces, "N", "chakra: traces of the first N ranks (default: all)", 1, 65536},
        {"ops", OPTION_TEXT, &a.ops, "FILE", "ops.csv measured on that machine", 0, 0},
        {"out", OPTION_TEXT, &a.out, "DIR", "default export", 0, 0},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key; may be repeated", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (strcmp(a.format, "chakra") != 0 && strcmp(a.format, "simgrid") != 0 && strcmp(a.format, "perfetto") != 0)
        return status_fail(ERR_USAGE, "export: unknown --format \"%s\" (expected chakra, simgrid or perfetto)",
                           a.format);
    snprintf(set_ranks, sizeof set_ranks, "parallel.ranks=%d", (int)a.gpus);
    if (a.gpus && a.overrides.count < CLI_MAX_ITEMS) a.overrides.item[a.overrides.count++] = set_ranks;
    Config *config = NULL;
    TRY(config_load(operands.item[0], &a.overrides, &config));
    Status status = export_step(&a, config);
    config_destroy(&config);
    return status;
}
