/* Products with weight matrices. */
#include "kernels/cpu/ops/dropout.h"
#include "kernels/cpu/ops/norm.h"

/* Where the inputs and outputs of a layer norm in front are (engine/op_list.def). */
typedef struct Front {
    int x, gamma, out;
} Front;
static const Front linear_front = {0, 3, 1}, group_front = {0, 13, 6}, residual_front = {1, 8, 5};

static bool has_norm(const Op *op, Front front)
{
    return op->n_in > front.gamma && op->in[front.gamma] != VAL_NONE;
}

/* Room for what the product reads where it is no output. */
static size_t front_count(const Program *p, const Op *op, Front front)
{
    bool in_scratch = has_norm(op, front) && op->out[front.out] == VAL_NONE;
    return in_scratch ? (size_t)tensor_count(prog_tensor(p, op->in[front.x])) : 0;
}

/* What the product reads: x, or its layer norm in an output or at `room`. */
static const real *product_input(const OpCall *call, Front front, real *room)
{
    if (!has_norm(call->op, front)) return IN(0);
    const Tensor *x = call->in_tensor[0];
    real *y = OUT(front.out) ? OUT(front.out) : room;
    layer_norm_rows(tensor_rows(x), tensor_last(x), IN(0), IN(front.gamma), IN(front.gamma + 1),
                    (real)call->op->attr.f[0], y, OUT(front.out + 1), OUT(front.out + 2));
    return y;
}

static void add_bias(int64_t rows, int64_t columns, const real *bias, real *y)
{
    PARALLEL_IF(rows * columns)
    for (int64_t r = 0; r < rows; r++) memcpy(y + r * columns, bias, (size_t)columns * sizeof *y);
}

/* y[rows,O] = x[rows,I] W[O,I]^T + b */
static void forward(int64_t rows, const Tensor *w_tensor, const real *x, const real *w, const real *bias, real *y)
{
    int64_t o = w_tensor->dim[0], i = w_tensor->dim[1];
    if (bias) add_bias(rows, o, bias, y);
    gemm(false, true, rows, o, i, 1, x, i, w, i, bias ? 1 : 0, y, o);
}

static size_t linear_scratch(const Program *p, const Op *op, size_t real_size)
{
    return front_count(p, op, linear_front) * real_size;
}

static Status linear(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_rows(call->in_tensor[0]);
    const real *x = product_input(call, linear_front, call->scratch);
    real *y = OUT(0);
    forward(rows, call->in_tensor[1], x, IN(1), call->op->n_in > 2 ? IN(2) : NULL, y);
    if (!call->op->attr.i[0]) return OK;
    int64_t count = tensor_count(call->out_tensor[0]);
    PARALLEL_IF(count)
    for (int64_t e = 0; e < count; e++) y[e] = y[e] > 0 ? y[e] : 0;
    return OK;
}

/* What a product is added to: 1 when there is something, which dx holds then. */
static real start_from(const OpCall *call, int other)
{
    if (call->op->n_in <= other || !call->in[other]) return 0;
    memcpy(call->out[0], call->in[other], (size_t)tensor_count(call->out_tensor[0]) * sizeof(real));
    return 1;
}

static Status linear_dx(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t o = call->in_tensor[1]->dim[0], i = call->in_tensor[1]->dim[1], count = tensor_count(call->out_tensor[0]);
    real *dx = OUT(0), start = start_from(call, 2);
    gemm(false, false, tensor_rows(call->in_tensor[0]), i, o, 1, IN(0), o, IN(1), i, start, dx, i);
    if (call->op->n_in <= 3) return OK;
    const real *y = IN(3);
    PARALLEL_IF(count)
    for (int64_t e = 0; e < count; e++) dx[e] = y[e] > 0 ? dx[e] : 0;
    return OK;
}

