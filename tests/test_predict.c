/* Prices of ops, costs of recorded programs, predictions, time to train, advice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/advise.h"
#include "analysis/points.h"
#include "analysis/predict.h"
#include "analysis/transfer.h"
#include "engine/passes.h"
#include "tests/machine_helpers.h"

/* Ops that follow the model exactly: the curves must come back, and so must sizes that were not among them. */
static void test_op_prices(void **state)
{
    (void)state;
    Machine *m = open_machine("h200");
    OpRow rows[40];
    for (int i = 0; i < 40; i++) {
        bool linear = i % 2;
        double flops = 1e9 * pow(1.4, i), bytes = flops / (linear ? 400 : 1);
        double roof = opprice_roofline(m, RATE_BF16, flops, bytes);
        double calls = linear ? 1.5 : 0.25; /* means over steps */
        rows[i] = (OpRow){.kind = linear ? "linear" : "gate",
                          .name = "",
                          .stage = "forward",
                          .calls = calls,
                          .flops = flops,
                          .bytes = bytes,
                          .time_s = calls * (linear ? 8e-6 + roof / 0.6 : 5e-6 + roof / 0.85)};
    }
    OpPrices *p;
    if (opprice_fit(rows, 40, m, RATE_BF16, &p) != OK) fail_msg("%s", status_text());
    for (double flops = 2e9; flops < 1e14; flops *= 3) {
        double sd, time = opprice_time(p, m, "linear", RATE_BF16, flops, flops / 400, false, &sd);
        double truth = 8e-6 + opprice_roofline(m, RATE_BF16, flops, flops / 400) / 0.6;
        assert_true(fabs(time / truth - 1) < 0.05);
    }
    double known, unknown;
    opprice_time(p, m, "linear", RATE_BF16, 1e12, 1e9, false, &known);
    opprice_time(p, m, "never_seen", RATE_BF16, 1e12, 1e9, false, &unknown);
    assert_true(unknown > known);
    /* another machine: scaled by its ceilings, with more uncertainty */
    Machine *h100 = open_machine("h100_sxm");
    double other, there = opprice_time(p, h100, "gate", RATE_BF16, 1e9, 1e12, false, &other);
    double here = opprice_time(p, m, "gate", RATE_BF16, 1e9, 1e12, false, NULL);
    assert_true(fabs(there / here - 4.25 / 3.0) < 0.02 && other > known);
    OpPrices *none = NULL;
    rows[0].calls = 0;
    assert_int_equal(opprice_fit(rows, 1, m, RATE_BF16, &none), ERR_INPUT);
    assert_int_equal(opprice_assume(m, 0, 1, 0.1, &none), ERR_USAGE);
    opprice_destroy(&p);
    machine_destroy(&m);
    machine_destroy(&h100);
}

/* beside: as if what stands in front of the op that sends ran beside it, which reads it here: prices do not ask */
static StepCost *layer_cost(int dap, bool overlap, bool beside)
{
    Registry *registry;
    Program *recorded, *lowered;
    StepCost *cost;
    assert_int_equal(registry_create(&registry), OK);
    assert_int_equal(prog_create(registry, &recorded), OK);
    Val x = prog_input(recorded, "x", DT_F32, 2, (int64_t[]){4096, 512});
    for (int i = 0; i < 3; i++) {
        Val w = prog_param(recorded, i == 0 ? "a" : i == 1 ? "b" : "c", 2, (int64_t[]){512, 512}, INIT_NORMAL, 0.02);
        if (i == 1) x = prog_add(recorded, OP_RESHARD, 1, &x, &(OpAttr){.i = {0}});
        x = prog_add(recorded, OP_LINEAR, 3, (Val[]){x, w, VAL_NONE}, NULL);
    }
    x = prog_add(recorded, OP_RESHARD, 1, &x, &(OpAttr){.i = {-1}});
    prog_output(recorded, "y", x);
    Switches s = {.dap = dap, .dp = 1, .comm_overlap = overlap};
    if (passes_run(recorded, &s, PASS_SCHEDULE, &lowered) != OK) fail_msg("%s", status_text());
    for (int32_t i = 1; beside && i < lowered->n_ops; i++) {
        if (!lowered->op[i].send.active) continue;
        lowered->op[i].send.shares = true;
        lowered->op[i - 1].stream = STREAM_ASIDE;
    }
    assert_int_equal(cost_create(dap, false, &cost), OK);
    assert_int_equal(cost_add_program(cost, lowered, 2, true), OK);
    prog_destroy(&lowered);
    prog_destroy(&recorded);
    registry_destroy(&registry);
    return cost;
}

