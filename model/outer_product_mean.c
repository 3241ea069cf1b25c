/* AlphaFold2 supplement algorithm 10. */
#include "model/modules.h"

Val outer_product_mean(Program *p, Val m, Val mask, int c_hidden, int c_z)
{
    Val local = layer_mask_reshard(p, mask, 1); /* [S,R] by residues, as m */
    Val norm = layer_norm(p, "layer_norm", m);
    const LayerSpec spec[2] = {{"linear_1", c_hidden, LINEAR_LECUN, true}, {"linear_2", c_hidden, LINEAR_LECUN, true}};
    Val side[2];
    layer_linear_group(p, norm, 2, spec, side);
    /* masked where they are used, so that the masks can join the product */
    Val b = prog_add(p, OP_MASK_MUL, 2, (Val[]){layer_reshard(p, side[1], SHARD_NONE), mask}, NULL);
    Val a = prog_add(p, OP_MASK_MUL, 2, (Val[]){side[0], local}, NULL);
    Val count = layer_mask(p, OP_PAIR_COUNT, 2, (Val[]){local, mask}, &(OpAttr){0});
    Val outer = prog_add(p, OP_OUTER_PRODUCT, 2, (Val[]){a, b}, NULL);
    Val z = layer_linear(p, "linear_out", outer, c_z, LINEAR_FINAL, true);
    /* with its bias before the division: fully masked pairs hold bias / eps, as in the reference */
    return prog_add(p, OP_DIV_COUNT, 2, (Val[]){z, count}, &(OpAttr){.f = {1e-3}});
}
