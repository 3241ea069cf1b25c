/* Triangle products and the outer product mean. */
#include "kernels/cpu/ops/norm.h"

/* --- triangle product: a matrix product per channel, on channel-first copies
 * ------------------------------------------- */

static size_t tri_product_scratch(const Program *program, const Op *op, size_t real_size)
{
    if (op->attr.i[2]) return 0;
    const Tensor *a = prog_tensor(program, op->in[0]), *x = prog_tensor(program, op->out[0]);
    int64_t groups = a->rank == 4 ? a->dim[0] : 1;
    int64_t elements = tensor_count(a) + tensor_count(prog_tensor(program, op->in[1])) + tensor_count(x);
    return (size_t)(elements / groups) * real_size;
}

/* x = A B, matrices [n, sum] and [sum, m] as stored or transposed */
typedef struct Tri {
    int64_t c, n, m, sum;
    bool ta, tb;
} Tri;

static void tri_channels(const Tri *t, const real *a, const real *b, real *x)
{
    int64_t lda = t->ta ? t->n : t->sum, ldb = t->tb ? t->sum : t->m;
    PARALLEL_IF(t->n * t->m * t->sum)
    for (int64_t k = 0; k < t->c; k++)
        gemm(t->ta, t->tb, t->n, t->m, t->sum, 1, a + k * t->n * t->sum, lda, b + k * t->sum * t->m, ldb, 0,
             x + k * t->n * t->m, t->m);
}

static Status tri_product(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *a = call->in_tensor[0], *x = call->out_tensor[0];
    bool channels = call->op->attr.i[2];
    int off = a->rank - 3, first = off + (channels ? 1 : 0);
    Tri t = {.ta = call->op->attr.i[0], .tb = call->op->attr.i[1]};
    int64_t groups = off ? a->dim[0] : 1;
    t.c = a->dim[channels ? off : off + 2], t.n = x->dim[first], t.m = x->dim[first + 1];
    t.sum = a->dim[first + (t.ta ? 0 : 1)];
    int64_t size_a = t.n * t.sum * t.c, size_b = t.sum * t.m * t.c, size_x = t.n * t.m * t.c;
    real *ca = call->scratch, *cb = ca + size_a, *cx = cb + size_b;
    for (int64_t g = 0; g < groups; g++) {
        const real *ag = IN(0) + g * size_a, *bg = IN(1) + g * size_b;
        real *xg = OUT(0) + g * size_x;
        if (channels) {
            tri_channels(&t, ag, bg, xg);
            continue;
        }
        transpose_matrix(t.n * t.sum, t.c, ag, ca);
        transpose_matrix(t.sum * t.m, t.c, bg, cb);
        tri_channels(&t, ca, cb, cx);
        transpose_matrix(t.c, t.n * t.m, cx, xg);
    }
    return OK;
}

/* --- outer product: row by row of the pair representation
 * --------------------------------------------------------------- For residue i the products of all pairs (i, j) are
 * one matrix product [C, M*D] = a_i^T b over the sequences. */

typedef struct Outer {
    int64_t s, n, m, c, d;
} Outer;

static Outer outer_make(const Tensor *a, const Tensor *b)
{
    return (Outer){a->dim[0], a->dim[1], b->dim[1], a->dim[2], b->dim[2]};
}
static int64_t outer_row(const Outer *o)
{
    return o->m * o->c * o->d;
}

/* t[C, M, D] of residue i, then y[M, C, D] */
static void outer_of_residue(const Outer *o, const real *a, const real *b, int64_t i, real *t, real *y)
{
    gemm(true, false, o->c, o->m * o->d, o->s, 1, a + i * o->c, o->n * o->c, b, o->m * o->d, 0, t, o->m * o->d);
    for (int64_t j = 0; j < o->m; j++)
        for (int64_t c = 0; c < o->c; c++)
            memcpy(y + (j * o->c + c) * o->d, t + (c * o->m + j) * o->d, (size_t)o->d * sizeof *y);
}

