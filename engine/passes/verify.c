#include <stdlib.h>
#include <string.h>

#include "engine/passes/gradient.h"
#include "engine/passes/verify.h"

Status verify_fail(const Program *p, int32_t op, PassStage after, const char *what)
{
    char name[256];
    prog_op_name(p, op, name, sizeof name);
    return status_fail(ERR_INTERNAL, "after %s: op %d %s: %s", pass_name(after), op, name, what);
}

static bool same_type(const Tensor *a, const Tensor *b)
{
    return a->dtype == b->dtype && a->rank == b->rank && a->shard == b->shard &&
           !memcmp(a->dim, b->dim, (size_t)a->rank * sizeof *a->dim);
}

static Status check_inputs(const Program *p, int32_t i, PassStage after)
{
    const Op *op = &p->op[i];
    for (int k = 0; k < op->n_in; k++) {
        if (op->in[k] == VAL_NONE) continue;
        if (op->in[k] < 0 || op->in[k] >= p->n_values)
            return verify_fail(p, i, after, "an input is no value of the program");
        const Value *v = &p->value[op->in[k]];
        if (v->place == PLACE_ARENA && (v->def_op < 0 || v->def_op >= i))
            return verify_fail(p, i, after, "reads a value that is not written before");
    }
    return OK;
}

/* A buffer that was overwritten must not be read through an older value: its first content is gone. written[slot] is
 * the value that was written last, VAL_NONE before. */
static Status check_buffers(const Program *p, int32_t i, PassStage after, Val *written)
{
    const Op *op = &p->op[i];
    for (int k = 0; k < op->n_in; k++) {
        if (op->in[k] == VAL_NONE) continue;
        const Value *v = &p->value[op->in[k]];
        if (v->place == PLACE_BUFFER && written[v->slot] != VAL_NONE && written[v->slot] != op->in[k])
            return verify_fail(p, i, after, "reads a buffer whose content another op has overwritten");
    }
    for (int k = 0; k < op->n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        const Value *v = &p->value[op->out[k]];
        if (v->place == PLACE_BUFFER && v->alias == VAL_NONE) written[v->slot] = op->out[k];
    }
    return OK;
}

/* *computed: of the output that the op sends; becomes that of the value. */
static Status check_send(const Program *p, int32_t i, PassStage after, Tensor *computed)
{
    const Op *op = &p->op[i];
    Op collective = prog_op_collective(op);
    int n_out = 0;
    if (op->stream || collective.in[0] == VAL_NONE || collective.out[0] == VAL_NONE)
        return verify_fail(p, i, after, "cannot send");
    const Value *from = &p->value[op->send.from];
    if (from->place != PLACE_ARENA || from->offset >= 0 || !same_type(&from->t, computed))
        return verify_fail(p, i, after, "what it sends is not what it computes");
    return op_def(collective.kind)->infer(p, &collective, computed, &n_out);
}

static Status check_outputs(const Program *p, int32_t i, PassStage after)
{
    const Op *op = &p->op[i];
    Tensor expected[OP_MAX_OUT] = {0};
    for (int k = 0; k < OP_MAX_OUT; k++) expected[k].shard = SHARD_NONE;
    int n_out = 0;
    TRY(op_def(op->kind)->infer(p, op, expected, &n_out));
    if (op->send.active) TRY(check_send(p, i, after, &expected[op->send.output]));
    if (n_out != op->n_out) return verify_fail(p, i, after, "wrong number of outputs");
    for (int k = 0; k < n_out; k++) {
        if (op->out[k] == VAL_NONE) continue;
        const Value *v = &p->value[op->out[k]];
        if (v->place == PLACE_ARENA) {
            if (v->def_op != i) return verify_fail(p, i, after, "writes a value that another op writes too");
            if (!same_type(&v->t, &expected[k]))
                return verify_fail(p, i, after, "an output's shape or type is not the inferred one");
        } else if (tensor_count(&v->t) != tensor_count(&expected[k])) {
            return verify_fail(p, i, after, "a persistent output has another size than inferred");
        }
    }
    return OK;
}

