#include "engine/rules.h"

#include <stdio.h>

Status rule_infer_like_first(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    out[0] = *rule_in(p, op, 0);
    *n_out = 1;
    return OK;
}

static int append_shape(char *text, int at, int size, const Tensor *t)
{
    if (at >= size) return at;
    if (t == NULL) return at + snprintf(text + at, (size_t)(size - at), " -");
    at += snprintf(text + at, (size_t)(size - at), " %s[", dtype_name(t->dtype));
    for (int axis = 0; axis < t->rank && at < size; axis++)
        at += snprintf(text + at, (size_t)(size - at), "%s%lld%s", axis ? "," : "", (long long)t->dim[axis],
                       axis == t->shard ? "/dap" : "");
    if (at < size) at += snprintf(text + at, (size_t)(size - at), "]");
    return at;
}

Status rule_bad_shape(const Program *p, const Op *op, const char *expected)
{
    char shapes[640] = "";
    int at = 0;
    for (int i = 0; i < op->n_in; i++) at = append_shape(shapes, at, (int)sizeof shapes, rule_in(p, op, i));
    const char *scope = op->scope >= 0 && op->scope < p->n_scopes ? p->scope[op->scope] : "";
    return status_fail(ERR_INTERNAL, "%s in scope '%s': inputs are%s; expected %s", op_def(op->kind)->name, scope,
                       shapes, expected);
}

Status rule_merge_shard(const Program *p, const Op *op, int n, const int *input, const int *shift, int8_t *shard_out)
{
    int shard = SHARD_NONE;
    for (int i = 0; i < n; i++) {
        const Tensor *t = rule_in(p, op, input[i]);
        if (t == NULL || t->shard == SHARD_NONE) continue;
        int axis = t->shard + shift[i];
        if (axis < 0 || (shard != SHARD_NONE && axis != shard))
            return rule_bad_shape(p, op, "inputs sharded on one and the same axis of the output");
        shard = axis;
    }
    *shard_out = (int8_t)shard;
    return OK;
}

Status rule_require(const Program *p, const Op *op, int n)
{
    for (int i = 0; i < n; i++)
        if (rule_in(p, op, i) == NULL) return rule_bad_shape(p, op, "all mandatory inputs");
    return OK;
}

Tensor rule_tensor(DType dtype, int rank, const int64_t *dim)
{
    Tensor t = {.dtype = dtype, .rank = (int8_t)rank, .shard = SHARD_NONE};
    for (int axis = 0; axis < rank; axis++) t.dim[axis] = dim[axis];
    return t;
}

Tensor rule_with_last(const Tensor *x, int64_t last)
{
    Tensor t = *x;
    t.dim[t.rank - 1] = last;
    return t;
}

bool rule_same_rows(const Tensor *a, const Tensor *b)
{
    if (a->rank != b->rank || a->shard != b->shard) return false;
    for (int axis = 0; axis + 1 < a->rank; axis++)
        if (a->dim[axis] != b->dim[axis]) return false;
    return true;
}

bool rule_same(const Tensor *a, const Tensor *b)
{
    return rule_same_rows(a, b) && (a->rank == 0 || tensor_last(a) == tensor_last(b));
}

bool rule_is_vector(const Tensor *x, int64_t n)
{
    return x->rank == 1 && x->dim[0] == n && x->shard == SHARD_NONE;
}

/* Axis `from` of x moved to `to`, those between by one. */
static Tensor with_axis_moved(const Tensor *x, int from, int to)
{
    Tensor t = *x;
    int step = from < to ? 1 : -1;
    for (int axis = from; axis != to; axis += step) {
        t.dim[axis] = x->dim[axis + step];
        if (x->shard == axis + step) t.shard = (int8_t)axis;
    }
    t.dim[to] = x->dim[from];
    if (x->shard == from) t.shard = (int8_t)to;
    return t;
}

Tensor rule_channel_first(const Tensor *x)
{
    return with_axis_moved(x, x->rank - 1, x->rank - 3);
}

Tensor rule_channel_last(const Tensor *x)
{
    return with_axis_moved(x, x->rank - 3, x->rank - 1);
}

Tensor rule_row_statistic(const Tensor *x)
{
    Tensor t = *x;
    t.rank = (int8_t)(x->rank - 1);
    t.dim[t.rank] = 0;
    t.dtype = rule_grad_dtype(x->dtype);
    return t;
}

bool rule_is_mask(const Tensor *m, const Tensor *x)
{
    if (m->rank > x->rank || m->shard != (x->shard < m->rank ? x->shard : SHARD_NONE)) return false;
    for (int axis = 0; axis < m->rank; axis++)
        if (m->dim[axis] != x->dim[axis]) return false;
    return true;
}

double rule_bytes(const Program *p, const Op *op)
{
    double bytes = 0;
    for (int i = 0; i < op->n_in; i++)
        if (op->in[i] != VAL_NONE) bytes += (double)tensor_bytes(prog_tensor(p, op->in[i]));
    for (int i = 0; i < op->n_out; i++)
        if (op->out[i] != VAL_NONE) bytes += (double)tensor_bytes(prog_tensor(p, op->out[i]));
    return bytes;
}

void rule_cost_elementwise(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = op->n_out > 0 && op->out[0] != VAL_NONE ? (double)tensor_count(prog_tensor(p, op->out[0])) : 0;
    cost->bytes = rule_bytes(p, op);
}

Val rule_fill_like(Program *p, const Tensor *t, double value)
{
    OpAttr attr = {.i = {t->rank}, .f = {value}};
    for (int axis = 0; axis < t->rank; axis++) attr.i[1 + axis] = t->dim[axis];
    attr.i[7] = (int64_t)t->dtype + 16 * (int64_t)(t->shard + 1);
    return prog_add(p, OP_FILL, 0, NULL, &attr);
}

Val rule_grad_or_zero(Program *p, Val grad, Val v)
{
    if (grad != VAL_NONE) return grad;
    Tensor like = *prog_tensor(p, v);
    return rule_fill_like(p, &like, 0.0);
}
