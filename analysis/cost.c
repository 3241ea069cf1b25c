#include "analysis/cost.h"

#include <stdlib.h>
#include <string.h>

#include "engine/array.h"
#include "engine/backend.h"

const char *const COST_RATE_NAMES[RATE_COUNT] = {"f32", "f64", "bf16"};
const char *const COST_STAGE_NAMES[COST_STAGE_COUNT] = {"forward_nograd", "forward", "backward", "optimizer"};

const char *const COST_ASIDE_NAMES[COLLECTIVE_COUNT] = {"all_reduce_aside", "all_gather_aside", "reduce_scatter_aside",
                                                        "all_to_all_aside", "broadcast_aside"};

enum { CLASS_LIMIT = 1 << 20 };

Status cost_create(int64_t dap, bool in_graph, StepCost **cost_out)
{
    if (dap < 1) return status_fail(ERR_USAGE, "cost of a step with dap %lld (expected 1 or more)", (long long)dap);
    StepCost *cost = calloc(1, sizeof *cost);
    if (!cost) return status_fail(ERR_MEMORY, "cost: out of memory");
    cost->dap = dap;
    cost->in_graph = in_graph;
    *cost_out = cost;
    return OK;
}

void cost_destroy(StepCost **cost)
{
    if (!cost || !*cost) return;
    arena_free(&(*cost)->arena);
    free((*cost)->item);
    free(*cost);
    *cost = NULL;
}

static bool same_class(const CostClass *a, const CostClass *b)
{
    return a->stage == b->stage && a->rate == b->rate && a->sharded == b->sharded && a->recomputed == b->recomputed &&
           a->flops == b->flops && a->bytes == b->bytes && a->comm == b->comm && a->aside == b->aside &&
           a->sends == b->sends && !a->sender == !b->sender && (!a->sender || !strcmp(a->sender, b->sender)) &&
           a->collective == b->collective && a->group == b->group && a->tensor_bytes == b->tensor_bytes &&
           a->cover_flops == b->cover_flops && a->cover_bytes == b->cover_bytes &&
           a->cover_kernels == b->cover_kernels && !strcmp(a->kind, b->kind);
}

static double wire_bytes(const CostClass *item, double dap)
{
    if (!item->comm) return 0;
    double share = item->group == COST_GROUP_MODEL ? (dap - 1) / dap : 1; /* data-parallel: the limit of many ranks */
    return item->tensor_bytes * share * (item->collective == COLLECTIVE_ALL_REDUCE ? 2 : 1);
}

Status cost_add(StepCost *cost, const CostClass *item)
{
    cost->flops += item->calls * item->flops;
    cost->bytes += item->calls * item->bytes;
    cost->wire_bytes += item->calls * wire_bytes(item, (double)cost->dap);
    if (item->wait)
        cost->waits += item->calls;
    else if (!item->sender)
        cost->kernels += item->calls;
    for (int i = cost->count - 1; i >= 0; i--)
        if (same_class(&cost->item[i], item)) {
            cost->item[i].calls += item->calls;
            return OK;
        }
    if (cost->count >= CLASS_LIMIT)
        return status_fail(ERR_MEMORY, "cost: more than %d classes of ops", (int)CLASS_LIMIT);
    TRY(array_reserve((void **)&cost->item, &cost->capacity, cost->count + 1, sizeof *cost->item, "classes of ops"));
    CostClass *added = &cost->item[cost->count];
    *added = *item;
    added->kind = arena_strdup(&cost->arena, item->kind);
    if (item->sender) added->sender = arena_strdup(&cost->arena, item->sender);
    if (!added->kind || (item->sender && !added->sender)) return status_fail(ERR_MEMORY, "cost: out of memory");
    cost->count++;
    return OK;
}

/* --- from a program -------------------------------------------------------------------------------------------------
 */

static bool find_collective(OpKind kind, Collective *out)
{
    switch (kind) {
    case OP_ALL_GATHER:
        *out = COLLECTIVE_ALL_GATHER;
        return true;
    case OP_REDUCE_SCATTER:
        *out = COLLECTIVE_REDUCE_SCATTER;
        return true;
    case OP_ALL_TO_ALL:
        *out = COLLECTIVE_ALL_TO_ALL;
        return true;
    case OP_ALL_REDUCE:
        *out = COLLECTIVE_ALL_REDUCE;
        return true;
    default:
        return false;
    }
}

CostStage cost_stage(const Op *op, bool nograd)
{
    switch (op->stage) {
    case STAGE_OPTIMIZER:
        return COST_OPTIMIZER;
    case STAGE_BACKWARD:
    case STAGE_SYNC:
        return COST_BACKWARD;
    default:
        return nograd ? COST_FORWARD_NOGRAD : COST_FORWARD;
    }
}

/* The rate of a product is that of its lowest input: bf16 inputs use the bf16 units whatever they accumulate in. */
static CostRate rate_of(const Program *p, const Op *op)
{
    CostRate rate = RATE_F32;
    for (int i = 0; i < op->n_in; i++) {
        if (op->in[i] == VAL_NONE) continue;
        DType type = p->value[op->in[i]].t.dtype;
        if (type == DT_BF16) return RATE_BF16;
        if (type == DT_F64) rate = RATE_F64;
    }
    return rate;
}

