#include "model/constants.h"

const ModelConstantInfo model_constants[MODEL_CONSTANTS] = {
    [CONST_DEFAULT_FRAMES] = {"const.default_frames", DT_F32, 4, {21, 8, 4, 4}},
    [CONST_ATOM14_GROUP] = {"const.atom14_group", DT_I32, 2, {21, 14}},
    [CONST_ATOM14_MASK] = {"const.atom14_mask", DT_F32, 2, {21, 14}},
    [CONST_ATOM14_POSITION] = {"const.atom14_position", DT_F32, 3, {21, 14, 3}},
    [CONST_CHI_PI_PERIODIC] = {"const.chi_pi_periodic", DT_F32, 2, {21, 4}},
    [CONST_VDW_RADIUS] = {"const.vdw_radius", DT_F32, 1, {37}},
    [CONST_ATOM14_LOWER] = {"const.atom14_lower", DT_F32, 3, {21, 14, 14}},
    [CONST_ATOM14_UPPER] = {"const.atom14_upper", DT_F32, 3, {21, 14, 14}},
    [CONST_PEPTIDE_BOND] = {"const.peptide_bond", DT_F32, 2, {4, 2}},
};

Val model_constant(Program *program, ModelConstant constant)
{
    const ModelConstantInfo *info = &model_constants[constant];
    return prog_input(program, info->name, info->dtype, info->rank, info->dim);
}
