/* Time of a whole training step, of one Evoformer block and of the optimizer, on any backend, with any switches, on
 * made-up inputs; prints the ratio to the marks of the GPU engine and appends one CSV row per setting.
 *
 *   build/tests/bench_step --backend cuda --switches all --block --ops
 *   build/tests/bench_step --backend cuda --study cumulative,alone,leave-out --repeats 5 --csv steps.csv
 *   build/tests/bench_step --backend cuda --dap 8 --no-comm             # one rank's share, collectives left out
 *   build/tests/bench_step --backend cuda --op-table ops.csv            # op prices for `foldscale validate --own`
 *   mpirun -np 2 build/tests/bench_step --backend cuda --dap 2          # on two GPUs
 *   build/tests/bench_step --preset tiny                                # anywhere
 *   build/tests/bench_step --backend cuda --repeats 1 --same-bits       # two runs with one seed
 *
 * A mean step over recycling 0, 1, 2, 3 = 1.5 forward passes without gradient + gradient step + optimizer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/clock.h"
#include "experiments/bench_ops.h"
#include "experiments/version.h"
#include "kernels/kernels.h"
#include "tests/bench_bits.h"
#include "tests/bench_settings.h"
#include "tests/bench_table.h"

enum { MAX_REPEATS = 200, CHAIN_SHORT = 1, CHAIN_LONG = 5 };

static const Usage usage = {
    .command = "bench_step (build/tests/bench_step)",
    .operands = "",
    .text = "Times a training step on made-up inputs: forward without gradient, gradient step, optimizer.",
    .example = "build/tests/bench_step --preset tiny --ops",
    .min_operands = 0,
    .max_operands = 0};

typedef struct Arguments {
    SettingArguments setting;
    const char *backend, *preset, *csv, *ops_csv, *op_table, *tune_cache;
    int64_t dap, repeats, threads, n_res, evo_blocks;
    double budget_s;
    bool no_comm, ops, block, no_step, fit, eager, resume, same_bits;
} Arguments;

/* --- measurement
 * ----------------------------------------------------------------------------------------------------- */

typedef struct Sample {
    int count;
    double value[MAX_REPEATS + 1];
} Sample;

static double mean(const Sample *s)
{
    double sum = 0;
    for (int i = 0; i < s->count; i++) sum += s->value[i];
    return s->count ? sum / s->count : NAN;
}

static double deviation(const Sample *s)
{
    double m = mean(s), sum = 0;
    for (int i = 0; i < s->count; i++) sum += (s->value[i] - m) * (s->value[i] - m);
    return s->count > 1 ? sqrt(sum / (s->count - 1)) : NAN;
}

typedef struct Result {
    Sample run_s[BENCH_PROGRAMS];
    double forward_s, backward_s, comm_s; /* of the gradient step; mean */
    double first_s, loss, gradient_norm;
    int ops[BENCH_PROGRAMS];
    int64_t kernels[BENCH_PROGRAMS]; /* of a replayed graph; 0: not known */
    size_t store_bytes, workspace_bytes;
    double prepare_s, block_forward_s, block_both_s;
    double flops; /* of a mean step, this rank */
} Result;

/* One program's wall time, all ranks starting together. */
static Status time_run(BenchSession *s, int which, double *seconds_out)
{
    TRY(s->backend->finish(s->backend));
    TRY(s->backend->barrier(s->backend));
    double start = clock_now_s();
    TRY(exec_run(s->exec[which]));
    TRY(s->backend->finish(s->backend));
    *seconds_out = clock_now_s() - start;
    return OK;
}

/* Loss and gradient norm of the first round, before any update. */
static Status read_scalar(BenchSession *s, int which, Result *r)
{
    Val norm = which == BENCH_OPTIMIZER ? prog_find(s->program[which], "grad_norm") : VAL_NONE;
    if (norm != VAL_NONE) return exec_read_value(s->exec[which], norm, DT_F64, &r->gradient_norm, 1);
    if (which != BENCH_GRAD) return OK;
    return exec_read_value(s->exec[which], s->program[which]->loss, DT_F64, &r->loss, 1);
}

