/* Layer norm and softmax over the last axis. */
#include "kernels/cpu/ops/dropout.h"
#include "kernels/cpu/ops/norm.h"

static Status layer_norm(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    bool keep = call->op->kind == OP_LAYER_NORM_FUSED;
    layer_norm_rows(tensor_rows(call->in_tensor[0]), tensor_last(call->in_tensor[0]), IN(0), IN(1), IN(2),
                    (real)call->op->attr.f[0], OUT(0), keep ? OUT(1) : NULL, keep ? OUT(2) : NULL);
    return OK;
}

/* With n = (x - mean) rstd and g = gamma dy: dx = rstd (g - mean(g) - n mean(g n)) (+ other). */
static void input_gradient(int64_t rows, int64_t c, const real *dy, const real *x, const real *gamma, const real *mean,
                           const real *rstd, const real *other, real *dx)
{
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++) {
        const real *row_dy = dy + r * c, *row_x = x + r * c;
        double sum_g = 0, sum_gn = 0;
        for (int64_t k = 0; k < c; k++) {
            real g = gamma[k] * row_dy[k];
            sum_g += g;
            sum_gn += g * (row_x[k] - mean[r]) * rstd[r];
        }
        sum_g /= (double)c;
        sum_gn /= (double)c;
        for (int64_t k = 0; k < c; k++) {
            real n = (row_x[k] - mean[r]) * rstd[r];
            real d = rstd[r] * (gamma[k] * row_dy[k] - sum_g - n * sum_gn);
            dx[r * c + k] = other ? other[r * c + k] + d : d;
        }
    }
}

/* dgamma = sum n dy, dbeta = sum dy over the rows */
static void parameter_gradients(int64_t rows, int64_t c, const real *dy, const real *x, const real *mean,
                                const real *rstd, real *dgamma, real *dbeta)
{
    enum { CHUNK = 64 };
    PARALLEL_IF(rows * c)
    for (int64_t first = 0; first < c; first += CHUNK) {
        int64_t width = c - first < CHUNK ? c - first : CHUNK;
        double of_gamma[CHUNK] = {0}, of_beta[CHUNK] = {0};
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < width; k++) {
                int64_t e = r * c + first + k;
                of_gamma[k] += dy[e] * (x[e] - mean[r]) * rstd[r];
                of_beta[k] += dy[e];
            }
        for (int64_t k = 0; k < width; k++) {
            dgamma[first + k] = (real)of_gamma[k];
            dbeta[first + k] = (real)of_beta[k];
        }
    }
}

/* Scratch of LAYER_NORM_BWD: the statistics, which only the fused op keeps. */
static size_t statistics_scratch(const Program *program, const Op *op, size_t real_size)
{
    return 2 * (size_t)tensor_rows(prog_tensor(program, op->in[1])) * real_size;
}

static Status layer_norm_bwd(const RankLayout *layout, const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[1]), c = tensor_last(call->in_tensor[1]);
    const real *x = IN(1), *mean = NULL, *rstd = NULL, *other = NULL;
    const int32_t *rng = NULL;
    if (call->op->kind == OP_LAYER_NORM_FUSED_BWD) {
        mean = IN(3);
        rstd = IN(4);
        if (call->op->n_in > 5) other = IN(5);
        if (call->op->n_in > 6) rng = call->in[6];
    } else {
        real *statistic = call->scratch, eps = (real)call->op->attr.f[0];
        PARALLEL_IF(rows * c)
        for (int64_t r = 0; r < rows; r++) {
            double row_mean, row_rstd;
            row_statistics(c, x + r * c, eps, &row_mean, &row_rstd);
            statistic[r] = (real)row_mean;
            statistic[rows + r] = (real)row_rstd;
        }
        mean = statistic;
        rstd = statistic + rows;
    }
    input_gradient(rows, c, IN(0), x, IN(2), mean, rstd, other, OUT(0));
    parameter_gradients(rows, c, IN(0), x, mean, rstd, OUT(1), OUT(2));
    if (rng) {
        Dropout d = dropout_make(layout, call->op, call->in_tensor[1], rng);
        dropout_apply(&d, call->in_tensor[1], NULL, OUT(0), OUT(3));
    }
    return OK;
}

enum { X, GAMMA, MEAN, RSTD, OTHER, RNG, DY, W2, HIDDEN, W1 }; /* of LINEAR_NORM_DX and TRANSITION_DX */

