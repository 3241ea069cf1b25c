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

/* Sizes of a score call; the tensors are those of q and of the query points. */
typedef struct Sizes {
    int64_t n, heads, channels, points;
    real scalar_scale, bias_scale, point_scale; /* sqrt(1/3C), sqrt(1/3), -sqrt(1/54P) */
} Sizes;

static Sizes sizes_of(const OpCall *call, int first)
{
    const Tensor *q = call->in_tensor[first], *points = call->in_tensor[first + 2];
    Sizes s = {.n = q->dim[0], .heads = call->op->attr.i[0]};
    s.channels = q->dim[1] / s.heads;
    s.points = points->dim[1] / s.heads;
    s.scalar_scale = sqrt(1 / (3 * (real)s.channels));
    s.bias_scale = sqrt(1 / (real)3);
    s.point_scale = -sqrt(1 / (54 * (real)s.points));
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

Status FN(ipa_scores)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *q = call->in[0], *k = call->in[1], *qp = call->in[2], *kp = call->in[3];
    const real *bias = call->in[4], *w = call->in[5], *mask = call->in[6];
    real *out = call->out[0], inf = (real)call->op->attr.f[0];
    Sizes s = sizes_of(call, 0);
#pragma omp parallel for collapse(2) if (s.heads * s.n * s.n > 10000)
    for (int64_t h = 0; h < s.heads; h++)
        for (int64_t i = 0; i < s.n; i++) {
            real weight = softplus(w[h]) * s.point_scale;
            const real *qi = q + (s.heads * i + h) * s.channels, *qpi = qp + 3 * (s.heads * i + h) * s.points;
            for (int64_t j = 0; j < s.n; j++) {
                const real *kj = k + (s.heads * j + h) * s.channels, *kpj = kp + 3 * (s.heads * j + h) * s.points;
                double dot = 0;
                for (int64_t c = 0; c < s.channels; c++) dot += (double)qi[c] * kj[c];
                out[(s.n * h + i) * s.n + j] = dot * s.scalar_scale + s.bias_scale * bias[(s.n * i + j) * s.heads + h] +
                                               weight * squared_distance(qpi, kpj, 3 * s.points) +
                                               inf * (mask[i] * mask[j] - 1);
            }
        }
    return OK;
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

/* One head: its slices of dq, dk, dqp, dkp and its entries of db and dw belong to it alone. The gradient of a softmax's
 * logits sums to zero over the keys, so these sums cancel: they are taken in double. */
static void scores_head_bwd(const OpCall *call, const Sizes *s, int64_t h)
{
    const real *ds = IN(0) + h * s->n * s->n, *w = IN(5);
    const int64_t width = s->channels, span = 3 * s->points, step = s->heads * width, point_step = s->heads * span;
    const real *q = IN(1) + h * width, *k = IN(2) + h * width, *qp = IN(3) + h * span, *kp = IN(4) + h * span;
    real *dq = OUT(0) + h * width, *dk = OUT(1) + h * width, *dqp = OUT(2) + h * span, *dkp = OUT(3) + h * span;
    double of_points = 2 * (double)softplus(w[h]) * (double)s->point_scale, sum = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const real *row = ds + s->n * i, *column = ds + i;
        weighted_sum(s->n, row, 1, k, step, width, (double)s->scalar_scale, dq + i * step);
        weighted_sum(s->n, column, s->n, q, step, width, (double)s->scalar_scale, dk + i * step);
        weighted_difference(s->n, row, 1, qp + i * point_step, kp, point_step, span, of_points, dqp + i * point_step);
        weighted_difference(s->n, column, s->n, kp + i * point_step, qp, point_step, span, of_points,
                            dkp + i * point_step);
        for (int64_t j = 0; j < s->n; j++) {
            sum += (double)row[j] * squared_distance(qp + i * point_step, kp + j * point_step, span);
            OUT(4)[(s->n * i + j) * s->heads + h] = row[j] * s->bias_scale;
        }
    }
    OUT(5)[h] = (real)(sum * (double)s->point_scale / (1 + exp(-(double)w[h]))); /* softplus' = sigmoid */
}

Status FN(ipa_scores_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Sizes s = sizes_of(call, 1);
#pragma omp parallel for if (s.heads * s.n * s.n > 10000)
    for (int64_t h = 0; h < s.heads; h++) scores_head_bwd(call, &s, h);
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

Status FN(ipa_pair_context_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *d = IN(0), *a = IN(1), *z = IN(2);
    const Tensor *scores = call->in_tensor[1];
    int64_t heads = scores->dim[0], n = scores->dim[1], m = scores->dim[2], c = call->in_tensor[2]->dim[2];
    for (int64_t i = 0; i < n; i++) {
        const real *row = d + i * heads * c;
        gemm(false, true, heads, m, c, 1, row, c, z + i * m * c, c, 0, OUT(0) + i * m, n * m);
        gemm(true, false, m, c, heads, 1, a + i * m, n * m, row, c, 0, OUT(1) + i * m * c, c);
    }
    return OK;
}