/* Rounds of all programs in turn: one launched by the host that lets the backend choose its kernels, with graphs one
 * that captures (it takes 10 to 40 % longer) and one in which collectives are timed (exec.h), then `repeats` that
 * count.
 */
static Status time_programs(BenchSession *s, int repeats, bool graph, Result *r)
{
    double forward = 0, backward = 0, comm = 0;
    static const int order[] = {BENCH_NOGRAD, BENCH_GRAD, BENCH_OPTIMIZER};
    int first = graph ? -3 : -1;
    for (int round = first; round < repeats; round++) {
        bool counts = round >= 0;
        for (int k = 0; k < BENCH_PROGRAMS; k++) {
            double seconds = 0;
            if (!s->exec[order[k]]) continue;
            TRY(time_run(s, order[k], &seconds));
            if (round == first) {
                r->first_s += seconds;
                TRY(read_scalar(s, order[k], r));
            }
            if (counts) r->run_s[order[k]].value[r->run_s[order[k]].count++] = seconds;
            if (!counts || order[k] != BENCH_GRAD) continue;
            ExecTimes t;
            TRY(exec_times(s->exec[BENCH_GRAD], &t));
            forward += t.stage_s[STAGE_FORWARD] - t.comm_stage_s[STAGE_FORWARD];
            backward += t.stage_s[STAGE_BACKWARD] - t.comm_stage_s[STAGE_BACKWARD];
            comm += t.comm_exposed_s;
        }
    }
    for (int k = 0; k < BENCH_PROGRAMS; k++)
        if (s->exec[k]) TRY(exec_count_kernels(s->exec[k], &r->kernels[k]));
    int n = r->run_s[BENCH_GRAD].count;
    if (n == 0) return OK;
    r->forward_s = forward / n;
    r->backward_s = backward / n;
    r->comm_s = comm / n;
    return OK;
}

static void count_ops(const BenchSession *s, Result *r)
{
    static const double runs[BENCH_PROGRAMS] = {1.5, 1, 1};
    for (int k = 0; k < BENCH_PROGRAMS; k++) {
        const Program *p = s->program[k];
        for (int32_t i = 0; p && i < p->n_ops; i++) {
            Cost cost = {0};
            prog_op_cost(p, &p->op[i], &cost);
            r->ops[k] += bench_runs_kernel(&p->op[i]);
            r->flops += runs[k] * cost.flops;
        }
    }
}

static Status measure_step(BenchSession *s, const Arguments *a, const ModelConfig *config, const Switches *switches,
                           Result *r)
{
    TRY(bench_record_step(s, config, switches));
    TRY(bench_measure_memory(s, switches->precision));
    r->store_bytes = s->store_bytes;
    r->workspace_bytes = s->workspace_bytes;
    r->prepare_s = s->prepare_s;
    count_ops(s, r);
    TRY(bench_allocate(s, config, switches));
    return time_programs(s, (int)a->repeats, switches->cuda_graph, r);
}

/* H200 and H100: measured copies and bf16 products (gpu floors of one Evoformer block); f32 without TF32 and f64: data
 * sheet of both, 67 and 34 TFLOP/s. Others, and the CPU: all ratios are to the H200. */
static BenchCeilings ceilings_of(const Backend *backend)
{
    bool h100 = strstr(backend->device, "H100") != NULL;
    return (BenchCeilings){h100 ? 3.0e12 : 4.25e12, {[RATE_F32] = 67e12, [RATE_F64] = 34e12, [RATE_BF16] = 810e12}};
}

static Status report_ops(BenchSession *s, const Arguments *a, const Switches *switches)
{
    BenchCeilings ceilings = ceilings_of(s->backend);
    return bench_report_ops(s, switches->cuda_graph && !a->eager, 5, &ceilings, a->ops_csv);
}

/* The table's times come from graphs whatever the setting runs with: one meaning for all of its rows. */
static Status measure_ops(BenchSession *s, const Arguments *a, const Setting *setting)
{
    const Switches *switches = &setting->switches;
    if (a->op_table)
        TRY(op_table_write(s, &(OpTableRow){a->preset, setting->name, switches->dap, a->no_comm}, a->op_table));
    return a->ops ? report_ops(s, a, switches) : OK;
}

