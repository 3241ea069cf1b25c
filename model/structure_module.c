/* Structure module (AlphaFold2 supplement, algorithms 20, 21, 23). Positions inside are in units of 10 A. */
#include <stdio.h>

#include "model/layers.h"
#include "model/structure.h"

static const double POSITION_SCALE = 10.0;

enum { MAX_BLOCKS = OP_MAX_IN };

/* Dropout of a whole tensor, before a layer norm. Explicit masks (already divided by 1-rate) are the input
 * "dropout_mask" + suffix. */
static Val dropout(Program *p, const ModelConfig *config, Val x, const char *mask_suffix)
{
    if (prog_status(p) != OK || config->sm_dropout == 0) return x;
    if (config->explicit_dropout) {
        char name[96];
        const Tensor t = *prog_tensor(p, x);
        snprintf(name, sizeof name, "dropout_mask%s", mask_suffix);
        Val mask = prog_input(p, name, DT_F32, t.rank, t.dim);
        return prog_add(p, OP_MASK_MUL, 2, (Val[]){x, mask}, NULL);
    }
    return layer_dropout(p, x, config->sm_dropout, SHARD_NONE);
}

Val structure_transition(Program *p, const ModelConfig *config, Val s, const char *mask_suffix)
{
    bool former = prog_full_precision(p, true);
    Val x = layer_linear(p, "linear_1", s, config->c_s, LINEAR_HE, true);
    x = layer_linear(p, "linear_2", prog_add(p, OP_RELU, 1, &x, NULL), config->c_s, LINEAR_HE, true);
    x = layer_linear(p, "linear_3", prog_add(p, OP_RELU, 1, &x, NULL), config->c_s, LINEAR_FINAL, true);
    x = dropout(p, config, layer_add(p, s, x), mask_suffix);
    x = layer_norm(p, "layer_norm", x);
    prog_full_precision(p, former);
    return x;
}

Val structure_backbone_update(Program *p, const ModelConfig *config, Val s)
{
    (void)config;
    bool former = prog_full_precision(p, true);
    Val update = layer_linear(p, "linear", s, 6, LINEAR_FINAL, true);
    prog_full_precision(p, former);
    return update;
}

/* What one block hands out, before stacking; frames with translations as they are inside. */
typedef struct BlockOut {
    Val frames, sidechain_frames, positions, states;
} BlockOut;

/* One iteration of the weight-shared block; s and frames are updated in place. */
static void block(Program *p, const ModelConfig *config, int index, Val *s, Val z, Val pair_bias, Val *frames, Val mask,
                  BlockOut *out)
{
    char suffix[32];
    snprintf(suffix, sizeof suffix, ".%d.ipa", index);
    prog_scope_push(p, "ipa");
    Val update = structure_ipa(p, config, *s, z, pair_bias, *frames, mask);
    prog_scope_pop(p);
    Val x = dropout(p, config, layer_add(p, *s, update), suffix);
    x = layer_norm(p, "layer_norm_ipa", x);
    snprintf(suffix, sizeof suffix, ".%d.transition", index);
    prog_scope_push(p, "transition");
    *s = out->states = structure_transition(p, config, x, suffix);
    prog_scope_pop(p);
    prog_scope_push(p, "bb_update");
    Val move = structure_backbone_update(p, config, *s);
    prog_scope_pop(p);
    out->frames = prog_add(p, OP_FRAME_UPDATE, 2, (Val[]){*frames, move}, NULL);
    /* line 20: no gradient through the orientations between blocks */
    *frames = prog_add(p, OP_FRAME_STOP_ROTATION, 1, &out->frames, NULL);
}

static Val in_angstrom(Program *p, Val frames)
{
    return prog_add(p, OP_FRAME_SCALE, 1, &frames, &(OpAttr){.f = {POSITION_SCALE}});
}

/* Lines 24 to 30: rigid groups and atoms of block b; angles [B,N,7,2] are those of all blocks. */
static void block_atoms(Program *p, int b, Val angles, Val aatype, BlockOut *out)
{
    if (prog_status(p) != OK) return;
    const Tensor all = *prog_tensor(p, angles);
    Val own = prog_add(p, OP_SLICE, 1, &angles, &(OpAttr){.i = {0, b, 1}});
    own = prog_add(p, OP_RESHAPE, 1, &own, &(OpAttr){.i = {3, all.dim[1], all.dim[2], all.dim[3]}});
    out->sidechain_frames =
        prog_add(p, OP_TORSION_FRAMES, 4,
                 (Val[]){in_angstrom(p, out->frames), own, aatype, model_constant(p, CONST_DEFAULT_FRAMES)}, NULL);
    out->positions = prog_add(p, OP_FRAMES_TO_ATOM14, 5,
                              (Val[]){out->sidechain_frames, aatype, model_constant(p, CONST_ATOM14_GROUP),
                                      model_constant(p, CONST_ATOM14_MASK), model_constant(p, CONST_ATOM14_POSITION)},
                              NULL);
}

