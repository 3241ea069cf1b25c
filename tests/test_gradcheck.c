/* Every differentiable op kind against central differences in float64 (relative 1e-6 of the largest element). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/exec.h"
#include "engine/passes.h"
#include "kernels/kernels.h"
#include "tests/gradcheck_table.h"

static const double STEP = 1e-4, TOLERANCE = 1e-6;
enum { MAX_ELEMENTS = 8192, FRAME = 7 };

/* One case ready to run. */
typedef struct Check {
    const GradCase *row;
    Registry *registry;
    Program *recorded, *exact, *differentiated, *planned;
    Backend *backend;
    Store *store;
    Workspace *workspace;
    Exec *exec;
    uint64_t random;
} Check;

/* splitmix64 (Steele et al. 2014): uniform in [0, 1) */
static double draw(Check *c)
{
    uint64_t z = c->random += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double draw_element(Check *c, const GradInput *in, int64_t element)
{
    double u = draw(c), sign = draw(c) < 0.5 ? -1.0 : 1.0;
    switch (in->fill) {
    case FILL_GRAD_POS:
    case FILL_CONST_POS:
        return 0.5 + u;
    case FILL_MASK:
        return u < 0.25 && element > 0 ? 0.0 : 1.0;
    case FILL_INT:
        if (in->values) return in->values[element];
        return floor(in->lo + u * (in->hi - in->lo));
    case FILL_VALUES:
        return in->values[element];
    default:
        return sign * (0.2 + u);
    }
}

static int64_t element_count(const GradInput *in)
{
    int64_t count = 1;
    for (int axis = 0; axis < in->rank; axis++) count *= in->dim[axis];
    return count;
}

static bool is_differentiated(const GradInput *in)
{
    return in->fill == FILL_GRAD || in->fill == FILL_GRAD_POS || in->fill == FILL_FRAMES;
}

static void make_values(Check *c, const GradInput *in, double *values)
{
    int64_t count = element_count(in);
    for (int64_t e = 0; e < count; e++) values[e] = draw_element(c, in, e);
    for (int64_t e = 0; in->fill == FILL_FRAMES && e < count; e += FRAME) {
        double norm = 0;
        for (int k = 0; k < 4; k++) norm += values[e + k] * values[e + k];
        for (int k = 0; k < 4; k++) values[e + k] /= sqrt(norm);
    }
}

static Val record_input(Program *p, const GradInput *in, int index)
{
    char name[32];
    snprintf(name, sizeof name, "in.%d", index);
    if (in->fill == FILL_ABSENT) return VAL_NONE;
    if (is_differentiated(in)) return prog_param(p, name, in->rank, in->dim, INIT_ZERO, 0);
    return prog_input(p, name, in->fill == FILL_INT ? DT_I32 : DT_F32, in->rank, in->dim);
}

/* The op, then loss = sum over its outputs of cot . out. */
static Status record(Check *c)
{
    const GradCase *row = c->row;
    Program *p = c->recorded;
    int n_in = 0;
    Val in[OP_MAX_IN], out[OP_MAX_OUT], loss = VAL_NONE;
    for (int i = 0; i < OP_MAX_IN; i++) {
        in[i] = record_input(p, &row->in[i], i);
        if (in[i] != VAL_NONE) n_in = i + 1;
    }
    prog_add_multi(p, row->kind, n_in, in, &row->attr, out);
    TRY(prog_status(p));
    for (int k = 0; k < OP_MAX_OUT; k++) {
        if (out[k] == VAL_NONE || (row->outputs && !(row->outputs >> k & 1))) continue;
        char name[32];
        snprintf(name, sizeof name, "cot.%d", k);
        Tensor t = *prog_tensor(p, out[k]);
        Val cot = prog_input(p, name, DT_F32, t.rank, t.dim);
        Val term = prog_add(p, OP_DOT, 2, (Val[]){out[k], cot}, NULL);
        loss = loss == VAL_NONE ? term : prog_add(p, OP_ADD, 2, (Val[]){loss, term}, NULL);
    }
    p->loss = loss;
    prog_output(p, "loss", loss);
    return prog_status(p);
}

static Status write_buffers(Check *c)
{
    double values[MAX_ELEMENTS];
    for (int b = 0; b < c->registry->n_buffers; b++) {
        const BufferInfo *info = &c->registry->buffer[b];
        GradInput in = {.fill = FILL_CONST, .rank = 1, .dim = {tensor_count(&info->tensor)}};
        if (info->name[0] == 'i') in = c->row->in[atoi(info->name + 3)];
        int64_t count = element_count(&in);
        if (count > MAX_ELEMENTS)
            return status_fail(ERR_INTERNAL, "%s: more than %d elements", info->name, MAX_ELEMENTS);
        make_values(c, &in, values);
        int32_t integers[MAX_ELEMENTS];
        for (int64_t e = 0; e < count; e++) integers[e] = (int32_t)values[e];
        bool whole = info->tensor.dtype == DT_I32;
        TRY(store_write(c->store, b, whole ? DT_I32 : DT_F64, whole ? (void *)integers : (void *)values, count));
    }
    return OK;
}

static Status prepare(Check *c)
{
    Switches switches = {.precision = PRECISION_F64, .dap = 1, .dp = 1};
    TRY(registry_create(&c->registry));
    TRY(prog_create(c->registry, &c->recorded));
    TRY(record(c));
    TRY(pass_precision(c->recorded, &switches, &c->exact));
    TRY(pass_autodiff(c->exact, &switches, &c->differentiated));
    TRY(prog_verify(c->differentiated, PASS_AUTODIFF));
    TRY(pass_plan(c->differentiated, &switches, &c->planned));
    TRY(kernels_open("cpu", &(KernelOptions){.dap = 1, .threads = 1}, &c->backend));
    TRY(store_create(c->backend, c->registry, PRECISION_F64, STORE_TRAINING, &c->store));
    TRY(workspace_create(c->backend, exec_workspace_bytes(c->backend, c->planned), &c->workspace));
    TRY(exec_create(c->backend, c->planned, c->store, c->workspace, &(ExecOptions){0}, &c->exec));
    return write_buffers(c);
}

static void release(Check *c)
{
    exec_destroy(&c->exec);
    workspace_destroy(&c->workspace);
    store_destroy(&c->store);
    kernels_close(&c->backend);
    prog_destroy(&c->planned);
    prog_destroy(&c->differentiated);
    prog_destroy(&c->exact);
    prog_destroy(&c->recorded);
    registry_destroy(&c->registry);
}

static Status evaluate(Check *c, double *loss_out)
{
    TRY(exec_run(c->exec));
    return exec_output(c->exec, "loss", DT_F64, loss_out, 1);
}

/* Largest difference over the largest gradient of parameter `param`; `values` are its values. */
static Status compare(Check *c, int param, double *values, double *error_out, double *largest_out)
{
    double analytic[MAX_ELEMENTS], plus, minus, worst = 0, largest = 0;
    int64_t count = c->registry->param[param].count;
    TRY(evaluate(c, &plus));
    TRY(store_read_param(c->store, PLACE_GRAD, param, DT_F64, analytic, count));
    const ParamInfo *info = &c->registry->param[param];
    const unsigned stopped = c->row->in[atoi(info->name + 3)].stopped;
    int64_t last = info->rank ? info->dim[info->rank - 1] : 1;
    for (int64_t e = 0; e < count; e++) {
        double value = values[e];
        if (stopped && stopped >> (e % last) & 1) {
            if (analytic[e] != 0) worst = INFINITY;
            continue;
        }
        values[e] = value + STEP;
        TRY(store_write_param(c->store, PLACE_PARAM, param, DT_F64, values, count));
        TRY(evaluate(c, &plus));
        values[e] = value - STEP;
        TRY(store_write_param(c->store, PLACE_PARAM, param, DT_F64, values, count));
        TRY(evaluate(c, &minus));
        values[e] = value;
        worst = fmax(worst, fabs((plus - minus) / (2 * STEP) - analytic[e]));
        largest = fmax(largest, fabs(analytic[e]));
        if (!isfinite(analytic[e])) worst = INFINITY;
    }
    TRY(store_write_param(c->store, PLACE_PARAM, param, DT_F64, values, count));
    *error_out = worst / fmax(largest, 1e-30);
    *largest_out = largest;
    return OK;
}

/* Number of failures. A gradient that is zero everywhere fails too, unless the loss ignores the parameter on purpose.
 */
static int compare_all(Check *c)
{
    static double values[OP_MAX_IN][MAX_ELEMENTS];
    int failures = 0;
    Status status = OK;
    for (int k = 0; k < c->registry->n_params && status == OK; k++) {
        make_values(c, &c->row->in[atoi(c->registry->param[k].name + 3)], values[k]);
        status = store_write_param(c->store, PLACE_PARAM, k, DT_F64, values[k], c->registry->param[k].count);
    }
    for (int k = 0; k < c->registry->n_params && status == OK; k++) {
        double error, largest;
        status = compare(c, k, values[k], &error, &largest);
        if (status != OK) break;
        bool unused = c->row->kind == OP_LINEAR_GROUP && c->row->outputs == 1 && largest == 0;
        bool good = unused || (error <= TOLERANCE && largest > 1e-6);
        if (!good) failures++;
        printf("%s %-22s %-32s %s: relative error %.1e, largest gradient %.3g\n", good ? "ok  " : "FAIL",
               op_def(c->row->kind)->name, c->row->note, c->registry->param[k].name, unused ? 0.0 : error, largest);
    }
    if (status == OK) return failures;
    printf("FAIL %s %s: %s\n", op_def(c->row->kind)->name, c->row->note, status_text());
    return failures + 1;
}

static void test_gradients(void **state)
{
    (void)state;
    int failures = 0;
    for (size_t f = 0; f < sizeof gradcheck_families / sizeof gradcheck_families[0]; f++)
        for (int i = 0; i < gradcheck_families[f].count; i++) {
            Check c = {.row = &gradcheck_families[f].cases[i], .random = 1 + (uint64_t)i};
            if (prepare(&c) == OK) {
                failures += compare_all(&c);
            } else {
                failures++;
                printf("FAIL %s %s: %s\n", op_def(c.row->kind)->name, c.row->note, status_text());
            }
            release(&c);
        }
    assert_int_equal(failures, 0);
}

/* Collectives are differentiated together: equality of programs on 1, 2 and 4 ranks (parity --dap) is their check. */
static bool needs_ranks(OpKind kind)
{
    return (op_def(kind)->flags & OPF_COMM) || kind == OP_RESHARD || kind == OP_SHARD_SLICE || kind == OP_COMM_WAIT;
}

static void test_every_kind_has_a_row(void **state)
{
    (void)state;
    int missing = 0;
    for (int kind = 0; kind < OP_COUNT; kind++) {
        bool found = !op_def(kind)->vjp || needs_ranks(kind);
        for (size_t f = 0; f < sizeof gradcheck_families / sizeof gradcheck_families[0]; f++)
            for (int i = 0; i < gradcheck_families[f].count; i++)
                found |= gradcheck_families[f].cases[i].kind == (OpKind)kind;
        if (found) continue;
        printf("no gradient check of %s\n", op_def(kind)->name);
        missing++;
    }
    assert_int_equal(missing, 0);
}

/* vjp is NULL exactly where the flags say that no gradient flows. */
static void test_flags_agree_with_rules(void **state)
{
    (void)state;
    for (int kind = 0; kind < OP_COUNT; kind++) {
        const OpDef *def = op_def(kind);
        bool nodiff = def->flags & OPF_NODIFF;
        if (nodiff != (def->vjp == NULL)) print_message("%s: flags and vjp disagree\n", def->name);
        assert_true(nodiff == (def->vjp == NULL));
        assert_non_null(def->infer);
        assert_non_null(def->cost);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_every_kind_has_a_row),
        cmocka_unit_test(test_flags_agree_with_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
