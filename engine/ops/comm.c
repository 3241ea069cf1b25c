/* Ops that join the ranks of a model-parallel (DAP) group, and the all-reduce of gradients. A sharded tensor's local
 * extent on its shard axis is global / p->dap. */
#include "engine/backend.h"
#include "engine/rules.h"

static bool has_axis(const Tensor *x, int64_t axis)
{
    return x && axis >= 0 && axis < x->rank;
}

/* --- RESHARD: a mark, gone after the shard pass --- */

static Status reshard_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    if (!x || op->attr.i[0] < SHARD_NONE || op->attr.i[0] >= x->rank)
        return rule_bad_shape(p, op, "a tensor and one of its axes, or -1");
    return rule_infer_like_first(p, op, out, n_out);
}

static Status reshard_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    (void)op;
    din[0] = dout[0];
    return prog_status(p);
}

static void no_cost(const Program *p, const Op *op, Cost *cost)
{
    (void)p;
    (void)op;
    (void)cost;
}

const OpDef op_reshard = {.name = "reshard",
                          .infer = reshard_infer,
                          .vjp = reshard_vjp,
                          .cost = no_cost,
                          .flags = OPF_ALIAS,
                          .int_name = {"axis"}};

/* --- SHARD_SLICE: replicated -> sharded. Every rank holds the gradient of its slice: gathered, it is the whole --- */

static Status to_slice(const Program *p, const Op *op, int64_t axis, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    if (!has_axis(x, axis) || x->shard != SHARD_NONE || x->dim[axis] % p->dap)
        return rule_bad_shape(p, op, "a replicated tensor whose extent on the axis is a multiple of dap");
    out[0] = *x;
    out[0].shard = (int8_t)axis;
    out[0].dim[axis] /= p->dap;
    *n_out = 1;
    return OK;
}

static Status shard_slice_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    return to_slice(p, op, op->attr.i[0], out, n_out);
}

static Status shard_slice_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = rule_add1(p, OP_ALL_GATHER, dout[0], &(OpAttr){.i = {op->attr.i[0], 0}});
    return prog_status(p);
}

static void shard_slice_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->bytes = 2.0 * (double)tensor_bytes(&p->value[op->out[0]].t);
}

const OpDef op_shard_slice = {.name = "shard_slice",
                              .infer = shard_slice_infer,
                              .vjp = shard_slice_vjp,
                              .cost = shard_slice_cost,
                              .int_name = {"axis"}};

/* --- ALL_GATHER --- */

static Status all_gather_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    if (!has_axis(x, op->attr.i[0]) || x->shard != op->attr.i[0])
        return rule_bad_shape(p, op, "a tensor sharded on the axis");
    out[0] = *x;
    out[0].shard = SHARD_NONE;
    out[0].dim[x->shard] *= p->dap;
    *n_out = 1;
    return OK;
}

/* Sharded consumers leave each rank a part of the gradient's sum; replicated ones leave each rank the whole gradient.
 */
static Status all_gather_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    OpKind kind = op->attr.i[1] ? OP_REDUCE_SCATTER : OP_SHARD_SLICE;
    din[0] = rule_add1(p, kind, dout[0], &(OpAttr){.i = {op->attr.i[0]}});
    return prog_status(p);
}

static void wire_cost(Cost *cost, double bytes, int ranks, double crossings)
{
    cost->bytes = 2 * bytes;
    cost->wire_bytes = crossings * bytes * (ranks - 1) / ranks;
}

static void all_gather_cost(const Program *p, const Op *op, Cost *cost)
{
    wire_cost(cost, (double)tensor_bytes(&p->value[op->out[0]].t), p->dap, 1);
}

const OpDef op_all_gather = {.name = "all_gather",
                             .infer = all_gather_infer,
                             .vjp = all_gather_vjp,
                             .cost = all_gather_cost,
                             .flags = OPF_COMM,
                             .int_name = {"axis", "reduce"}};

/* --- REDUCE_SCATTER --- */

static Status reduce_scatter_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    return to_slice(p, op, op->attr.i[0], out, n_out);
}

