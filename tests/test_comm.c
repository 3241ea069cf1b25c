/* Collectives against their definition, computed from what every rank is known to hold: all ops, axes, types, group
 * sizes, blocking, split and sent; layouts of ranks; what happens when ranks and DAP do not fit, and when a rank fails.
 *
 *   test_comm              the suite: starts mpirun with 2, 4 and 8 ranks of itself
 *   test_comm worker DAP [BACKEND]   one rank (cuda: as many GPUs as ranks, or one that takes turns)
 *   test_comm fail|die     one rank of a job in which rank 1 fails or is killed
 */
#include <math.h>
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

#include "engine/convert.h"
#include "engine/exec.h"
#include "kernels/kernels.h"

/* --- what a rank does --- */

/* In one piece, split into start and wait, or part of the op that writes its operand. */
typedef enum Way { WHOLE, SPLIT, SENT, WAYS } Way;
static const char *const way_names[WAYS] = {"", " split", " sent"};

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

/* The last op becomes part of the one before it. */
static void send(Program *p)
{
    const Op *collective = &p->op[--p->n_ops];
    Op *op = &p->op[p->n_ops - 1];
    int output = 0;
    while (op->out[output] != collective->in[0]) output++;
    op->send = (Send){.active = true,
                      .output = (int8_t)output,
                      .kind = collective->kind,
                      .attr = collective->attr,
                      .from = collective->in[0]};
    op->out[output] = collective->out[0];
    p->value[op->out[output]].def_op = p->n_ops - 1;
}

/* A program on its way through the executor, its inputs, and its outputs by name. */
enum { INPUTS = 8, OUTPUTS = 4 };
typedef struct Trial {
    Registry *registry;
    Program *p, *planned;
    Store *store;
    Workspace *workspace;
    Exec *exec;
    Val in[INPUTS];
    const char *name[OUTPUTS];
    Val out[OUTPUTS];
    int n_in, n_out;
} Trial;

static Status trial_open(Trial *trial, int dap)
{
    *trial = (Trial){0};
    TRY(registry_create(&trial->registry));
    TRY(prog_create(trial->registry, &trial->p));
    trial->p->dap = dap;
    return OK;
}

/* What is recorded can be run. */
static Status trial_prepare(Backend *backend, Trial *trial)
{
    TRY(pass_plan(trial->p, &(Switches){.dap = trial->p->dap, .dp = 1}, &trial->planned));
    TRY(store_create(backend, trial->registry, PRECISION_F32, STORE_FORWARD, &trial->store));
    TRY(workspace_create(backend, exec_workspace_bytes(backend, trial->planned), &trial->workspace));
    return exec_create(backend, trial->planned, trial->store, trial->workspace, NULL, &trial->exec);
}

static void trial_close(Trial *trial)
{
    exec_destroy(&trial->exec);
    workspace_destroy(&trial->workspace);
    store_destroy(&trial->store);
    prog_destroy(&trial->planned);
    prog_destroy(&trial->p);
    registry_destroy(&trial->registry);
}

typedef struct Values {
    double *v;
    int64_t count;
} Values;

static Values values_of(int64_t count)
{
    return (Values){calloc((size_t)count, sizeof(double)), count};
}

/* Runs a program with these inputs twice, since slots are used again: its output "z" has to be what is expected. Frees
 * all of them. */
