/* A session that does not fit is refused before anything is allocated, with what would make it fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "experiments/session.h"
#include "kernels/kernels.h"

static size_t taken; /* by others */

static size_t memory_free(const Backend *backend)
{
    return backend->memory_bytes - taken;
}

/* A config that computes in plain f32, on a device of `bytes`; what session_create says. */
static Status create_on(size_t bytes, const char *checkpoint, size_t *needed_out)
{
    char path[] = "/tmp/foldscale_memory_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_true(dprintf(file, "model: {preset: tiny}\nswitches: {checkpoint: %s}\n", checkpoint) > 0);
    close(file);
    Config *config = NULL;
    Backend *backend = NULL;
    Session *session = NULL;
    assert_int_equal(config_load(path, NULL, &config), OK);
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1, .threads = 1}, &backend), OK);
    backend->memory_bytes = bytes;
    if (taken) backend->memory_free = memory_free;
    Status status = session_create(backend, config, true, false, &session);
    if (status == OK && needed_out) *needed_out = session->store_bytes + session->workspace_bytes;
    session_destroy(&session);
    kernels_close(&backend);
    config_destroy(&config);
    unlink(path);
    return status;
}

static void what_fits_is_created(void **state)
{
    (void)state;
    size_t needed = 0;
    assert_int_equal(create_on(0, "none", &needed), OK); /* size unknown */
    assert_int_equal(create_on(needed, "none", NULL), OK);
}

static void a_switch_that_helps_is_named(void **state)
{
    (void)state;
    size_t needed = 0;
    assert_int_equal(create_on(0, "none", &needed), OK);
    assert_int_equal(create_on(needed - 1, "none", NULL), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "would make it fit"));
    assert_non_null(strstr(status_text(), "GiB are missing"));
    /* what it names does: recomputation is the last resort, so that it is tried directly */
    size_t block = 0;
    assert_int_equal(create_on(0, "block", &block), OK);
    assert_true(block < needed);
    assert_int_equal(create_on(block, "none", NULL), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "would make it fit"));
    assert_int_equal(create_on(block, "block", NULL), OK);
}

static void nothing_helps_on_a_tiny_device(void **state)
{
    (void)state;
    assert_int_equal(create_on(1000, "none", NULL), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "no switch makes it fit"));
}

static void what_others_have_is_not_there(void **state)
{
    (void)state;
    size_t needed = 0;
    assert_int_equal(create_on(0, "none", &needed), OK);
    taken = 1000;
    assert_int_equal(create_on(needed + taken, "none", NULL), OK);
    assert_int_equal(create_on(needed + taken - 1, "none", NULL), ERR_MEMORY);
    taken = 0;
}

static void an_evaluation_is_foreseen(void **state)
{
    (void)state;
    char path[] = "/tmp/foldscale_memory_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_true(dprintf(file, "model: {preset: tiny}\n") > 0);
    close(file);
    Config *config = NULL;
    Backend *backend = NULL;
    assert_int_equal(config_load(path, NULL, &config), OK);
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1, .threads = 1}, &backend), OK);
    Session *session = NULL;
    assert_int_equal(session_create(backend, config, false, false, &session), OK);
    size_t needed = session->store_bytes + session->workspace_bytes;
    session_destroy(&session);
    backend->memory_bytes = needed;
    assert_int_equal(session_foresee(backend, config, false), OK);
    backend->memory_bytes = needed - 1;
    assert_int_equal(session_foresee(backend, config, false), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "GiB are missing"));
    backend->memory_bytes = 1000;
    assert_int_equal(session_foresee(backend, config, false), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "eval.max_length"));
    kernels_close(&backend);
    config_destroy(&config);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_is_created), cmocka_unit_test(a_switch_that_helps_is_named),
        cmocka_unit_test(nothing_helps_on_a_tiny_device), cmocka_unit_test(what_others_have_is_not_there),
        cmocka_unit_test(an_evaluation_is_foreseen)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