/* Adds residue i's share of the gradients; dy[M, C, D], t as work space. */
static void outer_bwd_of_residue(const Outer *o, const real *dy, const real *a, const real *b, int64_t i, real *t,
                                 real *da, real *db)
{
    int64_t width = o->m * o->d;
    for (int64_t j = 0; j < o->m; j++)
        for (int64_t c = 0; c < o->c; c++)
            memcpy(t + (c * o->m + j) * o->d, dy + (j * o->c + c) * o->d, (size_t)o->d * sizeof *t);
    gemm(false, true, o->s, o->c, width, 1, b, width, t, width, 0, da + i * o->c, o->n * o->c);
    gemm(false, false, o->s, width, o->c, 1, a + i * o->c, o->n * o->c, t, width, i ? 1 : 0, db, width);
}

static size_t outer_scratch(const Program *program, const Op *op, size_t real_size)
{
    int at = op->kind == OP_OUTER_PRODUCT ? 0 : 1;
    Outer o = outer_make(prog_tensor(program, op->in[at]), prog_tensor(program, op->in[at + 1]));
    return (size_t)outer_row(&o) * real_size;
}

static Status outer_product(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    for (int64_t i = 0; i < o.n; i++) outer_of_residue(&o, IN(0), IN(1), i, call->scratch, OUT(0) + i * outer_row(&o));
    return OK;
}

static Status outer_product_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    for (int64_t i = 0; i < o.n; i++)
        outer_bwd_of_residue(&o, IN(0) + i * outer_row(&o), IN(1), IN(2), i, call->scratch, OUT(0), OUT(1));
    return OK;
}

static Status pair_count(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t s = call->in_tensor[0]->dim[0], n = call->in_tensor[0]->dim[1], m = call->in_tensor[1]->dim[1];
    gemm(true, false, n, m, s, 1, IN(0), n, IN(1), m, 0, OUT(0), m);
    return OK;
}

static Status div_count(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t pairs = tensor_count(call->in_tensor[1]), c = tensor_last(call->in_tensor[0]);
    const real *x = IN(0), *n = IN(1);
    real *y = OUT(0), eps = (real)call->op->attr.f[0];
    PARALLEL_IF(pairs * c)
    for (int64_t r = 0; r < pairs; r++)
        for (int64_t k = 0; k < c; k++) y[r * c + k] = x[r * c + k] / (n[r] + eps);
    return OK;
}

/* --- outer product mean with one row of the outer product in memory
 * ---------------------------------------------------- */

/* elements of the masked operands, where there are masks from `mask` on */
static int64_t opm_masked_count(const Op *op, int mask, const Outer *o)
{
    return op->n_in > mask && op->in[mask] != VAL_NONE ? o->s * (o->n * o->c + o->m * o->d) : 0;
}

/* y[S, N, C] = m[S, N] x */
static void mask_rows(int64_t rows, int64_t c, const real *m, const real *x, real *y)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < c; k++) y[r * c + k] = m[r] * x[r * c + k];
}

/* The operands from call->in[at] on, masked into `room` where there are masks. */
static void opm_operands(const OpCall *call, int at, int mask, const Outer *o, real *room, const real **a_out,
                         const real **b_out)
{
    *a_out = IN(at), *b_out = IN(at + 1);
    if (!opm_masked_count(call->op, mask, o)) return;
    real *b = room + o->s * o->n * o->c;
    mask_rows(o->s * o->n, o->c, IN(mask), *a_out, room);
    mask_rows(o->s * o->m, o->d, IN(mask + 1), *b_out, b);
    *a_out = room, *b_out = b;
}

/* Scratch: t and y of one residue, for the backward also dy and dz / count; the masked operands. */
static size_t opm_scratch(const Program *program, const Op *op, size_t real_size)
{
    Outer o = outer_make(prog_tensor(program, op->in[0]), prog_tensor(program, op->in[1]));
    return (size_t)(2 * outer_row(&o) + opm_masked_count(op, 6, &o)) * real_size;
}
static size_t opm_bwd_scratch(const Program *program, const Op *op, size_t real_size)
{
    Outer o = outer_make(prog_tensor(program, op->in[1]), prog_tensor(program, op->in[2]));
    int64_t z = tensor_last(prog_tensor(program, op->in[0]));
    return (size_t)(3 * outer_row(&o) + o.m * z + opm_masked_count(op, 5, &o)) * real_size + (size_t)z * sizeof(double);
}

