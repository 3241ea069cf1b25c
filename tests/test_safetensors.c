/* Round trip, atomic replacement, and refusal of everything that is not a safetensors file. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"

static char folder[64], path[96];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/foldscale_st_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/x.safetensors", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static bool exists(const char *name)
{
    struct stat info;
    return stat(name, &info) == 0;
}

static void put(const void *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    assert_int_equal(fclose(stream), 0);
}

/* A file of this header, then `data_bytes` zeros. */
static void put_header(const char *json, size_t data_bytes)
{
    size_t length = strlen(json);
    unsigned char *bytes = calloc(1, 8 + length + data_bytes);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, json, length);
    put(bytes, 8 + length + data_bytes);
    free(bytes);
}

static void expect_refusal(const char *part)
{
    StFile *file = NULL;
    assert_int_equal(st_open(path, &file), ERR_INPUT);
    assert_null(file);
    assert_non_null(strstr(status_text(), path));
    if (!strstr(status_text(), part)) fail_msg("\"%s\" lacks \"%s\"", status_text(), part);
}

static void refuse_header(const char *json, size_t data_bytes, const char *part)
{
    put_header(json, data_bytes);
    expect_refusal(part);
}

static const double f64_values[6] = {1.5, -0.0, 1e300, -INFINITY, 3.0, 1e-310};
static const float f32_values[3] = {0.1f, -2.0f, 16777216.0f};
static const int64_t i64_values[2] = {INT64_MIN, INT64_MAX};

static void write_example(void)
{
    static const uint16_t bf16[2] = {0x3f80, 0xc040}; /* 1, -3 */
    static const int32_t i32[2] = {-7, 8};
    static const int16_t i16[1] = {-300};
    static const uint8_t u8[3] = {0, 1, 255};
    StWriter *writer = NULL;
    assert_int_equal(st_writer_create(path, &writer), OK);
    assert_int_equal(st_writer_metadata(writer, "step", "12 \"\\\n\xc3\xa9"), OK);
    assert_int_equal(st_writer_add(writer, "u8", ST_U8, 1, (int64_t[]){3}, u8), OK); /* leaves the rest unaligned */
    assert_int_equal(st_writer_add(writer, "f64", ST_F64, 2, (int64_t[]){2, 3}, f64_values), OK);
    assert_int_equal(st_writer_add(writer, "f32", ST_F32, 1, (int64_t[]){3}, f32_values), OK);
    assert_int_equal(st_writer_add(writer, "bf16", ST_BF16, 1, (int64_t[]){2}, bf16), OK);
    assert_int_equal(st_writer_add(writer, "i64", ST_I64, 1, (int64_t[]){2}, i64_values), OK);
    assert_int_equal(st_writer_add(writer, "i32", ST_I32, 1, (int64_t[]){2}, i32), OK);
    assert_int_equal(st_writer_add(writer, "scalar", ST_I16, 0, NULL, i16), OK);
    assert_int_equal(st_writer_add(writer, "empty", ST_F32, 2, (int64_t[]){0, 5}, NULL), OK);
    assert_int_equal(st_writer_metadata(writer, "b", ""), OK);
    assert_int_equal(st_writer_commit(writer), OK);
    st_writer_destroy(&writer);
    assert_null(writer);
}

static void test_round_trip(void **state)
{
    (void)state;
    write_example();
    StFile *file = NULL;
    assert_int_equal(st_open(path, &file), OK);
    assert_string_equal(st_path(file), path);
    assert_int_equal(st_count(file), 8);
    assert_string_equal(st_at(file, 0)->name, "u8");
    assert_null(st_at(file, 8));
    assert_null(st_at(file, -1));
    assert_null(st_find(file, "absent"));
    assert_string_equal(st_metadata(file, "step"), "12 \"\\\n\xc3\xa9");
    assert_string_equal(st_metadata(file, "b"), "");
    assert_null(st_metadata(file, "u8"));

    const StTensor *tensor = st_find(file, "f64");
    assert_int_equal(tensor->dtype, ST_F64);
    assert_int_equal(tensor->rank, 2);
    assert_int_equal(tensor->shape[1], 3);
    double doubles[6];
    assert_int_equal(st_read_f64(tensor, 0, 6, doubles), OK);
    assert_memory_equal(doubles, f64_values, sizeof doubles);
    float floats[3];
    assert_int_equal(st_read_f32(st_find(file, "f32"), 0, 3, floats), OK);
    assert_memory_equal(floats, f32_values, sizeof floats);
    assert_int_equal(st_read_f32(st_find(file, "bf16"), 1, 1, floats), OK);
    assert_float_equal(floats[0], -3.0f, 0);
    int64_t integers[2];
    assert_int_equal(st_read_i64(st_find(file, "i64"), 0, 2, integers), OK);
    assert_memory_equal(integers, i64_values, sizeof integers);
    assert_int_equal(st_read_i64(st_find(file, "i32"), 0, 1, integers), OK);
    assert_int_equal(integers[0], -7);
    assert_int_equal(st_read_i64(st_find(file, "scalar"), 0, 1, integers), OK);
    assert_int_equal(integers[0], -300);
    assert_int_equal(st_read_i64(st_find(file, "f32"), 1, 1, integers), OK);
    assert_int_equal(integers[0], -2);
    assert_int_equal(st_find(file, "empty")->count, 0);
    assert_int_equal(st_read_f32(st_find(file, "empty"), 0, 0, floats), OK);
    st_close(&file);
    assert_null(file);
    st_close(&file);
}

