/* A study's fit asked for what it did not measure: answered from the changed program, and flagged with the reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "experiments/machines.h"
#include "experiments/predictor.h"
#include "tests/source_dir.h"

static char folder[] = "/tmp/foldscale_predictor_XXXXXX";
static char experiment[4096];
static Machine *machine;

/* Runs on 1 and 2 ranks with the experiment's own switches. */
static Status write_study(void)
{
    char path[200];
    const TextList none = {0};
    Config *config = NULL;
    FitPoint point[4];
    TableWriter *w = NULL;
    FitModel *fit = NULL;
    const FitOptions options = {.seed = 1, .form = FORM_ANCHORED, .draws = 50};
    TRY(config_load(experiment, &none, &config));
    snprintf(path, sizeof path, "%s/runs.csv", folder);
    TRY(schema_runs_writer(path, false, &w));
    for (int i = 0; i < 4; i++) {
        int ranks = 1 + i / 2;
        double step = 1 + 0.1 * (ranks - 1) + 0.01 * (i % 2);
        char id[20];
        snprintf(id, sizeof id, "run%d", i);
        RunRow row = {.run_id = id,
                      .experiment = "e",
                      .backend = "cpu",
                      .device = "d",
                      .ranks = ranks,
                      .dp = ranks,
                      .dap = 1,
                      .samples = 4,
                      .step_s_mean = step,
                      .step_s_median = step,
                      .step_s_p05 = step,
                      .step_s_p95 = step,
                      .samples_per_s = 1,
                      .peak_bytes = 1,
                      .model_flops = 1,
                      .wire_bytes = 1,
                      .provenance = ""};
        pricing_switch_texts(&config->switches, row.switches);
        for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) row.phase_s[p] = NAN;
        TRY(schema_write_run(w, &row));
        point[i] = (FitPoint){.shape = {.ranks = ranks, .work = 1},
                              .step_s = step,
                              .compute_s = NAN,
                              .comm_s = NAN,
                              .loader_s = NAN,
                              .host_s = NAN,
                              .id = "p"};
    }
    TRY(table_writer_close(&w));
    TRY(fit_run(point, 4, &options, &fit));
    snprintf(path, sizeof path, "%s/fit.json", folder);
    Status status = fit_write(fit, path);
    fit_destroy(&fit);
    config_destroy(&config);
    return status;
}

static int setup(void **state)
{
    (void)state;
    snprintf(experiment, sizeof experiment, "%s/experiments/quickstart.yaml", source_dir());
    if (!mkdtemp(folder) || write_study() != OK || machines_open("cpu", &machine) != OK) {
        fprintf(stderr, "%s\n", status_text());
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char path[200];
    static const char *const names[] = {"runs.csv", "fit.json"};
    machine_destroy(&machine);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

static PredictionRow predict(const TextList *overrides, int64_t dap, Arena *arena)
{
    const PredictorOptions options = {
        .folder = folder, .experiment = experiment, .machine = "cpu", .overrides = overrides};
    Predictor *predictor = NULL;
    PredictionRow row;
    if (predictor_open(&options, &predictor) != OK) fail_msg("%s", status_text());
    const SwitchSection *switches = &predictor_config(predictor)->switches;
    if (predictor_row(predictor, machine, switches, 2, dap, arena, &row) != OK) fail_msg("%s", status_text());
    predictor_close(&predictor);
    return row;
}

static void what_was_measured_is_not_flagged(void **state)
{
    (void)state;
    Arena arena = {0};
    PredictionRow row = predict(NULL, 1, &arena);
    assert_false(row.flagged);
    assert_string_equal(row.note, "");
    arena_free(&arena);
}

/* An override without --target is a what-if on the fitted step, not the fitted step under another name. */
static void overrides_change_the_step(void **state)
{
    (void)state;
    Arena arena = {0};
    PredictionRow plain = predict(NULL, 1, &arena);
    PredictionRow larger = predict(&(TextList){.count = 1, .item = {"model.n_res=128"}}, 1, &arena);
    assert_true(larger.step_s > 1.5 * plain.step_s);
    assert_true(larger.flagged);
    assert_non_null(strstr(larger.note, "another model than the fitted one"));
    PredictionRow low = predict(&(TextList){.count = 1, .item = {"switches.bf16=on"}}, 1, &arena);
    assert_true(low.flagged && low.step_s < plain.step_s);
    assert_non_null(strstr(low.note, "switches that no run had"));
    assert_true(low.hi90_s / low.lo90_s > plain.hi90_s / plain.lo90_s); /* priced kernels add their spread */
    arena_free(&arena);
}

static void dap_beyond_the_runs_is_flagged(void **state)
{
    (void)state;
    Arena arena = {0};
    PredictionRow row = predict(NULL, 2, &arena);
    assert_true(row.flagged);
    assert_non_null(strstr(row.note, "DAP 2 where at most 1 was measured"));
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_was_measured_is_not_flagged),
                                       cmocka_unit_test(overrides_change_the_step),
                                       cmocka_unit_test(dap_beyond_the_runs_is_flagged)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