static bool sums_gradient(const Op *op)
{
    const Op gather = op->send.active ? prog_op_collective(op) : *op;
    return gather.kind == OP_ALL_GATHER && gather.attr.i[1];
}

/* Hands its operand's elements on, times constants at most: a gradient in parts of a sum stays one. */
static bool passes_on(const Op *op)
{
    return !op->send.active &&
           (op->kind == OP_COMM_WAIT || op->kind == OP_RESHAPE || op->kind == OP_CAST || op->kind == OP_MASK_MUL);
}

/* A replicated value that carries gradient may feed a sharded op only through a collective whose vjp sums over the
 * ranks; parameters are summed by gradient_sync. */
static Status check_sharding(const Program *p, int32_t i, PassStage after, const bool *needs)
{
    const Op *op = &p->op[i];
    if (op->stage != STAGE_FORWARD || (op_def(op->kind)->flags & (OPF_COMM | OPF_NODIFF)) || op->kind == OP_SHARD_SLICE)
        return OK;
    bool sharded = false;
    const Op computation = prog_op_computation(op);
    for (int k = 0; k < op->n_out; k++)
        sharded |= op->out[k] != VAL_NONE && p->value[computation.out[k]].t.shard != SHARD_NONE;
    for (int k = 0; sharded && k < op->n_in; k++) {
        if (op->in[k] == VAL_NONE || !needs[op->in[k]]) continue;
        const Value *v = &p->value[op->in[k]];
        if (v->t.shard != SHARD_NONE || value_is_param(v)) continue;
        const Op *from = v->def_op >= 0 ? &p->op[v->def_op] : NULL;
        while (from && passes_on(from))
            from = p->value[from->in[0]].def_op >= 0 ? &p->op[p->value[from->in[0]].def_op] : NULL;
        if (!from || !sums_gradient(from))
            return verify_fail(p, i, after,
                               "a replicated value with gradient feeds a sharded op without a reshard mark");
    }
    return OK;
}

Status prog_verify(const Program *p, PassStage after)
{
    TRY(prog_status(p));
    bool *needs = calloc((size_t)p->n_values + 1, sizeof *needs);
    Val *written = malloc(((size_t)p->registry->n_buffers + 1) * sizeof *written);
    if (!needs || !written) {
        free(needs);
        free(written);
        return status_fail(ERR_MEMORY, "out of memory in verify");
    }
    memset(written, 0xff, ((size_t)p->registry->n_buffers + 1) * sizeof *written); /* VAL_NONE = -1 */
    bool sharding = p->dap > 1 && after >= PASS_SHARD && p->loss != VAL_NONE;
    if (sharding) gradient_needs(p, needs);
    Status status = OK;
    for (int32_t i = 0; i < p->n_ops && status == OK; i++) {
        status = check_inputs(p, i, after);
        if (status == OK) status = check_outputs(p, i, after);
        if (status == OK) status = check_buffers(p, i, after, written);
        if (status == OK && sharding) status = check_sharding(p, i, after, needs);
        for (int k = 0; status == OK && after >= PASS_PLAN && k < p->op[i].n_out; k++) {
            if (p->op[i].out[k] == VAL_NONE) continue;
            const Value *v = &p->value[p->op[i].out[k]];
            if (v->place == PLACE_ARENA && (v->offset < 0 || v->offset + tensor_bytes(&v->t) > p->arena_bytes))
                status = verify_fail(p, i, after, "an output lies outside the arena");
        }
    }
    if (status == OK && after >= PASS_SCHEDULE) status = verify_waits(p, after);
    if (status == OK && after >= PASS_SCHEDULE) status = verify_groups(p, after);
    if (status == OK && after >= PASS_PLAN) status = verify_arena(p, after);
    free(needs);
    free(written);
    return status;
}
