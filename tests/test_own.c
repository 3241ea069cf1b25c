/* Measured steps and op tables of the benchmark: read back, bad ones refused with file and line, none both fitted and
 * predicted. */
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
#include "experiments/own_prices.h"
#include "experiments/pricing.h"
#include "experiments/validate_own.h"
#include "tests/source_dir.h"

static char folder[] = "/tmp/foldscale_own_XXXXXX";

static const char op_header[] =
    "commit,device,preset,setting,dap,no_comm,program,stage,kind,aside,rate,calls,time_s,flops,bytes,tensor_bytes\n";
static const char op_row[] = "c1,GPU,initial_training,all,1,0,nograd,forward_nograd,linear,0,bf16,4,1e-4,1e9,1e6,0\n";
static const char step_header[] =
    "commit,unix_time,device,preset,ranks,dp,dap,no_comm,setting,gemm_batching,fused_attention,fused_layernorm,"
    "fused_pointwise,fused_optimizer,overlap_clip,comm_overlap,cuda_graph,bf16,checkpoint,repeats,step_s,step_sd_s,"
    "nograd_s,grad_s,optimizer_s,nograd_ops,grad_ops,optimizer_ops\n";
static const char step_row[] =
    "c1,1,GPU,initial_training,1,1,1,0,all,on,on,on,on,on,on,off,on,on,none,5,0.4,1e-3,0.08,0.28,0.001,3429,9245,2\n";

static void put(const char *name, const char *first, const char *second)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(first, f);
    fputs(second, f);
    fclose(f);
}

static void drop(const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    drop("op_table.csv");
    drop("step.csv");
    return rmdir(folder);
}

static void reads_back(void **state)
{
    (void)state;
    OwnData d;
    put("op_table.csv", op_header, op_row);
    put("step.csv", step_header, step_row);
    if (own_read(folder, &d) != OK) fail_msg("%s", status_text());
    assert_int_equal(d.steps, 1);
    assert_int_equal(d.tables, 1);
    assert_int_equal(d.table[0].step, 0);
    assert_int_equal(d.timing[0].rate, RATE_BF16);
    assert_true(d.timing[0].calls == 4 && d.timing[0].time_s == 1e-4);
    assert_true(d.step[0].switches.bf16 && !d.step[0].switches.comm_overlap && d.step[0].sd_s == 1e-3);
    own_free(&d);
}

/* One cell changed at a time; the message says where and what. */
static void bad_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *file, *first, *second, *says;
    } cases[] = {
        {"step.csv", step_header,
         "c1,1,GPU,initial_training,1,1,1,0,all,maybe,on,on,on,on,on,off,on,on,none,5,0.4,1e-3,"
         "0.08,0.28,0.001,3429,9245,2\n",
         "gemm_batching is \"maybe\""},
        {"step.csv", step_header,
         "c1,1,GPU,initial_training,1,1,1,0,all,on,on,on,on,on,on,off,on,on,none,5,nan,1e-3,"
         "0.08,0.28,0.001,3429,9245,2\n",
         "step_s"},
        {"step.csv", step_header,
         "c1,1,GPU,initial_training,1,1,1,0,all,on,on,on,on,on,on,off,on,on,none,5,-0.4,1e-3,"
         "0.08,0.28,0.001,3429,9245,2\n",
         "step_s is -0.4"},
        {"step.csv", step_header,
         "c1,1,GPU,initial_training,4,1,2,0,all,on,on,on,on,on,on,off,on,on,none,5,0.4,1e-3,"
         "0.08,0.28,0.001,3429,9245,2\n",
         "4 ranks are not dp 1 x dap 2"},
        {"step.csv", step_header,
         "c1,1,GPU,initial_training,1,1,1,0,all,on,on,on,on,on,on,off,on,on,some,5,0.4,1e-3,"
         "0.08,0.28,0.001,3429,9245,2\n",
         "checkpoint is \"some\""},
        {"step.csv", "commit,setting\n", "c1,all\n", "device"},
        {"op_table.csv", op_header, "c1,GPU,initial_training,all,1,0,nograd,forward,linear,0,fp8,4,1e-4,1e9,1e6,0\n",
         "rate is \"fp8\""},
        {"op_table.csv", op_header, "c1,GPU,initial_training,all,1,0,warm,forward,linear,0,bf16,4,1e-4,1e9,1e6,0\n",
         "program is \"warm\""},
        {"op_table.csv", op_header, "c1,GPU,initial_training,all,1,0,grad,forward,linear,0,bf16,0,1e-4,1e9,1e6,0\n",
         "calls is 0"},
        {"op_table.csv", op_header, "c1,GPU,initial_training,all,1,0,grad,forward,linear,0,bf16,1,inf,1e9,1e6,0\n",
         "time_s"},
        {"op_table.csv", op_header, "", "0 ops"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        OwnData d;
        put("op_table.csv", op_header, op_row);
        put("step.csv", step_header, step_row);
        put(cases[i].file, cases[i].first, cases[i].second);
        assert_int_equal(own_read(folder, &d), ERR_INPUT);
        if (!strstr(status_text(), cases[i].says)) fail_msg("\"%s\" lacks \"%s\"", status_text(), cases[i].says);
        assert_non_null(strstr(status_text(), cases[i].file));
    }
}

static void tables_need_their_step(void **state)
{
    (void)state;
    Arena arena = {0};
    ValidationRow *rows;
    char *note;
    int count;
    put("op_table.csv", op_header, op_row);
    drop("step.csv");
    assert_int_equal(validate_own(folder, &arena, &rows, &count, &note), ERR_INPUT);
    put("step.csv", step_header,
        "c1,1,GPU,initial_training,1,1,1,0,other,on,on,on,on,on,on,off,on,on,none,5,0.4,1e-3,"
        "0.08,0.28,0.001,3429,9245,2\n");
    assert_int_equal(validate_own(folder, &arena, &rows, &count, &note), ERR_INPUT);
    assert_non_null(strstr(status_text(), "no whole step"));
    arena_free(&arena);
}

