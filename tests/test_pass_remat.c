/* Rematerialisation: what is computed again, and that no more than needed is kept. Equal results: test_switches. */
#include "tests/pass_program.h"

static Program *with_mode(const Program *p, Checkpointing mode, PassStage last)
{
    return passed(p, &(Switches){.dap = 1, .dp = 1, .checkpoint = mode}, last);
}

static int recomputed(const Program *p)
{
    int count = 0;
    for (int32_t i = 0; i < p->n_ops; i++) count += p->op[i].recomputed;
    return count;
}

static void none_recomputes_nothing(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = with_mode(r.p, CHECKPOINT_NONE, PASS_REMAT);
    assert_int_equal(recomputed(p), 0);
    prog_destroy(&p);
    recording_free(&r);
}

/* Between the forward ops of a block and its recomputation nothing of the block's inside is read. */
static void blocks_keep_only_what_leaves_them(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = with_mode(r.p, CHECKPOINT_BLOCK, PASS_REMAT);
    assert_true(recomputed(p) > 200);
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->stage == STAGE_FORWARD) continue;
        for (int k = 0; k < op->n_in; k++) {
            if (op->in[k] == VAL_NONE || p->value[op->in[k]].def_op < 0) continue;
            const Op *from = &p->op[p->value[op->in[k]].def_op];
            if (from->stage != STAGE_FORWARD || from->block < 0) continue;
            bool leaves = p->value[op->in[k]].output;
            for (int32_t j = 0; j < p->n_ops && !leaves; j++) {
                if (p->op[j].stage != STAGE_FORWARD || p->op[j].block == from->block) continue;
                for (int q = 0; q < p->op[j].n_in; q++) leaves |= p->op[j].in[q] == op->in[k];
            }
            assert_true(leaves);
        }
    }
    prog_destroy(&p);
    recording_free(&r);
}

static void clones_keep_identity_and_dropout(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = with_mode(r.p, CHECKPOINT_BLOCK, PASS_REMAT);
    int dropouts = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (!op->recomputed) continue;
        assert_int_equal(op->stage, STAGE_BACKWARD);
        const Op *former = NULL;
        for (int32_t j = 0; j < i && !former; j++)
            if (p->op[j].stage == STAGE_FORWARD && p->op[j].origin == op->origin && p->op[j].kind == op->kind)
                former = &p->op[j];
        assert_non_null(former);
        assert_memory_equal(&former->attr, &op->attr, sizeof op->attr);
        assert_int_equal(former->block, op->block);
        dropouts += op->kind == OP_DROPOUT;
    }
    assert_true(dropouts >= 0);
    prog_destroy(&p);
    recording_free(&r);
}

static void selective_recomputes_cheap_ops_only(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = with_mode(r.p, CHECKPOINT_SELECTIVE, PASS_REMAT);
    assert_true(recomputed(p) > 50);
    int softmax = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (!p->op[i].recomputed) continue;
        assert_true(op_def(p->op[i].kind)->flags & (OPF_CHEAP | OPF_ALIAS));
        softmax += p->op[i].kind == OP_SOFTMAX;
    }
    assert_true(softmax > 0);
    prog_destroy(&p);
    recording_free(&r);
}

/* A clone stands right before its first reader: nothing is computed again earlier than needed. */
static void clones_come_as_late_as_possible(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = with_mode(r.p, CHECKPOINT_BLOCK, PASS_REMAT);
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (!p->op[i].recomputed) continue;
        int32_t next = i + 1; /* the first op that is no clone is the one they were made for */
        while (next < p->n_ops && p->op[next].recomputed) next++;
        assert_true(next < p->n_ops);
        bool used = false;
        for (int32_t j = i + 1; j <= next && !used; j++)
            for (int k = 0; k < p->op[j].n_in; k++)
                for (int q = 0; q < p->op[i].n_out; q++)
                    used |= p->op[i].out[q] != VAL_NONE && p->op[j].in[k] == p->op[i].out[q];
        assert_true(used);
    }
    prog_destroy(&p);
    recording_free(&r);
}

/* The full model: one block's activations instead of 48. */
static void checkpointing_cuts_the_peak_of_the_full_model(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", true);
    size_t peak[3];
    for (int mode = CHECKPOINT_NONE; mode <= CHECKPOINT_SELECTIVE; mode++) {
        Program *p = with_mode(r.p, (Checkpointing)mode, PASS_PLAN);
        peak[mode] = p->arena_bytes;
        prog_destroy(&p);
    }
    assert_true(peak[CHECKPOINT_BLOCK] * 10 < peak[CHECKPOINT_NONE]);
    assert_true(peak[CHECKPOINT_SELECTIVE] * 2 < peak[CHECKPOINT_NONE]);
    recording_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_recomputes_nothing),
        cmocka_unit_test(blocks_keep_only_what_leaves_them),
        cmocka_unit_test(clones_keep_identity_and_dropout),
        cmocka_unit_test(selective_recomputes_cheap_ops_only),
        cmocka_unit_test(clones_come_as_late_as_possible),
        cmocka_unit_test(checkpointing_cuts_the_peak_of_the_full_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
