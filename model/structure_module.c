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

/* What one block hands out, before stacking. */
typedef struct BlockOut {
    Val frames, sidechain_frames, raw_angles, angles, positions, states;
} BlockOut;

/* Lines 11 to 30: angles, rigid groups and atoms of the frames in A. */
static void block_atoms(Program *p, const ModelConfig *config, Val s_initial, Val frames, Val aatype, BlockOut *out)
{
    out->frames = prog_add(p, OP_FRAME_SCALE, 1, &frames, &(OpAttr){.f = {POSITION_SCALE}});
    prog_scope_push(p, "angle_resnet");
    structure_angle_resnet(p, config, out->states, s_initial, &out->raw_angles, &out->angles);
    prog_scope_pop(p);
    out->sidechain_frames =
        prog_add(p, OP_TORSION_FRAMES, 4,
                 (Val[]){out->frames, out->angles, aatype, model_constant(p, CONST_DEFAULT_FRAMES)}, NULL);
    out->positions = prog_add(p, OP_FRAMES_TO_ATOM14, 5,
                              (Val[]){out->sidechain_frames, aatype, model_constant(p, CONST_ATOM14_GROUP),
                                      model_constant(p, CONST_ATOM14_MASK), model_constant(p, CONST_ATOM14_POSITION)},
                              NULL);
}

/* One iteration of the weight-shared block; s and frames are updated in place. */
static void block(Program *p, const ModelConfig *config, int index, Val *s, Val s_initial, Val z, Val *frames,
                  Val aatype, Val mask, BlockOut *out)
{
    char suffix[32];
    snprintf(suffix, sizeof suffix, ".%d.ipa", index);
    prog_scope_push(p, "ipa");
    Val update = structure_ipa(p, config, *s, z, *frames, mask);
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
    *frames = prog_add(p, OP_FRAME_UPDATE, 2, (Val[]){*frames, move}, NULL);
    block_atoms(p, config, s_initial, *frames, aatype, out);
    /* line 20: no gradient through the orientations between blocks */
    *frames = prog_add(p, OP_FRAME_STOP_ROTATION, 1, frames, NULL);
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

static void stack_outputs(Program *p, int blocks, const BlockOut *block_out, const char *prefix, StructureOut *out)
{
    Val column[6][MAX_BLOCKS], *target[6] = {&out->frames, &out->sidechain_frames, &out->raw_angles,
                                             &out->angles, &out->positions,        &out->states};
    static const char *const names[6] = {"sm_frames", "sm_sidechain_frames", "sm_unnormalized_angles",
                                         "sm_angles", "sm_positions",        "sm_states"};
    for (int b = 0; b < blocks; b++) {
        const BlockOut *o = &block_out[b];
        Val row[6] = {o->frames, o->sidechain_frames, o->raw_angles, o->angles, o->positions, o->states};
        for (int k = 0; k < 6; k++) column[k][b] = row[k];
    }
    for (int k = 0; k < 6; k++) {
        *target[k] = stack(p, blocks, column[k]);
        prog_tap(p, *target[k], "%s%s", prefix, names[k]);
    }
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
    for (int b = 0; b < config->sm_blocks; b++)
        block(p, config, b, &single, s_initial, pair, &frames, aatype, mask, &block_out[b]);
    const BlockOut *last = &block_out[config->sm_blocks - 1];
    *out = (StructureOut){
        .single = single, .last_sidechain_frames = last->sidechain_frames, .last_positions = last->positions};
    stack_outputs(p, config->sm_blocks, block_out, tap_prefix, out);
    prog_full_precision(p, former);
}
