/* Ops that move, cut or convert values without arithmetic. */
#include "engine/rules.h"

static void move_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->bytes = rule_bytes(p, op);
}

static void free_cost(const Program *p, const Op *op, Cost *cost)
{
    (void)p, (void)op, (void)cost;
}

/* --- transpose
 * -------------------------------------------------------------------------------------------------------- */

static Status transpose_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *x = rule_in(p, op, 0);
    Tensor y = *x;
    unsigned seen = 0;
    for (int axis = 0; axis < x->rank; axis++) {
        int64_t from = op->attr.i[axis];
        if (from < 0 || from >= x->rank || (seen >> from & 1)) return rule_bad_shape(p, op, "a permutation of axes");
        seen |= 1u << from;
        y.dim[axis] = x->dim[from];
        if (x->shard == from) y.shard = (int8_t)axis;
    }
    out[0] = y;
    *n_out = 1;
    return OK;
}

static Status transpose_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    OpAttr inverse = {.i = {0}};
    int rank = prog_tensor(p, op->in[0])->rank;
    for (int axis = 0; axis < rank; axis++) inverse.i[op->attr.i[axis]] = axis;
    din[0] = rule_add1(p, OP_TRANSPOSE, dout[0], &inverse);
    return OK;
}

const OpDef op_transpose = {.name = "transpose",
                            .infer = transpose_infer,
                            .vjp = transpose_vjp,
                            .cost = move_cost,
                            .flags = OPF_CHEAP,
                            .int_name = {"axis0", "axis1", "axis2", "axis3", "axis4", "axis5"}};

/* --- reshape
 * ---------------------------------------------------------------------------------------------------------- */

/* The attributes give the extents of the whole value. A sharded value keeps its local extent: the axes up to and
 * including the shard axis must stay as they are. */
static Status reshape_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *x = rule_in(p, op, 0);
    int64_t rank = op->attr.i[0];
    if (rank < 0 || rank > TENSOR_MAX_RANK) return rule_bad_shape(p, op, "a rank of 0 to 6");
    Tensor y = rule_tensor(x->dtype, (int)rank, op->attr.i + 1);
    bool fits = x->shard < rank;
    for (int axis = 0; fits && axis < x->shard; axis++) fits = x->dim[axis] == y.dim[axis];
    if (fits && x->shard != SHARD_NONE) {
        y.dim[x->shard] = x->dim[x->shard];
        y.shard = x->shard;
    }
    if (!fits || tensor_count(x) != tensor_count(&y))
        return rule_bad_shape(p, op, "as many elements, axes up to the shard axis unchanged");
    out[0] = y;
    *n_out = 1;
    return OK;
}

static Status reshape_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    const Tensor *x = prog_tensor(p, op->in[0]);
    OpAttr attr = {.i = {x->rank}};
    for (int axis = 0; axis < x->rank; axis++) attr.i[1 + axis] = x->dim[axis];
    din[0] = rule_add1(p, OP_RESHAPE, dout[0], &attr);
    return OK;
}

const OpDef op_reshape = {.name = "reshape",
                          .infer = reshape_infer,
                          .vjp = reshape_vjp,
                          .cost = free_cost,
                          .flags = OPF_ALIAS,
                          .int_name = {"rank", "d0", "d1", "d2", "d3", "d4", "d5"}};

/* --- concat, slice, pad
 * ----------------------------------------------------------------------------------------------- */

static bool cut_axis_ok(const Tensor *x, int64_t axis)
{
    return axis >= 0 && axis < x->rank && x->shard != axis;
}

static Status concat_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, op->n_in > 0 ? op->n_in : 1));
    const Tensor *first = rule_in(p, op, 0);
    int64_t axis = op->attr.i[0];
    if (!cut_axis_ok(first, axis)) return rule_bad_shape(p, op, "an axis that is not sharded");
    out[0] = *first;
    for (int k = 1; k < op->n_in; k++) {
        Tensor x = *rule_in(p, op, k);
        out[0].dim[axis] += x.rank == first->rank ? x.dim[axis] : 0;
        x.dim[axis] = first->dim[axis];
        if (!rule_same(&x, first) || x.dtype != first->dtype)
            return rule_bad_shape(p, op, "inputs alike but for one axis");
    }
    *n_out = 1;
    return OK;
}

static Status concat_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    int64_t axis = op->attr.i[0], start = 0;
    for (int k = 0; k < op->n_in; k++) {
        int64_t length = prog_tensor(p, op->in[k])->dim[axis];
        din[k] = rule_add1(p, OP_SLICE, dout[0], &(OpAttr){.i = {axis, start, length}});
        start += length;
    }
    return OK;
}

