/* Shape and cost rules of the trunk's ops: costs against formulas, sharding of outputs, and misuse: whatever the
 * shapes, a rule answers with a shape or with an error, never with a crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/program.h"

typedef struct Fixture {
    Registry *registry;
    Program *p;
    int inputs;
} Fixture;

static Fixture begin(void)
{
    Fixture f = {0};
    assert_int_equal(registry_create(&f.registry), OK);
    assert_int_equal(prog_create(f.registry, &f.p), OK);
    return f;
}

static void end(Fixture *f)
{
    prog_destroy(&f->p);
    registry_destroy(&f->registry);
}

static Val input(Fixture *f, DType dtype, int shard, int rank, const int64_t *dim)
{
    char name[24];
    snprintf(name, sizeof name, "x%d", f->inputs++);
    Val v = prog_input(f->p, name, dtype, rank, dim);
    assert_true(v != VAL_NONE);
    f->p->value[v].t.shard = (int8_t)shard;
    return v;
}

#define REAL_IN(f, shard, ...)                                                                                         \
    input(f, DT_F32, shard, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__})

static double flops_of_last(Fixture *f)
{
    Cost cost;
    assert_int_equal(prog_status(f->p), OK);
    prog_op_cost(f->p, &f->p->op[f->p->n_ops - 1], &cost);
    assert_true(cost.bytes > 0);
    return cost.flops;
}

static void test_costs(void **state)
{
    (void)state;
    Fixture f = begin();
    Val x = REAL_IN(&f, SHARD_NONE, 6, 7, 16), w = REAL_IN(&f, SHARD_NONE, 24, 16);
    prog_add(f.p, OP_LINEAR, 2, (Val[]){x, w}, NULL);
    assert_true(flops_of_last(&f) == 2.0 * 42 * 16 * 24);
    Cost cost;
    prog_op_cost(f.p, &f.p->op[0], &cost);
    assert_true(cost.bytes == 4.0 * (42 * 16 + 24 * 16 + 42 * 24));

    Val dy = REAL_IN(&f, SHARD_NONE, 6, 7, 24);
    prog_add(f.p, OP_LINEAR_DW, 2, (Val[]){dy, x}, NULL);
    assert_true(flops_of_last(&f) == 2.0 * 42 * 16 * 24);

    Val q = REAL_IN(&f, SHARD_NONE, 5, 8, 12), k = REAL_IN(&f, SHARD_NONE, 5, 9, 12);
    prog_add(f.p, OP_ATTENTION, 3, (Val[]){q, k, k}, &(OpAttr){.i = {3}, .f = {1, 1e9}});
    assert_true(flops_of_last(&f) == 2 * 2.0 * 5 * 8 * 9 * 12 + 6.0 * 5 * 3 * 8 * 9);

    Val a = REAL_IN(&f, SHARD_NONE, 4, 5, 6), b = REAL_IN(&f, SHARD_NONE, 7, 5, 6);
    prog_add(f.p, OP_TRI_PRODUCT, 2, (Val[]){a, b}, &(OpAttr){.i = {0, 1}});
    assert_true(flops_of_last(&f) == 2.0 * 4 * 7 * 5 * 6);

    Val u = REAL_IN(&f, SHARD_NONE, 8, 4, 3), v = REAL_IN(&f, SHARD_NONE, 8, 5, 3);
    prog_add(f.p, OP_OUTER_PRODUCT, 2, (Val[]){u, v}, NULL);
    assert_true(flops_of_last(&f) == 2.0 * 8 * 4 * 3 * 5 * 3);
    end(&f);
}

static int shard_of(const Fixture *f, Val v)
{
    assert_int_equal(prog_status(f->p), OK);
    return prog_tensor(f->p, v)->shard;
}

static void test_sharding(void **state)
{
    (void)state;
    Fixture f = begin();
    /* outgoing: rows here, the other operand whole; incoming: columns here */
    Val here = REAL_IN(&f, 0, 4, 8, 6), whole = REAL_IN(&f, SHARD_NONE, 8, 8, 6), columns = REAL_IN(&f, 1, 8, 4, 6);
    assert_int_equal(shard_of(&f, prog_add(f.p, OP_TRI_PRODUCT, 2, (Val[]){here, whole}, &(OpAttr){.i = {0, 1}})), 0);
    assert_int_equal(shard_of(&f, prog_add(f.p, OP_TRI_PRODUCT, 2, (Val[]){whole, columns}, &(OpAttr){.i = {1, 0}})),
                     1);
    /* summed over the sharded axis of both: partial sums, replicated */
    assert_int_equal(shard_of(&f, prog_add(f.p, OP_TRI_PRODUCT, 2, (Val[]){here, here}, &(OpAttr){.i = {1, 0}})),
                     SHARD_NONE);
    Val m = REAL_IN(&f, 1, 5, 4, 2), all = REAL_IN(&f, SHARD_NONE, 5, 8, 2);
    assert_int_equal(shard_of(&f, prog_add(f.p, OP_OUTER_PRODUCT, 2, (Val[]){m, all}, NULL)), 0);
    Val swapped = prog_add(f.p, OP_TRANSPOSE, 1, &m, &(OpAttr){.i = {1, 0, 2}});
    assert_int_equal(shard_of(&f, swapped), 0);
    Val split = prog_add(f.p, OP_RESHAPE, 1, &swapped, &(OpAttr){.i = {4, 8, 5, 1, 2}});
    assert_int_equal(shard_of(&f, split), 0);
    assert_int_equal(prog_tensor(f.p, split)->dim[0], 4); /* the attribute's 8 is the extent over the group */
    Val query = REAL_IN(&f, 0, 4, 8, 6), lse[OP_MAX_OUT];
    prog_add_multi(f.p, OP_ATTENTION, 3, (Val[]){query, query, query}, &(OpAttr){.i = {2}}, lse);
    assert_int_equal(shard_of(&f, lse[0]), 0);
    assert_int_equal(shard_of(&f, lse[1]), 0);
    end(&f);
}