/* d = dy W: dx = s(g) d, dg = s (1 - s) x d; delta = sum of dx x over each head; with rng of dropout(dy) */
static Status linear_gate_dx(const RankLayout *layout, const OpCall *call)
{
    int64_t o = call->in_tensor[1]->dim[0], i = call->in_tensor[1]->dim[1], count = tensor_count(call->out_tensor[0]);
    const real *dy = IN(0), *g = IN(2), *x = IN(3);
    real *dg = OUT(0), *dx = OUT(1);
    if (call->op->n_in > 4) {
        Dropout drop = dropout_make(layout, call->op, call->in_tensor[0], call->in[4]);
        dropout_apply(&drop, call->in_tensor[0], NULL, dy, OUT(3));
        dy = OUT(3);
    }
    gemm(false, false, tensor_rows(call->in_tensor[0]), i, o, 1, dy, o, IN(1), i, 0, dx, i);
    PARALLEL_IF(count)
    for (int64_t e = 0; e < count; e++) gate_gradient(g[e], x[e], dx[e], &dg[e], &dx[e]);
    int64_t heads = call->op->attr.i[2], width = heads ? i / heads : 1;
    real *delta = heads ? OUT(2) : NULL;
    PARALLEL_IF(count)
    for (int64_t h = 0; h < (heads ? count / width : 0); h++) {
        delta[h] = 0;
        for (int64_t e = h * width; e < (h + 1) * width; e++) delta[h] += dx[e] * x[e];
    }
    return OK;
}

/* dW[O,I] = dy[rows,O]^T x[rows,I] */
static void weight_gradient(const Tensor *dy_tensor, const Tensor *x_tensor, const real *dy, const real *x, real *dw,
                            real *db)
{
    int64_t rows = tensor_rows(x_tensor), o = tensor_last(dy_tensor), i = tensor_last(x_tensor);
    gemm(true, false, o, i, rows, 1, dy, o, x, i, 0, dw, i);
    if (db) column_sums(rows, o, dy, db);
}

static Status linear_dw(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    weight_gradient(call->in_tensor[0], call->in_tensor[1], IN(0), IN(1), OUT(0), call->op->attr.i[0] ? OUT(1) : NULL);
    return OK;
}

static size_t linear_group_scratch(const Program *p, const Op *op, size_t real_size)
{
    return front_count(p, op, group_front) * real_size;
}

static Status linear_group(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_rows(call->in_tensor[0]);
    const real *x = product_input(call, group_front, call->scratch);
    for (int g = 0; g < call->op->attr.i[0]; g++) {
        int w = 1 + 2 * g, b = 2 + 2 * g;
        forward(rows, call->in_tensor[w], x, IN(w), b < call->op->n_in ? IN(b) : NULL, OUT(g));
    }
    return OK;
}

/* a = s(g) y m */
static void gate_product(int64_t rows, int64_t c, const real *g, const real *m, const real *y, real *a)
{
    PARALLEL_IF(rows * c)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = r * c; e < (r + 1) * c; e++) a[e] = sigmoid(g[e]) * y[e] * m[r];
}

/* The same, a[G?,C,.,.] by way of `copy`. */
static void gate_product_channels(const Tensor *a_tensor, const real *g, const real *m, const real *y, real *copy,
                                  real *a)
{
    int off = a_tensor->rank - 3;
    int64_t c = a_tensor->dim[off], groups = 1;
    for (int axis = 0; axis < off; axis++) groups *= a_tensor->dim[axis];
    int64_t size = tensor_count(a_tensor) / groups;
    gate_product(groups * size / c, c, g, m, y, copy);
    for (int64_t k = 0; k < groups; k++) transpose_matrix(size / c, c, copy + k * size, a + k * size);
}

/* Room for a gate and its product where they are not outputs, and for a gated product before it is transposed. */
static size_t linear_gates_scratch(const Program *p, const Op *op, size_t real_size)
{
    size_t most = 0;
    for (int k = 0; k < op->attr.i[1]; k++) {
        size_t count = (size_t)tensor_count(prog_tensor(p, op->out[k]));
        if (count > most) most = count;
    }
    return 3 * most * real_size;
}

static Status linear_gates(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int n = (int)call->op->attr.i[0], pairs = (int)call->op->attr.i[1];
    bool keep = call->op->attr.i[2] != 0;
    int64_t rows = tensor_rows(call->in_tensor[0]);
    for (int k = 0; k < n; k++) {
        int w = 2 + 2 * k, b = 3 + 2 * k, gate = k % 2;
        bool loose = k >= 2 * pairs;
        int64_t size = loose ? 0 : tensor_count(call->out_tensor[k / 2]);
        real *room = call->scratch, *y = loose ? OUT(k - pairs) : keep ? OUT(n - pairs + k) : room + gate * size;
        forward(rows, call->in_tensor[w], IN(0), IN(w), b < call->op->n_in ? IN(b) : NULL, y);
        if (loose || !gate) continue;
        const real *value = keep ? OUT(n - pairs + k - 1) : room;
        if (call->op->attr.i[3])
            gate_product_channels(call->out_tensor[k / 2], y, IN(1), value, room + 2 * size, OUT(k / 2));
        else
            gate_product(rows, tensor_last(call->out_tensor[k / 2]), y, IN(1), value, OUT(k / 2));
    }
    return OK;
}

