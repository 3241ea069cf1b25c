/* foldscale calibrate: this machine as analysis/machine.h describes machines, and the ops of an experiment timed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "analysis/collective.h"
#include "engine/output.h"
#include "experiments/bench_ops.h"
#include "experiments/checkpoint.h"
#include "experiments/commands.h"
#include "experiments/config.h"
#include "experiments/files.h"
#include "experiments/launch.h"
#include "experiments/probe.h"
#include "experiments/session.h"
#include "kernels/kernels.h"

typedef struct CalibrateArguments {
    const char *folder;
    int64_t ranks, groups, devices, steps;
    bool collectives, ops; /* nothing else */
    bool no_profile;
    TextList overrides;
} CalibrateArguments;

static const Usage usage = {.command = "calibrate",
                            .operands = "EXP.yaml",
                            .text = "Measures this machine: rate of products, copy bandwidth, time to start an op, "
                                    "collectives over --ranks ranks,\n"
                                    "and every op of the experiment's step (one rank). Writes DIR/machine.yaml and "
                                    "DIR/profile/ops.csv, which fit,\n"
                                    "predict and explain read. --ops instead times the ops of one Evoformer block of "
                                    "the experiment, at their\n"
                                    "own shapes, forward and with its gradient, and prints time, floor and their ratio "
                                    "by kind and by place,\n"
                                    "longest above the floor first: the floor is the larger of flops over this "
                                    "machine's measured rate of\n"
                                    "products and bytes over its copy bandwidth; an op whose operands fit the caches "
                                    "may be faster, and\n"
                                    "exchanges have none. Over --ranks ranks, the block is split as DAP does. One row "
                                    "per op goes to\n"
                                    "DIR/block_ops.csv.",
                            .example = "foldscale calibrate experiments/quickstart.yaml --ranks 2 --out runs/machine",
                            .min_operands = 1,
                            .max_operands = 1};

enum { MAX_SAMPLES = 64, OP_REPEATS = 5 };

/* f32 elements, times ranks squared */
static const int64_t sizes[] = {1 << 8, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22};

/* --- the probes, on every rank
 * ------------------------------------------------------------------------------------------ */

static Status rate(Backend *backend, Precision precision, int64_t n, const char *what, Figure *figure)
{
    ProbeResult result;
    char source[128];
    TRY(probe_product(backend, precision, n, &result));
    snprintf(source, sizeof source, "measured: %s product of %lld x %lld, best of 10", what, (long long)n,
             (long long)n);
    *figure =
        (Figure){2.0 * (double)n * (double)n * (double)n / result.seconds, fmax(result.relative, 0.01), strdup(source)};
    return figure->source ? OK : status_fail(ERR_MEMORY, "calibrate: out of memory");
}

/* The cuda backend computes nothing in f64: Hopper's units do half as many products there as in f32 (NVIDIA, "H100
 * Tensor Core GPU Architecture", 2022, table 2: 33.5 of 66.9 TFLOP/s). */
static Status half_rate(const Figure *f32, Figure *f64)
{
    *f64 = (Figure){f32->value / 2, f32->spread, strdup("half the measured f32 rate, as Hopper's units do")};
    return f64->source ? OK : status_fail(ERR_MEMORY, "calibrate: out of memory");
}

static Status measure_device(Backend *backend, Machine *m)
{
    bool gpu = strcmp(backend->name, "cuda") == 0;
    int64_t n = gpu ? 8192 : 768, count = gpu ? 1 << 28 : 1 << 24;
    ProbeResult result;
    TRY(rate(backend, PRECISION_F32, n, "f32", &m->device.f32_flops));
    if (gpu)
        TRY(half_rate(&m->device.f32_flops, &m->device.f64_flops));
    else
        TRY(rate(backend, PRECISION_F64, n / 2, "f64", &m->device.f64_flops));
    if (gpu) TRY(rate(backend, PRECISION_BF16, n, "bf16", &m->device.bf16_flops));
    TRY(probe_copy(backend, count, &result));
    m->device.copy_bytes_per_s = (Figure){8.0 * (double)count / result.seconds, fmax(result.relative, 0.01),
                                          strdup("measured: scaling a large vector, read + write, best of 10")};
    TRY(probe_launch(backend, false, &result));
    /* the best run is one that the host had issued before the device began it */
    m->device.launch_s = (Figure){result.mean, fmax(result.relative, 0.01),
                                  strdup("measured: chain of 200 ops on 16 elements, per op, mean of 10")};
    TRY(probe_launch(backend, gpu, &result));
    m->device.graph_launch_s =
        (Figure){fmin(result.seconds, m->device.launch_s.value), fmax(result.relative, 0.01),
                 strdup(gpu ? "measured: the same chain from a captured graph" : "no graphs: the same")};
    return OK;
}

