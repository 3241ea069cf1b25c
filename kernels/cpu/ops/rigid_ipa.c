/* Invariant point attention (AlphaFold2 supplement, algorithm 22). Points are [N,H*P,3], scores [H,N,N]. */
#include "kernels/cpu/math.h"
#include "kernels/cpu/ops/rigid.h"

Status FN(ipa_point_features)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *x = call->in[0];
    real *y = call->out[0], eps = (real)call->op->attr.f[0];
    int64_t n = call->in_tensor[0]->dim[0], points = call->in_tensor[0]->dim[1];
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < points; p++) {
            const real *v = x + 3 * (points * i + p);
            real *row = y + 4 * points * i + p;
            for (int a = 0; a < 3; a++) row[a * points] = v[a];
            row[3 * points] = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + eps);
        }
    return OK;
}

Status FN(ipa_point_features_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = call->in[0], *x = call->in[1];
    real *dx = call->out[0], eps = (real)call->op->attr.f[0];
    int64_t n = call->in_tensor[1]->dim[0], points = call->in_tensor[1]->dim[1];
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < points; p++) {
            const real *v = x + 3 * (points * i + p), *row = dy + 4 * points * i + p;
            real norm = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + eps);
            for (int a = 0; a < 3; a++) dx[3 * (points * i + p) + a] = row[a * points] + row[3 * points] * v[a] / norm;
        }
    return OK;
}

/* Sizes of a call; the first four inputs are q, kv, qp and kvp. Steps lead from a residue to the next. */
typedef struct Sizes {
    int64_t n, heads, channels, span, value_span; /* of a head: coordinates of its points of queries and of values */
    int64_t step, kv_step, point_step, kv_point_step;
    real scalar_scale, bias_scale, point_scale; /* sqrt(1/3C), sqrt(1/3), -sqrt(1/54P) */
} Sizes;

static Sizes sizes_of(const OpCall *call)
{
    const Tensor *q = call->in_tensor[0], *points = call->in_tensor[2], *both = call->in_tensor[3];
    Sizes s = {.n = q->dim[0], .heads = call->op->attr.i[0], .step = q->dim[1]};
    s.channels = q->dim[1] / s.heads;
    s.span = 3 * points->dim[1] / s.heads;
    s.value_span = 3 * both->dim[1] / s.heads - s.span;
    s.kv_step = 2 * s.step, s.point_step = 3 * points->dim[1], s.kv_point_step = 3 * both->dim[1];
    s.scalar_scale = sqrt(1 / (3 * (real)s.channels));
    s.bias_scale = sqrt(1 / (real)3);
    s.point_scale = -sqrt(1 / (18 * (real)s.span));
    return s;
}

static real softplus(real w)
{
    return w > 0 ? w + log1p(exp(-w)) : log1p(exp(w));
}

static double squared_distance(const real *a, const real *b, int64_t count)
{
    double sum = 0;
    for (int64_t k = 0; k < count; k++) sum += ((double)a[k] - b[k]) * ((double)a[k] - b[k]);
    return sum;
}

static double dot_product(const real *a, const real *b, int64_t count)
{
    double sum = 0;
    for (int64_t k = 0; k < count; k++) sum += (double)a[k] * (double)b[k];
    return sum;
}

/* Sums of one residue's row, a piece of at most PIECE channels or coordinates at a time. */
enum { PIECE = 64 };

/* out[c] = scale sum_j d_j x_j[c]; x_j and d_j lie x_step and d_step apart */
static void weighted_sum(int64_t n, const real *d, int64_t d_step, const real *x, int64_t x_step, int64_t width,
                         double scale, real *out)
{
    for (int64_t first = 0; first < width; first += PIECE) {
        int64_t piece = width - first < PIECE ? width - first : PIECE;
        double sum[PIECE] = {0};
        for (int64_t j = 0; j < n; j++)
            for (int64_t c = 0; c < piece; c++) sum[c] += (double)d[j * d_step] * (double)x[j * x_step + first + c];
        for (int64_t c = 0; c < piece; c++) out[first + c] = (real)(scale * sum[c]);
    }
}

