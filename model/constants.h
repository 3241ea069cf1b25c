/* Inputs of a recorded step that hold tables of the residues, by name: whoever prepares a session binds each of them
 * once from data/residue.h (the member or function in the comment). Shapes are those of the buffers; floats are widened
 * to the session's real type. */
#ifndef FOLDSCALE_MODEL_CONSTANTS_H
#define FOLDSCALE_MODEL_CONSTANTS_H

#include "engine/program.h"

typedef enum ModelConstant {
    CONST_DEFAULT_FRAMES,  /* ResidueTables.default_frames */
    CONST_ATOM14_GROUP,    /* .atom14_group */
    CONST_ATOM14_MASK,     /* .atom14_mask */
    CONST_ATOM14_POSITION, /* .atom14_group_position */
    CONST_CHI_PI_PERIODIC, /* .chi_pi_periodic; zero for UNK */
    CONST_VDW_RADIUS,      /* .atom37_vdw_radius */
    CONST_ATOM14_LOWER,    /* residue_atom14_bounds(1.5, 12, lower, ., .) */
    CONST_ATOM14_UPPER,    /* residue_atom14_bounds(1.5, 12, ., upper, .) */
    CONST_PEPTIDE_BOND, /* rows .between_c_n_length, .between_c_n_length_std, .between_cos_c_n_ca, .between_cos_ca_c_n
                         */
    MODEL_CONSTANTS
} ModelConstant;

typedef struct ModelConstantInfo {
    const char *name;
    DType dtype;
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
} ModelConstantInfo;

extern const ModelConstantInfo model_constants[MODEL_CONSTANTS];

/* Violation tolerances that the bounds are made with: clash overlap in A, factor of the deviations. */
#define MODEL_CLASH_OVERLAP  1.5
#define MODEL_BOND_TOLERANCE 12.0

/* The constant as an input of the program. */
Val model_constant(Program *program, ModelConstant constant);

#endif