/* Two graphs of 1000 ops: 30 us each between marks, 25 us each in a whole program without marks; the other's shape is
 * 10 % slower, its marks cost as much. */
static const char two_tables[] =
    "c1,GPU,initial_training,all,1,0,grad,backward,linear,0,bf16,1000,30e-3,1e9,1e6,0\n"
    "c1,GPU,initial_training,left_out,1,0,grad,backward,linear,0,bf16,1000,32.5e-3,1e9,1e6,0\n";
static const char two_steps[] =
    "c1,1,GPU,initial_training,1,1,1,0,all,on,on,on,on,on,on,off,on,on,none,5,0.025,1e-4,0,0.025,0,0,1000,0\n"
    "c1,1,GPU,initial_training,1,1,1,0,left_out,on,off,off,on,on,on,off,on,on,none,5,0.0275,1e-4,0,0.0275,0,0,1000,0\n";

static void marks_come_off(void **state)
{
    (void)state;
    OwnData d;
    OwnPrices prices;
    Machine *machine;
    OpPrices *ops = NULL;
    put("op_table.csv", op_header, two_tables);
    put("step.csv", step_header, two_steps);
    if (own_read(folder, &d) != OK || machines_open("h200", &machine) != OK ||
        own_prices_open(&d, machine, &prices) != OK)
        fail_msg("%s", status_text());
    assert_true(fabs(prices.mark_s[0] - 5e-6) < 1e-9 && fabs(prices.mark_s[1] - 5e-6) < 1e-9);
    assert_true(prices.mark_drift < 1e-20);
    assert_true(fabs(prices.time_drift - pow(log(1.1), 2) / 2) < 1e-9); /* two switches apart */
    assert_true(own_distance(&d.step[0], &d.step[1]) == 2);
    for (int t = 0; t < 2; t++) { /* each setting by its own time, nearly; the other's alone otherwise */
        double sd, own = t ? 27.5e-6 : 25e-6, other = t ? 25e-6 : 27.5e-6;
        assert_int_equal(own_prices_fit(&prices, &d.step[t], -1, &ops), OK);
        assert_true(fabs(opprice_time(ops, machine, "linear", RATE_BF16, 1e9, 1e6, true, &sd) / own - 1) < 0.01);
        assert_true(sd < 0.02);
        opprice_destroy(&ops);
        assert_int_equal(own_prices_fit(&prices, &d.step[t], t, &ops), OK);
        assert_true(fabs(opprice_time(ops, machine, "linear", RATE_BF16, 1e9, 1e6, true, &sd) / other - 1) < 1e-6);
        assert_true(fabs(sd - log(1.1)) < 1e-6);
        opprice_destroy(&ops);
    }
    own_prices_close(&prices);
    machine_destroy(&machine);
    own_free(&d);
}

/* fit and predict take the folder where they take ops.csv. */
static void tables_price_studies(void **state)
{
    (void)state;
    char path[4096];
    const TextList none = {0};
    Config *config;
    Pricing *pricing;
    FitOptions options = {0};
    put("op_table.csv", op_header, two_tables);
    put("step.csv", step_header, two_steps);
    snprintf(path, sizeof path, "%s/experiments/initial_training.yaml", source_dir());
    if (config_load(path, &none, &config) != OK || pricing_open(config, "h200", folder, &pricing) != OK)
        fail_msg("%s", status_text());
    assert_true(pricing_ops(pricing)->from_graphs);
    assert_true(
        fabs(opprice_time(pricing_ops(pricing), pricing_machine(pricing), "linear", RATE_BF16, 1e9, 1e6, true, NULL) /
                 25e-6 -
             1) < 0.01);
    pricing_serial_share(pricing, &options);
    assert_true(options.serial_share > 0 && options.serial_share < 0.01);
    pricing_close(&pricing);
    config_destroy(&config);
}

/* The shipped measurements: every step is fitted or predicted, never both, and none of the fitted is scored. */
static void shipped_measurements(void **state)
{
    (void)state;
    const char *shipped = validate_own_default();
    Arena arena = {0};
    ValidationRow *rows;
    char *note;
    int count, fitted = 0;
    if (!shipped) {
        printf("no op table in experiments/results/h200/validation\n");
        skip();
    }
    if (validate_own(shipped, &arena, &rows, &count, &note) != OK) fail_msg("%s", status_text());
    for (int i = 0; i < count; i++) fitted += rows[i].fitted;
    ValidationScore score = validate_score(rows, count, "own");
    printf("%d rows, %d fitted; mean error %.2f %%, maximum %.2f %%, coverage %.0f %%\n%s\n", count, fitted,
           100 * score.mean_error, 100 * score.max_error, 100 * score.coverage, note);
    if (count == 0) skip(); /* measured before the program changed: the note says so */
    assert_true(fitted > 0);
    assert_int_equal(score.rows, count - fitted);
    assert_true(isnan(score.mean_error) || score.rows == 0 || (score.mean_error <= 0.06 && score.max_error <= 0.12));
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_back),
                                       cmocka_unit_test(bad_files_are_refused),
                                       cmocka_unit_test(tables_need_their_step),
                                       cmocka_unit_test(marks_come_off),
                                       cmocka_unit_test(tables_price_studies),
                                       cmocka_unit_test(shipped_measurements)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