const OpDef op_concat = {
    .name = "concat", .infer = concat_infer, .vjp = concat_vjp, .cost = move_cost, .int_name = {"axis"}};

static Status slice_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *x = rule_in(p, op, 0);
    int64_t axis = op->attr.i[0], start = op->attr.i[1], length = op->attr.i[2];
    if (!cut_axis_ok(x, axis) || start < 0 || length < 1 || length > x->dim[axis] - start)
        return rule_bad_shape(p, op, "a range within an axis that is not sharded");
    out[0] = *x;
    out[0].dim[axis] = length;
    *n_out = 1;
    return OK;
}

static Status slice_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    int64_t axis = op->attr.i[0];
    int64_t total = prog_tensor(p, op->in[0])->dim[axis];
    din[0] = rule_add1(p, OP_PAD, dout[0], &(OpAttr){.i = {axis, op->attr.i[1], total}});
    return OK;
}

/* reads and writes the slice alone */
static void slice_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->bytes = 2.0 * (double)tensor_bytes(prog_tensor(p, op->out[0]));
}

const OpDef op_slice = {.name = "slice",
                        .infer = slice_infer,
                        .vjp = slice_vjp,
                        .cost = slice_cost,
                        .flags = OPF_CHEAP,
                        .int_name = {"axis", "start", "length"}};

static Status pad_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, 1));
    const Tensor *x = rule_in(p, op, 0);
    int64_t axis = op->attr.i[0], start = op->attr.i[1], total = op->attr.i[2];
    if (!cut_axis_ok(x, axis) || start < 0 || x->dim[axis] > total - start)
        return rule_bad_shape(p, op, "x within the padded extent of an axis that is not sharded");
    out[0] = *x;
    out[0].dim[axis] = total;
    *n_out = 1;
    return OK;
}

static Status pad_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    int64_t axis = op->attr.i[0];
    int64_t length = prog_tensor(p, op->in[0])->dim[axis];
    din[0] = rule_add1(p, OP_SLICE, dout[0], &(OpAttr){.i = {axis, op->attr.i[1], length}});
    return OK;
}

const OpDef op_pad = {.name = "pad",
                      .infer = pad_infer,
                      .vjp = pad_vjp,
                      .cost = move_cost,
                      .flags = OPF_CHEAP,
                      .int_name = {"axis", "start", "total"}};

/* --- conversion, copies, constants
 * ------------------------------------------------------------------------------------ */

static bool is_real_type(int64_t dtype)
{
    return dtype == DT_F32 || dtype == DT_F64 || dtype == DT_BF16;
}

static Status cast_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    if (!is_real_type(op->attr.i[0])) return rule_bad_shape(p, op, "a floating-point type to convert to");
    TRY(rule_infer_like_first(p, op, out, n_out));
    out[0].dtype = (DType)op->attr.i[0];
    return OK;
}

static Status cast_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = rule_add1(p, OP_CAST, dout[0], &(OpAttr){.i = {prog_tensor(p, op->in[0])->dtype}});
    return OK;
}

const OpDef op_cast = {.name = "cast",
                       .infer = cast_infer,
                       .vjp = cast_vjp,
                       .cost = move_cost,
                       .flags = OPF_CHEAP | OPF_POSITION,
                       .int_name = {"type"}};

static Status copy_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    (void)p, (void)op;
    din[0] = dout[0];
    return OK;
}

const OpDef op_copy = {.name = "copy", .infer = rule_infer_like_first, .vjp = copy_vjp, .cost = move_cost};

static Status fill_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    int64_t rank = op->attr.i[0], type = op->attr.i[7] % 16, shard = op->attr.i[7] / 16 - 1;
    if (rank < 0 || rank > TENSOR_MAX_RANK || (type && !is_real_type(type)) || shard >= rank)
        return rule_bad_shape(p, op, "a rank of 0 to 6, a floating-point type, a shard axis below the rank");
    out[0] = rule_tensor(type ? (DType)type : DT_F32, (int)rank, op->attr.i + 1);
    out[0].shard = (int8_t)shard;
    *n_out = 1;
    return OK;
}

const OpDef op_fill = {.name = "fill",
                       .infer = fill_infer,
                       .cost = move_cost,
                       .flags = OPF_NODIFF | OPF_CHEAP,
                       .int_name = {"rank", "d0", "d1", "d2", "d3", "d4", "d5", "type"},
                       .real_name = {"value"}};
