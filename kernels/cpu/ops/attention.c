/* Attention: scores, softmax and context one by one, or fused; global column attention. */
#include <omp.h>

#include "kernels/cpu/math.h"

/* Where the block of one (group, row, head) lies in q, k, v, o: rows `pitch` elements apart, `d` wide. */
typedef struct Att {
    int64_t g, b, h, n, m, d;
    int64_t pitch;        /* between consecutive queries or keys of a block */
    int64_t q_row, k_row; /* between rows of a group, queries / keys */
    int64_t q_group, k_group;
    int mask_rank;
    bool bias_t;
    real scale, inf;
} Att;

static Att att_make(const Tensor *q, const Tensor *k, const Tensor *mask, const OpAttr *attr, bool column)
{
    int off = q->rank - 3, row_axis = off + (column ? 1 : 0), seq_axis = off + (column ? 0 : 1);
    Att a = {.g = off ? q->dim[0] : 1, .b = q->dim[row_axis], .h = attr->i[0]};
    a.n = q->dim[seq_axis];
    a.m = k->dim[seq_axis];
    int64_t hd = tensor_last(q);
    a.d = hd / a.h;
    a.pitch = column ? a.b * hd : hd;
    a.q_row = column ? hd : a.n * hd;
    a.k_row = column ? hd : a.m * hd;
    a.q_group = a.b * a.n * hd;
    a.k_group = a.b * a.m * hd;
    a.mask_rank = mask ? mask->rank : 0;
    a.scale = (real)attr->f[0];
    a.inf = (real)attr->f[1];
    return a;
}

static int64_t q_block(const Att *a, int64_t g, int64_t b, int64_t h)
{
    return g * a->q_group + b * a->q_row + h * a->d;
}
static int64_t k_block(const Att *a, int64_t g, int64_t b, int64_t h)
{
    return g * a->k_group + b * a->k_row + h * a->d;
}

static const real *mask_row(const Att *a, const real *mask, int64_t g, int64_t b)
{
    if (!mask || a->mask_rank == 1) return mask;
    return mask + ((a->mask_rank == 3 ? g * a->b : 0) + b) * a->m;
}

/* Element (n, m) of head h in the bias [G?,N,M,H] or, transposed, [G?,M,N,H]. */
static int64_t bias_index(const Att *a, int64_t g, int64_t n, int64_t m, int64_t h)
{
    int64_t pair = a->bias_t ? m * a->n + n : n * a->m + m;
    return (g * a->n * a->m + pair) * a->h + h;
}

/* s[N,M] = scale q k^T + inf (mask - 1) + bias, in this order: a fully masked row then rounds as the reference's does.
 */
static void block_scores(const Att *a, const real *q, const real *k, const real *mask, const real *bias, int64_t g,
                         int64_t h, real *s)
{
    gemm(false, true, a->n, a->m, a->d, a->scale, q, a->pitch, k, a->pitch, 0, s, a->m);
    if (mask)
        for (int64_t n = 0; n < a->n; n++)
            for (int64_t m = 0; m < a->m; m++) s[n * a->m + m] += a->inf * (mask[m] - 1);
    if (bias)
        for (int64_t n = 0; n < a->n; n++)
            for (int64_t m = 0; m < a->m; m++) s[n * a->m + m] += bias[bias_index(a, g, n, m, h)];
}

/* s -> softmax(s) over each row; lse may be NULL */
static void block_softmax(const Att *a, real *s, real *lse)
{
    for (int64_t n = 0; n < a->n; n++) {
        real *row = s + n * a->m, largest = row[0], sum = 0;
        for (int64_t m = 1; m < a->m; m++) largest = row[m] > largest ? row[m] : largest;
        for (int64_t m = 0; m < a->m; m++) sum += row[m] = exp(row[m] - largest);
        for (int64_t m = 0; m < a->m; m++) row[m] /= sum;
        if (lse) lse[n] = largest + log(sum);
    }
}

/* --- unfused
 * ----------------------------------------------------------------------------------------------------------- */

