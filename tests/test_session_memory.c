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

/* A tiny model on a device of `bytes`. */
typedef struct Setup {
    Config *config;
    Backend *backend;
} Setup;

static Setup set_up(size_t bytes, const char *checkpoint)
{
    char path[] = "/tmp/foldscale_memory_XXXXXX";
    Setup s = {0};
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_true(dprintf(file, "model: {preset: tiny}\nswitches: {checkpoint: %s}\n", checkpoint) > 0);
    close(file);
    assert_int_equal(config_load(path, NULL, &s.config), OK);
    unlink(path);
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1, .threads = 1}, &s.backend), OK);
    s.backend->memory_bytes = bytes;
    if (taken) s.backend->memory_free = memory_free;
    return s;
}

static void tear_down(Setup *s)
{
    kernels_close(&s->backend);
    config_destroy(&s->config);
}

/* What session_create says, and what the session takes. */
static Status create(const Setup *s, bool training, size_t *needed_out)
{
    Session *session = NULL;
    Status status = session_create(s->backend, s->config, training, false, &session);
    if (status == OK && needed_out) *needed_out = session->store_bytes + session->workspace_bytes;
    session_destroy(&session);
    return status;
}

/* In plain f32. */
static Status create_on(size_t bytes, const char *checkpoint, size_t *needed_out)
{
    Setup s = set_up(bytes, checkpoint);
    Status status = create(&s, true, needed_out);
    tear_down(&s);
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
    size_t needed = 0;
    Setup s = set_up(0, "none");
    assert_int_equal(create(&s, false, &needed), OK);
    s.backend->memory_bytes = needed;
    assert_int_equal(session_foresee(s.backend, s.config, false), OK);
    s.backend->memory_bytes = needed - 1;
    assert_int_equal(session_foresee(s.backend, s.config, false), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "GiB are missing"));
    s.backend->memory_bytes = 1000;
    assert_int_equal(session_foresee(s.backend, s.config, false), ERR_MEMORY);
    assert_non_null(strstr(status_text(), "eval.max_length"));
    tear_down(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_is_created), cmocka_unit_test(a_switch_that_helps_is_named),
        cmocka_unit_test(nothing_helps_on_a_tiny_device), cmocka_unit_test(what_others_have_is_not_there),
        cmocka_unit_test(an_evaluation_is_foreseen)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
