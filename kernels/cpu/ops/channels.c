/* Ops at the edges of channel-first triangle products: on channel-last copies. */
#include "kernels/cpu/math.h"

/* x[G?,C,.,.] as groups of C matrices of `pairs` elements */
typedef struct Channels {
    int64_t groups, c, pairs;
} Channels;

static Channels channels_of(const Tensor *x)
{
    int off = x->rank - 3;
    int64_t groups = 1;
    for (int axis = 0; axis < off; axis++) groups *= x->dim[axis];
    return (Channels){groups, x->dim[off], x->dim[off + 1] * x->dim[off + 2]};
}

static void to_last(const Channels *s, const real *x, real *y)
{
    for (int64_t g = 0; g < s->groups; g++)
        transpose_matrix(s->c, s->pairs, x + g * s->c * s->pairs, y + g * s->c * s->pairs);
}

static void to_first(const Channels *s, const real *x, real *y)
{
    for (int64_t g = 0; g < s->groups; g++)
        transpose_matrix(s->pairs, s->c, x + g * s->c * s->pairs, y + g * s->c * s->pairs);
}

/* One copy of the channel-first operand. */
static size_t copy_scratch(const Program *p, const Op *op, size_t real_size)
{
    int at = op->kind == OP_LAYER_NORM_CHANNELS_BWD ? 1 : 0;
    return (size_t)tensor_count(prog_tensor(p, op->in[at])) * real_size;
}

static Status layer_norm_channels(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Channels s = channels_of(call->in_tensor[0]);
    const real *gamma = IN(1), *beta = IN(2);
    real *y = OUT(0), *mean = OUT(1), *rstd = OUT(2), eps = (real)call->op->attr.f[0];
    to_last(&s, IN(0), y);
    PARALLEL_IF(s.groups * s.c * s.pairs)
    for (int64_t r = 0; r < s.groups * s.pairs; r++) {
        real *row = y + r * s.c;
        double sum = 0, square = 0;
        for (int64_t k = 0; k < s.c; k++) sum += row[k];
        sum /= (double)s.c;
        for (int64_t k = 0; k < s.c; k++) square += (row[k] - sum) * (row[k] - sum);
        double scale = 1 / sqrt(square / (double)s.c + eps);
        for (int64_t k = 0; k < s.c; k++) row[k] = (real)((row[k] - sum) * scale * gamma[k] + beta[k]);
        mean[r] = (real)sum;
        rstd[r] = (real)scale;
    }
    return OK;
}

/* With n = (x - mean) rstd and g = gamma dy: dx = rstd (g - mean(g) - n mean(g n)); x, a row, becomes dx. */
static void row_gradient(int64_t c, const real *dy, const real *gamma, double mean, double rstd, real *x)
{
    double sum_g = 0, sum_gn = 0;
    for (int64_t k = 0; k < c; k++) {
        double g = gamma[k] * dy[k];
        sum_g += g;
        sum_gn += g * (x[k] - mean) * rstd;
    }
    for (int64_t k = 0; k < c; k++) {
        double n = (x[k] - mean) * rstd;
        x[k] = (real)(rstd * (gamma[k] * dy[k] - sum_g / (double)c - n * sum_gn / (double)c));
    }
}

/* x gamma mean rstd: from operand `first` on; rows: room for a copy of x */
static void norm_gradient(const OpCall *call, int first, const real *dy, real *rows)
{
    Channels s = channels_of(call->in_tensor[first]);
    const real *gamma = IN(first + 1), *mean = IN(first + 2), *rstd = IN(first + 3);
    real *dgamma = OUT(1), *dbeta = OUT(2);
    int64_t n = s.groups * s.pairs;
    to_last(&s, IN(first), rows);
    PARALLEL_IF(n * s.c)
    for (int64_t k = 0; k < s.c; k++) {
        double of_gamma = 0, of_beta = 0;
        for (int64_t r = 0; r < n; r++) {
            of_gamma += dy[r * s.c + k] * (rows[r * s.c + k] - mean[r]) * rstd[r];
            of_beta += dy[r * s.c + k];
        }
        dgamma[k] = (real)of_gamma;
        dbeta[k] = (real)of_beta;
    }
    PARALLEL_IF(n * s.c)
    for (int64_t r = 0; r < n; r++) row_gradient(s.c, dy + r * s.c, gamma, mean[r], rstd[r], rows + r * s.c);
    to_first(&s, rows, OUT(0));
}

static Status layer_norm_channels_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    norm_gradient(call, 1, IN(0), call->scratch);
    return OK;
}

enum { DY = 4, G, Y, W }; /* of GATE_NORM_CHANNELS_DX */

/* Two copies: x, and the gradient of what the layer norm made. */
static size_t gate_norm_scratch(const Program *p, const Op *op, size_t real_size)
{
    return 2 * (size_t)tensor_count(prog_tensor(p, op->in[0])) * real_size;
}

static Status gate_norm_channels_dx(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const real *dy = IN(DY), *g = IN(G), *y = IN(Y);
    real *dg = OUT(3), *product = OUT(4), *rows = call->scratch, *d = rows + tensor_count(call->in_tensor[0]);
    int64_t n = tensor_rows(call->in_tensor[DY]), o = tensor_last(call->in_tensor[DY]);
    int64_t c = tensor_last(call->in_tensor[W]);
    PARALLEL_IF(n * o)
    for (int64_t e = 0; e < n * o; e++) gate_gradient(g[e], y[e], dy[e], &dg[e], &product[e]);
    gemm(false, false, n, c, o, 1, product, o, IN(W), c, 0, d, c);
    norm_gradient(call, 0, d, rows);
    return OK;
}

/* y = s(g) x m: dx = s m dy, dg = s (1 - s) x m dy */
static Status gate_channels_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    Channels s = channels_of(call->in_tensor[0]);
    const real *g = IN(1), *x = IN(2), *m = IN(3);
    real *dg = OUT(0), *dx = OUT(1), *dy = call->scratch;
    to_last(&s, IN(0), dy);
    PARALLEL_IF(s.groups * s.pairs * s.c)
    for (int64_t r = 0; r < s.groups * s.pairs; r++)
        for (int64_t e = r * s.c; e < (r + 1) * s.c; e++) gate_gradient(g[e], x[e], dy[e] * m[r], &dg[e], &dx[e]);
    return OK;
}

const CpuEntry FN(cpu_channels)[] = {{OP_LAYER_NORM_CHANNELS, layer_norm_channels, NULL},
                                     {OP_LAYER_NORM_CHANNELS_BWD, layer_norm_channels_bwd, copy_scratch},
                                     {OP_GATE_NORM_CHANNELS_DX, gate_norm_channels_dx, gate_norm_scratch},
                                     {OP_GATE_CHANNELS_BWD, gate_channels_bwd, copy_scratch},
                                     {0}};