static Status att_scores(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Op *op = call->op;
    const real *q = IN(0), *k = IN(1), *mask = op->n_in > 2 ? IN(2) : NULL, *bias = op->n_in > 3 ? IN(3) : NULL;
    Att a = att_make(call->in_tensor[0], call->in_tensor[1], mask ? call->in_tensor[2] : NULL, &op->attr, false);
    real *s = OUT(0);
    int64_t blocks = a.g * a.b * a.h;
    PARALLEL_IF(blocks * a.n * a.m)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t h = block % a.h, b = block / a.h % a.b, g = block / a.h / a.b;
        block_scores(&a, q + q_block(&a, g, b, h), k + k_block(&a, g, b, h), mask_row(&a, mask, g, b), bias, g, h,
                     s + block * a.n * a.m);
    }
    return OK;
}

/* dbias[g,n,m,h] = sum over the rows b of ds[g,b,h,n,m] */
static void bias_gradient(const Att *a, const real *ds, real *dbias)
{
    PARALLEL_IF(a->g * a->h * a->n * a->m)
    for (int64_t gh = 0; gh < a->g * a->h; gh++) {
        int64_t g = gh / a->h, h = gh % a->h;
        for (int64_t n = 0; n < a->n; n++)
            for (int64_t m = 0; m < a->m; m++) {
                double sum = 0;
                for (int64_t b = 0; b < a->b; b++) sum += ds[(((g * a->b + b) * a->h + h) * a->n + n) * a->m + m];
                dbias[bias_index(a, g, n, m, h)] = (real)sum;
            }
    }
}

static Status att_scores_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *ds = IN(0), *q = IN(1), *k = IN(2);
    Att a = att_make(call->in_tensor[1], call->in_tensor[2], NULL, &call->op->attr, false);
    real *dq = OUT(0), *dk = OUT(1);
    int64_t blocks = a.g * a.b * a.h;
    PARALLEL_IF(blocks * a.n * a.m)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t h = block % a.h, b = block / a.h % a.b, g = block / a.h / a.b;
        int64_t iq = q_block(&a, g, b, h), ik = k_block(&a, g, b, h);
        const real *s = ds + block * a.n * a.m;
        gemm(false, false, a.n, a.d, a.m, a.scale, s, a.m, k + ik, a.pitch, 0, dq + iq, a.pitch);
        gemm(true, false, a.m, a.d, a.n, a.scale, s, a.m, q + iq, a.pitch, 0, dk + ik, a.pitch);
    }
    if (call->op->attr.i[1]) bias_gradient(&a, ds, OUT(2));
    return OK;
}

/* Sizes of a context from p[G?,B,H,N,M] and v[G?,B,M,H*D]: as if q were like v with N rows. */
static Att context_make(const Tensor *p, const Tensor *v, const OpAttr *attr)
{
    Tensor q = *v;
    q.dim[v->rank - 2] = p->dim[p->rank - 2];
    return att_make(&q, v, NULL, attr, false);
}

static Status att_context(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *p = IN(0), *v = IN(1);
    Att a = context_make(call->in_tensor[0], call->in_tensor[1], &call->op->attr);
    real *o = OUT(0);
    int64_t blocks = a.g * a.b * a.h;
    PARALLEL_IF(blocks * a.n * a.m)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t h = block % a.h, b = block / a.h % a.b, g = block / a.h / a.b;
        gemm(false, false, a.n, a.d, a.m, 1, p + block * a.n * a.m, a.m, v + k_block(&a, g, b, h), a.pitch, 0,
             o + q_block(&a, g, b, h), a.pitch);
    }
    return OK;
}

static Status att_context_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *go = IN(0), *p = IN(1), *v = IN(2);
    Att a = context_make(call->in_tensor[1], call->in_tensor[2], &call->op->attr);
    real *dp = OUT(0), *dv = OUT(1);
    int64_t blocks = a.g * a.b * a.h;
    PARALLEL_IF(blocks * a.n * a.m)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t h = block % a.h, b = block / a.h % a.b, g = block / a.h / a.b, at = block * a.n * a.m;
        int64_t iq = q_block(&a, g, b, h), ik = k_block(&a, g, b, h);
        gemm(false, true, a.n, a.m, a.d, 1, go + iq, a.pitch, v + ik, a.pitch, 0, dp + at, a.m);
        gemm(true, false, a.m, a.d, a.n, 1, p + at, a.m, go + iq, a.pitch, 0, dv + ik, a.pitch);
    }
    return OK;
}

/* Threads that have a block of scratch each. The setting of omp_get_max_threads() belongs to the calling thread:
 * another thread than the one that sized the scratch may see more, the number of processors is the same for all. */
