/* Collectives against their definition, computed from what every rank is known to hold: all ops, axes, types, group
 * sizes, blocking, split and sent; layouts of ranks; what happens when ranks and DAP do not fit, and when a rank fails.
 *
 *   test_comm              the suite: starts mpirun with 2, 4 and 8 ranks of itself
 *   test_comm worker DAP [BACKEND]   one rank (cuda: as many GPUs as ranks, or one that takes turns)
 *   test_comm fail|die DAP [BACKEND]   one rank of a job in which rank 1 fails or is killed
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "tests/comm_sent.h"

/* --- what a rank does --- */

typedef struct Case {
    OpKind kind;
    OpAttr attr;
    DType dtype;
    Way way;
    bool uneven; /* an all-reduce of what ranks cannot share out in equal parts */
} Case;

/* Local extents before the op of a value that is whole [8, 16, 24] (a multiple of 8 on every axis). */
static const int64_t whole_dim[3] = {8, 16, 24};
/* 405 times 16 bytes in f32: parts of an odd number, long enough for copy engines. */
static const int64_t uneven_dim[3] = {5, 9, 36};

/* Global element index of local element e of a tensor sharded on `shard` on rank r. */
static int64_t global_index(const int64_t *local, int shard, int r, int64_t e)
{
    int64_t at[3], rest = e;
    for (int axis = 2; axis >= 0; axis--) {
        at[axis] = rest % local[axis];
        rest /= local[axis];
    }
    if (shard >= 0) at[shard] += r * local[shard];
    return (at[0] * whole_dim[1] + at[1]) * whole_dim[2] + at[2];
}

/* Value of global element g; partial sums differ by rank. Small integers: exact in every type, sums included. */
static double element(int64_t g, int rank, bool partial)
{
    return (double)(g * 7 % 13) + (partial ? (double)rank : 0);
}

typedef struct Layout {
    int in_shard, out_shard;
    bool partial;
} Layout;

static Layout layout_of(const Case *c)
{
    int axis = (int)c->attr.i[0];
    switch (c->kind) {
    case OP_ALL_GATHER:
        return (Layout){axis, -1, false};
    case OP_SHARD_SLICE:
        return (Layout){-1, axis, false};
    case OP_REDUCE_SCATTER:
        return (Layout){-1, axis, true};
    case OP_ALL_TO_ALL:
        return (Layout){axis, (int)c->attr.i[1], false};
    default:
        return (Layout){-1, -1, true};
    }
}

static double expected_value(const Case *c, const RankLayout *ranks, int64_t g)
{
    double value = element(g, 0, false), members = 0, sum = 0;
    if (c->kind == OP_REDUCE_SCATTER || (c->kind == OP_ALL_REDUCE && c->attr.i[0] == GROUP_DAP)) {
        members = ranks->dap;
        for (int r = 0; r < ranks->dap; r++) sum += ranks->dp_rank * ranks->dap + r;
    } else if (c->kind == OP_ALL_REDUCE && c->attr.i[0] == GROUP_DP) {
        members = ranks->dp;
        for (int r = 0; r < ranks->dp; r++) sum += r * ranks->dap + ranks->dap_rank;
    } else if (c->kind == OP_ALL_REDUCE) {
        members = ranks->world;
        sum = ranks->world * (ranks->world - 1) / 2.0;
    } else {
        return value;
    }
    double total = members * value + sum;
    return c->kind == OP_ALL_REDUCE ? c->attr.f[0] * total : total;
}

/* A program of one collective (and, when split, something that runs meanwhile), run through the executor. */
static Status run_case(Backend *backend, const Case *c)
{
    Layout layout = layout_of(c);
    int64_t local[3];
    for (int axis = 0; axis < 3; axis++)
        local[axis] =
            c->uneven ? uneven_dim[axis] : whole_dim[axis] / (axis == layout.in_shard ? backend->layout.dap : 1);
    Trial trial;
    TRY(trial_open(&trial, backend->layout.dap));
    Program *p = trial.p;
    Val source = prog_input(p, "x", DT_F32, 3, local);
    Val x = prog_add(p, OP_CAST, 1, &source, &(OpAttr){.i = {c->dtype}});
    p->value[x].t.shard = (int8_t)layout.in_shard;
    Val y = prog_add(p, c->kind, 1, &x, &c->attr), z = y;
    if (c->way == SENT) send(p, false);
    if (c->way == SPLIT) {
        p->op[p->n_ops - 1].stream = 1;
        Val other =
            prog_add(p, OP_CAST, 1, &source, &(OpAttr){.i = {c->dtype}}); /* would overwrite x if it were free */
        prog_output(p, "other", other);
        z = prog_add(p, OP_COMM_WAIT, 1, &y, NULL);
    }
    prog_output(p, "z", z);
    const Tensor *t = prog_tensor(p, z);
    Values in = values_of(local[0] * local[1] * local[2]), expected = values_of(tensor_count(t));
    for (int64_t e = 0; e < in.count; e++)
        in.v[e] = element(global_index(local, layout.in_shard, backend->layout.dap_rank, e), backend->layout.rank,
                          layout.partial);
    for (int64_t e = 0; e < expected.count; e++)
        expected.v[e] =
            expected_value(c, &backend->layout, global_index(t->dim, layout.out_shard, backend->layout.dap_rank, e));
    char what[80];
    snprintf(what, sizeof what, "%s %s%s axis %ld", op_def(c->kind)->name, dtype_name(c->dtype), way_names[c->way],
             (long)c->attr.i[0]);
    return run_program(backend, &trial, &in, 1, &expected, what);
}

