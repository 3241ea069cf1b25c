/* Micro-benchmarks: every kind of collective, from the host and as chains, the share that hides, the launch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>

#include "experiments/probe.h"
#include "kernels/kernels.h"

#define check_ok(call)                                                                                                 \
    do {                                                                                                               \
        if ((call) != OK) fail_msg("%s", status_text());                                                               \
    } while (0)

/* One rank of a group of two whose exchange is left out: the programs are those that two ranks time. */
static Backend *open_backend(void)
{
    Backend *backend = NULL;
    check_ok(kernels_open("cpu", &(KernelOptions){.dap = 2, .threads = 1, .no_comm = true}, &backend));
    return backend;
}

static void collectives_are_timed(void **state)
{
    (void)state;
    Backend *backend = open_backend();
    for (int kind = 0; kind < COLLECTIVE_BROADCAST; kind++)
        for (int graph = 0; graph < 2; graph++) {
            ProbeResult small = {0}, large = {0};
            check_ok(probe_collective(backend, (Collective)kind, 1 << 10, graph, &small));
            check_ok(probe_collective(backend, (Collective)kind, 1 << 20, graph, &large));
            assert_true(small.seconds > 0 && isfinite(small.seconds));
            assert_true(large.seconds > small.seconds);
        }
    kernels_close(&backend);
}

static void kinds_without_a_probe_are_refused(void **state)
{
    (void)state;
    Backend *backend = open_backend();
    ProbeResult result;
    assert_int_not_equal(probe_collective(backend, COLLECTIVE_BROADCAST, 1 << 10, false, &result), OK);
    kernels_close(&backend);
}

static void hidden_share_and_launch(void **state)
{
    (void)state;
    Backend *backend = open_backend();
    ProbeResult hidden, launch;
    check_ok(probe_overlap(backend, &hidden));
    assert_true(hidden.seconds >= 0 && hidden.seconds <= 1);
    check_ok(probe_launch(backend, true, &launch));
    assert_true(launch.seconds > 0 && launch.seconds < 1e-3);
    kernels_close(&backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(collectives_are_timed),
                                       cmocka_unit_test(kinds_without_a_probe_are_refused),
                                       cmocka_unit_test(hidden_share_and_launch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
