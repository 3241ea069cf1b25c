/* The pair stack (AlphaFold2 supplement 1.6.5 to 1.6.8, algorithm 6 lines 6 to 10, algorithm 16). */
#include "model/modules.h"

Val triangle_multiplication(Program *p, Val z, Val mask, bool incoming, int c_hidden)
{
    if (p->status != OK) return VAL_NONE;
    int rank = prog_tensor(p, z)->rank, channels = (int)tensor_last(prog_tensor(p, z));
    Val local = layer_mask_reshard(p, mask, rank - 3);
    Val norm = layer_norm(p, "layer_norm_in", z);
    const LayerSpec spec[5] = {{"linear_a_p", c_hidden, LINEAR_LECUN, true},
                               {"linear_a_g", c_hidden, LINEAR_GATING, true},
                               {"linear_b_p", c_hidden, LINEAR_LECUN, true},
                               {"linear_b_g", c_hidden, LINEAR_GATING, true},
                               {"linear_g", channels, LINEAR_GATING, true}};
    Val proj[4], side[2];
    layer_declare(p, channels, 5, spec);
    layer_linear_group(p, norm, 4, spec, proj);
    /* Outgoing (algorithm 11): x_ij = sum_k a_ik b_jk with rows i here and rows j everywhere; b comes first, so that
     * its gather runs while a is gated. Incoming (algorithm 12): x_ij = sum_k a_ki b_kj with rows k here: every rank's
     * part of the sum, for all i and j. */
    for (int k = 1; k >= 0; k--) {
        Val gate = prog_add(p, OP_GATE, 2, (Val[]){proj[2 * k + 1], proj[2 * k]}, NULL);
        side[k] = prog_add(p, OP_MASK_MUL, 2, (Val[]){gate, local}, NULL);
        if (k == 1 && !incoming) side[k] = layer_reshard(p, side[k], SHARD_NONE);
    }
    /* recorded behind the gather, for which it is work to overlap (FastFold) */
    Val output_gate = layer_linear(p, spec[4].name, norm, channels, spec[4].init, true);
    Val x = prog_add(p, OP_TRI_PRODUCT, 2, side, &(OpAttr){.i = {incoming, !incoming}});
    if (incoming) x = layer_reshard(p, x, rank - 3);
    x = layer_norm(p, "layer_norm_out", x);
    x = layer_linear(p, "linear_z", x, channels, LINEAR_FINAL, true);
    return prog_add(p, OP_GATE, 2, (Val[]){output_gate, x}, NULL);
}

typedef struct PairBlock {
    Program *p;
    const ModelConfig *config;
    const PairStackConfig *pair;
    Val z, mask;
    int rows, columns; /* the axes of z */
} PairBlock;

static void add_update(PairBlock *b, const char *name, Val update, int shared_axis)
{
    b->z = layer_residual_dropout(b->p, b->config, name, b->z, update, b->pair->dropout, shared_axis);
}

static void multiplications(PairBlock *b)
{
    for (int incoming = 0; incoming < 2; incoming++) {
        const char *name = incoming ? "tri_mul_in" : "tri_mul_out";
        prog_scope_push(b->p, "%s", name);
        Val update = triangle_multiplication(b->p, b->z, b->mask, incoming, b->pair->c_hidden_mul);
        prog_scope_pop(b->p);
        add_update(b, name, update, b->rows); /* row-wise dropout: one mask for all rows */
    }
}

static void attentions(PairBlock *b)
{
    for (int ending = 0; ending < 2; ending++) {
        const char *name = ending ? "tri_att_end" : "tri_att_start";
        if (ending) b->z = layer_reshard(b->p, b->z, b->columns);
        prog_scope_push(b->p, "%s", name);
        Val update = triangle_attention(b->p, b->z, b->mask, ending, b->pair->heads, b->pair->c_hidden_att);
        prog_scope_pop(b->p);
        add_update(b, name, update, ending ? b->columns : b->rows);
    }
}

Val pair_stack_block(Program *p, const ModelConfig *config, const PairStackConfig *pair, Val z, Val mask,
                     PairOrder order)
{
    if (p->status != OK) return VAL_NONE;
    int rank = prog_tensor(p, z)->rank;
    PairBlock b = {p, config, pair, z, mask, rank - 3, rank - 2};
    if (order == PAIR_ATTENTION_FIRST) {
        attentions(&b);
        b.z = layer_reshard(p, b.z, b.rows);
        multiplications(&b);
    } else {
        multiplications(&b);
        attentions(&b);
    }
    prog_scope_push(p, "pair_transition");
    Val update = transition(p, b.z, pair->transition_n);
    prog_scope_pop(p);
    return layer_add(p, b.z, update);
}