/* out[c] = scale sum_j d_j (a[c] - x_j[c]) */
static void weighted_difference(int64_t n, const real *d, int64_t d_step, const real *a, const real *x, int64_t x_step,
                                int64_t width, double scale, real *out)
{
    for (int64_t first = 0; first < width; first += PIECE) {
        int64_t piece = width - first < PIECE ? width - first : PIECE;
        double sum[PIECE] = {0};
        for (int64_t j = 0; j < n; j++)
            for (int64_t c = 0; c < piece; c++)
                sum[c] += (double)d[j * d_step] * ((double)a[first + c] - (double)x[j * x_step + first + c]);
        for (int64_t c = 0; c < piece; c++) out[first + c] = (real)(scale * sum[c]);
    }
}

/* The weights of one query and head, over all keys; scores[N] on the way. */
static void attention_row(const OpCall *call, const Sizes *s, int64_t h, int64_t i, double *score, real *row)
{
    const real *q = IN(0) + i * s->step + h * s->channels, *qp = IN(2) + i * s->point_step + h * s->span;
    const real *k = IN(1) + h * 2 * s->channels, *kp = IN(3) + h * (s->span + s->value_span);
    const real *bias = IN(4) + (h * s->n + i) * s->n, *mask = IN(6);
    double weight = (double)softplus(IN(5)[h]) * (double)s->point_scale, most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s->n; j++) {
        score[j] = dot_product(q, k + j * s->kv_step, s->channels) * (double)s->scalar_scale +
                   (double)s->bias_scale * (double)bias[j] +
                   weight * squared_distance(qp, kp + j * s->kv_point_step, s->span) +
                   call->op->attr.f[0] * ((double)mask[i] * (double)mask[j] - 1);
        if (score[j] > most) most = score[j];
    }
    for (int64_t j = 0; j < s->n; j++) sum += score[j] = exp(score[j] - most);
    for (int64_t j = 0; j < s->n; j++) row[j] = (real)(score[j] / sum);
}

size_t FN(ipa_attention_scratch)(const Program *program, const Op *op, size_t real_size)
{
    (void)real_size;
    return (size_t)tensor_count(prog_tensor(program, op->out[0])) * sizeof(double);
}

Status FN(ipa_attention)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Sizes s = sizes_of(call);
    double *scores = call->scratch;
#pragma omp parallel for collapse(2) if (s.heads * s.n * s.n > 10000)
    for (int64_t h = 0; h < s.heads; h++)
        for (int64_t i = 0; i < s.n; i++) {
            int64_t at = (h * s.n + i) * s.n;
            real *row = OUT(0) + at;
            const real *v = IN(1) + (2 * h + 1) * s.channels, *vp = IN(3) + h * (s.span + s.value_span) + s.span;
            attention_row(call, &s, h, i, scores + at, row);
            weighted_sum(s.n, row, 1, v, s.kv_step, s.channels, 1, OUT(1) + i * s.step + h * s.channels);
            weighted_sum(s.n, row, 1, vp, s.kv_point_step, s.value_span, 1, OUT(2) + (i * s.heads + h) * s.value_span);
        }
    return OK;
}

static bool given(const OpCall *call, int k)
{
    return call->op->n_in > k && call->op->in[k] != VAL_NONE;
}

/* ds[N,N] of a head, from what comes to its weights directly and through both sums. */
static void score_gradients(const OpCall *call, const Sizes *s, int64_t h, real *ds)
{
    bool direct = given(call, 6), scalar = given(call, 7), points = given(call, 8);
    const real *v = IN(1) + (2 * h + 1) * s->channels, *vp = IN(3) + h * (s->span + s->value_span) + s->span;
    for (int64_t i = 0; i < s->n; i++) {
        const real *a = IN(4) + (h * s->n + i) * s->n;
        real *row = ds + i * s->n;
        double sum = 0;
        for (int64_t j = 0; j < s->n; j++) {
            double d = direct ? (double)IN(6)[(h * s->n + i) * s->n + j] : 0;
            if (scalar) d += dot_product(IN(7) + i * s->step + h * s->channels, v + j * s->kv_step, s->channels);
            if (points)
                d += dot_product(IN(8) + (i * s->heads + h) * s->value_span, vp + j * s->kv_point_step, s->value_span);
            row[j] = (real)d;
            sum += (double)a[j] * d;
        }
        for (int64_t j = 0; j < s->n; j++) row[j] = (real)((double)a[j] * ((double)row[j] - sum));
    }
}