static void test_reads_outside_are_refused(void **state)
{
    (void)state;
    write_example();
    StFile *file = NULL;
    assert_int_equal(st_open(path, &file), OK);
    const StTensor *tensor = st_find(file, "f64");
    double value = 42;
    int64_t integer = 42;
    assert_int_equal(st_read_f64(tensor, 6, 1, &value), ERR_INPUT);
    assert_int_equal(st_read_f64(tensor, -1, 1, &value), ERR_INPUT);
    assert_int_equal(st_read_f64(tensor, 1, INT64_MAX, &value), ERR_INPUT);
    assert_int_equal(st_read_i64(tensor, 0, 1, &integer), ERR_INPUT); /* 1.5 */
    assert_int_equal(st_read_i64(tensor, 2, 1, &integer), ERR_INPUT); /* 1e300 */
    assert_true(value == 42 && integer == 42);
    st_close(&file);
}

static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    write_example();
    FILE *stream = fopen(path, "rb");
    static unsigned char bytes[4096];
    size_t size = fread(bytes, 1, sizeof bytes, stream);
    fclose(stream);
    assert_in_range(size, 100, sizeof bytes - 1);
    for (size_t length = 0; length < size; length++) {
        put(bytes, length);
        expect_refusal("");
    }
    put(bytes, size + 1);
    expect_refusal("after the last tensor");
}

static void test_foreign_files_are_refused(void **state)
{
    (void)state;
    put("", 0);
    expect_refusal("0 bytes");
    put("PK\003\004 an archive of some other kind, long enough to be read", 56);
    expect_refusal("not a safetensors file");
    put("\377\377\377\377\377\377\377\377{}", 10);
    expect_refusal("not a safetensors file");
    put("\000\341\365\005\000\000\000\000{}", 10); /* 100,000,000: allowed by the format, not by this file */
    expect_refusal("truncated");
    refuse_header("", 0, "not JSON");
    refuse_header("[]", 0, "not JSON");
    refuse_header("{\"a\":", 0, "not JSON");
    refuse_header("{}{}", 0, "continues");
    refuse_header("{\"a\":3}", 0, "expected an object");
    refuse_header("{\"a\":{}}", 0, "no dtype");
    refuse_header("{\"__metadata__\":{\"k\":1}}", 0, "not a string");
    refuse_header("{\"__metadata__\":[]}", 0, "not an object");
    refuse_header("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice");

    StFile *file = NULL;
    assert_int_equal(st_open(folder, &file), ERR_IO);
    assert_int_equal(st_open("/nonexistent/x", &file), ERR_IO);
    put_header("{}   ", 0);
    assert_int_equal(st_open(path, &file), OK);
    assert_int_equal(st_count(file), 0);
    assert_null(st_find(file, "a"));
    assert_null(st_metadata(file, "a"));
    st_close(&file);
}

#define TENSOR(NAME, DTYPE, SHAPE, OFFSETS)                                                                            \
    "\"" NAME "\":{\"dtype\":\"" DTYPE "\",\"shape\":" SHAPE ",\"data_offsets\":" OFFSETS "}"