/* Seconds of one more block in a chain of them: what surrounds the blocks (casts of the made-up inputs, the product
 * with the cotangents) falls out. */
static Status measure_block(BenchSession *s, const Arguments *a, const ModelConfig *config, const Switches *switches,
                            Result *r)
{
    static const int blocks[] = {CHAIN_SHORT, CHAIN_LONG};
    double seconds[2][2];
    for (int i = 0; i < 2; i++) {
        Result chain = {0};
        bench_close(s);
        TRY(bench_record_chain(s, config, switches, blocks[i]));
        TRY(bench_measure_memory(s, switches->precision));
        TRY(bench_allocate(s, config, switches));
        TRY(time_programs(s, (int)a->repeats, switches->cuda_graph, &chain));
        seconds[i][0] = mean(&chain.run_s[BENCH_NOGRAD]);
        seconds[i][1] = mean(&chain.run_s[BENCH_GRAD]);
        if (i == 0 && a->ops && a->no_step) TRY(report_ops(s, a, switches));
    }
    r->block_forward_s = (seconds[1][0] - seconds[0][0]) / (CHAIN_LONG - CHAIN_SHORT);
    r->block_both_s = (seconds[1][1] - seconds[0][1]) / (CHAIN_LONG - CHAIN_SHORT);
    return OK;
}

/* --- results
 * --------------------------------------------------------------------------------------------------------- */

static double mean_step(const Result *r)
{
    return 1.5 * mean(&r->run_s[BENCH_NOGRAD]) + mean(&r->run_s[BENCH_GRAD]) + mean(&r->run_s[BENCH_OPTIMIZER]);
}

/* Marks are those of the full-size model on one H200. */
static void mark_line(const char *what, double seconds, double first, double goal, bool full)
{
    if (!(seconds > 0)) return;
    printf("  %-32s %9.3f ms", what, 1e3 * seconds);
    if (full)
        printf("   first mark %7.2f ms: %5.2fx %-4s  goal %7.2f ms: %5.2fx %s", 1e3 * first, seconds / first,
               seconds <= first ? "met" : "", 1e3 * goal, seconds / goal, seconds <= goal ? "met" : "");
    printf("\n");
}

static void print_result(const Arguments *a, const Setting *setting, const Result *r)
{
    double step = mean_step(r);
    bool full = !strcmp(a->preset, "initial_training") && !a->n_res && !a->evo_blocks && setting->switches.dap == 1;
    const Sample *run = r->run_s;
    if (r->kernels[BENCH_GRAD])
        printf("  kernels of a replay: forward without gradient %lld, gradient step %lld, optimizer %lld\n",
               (long long)r->kernels[0], (long long)r->kernels[1], (long long)r->kernels[2]);
    printf("\n%s%s%s, dap %d\n", setting->name, setting->switches.precision == PRECISION_BF16 ? ", bf16" : ", f32",
           setting->switches.checkpoint == CHECKPOINT_NONE    ? ", no checkpointing"
           : setting->switches.checkpoint == CHECKPOINT_BLOCK ? ", block checkpointing"
                                                              : ", selective checkpointing",
           setting->switches.dap);
    if (run[BENCH_GRAD].count) {
        printf("  forward without gradient %.3f ms (sd %.3f, %d ops), gradient step %.3f ms (sd %.3f, %d ops: forward "
               "%.3f, backward %.3f, communication %.3f), optimizer %.3f ms (%d ops); %d repeats; %.1f TFLOP/s\n",
               1e3 * mean(&run[0]), 1e3 * deviation(&run[0]), r->ops[0], 1e3 * mean(&run[1]), 1e3 * deviation(&run[1]),
               r->ops[1], 1e3 * r->forward_s, 1e3 * r->backward_s, 1e3 * r->comm_s, 1e3 * mean(&run[2]), r->ops[2],
               run[1].count, 1e-12 * r->flops / step);
        mark_line("mean step (ScaleFold: 2040 ms)", step, 0.45, 0.20, full);
        mark_line("optimizer, clip and average", mean(&run[2]), 1.5e-3, 1.0e-3, full);
    }
    if (r->store_bytes)
        printf("  memory %.2f GiB (parameters and inputs %.2f, temporaries %.2f); recording and passes %.2f s, first "
               "round %.2f s; loss %.6g, gradient norm %.6g\n",
               (double)(r->store_bytes + r->workspace_bytes) / 0x1p30, (double)r->store_bytes / 0x1p30,
               (double)r->workspace_bytes / 0x1p30, r->prepare_s, r->first_s, r->loss, r->gradient_norm);
    mark_line("Evoformer block forward", r->block_forward_s, 1.3e-3, 0.75e-3, full);
    mark_line("Evoformer block forward+backward", r->block_both_s, 4.8e-3, 2.5e-3, full);
    fflush(stdout);
}

