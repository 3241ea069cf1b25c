/* Invariant point attention (AlphaFold2 supplement, algorithm 22). Points are [N,H*P,3], scores [H,N,N]. */
#include <cblas.h>
#include <string.h>
#include <tgmath.h>

#include "kernels/cpu/ops/rigid.h"

#ifdef REAL_IS_f64
#define GEMM cblas_dgemm
#else
#define GEMM cblas_sgemm
#endif

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

static real squared_distance(const real *a, const real *b, int64_t count)
{
    real sum = 0;
    for (int64_t k = 0; k < count; k++) sum += (a[k] - b[k]) * (a[k] - b[k]);
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
                real dot = 0;
                for (int64_t c = 0; c < s.channels; c++) dot += qi[c] * kj[c];
                out[(s.n * h + i) * s.n + j] = dot * s.scalar_scale + s.bias_scale * bias[(s.n * i + j) * s.heads + h] +
                                               weight * squared_distance(qpi, kpj, 3 * s.points) +
                                               inf * (mask[i] * mask[j] - 1);
            }
        }
    return OK;
}

/* One head: its slices of dq, dk, dqp, dkp and its entries of db and dw belong to it alone. */
static void scores_head_bwd(const OpCall *call, const Sizes *s, int64_t h)
{
    const real *ds = (const real *)call->in[0] + h * s->n * s->n, *q = call->in[1], *k = call->in[2];
    const real *qp = call->in[3], *kp = call->in[4], *w = call->in[5];
    real *dq = call->out[0], *dk = call->out[1], *dqp = call->out[2], *dkp = call->out[3], *db = call->out[4];
    real *dw = call->out[5], weight = softplus(w[h]) * s->point_scale, sum = 0;
    int64_t width = s->channels, span = 3 * s->points;
    for (int64_t i = 0; i < s->n; i++) {
        int64_t row = s->heads * i + h;
        memset(dq + row * width, 0, sizeof(real) * (size_t)width);
        memset(dk + row * width, 0, sizeof(real) * (size_t)width);
        memset(dqp + row * span, 0, sizeof(real) * (size_t)span);
        memset(dkp + row * span, 0, sizeof(real) * (size_t)span);
    }
    for (int64_t i = 0; i < s->n; i++)
        for (int64_t j = 0; j < s->n; j++) {
            int64_t a = s->heads * i + h, b = s->heads * j + h;
            real d = ds[s->n * i + j], e = d * s->scalar_scale, f = 2 * d * weight;
            for (int64_t c = 0; c < width; c++) {
                dq[a * width + c] += e * k[b * width + c];
                dk[b * width + c] += e * q[a * width + c];
            }
            for (int64_t c = 0; c < span; c++) {
                real g = f * (qp[a * span + c] - kp[b * span + c]);
                dqp[a * span + c] += g;
                dkp[b * span + c] -= g;
            }
            sum += d * squared_distance(qp + a * span, kp + b * span, span);
            db[(s->n * i + j) * s->heads + h] = d * s->bias_scale;
        }
    dw[h] = sum * s->point_scale / (1 + exp(-w[h])); /* softplus' = sigmoid */
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
    const real *a = call->in[0], *z = call->in[1];
    real *out = call->out[0];
    int heads = (int)call->in_tensor[0]->dim[0], n = (int)call->in_tensor[0]->dim[1],
        m = (int)call->in_tensor[0]->dim[2];
    int c = (int)call->in_tensor[1]->dim[2];
    for (int64_t i = 0; i < n; i++)
        GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, heads, c, m, 1, a + i * m, n * m, z + i * m * c, c, 0,
             out + i * heads * c, c);
    return OK;
}

Status FN(ipa_pair_context_bwd)(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *d = call->in[0], *a = call->in[1], *z = call->in[2];
    real *da = call->out[0], *dz = call->out[1];
    int heads = (int)call->in_tensor[1]->dim[0], n = (int)call->in_tensor[1]->dim[1],
        m = (int)call->in_tensor[1]->dim[2];
    int c = (int)call->in_tensor[2]->dim[2];
    for (int64_t i = 0; i < n; i++) {
        GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, heads, m, c, 1, d + i * heads * c, c, z + i * m * c, c, 0,
             da + i * m, n * m);
        GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, m, c, heads, 1, a + i * m, n * m, d + i * heads * c, c, 0,
             dz + i * m * c, c);
    }
    return OK;
}