/* Tables beside machine.yaml, known by how they begin; a user's file in their place is refused before any work. */
typedef enum Result { RESULT_COLLECTIVES, RESULT_RATES, RESULT_OPS, RESULT_COUNT } Result;
static const struct {
    const char *name, *begins;
} results[RESULT_COUNT] = {
    [RESULT_COLLECTIVES] = {"collectives.csv", "ranks,group_ranks,groups,collective,bytes"},
    [RESULT_RATES] = {"collective_rates.csv", "ranks,group_ranks,groups,collective,launched"},
    [RESULT_OPS] = {"block_ops.csv", "program,op,"},
};

static void result_path(const char *folder, Result which, char *path, size_t size)
{
    snprintf(path, size, "%s/%s", folder, results[which].name);
}

static Status check_results(const CalibrateArguments *a)
{
    char path[4096];
    for (int k = 0; k < RESULT_COUNT; k++) {
        if (a->ops != (k == RESULT_OPS) || (!a->ops && a->ranks < 2)) continue;
        result_path(a->folder, (Result)k, path, sizeof path);
        TRY(output_check("calibrate", path, results[k].begins, NULL, 0));
    }
    return OK;
}

/* One row per collective and size: for the reader and for strong_scaling.sh; machine.yaml has those of one group. */
static void write_sample(FILE *csv, const Backend *backend, const MachineSample *sample)
{
    fprintf(csv, "%d,%lld,%d,%s,%.0f,%.9g,%.6g,%s\n", backend->layout.world, (long long)sample->ranks,
            backend->layout.dp, COLLECTIVE_NAMES[sample->collective], sample->bytes, sample->time_s,
            collective_wire_bytes(sample) / sample->time_s, sample->graph ? "graph" : "host");
}

/* All sizes of one kind of collective, adding to the machine's samples. */
static Status measure_kind(Backend *backend, Machine *m, Collective kind, bool graph, FILE *csv)
{
    int64_t ranks = backend->layout.dap;
    /* ranks of a CPU share its memory */
    int64_t largest = (int64_t)(strcmp(backend->name, "cuda") == 0 ? 1 << 30 : 1 << 26);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && m->samples < MAX_SAMPLES; i++) {
        int64_t count = sizes[i] * ranks * ranks;
        if (4 * count > largest) break;
        ProbeResult result;
        TRY(probe_collective(backend, kind, count, graph, &result));
        MachineSample *sample = &m->sample[m->samples++];
        *sample = (MachineSample){kind, ranks, 4.0 * (double)count, result.seconds, graph};
        double wire = collective_wire_bytes(sample) / sample->time_s;
        m->node.link_bytes_per_s.value = fmax(m->node.link_bytes_per_s.value, wire);
        if (csv) write_sample(csv, backend, sample);
    }
    return OK;
}

/* Latency and bandwidth of each kind, beside its times. */
static Status write_rates(const char *folder, const Backend *backend, const Machine *m)
{
    char path[4096];
    Output output;
    result_path(folder, RESULT_RATES, path, sizeof path);
    TRY(output_open(path, results[RESULT_RATES].begins, &output));
    FILE *csv = output.file;
    fprintf(csv, "%s,latency_s,wire_bytes_per_s,largest_deviation,sizes\n", results[RESULT_RATES].begins);
    for (int kind = 0; kind < COLLECTIVE_COUNT; kind++)
        for (int graph = 0; graph < 2; graph++) {
            CollectiveRate r = collective_rate(m->sample, m->samples, (Collective)kind, graph);
            if (r.sizes < 2) continue;
            const char *launched = graph ? "graph" : "host";
            printf("%-14s %-5s %8.1f us", COLLECTIVE_NAMES[kind], launched, 1e6 * r.latency_s);
            fprintf(csv, "%d,%d,%d,%s,%s,%.17g,", backend->layout.world, backend->layout.dap, backend->layout.dp,
                    COLLECTIVE_NAMES[kind], launched, r.latency_s);
            if (isfinite(r.wire_bytes_per_s)) {
                printf(" + bytes that leave a rank / %.4g GB/s", 1e-9 * r.wire_bytes_per_s);
                fprintf(csv, "%.17g", r.wire_bytes_per_s);
            }
            printf(", within %.0f %% at %d sizes\n", 100 * r.deviation, r.sizes);
            fprintf(csv, ",%.3g,%d\n", r.deviation, r.sizes);
        }
    return output_close(&output);
}

