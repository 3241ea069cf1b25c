/* Rules of the losses that the golden files do not reach: terms that are not finite, weights of zero, samples without a
 * known resolution, indices out of range. */
#include <stdlib.h>
#include <string.h>

#include "tests/small_run.h"

#include "model/structure.h"

enum { N = 5, BINS = 6 };

static Val scalar_param(Program *p, const char *name)
{
    return prog_param(p, name, 0, NULL, INIT_ZERO, 0);
}

static bool same(double x, double expected)
{
    return x == expected || (isnan(x) && isnan(expected));
}

/* total = sqrt(min(length, crop)) sum w l over finite terms; no gradient is one when there are others that count */
static void test_total(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    Val in[4] = {prog_input(p, "seq_length", DT_I32, 0, NULL), scalar_param(p, "a"), scalar_param(p, "b"),
                 scalar_param(p, "c")};
    Val out[OP_MAX_OUT];
    prog_add_multi(p, OP_LOSS_TOTAL, 4, in, &(OpAttr){.i = {16}, .f = {2.0, 0.0, 0.5}}, out);
    prog_output(p, "total", out[0]);
    prog_output(p, "weighted", out[1]);
    p->loss = out[0];
    small_ready(&run);
    static const struct {
        double length, a, b, c, weighted, scale;
        double da, dc;
    } cases[] = {
        {9, 1, 5, 4, 4, 3, 6, 1.5},     {100, 1, 5, 4, 4, 4, 8, 2}, /* longer than the crop */
        {9, NAN, 5, 4, 2, 3, NAN, NAN}, {9, 1, 5, INFINITY, 2, 3, NAN, NAN},
        {0, NAN, 5, 4, 2, 0, NAN, NAN}, {9, 1, NAN, 4, 4, 3, 6, 1.5},
        {0, 1, 5, 4, 4, 0, 0, 0},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        double total, weighted, da, db, dc;
        small_write(&run, "seq_length", &cases[k].length, 1);
        small_write_param(&run, "a", &cases[k].a, 1);
        small_write_param(&run, "b", &cases[k].b, 1);
        small_write_param(&run, "c", &cases[k].c, 1);
        small_go(&run);
        small_output(&run, "total", &total, 1);
        small_output(&run, "weighted", &weighted, 1);
        small_gradient(&run, "a", &da, 1);
        small_gradient(&run, "b", &db, 1);
        small_gradient(&run, "c", &dc, 1);
        assert_true(weighted == cases[k].weighted && total == cases[k].weighted * cases[k].scale);
        assert_true(same(da, cases[k].da) && db == 0 && same(dc, cases[k].dc));
    }
    small_free(&run);
}

/* A loss that is not finite: counted as zero, and the gradient says so, for the norm to skip the update. */
static void test_infinite_loss_skips_the_update(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    Val logits = prog_param(p, "logits", 3, (int64_t[]){2, N, BINS}, INIT_ZERO, 0);
    Val msa = prog_input(p, "true_msa", DT_I32, 2, (int64_t[]){2, N});
    Val mask = prog_input(p, "mask", DT_F32, 2, (int64_t[]){2, N});
    Val term = prog_add(p, OP_LOSS_MASKED_MSA, 3, (Val[]){logits, msa, mask}, &(OpAttr){.f = {1e-8}});
    Val length = prog_input(p, "seq_length", DT_I32, 0, NULL);
    p->loss = prog_add(p, OP_LOSS_TOTAL, 2, (Val[]){length, term}, &(OpAttr){.i = {N}, .f = {1.0}});
    prog_output(p, "term", term);
    prog_output(p, "total", p->loss);
    small_ready(&run);
    double values[2 * N * BINS], ones[2 * N], gradient[2 * N * BINS], total, found, five = N;
    for (int i = 0; i < 2 * N; i++) ones[i] = 1;
    small_fill(values, 2 * N * BINS, 0.4);
    values[7] = NAN;
    small_write_param(&run, "logits", values, 2 * N * BINS);
    small_write(&run, "mask", ones, 2 * N);
    small_write(&run, "seq_length", &five, 1);
    small_go(&run);
    small_output(&run, "term", &found, 1);
    small_output(&run, "total", &total, 1);
    small_gradient(&run, "logits", gradient, 2 * N * BINS);
    assert_true(isnan(found) && total == 0);
    for (int i = 0; i < 2 * N * BINS; i++) assert_true(isnan(gradient[i]));
    ones[1] = 0; /* the position of the NaN drops out of the mask: it must not be seen */
    small_write(&run, "mask", ones, 2 * N);
    small_go(&run);
    small_output(&run, "term", &found, 1);
    small_gradient(&run, "logits", gradient, 2 * N * BINS);
    assert_true(isfinite(found) && found > 0);
    for (int i = 0; i < 2 * N * BINS; i++) assert_true(isfinite(gradient[i]));
    assert_true(gradient[0] != 0 && gradient[7] == 0);
    small_free(&run);
}

