/* Fusion: what each switch makes of the recorded ops, and what it leaves alone. Equal results: test_switches. */
#include "tests/pass_program.h"

static const Switches off = {.dap = 1, .dp = 1};

static Program *fused(const Program *p, Switches s)
{
    s.dap = s.dp = 1;
    return passed(p, &s, PASS_FUSE);
}

static Val linear(Program *p, const char *name, Val x, int64_t out)
{
    char bias[64];
    snprintf(bias, sizeof bias, "%s.bias", name);
    Val w = prog_param(p, name, 2, (int64_t[]){out, tensor_last(prog_tensor(p, x))}, INIT_NORMAL, 1);
    Val b = prog_param(p, bias, 1, &out, INIT_ZERO, 0);
    return prog_add(p, OP_LINEAR, 3, (Val[]){x, w, b}, NULL);
}

static Val unary(Program *p, OpKind kind, Val x)
{
    return prog_add(p, kind, 1, &x, NULL);
}

static void without_switches_the_program_stays(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = fused(r.p, off);
    static const OpKind made[] = {OP_LINEAR_GROUP,     OP_ATTENTION, OP_LAYER_NORM_FUSED,
                                  OP_RESIDUAL_DROPOUT, OP_OPM,       OP_LINEAR_RESIDUAL};
    for (size_t k = 0; k < sizeof made / sizeof *made; k++) assert_int_equal(count_kind(p, made[k]), 0);
    assert_true(p->n_ops <= r.p->n_ops);
    prog_destroy(&p);
    recording_free(&r);
}

/* of the Evoformer: its blocks come last */
static int last_block(const Program *p)
{
    int block = 0;
    for (int32_t i = 0; i < p->n_ops; i++)
        if (p->op[i].block > block) block = p->op[i].block;
    return block;
}

/* Per Evoformer block: MSA row and column attention (4 each), both triangle attentions with their bias (5 each), both
 * triangle multiplications (5 each), the outer product mean (2) -> one product each. */
static void count_products(const Program *p, int sizes[7], int *left)
{
    int block = last_block(p);
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (p->op[i].block != block) continue;
        if (p->op[i].kind == OP_LINEAR_GROUP) sizes[p->op[i].attr.i[0]]++;
        *left += p->op[i].kind == OP_LINEAR;
    }
}

static void products_of_one_input_are_batched(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", false);
    Program *p = fused(r.p, (Switches){.gemm_batching = true});
    int sizes[7] = {0}, left = 0;
    count_products(p, sizes, &left);
    assert_int_equal(sizes[4], 2);
    assert_int_equal(sizes[5], 4);
    assert_int_equal(sizes[2], 1);
    assert_int_equal(sizes[3] + sizes[6], 0);
    /* row bias, outputs of 4 attentions and 2 triangle multiplications, outer product 1, transitions 2 + 2 */
    assert_int_equal(left, 12);
    prog_destroy(&p);
    recording_free(&r);
}

/* Products are split neither by DAP nor by what overlaps: one product of a group is worth more than a gather that hides
 * behind a part of it. */
static void groups_stay_whole_around_gathers(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", false);
    const Switches s = {.gemm_batching = true, .comm_overlap = true, .dap = 2, .dp = 1};
    Program *p = passed(r.p, &s, PASS_FUSE);
    int sizes[7] = {0}, left = 0;
    count_products(p, sizes, &left);
    assert_int_equal(sizes[4], 2);
    assert_int_equal(sizes[5], 4);
    assert_int_equal(left, 12);
    prog_destroy(&p);
    recording_free(&r);
}

static void matrices_that_are_not_neighbours_are_left_alone(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8});
    Val a = linear(r.p, "a", x, 8); /* its bias lies between the matrices */
    Val b = linear(r.p, "b", x, 8);
    prog_output(r.p, "y", prog_add(r.p, OP_ADD, 2, (Val[]){a, b}, NULL));
    Program *p = fused(r.p, (Switches){.gemm_batching = true});
    assert_int_equal(count_kind(p, OP_LINEAR), 2);
    assert_int_equal(count_kind(p, OP_LINEAR_GROUP), 0);
    prog_destroy(&p);
    recording_free(&r);
}