/* Without commas: awk reads these files. */
static void device_text(const Backend *backend, char *text, size_t size)
{
    snprintf(text, size, "%s", backend->device);
    for (char *c = text; *c; c++) *c = *c == ',' ? ';' : *c;
}

static Status write_row(const Arguments *a, const Backend *backend, const Setting *setting, const Result *r)
{
    FILE *csv = fopen(a->csv, "a");
    if (!csv) return status_fail(ERR_IO, "%s: cannot write", a->csv);
    if (ftell(csv) == 0) {
        fprintf(csv, "commit,unix_time,device,backend,preset,ranks,dp,dap,no_comm,setting");
        for (int i = 0; i < SWITCHES; i++) fprintf(csv, ",%s", switch_names[i]);
        fprintf(csv, ",checkpoint,repeats,step_s,step_sd_s,nograd_s,nograd_sd_s,grad_s,grad_sd_s,forward_s,backward_s,"
                     "comm_exposed_s,optimizer_s,optimizer_sd_s,block_forward_s,block_both_s,nograd_ops,grad_ops,"
                     "optimizer_ops,store_bytes,workspace_bytes,step_flops,prepare_s,first_s,loss,gradient_norm,nograd_"
                     "kernels,grad_kernels,optimizer_kernels\n");
    }
    char device[200];
    device_text(backend, device, sizeof device);
    const Sample *run = r->run_s;
    double sd[] = {1.5 * deviation(&run[0]), deviation(&run[1]), deviation(&run[2])};
    fprintf(csv, "%s,%lld,%s,%s,%s,%d,%d,%d,%d,%s", version_commit(), (long long)time(NULL), device, backend->name,
            a->preset, backend->layout.world, setting->switches.dp, setting->switches.dap, a->no_comm, setting->name);
    for (int i = 0; i < SWITCHES; i++) fprintf(csv, ",%s", switch_get(&setting->switches, i) ? "on" : "off");
    fprintf(csv,
            ",%s,%d,%.9g,%.3g,%.9g,%.3g,%.9g,%.3g,%.9g,%.9g,%.9g,%.9g,%.3g,%.9g,%.9g,%d,%d,%d,%zu,%zu,%.6g,%.4g,%.4g,"
            "%.9g,%.9g,%lld,%lld,%lld\n",
            checkpoint_names[setting->switches.checkpoint], run[1].count, mean_step(r),
            sqrt(sd[0] * sd[0] + sd[1] * sd[1] + sd[2] * sd[2]), mean(&run[0]), deviation(&run[0]), mean(&run[1]),
            deviation(&run[1]), r->forward_s, r->backward_s, r->comm_s, mean(&run[2]), deviation(&run[2]),
            r->block_forward_s, r->block_both_s, r->ops[0], r->ops[1], r->ops[2], r->store_bytes, r->workspace_bytes,
            r->flops, r->prepare_s, r->first_s, r->loss, r->gradient_norm, (long long)r->kernels[0],
            (long long)r->kernels[1], (long long)r->kernels[2]);
    return fclose(csv) ? status_fail(ERR_IO, "%s: cannot write", a->csv) : OK;
}

