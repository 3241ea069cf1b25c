/* Prices from measured shapes: a measured shape takes its time, one between is drawn to its neighbours, launches by the
 * host come on top of times from graphs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "analysis/opprice.h"
#include "tests/source_dir.h"

static Machine *machine;

static int setup(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/experiments/machines/h200.yaml", source_dir());
    return machine_read(path, &machine) == OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    machine_destroy(&machine);
    return 0;
}

/* Memory-bound shapes of `kind` at `slowness` times their roofline over 3 us. */
static OpTiming timing(const char *kind, double bytes, double slowness, double calls)
{
    double time = 3e-6 + slowness * bytes / machine->device.copy_bytes_per_s.value;
    return (OpTiming){kind, RATE_BF16, 0, bytes, calls, calls * time, 0};
}

static OpPrices *fitted(const OpTiming *t, int count)
{
    OpPrices *prices = NULL;
    if (opprice_fit_timings(t, count, machine, &prices) != OK) fail_msg("%s", status_text());
    return prices;
}

static void measured_shapes_take_their_time(void **state)
{
    (void)state;
    OpTiming t[] = {timing("a", 1e6, 1, 4), timing("a", 1e7, 3, 4), timing("a", 1e8, 1.2, 4), timing("b", 1e7, 9, 1)};
    OpPrices *p = fitted(t, 4);
    for (int i = 0; i < 4; i++) {
        double sd, priced = opprice_time(p, machine, t[i].kind, RATE_BF16, 0, t[i].bytes, p->from_graphs, &sd);
        assert_true(fabs(priced / (t[i].time_s / t[i].calls) - 1) < 1e-9);
        assert_true(sd == p->context_sd);
    }
    assert_true(fabs(p->total_priced_s / p->total_measured_s - 1) < 1e-9);
    opprice_destroy(&p);
}

static void between_shapes_neighbours_count(void **state)
{
    (void)state;
    /* small shapes run at the curve, large ones 1.5 times slower than it: in between, between */
    OpTiming t[12];
    for (int i = 0; i < 12; i++) t[i] = timing("a", 1e5 * exp2(i), i < 6 ? 1 : 1.5, 8);
    OpPrices *p = fitted(t, 12);
    for (int i = 0; i < 11; i++) {
        double bytes = 1e5 * exp2(i + 0.5), sd;
        double priced = opprice_time(p, machine, "a", RATE_BF16, 0, bytes, p->from_graphs, &sd);
        double low = timing("a", bytes, 1, 1).time_s, high = timing("a", bytes, 1.5, 1).time_s;
        assert_true(priced > 0.93 * low && priced < 1.07 * high);
        assert_true(sd > p->context_sd);
    }
    opprice_destroy(&p);
}

/* What nobody measured takes the pooled curve and more spread. */
static void unknown_kinds_are_pooled(void **state)
{
    (void)state;
    OpTiming t[] = {timing("b", 1e6, 2, 4), timing("b", 1e7, 2, 4), timing("d", 1e8, 2, 4)};
    OpPrices *p = fitted(t, 3);
    static const char *const kinds[] = {"a", "c", "e", ""};
    for (int i = 0; i < 4; i++) {
        double sd, priced = opprice_time(p, machine, kinds[i], RATE_BF16, 0, 1e8, true, &sd);
        assert_true(fabs(priced / t[2].time_s * t[2].calls - 1) < 0.3);
        assert_true(sd >= 1.5 * p->pooled.sd - 1e-12);
    }
    opprice_destroy(&p);
}

static void times_that_differ_between_programs_widen(void **state)
{
    (void)state;
    OpTiming same[] = {timing("a", 1e7, 2, 4), timing("a", 1e7, 2, 4)};
    OpTiming other[] = {timing("a", 1e7, 2, 4), timing("a", 1e7, 2.6, 4)};
    OpPrices *p = fitted(same, 2), *q = fitted(other, 2);
    assert_true(p->context_sd < 0.02);
    assert_true(q->context_sd > 0.05 && q->context_sd < 0.3);
    opprice_destroy(&p);
    opprice_destroy(&q);
}

/* Smaller than anything measured: all kinds may err alike. Between measured sizes they do not. */
static void far_shapes_widen(void **state)
{
    (void)state;
    OpTiming t[] = {timing("a", 1e8, 2, 4), timing("a", 1e9, 2, 4), timing("b", 1e8, 2, 4), timing("b", 1e9, 2, 4)};
    OpPrices *p = fitted(t, 4);
    StepPrice price[2];
    for (int far = 0; far < 2; far++) {
        StepCost *cost;
        assert_int_equal(cost_create(1, true, &cost), OK);
        for (int k = 0; k < 2; k++) {
            CostClass c = {.kind = k ? "b" : "a", .rate = RATE_BF16, .calls = 10, .bytes = far ? 1.25e7 : 5e8};
            assert_int_equal(cost_add(cost, &c), OK);
        }
        assert_int_equal(opprice_step(p, machine, cost, 1, &price[far]), OK);
        cost_destroy(&cost);
    }
    double octaves = 3 * OPPRICE_OCTAVE_SD;
    assert_true(price[0].sd < octaves / 2);
    assert_true(fabs(sqrt(pow(price[1].sd, 2) - pow(price[0].sd, 2)) - octaves) < 0.05 * octaves);
    opprice_destroy(&p);
}

static void launches_come_on_top_of_graphs(void **state)
{
    (void)state;
    OpTiming t[] = {timing("a", 1e6, 1, 4), timing("a", 1e7, 1, 4)};
    OpPrices *p = fitted(t, 2);
    StepCost *graph, *eager;
    StepPrice a, b;
    const CostClass c = {.kind = "a", .stage = COST_FORWARD, .rate = RATE_BF16, .calls = 1000, .bytes = 1e6};
    p->from_graphs = true;
    p->gap_s = 1e-6;
    assert_int_equal(cost_create(1, true, &graph), OK);
    assert_int_equal(cost_create(1, false, &eager), OK);
    assert_int_equal(cost_add(graph, &c), OK);
    assert_int_equal(cost_add(eager, &c), OK);
    assert_int_equal(opprice_step(p, machine, graph, 1, &a), OK);
    assert_int_equal(opprice_step(p, machine, eager, 1, &b), OK);
    assert_true(fabs(b.compute_s - a.compute_s - 1000 * p->gap_s) < 1e-9);
    p->host_s = 20e-6; /* the host cannot keep up */
    assert_int_equal(opprice_step(p, machine, eager, 1, &b), OK);
    assert_true(fabs(b.compute_s - 1000 * p->host_s) < 1e-9);
    assert_int_equal(opprice_step(p, machine, graph, 1, &b), OK);
    assert_true(b.compute_s == a.compute_s);
    assert_true(a.measured == 1);
    cost_destroy(&graph);
    cost_destroy(&eager);
    opprice_destroy(&p);
}

static void nothing_measured_is_refused(void **state)
{
    (void)state;
    OpPrices *p = NULL;
    assert_int_equal(opprice_fit_timings(NULL, 0, machine, &p), ERR_INPUT);
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(measured_shapes_take_their_time),
                                       cmocka_unit_test(between_shapes_neighbours_count),
                                       cmocka_unit_test(unknown_kinds_are_pooled),
                                       cmocka_unit_test(times_that_differ_between_programs_widen),
                                       cmocka_unit_test(far_shapes_widen),
                                       cmocka_unit_test(launches_come_on_top_of_graphs),
                                       cmocka_unit_test(nothing_measured_is_refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
