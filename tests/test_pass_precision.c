/* Types of values after the precision pass. */
#include "tests/pass_program.h"

static const Switches bf16 = {.dap = 1, .dp = 1, .precision = PRECISION_BF16};

static Val linear(Program *p, const char *name, Val x)
{
    Val w = prog_param(p, name, 2, (int64_t[]){8, tensor_last(prog_tensor(p, x))}, INIT_NORMAL, 1);
    Val b = prog_param(p, "bias", 1, (int64_t[]){8}, INIT_ZERO, 0);
    return prog_add(p, OP_LINEAR, 3, (Val[]){x, w, b}, NULL);
}

static void f64_widens_everything(void **state)
{
    (void)state;
    for (int optimizer = 0; optimizer < 2; optimizer++) {
        Recording r = recording_model("tiny", true);
        if (optimizer) {
            prog_destroy(&r.p);
            assert_int_equal(prog_create(r.registry, &r.p), OK);
            static const OptimizerConfig adam = {0.9, 0.999, 1e-6, 0.1, 0.9};
            assert_int_equal(model_record_optimizer(&adam, r.p), OK);
        }
        Program *p = passed(r.p, &(Switches){.dap = 1, .dp = 1, .precision = PRECISION_F64}, PASS_REMAT);
        for (int32_t v = 0; v < p->n_values; v++)
            assert_true(p->value[v].t.dtype == DT_F64 || p->value[v].t.dtype == DT_I32);
        prog_destroy(&p);
        recording_free(&r);
    }
}

static void f32_changes_nothing(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *before = passed(r.p, &(Switches){.dap = 1, .dp = 1}, PASS_SHARD);
    Program *after = passed(r.p, &(Switches){.dap = 1, .dp = 1}, PASS_PRECISION);
    assert_int_equal(before->n_ops, after->n_ops);
    assert_int_equal(count_kind(after, OP_CAST), count_kind(before, OP_CAST));
    prog_destroy(&before);
    prog_destroy(&after);
    recording_free(&r);
}

/* weights from the bf16 copy, biases exact, one cast of x for both readers, casts at both borders of an f32 region */
static void casts_stand_at_the_borders_only(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8});
    Val a = linear(r.p, "a", x), b = linear(r.p, "b", x);
    bool former = prog_full_precision(r.p, true);
    Val exact = linear(r.p, "c", prog_add(r.p, OP_ADD, 2, (Val[]){a, b}, NULL));
    prog_full_precision(r.p, former);
    prog_output(r.p, "y", linear(r.p, "d", exact));
    Program *p = passed(r.p, &bf16, PASS_PRECISION);
    /* x down once; a and b up; c's result down */
    assert_int_equal(count_kind(p, OP_CAST), 4);
    static const DType out[4] = {DT_BF16, DT_BF16, DT_F32, DT_BF16};
    for (int k = 0; k < 4; k++) {
        const Op *op = nth_kind(p, OP_LINEAR, k);
        assert_int_equal(out_tensor(p, op, 0)->dtype, out[k]);
        assert_int_equal(p->value[op->in[1]].place, k == 2 ? PLACE_PARAM : PLACE_PARAM_LOW);
        assert_int_equal(in_tensor(p, op, 2)->dtype, DT_F32);
    }
    prog_destroy(&p);
    recording_free(&r);
}

static void nothing_is_cast_forth_and_back(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = linear(r.p, "a", prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8}));
    bool former = prog_full_precision(r.p, true);
    Val reshaped = prog_add(r.p, OP_RESHAPE, 1, &x, &(OpAttr){.i = {2, 8, 4}});
    Val up = prog_add(r.p, OP_SCALE, 1, &x, &(OpAttr){.f = {2}}); /* reads x in f32 */
    prog_full_precision(r.p, former);
    prog_output(r.p, "y", prog_add(r.p, OP_SCALE, 1, &x, &(OpAttr){.f = {3}}));
    prog_output(r.p, "z", reshaped);
    prog_output(r.p, "u", up);
    Program *p = passed(r.p, &bf16, PASS_PRECISION);
    assert_int_equal(count_kind(p, OP_CAST), 2); /* the input down, x up; the second reader takes x as it is */
    assert_int_equal(out_tensor(p, nth_kind(p, OP_SCALE, 1), 0)->dtype, DT_BF16);
    prog_destroy(&p);
    recording_free(&r);
}

