#include "engine/ops.h"

#define OP(NAME, row) extern const OpDef row;
#include "engine/op_list.def"
#undef OP

const OpDef *const op_defs[OP_COUNT] = {
#define OP(NAME, row) [OP_##NAME] = &row,
#include "engine/op_list.def"
#undef OP
};
