/* Fusion behind differentiation: which sums and masks of the backward pass move into the ops before them, and which
 * must not. Equal results: test_switches. */
#include "engine/rules.h"
#include "tests/pass_program.h"

static const Switches plain = {
    .dap = 1, .dp = 1, .gemm_batching = true, .fused_attention = true, .fused_layernorm = true};

static Program *differentiated(const Program *p, bool fused)
{
    Switches s = plain;
    s.fused_pointwise = fused;
    return passed(p, &s, PASS_AUTODIFF);
}

static bool in_evoformer(const Program *p, const Op *op)
{
    return op->stage == STAGE_BACKWARD && !strncmp(p->scope[op->scope], "evoformer_stack.blocks", 22);
}

static int backward_ops(const Program *p, OpKind kind)
{
    int count = 0;
    for (int32_t i = 0; i < p->n_ops; i++) count += in_evoformer(p, &p->op[i]) && p->op[i].kind == kind;
    return count;
}

static const Op *reader(const Program *p, Val v, OpKind kind)
{
    for (int32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_in; k++)
            if (p->op[i].kind == kind && p->op[i].in[k] == v) return &p->op[i];
    return NULL;
}

/* Every residual branch starts with a layer norm, every transition has one relu. */
static void a_block_keeps_no_sum_and_no_mask(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *off = differentiated(r.p, false), *on = differentiated(r.p, true);
    assert_true(backward_ops(off, OP_ADD) > 0 && backward_ops(off, OP_RELU_BWD) > 0 &&
                backward_ops(off, OP_DROPOUT) > 0);
    assert_int_equal(backward_ops(on, OP_ADD), 0);
    assert_int_equal(backward_ops(on, OP_RELU_BWD), 0);
    assert_int_equal(backward_ops(on, OP_DROPOUT), 0);
    int sums = 0, drops = 0;
    for (int32_t i = 0; i < on->n_ops; i++) {
        const Op *op = &on->op[i];
        if (!in_evoformer(on, op)) continue;
        int sum_at = op->kind == OP_LAYER_NORM_FUSED_BWD ? 5
                     : op->kind == OP_LINEAR_NORM_DX     ? 4
                     : op->kind == OP_TRANSITION_DX      ? 4
                     : op->kind == OP_LINEAR_DX          ? 2
                     : op->kind == OP_LINEAR_GROUP_DX    ? 2 * (int)op->attr.i[0]
                                                         : OP_MAX_IN;
        sums += op->n_in > sum_at && op->in[sum_at] != VAL_NONE;
        drops += (op->kind == OP_LAYER_NORM_FUSED_BWD || op->kind == OP_LINEAR_NORM_DX) && op->n_out == 4;
        drops += op->kind == OP_TRANSITION_DX && op->n_out == 5;
    }
    assert_int_equal(sums, backward_ops(off, OP_ADD));
    assert_int_equal(drops, backward_ops(off, OP_DROPOUT));
    prog_destroy(&off);
    prog_destroy(&on);
    recording_free(&r);
}

/* y = relu(x W^T) feeds two products: the sum of their gradients moves into one of them, the mask behind the sum. */
static void a_mask_follows_the_sum(void **state)
{
    (void)state;
    Recording r = recording_empty();
    int64_t matrix[] = {8, 8};
    Val x = prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8});
    Val y = prog_add(r.p, OP_LINEAR, 2, (Val[]){x, prog_param(r.p, "w0", 2, matrix, INIT_NORMAL, 1)}, NULL);
    y = prog_add(r.p, OP_RELU, 1, &y, NULL);
    Val a = prog_add(r.p, OP_LINEAR, 2, (Val[]){y, prog_param(r.p, "w1", 2, matrix, INIT_NORMAL, 1)}, NULL);
    Val b = prog_add(r.p, OP_LINEAR, 2, (Val[]){y, prog_param(r.p, "w2", 2, matrix, INIT_NORMAL, 1)}, NULL);
    r.p->loss = prog_add(r.p, OP_DOT, 2, (Val[]){a, b}, NULL);
    Switches s = {.dap = 1, .dp = 1, .fused_pointwise = true};
    Program *p = passed(r.p, &s, PASS_AUTODIFF);
    assert_int_equal(count_kind(p, OP_ADD), 0);
    assert_int_equal(count_kind(p, OP_RELU_BWD), 0);
    const Op *both = NULL;
    for (int32_t i = 0; i < p->n_ops; i++)
        if (p->op[i].kind == OP_LINEAR_DX && p->op[i].n_in == 4) both = &p->op[i];
    assert_non_null(both);
    assert_int_equal(p->op[p->value[both->in[2]].def_op].kind, OP_LINEAR_DX);
    assert_int_equal(p->op[p->value[both->in[3]].def_op].kind, OP_LINEAR);
    prog_destroy(&p);
    recording_free(&r);
}

