/* A predicted structure written and read again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/draws.h"
#include "data/mmcif.h"
#include "data/residue.h"
#include "data/mmcif_write.h"

enum { N = 40 };

static float uniform(uint64_t index)
{
    Draws draws = {.seed = 4, .index = index};
    float value = 0.0f;
    assert_int_equal(draws_uniform_f32(&draws, DRAW_SYNTH, 0, 0, 1, &value), OK);
    return value;
}

static void test_write_and_read(void **state)
{
    (void)state;
    static int32_t aatype[N];
    static float positions[N][ATOM37_COUNT][3], exists[N][ATOM37_COUNT], plddt[N];
    for (int i = 0; i < N; ++i) {
        aatype[i] = i % 21;
        plddt[i] = 50.0f + (float)i;
        for (int a = 0; a < ATOM37_COUNT; ++a) {
            exists[i][a] = residue_tables()->atom37_mask[aatype[i]][a];
            for (int k = 0; k < 3; ++k)
                positions[i][a][k] = 200.0f * uniform((uint64_t)((i * 37 + a) * 3 + k)) - 100.0f;
        }
    }
    char path[] = "/tmp/foldscale_structure_XXXXXX";
    int handle = mkstemp(path);
    assert_true(handle >= 0);
    close(handle);
    MmcifChain predicted = {"9abc", "B", N, aatype, positions[0][0], exists[0], plddt, "2020-02-29", 1.75};
    assert_int_equal(mmcif_write_chain(path, &predicted), OK);
    Arena arena = {0};
    Structure *read = NULL;
    Status status = mmcif_read(path, NULL, &arena, &read);
    if (status != OK) fail_msg("%s", status_text());
    const Chain *chain = structure_find_chain(read, "B");
    assert_non_null(chain);
    assert_int_equal(chain->length, N);
    assert_string_equal(read->release_date, "2020-02-29");
    assert_true(read->resolution == 1.75f);
    for (int i = 0; i < N; ++i) {
        assert_int_equal(chain->aatype[i], aatype[i]);
        for (int a = 0; a < ATOM37_COUNT; ++a) {
            assert_int_equal(chain->mask[i * ATOM37_COUNT + a], exists[i][a] != 0.0f);
            for (int k = 0; k < 3 && exists[i][a] != 0.0f; ++k)
                assert_true(fabsf(chain->positions[(i * ATOM37_COUNT + a) * 3 + k] - positions[i][a][k]) < 6e-4f);
        }
    }
    arena_free(&arena);
    positions[3][1][1] = INFINITY;
    assert_int_equal(mmcif_write_chain(path, &predicted), ERR_NUMERIC);
    assert_int_equal(mmcif_write_chain("/nonexistent/folder/x.cif", &predicted), ERR_IO);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_write_and_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