static bool touches_shard(const Program *p, const Op *op)
{
    for (int i = 0; i < op->n_in; i++)
        if (op->in[i] != VAL_NONE && p->value[op->in[i]].t.shard != SHARD_NONE) return true;
    for (int i = 0; i < op->n_out; i++)
        if (op->out[i] != VAL_NONE && p->value[op->out[i]].t.shard != SHARD_NONE) return true;
    return false;
}

static CostClass classify(const Program *p, const Op *op, double times, bool nograd)
{
    Cost cost;
    prog_op_cost(p, op, &cost);
    CostClass item = {.kind = op_priced_as(op),
                      .stage = cost_stage(op, nograd),
                      .rate = rate_of(p, op),
                      .sharded = touches_shard(p, op),
                      .recomputed = op->recomputed,
                      .calls = times,
                      .flops = cost.flops,
                      .bytes = cost.bytes};
    item.comm = find_collective(op->kind, &item.collective);
    item.wait = op->kind == OP_COMM_WAIT;
    if (!item.comm) return item;
    item.aside = op->stream == STREAM_COMM;
    item.group = COST_GROUP_MODEL;
    if (op->kind == OP_ALL_REDUCE && op->attr.i[0] == GROUP_DP) item.group = COST_GROUP_DATA;
    if (op->kind == OP_ALL_REDUCE && op->attr.i[0] == GROUP_WORLD) item.group = COST_GROUP_ALL;
    Val whole = op->kind == OP_ALL_GATHER ? op->out[0] : op->in[0];
    item.tensor_bytes = (double)tensor_bytes(&p->value[whole].t);
    return item;
}

CostClass cost_classify(const Program *p, const Op *op, double times, bool nograd)
{
    Op computation = prog_op_computation(op);
    CostClass item = classify(p, &computation, times, nograd);
    item.sends = op->send.active;
    return item;
}

CostClass cost_classify_sent(const Program *p, const Op *op, double times, bool nograd)
{
    Op collective = prog_op_collective(op);
    CostClass by = cost_classify(p, op, times, nograd), item = classify(p, &collective, times, nograd);
    item.sender = by.kind;
    item.cover_flops = by.flops;
    item.cover_bytes = by.bytes;
    item.cover_kernels = 1;
    return item;
}

/* Collectives in flight, oldest first; compute ops are credited to the oldest one. */
typedef struct Flight {
    CostClass *item; /* one per collective op of the program */
    Val *value;
    int first, count;
} Flight;

static void land(Flight *flight, Val value)
{
    for (int i = flight->first; i < flight->count; i++)
        if (flight->value[i] == value) flight->value[i] = VAL_NONE;
    while (flight->first < flight->count && flight->value[flight->first] == VAL_NONE) flight->first++;
}

static void cover(CostClass *collective, const CostClass *by)
{
    collective->cover_flops += by->flops;
    collective->cover_bytes += by->bytes;
    collective->cover_kernels += 1;
}

/* What an op sends is also covered by the ops aside that it shares the device with: those in front of it. */
static Status add_sent(StepCost *cost, const Program *p, int32_t i, double times, bool nograd)
{
    CostClass item = cost_classify_sent(p, &p->op[i], times, nograd);
    for (int32_t k = i; p->op[i].send.shares && k-- > 0 && p->op[k].stream == STREAM_ASIDE;) {
        CostClass beside = cost_classify(p, &p->op[k], times, nograd);
        cover(&item, &beside);
    }
    return cost_add(cost, &item);
}

static Status walk(StepCost *cost, const Program *p, double times, bool nograd, Flight *flight)
{
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->kind == OP_COMM_WAIT) land(flight, op->in[0]);
        if (op_def(op->kind)->flags & OPF_ALIAS && op->kind != OP_COMM_WAIT) continue;
        CostClass item = cost_classify(p, op, times, nograd);
        if (item.wait) {
            TRY(cost_add(cost, &item));
            continue;
        }
        if (item.comm) {
            /* one that blocks (compute stream) has nothing between its start and its end */
            flight->value[flight->count] = op->stream == STREAM_COMM ? op->out[0] : VAL_NONE;
            flight->item[flight->count++] = item;
            land(flight, VAL_NONE);
            continue;
        }
        bool shared = prog_sharing_op(p, i) < p->n_ops; /* covers what that op sends, see add_sent() */
        if (flight->first < flight->count && !shared) cover(&flight->item[flight->first], &item);
        TRY(cost_add(cost, &item));
        if (item.sends) TRY(add_sent(cost, p, i, times, nograd));
    }
    for (int i = 0; i < flight->count; i++) TRY(cost_add(cost, &flight->item[i]));
    return OK;
}

Status cost_add_program(StepCost *cost, const Program *program, double times, bool nograd)
{
    TRY(prog_status(program));
    size_t ops = (size_t)program->n_ops + 1;
    Flight flight = {.item = malloc(ops * sizeof *flight.item), .value = malloc(ops * sizeof *flight.value)};
    Status status = flight.item && flight.value ? walk(cost, program, times, nograd, &flight)
                                                : status_fail(ERR_MEMORY, "cost: out of memory");
    free(flight.item);
    free(flight.value);
    return status;
}