/* Where the gradient of a layer norm of a block is left behind products, they add up more than their own. */
static void products_join_the_layer_norms(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = differentiated(r.p, true);
    assert_true(backward_ops(p, OP_LINEAR_NORM_DX) > 0 && backward_ops(p, OP_TRANSITION_DX) > 0);
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (!in_evoformer(p, op) || op->kind != OP_LAYER_NORM_FUSED_BWD) continue;
        const Op *before = &p->op[p->value[op->in[0]].def_op];
        if (before->kind == OP_LINEAR_DX) assert_true(before->n_in > 2);
        if (before->kind == OP_LINEAR_GROUP_DX) assert_true(before->n_in > 2 * before->attr.i[0]);
    }
    prog_destroy(&p);
    recording_free(&r);
}

/* Two products of one layer norm, not merged: what they leave is a sum, which no product computes alone. */
static void a_sum_of_products_stays(void **state)
{
    (void)state;
    Recording r = recording_empty();
    int64_t matrix[] = {8, 8}, vector[] = {8};
    Val x = prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8});
    x = prog_add(r.p, OP_LINEAR, 2, (Val[]){x, prog_param(r.p, "w0", 2, matrix, INIT_NORMAL, 1)}, NULL);
    Val gamma = prog_param(r.p, "gamma", 1, vector, INIT_NORMAL, 1), y[OP_MAX_OUT];
    prog_add_multi(r.p, OP_LAYER_NORM_FUSED, 3, (Val[]){x, gamma, prog_param(r.p, "beta", 1, vector, INIT_NORMAL, 1)},
                   &(OpAttr){.f = {1e-5}}, y);
    Val a = prog_add(r.p, OP_LINEAR, 2, (Val[]){y[0], prog_param(r.p, "w1", 2, matrix, INIT_NORMAL, 1)}, NULL);
    Val b = prog_add(r.p, OP_LINEAR, 2, (Val[]){y[0], prog_param(r.p, "w2", 2, matrix, INIT_NORMAL, 1)}, NULL);
    r.p->loss = prog_add(r.p, OP_DOT, 2, (Val[]){a, b}, NULL);
    Switches s = {.dap = 1, .dp = 1, .fused_pointwise = true};
    Program *p = passed(r.p, &s, PASS_AUTODIFF);
    assert_int_equal(count_kind(p, OP_LINEAR_NORM_DX), 0);
    assert_int_equal(count_kind(p, OP_LAYER_NORM_FUSED_BWD), 1);
    prog_destroy(&p);
    recording_free(&r);
}

/* In a block the product behind every gated attention joins its gate: only gates behind a product are left over. */
static void products_join_the_gates(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *off = differentiated(r.p, false), *on = differentiated(r.p, true);
    int joined = backward_ops(on, OP_LINEAR_GATE_DX);
    assert_int_equal(joined, backward_ops(on, OP_ATTENTION_BWD));
    assert_int_equal(backward_ops(off, OP_LINEAR_GATE_DX), 0);
    for (int32_t i = 0; i < on->n_ops; i++) {
        const Op *op = &on->op[i];
        if (!in_evoformer(on, op) || op->kind != OP_GATE_BWD) continue;
        int32_t before = on->value[op->in[0]].def_op;
        assert_true(before < 0 || on->op[before].kind != OP_LINEAR_DX);
    }
    prog_destroy(&off);
    prog_destroy(&on);
    recording_free(&r);
}

/* In a block the gradient of attention gets its sums from that of the gate and reads the output no more; where gates
 * stay apart it reads the output. */