static const CostClass *sent_class(const StepCost *cost)
{
    for (int i = 0; i < cost->count; i++)
        if (cost->item[i].sender) return &cost->item[i];
    fail_msg("nothing is sent");
    return NULL;
}

/* The last layer sends its result and covers that itself; the one in front of it does so too where it runs beside. */
static void test_what_runs_beside_covers(void **state)
{
    (void)state;
    StepCost *alone = layer_cost(4, true, false), *beside = layer_cost(4, true, true);
    const CostClass *a = sent_class(alone), *b = sent_class(beside);
    assert_true(a->cover_kernels == 1 && b->cover_kernels == 2);
    assert_true(b->cover_flops == 2 * a->cover_flops && b->cover_bytes > a->cover_bytes);
    Machine *m = open_machine("h100_sxm");
    OpPrices *p;
    StepPrice of[2];
    assert_int_equal(opprice_assume(m, 0.5, 1, 0.1, &p), OK);
    assert_int_equal(opprice_step(p, m, alone, 1, &of[0]), OK);
    assert_int_equal(opprice_step(p, m, beside, 1, &of[1]), OK);
    assert_true(of[0].compute_s == of[1].compute_s && of[0].comm_total_s == of[1].comm_total_s);
    assert_true(of[1].latency_s + of[1].wire_s < of[0].latency_s + of[0].wire_s);
    opprice_destroy(&p);
    machine_destroy(&m);
    cost_destroy(&alone);
    cost_destroy(&beside);
}

static void test_cost(void **state)
{
    (void)state;
    StepCost *one = layer_cost(1, false, false), *four = layer_cost(4, false, false);
    double layer = 2.0 * 4096 * 512 * 512;
    assert_true(fabs(one->flops - 2 * 3 * layer) < 1e-3 * layer);
    assert_true(fabs(four->flops - 2 * (1 + 2.0 / 4) * layer) < 1e-3 * layer); /* the first layer is not split */
    assert_true(one->wire_bytes == 0 && four->wire_bytes > 0);
    Machine *m = open_machine("h100_sxm");
    OpPrices *p;
    StepPrice a, b;
    assert_int_equal(opprice_assume(m, 0.5, 1, 0.1, &p), OK);
    assert_int_equal(opprice_step(p, m, one, 1, &a), OK);
    assert_int_equal(opprice_step(p, m, four, 1, &b), OK);
    assert_true(a.compute_s > b.compute_s && b.unsharded_s > 0 && a.unsharded_s == 0);
    assert_true(b.latency_s + b.wire_s > 0 && fabs(a.stage_s[COST_FORWARD_NOGRAD] - a.compute_s) < 1e-12);
    assert_int_equal(opprice_step(p, m, four, 1 << 20, &b), ERR_USAGE);
    assert_int_equal(opprice_calibrate(p, m, one, 1, 10 * a.compute_s), OK);
    assert_int_equal(opprice_step(p, m, one, 1, &b), OK);
    assert_true(fabs(b.compute_s / a.compute_s - 10) < 1e-9);
    assert_int_equal(opprice_calibrate(p, m, one, 1, 1e-9), ERR_INPUT);
    opprice_destroy(&p);
    machine_destroy(&m);
    cost_destroy(&one);
    cost_destroy(&four);
}

static FitModel *example_fit(void)
{
    FitPoint point[6];
    for (int i = 0; i < 6; i++) {
        double n = 1 << (i / 2);
        point[i] =
            (FitPoint){.shape = {.ranks = n, .work = 1, .latency_s = n > 1 ? 1e-3 : 0, .wire_s = 5e-3 * (n - 1) / n},
                       .compute_s = 1 + 0.01 * (i % 2),
                       .loader_s = NAN,
                       .host_s = NAN};
        point[i].comm_s = n > 1 ? point[i].shape.latency_s + point[i].shape.wire_s : 0;
        point[i].step_s = point[i].compute_s + point[i].comm_s;
    }
    FitModel *fit;
    if (fit_run(point, 6, NULL, &fit) != OK) fail_msg("%s", status_text());
    return fit;
}