static void masks_that_are_joined_stay_exact(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = linear(r.p, "a", prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8}));
    Val mask = prog_input(r.p, "mask", DT_F32, 1, (int64_t[]){2});
    Val joined = prog_add(r.p, OP_CONCAT, 2, (Val[]){mask, mask}, NULL);
    prog_output(r.p, "y", prog_add(r.p, OP_GATE, 3, (Val[]){x, x, joined}, NULL));
    Program *p = passed(r.p, &bf16, PASS_PRECISION);
    assert_int_equal(count_kind(p, OP_CAST), 1); /* x alone */
    assert_int_equal(out_tensor(p, nth_kind(p, OP_CONCAT, 0), 0)->dtype, DT_F32);
    prog_destroy(&p);
    recording_free(&r);
}

/* In the tiny model: what the table calls exact is never bf16; full-precision ops see no bf16; gradients are f32. */
static void exact_operands_stay_exact(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Switches s = bf16;
    s.fused_attention = s.fused_layernorm = s.gemm_batching = s.fused_pointwise = true;
    Program *p = passed(r.p, &s, PASS_AUTODIFF);
    int low = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        const OpDef *def = op_def(op->kind);
        bool moves = op->kind == OP_CAST || op->kind == OP_RESHAPE || op->kind == OP_COPY || op->kind == OP_TRANSPOSE ||
                     op->kind == OP_SLICE || op->kind == OP_PAD || op->kind == OP_CONCAT;
        for (int k = 0; k < op->n_in; k++) {
            if (op->in[k] == VAL_NONE) continue;
            bool is_low = in_tensor(p, op, k)->dtype == DT_BF16;
            if (op->stage == STAGE_FORWARD && (def->exact_in >> k & 1)) assert_false(is_low);
            if (op->stage == STAGE_FORWARD && !moves && (op->full_precision || (def->flags & OPF_FULL)))
                assert_false(is_low);
            low += is_low;
        }
        for (int k = 0; k < op->n_out; k++)
            if (op->out[k] != VAL_NONE && ((def->exact_out >> k & 1) || p->value[op->out[k]].place == PLACE_GRAD))
                assert_int_equal(out_tensor(p, op, k)->dtype, DT_F32);
    }
    assert_true(low > 500);
    assert_int_equal(prog_tensor(p, p->loss)->dtype, DT_F32);
    prog_destroy(&p);
    recording_free(&r);
}

/* The bf16 copy follows every update: one PARAM_LOWER per tensor, or the fused update writes it. */
static void the_optimizer_writes_the_copy(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    prog_destroy(&r.p);
    assert_int_equal(prog_create(r.registry, &r.p), OK);
    static const OptimizerConfig adam = {0.9, 0.999, 1e-6, 0.1, 0.9};
    assert_int_equal(model_record_optimizer(&adam, r.p), OK);
    Program *p = passed(r.p, &bf16, PASS_PRECISION);
    assert_int_equal(count_kind(p, OP_PARAM_LOWER), r.registry->n_params);
    prog_destroy(&p);
    Switches s = bf16;
    s.fused_optimizer = true;
    p = passed(r.p, &s, PASS_PRECISION);
    assert_int_equal(count_kind(p, OP_PARAM_LOWER), 0);
    const Op *fused = nth_kind(p, OP_ADAM_FUSED, 0);
    assert_int_equal(p->value[fused->out[4]].place, PLACE_PARAM_LOW);
    assert_int_equal(p->value[fused->in[7]].place, PLACE_PARAM_LOW);
    assert_int_equal(p->n_ops, 3);
    prog_destroy(&p);
    recording_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f64_widens_everything),
        cmocka_unit_test(f32_changes_nothing),
        cmocka_unit_test(casts_stand_at_the_borders_only),
        cmocka_unit_test(nothing_is_cast_forth_and_back),
        cmocka_unit_test(masks_that_are_joined_stay_exact),
        cmocka_unit_test(exact_operands_stay_exact),
        cmocka_unit_test(the_optimizer_writes_the_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