static Status run_setting(Backend *backend, const Arguments *a, const ModelConfig *config, Setting *setting)
{
    BenchSession s = {.backend = backend};
    Result r = {0};
    Status status = a->no_step ? OK : measure_step(&s, a, config, &setting->switches, &r);
    if (status == ERR_MEMORY && a->fit && setting->switches.checkpoint == CHECKPOINT_NONE) {
        printf("%s: %s; again with block checkpointing\n", setting->name, status_text());
        bench_close(&s);
        r = (Result){0};
        setting->switches.checkpoint = CHECKPOINT_BLOCK;
        status = measure_step(&s, a, config, &setting->switches, &r);
    }
    if (status == OK && !a->no_step) status = measure_ops(&s, a, setting);
    if (status == OK && !a->no_step && a->same_bits) status = bench_same_bits(&s, config, &setting->switches);
    if (status == OK && a->block) status = measure_block(&s, a, config, &setting->switches, &r);
    bench_close(&s);
    if (status == OK && backend->layout.rank == 0) {
        print_result(a, setting, &r);
        if (a->csv && !a->no_step) status = write_row(a, backend, setting, &r);
    }
    return status;
}

/* Why a setting of a study is not measured now; NULL when it is. All ranks go by rank 0. */
static Status reason_to_skip(const Arguments *a, Backend *backend, const Setting *setting, double spent_s,
                             const char **reason_out)
{
    static const char *const reasons[] = {NULL, "there already", "left for another run (--budget, --resume)"};
    char device[200];
    device_text(backend, device, sizeof device);
    const RowKey key = {version_commit(),      device,     a->preset,  backend->layout.world,
                        setting->switches.dap, a->no_comm, a->repeats, a->fit};
    int reason = 0;
    if (a->resume && a->csv && row_exists(a->csv, &key, &setting->switches))
        reason = 1;
    else if (a->budget_s > 0 && spent_s > a->budget_s)
        reason = 2;
    TRY(backend->host_broadcast(backend, &reason, sizeof reason, 0));
    *reason_out = reasons[reason];
    return OK;
}

static Status run(const Arguments *a, Backend *backend)
{
    ModelConfig config;
    Switches base;
    Setting *list = calloc(MAX_SETTINGS, sizeof *list);
    int count = 0, failed = 0;
    if (!list) return status_fail(ERR_MEMORY, "no memory for settings");
    Status status = model_config_preset(a->preset, &config);
    if (status == OK && a->repeats == 0 && (a->csv || a->block))
        status = status_fail(ERR_USAGE, "--repeats 0 measures no times: --csv and --block want 1 or more");
    if (a->n_res) config.n_res = (int)a->n_res;
    if (a->evo_blocks) config.evo_blocks = (int)a->evo_blocks;
    if (status == OK) status = model_config_check(&config);
    if (status == OK) status = settings_parse(&a->setting, (int)a->dap, &base);
    base.dp = backend->layout.dp;
    if (status == OK)
        status = settings_make(&a->setting, &base, backend->layout.world == 1 && a->dap == 1, list, &count);
    double start = clock_now_s();
    if (status == OK && backend->layout.rank == 0)
        printf("%s, %s, %d ranks, dap %d%s%s\n", backend->device, a->preset, backend->layout.world, base.dap,
               backend->comm && *backend->comm ? ", " : "", backend->comm ? backend->comm : "");
    for (int i = 0; i < count && status == OK; i++) {
        const char *reason = NULL;
        Status one = reason_to_skip(a, backend, &list[i], clock_now_s() - start, &reason);
        if (one == OK && reason && backend->layout.rank == 0) printf("%s: %s\n", list[i].name, reason);
        if (one == OK && !reason) one = run_setting(backend, a, &config, &list[i]);
        if (one == OK) continue;
        if (count == 1 || one != ERR_MEMORY) {
            status = one;
        } else { /* decided by the plan, so on every rank alike */
            fprintf(stderr, "bench_step: %s: %s\n", list[i].name, status_text());
            failed++;
        }
    }
    free(list);
    if (status == OK && failed) status = status_fail(ERR_MEMORY, "%d of %d settings do not fit", failed, count);
    return status;
}