static void test_rows(void **state)
{
    (void)state;
    FitModel *fit = example_fit();
    Machine *m = open_machine("h100_sxm");
    Arena arena = {0};
    PredictRequest q = {.machine = m, .dp = 4, .dap = 1, .shape = {4, 1, 1e-3, 4e-3}};
    PredictionRow row, other;
    assert_int_equal(predict_row(fit, &q, &arena, &row), OK);
    assert_true(!row.flagged && row.note[0] == '\0');
    double parts = row.serial_s + row.compute_s + row.comm_exposed_s + row.straggler_s + row.loader_s + row.host_s;
    assert_true(fabs(parts - row.step_s) < 1e-12 && row.lo90_s <= row.step_s && row.step_s <= row.hi90_s);
    q.other_machine = true, q.dp = 512, q.shape.ranks = 512;
    assert_int_equal(predict_row(fit, &q, &arena, &other), OK);
    assert_true(other.flagged && strstr(other.note, "beyond 8 x") && strstr(other.note, "another machine"));
    assert_true(other.hi90_s / other.lo90_s > 1.2 * row.hi90_s / row.lo90_s);
    q.dp = 1 << 20;
    assert_int_equal(predict_row(fit, &q, &arena, &other), ERR_USAGE);
    arena_free(&arena);
    machine_destroy(&m);
    fit_destroy(&fit);
}

static void test_train_time(void **state)
{
    (void)state;
    TrainPlan p = {.samples_to_target = 1000,
                   .global_batch = 10,
                   .startup_s = 5,
                   .eval_every = 40,
                   .eval_s = 7,
                   .first_gap_s = 3,
                   .gap_s = 1,
                   .async_eval = true};
    TrainTime t;
    assert_int_equal(predict_train_time(&p, 2, NULL, 0, 1, &t), OK);
    assert_true(t.steps == 120 && t.evaluations == 3); /* 100 steps end inside the third cycle */
    assert_true(fabs(t.total_s - (5 + 240 + 3 + 1 + 1 + 7)) < 1e-9);
    assert_true(t.lo90_s == t.total_s && t.hi90_s == t.total_s); /* nothing is uncertain */
    p.samples_sd = 0.2;
    assert_int_equal(predict_train_time(&p, 2, NULL, 0, 1, &t), OK);
    assert_true(t.hi90_s > t.total_s);
    p.global_batch = 0;
    assert_int_equal(predict_train_time(&p, 2, NULL, 0, 1, &t), ERR_USAGE);
}

static void test_advice(void **state)
{
    (void)state;
    PredictionRow rows[4];
    for (int i = 0; i < 4; i++)
        rows[i] = (PredictionRow){.machine = "m",
                                  .gpus = 8 << i,
                                  .dp = 8 << i,
                                  .dap = 1,
                                  .step_s = 1 + 0.3 * i,
                                  .lo90_s = 0.9 + 0.27 * i,
                                  .hi90_s = 1.1 + 0.33 * i};
    TrainPlan plan = {.samples_to_target = 64000, .global_batch = 8};
    AdviseOption options[4];
    assert_int_equal(advise_times(rows, 4, &plan, 1, 0, 1, options), OK);
    assert_true(options[0].time.total_s > options[3].time.total_s && options[0].gpu_hours < options[3].gpu_hours);
    assert_int_equal(advise_cheapest(options, 4, 1e9), 0); /* no hurry: fewest GPUs */
    assert_int_equal(advise_cheapest(options, 4, 6000), 1);
    assert_int_equal(advise_cheapest(options, 4, 1), -1);
    assert_int_equal(advise_fastest(options, 4, 1e9), 3);
    assert_int_equal(advise_fastest(options, 4, 20), 0);
    assert_int_equal(advise_fastest(options, 4, 1), -1);
    FitModel *fit = example_fit();
    StepShape target = {2048, 1, 2e-2, 1e-2}, candidates[] = {{1, 1, 0, 0}, {64, 1, 1e-2, 5e-3}, {8, 1, 3e-3, 4e-3}};
    AdviseRun next[3];
    assert_int_equal(advise_next_run(fit, candidates, 3, &target, 0, 3, next), OK);
    assert_int_equal(next[0].candidate, 1); /* the largest count says most about the target */
    assert_true(next[0].width_expected < next[0].width_now && next[2].width_expected <= next[2].width_now);
    /* another machine: what it shares between configurations is learnt from any run there */
    double known = next[2].width_expected / next[2].width_now;
    assert_int_equal(advise_next_run(fit, candidates, 3, &target, 0.3, 3, next), OK);
    assert_true(next[2].width_expected / next[2].width_now < known);
    /* what a configuration has of its own is learnt from itself alone */
    StepShape also[] = {candidates[1], target};
    for (int f = 0; f < FORM_COUNT; f++) fit->candidate[f].lack[FIT_PHASE_COMPUTE].sd = 0.1;
    double own = exp(2 * 1.6449 * 0.09);
    assert_int_equal(advise_next_run(fit, also, 2, &target, 0, 100, next), OK);
    assert_true(next[0].candidate == 1 && next[0].width_expected < own && next[1].width_expected > own);
    assert_int_equal(advise_next_run(fit, candidates, 0, &target, 0, 3, next), ERR_USAGE);
    fit_destroy(&fit);
}

