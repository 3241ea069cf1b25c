/* The generated residue tables against the constants of the reference (tests/golden/residue_constants.safetensors,
 * the same file as golden/modules/constants.safetensors) and against their own redundancy. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/residue.h"
#include "engine/safetensors.h"
#include "tests/source_dir.h"

static StFile *golden;

static int open_golden(void **state)
{
    (void)state;
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/residue_constants.safetensors", source_dir());
    return st_open(path, &golden) == OK ? 0 : -1;
}

static int close_golden(void **state)
{
    (void)state;
    st_close(&golden);
    return 0;
}

/* Exact: the tables are rounded once from the same decimal numbers. */
static void expect_floats(const char *name, const float *values, int64_t count)
{
    const StTensor *tensor = st_find(golden, name);
    assert_non_null(tensor);
    assert_int_equal(tensor->count, count);
    float *expected = calloc((size_t)count, sizeof *expected);
    assert_non_null(expected);
    assert_int_equal(st_read_f32(tensor, 0, count, expected), OK);
    for (int64_t i = 0; i < count; i++)
        if (expected[i] != values[i])
            fail_msg("%s[%lld]: found %.9g, expected %.9g", name, (long long)i, (double)values[i], (double)expected[i]);
    free(expected);
}

static void expect_doubles(const char *name, const double *values, int64_t count)
{
    double expected[64];
    const StTensor *tensor = st_find(golden, name);
    assert_non_null(tensor);
    assert_int_equal(tensor->count, count);
    assert_in_range(count, 1, 64);
    assert_int_equal(st_read_f64(tensor, 0, count, expected), OK);
    for (int64_t i = 0; i < count; i++)
        if (expected[i] != values[i])
            fail_msg("%s[%lld]: found %.17g, expected %.17g", name, (long long)i, values[i], expected[i]);
}

static void test_tables_match_the_reference(void **state)
{
    (void)state;
    const ResidueTables *tables = residue_tables();
    expect_floats("atom14_mask", &tables->atom14_mask[0][0], 21 * 14);
    expect_floats("atom14_group_positions", &tables->atom14_group_position[0][0][0], 21 * 14 * 3);
    expect_floats("default_frames", &tables->default_frames[0][0][0][0], 21 * 8 * 16);
    expect_floats("chi_pi_periodic", &tables->chi_pi_periodic[0][0], 21 * 4);
    expect_doubles("atom37_vdw_radius", tables->atom37_vdw_radius, 37);
    expect_doubles("between_res_bond_length_c_n", tables->between_c_n_length, 2);
    expect_doubles("between_res_bond_length_stddev_c_n", tables->between_c_n_length_std, 2);
    expect_doubles("between_res_cos_angles_c_n_ca", tables->between_cos_c_n_ca, 2);
    expect_doubles("between_res_cos_angles_ca_c_n", tables->between_cos_ca_c_n, 2);
    float groups[21 * 14];
    for (int i = 0; i < 21 * 14; i++) groups[i] = (float)(&tables->atom14_group[0][0])[i];
    expect_floats("atom14_group_idx", groups, 21 * 14);
}

static void test_distance_bounds_match_the_reference(void **state)
{
    (void)state;
    static float lower[21 * 14 * 14], upper[21 * 14 * 14], stddev[21 * 14 * 14];
    residue_atom14_bounds(1.5, 12.0, lower, upper, stddev);
    expect_floats("atom14_dists_lower_bound", lower, 21 * 14 * 14);
    expect_floats("atom14_dists_upper_bound", upper, 21 * 14 * 14);
    assert_float_equal(stddev[1], 0.020, 1e-7); /* ALA N-CA */
}

static void test_maps_agree_with_each_other(void **state)
{
    (void)state;
    const ResidueTables *tables = residue_tables();
    int atoms = 0;
    for (int r = 0; r < 21; r++) {
        for (int a = 0; a < 14; a++) {
            if (tables->atom14_mask[r][a] == 0) continue;
            atoms++;
            int wide = tables->atom14_to_atom37[r][a];
            assert_string_equal(tables->atom37_name[wide], tables->atom14_name[r][a]);
            assert_int_equal(tables->atom37_to_atom14[r][wide], a);
            assert_true(tables->atom37_mask[r][wide] == 1);
            assert_int_equal(tables->atom37_group[r][wide], tables->atom14_group[r][a]);
            assert_memory_equal(tables->atom37_group_position[r][wide], tables->atom14_group_position[r][a], 12);
            assert_true(tables->atom14_vdw_radius[r][a] == (float)tables->atom37_vdw_radius[wide]);
            int partner = tables->atom14_swap[r][a];
            assert_int_equal(tables->atom14_swap[r][partner], a);
            assert_int_equal(tables->atom14_ambiguous[r][a] == 1, partner != a);
        }
        for (int chi = 0; chi < 4; chi++) {
            assert_true(tables->group_exists[r][4 + chi] == tables->chi_mask[r][chi]);
            if (tables->chi_mask[r][chi] == 0) continue;
            for (int k = 0; k < 4; k++)
                assert_int_equal(tables->atom14_to_atom37[r][tables->chi_atom14[r][chi][k]],
                                 tables->chi_atom37[r][chi][k]);
            assert_memory_equal(tables->group_base_atom37[r][4 + chi], &tables->chi_atom37[r][chi][1], 12);
        }
    }
    assert_int_equal(atoms, 167); /* heavy atoms of the twenty residues, without OXT */
}

static void test_letters_and_monomers(void **state)
{
    (void)state;
    assert_int_equal(residue_letter_index('A'), 0);
    assert_int_equal(residue_letter_index('V'), 19);
    assert_int_equal(residue_letter_index('X'), RESTYPE_UNKNOWN);
    assert_int_equal(residue_letter_index('U'), RESTYPE_UNKNOWN);
    assert_int_equal(residue_letter_index('\0'), RESTYPE_UNKNOWN);
    assert_int_equal(residue_letter_of_monomer("MSE", 3), 'M');
    assert_int_equal(residue_letter_of_monomer("00C", 3), 'C');
    assert_int_equal(residue_letter_of_monomer("ZZJ", 3), 'A');
    assert_int_equal(residue_letter_of_monomer("QQ9", 3), 'X');
    assert_int_equal(residue_letter_of_monomer("", 0), 'X');
    assert_int_equal(residue_letter_of_monomer("ALAX", 4), 'X');
    assert_int_equal(residue_atom37_index("OXT", 3), 36);
    assert_int_equal(residue_atom37_index("CA", 2), 1);
    assert_int_equal(residue_atom37_index("C", 1), 2);
    assert_int_equal(residue_atom37_index("SE", 2), -1);
    assert_int_equal(residue_atom37_index("", 0), -1);
    const ResidueTables *tables = residue_tables();
    assert_int_equal(tables->letter_to_hhblits['u'], 1);
    assert_int_equal(tables->letter_to_hhblits['-'], 21);
    assert_int_equal(tables->letter_to_hhblits['*'], 255);
    for (int r = 0; r < 20; r++)
        assert_int_equal(tables->hhblits_to_model[tables->letter_to_hhblits[(unsigned char)tables->restype_letter[r]]],
                         r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_match_the_reference),
        cmocka_unit_test(test_distance_bounds_match_the_reference),
        cmocka_unit_test(test_maps_agree_with_each_other),
        cmocka_unit_test(test_letters_and_monomers),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
