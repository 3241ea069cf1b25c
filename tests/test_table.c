/* CSV tables and the schemas of a study: round trips, quoting, and every message a damaged file must give. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "analysis/schema.h"
#include "analysis/table.h"
#include "engine/output.h"
#include "tests/text_file.h"

static char folder[] = "/tmp/foldscale_table_XXXXXX";
static char path[200];

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/t.csv", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static Table *parse(const char *text)
{
    Table *table = NULL;
    assert_int_equal(table_parse(text, strlen(text), "t.csv", &table), OK);
    return table;
}

static void refused(const char *text, const char *message)
{
    Table *table = NULL;
    assert_int_not_equal(table_parse(text, strlen(text), "t.csv", &table), OK);
    assert_null(table);
    if (!strstr(status_text(), message)) fail_msg("\"%s\" does not contain \"%s\"", status_text(), message);
}

static void test_parse(void **state)
{
    (void)state;
    Table *t = parse("a,b,\"c d\"\n1,\"x, \"\"y\"\"\",\n\n2,\"two\nlines\",-3e-5\r\n9,,");
    assert_int_equal(t->columns, 3);
    assert_int_equal(t->rows, 3);
    assert_string_equal(table_cell(t, 0, 1), "x, \"y\"");
    assert_string_equal(table_cell(t, 1, 1), "two\nlines");
    assert_true(table_cell_empty(t, 0, 2));
    assert_int_equal(t->lines[0], 2);
    assert_int_equal(t->lines[1], 4);
    assert_int_equal(t->lines[2], 6); /* after the cell of two lines */
    double value;
    assert_int_equal(table_double(t, 1, table_find(t, "c d"), &value), OK);
    assert_true(value == -3e-5);
    assert_int_equal(table_double(t, 0, 2, &value), ERR_INPUT);
    assert_non_null(strstr(status_text(), "t.csv:2: column \"c d\" is empty"));
    assert_int_equal(table_double(t, 0, 1, &value), ERR_INPUT);
    int column;
    assert_int_equal(table_column(t, "ranks", &column), ERR_INPUT);
    assert_non_null(strstr(status_text(), "\"ranks\" is missing (found: a, b, c d)"));
    int64_t whole;
    assert_int_equal(table_int(t, 0, 0, 0, 5, &whole), OK);
    assert_int_equal(table_int(t, 2, 0, 0, 5, &whole), ERR_INPUT);
    table_destroy(&t);
    t = parse("x\nnan\ninf\n1e999\n12abc\n");
    for (int64_t row = 0; row < t->rows; row++) assert_int_equal(table_double(t, row, 0, &value), ERR_INPUT);
    assert_non_null(strstr(status_text(), "t.csv:5"));
    table_destroy(&t);
}

static void test_refused(void **state)
{
    (void)state;
    refused("", "expected a header row");
    refused("a,b\n1\n", "t.csv:2: row has 1 cells (expected 2");
    refused("a,b\n1,2\n1,2,3\n", "t.csv:3: row has 3 cells");
    refused("a,a\n", "column \"a\" appears twice");
    refused("a,,c\n", "column 2 has no name");
    refused("a\n\"open\n", "never ends");
    refused("a\n\"x\"y\n", "malformed");
}

static void test_numbers_round_trip(void **state)
{
    (void)state;
    const double values[] = {
        0.1, 1.0 / 3, DBL_MAX, DBL_MIN, 4.9406564584124654e-324, -0.0, 123456789012345678.0, 6.62607015e-34, 1.8073};
    const int count = (int)(sizeof values / sizeof *values);
    const char *names[] = {"value", "text"};
    TableWriter *w;
    assert_int_equal(table_writer_create(path, names, 2, &w), OK);
    for (int i = 0; i < count; i++) {
        table_put_double(w, values[i]);
        table_put_text(w, i % 2 ? "a \"quoted\", text" : " spaced ");
        assert_int_equal(table_writer_row(w), OK);
    }
    assert_int_not_equal(access(path, F_OK), 0); /* nothing visible before close */
    assert_int_equal(table_writer_close(&w), OK);
    Table *t;
    assert_int_equal(table_read(path, &t), OK);
    for (int i = 0; i < count; i++) {
        double back = NAN;
        assert_int_equal(table_double(t, i, 0, &back), OK);
        assert_memory_equal(&back, &values[i], sizeof back);
        assert_string_equal(table_cell(t, i, 1), i % 2 ? "a \"quoted\", text" : " spaced ");
    }
    table_destroy(&t);
}

static RunRow example_run(void)
{
    RunRow row = {.run_id = "r1",
                  .experiment = "e.yaml",
                  .backend = "cpu",
                  .device = "a, b",
                  .ranks = 8,
                  .dp = 4,
                  .dap = 2,
                  .samples = 40,
                  .step_s_mean = 1.25,
                  .step_s_median = 1.2,
                  .step_s_p05 = 1.1,
                  .step_s_p95 = 1.4,
                  .samples_per_s = 3.2,
                  .peak_bytes = 1e9,
                  .model_flops = 2e12,
                  .mfu = NAN,
                  .wire_bytes = 3e8,
                  .data_wait_fraction = 0.01,
                  .provenance = "0123456789abcdef"};
    for (int s = 0; s < SCHEMA_SWITCH_COUNT; s++) row.switches[s] = s == SWITCH_CHECKPOINT ? "block" : "on";
    for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) row.phase_s[p] = row.step_s_mean * p / 28; /* 0 + ... + 7 */
    return row;
}