static int scratch_threads(void)
{
    int threads = omp_get_max_threads(), processors = omp_get_num_procs();
    return threads < processors ? threads : processors;
}
#define PARALLEL_BLOCKS(work) PRAGMA(omp parallel for num_threads(scratch_threads()) if ((work) > PARALLEL_ELEMENTS))

/* --- fused: one block of scores per thread
 * ------------------------------------------------------------------------------ */

static size_t score_blocks(const Tensor *q, const Tensor *k, bool column, int blocks, size_t real_size)
{
    int seq_axis = q->rank - 3 + (column ? 0 : 1);
    return (size_t)omp_get_num_procs() * (size_t)(q->dim[seq_axis] * k->dim[seq_axis] * blocks) * real_size;
}

static size_t attention_scratch(const Program *program, const Op *op, size_t real_size)
{
    return score_blocks(prog_tensor(program, op->in[0]), prog_tensor(program, op->in[1]), op->attr.i[1], 1, real_size);
}

static size_t attention_bwd_scratch(const Program *program, const Op *op, size_t real_size)
{
    return score_blocks(prog_tensor(program, op->in[1]), prog_tensor(program, op->in[2]), op->attr.i[1], 2, real_size);
}

static Status attention(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Op *op = call->op;
    const real *q = IN(0), *k = IN(1), *v = IN(2);
    const real *mask = op->n_in > 3 ? IN(3) : NULL, *bias = op->n_in > 4 ? IN(4) : NULL;
    bool column = op->attr.i[1];
    Att a = att_make(call->in_tensor[0], call->in_tensor[1], mask ? call->in_tensor[3] : NULL, &op->attr, column);
    a.bias_t = op->attr.i[2];
    const real *gate = op->n_in > 5 ? IN(5) : NULL;
    real *y = OUT(0), *lse = OUT(1), *o = gate && OUT(2) ? OUT(2) : y, *scratch = call->scratch;
    int64_t blocks = a.g * a.b * a.h;
    PARALLEL_BLOCKS(blocks * a.n * a.m)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t h = block % a.h, b = block / a.h % a.b, g = block / a.h / a.b;
        int64_t iq = q_block(&a, g, b, h), ik = k_block(&a, g, b, h);
        real *s = scratch + omp_get_thread_num() * a.n * a.m;
        block_scores(&a, q + iq, k + ik, mask_row(&a, mask, g, b), bias, g, h, s);
        block_softmax(&a, s, lse ? lse + block * a.n : NULL);
        gemm(false, false, a.n, a.d, a.m, 1, s, a.m, v + ik, a.pitch, 0, o + iq, a.pitch);
        for (int64_t n = 0; gate && n < a.n; n++)
            for (int64_t e = iq + n * a.pitch; e < iq + n * a.pitch + a.d; e++) y[e] = sigmoid(gate[e]) * o[e];
    }
    if (OUT(3)) memcpy(OUT(3), y, tensor_bytes(call->out_tensor[0]));
    return OK;
}

/* Operands of the fused backward. */
typedef struct AttBwd {
    Att a;
    const real *go, *q, *k, *v, *mask, *bias;
    real *dq, *dk, *dv, *dbias;
} AttBwd;

/* With p = softmax(s): dv = p^T do, dp = do v^T, ds = p (dp - sum(p dp)), dq = scale ds k, dk = scale ds^T q.
 * p comes from its row's own maximum and sum and not from the stored log-sum-exp: where all keys are masked, -1e9
 * leaves no digits for the logarithm of the number of keys in float. `work` holds two blocks. */
