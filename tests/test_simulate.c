/* The simulation against results known in closed form. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "analysis/fit.h"
#include "analysis/simulate.h"

static SimConfig plain(void)
{
    return (SimConfig){.ranks = 64, .dap = 1, .steps = 400, .compute_s = 1, .seed = 5};
}

static SimResult run(const SimConfig *c)
{
    SimResult r;
    if (simulate_run(c, &r) != OK) fail_msg("%s", status_text());
    double parts =
        r.startup_s + r.compute_s + r.comm_s + r.host_s + r.loader_s + r.straggler_s + r.eval_s + r.checkpoint_s;
    assert_true(fabs(parts - r.total_s) < 1e-9 * r.total_s); /* the causes add up */
    return r;
}

static void test_plain(void **state)
{
    (void)state;
    SimConfig c = plain();
    c.comm_s = 0.1, c.host_s = 0.05, c.startup_s = 3, c.checkpoint_every = 100, c.checkpoint_s = 2;
    SimResult r = run(&c);
    assert_true(fabs(r.total_s - (3 + 400 * 1.15 + 4 * 2)) < 1e-9);
    assert_true(r.straggler_s == 0 && r.loader_s == 0);
    simulate_free(&r);
}

/* mean of the maximum of N lognormal times, against the expected maximum of N normals */
static void test_stragglers(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 4096; n *= 16) {
        SimConfig c = plain();
        c.ranks = n, c.step_sd = 0.02, c.steps = 300;
        SimResult r = run(&c);
        double expected = 0.02 * fit_expected_max((double)n);
        assert_true(fabs(r.straggler_s / 300 - expected) < 0.06 * expected + 4 * 0.02 / sqrt(300));
        simulate_free(&r);
    }
}

/* What stragglers cost is never negative, however few ranks, and nothing where there is no other rank to wait for. */
static void test_few_ranks(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 4; n++) {
        SimConfig c = plain();
        c.ranks = n, c.compute_s = 0.1, c.rank_sd = 0.05, c.step_sd = 0.1;
        SimResult r = run(&c);
        double compute = 0, straggler = 0;
        for (int64_t i = 0; i < r.steps; i++) {
            assert_true(r.step[i].straggler_s >= 0 && (n > 1 || r.step[i].straggler_s == 0));
            assert_true(fabs(r.step[i].compute_s + r.step[i].straggler_s - r.step[i].step_s) < 1e-12);
            compute += r.step[i].compute_s, straggler += r.step[i].straggler_s;
        }
        assert_true(fabs(compute - r.compute_s) < 1e-9 && fabs(straggler - r.straggler_s) < 1e-9);
        assert_true(n == 1 || straggler > 0);
        simulate_free(&r);
        c.rank_sd = c.step_sd = 0; /* nothing is lost to rounding either */
        r = run(&c);
        assert_true(r.straggler_s == 0);
        simulate_free(&r);
        c.hiccup_rate = 1, c.hiccup_s = 0.01; /* a pause is no computation */
        r = run(&c);
        assert_true(fabs(r.compute_s - 400 * 0.1) < 1e-9);
        assert_true(r.straggler_s > 400 * 0.01 * 0.8);
        simulate_free(&r);
    }
}

/* One worker slower than the step: every step waits for the difference; enough workers: none does. */
static void test_loader(void **state)
{
    (void)state;
    SimConfig c = plain();
    c.loader = (SimLoader){.workers = 1, .queue = 4, .prepare_s = 1.5};
    SimResult r = run(&c);
    assert_true(fabs(r.loader_s / 400 - 0.5) < 0.01);
    simulate_free(&r);
    c.loader.workers = 4;
    r = run(&c);
    assert_true(r.loader_s < 1.5 + 1e-9); /* the very first sample only */
    simulate_free(&r);
    /* preparation times with a long tail: the ordered loader waits for each late sample, ready-first goes round it */
    c.loader = (SimLoader){.workers = 8, .queue = 16, .prepare_s = 2, .prepare_sd = 1};
    c.ranks = 16;
    SimResult ordered = run(&c);
    c.loader.ready_first = true;
    SimResult ready = run(&c);
    assert_true(ready.loader_s < 0.5 * ordered.loader_s);
    simulate_free(&ordered);
    simulate_free(&ready);
}

static void test_evaluation(void **state)
{
    (void)state;
    SimConfig c = plain();
    c.eval_every = 40, c.eval_s = 20, c.gap_s = 1, c.async_eval = true;
    SimResult r = run(&c);
    assert_true(fabs(r.eval_s - (10 * 1 + 20)) < 1e-9); /* ten hand-overs, and the last evaluation decides */
    simulate_free(&r);
    c.eval_s = 60; /* longer than a cycle of 40 s: training is held back by the evaluation before */
    r = run(&c);
    assert_true(fabs(r.total_s - (41 + 9 * 61 + 60)) < 2);
    simulate_free(&r);
    c.async_eval = false;
    r = run(&c);
    assert_true(fabs(r.total_s - (400 + 600)) < 1e-9);
    simulate_free(&r);
}

static void test_deterministic(void **state)
{
    (void)state;
    SimConfig c = plain();
    c.ranks = 512, c.dap = 8, c.rank_sd = 0.01, c.step_sd = 0.02, c.hiccup_rate = 1e-4, c.hiccup_s = 0.5;
    c.loader = (SimLoader){.workers = 4, .queue = 8, .prepare_s = 3, .prepare_sd = 0.7, .ready_first = true};
    SimResult a = run(&c), b = run(&c);
    assert_memory_equal(a.step, b.step, 400 * sizeof *a.step);
    simulate_free(&b);
    c.seed = 6;
    b = run(&c);
    assert_true(a.total_s != b.total_s);
    simulate_free(&a);
    simulate_free(&b);
}

static void test_refused(void **state)
{
    (void)state;
    SimResult r;
    SimConfig c = plain();
    c.ranks = 0;
    assert_int_equal(simulate_run(&c, &r), ERR_USAGE);
    c = plain(), c.dap = 7;
    assert_int_equal(simulate_run(&c, &r), ERR_USAGE);
    assert_non_null(strstr(status_text(), "64 ranks are not a multiple of dap 7"));
    c = plain(), c.step_sd = NAN;
    assert_int_equal(simulate_run(&c, &r), ERR_USAGE);
    c = plain(), c.loader = (SimLoader){.workers = 8, .queue = 4, .prepare_s = 1};
    assert_int_equal(simulate_run(&c, &r), ERR_USAGE);
    assert_non_null(strstr(status_text(), "loader.queue is 4 (expected 8 to 1024)"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),   cmocka_unit_test(test_stragglers), cmocka_unit_test(test_few_ranks),
        cmocka_unit_test(test_loader),  cmocka_unit_test(test_evaluation), cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
