/* Element by element. */
#include "kernels/cpu/ops/dropout.h"

static int64_t count_of(const OpCall *call)
{
    return tensor_count(call->in_tensor[0]);
}

static Status relu(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = count_of(call);
    const real *x = IN(0);
    real *y = OUT(0);
    PARALLEL_IF(n)
    for (int64_t e = 0; e < n; e++) y[e] = x[e] > 0 ? x[e] : 0;
    return OK;
}

static Status relu_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = count_of(call);
    const real *dy = IN(0), *y = IN(1);
    real *dx = OUT(0);
    PARALLEL_IF(n)
    for (int64_t e = 0; e < n; e++) dx[e] = y[e] > 0 ? dy[e] : 0;
    return OK;
}

static Status add(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = tensor_count(call->in_tensor[1]), repeats = count_of(call) / n;
    const real *a = IN(0), *b = IN(1);
    real *y = OUT(0);
    if (repeats == 1) {
        PARALLEL_IF(n)
        for (int64_t e = 0; e < n; e++) {
            real sum = a[e] + b[e];
            for (int k = 2; k < call->op->n_in; k++) sum += IN(k)[e];
            y[e] = sum;
        }
        return OK;
    }
    PARALLEL_IF(n * repeats)
    for (int64_t r = 0; r < repeats; r++)
        for (int64_t e = 0; e < n; e++) y[r * n + e] = a[r * n + e] + b[e];
    return OK;
}

static Status sum_leading(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = tensor_count(call->out_tensor[0]);
    column_sums(count_of(call) / n, n, IN(0), OUT(0));
    return OK;
}

static Status outer_add(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = call->in_tensor[0]->dim[0], m = call->in_tensor[1]->dim[0], c = call->in_tensor[0]->dim[1];
    const real *a = IN(0), *b = IN(1);
    real *y = OUT(0);
    PARALLEL_IF(n * m * c)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++)
            for (int64_t k = 0; k < c; k++) y[(i * m + j) * c + k] = a[i * c + k] + b[j * c + k];
    return OK;
}

static Status outer_add_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = call->in_tensor[0]->dim[0], m = call->in_tensor[0]->dim[1], c = call->in_tensor[0]->dim[2];
    const real *dy = IN(0);
    real *da = OUT(0);
    for (int64_t i = 0; i < n; i++) column_sums(m, c, dy + i * m * c, da + i * c);
    column_sums(n, m * c, dy, OUT(1));
    return OK;
}

static Status scale(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = count_of(call);
    real factor = (real)call->op->attr.f[0];
    const real *x = IN(0);
    real *y = OUT(0);
    PARALLEL_IF(n)
    for (int64_t e = 0; e < n; e++) y[e] = factor * x[e];
    return OK;
}

static Status mask_mul(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_count(call->in_tensor[1]), c = count_of(call) / rows;
    const real *x = IN(0), *m = IN(1);
    real *y = OUT(0);
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < c; k++) y[r * c + k] = x[r * c + k] * m[r];
    return OK;
}

/* --- gates
 * -------------------------------------------------------------------------------------------------------------
 */

static Status gate(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_rows(call->in_tensor[0]), c = tensor_last(call->in_tensor[0]);
    const real *g = IN(0), *x = IN(1), *m = call->op->n_in > 2 ? IN(2) : NULL;
    real *y = OUT(0);
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++) {
        real factor = m ? m[r] : 1;
        for (int64_t e = r * c; e < (r + 1) * c; e++) y[e] = sigmoid(g[e]) * x[e] * factor;
    }
    return OK;
}

/* y = s(g) x m: dx = s m dy, dg = s (1 - s) x m dy */
static Status gate_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_rows(call->in_tensor[0]), c = tensor_last(call->in_tensor[0]);
    const real *dy = IN(0), *g = IN(1), *x = IN(2), *m = call->op->n_in > 3 ? IN(3) : NULL;
    real *dg = OUT(0), *dx = OUT(1);
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++) {
        real factor = m ? m[r] : 1;
        for (int64_t e = r * c; e < (r + 1) * c; e++) gate_gradient(g[e], x[e], dy[e] * factor, &dg[e], &dx[e]);
    }
    return OK;
}

static Status gate_rows(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = tensor_count(call->in_tensor[1]), s = count_of(call) / n;
    const real *g = IN(0), *x = IN(1);
    real *y = OUT(0);
    PARALLEL_IF(n * s)
    for (int64_t row = 0; row < s; row++)
        for (int64_t e = 0; e < n; e++) y[row * n + e] = sigmoid(g[row * n + e]) * x[e];
    return OK;
}

static Status gate_rows_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    enum { CHUNK = 64 };
    int64_t n = tensor_count(call->in_tensor[2]), s = count_of(call) / n;
    const real *dy = IN(0), *g = IN(1), *x = IN(2);
    real *dg = OUT(0), *dx = OUT(1);
    PARALLEL_IF(n * s)
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t width = n - first < CHUNK ? n - first : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t row = 0; row < s; row++)
            for (int64_t k = 0; k < width; k++) {
                int64_t e = row * n + first + k;
                real open = sigmoid(g[e]);
                dg[e] = open * (1 - open) * x[first + k] * dy[e];
                sum[k] += open * dy[e];
            }
        for (int64_t k = 0; k < width; k++) dx[first + k] = (real)sum[k];
    }
    return OK;
}

/* --- dropout
 * ----------------------------------------------------------------------------------------------------------- */

static Status dropout(const RankLayout *layout, const OpCall *call)
{
    Dropout d = dropout_make(layout, call->op, call->in_tensor[0], call->in[1]);
    dropout_apply(&d, call->in_tensor[0], NULL, IN(0), OUT(0));
    return OK;
}

static Status residual_dropout(const RankLayout *layout, const OpCall *call)
{
    Dropout d = dropout_make(layout, call->op, call->in_tensor[1], call->in[2]);
    dropout_apply(&d, call->in_tensor[1], IN(0), IN(1), OUT(0));
    return OK;
}

const CpuEntry FN(cpu_pointwise)[] = {{OP_RELU, relu, NULL},
                                      {OP_RELU_BWD, relu_bwd, NULL},
                                      {OP_ADD, add, NULL},
                                      {OP_SUM_LEADING, sum_leading, NULL},
                                      {OP_OUTER_ADD, outer_add, NULL},
                                      {OP_OUTER_ADD_BWD, outer_add_bwd, NULL},
                                      {OP_SCALE, scale, NULL},
                                      {OP_MASK_MUL, mask_mul, NULL},
                                      {OP_GATE, gate, NULL},
                                      {OP_GATE_BWD, gate_bwd, NULL},
                                      {OP_GATE_ROWS, gate_rows, NULL},
                                      {OP_GATE_ROWS_BWD, gate_rows_bwd, NULL},
                                      {OP_DROPOUT, dropout, NULL},
                                      {OP_RESIDUAL_DROPOUT, residual_dropout, NULL},
                                      {0}};
