/* Persistent memory: initial values by rule, independent of order; conversion on the way in and out; addresses. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/convert.h"
#include "engine/store.h"
#include "kernels/kernels.h"

typedef struct Fixture {
    Backend *backend;
    Registry *registry;
    Store *store;
} Fixture;

static int param(Registry *r, const char *name, int64_t rows, int64_t columns, InitRule init, double value)
{
    int index = -1;
    assert_int_equal(registry_param(r, name, 2, (int64_t[]){rows, columns}, init, value, &index), OK);
    return index;
}

static void fixture_open(Fixture *f, Precision precision, StoreUse use)
{
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &f->backend), OK);
    assert_int_equal(store_create(f->backend, f->registry, precision, use, &f->store), OK);
}

static void fixture_close(Fixture *f)
{
    store_destroy(&f->store);
    registry_destroy(&f->registry);
    kernels_close(&f->backend);
}

static double *values_of(Fixture *f, const char *name, int64_t *count_out)
{
    int index = registry_find_param(f->registry, name);
    int64_t count = f->registry->param[index].count;
    double *values = malloc((size_t)count * sizeof *values);
    assert_int_equal(store_read_param(f->store, PLACE_PARAM, index, DT_F64, values, count), OK);
    *count_out = count;
    return values;
}

typedef struct Moments {
    double mean, std, largest;
} Moments;

static Moments moments(const double *x, int64_t n)
{
    Moments m = {0};
    for (int64_t i = 0; i < n; i++) m.mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) m.std += (x[i] - m.mean) * (x[i] - m.mean) / (double)n;
    m.std = sqrt(m.std);
    for (int64_t i = 0; i < n; i++)
        if (fabs(x[i]) > m.largest) m.largest = fabs(x[i]);
    return m;
}

/* n = 2^18 draws: the standard error of the mean is std / 512, that of the std below std / 700. */
static void initial_values_follow_their_rules(void **state)
{
    (void)state;
    Fixture f = {0};
    assert_int_equal(registry_create(&f.registry), OK);
    param(f.registry, "normal", 512, 512, INIT_NORMAL, 0.125);
    param(f.registry, "uniform", 512, 512, INIT_UNIFORM, 0.25);
    param(f.registry, "gaussian", 512, 512, INIT_GAUSSIAN, 2);
    param(f.registry, "zero", 3, 5, INIT_ZERO, 0);
    param(f.registry, "one", 3, 5, INIT_ONE, 0);
    param(f.registry, "constant", 3, 5, INIT_CONSTANT, 0.541);
    fixture_open(&f, PRECISION_F64, STORE_FORWARD);
    assert_int_equal(store_init_params(f.store, 7), OK);
    int64_t n;
    double *x = values_of(&f, "normal", &n);
    Moments m = moments(x, n);
    assert_true(fabs(m.mean) < 4 * 0.125 / 512 && fabs(m.std - 0.125) < 4 * 0.125 / 512);
    /* cut at two sigma of the normal whose truncated std is 0.125: 2 x 0.125 / 0.879626 */
    assert_true(m.largest < 0.2842127 && m.largest > 0.284);
    free(x);
    x = values_of(&f, "uniform", &n);
    m = moments(x, n);
    assert_true(fabs(m.mean) < 4 * 0.25 / 512 && fabs(m.std - 0.25) < 4 * 0.25 / 512);
    assert_true(m.largest < 0.25 * sqrt(3) && m.largest > 0.433);
    free(x);
    x = values_of(&f, "gaussian", &n);
    m = moments(x, n);
    assert_true(fabs(m.mean) < 4 * 2.0 / 512 && fabs(m.std - 2) < 4 * 2.0 / 512 && m.largest > 6);
    free(x);
    static const struct {
        const char *name;
        double value;
    } fixed[] = {{"zero", 0}, {"one", 1}, {"constant", 0.541}};
    for (int k = 0; k < 3; k++) {
        x = values_of(&f, fixed[k].name, &n);
        for (int64_t i = 0; i < n; i++) assert_true(x[i] == fixed[k].value);
        free(x);
    }
    fixture_close(&f);
}