static Status run_program(Backend *backend, Trial *trial, Values *in, int n_in, Values *expected, const char *what)
{
    Values z = values_of(expected->count);
    Status status = trial_prepare(backend, trial);
    for (int k = 0; k < n_in && status == OK; k++) status = store_write(trial->store, k, DT_F64, in[k].v, in[k].count);
    for (int turn = 0; turn < 2 && status == OK; turn++) {
        status = exec_run(trial->exec);
        if (status == OK) status = exec_output(trial->exec, "z", DT_F64, z.v, z.count);
        for (int64_t e = 0; e < z.count && status == OK; e++)
            if (z.v[e] != expected->v[e])
                status =
                    status_fail(ERR_COMM, "%s: element %ld is %g, expected %g", what, (long)e, z.v[e], expected->v[e]);
    }
    trial_close(trial);
    for (int k = 0; k < n_in; k++) free(in[k].v);
    free(expected->v);
    free(z.v);
    return status;
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
    if (c->way == SENT) send(p);
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

/* Triangle products whose inner extent is shared out, summed and shared out along rows: `share` rows a rank, so that
 * these lie in tiles with other ranks' rows, in tiles of their own, or in both; with more than one tile of columns;
 * with more channels than a GPU has blocks. */
typedef struct Product {
    int64_t channels, inner, share, columns;
} Product;

static const Product products[] = {{3, 64, 32, 256},    {134, 32, 64, 128}, {3, 32, 128, 512},
                                   {133, 32, 128, 128}, {2, 64, 192, 384},  {2, 32, 192, 256}};

/* 0 .. 15 */
static int64_t scattered(int64_t channel, int64_t place, int rank, int64_t inner)
{
    uint64_t x = (uint64_t)((channel * 4096 + place) * 8 + rank) * 64 + (uint64_t)inner;
    return (int64_t)(x * UINT64_C(0x9e3779b97f4a7c15) >> 60);
}

/* A row takes one inner element of 16; what it takes is below 8: sums are exact in bf16. */
static int64_t product_hit(int64_t channel, int64_t row, int rank)
{
    return scattered(channel, row, rank, 0);
}

static double product_value(int64_t channel, int64_t inner, int64_t column, int rank)
{
    return (double)(scattered(channel, column, rank, inner) / 2);
}

static Status run_product(Backend *backend, const Product *c)
{
    int ranks = backend->layout.dap, rank = backend->layout.dap_rank;
    int64_t rows = c->share * ranks, size_a[3] = {c->channels, c->inner, rows},
            size_b[3] = {c->channels, c->inner, c->columns};
    Trial trial;
    TRY(trial_open(&trial, ranks));
    Program *p = trial.p;
    Val source[2] = {prog_input(p, "a", DT_F32, 3, size_a), prog_input(p, "b", DT_F32, 3, size_b)}, operand[2];
    for (int k = 0; k < 2; k++) {
        operand[k] = prog_add(p, OP_CAST, 1, &source[k], &(OpAttr){.i = {DT_BF16}});
        p->value[operand[k]].t.shard = 1;
    }
    Val x = prog_add(p, OP_TRI_PRODUCT, 2, operand, &(OpAttr){.i = {1, 0, 1}});
    Val z = prog_add(p, OP_REDUCE_SCATTER, 1, &x, &(OpAttr){.i = {1}});
    send(p);
    prog_output(p, "z", z);
    Values in[2] = {values_of(c->channels * c->inner * rows), values_of(c->channels * c->inner * c->columns)};
    Values expected = values_of(c->channels * c->share * c->columns);
    for (int64_t n = 0; n < c->channels; n++)
        for (int64_t k = 0; k < c->inner; k++) {
            double *a = in[0].v + (n * c->inner + k) * rows, *b = in[1].v + (n * c->inner + k) * c->columns;
            for (int64_t i = 0; i < rows; i++) a[i] = k % 16 == product_hit(n, i, rank);
            for (int64_t j = 0; j < c->columns; j++) b[j] = product_value(n, k, j, rank);
        }
    for (int64_t n = 0; n < c->channels; n++)
        for (int64_t i = 0; i < c->share; i++)
            for (int r = 0; r < ranks; r++)
                for (int64_t k = product_hit(n, rank * c->share + i, r); k < c->inner; k += 16)
                    for (int64_t j = 0; j < c->columns; j++)
                        expected.v[(n * c->share + i) * c->columns + j] += product_value(n, k, j, r);
    char what[80];
    snprintf(what, sizeof what, "%ld products sent, %ld rows a rank, %ld columns", (long)c->channels, (long)c->share,
             (long)c->columns);
    return run_program(backend, &trial, in, 2, &expected, what);
}

/* The CPU runs an op that sends and its collective apart, whatever the sizes: many and large ones are for a GPU. */
static bool on_gpu(const Backend *backend)
{
    return !strcmp(backend->name, "cuda");
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
    size_t n_products = on_gpu(backend) ? sizeof products / sizeof *products : 1;
    for (size_t k = 0; k < n_products; k++) TRY(run_product(backend, &products[k]));
    return OK;
}

static Val trial_input(Trial *trial, DType type, int8_t shard, int rank, const int64_t *dim)
{
    static const char *const names[INPUTS] = {"0", "1", "2", "3", "4", "5", "6", "7"};
    Val x = prog_input(trial->p, names[trial->n_in], DT_F32, rank, dim);
    trial->in[trial->n_in++] = x;
    if (type != DT_F32) x = prog_add(trial->p, OP_CAST, 1, &x, &(OpAttr){.i = {type}});
    trial->p->value[x].t.shard = shard;
    return x;
}

static void trial_output(Trial *trial, const char *name, Val v)
{
    prog_output(trial->p, name, v);
    trial->name[trial->n_out] = name;
    trial->out[trial->n_out++] = v;
}

/* Twice, since flags are used again; inputs differ from rank to rank. */
static Status trial_run(Backend *backend, Trial *trial, Values *out)
{
    for (int k = 0; k < trial->n_out; k++) out[k] = values_of(tensor_count(prog_tensor(trial->p, trial->out[k])));
    TRY(trial_prepare(backend, trial));
    for (int k = 0; k < trial->n_in; k++) {
        Values x = values_of(tensor_count(prog_tensor(trial->p, trial->in[k])));
        for (int64_t e = 0; e < x.count; e++)
            x.v[e] = (double)((e * 7919 + k * 61 + backend->layout.rank * 31) % 211) / 100 - 1;
        Status status = store_write(trial->store, k, DT_F64, x.v, x.count);
        free(x.v);
        TRY(status);
    }
    for (int turn = 0; turn < 2; turn++) {
        TRY(exec_run(trial->exec));
        for (int k = 0; k < trial->n_out; k++)
            TRY(exec_output(trial->exec, trial->name[k], DT_F64, out[k].v, out[k].count));
    }
    return OK;
}

typedef struct Shape {
    int64_t n, width, heads, groups, axis; /* axis: along which dbias is shared out, of a group's pairs */
    int64_t residues;                      /* of a rank, summed over the ranks */
    int64_t inner;                         /* columns of the gradient behind a norm */
    bool column, twice;
    double tolerance; /* of an output's largest value; 0 where sending rounds nothing in another way */
} Shape;
typedef Status (*Record)(Trial *trial, int dap, const Shape *shape, Way way);

/* What kernels that send compute is what those do that do not. */
static Status compare(Backend *backend, Record record, const Shape *shape, const char *what)
{
    Trial trial[2];
    Values out[2][OUTPUTS] = {{{NULL, 0}}};
    Status status = OK;
    for (int k = 0; k < 2 && status == OK; k++) {
        status = record(&trial[k], backend->layout.dap, shape, k ? SENT : WHOLE);
        if (status == OK) status = trial_run(backend, &trial[k], out[k]);
        trial_close(&trial[k]);
    }
    for (int k = 0; k < trial[0].n_out && status == OK; k++) {
        const double *apart = out[0][k].v, *sent = out[1][k].v;
        double largest = 0;
        for (int64_t e = 0; e < out[0][k].count; e++) largest = fmax(largest, fabs(apart[e]));
        for (int64_t e = 0; e < out[0][k].count && status == OK; e++)
            if (!(fabs(sent[e] - apart[e]) <= shape->tolerance * largest))
                status = status_fail(ERR_COMM,
                                     "%s of %ld, %ld heads, %ld wide, %ld groups, sent: element %ld of %s is %g, not "
                                     "%g",
                                     what, (long)shape->n, (long)shape->heads, (long)shape->width, (long)shape->groups,
                                     (long)e, trial[0].name[k], sent[e], apart[e]);
    }
    for (int k = 0; k < 2 * OUTPUTS; k++) free(out[k / OUTPUTS][k % OUTPUTS].v);
    return status;
}

/* Rows share out their queries behind an attention, gated, over a bias; o stays. Rows enough for several in a block.
 * Twice: one result goes, the other one stays; apart, it is the other way round, so that each is held against each. */
static Status record_attention(Trial *trial, int dap, const Shape *c, Way way)
{
    int64_t size[3] = {24 / dap, c->n, c->heads * c->width};
    Val made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    Val x = trial_input(trial, DT_BF16, 0, 3, size),
        bias = trial_input(trial, DT_BF16, SHARD_NONE, 3, (int64_t[]){c->n, c->n, c->heads});
    prog_add_multi(trial->p, OP_ATTENTION, 6, (Val[]){x, x, x, VAL_NONE, bias, x},
                   &(OpAttr){.i = {c->heads, 0, 0, c->twice}, .f = {1 / sqrt((double)c->width), 1e9}}, made);
    int goes = c->twice && way == WHOLE ? 3 : 0;
    trial_output(trial, "o", made[2]);
    if (c->twice) trial_output(trial, "again", made[3 - goes]);
    Val z = prog_add(trial->p, OP_ALL_TO_ALL, 1, &made[goes], &(OpAttr){.i = {0, 1}});
    if (way == SENT) send(trial->p);
    trial_output(trial, "z", z);
    return OK;
}

/* The gradient of an attention's bias, summed over rows here and on the other ranks; those of queries, keys and values
 * stay. */
static Status record_bias_gradient(Trial *trial, int dap, const Shape *c, Way way)
{
    int off = c->groups > 1;
    int64_t rows = 24 / dap, n = c->n, h = c->heads, first = c->column ? n : rows, second = c->column ? rows : n;
    int64_t size[4] = {c->groups, first, second, h * c->width}, heads[4] = {c->groups, first, second, h};
    int64_t pairs[4] = {c->groups, n, n, h}, lse[4] = {c->groups, rows, h, n};
    Val made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    int8_t shard = (int8_t)(off + (c->column ? 1 : 0)), of_lse = (int8_t)off;
    Val x = trial_input(trial, DT_BF16, shard, 3 + off, size + 1 - off),
        bias = trial_input(trial, DT_BF16, SHARD_NONE, 3 + off, pairs + 1 - off),
        sums = trial_input(trial, DT_F32, of_lse, 3 + off, lse + 1 - off),
        delta = trial_input(trial, DT_F32, shard, 3 + off, heads + 1 - off);
    prog_add_multi(trial->p, OP_ATTENTION_BWD, 9, (Val[]){x, x, x, x, VAL_NONE, bias, VAL_NONE, sums, delta},
                   &(OpAttr){.i = {h, c->column, c->column}, .f = {1 / sqrt((double)c->width), 1e9}}, made);
    static const char *const names[] = {"dq", "dk", "dv"};
    for (int k = 0; k < 3; k++) trial_output(trial, names[k], made[k]);
    Val z = prog_add(trial->p, OP_REDUCE_SCATTER, 1, &made[3], &(OpAttr){.i = {off + c->axis}});
    if (way == SENT) send(trial->p);
    trial_output(trial, "z", z);
    return OK;
}

/* The gradients of an outer product mean of n sequences: a's n / 2 residues are this rank's, b's are all ranks'. That
 * of b is summed over them, the others stay. */
static Status record_outer_gradient(Trial *trial, int dap, const Shape *c, Way way)
{
    int64_t s = c->n, n = c->n / 2, m = c->residues * dap, d = c->width, channels = 4 * d;
    Val made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    Val in[] = {trial_input(trial, DT_BF16, 0, 3, (int64_t[]){n, m, channels}),
                trial_input(trial, DT_BF16, 1, 3, (int64_t[]){s, n, d}),
                trial_input(trial, DT_BF16, SHARD_NONE, 3, (int64_t[]){s, m, d}),
                trial_input(trial, DT_BF16, SHARD_NONE, 2, (int64_t[]){channels, d * d}),
                trial_input(trial, DT_F32, 0, 2, (int64_t[]){n, m}),
                trial_input(trial, DT_F32, 1, 2, (int64_t[]){s, n}),
                trial_input(trial, DT_F32, SHARD_NONE, 2, (int64_t[]){s, m})};
    prog_add_multi(trial->p, OP_OPM_BWD, 7, in, &(OpAttr){.f = {1e-3}}, made);
    trial_output(trial, "da", made[0]);
    trial_output(trial, "dW", made[2]);
    trial_output(trial, "dbias", made[3]);
    Val z = prog_add(trial->p, OP_REDUCE_SCATTER, 1, &made[1], &(OpAttr){.i = {1}});
    if (way == SENT) send(trial->p);
    trial_output(trial, "z", z);
    return OK;
}

/* The gradients of a layer norm behind a product: a rank has n rows of every group, and that of x goes to where all
 * rows of a group are; those of gamma and beta stay. */
static Status record_norm_gradient(Trial *trial, int dap, const Shape *c, Way way)
{
    int64_t x[3] = {c->groups, c->n, c->width}, dy[3] = {c->groups, c->n, c->inner};
    Val made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    Val in[] = {trial_input(trial, DT_BF16, 1, 3, x),
                trial_input(trial, DT_F32, SHARD_NONE, 1, &c->width),
                trial_input(trial, DT_F32, 1, 2, x),
                trial_input(trial, DT_F32, 1, 2, x),
                trial_input(trial, DT_BF16, 1, 3, x),
                VAL_NONE,
                trial_input(trial, DT_BF16, 1, 3, dy),
                trial_input(trial, DT_BF16, SHARD_NONE, 2, (int64_t[]){c->inner, c->width})};
    prog_add_multi(trial->p, OP_LINEAR_NORM_DX, 8, in, &(OpAttr){.i = {0, 0, 1}}, made);
    trial_output(trial, "dgamma", made[1]);
    trial_output(trial, "dbeta", made[2]);
    Val z = prog_add(trial->p, OP_ALL_TO_ALL, 1, &made[0], &(OpAttr){.i = {1, 0}});
    if (way == SENT) send(trial->p);
    trial_output(trial, "z", z);
    return OK;
}

/* Queries of a rank: no multiple of those of a block, which then has some for several ranks, or some that do not
 * exist. */
static Status run_attentions(Backend *backend)
{
    static const int64_t queries[] = {48, 112, 176}, widths[] = {8, 32};
    for (int k = 0; k < (on_gpu(backend) ? 6 : 1); k++) {
        int64_t share = on_gpu(backend) ? queries[k / 2] : 3;
        Shape c = {.n = share * backend->layout.dap, .width = widths[k % 2], .heads = 8, .groups = 1};
        if (c.n <= 384) TRY(compare(backend, record_attention, &c, "attention"));
    }
    static const int64_t widths_twice[] = {32, 16}; /* a kernel sends the first, the second is exchanged behind it */
    for (int k = 0; k < 2; k++) {
        int64_t share = on_gpu(backend) ? 48 : 3;
        Shape c = {.n = share * backend->layout.dap, .width = widths_twice[k], .heads = 8, .groups = 1, .twice = true};
        TRY(compare(backend, record_attention, &c, "attention, twice"));
    }
    return OK;
}

/* Sizes that kernels exist for; few on the CPU, where nothing but the order of things is at stake. */
static Status run_gradients(Backend *backend)
{
    static const Shape of_bias[] = {{.width = 32, .heads = 4, .groups = 1, .axis = 0},
                                    {.width = 32, .heads = 4, .groups = 1, .axis = 1, .column = true},
                                    {.width = 32, .heads = 8, .groups = 1, .axis = 1},
                                    {.width = 16, .heads = 4, .groups = 3, .axis = 0, .column = true},
                                    {.width = 16, .heads = 8, .groups = 2, .axis = 0}};
    static const int64_t sizes[] = {192, 256}, residues[] = {64, 192};
    /* Of the first three, one kernel sends, of each width: runs of 32 rows or a multiple, a tile a block or several. Of
     * the others it is the layer norm behind the product: much to multiply, runs that are no multiple. That reads the
     * product in bf16, and sums over rows are not taken in the same order: not what they are apart to the last bit. */
    static const Shape of_norm[] = {{.groups = 40, .n = 32, .width = 128, .inner = 64, .tolerance = 0.02},
                                    {.groups = 128, .n = 160, .width = 64, .inner = 8, .tolerance = 0.02},
                                    {.groups = 40, .n = 32, .width = 256, .inner = 64, .tolerance = 0.02},
                                    {.groups = 24, .n = 64, .width = 256, .inner = 576, .tolerance = 0.02},
                                    {.groups = 72, .n = 24, .width = 128, .inner = 8, .tolerance = 0.02}};
    static const Shape of_small_norm = {.groups = 8, .n = 3, .width = 16, .inner = 4};
    bool cuda = on_gpu(backend);
    for (int k = 0; k < (cuda ? 10 : 5); k++) {
        Shape c = of_bias[k % 5];
        c.n = cuda ? sizes[k / 5] : 2 * backend->layout.dap;
        TRY(compare(backend, record_bias_gradient, &c, "gradient of a bias"));
    }
    for (int k = 0; k < (cuda ? 2 : 1); k++) {
        Shape c = {.n = cuda ? 128 : 8, .width = cuda ? 32 : 4, .residues = cuda ? residues[k] : 3};
        TRY(compare(backend, record_outer_gradient, &c, "gradients of an outer product mean"));
    }
    for (int k = 0; k < (cuda ? 5 : 1); k++)
        TRY(compare(backend, record_norm_gradient, cuda ? &of_norm[k] : &of_small_norm, "gradients of a norm"));
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
    if (status == OK) status = run_attentions(backend);
    if (status == OK) status = run_gradients(backend);
    if (status == OK) status = run_host(backend);
    if (status != OK) fprintf(stderr, "%s\n", status_text());
    kernels_close(&backend);
    if (status != OK) kernels_abort(status_exit_code(status));
    kernels_finalize();
    return status_exit_code(status);
}

/* Rank 1 fails and reports it, or is killed; the others wait for it in a barrier until they are taken down. */
static int failing_worker(bool killed)
{
    Backend *backend = NULL;
    if (kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend) != OK) return 1;
    if (backend->layout.rank == 1) {
        if (killed) raise(SIGKILL);
        fprintf(stderr, "rank 1: no such file\n");
        kernels_abort(1);
    }
    backend->barrier(backend);
    kernels_close(&backend);
    kernels_finalize();
    return 0;
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
    assert_int_not_equal(job(4, "fail", text, sizeof text), 0);
    assert_non_null(strstr(text, "rank 1: no such file"));
    assert_true(time(NULL) - start < 60);
}

static void a_killed_rank_takes_the_job_down(void **state)
{
    (void)state;
    char text[4096];
    time_t start = time(NULL);
    assert_int_not_equal(job(4, "die", text, sizeof text), 0);
    assert_non_null(strstr(text, "signal 9"));
    assert_true(time(NULL) - start < 60);
}

int main(int argc, char **argv)
{
    if (argc >= 3 && !strcmp(argv[1], "worker")) return worker(argv[2], argc > 3 ? argv[3] : "cpu");
    if (argc == 2 && !strcmp(argv[1], "fail")) return failing_worker(false);
    if (argc == 2 && !strcmp(argv[1], "die")) return failing_worker(true);
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