static void attention_bwd_block(const AttBwd *w, int64_t g, int64_t b, int64_t h, real *work)
{
    const Att *a = &w->a;
    int64_t iq = q_block(a, g, b, h), ik = k_block(a, g, b, h);
    real *p = work, *ds = work + a->n * a->m;
    block_scores(a, w->q + iq, w->k + ik, mask_row(a, w->mask, g, b), w->bias, g, h, p);
    block_softmax(a, p, NULL);
    gemm(true, false, a->m, a->d, a->n, 1, p, a->m, w->go + iq, a->pitch, 0, w->dv + ik, a->pitch);
    gemm(false, true, a->n, a->m, a->d, 1, w->go + iq, a->pitch, w->v + ik, a->pitch, 0, ds, a->m);
    for (int64_t n = 0; n < a->n; n++) {
        real sum = 0;
        for (int64_t e = n * a->m; e < (n + 1) * a->m; e++) sum += p[e] * ds[e];
        for (int64_t e = n * a->m; e < (n + 1) * a->m; e++) ds[e] = p[e] * (ds[e] - sum);
    }
    gemm(false, false, a->n, a->d, a->m, a->scale, ds, a->m, w->k + ik, a->pitch, 0, w->dq + iq, a->pitch);
    gemm(true, false, a->m, a->d, a->n, a->scale, ds, a->m, w->q + iq, a->pitch, 0, w->dk + ik, a->pitch);
    if (!w->dbias) return;
    for (int64_t n = 0; n < a->n; n++)
        for (int64_t m = 0; m < a->m; m++) {
            int64_t at = bias_index(a, g, n, m, h);
            w->dbias[at] = (b ? w->dbias[at] : 0) + ds[n * a->m + m];
        }
}

static Status attention_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Op *op = call->op;
    AttBwd w = {.go = IN(0), .q = IN(1), .k = IN(2), .v = IN(3), .mask = IN(4), .bias = IN(5)};
    w.a =
        att_make(call->in_tensor[1], call->in_tensor[2], w.mask ? call->in_tensor[4] : NULL, &op->attr, op->attr.i[1]);
    w.a.bias_t = op->attr.i[2];
    w.dq = OUT(0);
    w.dk = OUT(1);
    w.dv = OUT(2);
    w.dbias = w.bias ? OUT(3) : NULL;
    const Att *a = &w.a;
    real *scratch = call->scratch;
    /* the rows of a group add to one bias gradient: one thread per group and head */
    PARALLEL_BLOCKS(a->g * a->b * a->h * a->n * a->m)
    for (int64_t gh = 0; gh < a->g * a->h; gh++)
        for (int64_t b = 0; b < a->b; b++)
            attention_bwd_block(&w, gh / a->h, b, gh % a->h, scratch + 2 * omp_get_thread_num() * a->n * a->m);
    return OK;
}

/* --- global column attention
 * -------------------------------------------------------------------------------------------- */

/* y[r,c] = sum_s m x / (sum_s m + eps) */
static Status masked_mean(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *t = call->in_tensor[0];
    int64_t s = t->dim[0], r = t->dim[1], c = t->dim[2];
    const real *x = IN(0), *m = IN(1);
    real *y = OUT(0), eps = (real)call->op->attr.f[0];
    PARALLEL_IF(s * r * c)
    for (int64_t i = 0; i < r; i++) {
        real count = 0;
        for (int64_t k = 0; k < c; k++) y[i * c + k] = 0;
        for (int64_t row = 0; row < s; row++) {
            real weight = m[row * r + i];
            count += weight;
            for (int64_t k = 0; k < c; k++) y[i * c + k] += weight * x[(row * r + i) * c + k];
        }
        for (int64_t k = 0; k < c; k++) y[i * c + k] /= count + eps;
    }
    return OK;
}

static Status masked_mean_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t s = call->in_tensor[1]->dim[0], r = call->in_tensor[0]->dim[0], c = call->in_tensor[0]->dim[1];
    const real *dy = IN(0), *m = IN(1);
    real *dx = OUT(0), eps = (real)call->op->attr.f[0];
    PARALLEL_IF(s * r * c)
    for (int64_t i = 0; i < r; i++) {
        real count = 0;
        for (int64_t row = 0; row < s; row++) count += m[row * r + i];
        for (int64_t row = 0; row < s; row++) {
            real weight = m[row * r + i] / (count + eps);
            for (int64_t k = 0; k < c; k++) dx[(row * r + i) * c + k] = weight * dy[i * c + k];
        }
    }
    return OK;
}

/* Residue i of global attention: an attention of one row with H queries (the heads) and S keys that all heads share. */
typedef struct Global {
    int64_t s, r, h, d;
    real scale, inf;
} Global;

static Global global_make(const Tensor *k, const OpAttr *attr)
{
    return (Global){k->dim[0], k->dim[1], attr->i[0], k->dim[2], (real)attr->f[0], (real)attr->f[1]};
}

