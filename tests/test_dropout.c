/* Dropout masks: a pure function of (seed, step, sample, iteration, key, global element), whatever the type, the layout
 * and the rank. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/philox.h"
#include "kernels/cpu/entry.h"

extern const CpuEntry cpu_pointwise_f32[], cpu_pointwise_f64[], cpu_dense_f64[];

enum { S = 8, R = 12, C = 20, COUNT = S * R * C };
static const double RATE = 0.15;

static CpuKernel kernel_of(const CpuEntry *table, OpKind kind)
{
    while (table->run && table->kind != kind) table++;
    assert_non_null(table->run);
    return table->run;
}

static Tensor tensor_of(int64_t d0, int64_t d1, int64_t d2, int shard)
{
    return (Tensor){.dtype = DT_F64, .rank = 3, .shard = (int8_t)shard, .dim = {d0, d1, d2}};
}

static Op dropout_op(int64_t key, int64_t shared_axis)
{
    return (Op){.kind = OP_DROPOUT, .n_in = 2, .n_out = 1, .attr = {.i = {key, shared_axis}, .f = {RATE}}};
}

/* Dropout of ones: kept elements are 1 / (1 - rate). */
static void draw(const RankLayout *layout, const Op *op, const Tensor *t, const int32_t rng[4], double *out)
{
    double ones[COUNT];
    for (int e = 0; e < COUNT; e++) ones[e] = 1;
    OpCall call = {.op = op, .in_tensor = {t}, .out_tensor = {t}, .in = {ones, rng}, .out = {out}};
    assert_int_equal(kernel_of(cpu_pointwise_f64, OP_DROPOUT)(layout, &call), OK);
}

static const RankLayout alone = {.world = 1, .dap = 1, .dp = 1};
static const int32_t rng[4] = {17, 5, 3, 2}; /* seed, step, sample, iteration */

static void test_counter(void **state)
{
    (void)state;
    double out[COUNT];
    Op op = dropout_op(7, -1);
    Tensor t = tensor_of(S, R, C, SHARD_NONE);
    draw(&alone, &op, &t, rng, out);
    for (uint32_t e = 0; e < COUNT; e++) {
        uint32_t counter[4] = {e / 4, 0, 7, 5 * 8 + 2}, key[2] = {17, 3}, word[4];
        philox4x32(counter, key, word);
        bool keep = philox_uniform_f32(word[e % 4]) >= RATE;
        assert_true(fabs(out[e] - (keep ? 1 / (1 - RATE) : 0)) < 1e-15);
    }
}

static void test_rate(void **state)
{
    (void)state;
    double out[COUNT], kept = 0;
    Op op = dropout_op(7, -1);
    Tensor t = tensor_of(S, R, C, SHARD_NONE);
    const int draws = 50;
    for (int step = 0; step < draws; step++) {
        draw(&alone, &op, &t, (int32_t[]){17, step, 3, 0}, out);
        for (int e = 0; e < COUNT; e++) kept += out[e] != 0;
    }
    double n = (double)draws * COUNT, sigma = sqrt(n * RATE * (1 - RATE));
    assert_true(fabs(kept - n * (1 - RATE)) < 5 * sigma);
}

static void test_shared_axis(void **state)
{
    (void)state;
    double out[COUNT];
    Tensor t = tensor_of(S, R, C, SHARD_NONE);
    Op rows = dropout_op(7, 0), columns = dropout_op(7, 1);
    draw(&alone, &rows, &t, rng, out);
    for (int e = R * C; e < COUNT; e++) assert_true(out[e] == out[e % (R * C)]);
    draw(&alone, &columns, &t, rng, out);
    for (int e = 0; e < COUNT; e++) assert_true(out[e] == out[e / (R * C) * (R * C) + e % C]);
}

/* Every rank draws its slice of the mask that one rank draws for the whole. */
static void check_slices(int64_t shared_axis, int axis, int dap)
{
    double whole[COUNT], slice[COUNT];
    Op op = dropout_op(9, shared_axis);
    Tensor t = tensor_of(S, R, C, SHARD_NONE);
    draw(&alone, &op, &t, rng, whole);
    for (int rank = 0; rank < dap; rank++) {
        RankLayout layout = {.world = dap, .rank = rank, .dap = dap, .dap_rank = rank, .dp = 1};
        Tensor local = tensor_of(S, R, C, axis);
        local.dim[axis] /= dap;
        draw(&layout, &op, &local, rng, slice);
        for (int64_t e = 0; e < tensor_count(&local); e++) {
            int64_t i[3] = {e / (local.dim[1] * local.dim[2]), e / local.dim[2] % local.dim[1], e % local.dim[2]};
            i[axis] += rank * local.dim[axis];
            assert_true(slice[e] == whole[(i[0] * R + i[1]) * C + i[2]]);
        }
    }
}

static void test_slices(void **state)
{
    (void)state;
    for (int shared = -1; shared < 2; shared++)
        for (int axis = 0; axis < 2; axis++)
            for (int dap = 2; dap <= 4; dap *= 2) check_slices(shared, axis, dap);
}

