/* Properties of the structure module's ops that no golden file states: what a rigid motion of everything must not
 * change. */
#include "tests/small_run.h"

#include "model/structure.h"

enum { N = 6, HEADS = 3, CHANNELS = 4, QK = 2, VALUES = 5, C_S = 8, C_Z = 6 };

static const double motion[7] = {0.5, -0.5, 0.7, 0.1,
                                 3.0, -2.0, 7.0}; /* quaternion (not yet of length one), translation */

static void normalize(double *quat)
{
    double norm = sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]);
    for (int k = 0; k < 4; k++) quat[k] /= norm;
}

static void quat_product(const double *a, const double *b, double *c)
{
    c[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3];
    c[1] = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2];
    c[2] = a[0] * b[2] + a[2] * b[0] + a[3] * b[1] - a[1] * b[3];
    c[3] = a[0] * b[3] + a[3] * b[0] + a[1] * b[2] - a[2] * b[1];
}

/* x rotated by a unit quaternion: q (0, x) q* */
static void rotate(const double *q, const double *x, double *y)
{
    double pure[4] = {0, x[0], x[1], x[2]}, conjugate[4] = {q[0], -q[1], -q[2], -q[3]}, half[4], whole[4];
    quat_product(q, pure, half);
    quat_product(half, conjugate, whole);
    for (int a = 0; a < 3; a++) y[a] = whole[1 + a];
}

static void make_frames(double *frames, int count)
{
    small_fill(frames, 7 * count, 0.3);
    for (int i = 0; i < count; i++) {
        normalize(frames + 7 * i);
        for (int a = 4; a < 7; a++) frames[7 * i + a] *= 5;
    }
}

static void move_frames(double *frames, int count)
{
    double g[7];
    for (int k = 0; k < 7; k++) g[k] = motion[k];
    normalize(g);
    for (int i = 0; i < count; i++) {
        double *f = frames + 7 * i, quat[4], trans[3];
        quat_product(g, f, quat);
        rotate(g, f + 4, trans);
        for (int k = 0; k < 4; k++) f[k] = quat[k];
        for (int a = 0; a < 3; a++) f[4 + a] = trans[a] + g[4 + a];
    }
}

static void assert_close(const double *a, const double *b, int count, double tolerance)
{
    for (int i = 0; i < count; i++)
        if (!(fabs(a[i] - b[i]) <= tolerance)) fail_msg("element %d: %.15g and %.15g", i, a[i], b[i]);
}

static void test_points_return(void **state)
{
    (void)state;
    enum { POINTS = 4 };
    SmallRun run;
    Program *p = small_record(&run);
    Val f = prog_input(p, "f", DT_F32, 2, (int64_t[]){N, 7}),
        x = prog_input(p, "x", DT_F32, 2, (int64_t[]){N, 3 * POINTS});
    Val world = prog_add(p, OP_POINTS_TO_GLOBAL, 2, (Val[]){f, x}, NULL);
    prog_output(p, "world", world);
    prog_output(p, "local", prog_add(p, OP_POINTS_TO_LOCAL, 2, (Val[]){f, world}, NULL));
    small_ready(&run);
    double frames[7 * N], points[3 * POINTS * N], local[3 * POINTS * N], out[3 * POINTS * N];
    make_frames(frames, N);
    small_fill(points, 3 * POINTS * N, 0.7);
    small_write(&run, "f", frames, 7 * N);
    small_write(&run, "x", points, 3 * POINTS * N);
    small_go(&run);
    small_output(&run, "local", local, 3 * POINTS * N);
    small_output(&run, "world", out, 3 * POINTS * N);
    for (int i = 0; i < N; i++) /* x-, y-, z-block in, points out; and the quaternion turns as q x q* does */
        for (int k = 0; k < POINTS; k++) {
            const double *block = points + 3 * POINTS * i + k;
            double x3[3] = {block[0], block[POINTS], block[2 * POINTS]}, y3[3];
            assert_close(local + 3 * (POINTS * i + k), x3, 3, 1e-13);
            rotate(frames + 7 * i, x3, y3);
            for (int a = 0; a < 3; a++) y3[a] += frames[7 * i + 4 + a];
            assert_close(out + 3 * (POINTS * i + k), y3, 3, 1e-13);
        }
    small_free(&run);
}

static void test_update_by_nothing(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    Val s = prog_input(p, "u", DT_F32, 2, (int64_t[]){N, 6}), f = prog_input(p, "f", DT_F32, 2, (int64_t[]){N, 7});
    prog_output(p, "moved", prog_add(p, OP_FRAME_UPDATE, 2, (Val[]){f, s}, NULL));
    prog_output(p, "identity", prog_add(p, OP_FRAME_IDENTITY, 1, &s, NULL));
    small_ready(&run);
    double frames[7 * N], out[7 * N], identity[7] = {1};
    make_frames(frames, N);
    small_write(&run, "f", frames, 7 * N);
    small_go(&run);
    small_output(&run, "moved", out, 7 * N);
    assert_close(out, frames, 7 * N, 1e-15);
    small_output(&run, "identity", out, 7 * N);
    for (int i = 0; i < N; i++) assert_close(out + 7 * i, identity, 7, 0);
    small_free(&run);
}