static void refused(OpKind kind, int n, const Tensor *t, const OpAttr *attr)
{
    Fixture f = begin();
    Val in[OP_MAX_IN];
    for (int i = 0; i < n; i++) in[i] = input(&f, t[i].dtype, t[i].shard, t[i].rank, t[i].dim);
    assert_true(prog_add(f.p, kind, n, in, attr) == VAL_NONE);
    assert_int_equal(prog_status(f.p), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), op_def(kind)->name));
    end(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    const Tensor matrix = {DT_F32, 2, SHARD_NONE, {3, 4}}, other = {DT_F32, 2, SHARD_NONE, {5, 3}};
    const Tensor by_channel = {DT_F32, 2, 1, {3, 4}}, rows = {DT_F32, 2, 0, {3, 4}};
    refused(OP_LINEAR, 2, (Tensor[]){matrix, other}, NULL);
    refused(OP_LINEAR, 2, (Tensor[]){by_channel, matrix}, NULL);
    refused(OP_ADD, 2, (Tensor[]){matrix, rows}, NULL);
    refused(OP_SLICE, 1, (Tensor[]){matrix}, &(OpAttr){.i = {1, 2, 3}});
    refused(OP_SLICE, 1, (Tensor[]){rows}, &(OpAttr){.i = {0, 0, 1}});
    refused(OP_TRANSPOSE, 1, (Tensor[]){matrix}, &(OpAttr){.i = {0, 0}});
    refused(OP_RESHAPE, 1, (Tensor[]){matrix}, &(OpAttr){.i = {1, 11}});
    refused(OP_LAYER_NORM, 1, (Tensor[]){matrix}, NULL);
    refused(OP_SOFTMAX, 1, (Tensor[]){by_channel}, NULL);
}

/* splitmix64 (Steele et al. 2014) */
static int64_t below(uint64_t *seed, int64_t limit)
{
    uint64_t z = *seed += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (int64_t)((z ^ (z >> 31)) % (uint64_t)limit);
}

/* A tensor out of few shapes, so that some of them fit each other. */
static Tensor random_tensor(uint64_t *seed)
{
    static const int64_t extents[] = {1, 2, 4, 7};
    static const DType types[] = {DT_F32, DT_F32, DT_F32, DT_I32, DT_BF16, DT_F64};
    Tensor t = {.dtype = types[below(seed, 6)], .rank = (int8_t)below(seed, 6), .shard = SHARD_NONE};
    for (int axis = 0; axis < t.rank; axis++) t.dim[axis] = extents[below(seed, 4)];
    if (t.rank && below(seed, 3) == 0) t.shard = (int8_t)below(seed, t.rank);
    return t;
}

static void misuse(OpKind kind, uint64_t *seed, int64_t *accepted)
{
    Fixture f = begin();
    Op op = {.kind = kind, .n_in = (int16_t)below(seed, 10)};
    for (int i = 0; i < OP_MAX_IN; i++) op.in[i] = VAL_NONE;
    for (int i = 0; i < op.n_in; i++) {
        if (below(seed, 6) == 0) continue;
        Tensor t = random_tensor(seed);
        op.in[i] = input(&f, t.dtype, t.shard, t.rank, t.dim);
    }
    for (int i = 0; i < ATTR_INTS; i++) op.attr.i[i] = below(seed, 10) - 2;
    Tensor out[OP_MAX_OUT] = {0};
    int n_out = 0;
    Status status = op_def(kind)->infer(f.p, &op, out, &n_out);
    assert_true(status == OK || status == ERR_INTERNAL);
    if (status == OK) {
        assert_in_range(n_out, 1, OP_MAX_OUT);
        ++*accepted;
    }
    end(&f);
}

static bool of_trunk(OpKind kind)
{
    return kind <= OP_MASK_ANY;
}

static void test_misuse(void **state)
{
    (void)state;
    uint64_t seed = 1;
    int64_t accepted = 0;
    for (int kind = 0; kind < OP_COUNT; kind++)
        for (int round = 0; of_trunk((OpKind)kind) && round < 300; round++) misuse((OpKind)kind, &seed, &accepted);
    assert_true(accepted > 100); /* not everything is refused at the first look */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_costs),
        cmocka_unit_test(test_sharding),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_misuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