/* The gradient of what the layer norm made. */
static size_t norm_dx_scratch(const Program *program, const Op *op, size_t real_size)
{
    return (size_t)tensor_count(prog_tensor(program, op->in[X])) * real_size;
}

/* From d, the gradient of what the layer norm made. */
static void norm_gradients(const RankLayout *layout, const OpCall *call, const real *d, real *dropped)
{
    const Tensor *x = call->in_tensor[X];
    int64_t rows = tensor_rows(x), c = tensor_last(x);
    input_gradient(rows, c, d, IN(X), IN(GAMMA), IN(MEAN), IN(RSTD), IN(OTHER), OUT(0));
    parameter_gradients(rows, c, d, IN(X), IN(MEAN), IN(RSTD), OUT(1), OUT(2));
    const int32_t *rng = call->in[RNG];
    if (!rng) return;
    Dropout drop = dropout_make(layout, call->op, x, rng);
    dropout_apply(&drop, x, NULL, OUT(0), dropped);
}

static Status linear_norm_dx(const RankLayout *layout, const OpCall *call)
{
    const Tensor *x = call->in_tensor[X];
    int n = (int)call->op->attr.i[2];
    int64_t rows = tensor_rows(x), c = tensor_last(x);
    real *dy = call->scratch;
    for (int k = 0; k < n; k++) {
        int64_t o = tensor_last(call->in_tensor[DY + k]);
        gemm(false, false, rows, c, o, 1, IN(DY + k), o, IN(DY + n + k), c, k > 0, dy, c);
    }
    norm_gradients(layout, call, dy, OUT(3));
    return OK;
}

static Status transition_dx(const RankLayout *layout, const OpCall *call)
{
    int64_t rows = tensor_rows(call->in_tensor[X]), c = tensor_last(call->in_tensor[X]);
    int64_t width = tensor_last(call->in_tensor[HIDDEN]);
    const real *h = IN(HIDDEN);
    real *d = call->scratch, *dh = OUT(3);
    gemm(false, false, rows, width, c, 1, IN(DY), c, IN(W2), width, 0, dh, width);
    PARALLEL_IF(rows * width)
    for (int64_t e = 0; e < rows * width; e++) dh[e] = h[e] > 0 ? dh[e] : 0;
    gemm(false, false, rows, c, width, 1, dh, width, IN(W1), c, 0, d, c);
    norm_gradients(layout, call, d, OUT(4));
    return OK;
}

static Status softmax(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_rows(call->in_tensor[0]), c = tensor_last(call->in_tensor[0]);
    const real *all_x = IN(0);
    real *all_y = OUT(0);
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++) {
        const real *x = all_x + r * c;
        real *y = all_y + r * c, largest = x[0];
        double sum = 0;
        for (int64_t k = 1; k < c; k++) largest = x[k] > largest ? x[k] : largest;
        for (int64_t k = 0; k < c; k++) sum += y[k] = exp(x[k] - largest);
        for (int64_t k = 0; k < c; k++) y[k] /= sum;
    }
    return OK;
}

/* dx = y (dy - sum(y dy)) */
static Status softmax_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_rows(call->in_tensor[0]), c = tensor_last(call->in_tensor[0]);
    const real *dy = IN(0), *y = IN(1);
    real *dx = OUT(0);
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t e = r * c; e < (r + 1) * c; e++) sum += (double)y[e] * dy[e];
        for (int64_t e = r * c; e < (r + 1) * c; e++) dx[e] = y[e] * (dy[e] - sum);
    }
    return OK;
}

const CpuEntry FN(cpu_norm)[] = {{OP_LAYER_NORM, layer_norm, NULL},
                                 {OP_LAYER_NORM_BWD, layer_norm_bwd, statistics_scratch},
                                 {OP_LAYER_NORM_FUSED, layer_norm, NULL},
                                 {OP_LAYER_NORM_FUSED_BWD, layer_norm_bwd, NULL},
                                 {OP_LINEAR_NORM_DX, linear_norm_dx, norm_dx_scratch},
                                 {OP_TRANSITION_DX, transition_dx, norm_dx_scratch},
                                 {OP_SOFTMAX, softmax, NULL},
                                 {OP_SOFTMAX_BWD, softmax_bwd, NULL},
                                 {0}};
