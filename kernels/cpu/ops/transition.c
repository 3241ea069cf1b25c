/* Layer norm, two products with a relu between them, residual sum, perhaps the layer norm of that. */
#include "kernels/cpu/entry.h"
#include "kernels/cpu/ops/norm.h"

/* Room for x and the hidden layer where they are not outputs. */
static size_t transition_scratch(const Program *p, const Op *op, size_t real_size)
{
    const Tensor *r = prog_tensor(p, op->in[0]);
    int64_t width = prog_tensor(p, op->in[3])->dim[0];
    return (size_t)(tensor_count(r) + tensor_rows(r) * width) * real_size;
}

static Status transition(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    const Tensor *t = call->in_tensor[0];
    int64_t rows = tensor_rows(t), c = tensor_last(t), width = call->in_tensor[3]->dim[0];
    const real *r = IN(0), *gamma = IN(1), *beta = IN(2), *b1 = IN(4), *b2 = IN(6);
    real *y = OUT(0), *room = call->scratch, *x = room, *hidden = room + rows * c, *mean = NULL, *rstd = NULL;
    real eps = (real)call->op->attr.f[0];
    if (call->op->attr.i[0]) {
        if (call->out[1]) x = OUT(1);
        if (call->out[4]) hidden = OUT(4);
        mean = call->out[2], rstd = call->out[3];
    }
    layer_norm_rows(rows, c, r, gamma, beta, eps, x, mean, rstd);
    PARALLEL_IF(rows * width)
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t k = 0; k < width; k++) hidden[i * width + k] = b1[k];
        for (int64_t k = 0; k < c; k++) y[i * c + k] = r[i * c + k] + b2[k];
    }
    gemm(false, true, rows, width, c, 1, x, c, IN(3), c, 1, hidden, width);
    PARALLEL_IF(rows * width)
    for (int64_t e = 0; e < rows * width; e++) hidden[e] = hidden[e] > 0 ? hidden[e] : 0;
    gemm(false, true, rows, c, width, 1, hidden, width, IN(5), width, 1, y, c);
    layer_norm_behind(call, 7, 5);
    return OK;
}

const CpuEntry FN(cpu_transition)[] = {{OP_TRANSITION, transition, transition_scratch}, {0}};