/* The same (seed, name) gives the same numbers whatever else is registered; another seed or name gives others. */
static void initial_values_depend_on_seed_and_name_alone(void **state)
{
    (void)state;
    double *first = NULL, *x;
    int64_t n;
    for (int turn = 0; turn < 3; turn++) {
        Fixture f = {0};
        assert_int_equal(registry_create(&f.registry), OK);
        if (turn) param(f.registry, "before", 9, 9, INIT_NORMAL, 1);
        param(f.registry, "a.weight", 17, 5, INIT_NORMAL, 1);
        param(f.registry, "b.weight", 17, 5, INIT_NORMAL, 1);
        fixture_open(&f, PRECISION_F64, STORE_FORWARD);
        assert_int_equal(store_init_params(f.store, turn == 2 ? 8 : 7), OK);
        x = values_of(&f, "a.weight", &n);
        if (turn == 0) {
            first = x;
            double *other = values_of(&f, "b.weight", &n);
            assert_memory_not_equal(first, other, (size_t)n * sizeof *x);
            free(other);
        } else {
            if (turn == 1) assert_memory_equal(first, x, (size_t)n * sizeof *x);
            if (turn == 2) assert_memory_not_equal(first, x, (size_t)n * sizeof *x);
            free(x);
        }
        fixture_close(&f);
    }
    free(first);
}

static void bf16_copy_follows_the_parameters(void **state)
{
    (void)state;
    Fixture f = {0};
    assert_int_equal(registry_create(&f.registry), OK);
    int w = param(f.registry, "w", 7, 9, INIT_NORMAL, 1);
    fixture_open(&f, PRECISION_BF16, STORE_TRAINING);
    assert_int_equal(store_init_params(f.store, 1), OK);
    float wide[63], low[63];
    assert_int_equal(store_read_param(f.store, PLACE_PARAM, w, DT_F32, wide, 63), OK);
    assert_int_equal(store_read_param(f.store, PLACE_PARAM_LOW, w, DT_F32, low, 63), OK);
    for (int i = 0; i < 63; i++) assert_true(low[i] == bf16_to_f32(bf16_from_f32(wide[i])));
    wide[5] = 1.0f + 0x1p-8f; /* half way between two bf16 numbers: to even */
    assert_int_equal(store_write_param(f.store, PLACE_PARAM, w, DT_F32, wide, 63), OK);
    assert_int_equal(store_lower_params(f.store), OK);
    assert_int_equal(store_read_param(f.store, PLACE_PARAM_LOW, w, DT_F32, low, 63), OK);
    assert_true(low[5] == 1.0f);
    fixture_close(&f);
}

static void rounding_to_bf16_is_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        float from, to;
    } cases[] = {{1.0f, 1.0f},
                 {1.0f + 0x1p-8f, 1.0f},
                 {1.0f + 3 * 0x1p-8f, 1.0f + 0x1p-6f},
                 {1.0f + 0x1.2p-8f, 1.0f + 0x1p-7f},
                 {-0x1.fffffep127f, -INFINITY},
                 {0x1p-133f, 0x1p-133f},
                 {INFINITY, INFINITY},
                 {-0.0f, -0.0f}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float back = bf16_to_f32(bf16_from_f32(cases[i].from));
        assert_memory_equal(&back, &cases[i].to, sizeof back);
    }
    uint32_t payload = 0x7f800001u; /* a NaN that truncation would turn into infinity */
    float nan;
    memcpy(&nan, &payload, sizeof nan);
    assert_true(isnan(bf16_to_f32(bf16_from_f32(nan))));
}