/* All groups at the same time; the times are those of rank 0's. */
static Status measure_collectives(Backend *backend, Machine *m, const char *folder)
{
    bool graphs = strcmp(backend->name, "cuda") == 0, writes = backend->layout.rank == 0;
    char path[4096];
    ProbeResult hidden;
    Output output = {0};
    if (backend->layout.dap < 2) return OK;
    m->sample = calloc(MAX_SAMPLES, sizeof *m->sample);
    if (!m->sample) return status_fail(ERR_MEMORY, "calibrate: out of memory");
    result_path(folder, RESULT_COLLECTIVES, path, sizeof path);
    if (writes) TRY(output_open(path, results[RESULT_COLLECTIVES].begins, &output));
    FILE *csv = output.file;
    Status status = OK;
    if (csv) fprintf(csv, "%s,time_s,wire_bytes_per_s,launched\n", results[RESULT_COLLECTIVES].begins);
    m->node.link_bytes_per_s = (Figure){0, 0.2, strdup("measured: fastest collective, bytes that leave one rank")};
    for (int kind = 0; status == OK && kind < COLLECTIVE_BROADCAST; kind++) {
        status = measure_kind(backend, m, (Collective)kind, false, csv);
        if (status == OK && graphs) status = measure_kind(backend, m, (Collective)kind, true, csv);
    }
    if (status != OK) {
        if (writes) output_abandon(&output);
        return status;
    }
    if (writes) TRY(output_close(&output));
    m->collectives_source = strdup("measured: best of 10; in graphs what five take more than one");
    if (graphs) {
        status = probe_overlap(backend, &hidden);
        m->node.overlap = (Figure){fmax(hidden.seconds, 0.01), hidden.relative,
                                   strdup("measured: eight exchanges beside as much memory-bound computation")};
    }
    return status;
}

static void describe(Backend *backend, int64_t devices, Machine *m)
{
    char text[512];
    bool gpu = strcmp(backend->name, "cuda") == 0;
    m->name = strdup("here");
    snprintf(text, sizeof text, "measured by foldscale calibrate on %d ranks of %s", backend->layout.world,
             backend->device);
    m->description = strdup(text);
    m->kind = gpu ? MACHINE_GPU : MACHINE_CPU;
    m->device.model = strdup(backend->device);
    m->device.memory_bytes = (Figure){(double)(backend->memory_bytes ? backend->memory_bytes : (size_t)8e9), 0.01,
                                      strdup(backend->memory_bytes ? "reported by the backend" : "assumed: 8 GB")};
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    m->node.devices = devices     ? devices
                      : gpu       ? backend->layout.world
                      : cores > 8 ? cores
                                  : 8; /* ranks may share cores */
    m->node.fabric = gpu ? FABRIC_NVLINK : FABRIC_SHARED_MEMORY;
    if (m->node.devices > 1) /* of one GPU nothing leads away */
        m->node.link_bytes_per_s = (Figure){4e9, 0.5, strdup("assumed: calibrate with more than one rank measures it")};
    m->network.nodes = 1;
}