static void gates_leave_the_sums(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *off = differentiated(r.p, false), *on = differentiated(r.p, true);
    assert_true(backward_ops(on, OP_ATTENTION_BWD) > 0);
    assert_int_equal(backward_ops(on, OP_ATTENTION_BWD), backward_ops(off, OP_ATTENTION_BWD));
    for (int32_t i = 0; i < on->n_ops; i++) {
        const Op *op = &on->op[i];
        if (!in_evoformer(on, op) || op->kind != OP_ATTENTION_BWD) continue;
        assert_int_equal(op->n_in, 9);
        assert_int_equal(op->in[6], VAL_NONE);
        const Op *gate = &on->op[on->value[op->in[8]].def_op];
        assert_int_equal(gate->kind, OP_LINEAR_GATE_DX);
        assert_int_equal(gate->out[1], op->in[0]);
        assert_int_equal(gate->out[2], op->in[8]);
        assert_int_equal(gate->attr.i[2], op->attr.i[0]);
    }
    for (int32_t i = 0; i < off->n_ops; i++)
        if (off->op[i].kind == OP_ATTENTION_BWD) assert_true(off->op[i].n_in == 8 && off->op[i].in[6] != VAL_NONE);
    prog_destroy(&off);
    prog_destroy(&on);
    recording_free(&r);
}

/* Where an exchange between ranks stands in front of a dropout, that moves into the gradient of the gate behind it,
 * whose result it stays for the gradient of the weight. */
static void an_exchanged_gradient_is_dropped_at_the_gate(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Switches s = plain;
    s.fused_pointwise = true, s.dap = 2;
    Program *p = passed(r.p, &s, PASS_AUTODIFF);
    int drops = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (!in_evoformer(p, op) || op->kind != OP_LINEAR_GATE_DX || op->n_out < 4) continue;
        drops++;
        assert_int_equal(p->op[p->value[op->in[0]].def_op].kind, OP_ALL_TO_ALL);
        const Op *dw = reader(p, op->out[3], OP_LINEAR_DW);
        assert_true(dw != NULL && dw > op);
        assert_true(reader(p, op->out[3], OP_LINEAR_GATE_DX) == NULL);
    }
    assert_true(drops > 0);
    assert_int_equal(backward_ops(p, OP_DROPOUT), 0);
    prog_destroy(&p);
    recording_free(&r);
}

/* loss = a' . a W^T, a = sigmoid(g) x m?: `twice` makes a' a, so that the gate's gradient is a sum. */
static void check_gate(bool masked, bool twice, int joined)
{
    Recording r = recording_empty();
    int64_t dim[] = {4, 8}, matrix[] = {8, 8};
    Val x = prog_input(r.p, "x", DT_F32, 2, dim), m = prog_input(r.p, "m", DT_F32, 1, dim), y[2];
    for (int k = 0; k < 2; k++) {
        Val w = prog_param(r.p, k ? "w1" : "w0", 2, matrix, INIT_NORMAL, 1);
        y[k] = prog_add(r.p, OP_LINEAR, 2, (Val[]){x, w}, NULL);
    }
    Val a = prog_add(r.p, OP_GATE, masked ? 3 : 2, (Val[]){y[0], y[1], m}, NULL);
    Val b = prog_add(r.p, OP_LINEAR, 2, (Val[]){a, prog_param(r.p, "w2", 2, matrix, INIT_NORMAL, 1)}, NULL);
    r.p->loss = prog_add(r.p, OP_DOT, 2, (Val[]){twice ? a : x, b}, NULL);
    Switches s = {.dap = 1, .dp = 1, .fused_pointwise = true};
    Program *p = passed(r.p, &s, PASS_AUTODIFF);
    assert_int_equal(count_kind(p, OP_LINEAR_GATE_DX), joined);
    assert_int_equal(count_kind(p, OP_GATE_BWD), 1 - joined);
    prog_destroy(&p);
    recording_free(&r);
}

static void a_gate_takes_a_product_alone(void **state)
{
    (void)state;
    check_gate(false, false, 1);
    check_gate(true, false, 0);
    check_gate(false, true, 0);
}