/* Algorithm 22 sees frames through relative positions and local coordinates alone. */
static void test_ipa_is_invariant(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    ModelConfig config;
    assert_int_equal(model_config_preset("tiny", &config), OK);
    config.n_res = N;
    config.c_s = C_S;
    config.c_z = C_Z;
    config.sm_heads = HEADS;
    config.sm_c_hidden_ipa = CHANNELS;
    config.sm_qk_points = QK;
    config.sm_v_points = VALUES;
    Val s = prog_input(p, "s", DT_F32, 2, (int64_t[]){N, C_S}),
        z = prog_input(p, "z", DT_F32, 3, (int64_t[]){N, N, C_Z});
    Val f = prog_input(p, "f", DT_F32, 2, (int64_t[]){N, 7}), mask = prog_input(p, "mask", DT_F32, 1, (int64_t[]){N});
    prog_output(p, "update", structure_ipa(p, &config, s, z, structure_pair_bias(p, &config, z), f, mask));
    small_ready(&run);
    double values[4096], frames[7 * N], first[N * C_S], second[N * C_S];
    for (int k = 0; k < run.registry->n_params; k++) {
        assert_in_range(run.registry->param[k].count, 1, 4096);
        small_fill(values, run.registry->param[k].count, 0.1 * k);
        small_write_param(&run, run.registry->param[k].name, values, run.registry->param[k].count);
    }
    small_fill(values, N * N * C_Z, 0.2);
    small_write(&run, "s", values, N * C_S);
    small_write(&run, "z", values, N * N * C_Z);
    small_write(&run, "mask", (double[N]){1, 1, 0, 1, 1, 1}, N);
    make_frames(frames, N);
    small_write(&run, "f", frames, 7 * N);
    small_go(&run);
    small_output(&run, "update", first, N * C_S);
    move_frames(frames, N);
    small_write(&run, "f", frames, 7 * N);
    small_go(&run);
    small_output(&run, "update", second, N * C_S);
    assert_true(fabs(first[0]) > 1e-3);
    assert_close(second, first, N * C_S, 1e-10);
    frames[4] += 0.5; /* one residue moved alone is seen */
    small_write(&run, "f", frames, 7 * N);
    small_go(&run);
    small_output(&run, "update", second, N * C_S);
    assert_true(fabs(second[0] - first[0]) > 1e-6);
    small_free(&run);
}

/* FAPE is invariant under a motion of the prediction, and sqrt(eps) / unit where prediction and truth agree. */
static void test_fape_is_invariant(void **state)
{
    (void)state;
    SmallRun run;
    Program *p = small_record(&run);
    Val in[4] = {prog_input(p, "frames", DT_F32, 3, (int64_t[]){1, N, 7}),
                 prog_input(p, "target", DT_F32, 3, (int64_t[]){N, 4, 4}),
                 prog_input(p, "mask", DT_F32, 1, (int64_t[]){N}), prog_input(p, "use_clamped", DT_F32, 0, NULL)};
    prog_output(p, "loss", prog_add(p, OP_LOSS_FAPE_BACKBONE, 4, in, &(OpAttr){.f = {10, 10, 1e-4}}));
    small_ready(&run);
    double frames[7 * N], target[16 * N] = {0}, mask[N] = {1, 1, 1, 0, 1, 1}, use_clamped = 1, loss[3];
    make_frames(frames, N);
    for (int i = 0; i < N; i++)
        for (int a = 0; a < 3; a++) {
            double unit[3] = {a == 0, a == 1, a == 2}, column[3];
            rotate(frames + 7 * i, unit, column);
            for (int b = 0; b < 3; b++) target[16 * i + 4 * b + a] = column[b];
            target[16 * i + 4 * a + 3] = frames[7 * i + 4 + a];
        }
    small_write(&run, "target", target, 16 * N);
    small_write(&run, "mask", mask, N);
    small_write(&run, "use_clamped", &use_clamped, 1);
    for (int step = 0; step < 3; step++) {
        if (step == 1) move_frames(frames, N);
        if (step == 2) frames[5] += 2.0;
        small_write(&run, "frames", frames, 7 * N);
        small_go(&run);
        small_output(&run, "loss", &loss[step], 1);
    }
    double count = 5, agreed = 1e-2 / 10 * count * count / ((count + 1e-4) * (count + 1e-4));
    assert_close(&loss[0], &agreed, 1, 1e-12);
    assert_close(&loss[1], &agreed, 1, 1e-12);
    assert_true(loss[2] > 10 * agreed);
    small_free(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_points_return),
        cmocka_unit_test(test_update_by_nothing),
        cmocka_unit_test(test_ipa_is_invariant),
        cmocka_unit_test(test_fape_is_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
