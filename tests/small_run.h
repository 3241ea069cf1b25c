/* A few recorded ops made runnable in float64 on the CPU, for unit tests. Values enter by buffer or parameter name. */
#ifndef FOLDSCALE_TESTS_SMALL_RUN_H
#define FOLDSCALE_TESTS_SMALL_RUN_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "engine/exec.h"
#include "engine/passes.h"
#include "kernels/kernels.h"

typedef struct SmallRun {
    Registry *registry;
    Program *recorded, *planned;
    Backend *backend;
    Store *store;
    Workspace *workspace;
    Exec *exec;
} SmallRun;

static inline Program *small_record(SmallRun *run)
{
    *run = (SmallRun){0};
    assert_int_equal(registry_create(&run->registry), OK);
    assert_int_equal(prog_create(run->registry, &run->recorded), OK);
    return run->recorded;
}

static inline void small_ready(SmallRun *run)
{
    const Switches switches = {.precision = PRECISION_F64, .dap = 1, .dp = 1};
    if (prog_status(run->recorded) != OK) fail_msg("%s", run->recorded->status_message);
    if (passes_run(run->recorded, &switches, PASS_PLAN, &run->planned) != OK) fail_msg("%s", status_text());
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1, .threads = 1}, &run->backend), OK);
    assert_int_equal(store_create(run->backend, run->registry, PRECISION_F64, STORE_TRAINING, &run->store), OK);
    size_t bytes = exec_workspace_bytes(run->backend, run->planned);
    assert_int_equal(workspace_create(run->backend, bytes, &run->workspace), OK);
    assert_int_equal(exec_create(run->backend, run->planned, run->store, run->workspace, &(ExecOptions){0}, &run->exec),
                     OK);
}

static inline void small_free(SmallRun *run)
{
    exec_destroy(&run->exec);
    workspace_destroy(&run->workspace);
    store_destroy(&run->store);
    kernels_close(&run->backend);
    prog_destroy(&run->planned);
    prog_destroy(&run->recorded);
    registry_destroy(&run->registry);
}

static inline void small_write(SmallRun *run, const char *buffer, const double *values, int64_t count)
{
    int index;
    if (store_find_buffer(run->store, buffer, &index) != OK) fail_msg("no buffer '%s'", buffer);
    int32_t whole[256];
    if (run->registry->buffer[index].tensor.dtype == DT_I32) {
        assert_in_range(count, 1, 256);
        for (int64_t i = 0; i < count; i++) whole[i] = (int32_t)values[i];
        assert_int_equal(store_write(run->store, index, DT_I32, whole, count), OK);
        return;
    }
    assert_int_equal(store_write(run->store, index, DT_F64, values, count), OK);
}

static inline void small_write_param(SmallRun *run, const char *name, const double *values, int64_t count)
{
    int index = registry_find_param(run->registry, name);
    assert_true(index >= 0);
    assert_int_equal(store_write_param(run->store, PLACE_PARAM, index, DT_F64, values, count), OK);
}

static inline void small_gradient(SmallRun *run, const char *name, double *values_out, int64_t count)
{
    int index = registry_find_param(run->registry, name);
    assert_true(index >= 0);
    assert_int_equal(store_read_param(run->store, PLACE_GRAD, index, DT_F64, values_out, count), OK);
}

static inline void small_go(SmallRun *run)
{
    if (exec_run(run->exec) != OK) fail_msg("%s", status_text());
}

static inline void small_output(SmallRun *run, const char *name, double *values_out, int64_t count)
{
    if (exec_output(run->exec, name, DT_F64, values_out, count) != OK) fail_msg("%s: %s", name, status_text());
}

/* Deterministic numbers in (-1, 1): fractional parts of multiples of the golden ratio. */
static inline void small_fill(double *values, int64_t count, double seed)
{
    for (int64_t i = 0; i < count; i++) {
        double x = seed + 0.6180339887498949 * (double)(i + 1);
        values[i] = 2 * (x - floor(x)) - 1;
    }
}

#endif