static Status opm(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Outer o = outer_make(call->in_tensor[0], call->in_tensor[1]);
    int64_t width = o.c * o.d, channels = call->in_tensor[2]->dim[0];
    const real *w = IN(2), *bias = IN(3), *count = IN(4), *residual = call->op->n_in > 5 ? IN(5) : NULL, *a, *b;
    real *t = call->scratch, *y = t + outer_row(&o), eps = (real)call->op->attr.f[0];
    opm_operands(call, 0, 6, &o, y + outer_row(&o), &a, &b);
    for (int64_t i = 0; i < o.n; i++) {
        real *z = OUT(0) + i * o.m * channels;
        outer_of_residue(&o, a, b, i, t, y);
        gemm(false, true, o.m, channels, width, 1, y, width, w, width, 0, z, channels);
        for (int64_t j = 0; j < o.m; j++)
            for (int64_t k = 0; k < channels; k++)
                z[j * channels + k] = (z[j * channels + k] + bias[k]) / (count[i * o.m + j] + eps);
        const real *from = residual ? residual + i * o.m * channels : NULL;
        for (int64_t k = 0; from && k < o.m * channels; k++) z[k] += from[k];
    }
    layer_norm_behind(call, 8, 1);
    return OK;
}

static Status opm_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Outer o = outer_make(call->in_tensor[1], call->in_tensor[2]);
    int64_t width = o.c * o.d, channels = tensor_last(call->in_tensor[0]);
    const real *w = IN(3), *count = IN(4), *a, *b;
    double *sum = call->scratch;
    real *t = (real *)(sum + channels), *y = t + outer_row(&o), *dy = y + outer_row(&o), *dz = dy + outer_row(&o);
    real *da = OUT(0), *db = OUT(1), *dw = OUT(2), *dbias = OUT(3), eps = (real)call->op->attr.f[0];
    opm_operands(call, 1, 5, &o, dz + o.m * channels, &a, &b);
    for (int64_t k = 0; k < channels; k++) sum[k] = 0;
    for (int64_t i = 0; i < o.n; i++) {
        const real *row = IN(0) + i * o.m * channels;
        for (int64_t j = 0; j < o.m; j++)
            for (int64_t k = 0; k < channels; k++)
                sum[k] += dz[j * channels + k] = row[j * channels + k] / (count[i * o.m + j] + eps);
        outer_of_residue(&o, a, b, i, t, y);
        gemm(true, false, channels, width, o.m, 1, dz, channels, y, width, i ? 1 : 0, dw, width);
        gemm(false, false, o.m, width, channels, 1, dz, channels, w, width, 0, dy, width);
        outer_bwd_of_residue(&o, dy, a, b, i, t, da, db);
    }
    for (int64_t k = 0; k < channels; k++) dbias[k] = (real)sum[k];
    if (!opm_masked_count(call->op, 5, &o)) return OK;
    mask_rows(o.s * o.n, o.c, IN(5), da, da);
    mask_rows(o.s * o.m, o.d, IN(6), db, db);
    return OK;
}

const CpuEntry FN(cpu_triangle)[] = {{OP_TRI_PRODUCT, tri_product, tri_product_scratch},
                                     {OP_OUTER_PRODUCT, outer_product, outer_scratch},
                                     {OP_OUTER_PRODUCT_BWD, outer_product_bwd, outer_scratch},
                                     {OP_PAIR_COUNT, pair_count, NULL},
                                     {OP_DIV_COUNT, div_count, NULL},
                                     {OP_OPM, opm, opm_scratch},
                                     {OP_OPM_BWD, opm_bwd, opm_bwd_scratch},
                                     {0}};
