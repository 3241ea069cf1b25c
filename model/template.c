/* Templates (AlphaFold2 supplement 1.7.1, algorithms 16 and 17). */
#include <math.h>

#include "model/modules.h"

Val template_angle_embedder(Program *p, const ModelConfig *config, Val feat)
{
    Val hidden = layer_linear(p, "linear_1", feat, config->c_m, LINEAR_HE, true);
    hidden = prog_add(p, OP_RELU, 1, &hidden, NULL);
    return layer_linear(p, "linear_2", hidden, config->c_m, LINEAR_HE, true);
}

Val template_pair_embedder(Program *p, const ModelConfig *config, Val feat)
{
    return layer_linear(p, "linear", feat, config->c_t, LINEAR_HE, true);
}

Val template_pair_stack(Program *p, const ModelConfig *config, Val t, Val mask)
{
    bool former = prog_full_precision(p, true);
    Val masks = layer_repeat(p, mask, config->n_templ);
    prog_full_precision(p, former);
    t = layer_reshard(p, t, 1); /* rows of every template's pair representation */
    for (int i = 0; i < config->template_blocks; i++) {
        prog_scope_push(p, "blocks.%d", i);
        prog_block_begin(p);
        t = pair_stack_block(p, config, &config->template_pair, t, masks, PAIR_ATTENTION_FIRST);
        prog_block_end(p);
        prog_scope_pop(p);
    }
    t = layer_norm(p, "layer_norm", t);
    return layer_reshard(p, t, SHARD_NONE);
}

Val template_pointwise_attention(Program *p, const ModelConfig *config, Val t, Val z, Val template_mask)
{
    if (p->status != OK) return VAL_NONE;
    const double inf = 1e5;
    int width = config->pointwise_heads * config->pointwise_c_hidden;
    Tensor z_shape = *prog_tensor(p, z), t_shape = *prog_tensor(p, t);
    int64_t n = z_shape.dim[0], pairs = n * n, templates = t_shape.dim[0];
    /* every pair is a row of its own: one query, a key per template */
    Val query = prog_add(p, OP_RESHAPE, 1, &z, &(OpAttr){.i = {3, pairs, 1, z_shape.dim[2]}});
    Val by_pair = prog_add(p, OP_TRANSPOSE, 1, &t, &(OpAttr){.i = {1, 2, 0, 3, 4, 5}});
    Val keys = prog_add(p, OP_RESHAPE, 1, &by_pair, &(OpAttr){.i = {3, pairs, templates, t_shape.dim[3]}});
    prog_scope_push(p, "mha");
    Val q = layer_linear(p, "linear_q", query, width, LINEAR_GLOROT, false), kv[2];
    const LayerSpec spec[2] = {{"linear_k", width, LINEAR_GLOROT, false}, {"linear_v", width, LINEAR_GLOROT, false}};
    layer_linear_group(p, keys, 2, spec, kv);
    OpAttr attr = {.i = {config->pointwise_heads}, .f = {1.0 / sqrt(config->pointwise_c_hidden), inf}};
    Val s = prog_add(p, OP_ATT_SCORES, 3, (Val[]){q, kv[0], template_mask}, &attr);
    Val a = prog_add(p, OP_SOFTMAX, 1, &s, NULL);
    Val o = prog_add(p, OP_ATT_CONTEXT, 2, (Val[]){a, kv[1]}, &(OpAttr){.i = {config->pointwise_heads}});
    Val y = layer_linear(p, "linear_o", o, (int)z_shape.dim[2], LINEAR_FINAL, true);
    prog_scope_pop(p);
    return prog_add(p, OP_RESHAPE, 1, &y, &(OpAttr){.i = {3, n, n, z_shape.dim[2]}});
}
