/* Input, recycling and extra MSA embedders (AlphaFold2 supplement algorithms 3 to 5, 32; 1.7.1). */
#include "model/modules.h"

enum { RECYCLING_BINS = 15 };

void input_embedder(Program *p, const ModelConfig *config, Val target_feat, Val residue_index, Val msa_feat, Val *m_out,
                    Val *z_out)
{
    Val left = layer_linear(p, "linear_tf_z_i", target_feat, config->c_z, LINEAR_LECUN, true);
    Val right = layer_linear(p, "linear_tf_z_j", target_feat, config->c_z, LINEAR_LECUN, true);
    Val target = layer_linear(p, "linear_tf_m", target_feat, config->c_m, LINEAR_LECUN, true);
    Val msa = layer_linear(p, "linear_msa_m", msa_feat, config->c_m, LINEAR_LECUN, true);
    Val w = layer_weight(p, "linear_relpos", 2 * config->relpos_k + 1, config->c_z, LINEAR_LECUN);
    Val b = layer_bias(p, "linear_relpos", config->c_z, LINEAR_LECUN);
    Val relpos = prog_add(p, OP_RELPOS_EMBED, 3, (Val[]){residue_index, w, b}, &(OpAttr){.i = {config->relpos_k}});
    Val outer = prog_add(p, OP_OUTER_ADD, 2, (Val[]){left, right}, NULL);
    *z_out = layer_add(p, outer, relpos);
    *m_out = layer_add(p, msa, target); /* the target's row is added to every MSA row */
}

void recycling_embedder(Program *p, const ModelConfig *config, Val m0_prev, Val z_prev, Val x_prev, Val *m0_out,
                        Val *z_out)
{
    OpAttr bins = {.i = {RECYCLING_BINS}, .f = {3.25, 20.75, 1e8}};
    Val distance = prog_add(p, OP_DIST_BINS, 1, &x_prev, &bins);
    Val embedded = layer_linear(p, "linear", distance, config->c_z, LINEAR_LECUN, true);
    *m0_out = layer_norm(p, "layer_norm_m", m0_prev);
    *z_out = layer_add(p, embedded, layer_norm(p, "layer_norm_z", z_prev));
}

Val extra_msa_embedder(Program *p, const ModelConfig *config, Val feat)
{
    return layer_linear(p, "linear", feat, config->c_e, LINEAR_LECUN, true);
}
