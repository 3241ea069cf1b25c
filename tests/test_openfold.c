/* Published figures about launches: read, solved for, and refused when they are not there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "experiments/openfold.h"
#include "experiments/published.h"
#include "tests/source_dir.h"

static Config *configs[2];
static OpenFold openfold;

static int setup(void **state)
{
    (void)state;
    static const char *const names[2] = {"initial_training", "fine_tuning"};
    const TextList none = {0};
    for (int k = 0; k < 2; k++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/experiments/%s.yaml", source_dir(), names[k]);
        if (config_load(path, &none, &configs[k]) != OK) return -1;
    }
    return openfold_read(configs[0], configs[1], &openfold) == OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    config_destroy(&configs[0]);
    config_destroy(&configs[1]);
    return 0;
}

/* The launch cost that was solved for gives both of OpenFold's steps back. */
static void both_steps_come_back(void **state)
{
    (void)state;
    const SwitchSection low = {.bf16 = true, .checkpoint = CHECKPOINT_BLOCK};
    Pricing *pricing = NULL;
    OpPrices *prices = NULL;
    assert_int_equal(pricing_open(configs[0], "a100_sxm", NULL, &pricing), OK);
    assert_int_equal(openfold_prices(&openfold, pricing_machine(pricing), openfold.launch_s, &prices), OK);
    for (int k = 0; k < 2; k++) {
        const StepCost *cost;
        StepPrice price;
        assert_int_equal(pricing_cost(pricing, configs[k], &low, 1, &cost), OK);
        if (k == 0)
            assert_int_equal(opprice_calibrate(prices, pricing_machine(pricing), cost, 1, openfold.step_s[0]), OK);
        assert_int_equal(opprice_step(prices, pricing_machine(pricing), cost, 1, &price), OK);
        assert_true(fabs(price.compute_s / openfold.step_s[k] - 1) < 1e-6);
    }
    opprice_destroy(&prices);
    pricing_close(&pricing);
    printf("%.2f launches an op, %.2f to %.2f us a launch\n", openfold.launches_per_op, 1e6 * openfold.launch_low_s,
           1e6 * openfold.launch_s);
    assert_true(openfold.launch_s > openfold.launch_low_s && openfold.launch_s < 50e-6);
    assert_true(openfold.graph_gain > 1.1 && openfold.graph_gain < 1.3);
}

static void fused_kinds_launch_once(void **state)
{
    (void)state;
    Pricing *pricing = NULL;
    OpPrices *prices = NULL;
    double sd;
    assert_int_equal(pricing_open(configs[0], "h100_sxm", NULL, &pricing), OK);
    const Machine *m = pricing_machine(pricing);
    assert_int_equal(openfold_prices(&openfold, m, 1e-5, &prices), OK);
    double fused = opprice_time(prices, m, "attention", RATE_BF16, 0, 0, false, &sd);
    double plain = opprice_time(prices, m, "softmax", RATE_BF16, 0, 0, false, &sd);
    assert_true(fabs(fused / 1e-5 - 1) < 1e-9);
    assert_true(fabs(plain / (1e-5 * openfold.launches_per_op) - 1) < 1e-9);
    opprice_destroy(&prices);
    pricing_close(&pricing);
}

static void autocast_keeps_bytes(void **state)
{
    (void)state;
    const SwitchSection fused = {.fused_attention = true, .checkpoint = CHECKPOINT_BLOCK};
    Pricing *pricing = NULL;
    const StepCost *cost;
    StepCost mixed;
    Arena arena = {0};
    assert_int_equal(pricing_open(configs[0], "a100_sxm", NULL, &pricing), OK);
    assert_int_equal(pricing_cost(pricing, configs[0], &fused, 1, &cost), OK);
    assert_int_equal(openfold_autocast(cost, &arena, &mixed), OK);
    assert_int_equal(mixed.count, cost->count);
    for (int i = 0; i < mixed.count; i++) {
        assert_true(mixed.item[i].bytes == cost->item[i].bytes && mixed.item[i].flops == cost->item[i].flops);
        if (!mixed.item[i].comm) assert_int_not_equal(mixed.item[i].rate, RATE_F32);
    }
    arena_free(&arena);
    pricing_close(&pricing);
}

static void missing_figures_are_named(void **state)
{
    (void)state;
    double value;
    const PublishedCell row = {"scalefold_ablation.csv", "speedup", {{"optimization", "warp drive"}}};
    const PublishedCell column = {"scalefold_ablation.csv", "tachyons", {{"optimization", "DAP-8"}}};
    const PublishedCell file = {"nothing.csv", "speedup", {{"optimization", "DAP-8"}}};
    assert_int_equal(published_cell(&row, &value), ERR_INPUT);
    assert_non_null(strstr(status_text(), "warp drive"));
    assert_int_equal(published_cell(&column, &value), ERR_INPUT);
    assert_non_null(strstr(status_text(), "tachyons"));
    assert_int_not_equal(published_cell(&file, &value), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_steps_come_back), cmocka_unit_test(fused_kinds_launch_once),
        cmocka_unit_test(autocast_keeps_bytes), cmocka_unit_test(missing_figures_are_named)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
