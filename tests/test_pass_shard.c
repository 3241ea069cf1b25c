/* Sharding: the collectives of the workload's table, their gradients, and what cannot be sharded. */
#include "tests/pass_program.h"

#include "engine/backend.h"

static const Switches dap2 = {.dap = 2, .dp = 1};

static Val reshard(Program *p, Val x, int axis)
{
    return prog_add(p, OP_RESHARD, 1, &x, &(OpAttr){.i = {axis}});
}

static Val linear(Program *p, const char *name, Val x, int64_t out)
{
    Val w = prog_param(p, name, 2, (int64_t[]){out, tensor_last(prog_tensor(p, x))}, INIT_NORMAL, 1);
    return prog_add(p, OP_LINEAR, 3, (Val[]){x, w, VAL_NONE}, NULL);
}

static void to_loss(Program *p, Val x)
{
    p->loss = prog_add(p, OP_DOT, 2, (Val[]){x, x}, NULL);
    prog_output(p, "loss", p->loss);
}

/* A block of the full model, bf16: kind, bytes of the whole tensor. The incoming triangle multiplication sums products
 * of rows where FastFold has two exchanges and a gather. */
static void an_evoformer_block_has_the_collectives_of_the_table(void **state)
{
    (void)state;
    static const struct {
        OpKind kind;
        double megabytes;
        int count;
    } table[] = {{OP_ALL_GATHER, 1.05, 1}, {OP_ALL_TO_ALL, 16.8, 4},     {OP_ALL_GATHER, 2.1, 1},
                 {OP_ALL_GATHER, 16.8, 1}, {OP_REDUCE_SCATTER, 16.8, 1}, {OP_ALL_GATHER, 0.52, 2}};
    Recording r = recording_model("initial_training", false);
    Switches s = {.dap = 4, .dp = 1, .precision = PRECISION_BF16};
    Program *p = passed(r.p, &s, PASS_PRECISION);
    int32_t block = -1; /* a block in the middle of the Evoformer: the second last */
    for (int32_t i = 0; i < p->n_ops; i++)
        if (p->op[i].block > block) block = p->op[i].block;
    block--;
    enum { ROWS = sizeof table / sizeof table[0] };
    int found[ROWS] = {0}, other = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->block != block || !(op_def(op->kind)->flags & OPF_COMM)) continue;
        double bytes = (double)tensor_bytes(out_tensor(p, op, 0)) * (op->kind == OP_ALL_GATHER ? 1 : 4);
        int row = 0;
        while (row < ROWS && !(table[row].kind == op->kind && bytes > 0.98e6 * table[row].megabytes &&
                               bytes < 1.02e6 * table[row].megabytes))
            row++;
        row < ROWS ? found[row]++ : other++;
    }
    for (int row = 0; row < ROWS; row++) assert_int_equal(found[row], table[row].count);
    assert_int_equal(other, 0);
    prog_destroy(&p);
    recording_free(&r);
}

static void without_dap_the_marks_vanish(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    assert_true(count_kind(r.p, OP_RESHARD) > 0);
    Program *p = passed(r.p, &(Switches){.dap = 1, .dp = 1}, PASS_SHARD);
    assert_int_equal(count_kind(p, OP_RESHARD), 0);
    for (int32_t i = 0; i < p->n_ops; i++) assert_false(op_def(p->op[i].kind)->flags & OPF_COMM);
    assert_null(p->param_partial);
    prog_destroy(&p);
    recording_free(&r);
}

/* sharded -> whole -> sharded reader: the gather's gradient is a reduce-scatter; replicated reader: the own slice */
static void the_gradient_of_a_gather_depends_on_its_readers(void **state)
{
    (void)state;
    for (int replicated = 0; replicated < 2; replicated++) {
        Recording r = recording_empty();
        Val x = reshard(r.p, prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 4, 8}), 0);
        Val a = linear(r.p, "a", x, 8), whole = reshard(r.p, linear(r.p, "b", x, 8), -1);
        Val y = replicated ? linear(r.p, "c", whole, 8)
                           : prog_add(r.p, OP_TRI_PRODUCT, 2, (Val[]){a, whole}, &(OpAttr){.i = {0, 1}});
        to_loss(r.p, reshard(r.p, y, -1));
        Program *p = passed(r.p, &dap2, PASS_AUTODIFF);
        assert_int_equal(nth_kind(p, OP_ALL_GATHER, 0)->attr.i[1], !replicated);
        assert_int_equal(count_kind(p, OP_REDUCE_SCATTER), !replicated);
        int b = registry_find_param(r.registry, "b"), c = registry_find_param(r.registry, "c");
        assert_true(p->param_partial[b]);
        if (replicated)
            assert_false(p->param_partial[c]); /* every rank has its whole gradient: no sum over the group */
        assert_int_equal(nth_kind(p, OP_ALL_REDUCE, 0)->attr.i[0], GROUP_DAP);
        prog_destroy(&p);
        recording_free(&r);
    }
}

