/* Torsion angles from the single representation (AlphaFold2 supplement, algorithm 20, lines 11 to 14). */
#include "model/layers.h"
#include "model/structure.h"

static Val relu(Program *p, Val x)
{
    return prog_add(p, OP_RELU, 1, &x, NULL);
}

void structure_angle_resnet(Program *p, const ModelConfig *config, Val s, Val s_initial, Val *raw_out, Val *angles_out)
{
    const int hidden = config->sm_c_hidden_resnet;
    bool former = prog_full_precision(p, true);
    Val a = layer_linear(p, "linear_in", relu(p, s), hidden, LINEAR_LECUN, true);
    Val b = layer_linear(p, "linear_initial", relu(p, s_initial), hidden, LINEAR_LECUN, true);
    Val x = layer_add(p, a, b);
    for (int block = 0; block < config->sm_resnet_blocks; block++) {
        prog_scope_push(p, "layers.%d", block);
        Val y = layer_linear(p, "linear_1", relu(p, x), hidden, LINEAR_HE, true);
        y = layer_linear(p, "linear_2", relu(p, y), hidden, LINEAR_FINAL, true);
        x = layer_add(p, x, y);
        prog_scope_pop(p);
    }
    Val flat = layer_linear(p, "linear_out", relu(p, x), 14, LINEAR_LECUN, true);
    OpAttr pairs = {.i = {prog_status(p) == OK ? prog_tensor(p, flat)->rank + 1 : 0}};
    for (int axis = 0; axis < pairs.i[0] - 2; axis++) pairs.i[1 + axis] = prog_tensor(p, flat)->dim[axis];
    pairs.i[pairs.i[0] - 1] = 7, pairs.i[pairs.i[0]] = 2;
    *raw_out = prog_add(p, OP_RESHAPE, 1, &flat, &pairs);
    *angles_out = prog_add(p, OP_ANGLE_NORMALIZE, 1, raw_out, &(OpAttr){.f = {1e-8}});
    prog_full_precision(p, former);
}