static void write_runs(const RunRow *row, bool append)
{
    TableWriter *w;
    assert_int_equal(schema_runs_writer(path, append, &w), OK);
    assert_int_equal(schema_write_run(w, row), OK);
    assert_int_equal(table_writer_close(&w), OK);
}

static void test_runs(void **state)
{
    (void)state;
    RunRow row = example_run();
    unlink(path);
    write_runs(&row, true);
    write_runs(&row, true); /* the header is written once */
    RunTable table;
    assert_int_equal(schema_read_runs(path, &table), OK);
    assert_int_equal(table.count, 2);
    assert_string_equal(table.rows[1].device, "a, b");
    assert_string_equal(table.rows[1].switches[SWITCH_CHECKPOINT], "block");
    assert_true(table.rows[1].phase_s[PHASE_COMM_EXPOSED] == row.phase_s[PHASE_COMM_EXPOSED]);
    assert_true(isnan(table.rows[1].mfu));
    assert_int_equal(table.rows[1].line, 3);
    assert_string_equal(table.rows[1].file, path);
    schema_free_runs(&table);
    row.dp = 3;
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &table), ERR_INPUT);
    assert_non_null(strstr(status_text(), ":2: ranks is 8 but dp x dap is 3 x 2"));
    row.dp = 4;
    row.switches[SWITCH_BF16] = "maybe";
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &table), ERR_INPUT);
    assert_non_null(strstr(status_text(), ":2: column \"bf16\" is \"maybe\" (expected on or off)"));
    row.switches[SWITCH_BF16] = "on";
    row.phase_s[PHASE_BACKWARD] += 1;
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &table), ERR_INPUT);
    assert_non_null(strstr(status_text(), "phases add up to 2.25 s, the step is 1.25 s"));
    row.phase_s[PHASE_BACKWARD] = NAN; /* not timed apart: nothing to add up */
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &table), OK);
    schema_free_runs(&table);
    row.ranks = row.dp = (int64_t)1 << 40, row.dap = 1;
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &table), ERR_INPUT);
    assert_non_null(strstr(status_text(), "ranks is 1099511627776"));
    TableWriter *w;
    assert_int_equal(schema_steps_writer(path, true, &w), ERR_INPUT); /* another schema's log */
}

/* Calls are a mean; achieved rates may be absent, as in files of older versions. */
static void test_ops(void **state)
{
    (void)state;
    const OpRow row = {.op = 7,
                       .kind = "linear",
                       .name = "a",
                       .stage = "forward_nograd",
                       .calls = 1.5,
                       .time_s = 3e-3,
                       .flops = 4e6,
                       .bytes = 2e6,
                       .predicted_s = NAN,
                       .flop_per_s = 2e9,
                       .bytes_per_s = 1e9};
    TableWriter *w;
    OpTable ops;
    unlink(path);
    assert_int_equal(schema_ops_writer(path, &w), OK);
    assert_int_equal(schema_write_op(w, &row), OK);
    assert_int_equal(table_writer_close(&w), OK);
    check_text(path, "op,kind,name,stage,calls,time_s,flops,bytes,wire_bytes,predicted_s,flop_per_s,bytes_per_s\n"
                     "7,linear,a,forward_nograd,1.5,0.003,4000000,2000000,0,,2000000000,1000000000\n");
    assert_int_equal(schema_read_ops(path, &ops), OK);
    assert_true(ops.count == 1 && ops.rows[0].calls == 1.5 && ops.rows[0].flop_per_s == 2e9);
    schema_free_ops(&ops);
    write_text(path,
               "op,kind,name,stage,calls,time_s,flops,bytes,wire_bytes,predicted_s\n0,gate,g,forward,2,1,1,1,0,\n");
    assert_int_equal(schema_read_ops(path, &ops), OK);
    assert_true(ops.rows[0].calls == 2 && isnan(ops.rows[0].flop_per_s) && isnan(ops.rows[0].bytes_per_s));
    schema_free_ops(&ops);
    static const char *const refused_calls[] = {"", "-1", "nan", "two"};
    for (int i = 0; i < 4; i++) {
        char text[200];
        snprintf(text, sizeof text,
                 "op,kind,name,stage,calls,time_s,flops,bytes,wire_bytes,predicted_s\n0,gate,g,forward,%s,1,1,1,0,\n",
                 refused_calls[i]);
        write_text(path, text);
        assert_int_equal(schema_read_ops(path, &ops), ERR_INPUT);
        assert_non_null(strstr(status_text(), ":2: column \"calls\" is "));
    }
}