/* One head: its slices of dq, dkv, dqp, dkvp and db and its entry of dw belong to it alone; its part of db holds ds on
 * the way. The gradient of a softmax's logits sums to zero over the keys, so these sums cancel: they are taken in
 * double.
 */
static void attention_head_bwd(const OpCall *call, const Sizes *s, int64_t h)
{
    const int64_t n = s->n, width = s->channels, span = s->span, values = s->value_span;
    const int64_t kv = 2 * h * width, kvp = h * (span + values);
    const real *q = IN(0) + h * width, *k = IN(1) + kv, *qp = IN(2) + h * span, *kp = IN(3) + kvp;
    const real *a = IN(4) + h * n * n;
    real *ds = OUT(4) + h * n * n, *dk = OUT(1) + kv, *dkp = OUT(3) + kvp;
    double weight = (double)IN(5)[h], of_points = 2 * (double)softplus(IN(5)[h]) * (double)s->point_scale, sum = 0;
    score_gradients(call, s, h, ds);
    for (int64_t i = 0; i < n; i++) {
        const real *row = ds + n * i, *column = ds + i, *own = qp + i * s->point_step, *key = kp + i * s->kv_point_step;
        real *to_k = dk + i * s->kv_step, *to_kp = dkp + i * s->kv_point_step;
        weighted_sum(n, row, 1, k, s->kv_step, width, (double)s->scalar_scale, OUT(0) + h * width + i * s->step);
        weighted_sum(n, column, n, q, s->step, width, (double)s->scalar_scale, to_k);
        weighted_difference(n, row, 1, own, kp, s->kv_point_step, span, of_points,
                            OUT(2) + h * span + i * s->point_step);
        weighted_difference(n, column, n, key, qp, s->point_step, span, of_points, to_kp);
        /* of values: nothing where nothing comes back */
        weighted_sum(given(call, 7) ? n : 0, a + i, n, IN(7) + h * width, s->step, width, 1, to_k + width);
        weighted_sum(given(call, 8) ? n : 0, a + i, n, IN(8) + h * values, s->heads * values, values, 1, to_kp + span);
        for (int64_t j = 0; j < n; j++) sum += (double)row[j] * squared_distance(own, kp + j * s->kv_point_step, span);
    }
    for (int64_t e = 0; e < n * n; e++) ds[e] *= s->bias_scale;
    OUT(5)[h] = (real)(sum * (double)s->point_scale / (1 + exp(-weight))); /* softplus' = sigmoid */
}

Status FN(ipa_attention_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Sizes s = sizes_of(call);
#pragma omp parallel for if (s.heads * s.n * s.n > 10000)
    for (int64_t h = 0; h < s.heads; h++) attention_head_bwd(call, &s, h);
    return OK;
}

/* For each query residue i: o_i[H,C] = p[:,i,:] z_i; rows of p[:,i,:] lie N*M apart. */
Status FN(ipa_pair_context)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *a = IN(0), *z = IN(1);
    const Tensor *scores = call->in_tensor[0];
    int64_t heads = scores->dim[0], n = scores->dim[1], m = scores->dim[2], c = call->in_tensor[1]->dim[2];
    for (int64_t i = 0; i < n; i++)
        gemm(false, false, heads, c, m, 1, a + i * m, n * m, z + i * m * c, c, 0, OUT(0) + i * heads * c, c);
    return OK;
}

Status FN(ipa_pair_context_dp)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *d = IN(0), *z = IN(1);
    const Tensor *pairs = call->in_tensor[1];
    int64_t heads = call->op->attr.i[0], n = pairs->dim[0], m = pairs->dim[1], c = pairs->dim[2];
    for (int64_t i = 0; i < n; i++)
        gemm(false, true, heads, m, c, 1, d + i * heads * c, c, z + i * m * c, c, 0, OUT(0) + i * m, n * m);
    return OK;
}

Status FN(ipa_pair_context_dz)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *scores = call->in_tensor[1];
    int64_t heads = scores->dim[0], n = scores->dim[1], m = scores->dim[2], c = call->out_tensor[0]->dim[2];
    for (int k = 0; k < call->op->n_in; k += 2)
        for (int64_t i = 0; i < n; i++)
            gemm(true, false, m, c, heads, 1, IN(k + 1) + i * m, n * m, IN(k) + i * heads * c, c, k > 0,
                 OUT(0) + i * m * c, c);
    return OK;
}