static Status probe_all(const Config *config, const CalibrateArguments *a)
{
    Backend *backend = NULL;
    Machine m = {0};
    ProbeResult noise;
    bool gpu = config->backend == BACKEND_CUDA;
    KernelOptions kernels = {.dap = (int)(a->ranks / a->groups), .threads = config->parallel.threads};
    TRY(kernels_open(config_backend_name(config->backend), &kernels, &backend));
    describe(backend, a->devices, &m);
    Status status = a->collectives ? OK : measure_device(backend, &m);
    if (status == OK) status = measure_collectives(backend, &m, a->folder);
    /* long enough not to measure the clock */
    if (status == OK) status = probe_product(backend, PRECISION_F32, gpu ? 4096 : 256, &noise);
    if (status == OK && !a->collectives) {
        m.rank_noise =
            (Figure){fmin(fmax(noise.relative, 1e-3), 1), 0.5, strdup("measured: spread of ten equal products")};
        char path[4096];
        snprintf(path, sizeof path, "%s/machine.yaml", a->folder);
        if (backend->layout.rank == 0) status = machine_write(&m, path);
    }
    if (status == OK && m.samples && backend->layout.rank == 0) status = write_rates(a->folder, backend, &m);
    if (status == OK) status = backend->barrier(backend);
    free(m.sample); /* the texts live as long as the process: it ends here */
    if (kernels_may_close(backend, status)) kernels_close(&backend);
    return status;
}

/* --- the ops of one block against their floors, on every rank
 * ----------------------------------------------------------- */

/* What this machine reaches: bf16 counts as f32 where it has no products of its own. */
static BenchCeilings ceilings_of(const MachineDevice *d)
{
    double f32 = d->f32_flops.value, bf16 = d->bf16_flops.value;
    return (BenchCeilings){d->copy_bytes_per_s.value,
                           {[RATE_F32] = f32, [RATE_F64] = d->f64_flops.value, [RATE_BF16] = bf16 > 0 ? bf16 : f32}};
}

static Status time_block(BenchSession *s, const Config *config, const CalibrateArguments *a)
{
    Machine m = {0};
    char path[4096];
    Switches switches = config_pass_switches(config);
    switches.dp = s->backend->layout.dp;
    result_path(a->folder, RESULT_OPS, path, sizeof path);
    TRY(bench_record_chain(s, &config->model.size, &switches, 1));
    TRY(bench_measure_memory(s, switches.precision));
    TRY(measure_device(s->backend, &m));
    BenchCeilings ceilings = ceilings_of(&m.device);
    TRY(bench_allocate(s, &config->model.size, &switches));
    if (s->backend->layout.rank == 0)
        printf("one Evoformer block of %s, %s, dap %d\n", config->name, s->backend->device, switches.dap);
    TRY(bench_report_ops(s, switches.cuda_graph, OP_REPEATS, &ceilings, path));
    if (s->backend->layout.rank == 0) printf("\n%s\n", path);
    return OK;
}

/* The block is split over --ranks, whatever the experiment runs on. */
static Status split_block(Config *config, const CalibrateArguments *a)
{
    if (a->ranks & (a->ranks - 1))
        return status_fail(ERR_USAGE, "calibrate: --ops splits a block over 1, 2, 4 or 8 ranks (found --ranks %d)",
                           (int)a->ranks);
    config->parallel.ranks = config->parallel.dap = (int)a->ranks;
    return session_check_split(config);
}

static Status block_ops(const Config *config, const CalibrateArguments *a)
{
    BenchSession s = {0};
    const char *cache = config->parallel.tune_cache;
    KernelOptions kernels = {
        .dap = (int)a->ranks, .threads = config->parallel.threads, .tune_cache = *cache ? cache : NULL};
    TRY(kernels_open(config_backend_name(config->backend), &kernels, &s.backend));
    Status status = s.backend->layout.world == a->ranks
                        ? time_block(&s, config, a)
                        : status_fail(ERR_USAGE, "calibrate: %d ranks were started for --ranks %d",
                                      s.backend->layout.world, (int)a->ranks);
    if (!kernels_may_close(s.backend, status)) return status;
    bench_close(&s);
    kernels_close(&s.backend);
    return status;
}

/* --- one training run with every op timed, as a child
 * ------------------------------------------------------------------- */

/* A profile takes the place of an earlier one; one has no checkpoints. */
static Status expect_no_run(const CalibrateArguments *a)
{
    char folder[4096];
    int64_t newest = -1;
    snprintf(folder, sizeof folder, "%s/profile", a->folder);
    if (!file_exists(folder)) return OK;
    TRY(checkpoint_newest(folder, &newest));
    if (newest < 0) return OK;
    return status_fail(ERR_IO, "%s: holds a run (a checkpoint of step %lld; expected another --out, or --no-profile)",
                       folder, (long long)newest);
}

