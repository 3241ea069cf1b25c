/* AlphaFold2 supplement algorithms 9 and 15. */
#include "model/modules.h"

Val transition(Program *p, Val x, int n)
{
    if (p->status != OK) return VAL_NONE;
    int channels = (int)tensor_last(prog_tensor(p, x));
    Val norm = layer_norm(p, "layer_norm", x);
    Val hidden = layer_linear(p, "linear_1", norm, n * channels, LINEAR_HE, true);
    hidden = prog_add(p, OP_RELU, 1, &hidden, NULL);
    return layer_linear(p, "linear_2", hidden, channels, LINEAR_FINAL, true);
}
