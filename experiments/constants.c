#include "experiments/constants.h"

#include "data/residue.h"
#include "model/constants.h"

enum { ATOM14_PAIRS = RESIDUE_TYPES * ATOM14_COUNT * ATOM14_COUNT };

static Status write_constant(Store *store, ModelConstant which, DType type, const void *values)
{
    const ModelConstantInfo *info = &model_constants[which];
    int buffer = registry_find_buffer(store_registry(store), info->name);
    if (buffer < 0) return OK; /* this program does not use it */
    int64_t count = 1;
    for (int axis = 0; axis < info->rank; axis++) count *= info->dim[axis];
    return store_write(store, buffer, type, values, count);
}

Status constants_bind(Store *store)
{
    const ResidueTables *t = residue_tables();
    TRY(write_constant(store, CONST_DEFAULT_FRAMES, DT_F32, t->default_frames));
    TRY(write_constant(store, CONST_ATOM14_GROUP, DT_I32, t->atom14_group));
    TRY(write_constant(store, CONST_ATOM14_MASK, DT_F32, t->atom14_mask));
    TRY(write_constant(store, CONST_ATOM14_POSITION, DT_F32, t->atom14_group_position));
    TRY(write_constant(store, CONST_CHI_PI_PERIODIC, DT_F32, t->chi_pi_periodic));
    TRY(write_constant(store, CONST_VDW_RADIUS, DT_F64, t->atom37_vdw_radius));
    float lower[ATOM14_PAIRS], upper[ATOM14_PAIRS], deviation[ATOM14_PAIRS];
    residue_atom14_bounds(MODEL_CLASH_OVERLAP, MODEL_BOND_TOLERANCE, lower, upper, deviation);
    TRY(write_constant(store, CONST_ATOM14_LOWER, DT_F32, lower));
    TRY(write_constant(store, CONST_ATOM14_UPPER, DT_F32, upper));
    const double peptide[4][2] = {{t->between_c_n_length[0], t->between_c_n_length[1]},
                                  {t->between_c_n_length_std[0], t->between_c_n_length_std[1]},
                                  {t->between_cos_c_n_ca[0], t->between_cos_c_n_ca[1]},
                                  {t->between_cos_ca_c_n[0], t->between_cos_ca_c_n[1]}};
    return write_constant(store, CONST_PEPTIDE_BOND, DT_F64, peptide);
}