static Status linear_group_dx(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int n = (int)call->op->attr.i[0];
    int64_t rows = tensor_rows(call->in_tensor[0]);
    real start = start_from(call, 2 * n);
    for (int g = 0; g < n; g++) {
        int64_t o = call->in_tensor[n + g]->dim[0], i = call->in_tensor[n + g]->dim[1];
        gemm(false, false, rows, i, o, 1, IN(g), o, IN(n + g), i, g ? 1 : start, OUT(0), i);
    }
    return OK;
}

static Status linear_group_dw(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int n = (int)call->op->attr.i[0];
    for (int g = 0; g < n; g++) {
        bool bias = call->op->attr.i[1] >> g & 1;
        weight_gradient(call->in_tensor[g], call->in_tensor[n], IN(g), IN(n), OUT(g), bias ? OUT(n + g) : NULL);
    }
    return OK;
}

static const real *optional(const OpCall *call, int k)
{
    return k < call->op->n_in ? (const real *)call->in[k] : NULL;
}

static size_t linear_residual_scratch(const Program *p, const Op *op, size_t real_size)
{
    return front_count(p, op, residual_front) * real_size;
}

/* What the product reads: x, or the layer norm of a channel-first x in an output or at `room`. */
static const real *residual_input(const OpCall *call, real *room)
{
    const Front front = residual_front;
    if (!has_norm(call->op, front)) return IN(front.x);
    const Tensor *x = call->in_tensor[front.x];
    int64_t c = x->dim[x->rank - 3], places = x->dim[x->rank - 2] * x->dim[x->rank - 1], count = tensor_count(x);
    real *y = OUT(front.out) ? OUT(front.out) : room;
    for (int64_t at = 0; at < count; at += places * c) transpose_matrix(c, places, IN(front.x) + at, y + at);
    layer_norm_rows(count / c, c, y, IN(front.gamma), IN(front.gamma + 1), (real)call->op->attr.f[2], y,
                    OUT(front.out + 1), OUT(front.out + 2));
    return y;
}

/* r x W b? g? rng? norm? -> y = r + dropout(sigmoid(g) p), p = x W^T + b */
static void residual_sum(const RankLayout *layout, const OpCall *call)
{
    const Tensor *t = call->out_tensor[0];
    const real *r = IN(0), *g = optional(call, 4), *x = residual_input(call, call->scratch);
    const int32_t *rng = call->op->n_in > 5 ? call->in[5] : NULL;
    real *y = OUT(0), *product = call->op->attr.i[2] ? OUT(1) : y;
    int64_t count = tensor_count(t);
    forward(tensor_rows(t), call->in_tensor[2], x, IN(2), optional(call, 3), product);
    PARALLEL_IF(count)
    for (int64_t e = 0; e < count; e++) y[e] = (g ? sigmoid(g[e]) * product[e] : product[e]) + (rng ? 0 : r[e]);
    if (!rng) return;
    Dropout d = dropout_make(layout, call->op, t, rng);
    dropout_apply(&d, t, r, y, y);
}

static Status linear_residual(const RankLayout *layout, const OpCall *call)
{
    residual_sum(layout, call);
    layer_norm_behind(call, 6, 2);
    return OK;
}

const CpuEntry FN(cpu_dense)[] = {{OP_LINEAR, linear, linear_scratch},
                                  {OP_LINEAR_DX, linear_dx, NULL},
                                  {OP_LINEAR_GATE_DX, linear_gate_dx, NULL},
                                  {OP_LINEAR_DW, linear_dw, NULL},
                                  {OP_LINEAR_GROUP, linear_group, linear_group_scratch},
                                  {OP_LINEAR_GATES, linear_gates, linear_gates_scratch},
                                  {OP_LINEAR_GROUP_DX, linear_group_dx, NULL},
                                  {OP_LINEAR_GROUP_DW, linear_group_dw, NULL},
                                  {OP_LINEAR_RESIDUAL, linear_residual, linear_residual_scratch},
                                  {0}};