static Status reduce_scatter_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = rule_add1(p, OP_ALL_GATHER, dout[0], &(OpAttr){.i = {op->attr.i[0], 1}});
    return prog_status(p);
}

static void reduce_scatter_cost(const Program *p, const Op *op, Cost *cost)
{
    wire_cost(cost, (double)tensor_bytes(&p->value[op->in[0]].t), p->dap, 1);
    cost->flops = (double)tensor_count(&p->value[op->out[0]].t) * (p->dap - 1);
}

const OpDef op_reduce_scatter = {.name = "reduce_scatter",
                                 .infer = reduce_scatter_infer,
                                 .vjp = reduce_scatter_vjp,
                                 .cost = reduce_scatter_cost,
                                 .flags = OPF_COMM,
                                 .int_name = {"axis"}};

/* --- ALL_TO_ALL --- */

static Status all_to_all_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    int64_t from = op->attr.i[0], to = op->attr.i[1];
    if (!has_axis(x, from) || !has_axis(x, to) || from == to || x->shard != from || x->dim[to] % p->dap)
        return rule_bad_shape(p, op, "a tensor sharded on axis `from` whose extent on `to` is a multiple of dap");
    out[0] = *x;
    out[0].shard = (int8_t)to;
    out[0].dim[from] *= p->dap;
    out[0].dim[to] /= p->dap;
    *n_out = 1;
    return OK;
}

static Status all_to_all_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    din[0] = rule_add1(p, OP_ALL_TO_ALL, dout[0], &(OpAttr){.i = {op->attr.i[1], op->attr.i[0]}});
    return prog_status(p);
}

static void all_to_all_cost(const Program *p, const Op *op, Cost *cost)
{
    wire_cost(cost, (double)tensor_bytes(&p->value[op->in[0]].t), p->dap, 1);
}

const OpDef op_all_to_all = {.name = "all_to_all",
                             .infer = all_to_all_infer,
                             .vjp = all_to_all_vjp,
                             .cost = all_to_all_cost,
                             .flags = OPF_COMM,
                             .int_name = {"from", "to"}};

/* --- ALL_REDUCE: y = f sum over ranks of x; in place when recorded into its own input --- */

static Status all_reduce_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *x = rule_in(p, op, 0);
    if (!x || x->dtype == DT_I32 || op->attr.i[0] < 0 || op->attr.i[0] >= GROUP_COUNT)
        return rule_bad_shape(p, op, "a tensor of a real type and a group");
    return rule_infer_like_first(p, op, out, n_out);
}

/* The consumers of the sum are replicated: their gradient is whole on every rank. */
static Status all_reduce_vjp(Program *p, const Op *op, const Val *dout, Val *din)
{
    bool plain = op->attr.f[0] == 1;
    din[0] = plain ? dout[0] : rule_add1(p, OP_SCALE, dout[0], &(OpAttr){.f = {op->attr.f[0]}});
    return prog_status(p);
}

/* The program knows the size of a DAP group only; the ranks of the data-parallel group are the limit n -> infinity,
 * where an all-reduce sends twice the tensor. */
static void all_reduce_cost(const Program *p, const Op *op, Cost *cost)
{
    double bytes = (double)tensor_bytes(&p->value[op->in[0]].t);
    wire_cost(cost, bytes, p->dap, 2);
    if (op->attr.i[0] != GROUP_DAP) cost->wire_bytes = 2 * bytes;
    cost->flops = (double)tensor_count(&p->value[op->in[0]].t);
}

const OpDef op_all_reduce = {.name = "all_reduce",
                             .infer = all_reduce_infer,
                             .vjp = all_reduce_vjp,
                             .cost = all_reduce_cost,
                             .flags = OPF_COMM,
                             .int_name = {"group"},
                             .real_name = {"factor"}};

/* --- COMM_WAIT --- */

const OpDef op_comm_wait = {.name = "comm_wait",
                            .infer = rule_infer_like_first,
                            .cost = no_cost,
                            .flags = OPF_NODIFF | OPF_COMM | OPF_ALIAS | OPF_EFFECT};
