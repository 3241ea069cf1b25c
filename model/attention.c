/* Attention modules of the MSA and pair stacks (AlphaFold2 supplement 1.6.1, 1.6.2, 1.6.6, 1.7.2). */
#include <math.h>

#include "model/modules.h"

static const double STACK_INF = 1e9; /* weight of a masked key, golden README "Masks" */

/* Softmax attention of every row of q, k, v [G?,B,N,H*D]; recorded plain: scores, softmax, context. */
static Val attention_core(Program *p, Val q, Val k, Val v, Val mask, Val bias, int heads, int c_hidden, double inf)
{
    OpAttr attr = {.i = {heads}, .f = {1.0 / sqrt(c_hidden), inf}};
    Val s = prog_add(p, OP_ATT_SCORES, 4, (Val[]){q, k, mask, bias}, &attr);
    Val a = prog_add(p, OP_SOFTMAX, 1, &s, NULL);
    return prog_add(p, OP_ATT_CONTEXT, 2, (Val[]){a, v}, &(OpAttr){.i = {heads}});
}

Val attention_heads(Program *p, Val x, Val mask, Val bias, int heads, int c_hidden, double inf)
{
    if (p->status != OK) return VAL_NONE;
    int width = heads * c_hidden, channels = (int)tensor_last(prog_tensor(p, x));
    const LayerSpec spec[4] = {{"linear_q", width, LINEAR_GLOROT, false},
                               {"linear_k", width, LINEAR_GLOROT, false},
                               {"linear_v", width, LINEAR_GLOROT, false},
                               {"linear_g", width, LINEAR_GATING, true}};
    Val qkvg[4];
    layer_linear_group(p, x, 4, spec, qkvg);
    Val o = attention_core(p, qkvg[0], qkvg[1], qkvg[2], mask, bias, heads, c_hidden, inf);
    Val gated = prog_add(p, OP_GATE, 2, (Val[]){qkvg[3], o}, NULL);
    return layer_linear(p, "linear_o", gated, channels, LINEAR_FINAL, true);
}

/* As a part of a module, where its parameters lie in the scope "mha". */
static Val attention_gated(Program *p, Val x, Val mask, Val bias, int heads, int c_hidden, double inf)
{
    prog_scope_push(p, "mha");
    Val y = attention_heads(p, x, mask, bias, heads, c_hidden, inf);
    prog_scope_pop(p);
    return y;
}

Val msa_row_attention(Program *p, Val m, Val z, Val mask, int heads, int c_hidden)
{
    Val m_norm = layer_norm(p, "layer_norm_m", m), z_norm = layer_norm(p, "layer_norm_z", z);
    Val bias = layer_linear(p, "linear_z", z_norm, heads, LINEAR_NORMAL, false);
    bias = layer_reshard(p, bias, SHARD_NONE); /* every MSA row needs the whole pair bias */
    return attention_gated(p, m_norm, layer_mask_reshard(p, mask, 0), bias, heads, c_hidden, STACK_INF);
}

Val msa_column_attention(Program *p, Val m, Val mask, int heads, int c_hidden)
{
    Val columns = layer_transpose(p, m); /* [R,S,c] */
    Val norm = layer_norm(p, "layer_norm_m", columns);
    Val key_mask = layer_mask_transpose(p, layer_mask_reshard(p, mask, 1));
    return layer_transpose(p, attention_gated(p, norm, key_mask, VAL_NONE, heads, c_hidden, STACK_INF));
}

Val msa_global_column_attention(Program *p, Val m, Val mask, int heads, int c_hidden)
{
    if (p->status != OK) return VAL_NONE;
    int width = heads * c_hidden, channels = (int)tensor_last(prog_tensor(p, m));
    Val local = layer_mask_reshard(p, mask, 1);
    Val norm = layer_norm(p, "layer_norm_m", m);
    prog_scope_push(p, "global_attention");
    Val mean = prog_add(p, OP_MASKED_MEAN, 2, (Val[]){norm, local}, &(OpAttr){.f = {1e-8}});
    Val q = layer_linear(p, "linear_q", mean, width, LINEAR_GLOROT, false);
    const LayerSpec spec[3] = {{"linear_k", c_hidden, LINEAR_GLOROT, false},
                               {"linear_v", c_hidden, LINEAR_GLOROT, false},
                               {"linear_g", width, LINEAR_GATING, true}};
    Val kvg[3];
    layer_linear_group(p, norm, 3, spec, kvg);
    OpAttr attr = {.i = {heads}, .f = {1.0 / sqrt(c_hidden), STACK_INF}};
    Val o = prog_add(p, OP_GLOBAL_ATTENTION, 4, (Val[]){q, kvg[0], kvg[1], local}, &attr);
    Val gated = prog_add(p, OP_GATE_ROWS, 2, (Val[]){kvg[2], o}, NULL);
    Val y = layer_linear(p, "linear_o", gated, channels, LINEAR_FINAL, true);
    prog_scope_pop(p);
    return y;
}

Val triangle_attention(Program *p, Val z, Val mask, bool ending, int heads, int c_hidden)
{
    if (p->status != OK) return VAL_NONE;
    /* the ending node attends along columns: transpose, attend along rows, transpose back (algorithm 14) */
    Val x = ending ? layer_transpose(p, z) : z;
    Val norm = layer_norm(p, "layer_norm", x);
    Val bias = layer_linear(p, "linear", norm, heads, LINEAR_NORMAL, false);
    bias = layer_reshard(p, bias, SHARD_NONE);
    int rank = prog_tensor(p, z)->rank;
    Val key_mask = layer_mask_reshard(p, mask, ending ? rank - 2 : rank - 3);
    if (ending) key_mask = layer_mask_transpose(p, key_mask);
    Val y = attention_gated(p, norm, key_mask, bias, heads, c_hidden, STACK_INF);
    return ending ? layer_transpose(p, y) : y;
}
