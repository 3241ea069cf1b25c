/* The optimizer as recorded touches memory once per tensor and step of the update. Fused, it is one sweep over the
 * whole block: padding between tensors is zero in every block and stays zero. */
#include <string.h>

#include "engine/passes/fuse.h"
#include "engine/passes/replay.h"

/* State in which the gradient program leaves the squared norm under overlap_clip. */
#define SQUARES_STATE "grad_squares"

/* First ADAM and SWA_UPDATE, when every parameter has one of each and all have the same settings; else NULL. */
typedef struct Update {
    const Op *adam, *swa;
} Update;

static Update find_update(const Program *p)
{
    Update first = {0};
    int adams = 0, averages = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        const Op **kept = op->kind == OP_ADAM ? &first.adam : op->kind == OP_SWA_UPDATE ? &first.swa : NULL;
        if (!kept) continue;
        if (!*kept) *kept = op;
        int factor = op->kind == OP_ADAM ? 4 : 2;
        if (memcmp(&op->attr, &(*kept)->attr, sizeof op->attr) || op->in[factor] != (*kept)->in[factor] ||
            op->in[factor + 1] != (*kept)->in[factor + 1])
            return (Update){0};
        op->kind == OP_ADAM ? adams++ : averages++;
    }
    bool whole = adams == p->registry->n_params && averages == adams && adams > 0;
    return whole ? first : (Update){0};
}

static Val whole_block(Program *p, Place place)
{
    return prog_persistent(p, place, WHOLE_BLOCK, 1, &p->registry->param_elements);
}

static void emit_update(Replay *replay, const Update *update)
{
    Program *p = replay->out;
    Val p_ = whole_block(p, PLACE_PARAM), g = whole_block(p, PLACE_GRAD), m = whole_block(p, PLACE_ADAM_M);
    Val v = whole_block(p, PLACE_ADAM_V), swa = whole_block(p, PLACE_SWA);
    Val factor = replay_value(replay, update->adam->in[4]), hyper = replay_value(replay, update->adam->in[5]);
    Op op = *update->adam;
    op.kind = OP_ADAM_FUSED;
    op.n_in = 7;
    op.n_out = 5;
    op.attr.f[3] = update->swa->attr.f[0];
    Val in[OP_MAX_IN] = {p_, g, m, v, swa, factor, hyper}, out[OP_MAX_OUT] = {p_, m, v, swa, VAL_NONE};
    prog_replay_into(p, &op, in, out);
}

/* The squared norm: left by the gradient program, or one sum over the whole gradient block. */
static Val squares(Replay *replay, const Switches *s, const Op *clip)
{
    Program *p = replay->out;
    if (s->overlap_clip) return prog_state(p, SQUARES_STATE, DT_F32, 1, (int64_t[]){1});
    Val g = whole_block(p, PLACE_GRAD), out[OP_MAX_OUT];
    Op op = *clip;
    op.kind = OP_SUM_SQUARES;
    op.n_in = 1;
    op.attr = (OpAttr){0};
    prog_replay(p, &op, &g, out);
    return out[0];
}

Status fuse_optimizer(const Program *in, const Switches *switches, Program **out)
{
    Replay replay;
    TRY(replay_begin(in, &replay));
    Update update = switches->fused_optimizer ? find_update(in) : (Update){0};
    bool replaced = update.adam || switches->overlap_clip;
    for (int32_t i = 0; i < in->n_ops && replay.out->status == OK; i++) {
        const Op *op = &in->op[i];
        bool updates = op->kind == OP_ADAM || op->kind == OP_SWA_UPDATE;
        if (update.adam && updates) {
            if (op == update.adam) emit_update(&replay, &update);
            continue;
        }
        bool norm = op->kind == OP_SUM_SQUARES || op->kind == OP_CONCAT; /* all that CLIP_FACTOR alone reads */
        if (replaced && op->stage == STAGE_OPTIMIZER && norm) continue;
        Val inputs[OP_MAX_IN] = {VAL_NONE};
        if (replaced && op->kind == OP_CLIP_FACTOR)
            inputs[0] = squares(&replay, switches, op);
        else
            replay_inputs(&replay, op, inputs);
        replay_op(&replay, op, inputs);
    }
    return replay_end(&replay, OK, out);
}
