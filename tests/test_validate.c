/* Published rows predicted from the recorded programs and from logged parts; marks as the study states them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/validate.h"
#include "engine/passes.h"
#include "model/model.h"
#include "tests/machine_helpers.h"

/* A whole training step of initial training, 1.5 iterations without gradient on average. */
static StepCost *record_step(Switches s, bool in_graph)
{
    const OptimizerConfig adam = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-6, .max_norm = 0.1, .swa_decay = 0.999};
    ModelConfig config;
    Registry *registry;
    Program *recorded[3], *lowered;
    StepCost *cost;
    assert_int_equal(model_config_preset("initial_training", &config), OK);
    assert_int_equal(registry_create(&registry), OK);
    for (int i = 0; i < 3; i++) assert_int_equal(prog_create(registry, &recorded[i]), OK);
    assert_int_equal(model_record_forward(&config, true, recorded[0]), OK);
    assert_int_equal(model_record_forward(&config, false, recorded[1]), OK);
    assert_int_equal(model_record_optimizer(&adam, recorded[2]), OK);
    assert_int_equal(cost_create(s.dap, in_graph, &cost), OK);
    for (int i = 0; i < 3; i++) {
        if (passes_run(recorded[i], &s, PASS_SCHEDULE, &lowered) != OK) fail_msg("%s", status_text());
        if (cost_add_program(cost, lowered, i == 1 ? 1.5 : 1, i == 1) != OK) fail_msg("%s", status_text());
        prog_destroy(&lowered);
        prog_destroy(&recorded[i]);
    }
    registry_destroy(&registry);
    return cost;
}

/* The MLPerf code on H100: its kernels are calibrated on the step without DAP alone (128 GPUs, 1.8073 s). It composes
 * each of our ops of several kernels: 150,887 launches a step in OpenFold (ScaleFold, table 1) over the ops of our
 * program with every switch off. Each launch costs what an eager kernel costs on an H200. */
static void test_dap_transfer(void **state)
{
    (void)state;
    Switches plain = {.precision = PRECISION_F32, .checkpoint = CHECKPOINT_BLOCK, .dap = 1, .dp = 128};
    Switches fused = {.gemm_batching = true,
                      .fused_attention = true,
                      .fused_layernorm = true,
                      .fused_optimizer = true,
                      .precision = PRECISION_BF16,
                      .checkpoint = CHECKPOINT_BLOCK,
                      .dap = 1,
                      .dp = 128};
    StepCost *openfold = record_step(plain, false), *no_dap = record_step(fused, false);
    fused.dap = 8, fused.dp = 256, fused.checkpoint = CHECKPOINT_NONE;
    StepCost *dap8 = record_step(fused, false);
    assert_true(dap8->flops < 0.2 * no_dap->flops && dap8->wire_bytes > no_dap->wire_bytes);
    Machine *h100 = open_machine("h100_sxm");
    OpPrices *prices;
    assert_int_equal(opprice_assume(h100, 1, 150887 / openfold->kernels, 0.12, &prices), OK);
    const TransferCase cases[] = {{"ScaleFold, no DAP, 128 H100: step (s)", no_dap, 128, 1.8073, 0.0313, 0, 0},
                                  {"ScaleFold, DAP 8, 2048 H100: step (s)", dap8, 256, 0.6811, 0.0273, 0, 0}};
    ValidationRow rows[2];
    Arena arena = {0};
    if (validate_transfer(prices, h100, cases, 2, NULL, &arena, rows) != OK) fail_msg("%s", status_text());
    assert_int_equal(validate_print(rows, 2, stdout), OK);
    assert_true(rows[0].fitted && !rows[1].fitted);
    assert_true(fabs(rows[0].predicted / rows[0].truth - 1) < 0.01); /* the calibrated step comes back */
    assert_true(fabs(rows[1].predicted / rows[1].truth - 1) < 0.10);
    assert_true(rows[1].low < rows[1].truth && rows[1].truth < rows[1].high);
    assert_int_equal(validate_score(rows, 2, NULL).rows, 1);
    arena_free(&arena);
    opprice_destroy(&prices);
    machine_destroy(&h100);
    cost_destroy(&openfold);
    cost_destroy(&no_dap);
    cost_destroy(&dap8);
}

static void test_time_to_train(void **state)
{
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/data/published/mlperf_hpc_v3_openfold.csv", source_dir());
    Arena arena = {0};
    ValidationRow *rows;
    int count;
    if (validate_time_to_train(path, NULL, 0, &arena, &rows, &count) != OK) fail_msg("%s", status_text());
    assert_int_equal(count, 28);
    int scores = 0;
    for (int i = 0; i < count; i++) {
        if (strcmp(rows[i].set, "published")) continue;
        assert_true(fabs(rows[i].predicted / rows[i].truth - 1) < 0.10);
        scores++;
    }
    assert_int_equal(scores, 2);
    ValidationScore runs = validate_score(rows, count, "single run");
    assert_true(runs.coverage > 0.8 && runs.coverage < 1.0);
    arena_free(&arena);
}

/* A fitted point is shown and never scored. */
static void test_points(void **state)
{
    (void)state;
    FitPoint point[8];
    bool fitted[8];
    for (int i = 0; i < 8; i++) {
        double n = 1 << (i / 2);
        point[i] = (FitPoint){
            .shape = {.ranks = n, .work = 1 / n, .latency_s = n > 1 ? 1e-3 : 0, .wire_s = 0.01 * (n - 1) / n},
            .compute_s = 0.02 + 1 / n,
            .id = "p"};
        point[i].comm_s = 0.011 * (n - 1) / n + (n > 1 ? 1e-3 : 0);
        point[i].step_s = (point[i].compute_s + point[i].comm_s) * (i % 2 ? 1.01 : 1);
        point[i].loader_s = point[i].host_s = NAN;
        fitted[i] = n < 8;
    }
    ValidationRow rows[8];
    Arena arena = {0};
    if (validate_points(point, 8, fitted, NULL, NULL, &arena, rows) != OK) fail_msg("%s", status_text());
    ValidationScore s = validate_score(rows, 8, "measured");
    assert_int_equal(s.rows, 2);
    assert_true(s.mean_error < 0.04 && s.coverage == 1);
    assert_true(isfinite(s.naive_mean_error) && isfinite(s.naive2_mean_error));
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dap_transfer), cmocka_unit_test(test_time_to_train),
                                       cmocka_unit_test(test_points)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