/* float and double keep the same elements; the residual form adds the same. */
static void test_forms_agree(void **state)
{
    (void)state;
    double out[COUNT], residual[COUNT], zeros[COUNT] = {0}, ones_f64[COUNT];
    float ones[COUNT], low[COUNT];
    for (int e = 0; e < COUNT; e++) ones[e] = 1, ones_f64[e] = 1;
    Op op = dropout_op(7, 1), add = op;
    Tensor t = tensor_of(S, R, C, SHARD_NONE);
    draw(&alone, &op, &t, rng, out);
    OpCall call = {.op = &op, .in_tensor = {&t}, .out_tensor = {&t}, .in = {ones, rng}, .out = {low}};
    assert_int_equal(kernel_of(cpu_pointwise_f32, OP_DROPOUT)(&alone, &call), OK);
    add.kind = OP_RESIDUAL_DROPOUT;
    add.n_in = 3;
    OpCall sum = {
        .op = &add, .in_tensor = {&t, &t}, .out_tensor = {&t}, .in = {zeros, ones_f64, rng}, .out = {residual}};
    assert_int_equal(kernel_of(cpu_pointwise_f64, OP_RESIDUAL_DROPOUT)(&alone, &sum), OK);
    for (int e = 0; e < COUNT; e++) {
        assert_true((low[e] != 0) == (out[e] != 0));
        assert_true(residual[e] == out[e]);
    }
}

/* Each of seed, step, sample, iteration and key changes the mask. */
static void test_streams_differ(void **state)
{
    (void)state;
    double out[COUNT], other[COUNT];
    Tensor t = tensor_of(S, R, C, SHARD_NONE);
    Op op = dropout_op(7, -1);
    draw(&alone, &op, &t, rng, out);
    for (int what = 0; what < 5; what++) {
        int32_t changed[4] = {rng[0], rng[1], rng[2], rng[3]};
        Op changed_op = dropout_op(what == 4 ? 8 : 7, -1);
        if (what < 4) changed[what]++;
        draw(&alone, &changed_op, &t, changed, other);
        int same = 0;
        for (int e = 0; e < COUNT; e++) same += (out[e] != 0) == (other[e] != 0);
        double expected = RATE * RATE + (1 - RATE) * (1 - RATE); /* of two independent masks */
        assert_true(fabs((double)same / COUNT - expected) < 0.05);
    }
}

/* LINEAR_GATE_DX draws over dy what DROPOUT in front of it would, and leaves the result; delta: sums over heads of dx
 * x.
 */
static void test_in_front_of_a_gate(void **state)
{
    (void)state;
    enum { I = 8, HEADS = 4, ROWS = S * R };
    static double dy[COUNT], w[C * I], g[ROWS * I], x[ROWS * I], d[COUNT], product[ROWS * I], dg[ROWS * I],
        dx[ROWS * I];
    static double dropped[COUNT], delta[ROWS * HEADS], joined_dg[ROWS * I], joined_dx[ROWS * I];
    for (int e = 0; e < COUNT; e++) dy[e] = sin(e + 1.0);
    for (int e = 0; e < C * I; e++) w[e] = cos(3.0 * e);
    for (int e = 0; e < ROWS * I; e++) g[e] = 2 * sin(5.0 * e), x[e] = cos(7.0 * e);
    Tensor wide = tensor_of(S, R, C, SHARD_NONE), t = tensor_of(S, R, I, SHARD_NONE),
           sums = tensor_of(S, R, HEADS, SHARD_NONE);
    Tensor matrix = {.dtype = DT_F64, .rank = 2, .shard = SHARD_NONE, .dim = {C, I}};
    Op op = dropout_op(7, 1);
    OpCall call = {.op = &op, .in_tensor = {&wide}, .out_tensor = {&wide}, .in = {dy, rng}, .out = {d}};
    assert_int_equal(kernel_of(cpu_pointwise_f64, OP_DROPOUT)(&alone, &call), OK);
    op = (Op){.kind = OP_LINEAR_DX, .n_in = 2, .n_out = 1};
    call = (OpCall){.op = &op, .in_tensor = {&wide, &matrix}, .out_tensor = {&t}, .in = {d, w}, .out = {product}};
    assert_int_equal(kernel_of(cpu_dense_f64, OP_LINEAR_DX)(&alone, &call), OK);
    op = (Op){.kind = OP_GATE_BWD, .n_in = 3, .n_out = 2};
    call =
        (OpCall){.op = &op, .in_tensor = {&t, &t, &t}, .out_tensor = {&t, &t}, .in = {product, g, x}, .out = {dg, dx}};
    assert_int_equal(kernel_of(cpu_pointwise_f64, OP_GATE_BWD)(&alone, &call), OK);
    op = dropout_op(7, 1);
    op.kind = OP_LINEAR_GATE_DX, op.n_in = 5, op.n_out = 4, op.attr.i[2] = HEADS;
    call = (OpCall){.op = &op,
                    .in_tensor = {&wide, &matrix, &t, &t},
                    .out_tensor = {&t, &t, &sums, &wide},
                    .in = {dy, w, g, x, rng},
                    .out = {joined_dg, joined_dx, delta, dropped}};
    assert_int_equal(kernel_of(cpu_dense_f64, OP_LINEAR_GATE_DX)(&alone, &call), OK);
    for (int e = 0; e < COUNT; e++) assert_true(dropped[e] == d[e]);
    for (int e = 0; e < ROWS * I; e++)
        assert_true(fabs(joined_dg[e] - dg[e]) < 1e-12 && fabs(joined_dx[e] - dx[e]) < 1e-12);
    for (int h = 0; h < ROWS * HEADS; h++) {
        double sum = 0;
        for (int e = h * I / HEADS; e < (h + 1) * I / HEADS; e++) sum += dx[e] * x[e];
        assert_true(fabs(delta[h] - sum) < 1e-12);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counter),
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_shared_axis),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_forms_agree),
        cmocka_unit_test(test_streams_differ),
        cmocka_unit_test(test_in_front_of_a_gate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