static void test_bad_tensors_are_refused(void **state)
{
    (void)state;
    refuse_header("{" TENSOR("a", "F31", "[1]", "[0,4]") "}", 4, "F31");
    refuse_header("{" TENSOR("a", "F32", "1", "[0,4]") "}", 4, "shape");
    refuse_header("{" TENSOR("a", "F32", "[-1]", "[0,4]") "}", 4, "extent");
    refuse_header("{" TENSOR("a", "F32", "[1.5]", "[0,6]") "}", 6, "extent");
    refuse_header("{" TENSOR("a", "F32", "[1e400]", "[0,6]") "}", 6, "extent");
    refuse_header("{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "axes");
    refuse_header("{" TENSOR("a", "F32", "[4294967296,4294967296]", "[0,4]") "}", 4, "overflows");
    refuse_header("{" TENSOR("a", "F64", "[4294967296,1073741824]", "[0,4]") "}", 4, "disagree");
    refuse_header("{" TENSOR("a", "F32", "[2]", "[0,4]") "}", 4, "disagree");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[0,4,8]") "}", 4, "data_offsets");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[-4,0]") "}", 4, "data_offsets");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[4,0]") "}", 4, "bytes 4 to 0");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[4,8]") "}", 4, "truncated");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[4,8]") "}", 8, "unused bytes");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[0,4]") "," TENSOR("b", "U8", "[3]", "[2,5]") "}", 5, "overlaps");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[0,4]") "," TENSOR("b", "F32", "[1]", "[0,4]") "}", 4, "overlaps");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[0,4]") "," TENSOR("a", "F32", "[1]", "[4,8]") "}", 8, "twice");
    refuse_header("{" TENSOR("a", "F32", "[1]", "[0,4]") "}", 5, "1 bytes after");
}

static void test_replacement_is_whole_or_not_at_all(void **state)
{
    (void)state;
    write_example();
    char temporary[128];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);

    /* a full disk: the file may not grow past 64 KiB */
    static float many[100000];
    StWriter *writer = NULL;
    assert_int_equal(st_writer_create(path, &writer), OK);
    assert_int_equal(st_writer_add(writer, "many", ST_F32, 1, (int64_t[]){100000}, many), OK);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 65536;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(st_writer_commit(writer), ERR_IO);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_false(exists(temporary));
    StFile *file = NULL;
    assert_int_equal(st_open(path, &file), OK); /* the old file, whole */
    assert_int_equal(st_count(file), 8);

    /* a reader that has the old file open keeps it while the new one takes its name */
    assert_int_equal(st_writer_commit(writer), OK);
    st_writer_destroy(&writer);
    assert_false(exists(temporary));
    double value;
    assert_int_equal(st_read_f64(st_find(file, "f64"), 0, 1, &value), OK);
    assert_true(value == 1.5);
    st_close(&file);
    assert_int_equal(st_open(path, &file), OK);
    assert_int_equal(st_count(file), 1);
    assert_int_equal((uintptr_t)st_at(file, 0)->data % 64, 0);
    st_close(&file);
}

static void test_writer_errors(void **state)
{
    (void)state;
    StWriter *writer = NULL;
    const float one = 1;
    assert_int_equal(st_writer_create("/nonexistent/x.safetensors", &writer), OK);
    assert_int_equal(st_writer_commit(writer), ERR_IO);
    st_writer_destroy(&writer);
    assert_int_equal(st_writer_create(path, &writer), OK);
    assert_int_equal(st_writer_add(writer, "a", ST_F32, 0, NULL, &one), OK);
    assert_int_equal(st_writer_add(writer, "n", ST_F32, 1, (int64_t[]){-1}, &one), ERR_INTERNAL);
    assert_int_equal(st_writer_add(writer, "n", ST_F32, 2, (int64_t[]){INT64_MAX, 9}, &one), ERR_INTERNAL);
    assert_int_equal(st_writer_add(writer, "n", ST_F32, 9, (int64_t[9]){0}, &one), ERR_INTERNAL);
    assert_int_equal(st_writer_add(writer, "a", ST_F32, 0, NULL, &one), OK);
    assert_int_equal(st_writer_commit(writer), ERR_INTERNAL); /* named twice */
    st_writer_destroy(&writer);
}

int main(void)
{
#define CASE(NAME) cmocka_unit_test_setup_teardown(NAME, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        CASE(test_round_trip),
        CASE(test_reads_outside_are_refused),
        CASE(test_every_truncation_is_refused),
        CASE(test_foreign_files_are_refused),
        CASE(test_bad_tensors_are_refused),
        CASE(test_replacement_is_whole_or_not_at_all),
        CASE(test_writer_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
