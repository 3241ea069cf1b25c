/* Clipping, Adam, weight average. Everything is elementwise but the norm, whose sum runs in double by fixed chunks, so
 * that it does not depend on the number of threads. */
#include <math.h>

#include "kernels/cpu/real.h"

enum { CHUNK = 1 << 14, PARALLEL_FROM = 1 << 15 };

static double chunk_sum_squares(const real *g, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)g[i] * (double)g[i];
    return sum;
}

static Status sum_squares(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *g = call->in[0]; /* [n] */
    int64_t n = tensor_count(call->in_tensor[0]), chunks = (n + CHUNK - 1) / CHUNK;
    double *part = call->scratch; /* [chunks] */
#pragma omp parallel for if (n > PARALLEL_FROM)
    for (int64_t c = 0; c < chunks; c++)
        part[c] = chunk_sum_squares(g + c * CHUNK, c + 1 < chunks ? CHUNK : n - c * CHUNK);
    double sum = 0;
    for (int64_t c = 0; c < chunks; c++) sum += part[c];
    *(real *)call->out[0] = (real)sum;
    return OK;
}

static size_t sum_squares_scratch(const Program *p, const Op *op, size_t real_size)
{
    (void)real_size;
    return (size_t)(tensor_count(&p->value[op->in[0]].t) / CHUNK + 1) * sizeof(double);
}

/* factor = min(1, max_norm / (norm + 1e-6)) as torch.nn.utils.clip_grad_norm_; 0 skips the step */
static Status clip_factor(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    double sum = 0;
    for (int k = 0; k < call->op->n_in; k++) {
        const real *s = call->in[k];
        int64_t n = tensor_count(call->in_tensor[k]);
        for (int64_t i = 0; i < n; i++) sum += (double)s[i];
    }
    double norm = sqrt(sum), factor = call->op->attr.f[0] / (norm + 1e-6);
    if (call->out[0]) *(real *)call->out[0] = (real)norm;
    if (call->out[1]) *(real *)call->out[1] = isfinite(norm) ? (real)(factor < 1 ? factor : 1) : REAL(0.0);
    return OK;
}

typedef struct AdamStep {
    real factor, rate, beta1, beta2, eps, root_correction2; /* rate = lr / (1 - beta1^t), root = sqrt(1 - beta2^t) */
    real rest1, rest2;                                      /* 1 - beta, rounded once: 1 - 0.999f is 1.3e-5 off */
} AdamStep;

static AdamStep adam_step(const OpAttr *attr, const real *factor, const real *hyper)
{
    return (AdamStep){.factor = factor[0],
                      .rate = (real)((double)hyper[0] / (double)hyper[1]),
                      .beta1 = (real)attr->f[0],
                      .beta2 = (real)attr->f[1],
                      .rest1 = (real)(1 - attr->f[0]),
                      .rest2 = (real)(1 - attr->f[1]),
                      .eps = (real)attr->f[2],
                      .root_correction2 = (real)sqrt((double)hyper[2])};
}

/* Kingma and Ba 2015, algorithm 1: p - lr m_hat / (sqrt(v_hat) + eps) */
static inline void adam_element(const AdamStep *s, const real *g, real *p, real *m, real *v)
{
    real clipped = s->factor * *g;
    *m = s->beta1 * *m + s->rest1 * clipped;
    *v = s->beta2 * *v + s->rest2 * clipped * clipped;
#ifdef REAL_IS_f64
    real root = sqrt(*v);
#else
    real root = sqrtf(*v);
#endif
    *p -= s->rate * *m / (root / s->root_correction2 + s->eps);
}

static Status copy_through(const OpCall *call, int n, const int *input)
{
    for (int k = 0; k < n; k++)
        if (call->out[k] && call->out[k] != call->in[input[k]])
            return status_fail(ERR_INTERNAL, "%s: output %d must be its input, updated in place",
                               op_def(call->op->kind)->name, k);
    return OK;
}

static Status adam(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    TRY(copy_through(call, 3, (const int[]){0, 2, 3}));
    AdamStep step = adam_step(&call->op->attr, call->in[4], call->in[5]);
    if (step.factor == 0) return OK;
    const real *g = call->in[1];
    real *p = call->out[0], *m = call->out[1], *v = call->out[2];
    int64_t n = tensor_count(call->in_tensor[0]);
#pragma omp parallel for simd if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) adam_element(&step, g + i, p + i, m + i, v + i);
    return OK;
}

static Status swa_update(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    TRY(copy_through(call, 1, (const int[]){0}));
    const real *p = call->in[1], *factor = call->in[2], *hyper = call->in[3];
    if (factor[0] == 0) return OK;
    real *swa = call->out[0];
    real decay = hyper[3] == 1 ? 0 : (real)call->op->attr.f[0];
    real rest = hyper[3] == 1 ? 1 : (real)(1 - call->op->attr.f[0]);
    int64_t n = tensor_count(call->in_tensor[0]);
#pragma omp parallel for simd if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) swa[i] = decay * swa[i] + rest * p[i];
    return OK;
}

static Status adam_fused(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    TRY(copy_through(call, 4, (const int[]){0, 2, 3, 4}));
    const OpAttr *attr = &call->op->attr;
    const real *hyper = call->in[6];
    AdamStep step = adam_step(attr, call->in[5], hyper);
    const real *g = call->in[1];
    real *p = call->out[0], *m = call->out[1], *v = call->out[2], *swa = call->out[3], *low = call->out[4];
    real decay = hyper[3] == 1 ? 0 : (real)attr->f[3], rest = hyper[3] == 1 ? 1 : (real)(1 - attr->f[3]);
    bool skip = step.factor == 0;
    int64_t n = tensor_count(call->in_tensor[0]);
#pragma omp parallel for simd if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        if (!skip) {
            adam_element(&step, g + i, p + i, m + i, v + i);
            swa[i] = decay * swa[i] + rest * p[i];
        }
        if (low) low[i] = p[i];
    }
    return OK;
}

const CpuEntry FN(cpu_optimizer)[] = {{OP_SUM_SQUARES, sum_squares, sum_squares_scratch},
                                      {OP_CLIP_FACTOR, clip_factor, NULL},
                                      {OP_ADAM, adam, NULL},
                                      {OP_SWA_UPDATE, swa_update, NULL},
                                      {OP_ADAM_FUSED, adam_fused, NULL},
                                      {0}};
