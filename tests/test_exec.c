/* The executor: results, timing, the first op with a value that is not finite, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tiny_step.h"

typedef struct Fixture {
    Backend *backend;
    Registry *registry;
    Program *recorded, *planned;
    Store *store;
    Workspace *workspace;
    Exec *exec;
    Val x, y;
} Fixture;

/* y = x W^T, z = relu(y): x is the input, W a parameter */
static void record(Fixture *f)
{
    Program *p = f->recorded;
    prog_scope_push(p, "net");
    f->x = prog_input(p, "x", DT_F32, 2, (int64_t[]){3, 2});
    Val w = prog_param(p, "weight", 2, (int64_t[]){4, 2}, INIT_ONE, 0);
    f->y = prog_add(p, OP_LINEAR, 3, (Val[]){f->x, w, VAL_NONE}, NULL);
    Val z = prog_add(p, OP_RELU, 1, &f->y, NULL);
    prog_output(p, "z", z);
    prog_scope_pop(p);
}

static void fixture_open(Fixture *f, Precision precision, const ExecOptions *options)
{
    *f = (Fixture){0};
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &f->backend), OK);
    assert_int_equal(registry_create(&f->registry), OK);
    assert_int_equal(prog_create(f->registry, &f->recorded), OK);
    record(f);
    Switches s = {.precision = precision, .dap = 1, .dp = 1};
    assert_int_equal(passes_run(f->recorded, &s, PASS_PLAN, &f->planned), OK);
    assert_int_equal(store_create(f->backend, f->registry, precision, STORE_FORWARD, &f->store), OK);
    assert_int_equal(store_init_params(f->store, 1), OK);
    assert_int_equal(workspace_create(f->backend, exec_workspace_bytes(f->backend, f->planned), &f->workspace), OK);
    assert_int_equal(exec_create(f->backend, f->planned, f->store, f->workspace, options, &f->exec), OK);
}

static void fixture_close(Fixture *f)
{
    exec_destroy(&f->exec);
    workspace_destroy(&f->workspace);
    store_destroy(&f->store);
    prog_destroy(&f->planned);
    prog_destroy(&f->recorded);
    registry_destroy(&f->registry);
    kernels_close(&f->backend);
}

static void write_x(Fixture *f, const double *x)
{
    int buffer = -1;
    assert_int_equal(store_find_buffer(f->store, "x", &buffer), OK);
    assert_int_equal(store_write(f->store, buffer, DT_F64, x, 6), OK);
}

static void every_precision_computes(void **state)
{
    (void)state;
    for (int precision = PRECISION_F32; precision <= PRECISION_BF16; precision++) {
        Fixture f;
        fixture_open(&f, (Precision)precision, NULL);
        write_x(&f, (double[]){1, 2, -3, 1, 0.5, 0.25});
        for (int run = 0; run < 2; run++) {
            assert_int_equal(exec_run(f.exec), OK);
            double z[12];
            assert_int_equal(exec_output(f.exec, "z", DT_F64, z, 12), OK);
            const double expected[3] = {3, 0, 0.75}; /* exact in bf16 too */
            for (int e = 0; e < 12; e++) assert_true(z[e] == expected[e / 4]);
        }
        fixture_close(&f);
    }
}

static void outputs_are_found_by_name_and_size(void **state)
{
    (void)state;
    Fixture f;
    fixture_open(&f, PRECISION_F32, NULL);
    double z[12];
    assert_int_equal(exec_run(f.exec), OK);
    assert_int_equal(exec_output(f.exec, "q", DT_F64, z, 12), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "no output named \"q\""));
    assert_int_equal(exec_output(f.exec, "z", DT_F64, z, 11), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "12 elements, not 11"));
    fixture_close(&f);
}

static void the_first_value_that_is_not_finite_is_named(void **state)
{
    (void)state;
    Fixture f;
    fixture_open(&f, PRECISION_F32, &(ExecOptions){.check_finite = true});
    write_x(&f, (double[]){1, 2, 3, 4, 5, 6});
    assert_int_equal(exec_run(f.exec), OK);
    write_x(&f, (double[]){1, 2, 3, NAN, 5, 6});
    assert_int_equal(exec_run(f.exec), ERR_NUMERIC);
    assert_non_null(strstr(status_text(), "net/linear#"));
    assert_non_null(strstr(status_text(), "at element 4"));
    fixture_close(&f);
}