static void attention_takes_scores_softmax_and_context(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", false);
    int attentions = count_kind(r.p, OP_ATT_SCORES);
    assert_true(attentions >= 10);
    Program *p = fused(r.p, (Switches){.fused_attention = true});
    assert_int_equal(count_kind(p, OP_ATTENTION), attentions);
    assert_int_equal(count_kind(p, OP_ATT_SCORES), 0);
    /* invariant point attention has scores of its own kind and keeps its contexts */
    assert_int_equal(count_kind(p, OP_ATT_CONTEXT), count_kind(r.p, OP_ATT_CONTEXT) - attentions);
    prog_destroy(&p);
    recording_free(&r);
}

/* Every gate of an attention goes into it; point attention and templates have none. Outputs nobody reads are left out
 * of the plan: o and the log-sum-exp without a gradient, none with one. */
static void attention_takes_its_gate(void **state)
{
    (void)state;
    for (int gradient = 0; gradient < 2; gradient++) {
        Recording r = recording_model("tiny", gradient != 0);
        Switches s = {.fused_attention = true, .fused_pointwise = true, .dp = 1, .dap = 1};
        Program *p = NULL;
        assert_int_equal(passes_run(r.p, &s, PASS_PLAN, &p), OK);
        int gated = 0;
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            if (op->kind != OP_ATTENTION) continue;
            assert_int_equal(op->out[1] != VAL_NONE, gradient);
            if (op->n_in < 6) continue;
            gated++;
            assert_int_equal(op->n_out, 3);
            assert_int_equal(op->out[2] != VAL_NONE, gradient);
        }
        assert_true(gated >= 8);
        assert_true(count_kind(p, OP_GATE) < count_kind(r.p, OP_GATE));
        prog_destroy(&p);
        recording_free(&r);
    }
}

static void a_value_that_is_fetched_is_not_fused_away(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8});
    Val y = linear(r.p, "a", x, 8);
    prog_output(r.p, "before", y);
    prog_output(r.p, "after", unary(r.p, OP_RELU, y));
    Program *p = fused(r.p, (Switches){.fused_pointwise = true});
    assert_int_equal(count_kind(p, OP_RELU), 1);
    assert_int_not_equal(prog_find(p, "before"), VAL_NONE);
    prog_destroy(&p);
    recording_free(&r);
}

static void pointwise_sequences_become_one_op(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    int dropouts = count_kind(r.p, OP_DROPOUT), outers = count_kind(r.p, OP_OUTER_PRODUCT);
    int relus = count_kind(r.p, OP_RELU);
    Program *p = fused(r.p, (Switches){.fused_pointwise = true});
    assert_true(dropouts > 0 && outers > 0 && relus > 0);
    assert_int_equal(count_kind(p, OP_OPM), outers);
    for (int n = 0; n < outers; n++) { /* masks of both operands joined */
        const Op *op = nth_kind(p, OP_OPM, n);
        assert_true(op->n_in == 8 && op->in[6] != VAL_NONE && op->in[7] != VAL_NONE);
    }
    assert_int_equal(count_kind(p, OP_OUTER_PRODUCT) + count_kind(p, OP_DIV_COUNT), 0);
    assert_true(count_kind(p, OP_RELU) < relus);
    int left = count_kind(p, OP_DROPOUT) + count_kind(p, OP_RESIDUAL_DROPOUT), inside = 0;
    for (int n = 0; n < count_kind(p, OP_LINEAR_RESIDUAL); n++) { /* the same masks are drawn */
        const Op *op = nth_kind(p, OP_LINEAR_RESIDUAL, n);
        if (op->in[5] == VAL_NONE) continue;
        bool found = false;
        for (int32_t i = 0; i < r.p->n_ops; i++) {
            const OpAttr *drawn = &r.p->op[i].attr;
            found |= r.p->op[i].kind == OP_DROPOUT && drawn->i[0] == op->attr.i[0] && drawn->i[1] == op->attr.i[1] &&
                     drawn->f[0] == op->attr.f[0];
        }
        assert_true(found);
        inside++;
    }
    assert_int_equal(left + inside, dropouts);
    assert_true(inside > dropouts / 2);
    prog_destroy(&p);
    recording_free(&r);
}

