/* Ops that send what they compute: triangle products against their definition, the others against the same op and its
 * collective apart. */
#ifndef FOLDSCALE_TESTS_COMM_SENT_H
#define FOLDSCALE_TESTS_COMM_SENT_H

#include <math.h>
#include <stdio.h>

#include "tests/comm_trial.h"

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

static Status run_product(Backend *backend, const Product *c, bool shares)
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
    send(p, shares);
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

static Status run_products(Backend *backend)
{
    size_t n = on_gpu(backend) ? sizeof products / sizeof *products : 1;
    for (size_t k = 0; k < 2 * n; k++) TRY(run_product(backend, &products[k / 2], k % 2));
    return OK;
}

typedef struct Shape {
    int64_t n, width, heads, groups, axis; /* axis: along which dbias is shared out, of a group's pairs */
    int64_t residues;                      /* of a rank, summed over the ranks */
    int64_t inner;                         /* columns of the gradient behind a norm */
    bool column, twice, shares;
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

/* What was made goes to the ranks, by an op of its own or sent: "z". */
static Status exchange(Trial *trial, OpKind kind, Val made, const OpAttr *attr, const Shape *c, Way way)
{
    Val z = prog_add(trial->p, kind, 1, &made, attr);
    if (way == SENT) send(trial->p, c->shares);
    trial_output(trial, "z", z);
    return OK;
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
    return exchange(trial, OP_ALL_TO_ALL, made[goes], &(OpAttr){.i = {0, 1}}, c, way);
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
    return exchange(trial, OP_REDUCE_SCATTER, made[3], &(OpAttr){.i = {off + c->axis}}, c, way);
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
    return exchange(trial, OP_REDUCE_SCATTER, made[1], &(OpAttr){.i = {1}}, c, way);
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
    return exchange(trial, OP_ALL_TO_ALL, made[0], &(OpAttr){.i = {1, 0}}, c, way);
}

/* The end of a triangle multiplication and the layer norm of it: a rank has n / ranks rows of pairs, which go to where
 * columns are shared out; what is normalized stays. */
static Status record_triangle_end(Trial *trial, int dap, const Shape *c, Way way)
{
    int64_t pairs[3] = {c->n / dap, c->n, c->width}, channels[3] = {c->width, c->n / dap, c->n};
    Val made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    Val r = trial_input(trial, DT_BF16, 0, 3, pairs), g = trial_input(trial, DT_BF16, 0, 3, pairs),
        x = trial_input(trial, DT_BF16, 1, 3, channels),
        w = trial_input(trial, DT_BF16, SHARD_NONE, 2, (int64_t[]){c->width, c->width}),
        gamma = trial_input(trial, DT_F32, SHARD_NONE, 1, &c->width),
        beta = trial_input(trial, DT_F32, SHARD_NONE, 1, &c->width);
    prog_add_multi(trial->p, OP_LINEAR_RESIDUAL, 10, (Val[]){r, x, w, VAL_NONE, g, VAL_NONE, gamma, beta, gamma, beta},
                   &(OpAttr){.f = {0, 1e-5, 1e-5}}, made);
    trial_output(trial, "normed", made[2]);
    return exchange(trial, OP_ALL_TO_ALL, made[0], &(OpAttr){.i = {0, 1}}, c, way);
}

/* The gated products in front of one: all ranks get the second. */
static Status record_triangle_gates(Trial *trial, int dap, const Shape *c, Way way)
{
    int64_t pairs[3] = {c->n / dap, c->n, c->width}, matrix[2] = {c->width, c->width};
    Val in[10] = {0}, made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    in[0] = trial_input(trial, DT_BF16, 0, 3, pairs), in[1] = trial_input(trial, DT_F32, 0, 2, pairs);
    for (int k = 0; k < 4; k++)
        in[2 + 2 * k] = trial_input(trial, DT_BF16, SHARD_NONE, 2, matrix), in[3 + 2 * k] = VAL_NONE;
    prog_add_multi(trial->p, OP_LINEAR_GATES, 10, in, &(OpAttr){.i = {4, 2, 0, 1}}, made);
    trial_output(trial, "a", made[0]);
    return exchange(trial, OP_ALL_GATHER, made[1], &(OpAttr){.i = {1, 0}}, c, way);
}

/* The gradient of its end: all ranks get that of the product; those of gamma and beta stay. */
static Status record_triangle_gradient(Trial *trial, int dap, const Shape *c, Way way)
{
    int64_t pairs[3] = {c->n / dap, c->n, c->width}, channels[3] = {c->width, c->n / dap, c->n};
    Val made[OP_MAX_OUT];
    TRY(trial_open(trial, dap));
    Val dy = trial_input(trial, DT_BF16, 0, 3, pairs), g = trial_input(trial, DT_BF16, 0, 3, pairs),
        x = trial_input(trial, DT_BF16, 1, 3, channels),
        w = trial_input(trial, DT_BF16, SHARD_NONE, 2, (int64_t[]){c->width, c->width}),
        gamma = trial_input(trial, DT_F32, SHARD_NONE, 1, &c->width), mean = trial_input(trial, DT_F32, 0, 2, pairs),
        rstd = trial_input(trial, DT_F32, 0, 2, pairs);
    prog_add_multi(trial->p, OP_GATE_NORM_CHANNELS_DX, 8, (Val[]){x, gamma, mean, rstd, dy, g, dy, w}, NULL, made);
    trial_output(trial, "dgamma", made[1]);
    trial_output(trial, "dbeta", made[2]);
    trial_output(trial, "dg", made[3]);
    return exchange(trial, OP_ALL_GATHER, made[0], &(OpAttr){.i = {1, 0}}, c, way);
}

/* Alone on the GPU and sharing it: fewer blocks, each with more tiles, and sums over rows in another order. */
static Status run_triangles(Backend *backend)
{
    bool cuda = on_gpu(backend);
    for (int shares = 0; shares < (cuda ? 2 : 1); shares++) {
        Shape c = {.n = cuda ? 128 * backend->layout.dap : 2 * backend->layout.dap,
                   .width = cuda ? 128 : 4,
                   .groups = 1,
                   .shares = shares};
        TRY(compare(backend, record_triangle_end, &c, "end of a triangle"));
        TRY(compare(backend, record_triangle_gates, &c, "gates of a triangle"));
        c.tolerance = shares ? 1e-5 : 0;
        TRY(compare(backend, record_triangle_gradient, &c, "gradient of a triangle"));
    }
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

#endif