/* A row cut short is neither read nor continued. */
static void test_no_end(void **state)
{
    (void)state;
    const char *names[] = {"a", "b"};
    TableWriter *w = NULL;
    Table *t;
    RunTable runs;
    long line;
    write_text(path, "a,b\n1,2\n3,4");
    assert_int_equal(table_writer_append(path, names, 2, &w), ERR_INPUT);
    assert_non_null(strstr(status_text(), "t.csv:3: the last row has no end"));
    check_text(path, "a,b\n1,2\n3,4");
    assert_int_equal(table_read_ended(path, &line, &t), OK);
    assert_int_equal(line, 3);
    assert_int_equal(t->rows, 1);
    table_destroy(&t);
    write_text(path, "a,b\n1,2\n3");
    assert_int_equal(table_read(path, &t), ERR_INPUT);
    assert_non_null(strstr(status_text(), "t.csv:3: row has 1 cells (expected 2, as in the header) and no end"));
    write_text(path, "a,b\n1,2\n");
    assert_int_equal(table_read_ended(path, &line, &t), OK);
    assert_int_equal(line, 0);
    table_destroy(&t);
    RunRow row = example_run();
    unlink(path);
    write_runs(&row, true);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(truncate(path, info.st_size - 1), 0);
    assert_int_equal(schema_read_runs(path, &runs), ERR_INPUT);
    assert_non_null(strstr(status_text(), "t.csv:2: the last row has no end"));
    row.provenance = "0123456789abcde";
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &runs), ERR_INPUT);
    assert_non_null(strstr(status_text(), ":2: provenance is \"0123456789abcde\" (expected 16 hexadecimal digits"));
    row.provenance = "";
    write_runs(&row, false);
    assert_int_equal(schema_read_runs(path, &runs), OK);
    schema_free_runs(&runs);
}

static Status write_one(const char *file)
{
    const char *names[] = {"a", "b"};
    TableWriter *w = NULL;
    TRY(table_writer_create(file, names, 2, &w));
    table_put_int(w, 1);
    table_put_int(w, 2);
    TRY(table_writer_row(w));
    return table_writer_close(&w);
}

/* Tables replace tables, and what links lead to; everything else stays what it is. */
static void test_what_is_replaced(void **state)
{
    (void)state;
    char link[220], other[220], below[240];
    struct stat info;
    snprintf(link, sizeof link, "%s/link.csv", folder);
    snprintf(other, sizeof other, "%s/./t.csv", folder);
    snprintf(below, sizeof below, "%s/t.csv.tmp", folder);
    unlink(path);
    assert_int_equal(symlink("t.csv", link), 0);
    assert_true(output_same(link, other)); /* where nothing is yet */
    assert_int_equal(write_one(link), OK);
    check_text(path, "a,b\n1,2\n");
    assert_int_equal(lstat(link, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    assert_true(output_same(link, other));
    write_text(path, "a,b,c\n");
    assert_int_equal(write_one(link), OK);
    write_text(path, "");
    assert_int_equal(write_one(path), OK);
    const char *const foreign[] = {"My thesis\n", "ab,c\n", "a,c\n1,2\n", "a"};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        write_text(path, foreign[i]);
        assert_int_equal(write_one(link), ERR_INPUT);
        assert_non_null(strstr(status_text(), "link.csv: not replaced: it does not begin with \"a,b\""));
        check_text(path, foreign[i]);
    }
    unlink(link);
    assert_int_equal(symlink("link.csv", link), 0);
    assert_int_equal(write_one(link), ERR_IO);
    unlink(link);
    assert_int_equal(write_one(folder), ERR_IO);
    assert_non_null(strstr(status_text(), "cannot write: a folder, not a file"));
    assert_int_equal(access(below, F_OK), -1);
    char found[20] = "";
    assert_int_equal(mkfifo(link, 0600), 0);
    int pipe = open(link, O_RDWR);
    assert_true(pipe >= 0);
    assert_int_equal(write_one(link), OK);
    assert_int_equal(read(pipe, found, sizeof found - 1), 8);
    assert_string_equal(found, "a,b\n1,2\n");
    assert_true(close(pipe) == 0 && lstat(link, &info) == 0 && S_ISFIFO(info.st_mode));
    unlink(link);
    const char *const inputs[] = {NULL, "/nonexistent", other};
    assert_int_equal(output_check("x: --out", path, NULL, inputs, 2), OK);
    assert_int_equal(output_check("x: --out", path, NULL, inputs, 3), ERR_USAGE);
    assert_non_null(strstr(status_text(), "x: --out is the input "));
}

static void test_full_disk(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK)) skip();
    const char *names[] = {"a"};
    TableWriter *w = NULL;
    FILE *probe = fopen("/dev/full", "ab");
    if (!probe) skip();
    fclose(probe);
    Status status = table_writer_append("/dev/full", names, 1, &w);
    assert_int_equal(status, ERR_IO);
    assert_non_null(strstr(status_text(), "No space left"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_numbers_round_trip),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_ops),
        cmocka_unit_test(test_no_end),
        cmocka_unit_test(test_what_is_replaced),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