static Status profile(const char *experiment, const CalibrateArguments *a)
{
    char self[4096], folder[4096], log[4200], steps[64];
    char *arguments[2 * CLI_MAX_ITEMS + 32];
    int n = 0, exit_status = 0;
    TRY(launch_self(self, sizeof self));
    snprintf(folder, sizeof folder, "%s/profile", a->folder);
    snprintf(log, sizeof log, "%s/log.txt", folder);
    snprintf(steps, sizeof steps, "train.steps=%lld", (long long)a->steps);
    TRY(files_make_folder(folder));
    const char *const fixed[] = {self, "train", experiment, "--replace", "--profile", "--out", folder};
    const char *const set[] = {steps,
                               "parallel.ranks=1",
                               "parallel.dap=1",
                               "eval.every=0",
                               "train.checkpoint_every=0",
                               "train.checkpoint_last=off",
                               "switches.cuda_graph=off"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) arguments[n++] = (char *)fixed[i];
    for (int i = 0; i < a->overrides.count; i++) {
        arguments[n++] = "--set";
        arguments[n++] = (char *)a->overrides.item[i];
    }
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
        arguments[n++] = "--set";
        arguments[n++] = (char *)set[i];
    }
    arguments[n] = NULL;
    TRY(launch_wait(arguments, log, &exit_status));
    if (exit_status)
        return status_fail(ERR_COMM, "the profiled run failed with status %d; its output is in %s", exit_status, log);
    return OK;
}

Status cmd_calibrate(int argc, char **argv)
{
    CalibrateArguments a = {.folder = "runs/machine", .ranks = 1, .groups = 1, .steps = 4};
    TextList operands;
    bool help;
    const Option options[] = {
        {"out", OPTION_TEXT, &a.folder, "DIR", "folder of the results (default runs/machine)", 0, 0},
        {"ranks", OPTION_INT, &a.ranks, "N", "ranks for the collectives (default 1: none), or that share the block", 1,
         8},
        {"collectives", OPTION_FLAG, &a.collectives, NULL,
         "collectives alone: DIR/collectives.csv, DIR/collective_rates.csv", 0, 0},
        {"ops", OPTION_FLAG, &a.ops, NULL, "the ops of one block against their floors alone: DIR/block_ops.csv", 0, 0},
        {"no-profile", OPTION_FLAG, &a.no_profile, NULL, "the machine alone, no run of the experiment", 0, 0},
        {"groups", OPTION_INT, &a.groups, "N", "with --collectives: that many groups of ranks / N at a time", 1, 8},
        {"devices", OPTION_INT, &a.devices, "N", "of this node, where more than the ranks (default: GPUs as ranks)", 1,
         64},
        {"steps", OPTION_INT, &a.steps, "N", "steps of the profiled run (default 4)", 1, 1000},
        {"set", OPTION_LIST, &a.overrides, "A.B=C", "override a key of the experiment; may be repeated", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (a.ranks % a.groups || (a.groups > 1 && !a.collectives))
        return status_fail(ERR_USAGE,
                           "calibrate: --groups goes with --collectives and divides --ranks (found %d of %d)",
                           (int)a.groups, (int)a.ranks);
    if (a.ops && a.collectives)
        return status_fail(ERR_USAGE, "calibrate: --ops and --collectives each measure nothing else (expected one)");
    if (a.devices && a.devices < a.ranks)
        return status_fail(ERR_USAGE, "calibrate: --devices %d for %d ranks (expected at least as many)",
                           (int)a.devices, (int)a.ranks);
    Config *config = NULL;
    TRY(config_load(operands.item[0], &a.overrides, &config));
    bool inside = launch_under_mpi();
    bool machine = !a.collectives && !a.ops;
    Status status = !machine || a.no_profile ? OK : expect_no_run(&a);
    if (status == OK && a.ops) status = split_block(config, &a);
    if (status == OK) status = files_make_folder(a.folder);
    if (status == OK && !inside) status = check_results(&a);
    if (status == OK && a.ranks > 1 && !inside)
        status = launch_ranks((int)a.ranks, argc, argv);
    else if (status == OK)
        status = a.ops ? block_ops(config, &a) : probe_all(config, &a);
    if (status == OK && !inside && machine) {
        if (!a.no_profile) status = profile(operands.item[0], &a);
        if (status == OK) printf("%s/machine.yaml\n", a.folder);
        if (status == OK && !a.no_profile) printf("%s/profile/ops.csv\n", a.folder);
    }
    config_destroy(&config);
    return status;
}