static void test_transfer(void **state)
{
    (void)state;
    FitModel *fit = example_fit();
    Machine *m = open_machine("h100_sxm");
    FitLack *lack = fit->candidate[FORM_ANCHORED].lack;
    double work = fit->param[FIT_WORK], compute_lack = lack[FIT_PHASE_COMPUTE].sd = 0.03;
    lack[FIT_PHASE_COMM].sd = 0.5;
    assert_int_equal(fit->form, FORM_ANCHORED);
    assert_int_equal(transfer_fit(fit, m, 0.2), OK);
    assert_true(fit->param[FIT_WORK] == work && fit->param[FIT_LATENCY] == 0 && fit->param[FIT_DRIFT] == 0);
    assert_true(fabs(exp(fit->param[FIT_NOISE]) - m->rank_noise.value) < 1e-12);
    double sum = 0, squares = 0;
    for (int i = 0; i < fit->draws; i++) {
        double x = fit->draw[(size_t)i * FIT_PARAM_COUNT + FIT_WIRE];
        sum += x, squares += x * x;
    }
    assert_true(fabs(sqrt(squares / fit->draws - pow(sum / fit->draws, 2)) - 0.2) < 0.02);
    assert_true(lack[FIT_PHASE_COMM].sd == 0 && lack[FIT_PHASE_COMPUTE].sd == compute_lack);
    fit->form = FORM_LOG;
    assert_int_equal(transfer_fit(fit, m, 0.2), ERR_USAGE);
    machine_destroy(&m);
    fit_destroy(&fit);
}

static void test_points(void **state)
{
    (void)state;
    RunRow rows[3];
    for (int i = 0; i < 3; i++) {
        rows[i] = (RunRow){.run_id = "r",
                           .backend = "cpu",
                           .device = "d",
                           .ranks = 1,
                           .dp = 1,
                           .dap = 1,
                           .step_s_mean = 1,
                           .provenance = i == 0   ? "a"
                                         : i == 1 ? "b"
                                                  : "c",
                           .file = i == 2 ? "more.csv" : "runs.csv",
                           .line = i + 2};
        rows[i].phase_s[PHASE_FORWARD] = 0.6, rows[i].phase_s[PHASE_EVAL] = 0.1;
    }
    assert_int_equal(points_check(rows, 3), OK);
    FitPoint p;
    points_fill(&rows[0], &p);
    assert_true(fabs(p.step_s - 0.9) < 1e-12 && fabs(p.compute_s - 0.6) < 1e-12 && fabs(p.host_s - 0.3) < 1e-12);
    rows[0].experiment = rows[1].experiment = "one", rows[2].experiment = "other";
    assert_int_equal(points_check(rows, 3), ERR_INPUT);
    assert_non_null(strstr(status_text(), "more.csv:4: experiment \"other\", but runs.csv:2 has \"one\""));
    rows[2].experiment = "one";
    rows[2].provenance = "a";
    assert_int_equal(points_check(rows, 3), ERR_INPUT);
    assert_non_null(strstr(status_text(), "more.csv:4: provenance a is also in runs.csv:2"));
    rows[1].backend = "cuda";
    assert_int_equal(points_check(rows, 3), ERR_INPUT);
    assert_non_null(strstr(status_text(), "runs.csv:3: backend \"cuda\", but runs.csv:2 has \"cpu\""));
    assert_int_equal(points_check(rows, 0), ERR_INPUT);
    StepRow steps[60];
    for (int i = 0; i < 60; i++) {
        steps[i] = (StepRow){.step = i / 2, .rank = i % 2, .step_s = 1};
        steps[i].phase_s[PHASE_FORWARD] = i % 2 ? 0.99 : 1.01;
    }
    FitPrior prior;
    assert_int_equal(points_noise_prior(steps, 60, &prior), OK);
    assert_true(fabs(exp(prior.mean) - 0.01 * sqrt(2)) < 1e-6);
    assert_int_equal(points_noise_prior(steps, 10, &prior), ERR_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_op_prices),
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_what_runs_beside_covers),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_train_time),
        cmocka_unit_test(test_advice),
        cmocka_unit_test(test_transfer),
        cmocka_unit_test(test_points),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