/* pLDDT and experimentally resolved count between 0.1 and 3.0 A only; NMR entries have no resolution. */
static void test_resolution(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    ModelConfig config;
    assert_int_equal(model_config_preset("tiny", &config), OK);
    config.n_res = N;
    Val lddt = prog_param(p, "lddt", 2, (int64_t[]){N, 50}, INIT_ZERO, 0);
    Val resolved = prog_param(p, "resolved", 2, (int64_t[]){N, 37}, INIT_ZERO, 0);
    Val x = prog_input(p, "x", DT_F32, 3, (int64_t[]){N, 37, 3});
    Val a = loss_plddt(p, &config, lddt, x), b = loss_resolved(p, &config, resolved);
    prog_output(p, "a", a);
    prog_output(p, "b", b);
    p->loss = prog_add(p, OP_ADD, 2, (Val[]){a, b}, NULL);
    small_ready(&run);
    double values[N * 37 * 3], ones[N * 37], zeros[N * 50] = {0};
    small_fill(values, N * 37 * 3, 0.9);
    for (int i = 0; i < N * 37; i++) ones[i] = 1;
    small_write(&run, "x", values, N * 37 * 3);
    small_write(&run, "all_atom_positions", values, N * 37 * 3);
    small_write(&run, "all_atom_mask", ones, N * 37);
    small_write(&run, "atom37_atom_exists", ones, N * 37);
    small_write_param(&run, "lddt", zeros, N * 50);
    small_write_param(&run, "resolved", zeros, N * 37);
    static const double resolutions[] = {NAN, 0.05, 3.01, 0.1, 3.0, 1.9};
    for (size_t k = 0; k < sizeof resolutions / sizeof *resolutions; k++) {
        double loss[2], gradient[N * 50];
        bool counts = k >= 3;
        small_write(&run, "resolution", &resolutions[k], 1);
        small_go(&run);
        small_output(&run, "a", &loss[0], 1);
        small_output(&run, "b", &loss[1], 1);
        small_gradient(&run, "lddt", gradient, N * 50);
        assert_true(fabs(loss[0] - (counts ? log(50.0) : 0)) < 1e-6); /* flat logits */
        assert_true(fabs(loss[1] - (counts ? log(2.0) : 0)) < 1e-6);
        assert_int_equal(gradient[0] != 0, counts);
        assert_true(!counts || gradient[49] < 0); /* positions agree: the last bin is the right one */
    }
    small_free(&run);
}

static void expect_refused(SmallRun *run, const char *buffer, double value)
{
    double values[N] = {0};
    values[2] = value;
    small_write(run, buffer, values, N);
    assert_int_equal(exec_run(run->exec), ERR_INPUT);
    values[2] = 0;
    small_write(run, buffer, values, N);
    small_go(run);
}

/* Indices come from files. */
static void test_indices_out_of_range_are_refused(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    ModelConfig config;
    assert_int_equal(model_config_preset("tiny", &config), OK);
    config.n_res = N;
    config.n_clust = 1;
    Val angles = prog_input(p, "angles", DT_F32, 4, (int64_t[]){1, N, 7, 2});
    Val logits = prog_input(p, "logits", DT_F32, 3, (int64_t[]){1, N, 23});
    prog_output(p, "torsion", loss_torsion(p, &config, angles, angles));
    prog_output(p, "msa", loss_masked_msa(p, &config, logits));
    small_ready(&run);
    expect_refused(&run, "aatype", 21);
    expect_refused(&run, "aatype", -1);
    expect_refused(&run, "true_msa", 23);
    expect_refused(&run, "true_msa", -5);
    small_free(&run);
}

static int count_kind(const Program *p, OpKind kind)
{
    int count = 0;
    for (int i = 0; i < p->n_ops; i++) count += p->op[i].kind == kind;
    return count;
}

static Program *whole_tail(SmallRun *run, double weight)
{
    Program *p = small_record(run);
    ModelConfig config;
    StructureOut structure;
    HeadsOut heads;
    assert_int_equal(model_config_preset("tiny", &config), OK);
    config.w_violation = config.w_resolved = weight;
    const int64_t n = config.n_res;
    Val s = prog_input(p, "s", DT_F32, 2, (int64_t[]){n, config.c_s});
    Val z = prog_input(p, "z", DT_F32, 3, (int64_t[]){n, n, config.c_z});
    Val m = prog_input(p, "m", DT_F32, 3, (int64_t[]){config.n_clust, n, config.c_m});
    Val aatype = prog_input(p, "aatype", DT_I32, 1, &n), mask = prog_input(p, "seq_mask", DT_F32, 1, &n);
    structure_module(p, &config, s, z, aatype, mask, "out.", &structure);
    model_heads(p, &config, &structure, s, m, z, &heads);
    model_losses(p, &config, &structure, &heads);
    small_ready(run);
    return run->planned;
}

/* A term of weight zero costs nothing unless a tap asks for it, and its head still has (zero) gradients. */
static void test_weight_zero_is_not_computed(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = whole_tail(&run, 0);
    assert_int_equal(count_kind(p, OP_LOSS_VIOLATION), 0);
    assert_int_equal(count_kind(p, OP_LOSS_RESOLVED), 0);
    assert_int_equal(count_kind(p, OP_LOSS_FAPE_BACKBONE_BWD), 1);
    assert_true(registry_find_param(run.registry, "auxiliary_heads.experimentally_resolved.linear.weight") >= 0);
    small_free(&run);
    p = whole_tail(&run, 1);
    assert_int_equal(count_kind(p, OP_LOSS_VIOLATION_BWD), 1);
    assert_int_equal(count_kind(p, OP_LOSS_RESOLVED_BWD), 1);
    small_free(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_total),
        cmocka_unit_test(test_infinite_loss_skips_the_update),
        cmocka_unit_test(test_resolution),
        cmocka_unit_test(test_indices_out_of_range_are_refused),
        cmocka_unit_test(test_weight_zero_is_not_computed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