static Status run_cases(Backend *backend)
{
    static const OpKind by_axis[] = {OP_ALL_GATHER, OP_REDUCE_SCATTER, OP_SHARD_SLICE};
    static const DType types[] = {DT_F32, DT_BF16, DT_F64};
    for (int t = 0; t < (on_gpu(backend) ? 2 : 3); t++)
        for (Way way = WHOLE; way < WAYS; way++) {
            Case c = {.dtype = types[t], .way = way};
            for (int k = 0; k < 3; k++)
                for (int axis = 0; axis < 3; axis++) {
                    c.kind = by_axis[k];
                    c.attr = (OpAttr){.i = {axis}};
                    if (way == WHOLE || c.kind != OP_SHARD_SLICE) TRY(run_case(backend, &c));
                }
            for (int from = 0; from < 3; from++)
                for (int to = 0; to < 3; to++) {
                    c.kind = OP_ALL_TO_ALL;
                    c.attr = (OpAttr){.i = {from, to}};
                    if (from != to) TRY(run_case(backend, &c));
                }
            for (int group = 0; group < GROUP_COUNT && way != SENT; group++) {
                c.kind = OP_ALL_REDUCE;
                c.attr = (OpAttr){.i = {group}, .f = {0.5}};
                for (int uneven = 0; uneven < 2; uneven++) {
                    c.uneven = uneven;
                    TRY(run_case(backend, &c));
                }
            }
        }
    return OK;
}

/* Collectives of the host: set-up, metrics, clock. */
static Status run_host(Backend *backend)
{
    const RankLayout *l = &backend->layout;
    double values[2] = {l->rank, 1}, all[16] = {0};
    TRY(backend->host_all_reduce_sum(backend, values, 2));
    if (values[0] != l->world * (l->world - 1) / 2.0 || values[1] != l->world)
        return status_fail(ERR_COMM, "sum over ranks is wrong");
    double own = 10 + l->rank;
    TRY(backend->host_all_gather(backend, &own, 1, all));
    for (int r = 0; r < l->world; r++)
        if (all[r] != 10 + r) return status_fail(ERR_COMM, "gather over ranks is wrong");
    char text[8] = "";
    if (l->rank == l->world - 1) strcpy(text, "hello");
    TRY(backend->host_broadcast(backend, text, sizeof text, l->world - 1));
    if (strcmp(text, "hello")) return status_fail(ERR_COMM, "broadcast is wrong");
    if (l->rank != l->dp_rank * l->dap + l->dap_rank) return status_fail(ERR_COMM, "layout of ranks is wrong");
    return backend->barrier(backend);
}

static int worker(const char *dap, const char *name)
{
    Backend *backend = NULL;
    Status status = kernels_open(name, &(KernelOptions){.dap = atoi(dap)}, &backend);
    if (status == OK) status = run_cases(backend);
    if (status == OK) status = run_products(backend);
    if (status == OK) status = run_triangles(backend);
    if (status == OK) status = run_attentions(backend);
    if (status == OK) status = run_gradients(backend);
    if (status == OK) status = run_host(backend);
    if (status != OK) {
        fprintf(stderr, "%s\n", status_text());
        kernels_abort(status_exit_code(status));
    }
    kernels_close(&backend);
    kernels_finalize();
    return status_exit_code(status);
}

/* Rank 1 fails and reports it, or is killed, after collectives in which all took part; the others wait for it in the
 * next ones, as in a step, until they are taken down. */
static int failing_worker(bool killed, const char *dap, const char *name)
{
    Backend *backend = NULL;
    Status status = kernels_open(name, &(KernelOptions){.dap = atoi(dap)}, &backend);
    if (status == OK) status = run_cases(backend);
    if (status == OK && backend->layout.rank == 1) {
        if (killed) raise(SIGKILL);
        status = status_fail(ERR_IO, "rank 1: no such file");
    }
    for (int turn = 0; turn < 1000 && status == OK; turn++) status = run_cases(backend);
    fprintf(stderr, "%s\n", status == OK ? "rank 1 was not missed" : status_text());
    kernels_abort(1);
    return 1;
}

/* --- the suite --- */

/* Open MPI unloads its modules with their memory: a sanitizer sees leaks without names, which cannot be told from ours.
 * Runs without MPI are checked. */
#define NO_LEAK_CHECK "ASAN_OPTIONS=detect_leaks=0 "