static void buffers_convert_and_check_their_size(void **state)
{
    (void)state;
    Fixture f = {0};
    assert_int_equal(registry_create(&f.registry), OK);
    int real = -1, index = -1, found = -1;
    Tensor t = {.dtype = DT_F32, .rank = 2, .shard = SHARD_NONE, .dim = {2, 3}};
    assert_int_equal(registry_buffer(f.registry, "x", BUFFER_INPUT, &t, &real), OK);
    t.dtype = DT_I32;
    assert_int_equal(registry_buffer(f.registry, "i", BUFFER_INPUT, &t, &index), OK);
    fixture_open(&f, PRECISION_F64, STORE_FORWARD);
    double in[6] = {1, 2.5, -3, 4, 5, 6}, out[6];
    float narrow[6];
    int32_t whole[6] = {1, 2, 3, 4, 5, 6}, back[6];
    assert_int_equal(store_write(f.store, real, DT_F64, in, 6), OK);
    assert_int_equal(store_read(f.store, real, DT_F32, narrow, 6), OK);
    assert_true(narrow[1] == 2.5f);
    assert_int_equal(store_write(f.store, index, DT_I32, whole, 6), OK);
    assert_int_equal(store_read(f.store, index, DT_I32, back, 6), OK);
    assert_memory_equal(whole, back, sizeof whole);
    assert_int_equal(store_read(f.store, index, DT_F64, out, 6), OK);
    assert_true(out[5] == 6);
    assert_int_equal(store_write(f.store, real, DT_F64, in, 5), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "holds 6 elements, not 5"));
    assert_int_equal(store_write(f.store, 9, DT_F64, in, 6), ERR_INTERNAL);
    assert_int_equal(store_find_buffer(f.store, "i", &found), OK);
    assert_int_equal(found, index);
    assert_int_equal(store_find_buffer(f.store, "y", &found), ERR_INTERNAL);
    fixture_close(&f);
}

static void blocks_exist_by_use_and_precision(void **state)
{
    (void)state;
    static const struct {
        Precision precision;
        StoreUse use;
        int bytes_per_element;
        bool grad, low;
    } cases[] = {{PRECISION_F32, STORE_FORWARD, 4, false, false},
                 {PRECISION_F32, STORE_TRAINING, 20, true, false},
                 {PRECISION_F64, STORE_TRAINING, 40, true, false},
                 {PRECISION_BF16, STORE_TRAINING, 22, true, true},
                 {PRECISION_BF16, STORE_FORWARD, 6, false, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Fixture f = {0};
        assert_int_equal(registry_create(&f.registry), OK);
        param(f.registry, "a", 3, 7, INIT_ZERO, 0);
        int b = param(f.registry, "b", 64, 65, INIT_ZERO, 0);
        fixture_open(&f, cases[i].precision, cases[i].use);
        size_t real = cases[i].precision == PRECISION_F64 ? 8 : 4;
        /* 64 + 4160 elements are a multiple of what blocks are padded to */
        assert_int_equal(store_bytes(f.registry, cases[i].precision, cases[i].use), 4224 * cases[i].bytes_per_element);
        assert_ptr_equal((char *)store_place(f.store, PLACE_PARAM, b),
                         (char *)store_place(f.store, PLACE_PARAM, WHOLE_BLOCK) + 64 * real);
        assert_int_equal(store_place(f.store, PLACE_GRAD, 0) != NULL, cases[i].grad);
        assert_int_equal(store_place(f.store, PLACE_PARAM_LOW, 0) != NULL, cases[i].low);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initial_values_follow_their_rules),
        cmocka_unit_test(initial_values_depend_on_seed_and_name_alone),
        cmocka_unit_test(bf16_copy_follows_the_parameters),
        cmocka_unit_test(rounding_to_bf16_is_to_nearest_even),
        cmocka_unit_test(buffers_convert_and_check_their_size),
        cmocka_unit_test(blocks_exist_by_use_and_precision),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