/* At the end of a triangle multiplication: gate, product and channel-first layer norm. */
static void gates_join_the_norms_of_channels(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = differentiated(r.p, true);
    int ends = 0; /* products that take in the layer norm */
    for (int32_t i = 0; i < p->n_ops; i++) ends += p->op[i].kind == OP_LINEAR_RESIDUAL && p->op[i].n_in > 8;
    assert_true(ends > 0);
    assert_int_equal(count_kind(p, OP_GATE_NORM_CHANNELS_DX), ends);
    assert_int_equal(count_kind(p, OP_LAYER_NORM_CHANNELS_BWD), 0);
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->kind != OP_GATE_NORM_CHANNELS_DX) continue;
        for (int k = 0; k < op->n_out; k++) assert_ptr_equal(&p->op[p->value[op->out[k]].def_op], op);
        assert_non_null(reader(p, op->out[0], OP_TRI_PRODUCT));
        assert_non_null(reader(p, op->out[4], OP_LINEAR_DW));
    }
    prog_destroy(&p);
    recording_free(&r);
}

/* gate(g, norm(x) W^T) of a sum x, its channels first, through a mask or not */
static int joined_gates(bool masked)
{
    Recording r = recording_empty();
    int64_t first[] = {8, 4, 4}, last[] = {4, 4, 8}, matrix[] = {8, 8}, vector[] = {8};
    Val y[OP_MAX_OUT], x = prog_input(r.p, "x", DT_F32, 3, first);
    Val gamma = prog_param(r.p, "gamma", 1, vector, INIT_NORMAL, 1);
    x = prog_add(r.p, OP_ADD, 2, (Val[]){x, prog_param(r.p, "other", 3, first, INIT_NORMAL, 1)}, NULL);
    prog_add_multi(r.p, OP_LAYER_NORM_CHANNELS, 3,
                   (Val[]){x, gamma, prog_param(r.p, "beta", 1, vector, INIT_NORMAL, 1)}, &(OpAttr){.f = {1e-5}}, y);
    Val product = prog_add(r.p, OP_LINEAR, 2, (Val[]){y[0], prog_param(r.p, "w", 2, matrix, INIT_NORMAL, 1)}, NULL);
    Val gate = prog_param(r.p, "gate", 3, last, INIT_NORMAL, 1);
    Val mask = masked ? prog_input(r.p, "mask", DT_F32, 2, (int64_t[]){4, 4}) : VAL_NONE;
    Val z = prog_add(r.p, OP_GATE, masked ? 3 : 2, (Val[]){gate, product, mask}, NULL);
    r.p->loss = prog_add(r.p, OP_DOT, 2, (Val[]){z, prog_input(r.p, "dz", DT_F32, 3, last)}, NULL);
    Switches s = {.dap = 1, .dp = 1, .fused_pointwise = true};
    Program *p = passed(r.p, &s, PASS_AUTODIFF);
    int joined = count_kind(p, OP_GATE_NORM_CHANNELS_DX);
    assert_int_equal(joined + count_kind(p, OP_LAYER_NORM_CHANNELS_BWD), 1);
    prog_destroy(&p);
    recording_free(&r);
    return joined;
}

static void a_gate_with_a_mask_stays(void **state)
{
    (void)state;
    assert_int_equal(joined_gates(false), 1);
    assert_int_equal(joined_gates(true), 0);
}

/* Kinds with a layer norm behind: inputs, outputs and output of it. */
static const struct {
    OpKind kind;
    int n_in, n_out, norm;
} behind[] = {{OP_LINEAR_RESIDUAL, 8, 5, 2}, {OP_TRANSITION, 9, 8, 5}, {OP_OPM, 10, 4, 1}};
enum { BEHINDS = sizeof behind / sizeof *behind };

static int forward_norms(const Program *p, int moved[BEHINDS])
{
    int norms = 0;
    memset(moved, 0, BEHINDS * sizeof *moved);
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        norms += op->kind == OP_LAYER_NORM_FUSED && op->stage == STAGE_FORWARD;
        for (int k = 0; k < BEHINDS; k++) {
            if (op->kind != behind[k].kind || op->n_in != behind[k].n_in) continue;
            assert_true(op->n_out == behind[k].n_out && op->attr.f[1] > 0 && op->block >= 0);
            assert_true(rule_same(out_tensor(p, op, 0), out_tensor(p, op, behind[k].norm)));
            moved[k]++;
        }
    }
    return norms;
}