/* p[H,S]: probabilities of residue i */
static void global_probabilities(const Global *g, const real *q, const real *k, const real *mask, int64_t i, real *p)
{
    gemm(false, true, g->h, g->s, g->d, g->scale, q + i * g->h * g->d, g->d, k + i * g->d, g->r * g->d, 0, p, g->s);
    for (int64_t h = 0; h < g->h; h++)
        for (int64_t s = 0; s < g->s; s++) p[h * g->s + s] += g->inf * (mask[s * g->r + i] - 1);
    Att rows = {.n = g->h, .m = g->s};
    block_softmax(&rows, p, NULL);
}

static size_t global_blocks(const Tensor *k, int64_t heads, int blocks, size_t real_size)
{
    return (size_t)omp_get_num_procs() * (size_t)(heads * k->dim[0] * blocks) * real_size;
}
static size_t global_scratch(const Program *program, const Op *op, size_t real_size)
{
    return global_blocks(prog_tensor(program, op->in[1]), op->attr.i[0], 1, real_size);
}
static size_t global_bwd_scratch(const Program *program, const Op *op, size_t real_size)
{
    return global_blocks(prog_tensor(program, op->in[2]), op->attr.i[0], 2, real_size);
}

static Status global_attention(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Global g = global_make(call->in_tensor[1], &call->op->attr);
    const real *q = IN(0), *k = IN(1), *v = IN(2), *mask = IN(3);
    real *o = OUT(0), *scratch = call->scratch;
    PARALLEL_BLOCKS(g.r * g.h * g.s)
    for (int64_t i = 0; i < g.r; i++) {
        real *p = scratch + omp_get_thread_num() * g.h * g.s;
        global_probabilities(&g, q, k, mask, i, p);
        gemm(false, false, g.h, g.d, g.s, 1, p, g.s, v + i * g.d, g.r * g.d, 0, o + i * g.h * g.d, g.d);
    }
    return OK;
}

static Status global_attention_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Global g = global_make(call->in_tensor[2], &call->op->attr);
    const real *go = IN(0), *q = IN(1), *k = IN(2), *v = IN(3), *mask = IN(4);
    real *dq = OUT(0), *dk = OUT(1), *dv = OUT(2), *scratch = call->scratch;
    PARALLEL_BLOCKS(g.r * g.h * g.s)
    for (int64_t i = 0; i < g.r; i++) {
        int64_t at = i * g.h * g.d, key = i * g.d, pitch = g.r * g.d;
        real *p = scratch + 2 * omp_get_thread_num() * g.h * g.s, *ds = p + g.h * g.s;
        global_probabilities(&g, q, k, mask, i, p);
        gemm(true, false, g.s, g.d, g.h, 1, p, g.s, go + at, g.d, 0, dv + key, pitch);
        gemm(false, true, g.h, g.s, g.d, 1, go + at, g.d, v + key, pitch, 0, ds, g.s);
        for (int64_t h = 0; h < g.h; h++) {
            real sum = 0;
            for (int64_t e = h * g.s; e < (h + 1) * g.s; e++) sum += p[e] * ds[e];
            for (int64_t e = h * g.s; e < (h + 1) * g.s; e++) ds[e] = p[e] * (ds[e] - sum);
        }
        gemm(false, false, g.h, g.d, g.s, g.scale, ds, g.s, k + key, pitch, 0, dq + at, g.d);
        gemm(true, false, g.s, g.d, g.h, g.scale, ds, g.s, q + at, g.d, 0, dk + key, pitch);
    }
    return OK;
}

const CpuEntry FN(cpu_attention)[] = {{OP_ATT_SCORES, att_scores, NULL},
                                      {OP_ATT_SCORES_BWD, att_scores_bwd, NULL},
                                      {OP_ATT_CONTEXT, att_context, NULL},
                                      {OP_ATT_CONTEXT_BWD, att_context_bwd, NULL},
                                      {OP_ATTENTION, attention, attention_scratch},
                                      {OP_ATTENTION_BWD, attention_bwd, attention_bwd_scratch},
                                      {OP_MASKED_MEAN, masked_mean, NULL},
                                      {OP_MASKED_MEAN_BWD, masked_mean_bwd, NULL},
                                      {OP_GLOBAL_ATTENTION, global_attention, global_scratch},
                                      {OP_GLOBAL_ATTENTION_BWD, global_attention_bwd, global_bwd_scratch},
                                      {0}};