static void ops_are_timed(void **state)
{
    (void)state;
    Fixture f;
    fixture_open(&f, PRECISION_F32, &(ExecOptions){.time_ops = true});
    for (int run = 0; run < 5; run++) assert_int_equal(exec_run(f.exec), OK);
    ExecTimes times;
    assert_int_equal(exec_times(f.exec, &times), OK);
    assert_true(times.total_s > 0 && times.total_s < 1 && times.comm_exposed_s == 0);
    assert_true(fabs(times.stage_s[STAGE_FORWARD] - times.total_s) < 1e-12);
    double sum = 0;
    for (int i = 0; i < f.planned->n_ops; i++) {
        double seconds;
        int64_t calls;
        assert_int_equal(exec_op_times(f.exec, i, &seconds, &calls), OK);
        assert_int_equal(calls, 5);
        assert_true(seconds >= 0);
        sum += seconds;
    }
    assert_true(sum >= times.total_s); /* five runs, of which one is the last */
    double seconds;
    int64_t calls;
    assert_int_equal(exec_op_times(f.exec, f.planned->n_ops, &seconds, &calls), ERR_INTERNAL);
    fixture_close(&f);
}

/* Two executors on one backend keep their own marks. */
static void executors_do_not_mix_their_times(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    TinyStep step;
    Switches s = {.dap = 1, .dp = 1};
    if (tiny_open(backend, &s, &step) != OK) fail_msg("%s", status_text());
    assert_int_equal(tiny_inputs(&step, 0, 1), OK);
    assert_int_equal(exec_run(step.run_grad), OK);
    ExecTimes before, after, optimizer;
    assert_int_equal(exec_times(step.run_grad, &before), OK);
    assert_int_equal(exec_run(step.run_optimizer), OK);
    assert_int_equal(exec_times(step.run_optimizer, &optimizer), OK);
    assert_int_equal(exec_times(step.run_grad, &after), OK);
    assert_memory_equal(&before, &after, sizeof before);
    assert_true(before.stage_s[STAGE_FORWARD] > 0 && before.stage_s[STAGE_BACKWARD] > before.stage_s[STAGE_OPTIMIZER]);
    assert_true(before.stage_s[STAGE_OPTIMIZER] == 0 && optimizer.stage_s[STAGE_OPTIMIZER] > 0);
    tiny_close(&step);
    kernels_close(&backend);
}

/* The same inputs and the same counters give the same bits; another step draws other dropout masks. */
static void a_step_is_reproducible(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    double *result[3] = {0};
    int64_t count = 0;
    for (int turn = 0; turn < 3; turn++) {
        TinyStep step;
        Switches s = {.dap = 1, .dp = 1};
        if (tiny_open(backend, &s, &step) != OK) fail_msg("%s", status_text());
        count = tiny_result_count(&step);
        result[turn] = calloc((size_t)count, sizeof(double));
        assert_int_equal(tiny_inputs(&step, 0, turn == 2 ? 2 : 1), OK);
        assert_int_equal(exec_run(step.run_grad), OK);
        assert_int_equal(exec_read_value(step.run_grad, step.grad->loss, DT_F64, result[turn], 1), OK);
        assert_int_equal(exec_run(step.run_optimizer), OK);
        assert_int_equal(tiny_read(&step, result[turn]), OK);
        tiny_close(&step);
    }
    assert_memory_equal(result[0], result[1], (size_t)count * sizeof(double));
    assert_true(result[0][0] != result[2][0]);
    for (int turn = 0; turn < 3; turn++) free(result[turn]);
    kernels_close(&backend);
}

/* A gradient that is not finite: the step is skipped, nothing in the persistent blocks changes. */
static void a_step_that_is_not_finite_is_skipped(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    for (int fused = 0; fused < 2; fused++) {
        TinyStep step;
        Switches s = {.dap = 1, .dp = 1, .fused_optimizer = fused};
        if (tiny_open(backend, &s, &step) != OK) fail_msg("%s", status_text());
        int64_t count = tiny_result_count(&step);
        double *before = calloc((size_t)count, sizeof *before), *after = calloc((size_t)count, sizeof *after);
        assert_int_equal(tiny_run(&step, 0, before), OK);
        const ParamInfo *param = &step.registry->param[3];
        double *bad = calloc((size_t)param->count, sizeof *bad);
        bad[0] = INFINITY;
        assert_int_equal(store_write_param(step.store, PLACE_GRAD, 3, DT_F64, bad, param->count), OK);
        assert_int_equal(exec_run(step.run_optimizer), OK);
        assert_int_equal(tiny_read(&step, after), OK);
        assert_true(!isfinite(after[1]));
        const double *x = before + 2, *y = after + 2;
        for (int k = 0; k < step.registry->n_params; k++)
            for (int block = 0; block < 5; block++) {
                int64_t n = step.registry->param[k].count;
                if (block) assert_memory_equal(x, y, (size_t)n * sizeof *x);
                x += n;
                y += n;
            }
        free(before);
        free(after);
        free(bad);
        tiny_close(&step);
    }
    kernels_close(&backend);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    Fixture f;
    fixture_open(&f, PRECISION_F32, NULL);
    Workspace *small = NULL;
    Exec *exec = NULL;
    assert_int_equal(workspace_create(f.backend, 16, &small), OK);
    assert_int_equal(exec_create(f.backend, f.planned, f.store, small, NULL, &exec), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "bytes of workspace, there are 16"));
    workspace_destroy(&small);
    assert_int_equal(exec_create(f.backend, f.recorded, f.store, f.workspace, NULL, &exec), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "not planned"));
    assert_null(exec);
    f.planned->dap = 4;
    assert_int_equal(exec_create(f.backend, f.planned, f.store, f.workspace, NULL, &exec), ERR_INTERNAL);
    assert_string_equal(status_text(), "a program for dap 4 on a backend with dap 1");
    fixture_close(&f);
}

