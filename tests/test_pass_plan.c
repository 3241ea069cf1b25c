/* The plan: what lives at the same time never overlaps, memory is used again, and the peak is what a run touches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tiny_step.h"

static const Switches plain = {.dap = 1, .dp = 1};

static Program *begin(Registry **registry)
{
    Program *p = NULL;
    assert_int_equal(registry_create(registry), OK);
    assert_int_equal(prog_create(*registry, &p), OK);
    return p;
}

static Program *planned(const Program *p)
{
    Program *out = NULL;
    assert_int_equal(pass_plan(p, &plain, &out), OK);
    if (prog_verify(out, PASS_PLAN) != OK) fail_msg("%s", status_text());
    return out;
}

static Val fill(Program *p, int64_t n, double value)
{
    return prog_add(p, OP_FILL, 0, NULL, &(OpAttr){.i = {1, n}, .f = {value}});
}

static Val add(Program *p, Val a, Val b)
{
    return prog_add(p, OP_ADD, 2, (Val[]){a, b}, NULL);
}

/* a chain x = x + x of 1024-byte values needs the memory of two */
static void a_chain_needs_two_places(void **state)
{
    (void)state;
    Registry *registry;
    Program *p = begin(&registry);
    Val x = fill(p, 256, 1);
    for (int i = 0; i < 20; i++) x = add(p, x, x);
    prog_output(p, "x", x);
    Program *out = planned(p);
    assert_int_equal(out->arena_bytes, 2048);
    prog_destroy(&out);
    prog_destroy(&p);
    registry_destroy(&registry);
}

/* Best fit: the 1 KiB value goes into the 1 KiB hole, not into the larger one that the next value needs (4 KiB, of
 * which the second sum has taken 256 bytes). */
static void the_smallest_hole_that_fits_is_taken(void **state)
{
    (void)state;
    Registry *registry;
    Program *p = begin(&registry);
    Val large = fill(p, 1024, 1), keep1 = fill(p, 64, 1), small = fill(p, 256, 1), keep2 = fill(p, 64, 1);
    Val used = prog_add(p, OP_SUM_SQUARES, 1, &large, NULL), used2 = prog_add(p, OP_SUM_SQUARES, 1, &small, NULL);
    Val a = fill(p, 256, 1), b = fill(p, 960, 1);
    Val ends[] = {keep1, keep2, used, used2, a, b};
    for (int i = 0; i < 6; i++) {
        char name[8] = {(char)('a' + i)};
        prog_output(p, name, ends[i]);
    }
    Program *out = planned(p);
    assert_int_equal(out->value[a].offset, out->value[small].offset);
    assert_int_equal(out->value[b].offset, out->value[large].offset + 256);
    prog_destroy(&out);
    prog_destroy(&p);
    registry_destroy(&registry);
}

static void another_name_keeps_the_memory(void **state)
{
    (void)state;
    Registry *registry;
    Program *p = begin(&registry);
    Val x = fill(p, 256, 1);
    Val y = prog_add(p, OP_RESHAPE, 1, &x, &(OpAttr){.i = {2, 16, 16}});
    Val other = fill(p, 256, 2); /* must not lie on x: y is read below */
    Val flat = prog_add(p, OP_RESHAPE, 1, &y, &(OpAttr){.i = {1, 256}});
    prog_output(p, "sum", add(p, flat, other));
    Program *out = planned(p);
    assert_int_equal(out->value[x].offset, out->value[flat].offset);
    assert_int_not_equal(out->value[x].offset, out->value[other].offset);
    prog_destroy(&out);
    prog_destroy(&p);
    registry_destroy(&registry);
}

/* What a collective in flight reads and writes stays until the wait, though nobody else reads it. */
static void transfers_keep_their_operands(void **state)
{
    (void)state;
    Registry *registry;
    Program *p = begin(&registry);
    p->dap = 2;
    Val x = fill(p, 256, 1);
    p->value[x].t.shard = 0;
    p->op[0].attr.i[7] = 16; /* so that the shape rule says the same: sharded on axis 0 */
    Val y = prog_add(p, OP_ALL_GATHER, 1, &x, NULL);
    p->op[1].stream = 1;
    Val during = fill(p, 256, 2);
    Val twice = add(p, during, during);
    Val arrived = prog_add(p, OP_COMM_WAIT, 1, &y, NULL);
    Val after = fill(p, 256, 3);
    prog_output(p, "a", twice);
    prog_output(p, "b", arrived);
    prog_output(p, "c", after);
    Program *out = planned(p);
    assert_int_not_equal(out->value[during].offset, out->value[x].offset);
    assert_int_not_equal(out->value[twice].offset, out->value[x].offset);
    assert_int_equal(out->value[arrived].offset, out->value[y].offset);
    assert_true(out->value[after].offset == out->value[x].offset ||
                out->value[after].offset == out->value[during].offset);
    prog_destroy(&out);
    prog_destroy(&p);
    registry_destroy(&registry);
}