/* A transition is one op with everything on; it keeps what gradients need where there will be some. Its parts stay
 * where the layer norm is not fused. */
static void transitions_become_one_op(void **state)
{
    (void)state;
    for (int loss = 0; loss < 2; loss++) {
        Recording r = recording_model("tiny", loss);
        Program *all = fused(r.p, (Switches){.fused_layernorm = true, .fused_pointwise = true});
        Program *parts = fused(r.p, (Switches){.fused_pointwise = true});
        int merged = count_kind(all, OP_TRANSITION);
        assert_true(merged > 0);
        assert_int_equal(count_kind(parts, OP_TRANSITION), 0);
        assert_int_equal(count_kind(all, OP_LINEAR_RESIDUAL) + merged, count_kind(parts, OP_LINEAR_RESIDUAL));
        assert_int_equal(count_kind(all, OP_LINEAR) + merged, count_kind(parts, OP_LINEAR));
        int norms = count_kind(all, OP_LAYER_NORM_FUSED), moved = 0;
        for (int32_t i = 0; i < all->n_ops; i++) moved += all->op[i].kind == OP_LINEAR && all->op[i].n_in > 3;
        assert_int_equal(norms + moved + merged, count_kind(parts, OP_LAYER_NORM));
        for (int n = 0; n < merged; n++) assert_int_equal(nth_kind(all, OP_TRANSITION, n)->attr.i[0], loss);
        prog_destroy(&all);
        prog_destroy(&parts);
        recording_free(&r);
    }
}

/* The triangle multiplications whose last product takes in the layer norm of what it reads. */
static int count_normed_branches(const Program *p)
{
    int count = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->kind != OP_LINEAR_RESIDUAL || op->n_in <= 8) continue;
        count++;
        const Op *before = &p->op[p->value[op->in[1]].def_op]; /* perhaps marked */
        assert_int_equal(before->kind == OP_RESHARD ? p->op[p->value[before->in[0]].def_op].kind : before->kind,
                         OP_TRI_PRODUCT);
        assert_true(op->in[4] != VAL_NONE && op->in[8] != VAL_NONE && op->in[9] != VAL_NONE);
        assert_true(op->attr.f[2] > 0 && op->attr.f[2] < 1e-4);
    }
    return count;
}

/* The gates of a triangle multiplication move into the group of its projections; with fused layer norms the channels
 * come first from there to the product at its end, which takes in the norm before it; where recomputation is to repeat
 * that, to the norm. Only a program with a loss keeps what gradients need. */
static void triangle_multiplications_put_channels_first(void **state)
{
    (void)state;
    for (int loss = 0; loss < 2; loss++) {
        Recording r = recording_model("tiny", loss);
        int products = count_kind(r.p, OP_TRI_PRODUCT);
        assert_true(products >= 4);
        Program *p = fused(r.p, (Switches){.gemm_batching = true, .fused_pointwise = true});
        assert_int_equal(count_kind(p, OP_LINEAR_GATES), products);
        assert_int_equal(nth_kind(p, OP_LINEAR_GATES, 0)->attr.i[2], loss);
        assert_int_equal(nth_kind(p, OP_LINEAR_GATES, 0)->attr.i[3], 0);
        prog_destroy(&p);
        Switches s = {.gemm_batching = true, .fused_pointwise = true, .fused_layernorm = true};
        for (int repeats = 0; repeats < 2; repeats++) {
            s.checkpoint = repeats ? CHECKPOINT_SELECTIVE : CHECKPOINT_NONE;
            p = fused(r.p, s);
            assert_int_equal(count_kind(p, OP_LAYER_NORM_CHANNELS), repeats ? products : 0);
            assert_int_equal(count_normed_branches(p), repeats ? 0 : products);
            for (int n = 0; n < products; n++) {
                assert_int_equal(nth_kind(p, OP_LINEAR_GATES, n)->attr.i[3], 1);
                assert_int_equal(nth_kind(p, OP_TRI_PRODUCT, n)->attr.i[2], 1);
            }
            prog_destroy(&p);
        }
        recording_free(&r);
    }
}

