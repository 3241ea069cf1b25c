/* A collective of its own, in line, moves its bytes while the GPU computes nothing. The op that computes what is
 * exchanged can hand it to the ranks piece by piece as it finishes them: the collective becomes part of that op. */
#include "engine/passes/schedule.h"

#include <stdlib.h>

#include "engine/passes/edit.h"

/* Kinds whose kernels send, output by output, and the collectives they send by. */
typedef struct Sender {
    OpKind op;
    int8_t output;
    OpKind collective;
} Sender;

static const Sender senders[] = {
    {OP_LINEAR, 0, OP_ALL_GATHER},
    {OP_LINEAR_GROUP, 0, OP_ALL_GATHER},
    {OP_LINEAR_GROUP, 1, OP_ALL_GATHER},
    {OP_LINEAR_GATES, 1, OP_ALL_GATHER},
    {OP_LINEAR_RESIDUAL, 0, OP_ALL_TO_ALL},
    {OP_LINEAR_NORM_DX, 0, OP_ALL_TO_ALL},
    {OP_LAYER_NORM_FUSED_BWD, 0, OP_ALL_TO_ALL},
    {OP_GATE_NORM_CHANNELS_DX, 0, OP_ALL_GATHER},
    {OP_TRI_PRODUCT, 0, OP_REDUCE_SCATTER},
    {OP_MASK_MUL, 0, OP_ALL_GATHER},
    {OP_ATTENTION, 0, OP_ALL_TO_ALL},
    {OP_ATTENTION_BWD, 3, OP_REDUCE_SCATTER},
    {OP_OPM_BWD, 1, OP_REDUCE_SCATTER},
};

static bool can_send(OpKind op, int output, OpKind collective)
{
    for (size_t k = 0; k < sizeof senders / sizeof *senders; k++)
        if (senders[k].op == op && senders[k].output == output && senders[k].collective == collective) return true;
    return false;
}

static bool is_temporary(const Value *v)
{
    return v->place == PLACE_ARENA && v->alias == VAL_NONE;
}

int32_t schedule_sender(const Program *p, int32_t i, const int32_t *readers, int *output_out)
{
    const Op *collective = &p->op[i];
    if (!schedule_is_collective(collective)) return -1;
    Val x = collective->in[0];
    if (readers[x] != 1 || !is_temporary(&p->value[x]) || !is_temporary(&p->value[collective->out[0]])) return -1;
    int32_t writer = p->value[x].def_op;
    const Op *op = &p->op[writer];
    if (op->stage != collective->stage || op->send.active) return -1;
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] == x && can_send(op->kind, k, collective->kind)) {
            *output_out = k;
            return writer;
        }
    return -1;
}

void schedule_merge(Program *p, Op *op, int output, const Op *collective)
{
    p->value[collective->in[0]].def_op = -1; /* nobody reads it, and it has no memory */
    op->send = (Send){.active = true,
                      .output = (int8_t)output,
                      .kind = collective->kind,
                      .attr = collective->attr,
                      .from = collective->in[0]};
    op->out[output] = collective->out[0];
}

int32_t *schedule_readers(const Program *p)
{
    int32_t *readers = edit_count_uses(p);
    for (int32_t v = 0; readers && v < p->n_values; v++) /* kept for others than ops */
        readers[v] += p->value[v].name || p->value[v].output || v == p->loss;
    return readers;
}

Status schedule_send(const Program *in, Program **out)
{
    Program *p = NULL;
    int output;
    TRY(prog_clone(in, &p));
    int32_t *readers = schedule_readers(p);
    bool *merged = calloc((size_t)p->n_ops + 1, sizeof *merged);
    if (!readers || !merged) {
        prog_fail(p, ERR_MEMORY, "out of memory for the schedule of %d ops", p->n_ops);
    } else {
        for (int32_t i = 0; i < p->n_ops; i++) {
            int32_t at = schedule_sender(p, i, readers, &output);
            if (at < 0 || p->op[i].stream) continue; /* what is hidden costs less */
            schedule_merge(p, &p->op[at], output, &p->op[i]);
            merged[i] = true;
        }
        Op *old = edit_restart(p, in->n_ops);
        for (int32_t i = 0; i < in->n_ops; i++)
            if (!merged[i]) edit_push_op(p, &old[i]);
        free(old);
    }
    free(readers);
    free(merged);
    Status status = prog_status(p);
    if (status == OK)
        *out = p;
    else
        prog_destroy(&p);
    return status;
}