/* The CPU as a backend whose groups aside run as late as they may: when they are waited for. */
static struct {
    Status (*run)(Backend *, const OpCall *);
    const OpCall *call[ASIDE_GROUPS][1024];
    const OpCall *now[1024];
    int count[ASIDE_GROUPS], n;
    bool within;
    int groups;
} late;

static Status late_run(Backend *backend, const OpCall *call)
{
    if (!late.within) return late.run(backend, call);
    assert_true(late.n < 1024);
    late.now[late.n++] = call;
    return OK;
}

static Status late_begin(Backend *backend)
{
    (void)backend;
    late.within = true;
    late.n = 0;
    return OK;
}

static Status late_end(Backend *backend, int slot)
{
    (void)backend;
    late.within = false;
    assert_int_equal(late.count[slot], 0);
    memcpy(late.call[slot], late.now, sizeof late.now);
    late.count[slot] = late.n;
    late.groups++;
    return OK;
}

static Status late_wait(Backend *backend, int slot)
{
    assert_true(late.count[slot] > 0);
    for (int k = 0; k < late.count[slot]; k++) TRY(late.run(backend, late.call[slot][k]));
    late.count[slot] = 0;
    return OK;
}

static void groups_aside_may_run_late(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    late.run = backend->run;
    double *result[2] = {NULL, NULL};
    int64_t count = 0;
    for (int aside = 0; aside < 2; aside++) {
        TinyStep step;
        Switches s = {.dap = 1, .dp = 1, .overlap_clip = true, .cuda_graph = true};
        if (aside) {
            backend->run = late_run;
            backend->aside_begin = late_begin;
            backend->aside_end = late_end;
            backend->aside_wait = late_wait;
        }
        if (tiny_open(backend, &s, &step) != OK) fail_msg("%s", status_text());
        count = tiny_result_count(&step);
        result[aside] = malloc((size_t)count * sizeof *result[aside]);
        if (tiny_run(&step, 0, result[aside]) != OK) fail_msg("%s", status_text());
        tiny_close(&step);
    }
    assert_true(late.groups > 10);
    assert_memory_equal(result[0], result[1], (size_t)count * sizeof *result[0]);
    free(result[0]);
    free(result[1]);
    kernels_close(&backend);
}

/* The CPU as a backend that is told which operands may be read ahead of their turn. */
static struct {
    Status (*run)(Backend *, const OpCall *);
    const TinyStep *step;
    int calls, steady; /* of the gradient's program: calls, operands */
} ahead;

static Status ahead_run(Backend *backend, const OpCall *call)
{
    const Program *grad = ahead.step->grad;
    bool of_grad = call->op >= grad->op && call->op < grad->op + grad->n_ops;
    const char *from = store_place(ahead.step->store, PLACE_PARAM, WHOLE_BLOCK);
    const char *until = from + (size_t)ahead.step->registry->param_elements * sizeof(float);
    for (int k = 0; k < call->op->n_in; k++) {
        const char *at = call->in[k];
        bool parameter = at >= from && at < until, steady = call->steady >> k & 1;
        assert_int_equal(steady, parameter && of_grad && ahead.calls > 0);
        ahead.steady += steady;
    }
    ahead.calls += of_grad;
    return ahead.run(backend, call);
}

static void parameters_may_be_read_ahead(void **state)
{
    (void)state;
    Backend *backend = NULL;
    TinyStep step;
    Switches s = {.dap = 1, .dp = 1, .gemm_batching = true};
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    ahead.run = backend->run;
    ahead.step = &step;
    backend->run = ahead_run;
    if (tiny_open(backend, &s, &step) != OK) fail_msg("%s", status_text());
    double *result = malloc((size_t)tiny_result_count(&step) * sizeof *result);
    if (tiny_run(&step, 0, result) != OK) fail_msg("%s", status_text());
    assert_true(ahead.steady > 100);
    free(result);
    tiny_close(&step);
    kernels_close(&backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_precision_computes),
        cmocka_unit_test(outputs_are_found_by_name_and_size),
        cmocka_unit_test(the_first_value_that_is_not_finite_is_named),
        cmocka_unit_test(ops_are_timed),
        cmocka_unit_test(executors_do_not_mix_their_times),
        cmocka_unit_test(a_step_is_reproducible),
        cmocka_unit_test(a_step_that_is_not_finite_is_skipped),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(groups_aside_may_run_late),
        cmocka_unit_test(parameters_may_be_read_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
