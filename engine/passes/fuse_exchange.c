/* Under dynamic axial parallelism the sum at the end of an attention's branch, r + f(x W), goes to the other layout by
 * an all_to_all behind it, which nothing hides. Its operands can go instead, the sum is then made where it is wanted:
 * x leaves while the attention runs (schedule_send.c), and r is there in time; often it came from that layout. Where a
 * gradient follows, x is wanted here as well, and the sum is exchanged as recorded. */
#include "engine/passes/fuse.h"

#include <stdlib.h>

#include "engine/passes/edit.h"
#include "engine/passes/replay.h"

typedef struct Exchange {
    Replay replay;
    const int32_t *uses;
} Exchange;

static bool read_once(const Exchange *e, Val v)
{
    const Value *value = &e->replay.in->value[v];
    return e->uses[v] == 1 && value->place == PLACE_ARENA && value->alias == VAL_NONE && !value->name && !value->output;
}

/* The branch's end whose sum is all that an all_to_all takes; NULL when there is none. */
static const Op *branch_of(const Exchange *e, const Op *op)
{
    const Program *in = e->replay.in;
    if (op->kind != OP_ALL_TO_ALL || !read_once(e, op->in[0])) return NULL;
    const Op *sum = &in->op[in->value[op->in[0]].def_op];
    if (sum->kind != OP_LINEAR_RESIDUAL || sum->n_out != 1 || (sum->n_in > 4 && sum->in[4] != VAL_NONE)) return NULL;
    int rank = in->value[op->in[0]].t.rank;
    bool by_rows = op->attr.i[0] < rank - 1 && op->attr.i[1] < rank - 1 && read_once(e, sum->in[1]);
    if (!by_rows) return NULL;
    const Op *attention = &in->op[in->value[sum->in[1]].def_op];
    bool rows = attention->kind == OP_ATTENTION && !attention->attr.i[1]; /* not over columns: its rows stay together */
    return rows ? sum : NULL;
}

/* Whether the sum is a branch's that is made behind its exchange. */
static bool is_put_off(const Exchange *e, int32_t i)
{
    const Program *in = e->replay.in;
    const Op *op = &in->op[i];
    if (op->kind != OP_LINEAR_RESIDUAL || !read_once(e, op->out[0])) return false;
    for (int32_t k = i + 1; k < in->n_ops && in->op[k].block == op->block; k++)
        if (in->op[k].in[0] == op->out[0]) return branch_of(e, &in->op[k]) == op;
    return false;
}

/* What `op`, an all_to_all, makes of a value. */
static Val exchanged(Exchange *e, const Op *op, Val old)
{
    const Program *in = e->replay.in;
    int32_t writer = in->value[old].def_op;
    const Op *before = writer >= 0 ? &in->op[writer] : NULL;
    bool back = before && before->kind == OP_ALL_TO_ALL && before->attr.i[0] == op->attr.i[1] &&
                before->attr.i[1] == op->attr.i[0];
    if (back && !branch_of(e, before)) return replay_value(&e->replay, before->in[0]);
    Val made = replay_value(&e->replay, old), out[OP_MAX_OUT];
    prog_replay(e->replay.out, op, &made, out);
    return out[0];
}

static void replay_one(Exchange *e, int32_t i)
{
    const Op *op = &e->replay.in->op[i], *sum = branch_of(e, op);
    Val in[OP_MAX_IN], out[OP_MAX_OUT];
    if (is_put_off(e, i)) return;
    replay_inputs(&e->replay, sum ? sum : op, in);
    if (!sum) {
        replay_op(&e->replay, op, in);
        return;
    }
    for (int k = 0; k < 2; k++) in[k] = exchanged(e, op, sum->in[k]);
    prog_replay(e->replay.out, sum, in, out);
    replay_bind(&e->replay, op->out[0], out[0]);
}

Status fuse_exchange(const Program *in, Program **out)
{
    Exchange e = {0};
    TRY(replay_begin(in, &e.replay));
    int32_t *uses = edit_count_uses(in);
    Status status = uses ? OK : status_fail(ERR_MEMORY, "out of memory for the uses of %d values", in->n_values);
    e.uses = uses;
    for (int32_t i = 0; status == OK && i < in->n_ops && e.replay.out->status == OK; i++) replay_one(&e, i);
    free(uses);
    return replay_end(&e.replay, status, out);
}