int main(int argc, char **argv)
{
    Arguments a = {.setting = {.switches = "all", .checkpoint = "none"},
                   .backend = "cpu",
                   .preset = "initial_training",
                   .dap = 1,
                   .repeats = 5};
    TextList operands;
    bool help = false;
    const Option options[] = {
        {"backend", OPTION_TEXT, &a.backend, "NAME", "cpu (default) or cuda", 0, 0},
        {"preset", OPTION_TEXT, &a.preset, "NAME", "initial_training (default), fine_tuning or tiny", 0, 0},
        {"n-res", OPTION_INT, &a.n_res, "N", "another crop size", 1, 4096},
        {"evo-blocks", OPTION_INT, &a.evo_blocks, "N", "another number of Evoformer blocks", 1, 96},
        {"switches", OPTION_TEXT, &a.setting.switches, "LIST", "all (default), none, or names separated by commas", 0,
         0},
        {"leave-out", OPTION_LIST, &a.setting.leave_out, "NAME", "turn this switch off; may be repeated", 0, 0},
        {"only", OPTION_LIST, &a.setting.only, "NAME", "this switch alone on; may be repeated", 0, 0},
        {"precision", OPTION_TEXT, &a.setting.precision, "P", "f32, bf16 or f64 whatever the switches say", 0, 0},
        {"keep", OPTION_LIST, &a.setting.keep, "NAME", "on in every setting of --study; may be repeated", 0, 0},
        {"checkpoint", OPTION_TEXT, &a.setting.checkpoint, "C", "none (default), block or selective", 0, 0},
        {"fit", OPTION_FLAG, &a.fit, NULL, "block checkpointing where the device is too small without", 0, 0},
        {"study", OPTION_TEXT, &a.setting.study, "KINDS", "some of cumulative,alone,leave-out: one row each", 0, 0},
        {"dap", OPTION_INT, &a.dap, "N", "ranks of a model-parallel group", 1, 8},
        {"no-comm", OPTION_FLAG, &a.no_comm, NULL, "one rank's share, collectives left out", 0, 0},
        {"repeats", OPTION_INT, &a.repeats, "N", "counted rounds (default 5; 0: no times)", 0, MAX_REPEATS},
        {"budget", OPTION_REAL, &a.budget_s, "SECONDS", "no further setting of --study after that", 0, 1e6},
        {"resume", OPTION_FLAG, &a.resume, NULL, "not what --csv has of this build, machine and setting", 0, 0},
        {"block", OPTION_FLAG, &a.block, NULL, "one Evoformer block alone as well", 0, 0},
        {"no-step", OPTION_FLAG, &a.no_step, NULL, "with --block: nothing but the block", 0, 0},
        {"ops", OPTION_FLAG, &a.ops, NULL, "time of every op against its floor", 0, 0},
        {"same-bits", OPTION_FLAG, &a.same_bits, NULL, "run twice with one seed and compare everything", 0, 0},
        {"eager", OPTION_FLAG, &a.eager, NULL, "with --ops: not from the graph", 0, 0},
        {"op-table", OPTION_TEXT, &a.op_table, "FILE", "append the mean time of equal ops, for op prices", 0, 0},
        {"ops-csv", OPTION_TEXT, &a.ops_csv, "FILE", "every op's time, flops, bytes and floor", 0, 0},
        {"csv", OPTION_TEXT, &a.csv, "FILE", "append one row per setting", 0, 0},
        {"tune-cache", OPTION_TEXT, &a.tune_cache, "FILE", "measured choices of products, kept between runs", 0, 0},
        {"threads", OPTION_INT, &a.threads, "N", "CPU threads of a rank", 0, 1024},
        {0}};
    Backend *backend = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut off keeps its lines */
    Status status = cli_parse(&usage, options, argc, argv, &operands, &help);
    if (help) return 0;
    KernelOptions kernels = {
        .dap = (int)a.dap, .threads = (int)a.threads, .no_comm = a.no_comm, .tune_cache = a.tune_cache};
    if (status == OK) status = kernels_open(a.backend, &kernels, &backend);
    if (status == OK) status = run(&a, backend);
    if (status != OK) {
        fprintf(stderr, "bench_step: %s\n", status_text());
        kernels_abort(status_exit_code(status));
    }
    kernels_close(&backend);
    kernels_finalize();
    return status_exit_code(status);
}