/* Of the layer norms of an Evoformer block that of the pair bias moves: the products behind the others are wide. */
static void layer_norms_move_into_narrow_products(void **state)
{
    (void)state;
    const Switches s = {
        .gemm_batching = true, .fused_attention = true, .fused_layernorm = true, .fused_pointwise = true};
    for (int kept = 0; kept < 2; kept++) {
        Recording r = recording_model("initial_training", false);
        Switches now = s;
        if (kept) now.checkpoint = CHECKPOINT_SELECTIVE; /* which repeats layer norms but no products */
        Program *p = fused(r.p, now);
        int block = last_block(p), alone = 0, inside = 0;
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            if (op->block != block) continue;
            alone += op->kind == OP_LAYER_NORM_FUSED;
            int gamma = op->kind == OP_LINEAR ? 3 : op->kind == OP_LINEAR_GROUP ? 13 : OP_MAX_IN;
            inside += op->n_in > gamma && op->in[gamma] != VAL_NONE;
        }
        assert_int_equal(alone, kept ? 8 : 7);
        assert_int_equal(inside, kept ? 0 : 1);
        prog_destroy(&p);
        recording_free(&r);
    }
}

static void a_layer_norm_with_two_readers_stays(void **state)
{
    (void)state;
    Recording r = recording_empty();
    Val x = prog_input(r.p, "x", DT_F32, 2, (int64_t[]){4, 8});
    Val gamma = prog_param(r.p, "gamma", 1, (int64_t[]){8}, INIT_ONE, 0);
    Val beta = prog_param(r.p, "beta", 1, (int64_t[]){8}, INIT_ZERO, 0);
    Val n = prog_add(r.p, OP_LAYER_NORM, 3, (Val[]){x, gamma, beta}, &(OpAttr){.f = {1e-5}});
    Val a = linear(r.p, "a", n, 8);
    prog_output(r.p, "y", prog_add(r.p, OP_ADD, 2, (Val[]){a, n}, NULL));
    Program *p = fused(r.p, (Switches){.fused_layernorm = true, .fused_pointwise = true});
    assert_int_equal(count_kind(p, OP_LAYER_NORM_FUSED), 1);
    prog_destroy(&p);
    recording_free(&r);
}

/* Fused attention reads rows as columns: of a block's transposes of the MSA and pair representation none is left, only
 * those of masks. */
static void transposes_sink_into_attention(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", false);
    Program *p = fused(r.p, (Switches){.fused_attention = true, .fused_pointwise = true, .gemm_batching = true});
    int block = last_block(p);
    int columns = 0, transposed_bias = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->block != block) continue;
        if (op->kind == OP_TRANSPOSE) assert_int_equal(in_tensor(p, op, 0)->rank, 2);
        if (op->kind == OP_ATTENTION) columns += op->attr.i[1] != 0, transposed_bias += op->attr.i[2] != 0;
    }
    assert_int_equal(columns, 2); /* MSA column attention, ending triangle attention */
    assert_int_equal(transposed_bias, 1);
    prog_destroy(&p);
    recording_free(&r);
}

/* Per Evoformer block: outputs of four attentions and two triangle multiplications (with their gate, whose gradient
 * reads the product), two transitions. What is left to add is the outer product mean. */
static void branches_end_in_one_op(void **state)
{
    (void)state;
    for (int gradient = 0; gradient < 2; gradient++) {
        Recording r = recording_model("initial_training", gradient);
        const Switches on = {.fused_attention = true, .fused_pointwise = true, .gemm_batching = true};
        Program *p = fused(r.p, on);
        int branches = 0, gated = 0, kept = 0, block = last_block(p);
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            if (op->block != block) continue;
            assert_int_not_equal(op->kind, OP_RESIDUAL_DROPOUT);
            if (op->kind != OP_LINEAR_RESIDUAL) continue;
            branches++;
            gated += op->in[4] != VAL_NONE;
            kept += op->attr.i[2] != 0;
        }
        assert_int_equal(branches, 8);
        assert_int_equal(gated, 2);
        assert_int_equal(kept, gradient ? 2 : 0);
        prog_destroy(&p);
        recording_free(&r);
    }
}

