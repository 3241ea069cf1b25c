/* The whole report from a made-up but realistic study; every plot must appear, and missing tables must be named.
 * FOLDSCALE_KEEP_REPORT=FOLDER keeps the files for looking at them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "analysis/plot.h"
#include "analysis/report.h"
#include "tests/machine_helpers.h"

enum {
    SETTINGS = 6,
    COUNTS = 4,
    REPEATS = 3,
    RUNS = SETTINGS * REPEATS + (COUNTS - 1) * REPEATS,
    STEPS = 200,
    OPS = 60
};

static char folder[300];

typedef struct Study {
    RunRow runs[RUNS];
    FitPoint points[COUNTS * REPEATS];
    PredictionRow predictions[32];
    StepRow steps[STEPS], blocking[STEPS];
    OpRow ops[OPS];
    EvalRow evals[20];
    TrainTime times[2];
    int runs_used, points_used, predicted;
    FitModel *fit;
    Machine *cluster, *h200;
    Arena arena;
} Study;

static Study study;

static void add_run(Study *s, gsl_rng *rng, int setting, int ranks)
{
    static const int order[] = {SWITCH_GEMM_BATCHING, SWITCH_FUSED_ATTENTION, SWITCH_FUSED_LAYERNORM, SWITCH_BF16,
                                SWITCH_NONBLOCKING_LOADER};
    double gain[] = {1, 0.93, 0.78, 0.7, 0.46, 0.45};
    RunRow row = {.run_id = "r",
                  .experiment = "quickstart",
                  .backend = "cuda",
                  .device = "NVIDIA H200",
                  .ranks = ranks,
                  .dp = ranks,
                  .dap = 1,
                  .samples = 40 * ranks,
                  .peak_bytes = 3e10,
                  .model_flops = 4e13 * ranks,
                  .mfu = 0.2,
                  .wire_bytes = 3.7e8,
                  .provenance = "x"};
    for (int k = 0; k < SCHEMA_SWITCH_COUNT; k++) row.switches[k] = k == SWITCH_CHECKPOINT ? "none" : "off";
    for (int k = 0; k < setting; k++) row.switches[order[k]] = "on";
    double scale = gain[setting] * exp(gsl_ran_gaussian(rng, 0.01));
    row.phase_s[PHASE_DATA_WAIT] = setting == 5 ? 0.002 : 0.05;
    row.phase_s[PHASE_FORWARD_NOGRAD] = 0.5 * scale;
    row.phase_s[PHASE_FORWARD] = 0.33 * scale;
    row.phase_s[PHASE_BACKWARD] = 0.75 * scale;
    row.phase_s[PHASE_OPTIMIZER] = 0.03;
    row.phase_s[PHASE_COMM_EXPOSED] =
        ranks > 1 ? 0.012 * (1 + 0.2 * log2(ranks)) * exp(gsl_ran_gaussian(rng, 0.05)) : 0;
    row.phase_s[PHASE_OTHER] = 0.01;
    for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) row.step_s_mean += row.phase_s[p];
    row.step_s_median = row.step_s_p05 = row.step_s_p95 = row.step_s_mean;
    row.samples_per_s = ranks / row.step_s_mean;
    row.data_wait_fraction = row.phase_s[PHASE_DATA_WAIT] / row.step_s_mean;
    s->runs[s->runs_used++] = row;
}

static void fit_and_predict(Study *s)
{
    PlainStep plain = {
        .gradient_bytes = 3.7e8, .model_collectives = 1200, .model_bytes = 1.6e7, .model_kind = COLLECTIVE_ALL_TO_ALL};
    for (int r = 0; r < s->runs_used; r++) {
        const RunRow *row = &s->runs[r];
        if (strcmp(row->switches[SWITCH_NONBLOCKING_LOADER], "on")) continue;
        FitPoint *p = &s->points[s->points_used++];
        *p = (FitPoint){.step_s = row->step_s_mean,
                        .comm_s = row->phase_s[PHASE_COMM_EXPOSED],
                        .loader_s = row->phase_s[PHASE_DATA_WAIT],
                        .host_s = row->phase_s[PHASE_OTHER],
                        .id = row->run_id};
        p->compute_s = p->step_s - p->comm_s - p->loader_s - p->host_s;
        assert_int_equal(predict_plain_shape(s->cluster, &plain, row->dp, row->dap, &p->shape), OK);
    }
    FitOptions options = {.form = -1, .seed = 3, .draws = 300};
    if (fit_run(s->points, s->points_used, &options, &s->fit) != OK) fail_msg("%s", status_text());
    for (int dap = 1; dap <= 8; dap *= 8)
        for (int n = dap; n <= 2048; n *= 2) {
            PredictRequest q = {
                .machine = s->cluster, .other_machine = true, .dp = n / dap, .dap = dap, .extra_sd = 0.03};
            assert_int_equal(predict_plain_shape(s->cluster, &plain, q.dp, q.dap, &q.shape), OK);
            for (int k = 0; k < SCHEMA_SWITCH_COUNT; k++) q.switches[k] = "on";
            if (predict_row(s->fit, &q, &s->arena, &s->predictions[s->predicted++]) != OK)
                fail_msg("%s", status_text());
        }
}

static void make_steps(Study *s, gsl_rng *rng)
{
    for (int i = 0; i < STEPS; i++) {
        StepRow row = {.step = i,
                       .loss = 30 * exp(-i / 60.0) + 6 + gsl_ran_gaussian(rng, 1),
                       .gradient_norm = 0.1,
                       .learning_rate = 1e-3};
        double base = 0.8 * exp(gsl_ran_gaussian(rng, 0.02));
        s->steps[i] = s->blocking[i] = row;
        s->steps[i].phase_s[PHASE_DATA_WAIT] = gsl_ran_exponential(rng, 0.004);
        s->blocking[i].phase_s[PHASE_DATA_WAIT] = gsl_ran_exponential(rng, 0.06) + (i % 13 ? 0 : 0.4);
        s->steps[i].step_s = base + s->steps[i].phase_s[PHASE_DATA_WAIT];
        s->blocking[i].step_s = base + s->blocking[i].phase_s[PHASE_DATA_WAIT];
    }
    for (int i = 0; i < 20; i++)
        s->evals[i] = (EvalRow){.step = i / 2 * 20,
                                .elapsed_s = NAN,
                                .chain = i % 2 ? "a" : "b",
                                .lddt_ca = 0.75 - 0.5 * exp(-(i / 2) / 3.0) + 0.05 * (i % 2),
                                .seconds = 1};
}

static void make_ops(Study *s, gsl_rng *rng)
{
    static const char *const kinds[] = {"linear", "attention", "layer_norm", "tri_product", "gate", "adam"};
    for (int i = 0; i < OPS; i++) {
        double intensity = exp(gsl_rng_uniform(rng) * 7 - 1), bytes = exp(gsl_rng_uniform(rng) * 6 + 14);
        OpRow row = {.op = i,
                     .kind = kinds[i % 6],
                     .name = "op",
                     .stage = COST_STAGE_NAMES[i % 4],
                     .calls = 48,
                     .flops = bytes * intensity,
                     .bytes = bytes};
        double roofline = opprice_roofline(s->h200, RATE_BF16, row.flops, row.bytes);
        row.time_s = 48 * (roofline / 0.6 + 6e-6) * exp(gsl_ran_gaussian(rng, 0.1));
        s->ops[i] = row;
    }
    OpPrices *prices;
    if (opprice_fit(s->ops, OPS, s->h200, RATE_BF16, &prices) != OK) fail_msg("%s", status_text());
    for (int i = 0; i < OPS; i++)
        s->ops[i].predicted_s = 48 * opprice_time(prices, s->h200, s->ops[i].kind, RATE_BF16, s->ops[i].flops,
                                                  s->ops[i].bytes, false, NULL);
    assert_true(fabs(prices->total_priced_s / prices->total_measured_s - 1) < 0.08);
    opprice_destroy(&prices);
}

static int setup(void **state)
{
    (void)state;
    const char *keep = getenv("FOLDSCALE_KEEP_REPORT");
    snprintf(folder, sizeof folder, "%.250s", keep ? keep : "/tmp/foldscale_report_XXXXXX");
    if (!keep && !mkdtemp(folder)) return -1;
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    study.cluster = open_machine("h100_sxm");
    study.h200 = open_machine("h200");
    for (int k = 0; k < SETTINGS; k++)
        for (int r = 0; r < REPEATS; r++) add_run(&study, rng, k, 1);
    for (int n = 2; n <= 8; n *= 2)
        for (int r = 0; r < REPEATS; r++) add_run(&study, rng, SETTINGS - 1, n);
    fit_and_predict(&study);
    make_steps(&study, rng);
    make_ops(&study, rng);
    TrainPlan plan = {.samples_to_target = 122880,
                      .samples_sd = 0.09,
                      .global_batch = 256,
                      .startup_s = 17.4,
                      .warmup_extra_s = 12.7,
                      .eval_every = 40,
                      .eval_s = 25.4,
                      .first_gap_s = 52.4,
                      .gap_s = 1.1,
                      .async_eval = true};
    double draws[300];
    for (int i = 0; i < 300; i++) draws[i] = 0.68 * exp(gsl_ran_gaussian(rng, 0.05));
    assert_int_equal(predict_train_time(&plan, 0.68, draws, 300, 1, &study.times[0]), OK);
    plan.async_eval = false, plan.global_batch = 128, plan.samples_to_target = 87040, plan.gap_s = plan.eval_s;
    assert_int_equal(predict_train_time(&plan, 1.8, NULL, 0, 1, &study.times[1]), OK);
    gsl_rng_free(rng);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fit_destroy(&study.fit);
    machine_destroy(&study.cluster);
    machine_destroy(&study.h200);
    arena_free(&study.arena);
    if (!getenv("FOLDSCALE_KEEP_REPORT")) {
        char command[400];
        snprintf(command, sizeof command, "rm -r '%s'", folder);
        if (system(command)) return -1;
    }
    return 0;
}

static char *read_report(const char *where)
{
    char path[400];
    snprintf(path, sizeof path, "%s/report.html", where);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    char *text = calloc(1, (size_t)size + 1);
    assert_int_equal(fread(text, 1, (size_t)size, f), (size_t)size);
    fclose(f);
    return text;
}

static void test_full_report(void **state)
{
    (void)state;
    if (!plot_available()) skip();
    static const PublishedPoint published[] = {{"ScaleFold DAP 8, H100 (MLPerf log)", 2048, 0.6811, 256},
                                               {"ScaleFold no DAP, H100 (MLPerf log)", 128, 1.8073, 128}};
    static const char *const labels[] = {"2,080 GPUs, DAP 8", "128 GPUs"};
    ReportInput input = {.title = "Test <report>",
                         .runs = study.runs,
                         .run_count = study.runs_used,
                         .predictions = study.predictions,
                         .prediction_count = study.predicted,
                         .ops = study.ops,
                         .op_count = OPS,
                         .machine = study.h200,
                         .rate = RATE_BF16,
                         .fit = study.fit,
                         .points = study.points,
                         .point_count = study.points_used,
                         .published = published,
                         .published_count = 2,
                         .steps = study.steps,
                         .step_count = STEPS,
                         .steps_blocking = study.blocking,
                         .step_blocking_count = STEPS,
                         .evals = study.evals,
                         .eval_count = 20,
                         .train_times = study.times,
                         .train_labels = labels,
                         .train_time_count = 2};
    if (report_write(folder, &input) != OK) fail_msg("%s", status_text());
    char *text = read_report(folder);
    int images = 0;
    for (const char *at = text; (at = strstr(at, "data:image/png;base64,")); at++) images++;
    assert_int_equal(images, 15);
    assert_null(strstr(text, "Left out"));
    assert_non_null(strstr(text, "Test &lt;report&gt;"));
    assert_non_null(strstr(text, "Switch on first: &quot;+ bf16&quot;"));
    assert_non_null(strstr(text, "Waiting for data took"));
    free(text);
    Arena arena = {0};
    char *conclusions = report_conclusions(&input, &arena);
    printf("%s\n", conclusions);
    arena_free(&arena);
}

static void test_missing_tables(void **state)
{
    (void)state;
    if (!plot_available()) skip();
    ReportInput input = {.runs = study.runs, .run_count = 1};
    char other[320];
    snprintf(other, sizeof other, "%s/missing", folder);
    assert_true(mkdir(other, 0755) == 0 || errno == EEXIST);
    if (report_write(other, &input) != OK) fail_msg("%s", status_text());
    char *text = read_report(other);
    assert_non_null(strstr(text, "Left out"));
    assert_non_null(strstr(text, "Loss against step: no losses"));
    assert_non_null(strstr(text, "Ablation: no ranks were measured with more than one switch setting"));
    free(text);
    assert_int_equal(report_write("/nonexistent/folder", &input), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_full_report), cmocka_unit_test(test_missing_tables)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