/* A replicated layer between a gather and sharded readers has partial gradients itself. */
static void partial_gradients_reach_through_replicated_layers(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = reshard(r.p, prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 4, 8}), 0);
    Val a = linear(r.p, "a", x, 8), whole = reshard(r.p, linear(r.p, "b", x, 8), -1);
    Val between = linear(r.p, "c", whole, 8);
    Val y = prog_add(r.p, OP_TRI_PRODUCT, 2, (Val[]){a, between}, &(OpAttr){.i = {0, 1}});
    to_loss(r.p, reshard(r.p, y, -1));
    Program *p = NULL;
    assert_int_equal(pass_shard(r.p, &dap2, &p), OK);
    assert_true(p->param_partial[registry_find_param(r.registry, "c")]);
    assert_int_equal(nth_kind(p, OP_ALL_GATHER, 0)->attr.i[1], 1);
    prog_destroy(&p);
    recording_free(&r);
}

static void a_value_for_sharded_and_replicated_readers_is_refused(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = reshard(r.p, prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 4, 8}), 0);
    Val a = linear(r.p, "a", x, 8), whole = reshard(r.p, linear(r.p, "b", x, 8), -1);
    Val y = prog_add(r.p, OP_TRI_PRODUCT, 2, (Val[]){a, whole}, &(OpAttr){.i = {0, 1}});
    to_loss(r.p, prog_add(r.p, OP_ADD, 2, (Val[]){reshard(r.p, y, -1), whole}, NULL));
    Program *p = NULL;
    assert_int_equal(pass_shard(r.p, &dap2, &p), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "that sharded and replicated ops share"));
    recording_free(&r);
}

static void a_parameter_for_sharded_and_replicated_ops_is_refused(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 4, 8});
    Val y = linear(r.p, "w", reshard(r.p, x, 0), 8), z = linear(r.p, "w", x, 8);
    to_loss(r.p, prog_add(r.p, OP_ADD, 2, (Val[]){reshard(r.p, y, -1), z}, NULL));
    Program *p = NULL;
    assert_int_equal(pass_shard(r.p, &dap2, &p), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "parameter w"));
    recording_free(&r);
}

static void what_does_not_divide_is_named(void **state)
{
    (void)state;
    Recording r = recording_empty();
    prog_scope_push(r.p, "evoformer_stack");
    Val x = prog_input(r.p, "x", DT_F32, 3, (int64_t[]){6, 4, 8});
    to_loss(r.p, reshard(r.p, linear(r.p, "w", reshard(r.p, x, 0), 8), -1));
    Program *p = NULL;
    assert_int_equal(pass_shard(r.p, &(Switches){.dap = 4, .dp = 1}, &p), ERR_INPUT);
    assert_non_null(strstr(status_text(), "evoformer_stack: axis 0 of a value has extent 6"));
    assert_non_null(strstr(status_text(), "dap = 4"));
    recording_free(&r);
}

/* One slice of a mask serves all its readers, and outputs leave whole. */
static void masks_are_sliced_once_and_outputs_gathered(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = reshard(r.p, prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 4, 8}), 0);
    Val mask = prog_input(r.p, "mask", DT_F32, 2, (int64_t[]){4, 4});
    for (int i = 0; i < 3; i++) x = prog_add(r.p, OP_MASK_MUL, 2, (Val[]){x, reshard(r.p, mask, 0)}, NULL);
    prog_output(r.p, "x", x);
    Program *p = passed(r.p, &dap2, PASS_SHARD);
    assert_int_equal(count_kind(p, OP_SHARD_SLICE), 2);
    const Tensor *t = prog_tensor(p, prog_find(p, "x"));
    assert_int_equal(t->shard, SHARD_NONE);
    assert_int_equal(t->dim[0], 4);
    prog_destroy(&p);
    recording_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_evoformer_block_has_the_collectives_of_the_table),
        cmocka_unit_test(without_dap_the_marks_vanish),
        cmocka_unit_test(the_gradient_of_a_gather_depends_on_its_readers),
        cmocka_unit_test(partial_gradients_reach_through_replicated_layers),
        cmocka_unit_test(a_value_for_sharded_and_replicated_readers_is_refused),
        cmocka_unit_test(a_parameter_for_sharded_and_replicated_ops_is_refused),
        cmocka_unit_test(what_does_not_divide_is_named),
        cmocka_unit_test(masks_are_sliced_once_and_outputs_gathered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
