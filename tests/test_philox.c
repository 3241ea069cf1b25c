/* Known answers of Philox4x32-10 from the kat_vectors file of Random123, the authors' own implementation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/philox.h"

typedef struct KnownAnswer {
    uint32_t counter[4], key[2], expected[4];
} KnownAnswer;

static void test_known_answers(void **state)
{
    (void)state;
    static const KnownAnswer answers[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; ++i) {
        uint32_t out[4];
        philox4x32(answers[i].counter, answers[i].key, out);
        for (int word = 0; word < 4; ++word) assert_int_equal(out[word], answers[i].expected[word]);
    }
}

static void test_uniform_range(void **state)
{
    (void)state;
    assert_true(philox_uniform_f32(0) == 0.0f);
    assert_true(philox_uniform_f32(UINT32_MAX) < 1.0f);
    assert_true(philox_uniform_f32(UINT32_MAX) == 1.0f - 0x1p-24f);
    assert_true(philox_uniform_f64(0, 0) == 0.0);
    assert_true(philox_uniform_f64(UINT32_MAX, UINT32_MAX) == 1.0 - 0x1p-53);
    double sum = 0.0;
    const uint32_t key[2] = {7, 9};
    for (uint32_t block = 0; block < 25000; ++block) {
        uint32_t counter[4] = {block, 0, 0, 0}, out[4];
        philox4x32(counter, key, out);
        for (int word = 0; word < 4; ++word) sum += philox_uniform_f32(out[word]);
    }
    /* standard deviation of the mean of 1e5 uniforms: sqrt(1/12 / 1e5) = 9.1e-4; five of them */
    assert_true(sum / 1e5 > 0.5 - 0.0046 && sum / 1e5 < 0.5 + 0.0046);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known_answers), cmocka_unit_test(test_uniform_range)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