/* What a branch ends with gives its rows normalized too, for the branch behind; what selective recomputation repeats
 * stays apart. The gradients are the same, and a program without a loss is treated alike. */
static void layer_norms_join_the_branch_before(void **state)
{
    (void)state;
    for (int loss = 0; loss < 2; loss++) {
        int moved[BEHINDS], none[BEHINDS], all = 0;
        Recording r = recording_model("initial_training", loss);
        Switches s = plain;
        s.fused_pointwise = true;
        Program *on = passed(r.p, &s, PASS_AUTODIFF);
        s.checkpoint = CHECKPOINT_SELECTIVE;
        Program *selective = passed(r.p, &s, PASS_AUTODIFF);
        int norms = forward_norms(on, moved), apart = forward_norms(selective, none);
        for (int k = 0; k < BEHINDS; k++) {
            assert_true(moved[k] > 0 && none[k] == 0);
            all += moved[k];
        }
        assert_true(apart >= norms + all);
        assert_int_equal(count_kind(on, OP_LINEAR_NORM_DX), loss ? count_kind(selective, OP_LINEAR_NORM_DX) : 0);
        prog_destroy(&on);
        prog_destroy(&selective);
        recording_free(&r);
    }
}

/* In a wide row and in another block; not where other ranks get what it normalizes, too. */
static void a_layer_norm_stays_apart(void **state)
{
    (void)state;
    enum { JOINS, EXCHANGED, WIDE, NEXT_BLOCK, CASES };
    for (int which = 0; which < CASES; which++) {
        Recording r = recording_empty();
        int64_t c = which == WIDE ? 136 : 8, vector[] = {c};
        prog_block_begin(r.p);
        Val x = prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 8, c});
        Val w = prog_param(r.p, "w", 2, (int64_t[]){c, c}, INIT_NORMAL, 1), n[OP_MAX_OUT];
        Val gamma = prog_param(r.p, "gamma", 1, vector, INIT_ONE, 0),
            beta = prog_param(r.p, "beta", 1, vector, INIT_ZERO, 0);
        Val y = prog_add(r.p, OP_LINEAR_RESIDUAL, 3, (Val[]){x, x, w}, NULL);
        if (which == NEXT_BLOCK) prog_block_end(r.p), prog_block_begin(r.p);
        prog_add_multi(r.p, OP_LAYER_NORM_FUSED, 3, (Val[]){y, gamma, beta}, &(OpAttr){.f = {1e-5}}, n);
        prog_block_end(r.p);
        prog_output(r.p, "y", which == EXCHANGED ? prog_add(r.p, OP_ALL_REDUCE, 1, &y, &(OpAttr){.f = {1}}) : y);
        prog_output(r.p, "n", n[0]);
        Program *p = NULL;
        Switches s = plain;
        s.fused_pointwise = true;
        assert_int_equal(pass_autodiff(r.p, &s, &p), OK);
        assert_int_equal(prog_verify(p, PASS_AUTODIFF), OK);
        bool joins = which == JOINS || which == EXCHANGED;
        assert_int_equal(count_kind(p, OP_LAYER_NORM_FUSED), !joins);
        assert_int_equal(nth_kind(p, OP_LINEAR_RESIDUAL, 0)->n_out, joins ? 5 : 1);
        prog_destroy(&p);
        recording_free(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_block_keeps_no_sum_and_no_mask),
        cmocka_unit_test(a_mask_follows_the_sum),
        cmocka_unit_test(products_join_the_layer_norms),
        cmocka_unit_test(a_sum_of_products_stays),
        cmocka_unit_test(gates_join_the_norms_of_channels),
        cmocka_unit_test(a_gate_with_a_mask_stays),
        cmocka_unit_test(products_join_the_gates),
        cmocka_unit_test(gates_leave_the_sums),
        cmocka_unit_test(an_exchanged_gradient_is_dropped_at_the_gate),
        cmocka_unit_test(a_gate_takes_a_product_alone),
        cmocka_unit_test(layer_norms_join_the_branch_before),
        cmocka_unit_test(a_layer_norm_stays_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