/* So does what a group aside reads and writes, until it is waited for. */
static void groups_keep_their_operands(void **state)
{
    (void)state;
    Registry *registry;
    Program *p = begin(&registry);
    Val x = fill(p, 256, 1), twice = add(p, x, x);
    p->op[1].stream = STREAM_ASIDE;
    Val during = fill(p, 256, 2), more = add(p, during, during);
    Val four = add(p, twice, twice);
    p->op[p->n_ops - 1].joins = 1;
    Val after = fill(p, 256, 3);
    prog_output(p, "a", more);
    prog_output(p, "b", four);
    prog_output(p, "c", after);
    Program *out = planned(p);
    Val working[] = {x, twice};
    for (int k = 0; k < 2; k++) {
        assert_int_not_equal(out->value[during].offset, out->value[working[k]].offset);
        assert_int_not_equal(out->value[more].offset, out->value[working[k]].offset);
    }
    assert_true(out->value[after].offset <= out->value[four].offset);
    out->value[during].offset = out->value[x].offset;
    assert_int_equal(prog_verify(out, PASS_PLAN), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "lies on a value that is still needed"));
    prog_destroy(&out);
    prog_destroy(&p);
    registry_destroy(&registry);
}

/* The verifier is what other tests rely on: it must see an overlap. */
static void an_overlap_is_found(void **state)
{
    (void)state;
    Registry *registry;
    Program *p = begin(&registry);
    Val a = fill(p, 300, 1), b = fill(p, 500, 2);
    prog_output(p, "a", a);
    prog_output(p, "b", b);
    Program *out = planned(p);
    out->value[b].offset = out->value[a].offset + 256; /* within the padded end of a */
    assert_int_equal(prog_verify(out, PASS_PLAN), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "lies on a value that is still needed"));
    prog_destroy(&out);
    prog_destroy(&p);
    registry_destroy(&registry);
}

/* Random graphs: planned memory gives the results of unplanned arithmetic. */
static void random_programs_compute_the_right_thing(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    for (int trial = 0; trial < 50; trial++) {
        Registry *registry;
        Program *p = begin(&registry), *out;
        enum { STEPS = 120, SIZES = 6 };
        Val value[STEPS];
        double expected[STEPS];
        for (int i = 0; i < STEPS; i++) {
            int64_t n = 1 + (int64_t)((tiny_draw((uint64_t)trial, 3 * i) + 1) * 400) % SIZES * 97;
            int j = i ? (int)((tiny_draw((uint64_t)trial, 3 * i + 1) + 1) / 2 * i) : 0;
            bool joins = i && tensor_count(prog_tensor(p, value[j])) == n;
            expected[i] = joins ? expected[j] + expected[j] / 4 : i + 1;
            value[i] = joins ? add(p, value[j], prog_add(p, OP_SCALE, 1, &value[j], &(OpAttr){.f = {0.25}}))
                             : fill(p, n, i + 1);
            if (tiny_draw((uint64_t)trial, 3 * i + 2) > 0.8) {
                char name[16];
                snprintf(name, sizeof name, "%d", i);
                prog_output(p, name, value[i]);
            }
        }
        out = planned(p);
        Store *store = NULL;
        Workspace *workspace = NULL;
        Exec *exec = NULL;
        assert_int_equal(store_create(backend, registry, PRECISION_F32, STORE_FORWARD, &store), OK);
        assert_int_equal(workspace_create(backend, exec_workspace_bytes(backend, out), &workspace), OK);
        assert_int_equal(exec_create(backend, out, store, workspace, NULL, &exec), OK);
        assert_int_equal(exec_run(exec), OK);
        assert_int_equal(exec_touched_bytes(exec), out->arena_bytes);
        for (int i = 0; i < STEPS; i++) {
            if (!out->value[value[i]].output) continue;
            int64_t n = tensor_count(prog_tensor(out, value[i]));
            float *found = malloc((size_t)n * sizeof *found);
            assert_int_equal(exec_read_value(exec, value[i], DT_F32, found, n), OK);
            for (int64_t e = 0; e < n; e++) assert_true(fabs(found[e] - expected[i]) <= 1e-5 * fabs(expected[i]));
            free(found);
        }
        exec_destroy(&exec);
        workspace_destroy(&workspace);
        store_destroy(&store);
        prog_destroy(&out);
        prog_destroy(&p);
        registry_destroy(&registry);
    }
    kernels_close(&backend);
}

/* Peak of the plan = bytes a run touches; checkpointing lowers it. */
static void the_peak_is_what_a_step_touches(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    size_t peak[3];
    for (int mode = CHECKPOINT_NONE; mode <= CHECKPOINT_SELECTIVE; mode++) {
        TinyStep step;
        Switches s = {.dap = 1, .dp = 1, .checkpoint = (Checkpointing)mode};
        if (tiny_open(backend, &s, &step) != OK) fail_msg("%s", status_text());
        assert_int_equal(tiny_inputs(&step, 0, 1), OK);
        assert_int_equal(exec_run(step.run_grad), OK);
        assert_int_equal(exec_touched_bytes(step.run_grad), step.grad->arena_bytes);
        peak[mode] = step.grad->arena_bytes;
        tiny_close(&step);
    }
    assert_true(peak[CHECKPOINT_BLOCK] < peak[CHECKPOINT_SELECTIVE]);
    assert_true(peak[CHECKPOINT_SELECTIVE] < peak[CHECKPOINT_NONE]);
    kernels_close(&backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_needs_two_places),
        cmocka_unit_test(the_smallest_hole_that_fits_is_taken),
        cmocka_unit_test(another_name_keeps_the_memory),
        cmocka_unit_test(transfers_keep_their_operands),
        cmocka_unit_test(groups_keep_their_operands),
        cmocka_unit_test(an_overlap_is_found),
        cmocka_unit_test(random_programs_compute_the_right_thing),
        cmocka_unit_test(the_peak_is_what_a_step_touches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
