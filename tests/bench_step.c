/* Time of one gradient step (forward, backward) on the CPU backend, whole and by op kind; constant inputs, initial
 * parameters:
 *
 *   build/tests/bench_step [preset] [n_res] [repeats] [all|none] [f32|f64] [threads]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/exec.h"
#include "kernels/kernels.h"
#include "model/model.h"

typedef struct Bench {
    ModelConfig config;
    Switches switches;
    int repeats, threads;
    Registry *registry;
    Program *recorded, *planned;
    Backend *backend;
    Store *store;
    Workspace *workspace;
    Exec *exec;
} Bench;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Ones everywhere (masks included), indices 0..19. */
static Status fill_inputs(Bench *b)
{
    for (int k = 0; k < b->registry->n_buffers; k++) {
        const Tensor *t = &b->registry->buffer[k].tensor;
        int64_t count = tensor_count(t);
        float *reals = malloc((size_t)count * sizeof *reals);
        int32_t *integers = malloc((size_t)count * sizeof *integers);
        Status status = reals && integers ? OK : status_fail(ERR_MEMORY, "out of memory");
        for (int64_t e = 0; status == OK && e < count; e++) {
            reals[e] = 1;
            integers[e] = (int32_t)(e % 14);
        }
        bool whole = t->dtype == DT_I32;
        if (status == OK)
            status = store_write(b->store, k, whole ? DT_I32 : DT_F32, whole ? (void *)integers : (void *)reals, count);
        free(reals);
        free(integers);
        TRY(status);
    }
    return OK;
}

static Status prepare(Bench *b)
{
    TRY(registry_create(&b->registry));
    TRY(prog_create(b->registry, &b->recorded));
    TRY(model_record_forward(&b->config, true, b->recorded));
    TRY(passes_run(b->recorded, &b->switches, PASS_PLAN, &b->planned));
    TRY(kernels_open("cpu", &(KernelOptions){.dap = 1, .threads = b->threads}, &b->backend));
    TRY(store_create(b->backend, b->registry, b->switches.precision, STORE_TRAINING, &b->store));
    TRY(store_init_params(b->store, 1));
    TRY(fill_inputs(b));
    TRY(workspace_create(b->backend, exec_workspace_bytes(b->backend, b->planned), &b->workspace));
    return exec_create(b->backend, b->planned, b->store, b->workspace, &(ExecOptions){.time_ops = true}, &b->exec);
}

static Status run(Bench *b)
{
    double best = 0;
    for (int r = 0; r < b->repeats; r++) {
        double start = now();
        TRY(exec_run(b->exec));
        TRY(b->backend->finish(b->backend));
        double seconds = now() - start;
        if (r == 0 || seconds < best) best = seconds;
    }
    double kind_s[OP_COUNT] = {0}, total = 0;
    int64_t kind_ops[OP_COUNT] = {0};
    for (int i = 0; i < b->planned->n_ops; i++) {
        double seconds = 0;
        int64_t calls = 0;
        TRY(exec_op_times(b->exec, i, &seconds, &calls));
        if (calls == 0) continue;
        kind_s[b->planned->op[i].kind] += seconds / (double)calls;
        kind_ops[b->planned->op[i].kind]++;
        total += seconds / (double)calls;
    }
    printf("%s: %d ops, best of %d runs %.3f ms, sum of ops %.3f ms\n", b->backend->device, b->planned->n_ops,
           b->repeats, 1e3 * best, 1e3 * total);
    for (int shown = 0; shown < 24; shown++) {
        int top = 0;
        for (int k = 1; k < OP_COUNT; k++) top = kind_s[k] > kind_s[top] ? k : top;
        if (kind_s[top] <= 0) break;
        printf("%-26s %6lld ops %10.3f ms %5.1f %%\n", op_def((OpKind)top)->name, (long long)kind_ops[top],
               1e3 * kind_s[top], 100 * kind_s[top] / total);
        kind_s[top] = 0;
    }
    return OK;
}

static void release(Bench *b)
{
    exec_destroy(&b->exec);
    workspace_destroy(&b->workspace);
    store_destroy(&b->store);
    kernels_close(&b->backend);
    prog_destroy(&b->planned);
    prog_destroy(&b->recorded);
    registry_destroy(&b->registry);
}

int main(int argc, char **argv)
{
    Bench b = {.switches = {.dap = 1, .dp = 1}, .repeats = argc > 3 ? atoi(argv[3]) : 5};
    Status status = model_config_preset(argc > 1 ? argv[1] : "tiny", &b.config);
    if (argc > 2) b.config.n_res = atoi(argv[2]);
    bool all = argc <= 4 || !strcmp(argv[4], "all");
    b.switches.gemm_batching = b.switches.fused_attention = b.switches.fused_layernorm = all;
    b.switches.fused_pointwise = b.switches.fused_optimizer = all;
    b.switches.precision = argc > 5 && !strcmp(argv[5], "f64") ? PRECISION_F64 : PRECISION_F32;
    if (argc > 6) b.threads = atoi(argv[6]);
    if (status == OK) status = prepare(&b);
    if (status == OK) status = run(&b);
    if (status != OK) fprintf(stderr, "bench_step: %s\n", status_text());
    release(&b);
    return status_exit_code(status);
}