/* n values of one shape -> [n, ...] */
static Val stack(Program *p, int n, const Val *x)
{
    if (prog_status(p) != OK) return VAL_NONE;
    Val row[MAX_BLOCKS];
    const Tensor t = *prog_tensor(p, x[0]);
    OpAttr shape = {.i = {t.rank + 1, 1}};
    for (int axis = 0; axis < t.rank; axis++) shape.i[2 + axis] = t.dim[axis];
    for (int k = 0; k < n; k++) row[k] = prog_add(p, OP_RESHAPE, 1, &x[k], &shape);
    return n == 1 ? row[0] : prog_add(p, OP_CONCAT, n, row, &(OpAttr){.i = {0}});
}

/* block_out[] stacked, and what rests on the states of all blocks: as the blocks share their weights, the angles of all
 * are one batch. */
static void stack_outputs(Program *p, const ModelConfig *config, BlockOut *block_out, Val s_initial, Val aatype,
                          const char *prefix, StructureOut *out)
{
    const int blocks = config->sm_blocks;
    Val frames[MAX_BLOCKS], states[MAX_BLOCKS], sidechain_frames[MAX_BLOCKS], positions[MAX_BLOCKS];
    for (int b = 0; b < blocks; b++) frames[b] = block_out[b].frames, states[b] = block_out[b].states;
    out->frames = in_angstrom(p, prog_add(p, OP_CONCAT, blocks, frames, &(OpAttr){.i = {0}}));
    out->frames = prog_add(p, OP_RESHAPE, 1, &out->frames, &(OpAttr){.i = {3, blocks, config->n_res, 7}});
    out->states = stack(p, blocks, states);
    prog_scope_push(p, "angle_resnet");
    structure_angle_resnet(p, config, out->states, s_initial, &out->raw_angles, &out->angles);
    prog_scope_pop(p);
    for (int b = 0; b < blocks; b++) {
        block_atoms(p, b, out->angles, aatype, &block_out[b]);
        sidechain_frames[b] = block_out[b].sidechain_frames, positions[b] = block_out[b].positions;
    }
    out->sidechain_frames = stack(p, blocks, sidechain_frames);
    out->positions = stack(p, blocks, positions);
    out->last_sidechain_frames = block_out[blocks - 1].sidechain_frames;
    out->last_positions = block_out[blocks - 1].positions;
    prog_tap(p, out->frames, "%ssm_frames", prefix);
    prog_tap(p, out->sidechain_frames, "%ssm_sidechain_frames", prefix);
    prog_tap(p, out->raw_angles, "%ssm_unnormalized_angles", prefix);
    prog_tap(p, out->angles, "%ssm_angles", prefix);
    prog_tap(p, out->positions, "%ssm_positions", prefix);
    prog_tap(p, out->states, "%ssm_states", prefix);
    prog_tap(p, out->single, "%ssm_single", prefix);
}

void structure_module(Program *p, const ModelConfig *config, Val s, Val z, Val aatype, Val mask, const char *tap_prefix,
                      StructureOut *out)
{
    BlockOut block_out[MAX_BLOCKS];
    if (config->sm_blocks < 1 || config->sm_blocks > MAX_BLOCKS) {
        prog_fail(p, ERR_USAGE, "sm_blocks is %d (expected 1 to %d)", config->sm_blocks, MAX_BLOCKS);
        return;
    }
    bool former = prog_full_precision(p, true);
    Val s_initial = layer_norm(p, "layer_norm_s", s);
    Val pair = layer_norm(p, "layer_norm_z", z);
    Val single = layer_linear(p, "linear_in", s_initial, config->c_s, LINEAR_LECUN, true);
    Val frames = prog_add(p, OP_FRAME_IDENTITY, 1, &single, NULL);
    prog_scope_push(p, "ipa");
    Val pair_bias = structure_pair_bias(p, config, pair);
    prog_scope_pop(p);
    for (int b = 0; b < config->sm_blocks; b++)
        block(p, config, b, &single, pair, pair_bias, &frames, mask, &block_out[b]);
    *out = (StructureOut){.single = single};
    stack_outputs(p, config, block_out, s_initial, aatype, tap_prefix, out);
    prog_full_precision(p, former);
}