/* Exit code of `mpirun -np ranks self arguments`; what it prints in text. */
static int job(int ranks, const char *arguments, char *text, size_t size)
{
    char self[4096], command[8192];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(length > 0);
    self[length] = '\0';
    snprintf(command, sizeof command, NO_LEAK_CHECK "mpirun --oversubscribe -np %d '%s' %s 2>&1", ranks, self,
             arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t used = fread(text, 1, size - 1, pipe);
    text[used] = '\0';
    char rest[256];
    while (fread(rest, 1, sizeof rest, pipe) > 0) continue;
    int code = pclose(pipe);
    return WIFEXITED(code) ? WEXITSTATUS(code) : -1;
}

static void works(int ranks, int dap)
{
    char arguments[32], text[4096];
    snprintf(arguments, sizeof arguments, "worker %d", dap);
    if (job(ranks, arguments, text, sizeof text)) fail_msg("%d ranks, dap %d: %s", ranks, dap, text);
}

static void two_ranks(void **state)
{
    (void)state;
    works(2, 2);
    works(2, 1);
}

static void four_ranks(void **state)
{
    (void)state;
    works(4, 4);
    works(4, 2);
}

static void eight_ranks(void **state)
{
    (void)state;
    works(8, 8);
}

static void one_rank_is_a_group_of_its_own(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    Case c = {.kind = OP_ALL_REDUCE, .attr = {.i = {GROUP_WORLD}, .f = {0.5}}, .dtype = DT_F32};
    if (run_case(backend, &c) != OK) fail_msg("%s", status_text());
    assert_int_equal(run_host(backend), OK);
    kernels_close(&backend);
}

/* Timing of one rank's share: shapes as on n ranks, own part in place of what the others would send. */
static void no_comm_fills_outputs_with_the_own_part(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 4, .no_comm = true}, &backend), OK);
    assert_int_equal(backend->layout.dap, 4);
    Trial trial;
    assert_int_equal(trial_open(&trial, 4), OK);
    Val x = prog_input(trial.p, "x", DT_F32, 2, (int64_t[]){3, 2});
    trial.p->value[x].t.shard = 1;
    prog_output(trial.p, "y", prog_add(trial.p, OP_ALL_GATHER, 1, &x, &(OpAttr){.i = {1}}));
    assert_int_equal(trial_prepare(backend, &trial), OK);
    double in[6] = {1, 2, 3, 4, 5, 6}, out[24];
    assert_int_equal(store_write(trial.store, 0, DT_F64, in, 6), OK);
    assert_int_equal(exec_run(trial.exec), OK);
    assert_int_equal(exec_output(trial.exec, "y", DT_F64, out, 24), OK);
    for (int e = 0; e < 24; e++) assert_true(out[e] == in[e / 8 * 2 + e % 2]);
    trial_close(&trial);
    kernels_close(&backend);
}

static void dap_that_does_not_divide_is_refused(void **state)
{
    (void)state;
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 2}, &backend), ERR_USAGE);
    assert_string_equal(status_text(), "dap 2 does not divide the 1 rank of this job");
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 0}, &backend), ERR_USAGE);
    char text[4096];
    assert_int_not_equal(job(3, "worker 2", text, sizeof text), 0);
    assert_non_null(strstr(text, "dap 2 does not divide the 3 ranks of this job"));
    assert_int_equal(kernels_open("tpu", &(KernelOptions){.dap = 1}, &backend), ERR_USAGE);
    assert_string_equal(status_text(), "unknown backend \"tpu\" (expected cpu or cuda)");
}

static void a_failing_rank_takes_the_job_down(void **state)
{
    (void)state;
    char text[4096];
    time_t start = time(NULL);
    assert_int_not_equal(job(4, "fail 2", text, sizeof text), 0);
    assert_non_null(strstr(text, "rank 1: no such file"));
    assert_true(time(NULL) - start < 30);
}

static void a_killed_rank_takes_the_job_down(void **state)
{
    (void)state;
    char text[4096];
    time_t start = time(NULL);
    assert_int_not_equal(job(4, "die 2", text, sizeof text), 0);
    assert_non_null(strstr(text, "signal 9"));
    assert_true(time(NULL) - start < 30);
}

int main(int argc, char **argv)
{
    const char *name = argc > 3 ? argv[3] : "cpu";
    if (argc >= 3 && !strcmp(argv[1], "worker")) return worker(argv[2], name);
    if (argc >= 3 && !strcmp(argv[1], "fail")) return failing_worker(false, argv[2], name);
    if (argc >= 3 && !strcmp(argv[1], "die")) return failing_worker(true, argv[2], name);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_rank_is_a_group_of_its_own),
                                       cmocka_unit_test(no_comm_fills_outputs_with_the_own_part),
                                       cmocka_unit_test(two_ranks),
                                       cmocka_unit_test(four_ranks),
                                       cmocka_unit_test(eight_ranks),
                                       cmocka_unit_test(dap_that_does_not_divide_is_refused),
                                       cmocka_unit_test(a_failing_rank_takes_the_job_down),
                                       cmocka_unit_test(a_killed_rank_takes_the_job_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
