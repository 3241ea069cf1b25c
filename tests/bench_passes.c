/* Time of recording and of every pass for a training step (no-gradient forward, gradient step, optimizer), best of
 * `repeats` on one core:
 *
 *   build/tests/bench_passes [preset] [repeats] [dap]
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/clock.h"
#include "engine/passes.h"
#include "model/model.h"

enum { RECORD_LOSS, RECORD_FORWARD, RECORD_OPTIMIZER, PROGRAMS };

typedef Status (*Pass)(const Program *in, const Switches *switches, Program **out);

static const struct {
    const char *name;
    Pass run;
} passes[] = {{"fuse", pass_fuse},         {"shard", pass_shard}, {"precision", pass_precision},
              {"autodiff", pass_autodiff}, {"remat", pass_remat}, {"schedule", pass_schedule},
              {"plan", pass_plan}};
enum { PASSES = sizeof passes / sizeof passes[0] };

static void best(double *least, double seconds)
{
    if (*least == 0 || seconds < *least) *least = seconds;
}

typedef struct Bench {
    ModelConfig config;
    Switches switches;
    double record[PROGRAMS], pass[PASSES][PROGRAMS], verify;
    int32_t ops[PROGRAMS], recorded_ops[PROGRAMS];
    double arena_gb[PROGRAMS], total;
} Bench;

static Status record(const Bench *b, int which, Program *p)
{
    static const OptimizerConfig adam = {0.9, 0.999, 1e-6, 0.1, 0.9};
    return which == RECORD_OPTIMIZER ? model_record_optimizer(&adam, p)
                                     : model_record_forward(&b->config, which == RECORD_LOSS, p);
}

static Status run_program(Bench *b, Registry *registry, int which)
{
    Program *p = NULL, *next = NULL;
    double start = clock_now_s();
    TRY(prog_create(registry, &p));
    Status status = record(b, which, p);
    best(&b->record[which], clock_now_s() - start);
    b->recorded_ops[which] = p->n_ops;
    for (int k = 0; k < PASSES && status == OK; k++) {
        start = clock_now_s();
        status = passes[k].run(p, &b->switches, &next);
        double seconds = clock_now_s() - start;
        if (status != OK) break;
        best(&b->pass[k][which], seconds);
        prog_destroy(&p);
        p = next;
    }
    if (status == OK) {
        b->ops[which] = p->n_ops;
        b->arena_gb[which] = (double)p->arena_bytes * 1e-9;
        start = clock_now_s();
        status = prog_verify(p, PASS_PLAN);
        if (which == RECORD_LOSS) best(&b->verify, clock_now_s() - start);
    }
    prog_destroy(&p);
    return status;
}

static Status run_all(Bench *b)
{
    Registry *registry = NULL;
    TRY(registry_create(&registry));
    double start = clock_now_s();
    Status status = OK;
    for (int which = 0; which < PROGRAMS && status == OK; which++) status = run_program(b, registry, which);
    best(&b->total, clock_now_s() - start);
    registry_destroy(&registry);
    return status;
}

static void print(const Bench *b)
{
    printf("%-12s %12s %12s %12s   (ms)\n", "", "gradient", "forward", "optimizer");
    printf("%-12s %12.2f %12.2f %12.2f\n", "record", 1e3 * b->record[0], 1e3 * b->record[1], 1e3 * b->record[2]);
    double sum[PROGRAMS] = {b->record[0], b->record[1], b->record[2]};
    for (int k = 0; k < PASSES; k++) {
        printf("%-12s %12.2f %12.2f %12.2f\n", passes[k].name, 1e3 * b->pass[k][0], 1e3 * b->pass[k][1],
               1e3 * b->pass[k][2]);
        for (int which = 0; which < PROGRAMS; which++) sum[which] += b->pass[k][which];
    }
    printf("%-12s %12.2f %12.2f %12.2f   together %.2f\n", "sum", 1e3 * sum[0], 1e3 * sum[1], 1e3 * sum[2],
           1e3 * (sum[0] + sum[1] + sum[2]));
    printf("%-12s %12d %12d %12d\n", "ops recorded", b->recorded_ops[0], b->recorded_ops[1], b->recorded_ops[2]);
    printf("%-12s %12d %12d %12d\n", "ops planned", b->ops[0], b->ops[1], b->ops[2]);
    printf("%-12s %12.3f %12.3f %12.3f\n", "arena GB", b->arena_gb[0], b->arena_gb[1], b->arena_gb[2]);
    printf("one verify of the gradient step: %.2f ms\n", 1e3 * b->verify);
}

int main(int argc, char **argv)
{
    Bench b = {0};
    /* as the command does: memory that one pass frees serves the next one instead of going back to the system */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    const char *preset = argc > 1 ? argv[1] : "initial_training";
    int repeats = argc > 2 ? atoi(argv[2]) : 5, dap = argc > 3 ? atoi(argv[3]) : 1;
    Status status = model_config_preset(preset, &b.config);
    for (int setting = 0; setting < 2 && status == OK; setting++) {
        bool on = setting == 1;
        Bench run = {.config = b.config};
        run.switches =
            (Switches){on, on, on, on, on, on, on, on, on ? PRECISION_BF16 : PRECISION_F32, CHECKPOINT_NONE, dap, 1};
        if (on) run.switches.checkpoint = CHECKPOINT_BLOCK;
        for (int r = 0; r < repeats && status == OK; r++) status = run_all(&run);
        printf("\n%s, dap %d, %s\n", preset, dap,
               on ? "all switches on, block checkpointing, bf16" : "all switches off");
        if (status == OK) print(&run);
    }
    if (status != OK) fprintf(stderr, "bench_passes: %s\n", status_text());
    return status_exit_code(status);
}