static Val swapped(Program *p, Val x)
{
    return prog_add(p, OP_TRANSPOSE, 1, &x, &(OpAttr){.i = {1, 0, 2}});
}

/* Reader by reader: a position-wise op lets a swap pass, dropout (which counts elements) does not, two swaps cancel. */
static void swaps_pass_only_where_they_may(void **state)
{
    (void)state;
    const Switches s = {.fused_attention = true, .fused_pointwise = true};
    Recording r = recording_empty();
    Val x = prog_input(r.p, "x", DT_F32, 3, (int64_t[]){4, 6, 8});
    Val y = swapped(r.p, linear(r.p, "a", swapped(r.p, x), 8));
    prog_output(r.p, "y", prog_add(r.p, OP_ADD, 2, (Val[]){x, y}, NULL));
    Program *p = fused(r.p, s);
    assert_int_equal(count_kind(p, OP_TRANSPOSE), 0);
    prog_destroy(&p);
    Val rng = prog_input(r.p, "rng", DT_I32, 1, (int64_t[]){4});
    Val z = prog_add(r.p, OP_DROPOUT, 2, (Val[]){swapped(r.p, x), rng}, &(OpAttr){.i = {0, -1}, .f = {0.5}});
    prog_output(r.p, "z", swapped(r.p, z));
    p = fused(r.p, s);
    assert_int_equal(count_kind(p, OP_TRANSPOSE), 2);
    const Op *dropout = nth_kind(p, OP_DROPOUT, 0);
    assert_int_equal(in_tensor(p, dropout, 0)->dim[0], 6);
    prog_destroy(&p);
    recording_free(&r);
}

static void the_optimizer_becomes_one_sweep(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    prog_destroy(&r.p);
    assert_int_equal(prog_create(r.registry, &r.p), OK);
    static const OptimizerConfig adam = {0.9, 0.999, 1e-6, 0.1, 0.9};
    assert_int_equal(model_record_optimizer(&adam, r.p), OK);
    assert_int_equal(count_kind(r.p, OP_ADAM), r.registry->n_params);
    Program *p = fused(r.p, (Switches){.fused_optimizer = true});
    assert_int_equal(p->n_ops, 3); /* sum of squares, factor, update */
    const Op *update = nth_kind(p, OP_ADAM_FUSED, 0);
    assert_int_equal(tensor_count(in_tensor(p, update, 0)), r.registry->param_elements);
    assert_true(update->attr.f[0] == 0.9 && update->attr.f[1] == 0.999 && update->attr.f[2] == 1e-6);
    assert_true(update->attr.f[3] == 0.9);
    prog_destroy(&p);
    p = fused(r.p, (Switches){.fused_optimizer = true, .overlap_clip = true});
    assert_int_equal(p->n_ops, 2); /* the gradient program has left the squared norm */
    assert_int_equal(p->value[nth_kind(p, OP_CLIP_FACTOR, 0)->in[0]].place, PLACE_BUFFER);
    prog_destroy(&p);
    recording_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_switches_the_program_stays),
        cmocka_unit_test(products_of_one_input_are_batched),
        cmocka_unit_test(groups_stay_whole_around_gathers),
        cmocka_unit_test(matrices_that_are_not_neighbours_are_left_alone),
        cmocka_unit_test(attention_takes_scores_softmax_and_context),
        cmocka_unit_test(attention_takes_its_gate),
        cmocka_unit_test(a_value_that_is_fetched_is_not_fused_away),
        cmocka_unit_test(pointwise_sequences_become_one_op),
        cmocka_unit_test(transitions_become_one_op),
        cmocka_unit_test(triangle_multiplications_put_channels_first),
        cmocka_unit_test(layer_norms_move_into_narrow_products),
        cmocka_unit_test(a_layer_norm_with_two_readers_stays),
        cmocka_unit_test(transposes_sink_into_attention),
        cmocka_unit_test(branches_end_in_one_op),
        cmocka_unit_test(swaps_pass_only_where_they_may),
        cmocka_unit_test(the_optimizer_becomes_one_sweep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
