/* Evoformer block (AlphaFold2 supplement algorithm 6) and extra MSA block (algorithm 18). */
#include "model/modules.h"

/* Transition of the MSA, outer product mean, pair stack: the same in both stacks. m is sharded on residues here and
 * goes back to rows at the end: that exchange may start when the transition is done, and has the whole pair stack to
 * hide behind, as the exchange of its gradient has that of the pair stack. */
static void core(Program *p, const ModelConfig *config, const PairStackConfig *pair, int transition_n, int c_hidden_opm,
                 Val *m, Val *z, Val msa_mask, Val pair_mask)
{
    prog_scope_push(p, "core");
    prog_scope_push(p, "msa_transition");
    *m = layer_add(p, *m, transition(p, *m, transition_n));
    prog_scope_pop(p);
    prog_scope_push(p, "outer_product_mean");
    *z = layer_add(p, *z, outer_product_mean(p, *m, msa_mask, c_hidden_opm, config->c_z));
    prog_scope_pop(p);
    *z = pair_stack_block(p, config, pair, *z, pair_mask, PAIR_MULTIPLICATION_FIRST);
    *m = layer_reshard(p, *m, 0);
    prog_scope_pop(p);
}

/* Behind a block the pair representation lies by columns. The bias of the MSA row attention takes it so; back to rows
 * it goes behind all that the MSA does. */
static Val by_rows(Program *p, Val z)
{
    return layer_reshard(p, z, 0);
}

void evoformer_block(Program *p, const ModelConfig *config, Val *m, Val *z, Val msa_mask, Val pair_mask)
{
    prog_block_begin(p);
    prog_scope_push(p, "msa_att_row");
    Val update = msa_row_attention(p, *m, *z, msa_mask, config->evo_heads, config->evo_c_hidden_att);
    prog_scope_pop(p);
    *m = layer_residual_dropout(p, config, "msa_att_row", *m, update, config->evo_msa_dropout, 0);
    *m = layer_reshard(p, *m, 1);
    *z = by_rows(p, *z);
    prog_scope_push(p, "msa_att_col");
    *m = layer_add(p, *m, msa_column_attention(p, *m, msa_mask, config->evo_heads, config->evo_c_hidden_att));
    prog_scope_pop(p);
    core(p, config, &config->evo_pair, config->evo_transition_n, config->evo_c_hidden_opm, m, z, msa_mask, pair_mask);
    prog_block_end(p);
}

void extra_msa_block(Program *p, const ModelConfig *config, Val *m, Val *z, Val msa_mask, Val pair_mask)
{
    prog_block_begin(p);
    prog_scope_push(p, "msa_att_row");
    Val update = msa_row_attention(p, *m, *z, msa_mask, config->extra_heads, config->extra_c_hidden_att);
    prog_scope_pop(p);
    *m = layer_residual_dropout(p, config, "msa_att_row", *m, update, config->extra_msa_dropout, 0);
    *m = layer_reshard(p, *m, 1);
    *z = by_rows(p, *z);
    prog_scope_push(p, "msa_att_col");
    *m =
        layer_add(p, *m, msa_global_column_attention(p, *m, msa_mask, config->extra_heads, config->extra_c_hidden_att));
    prog_scope_pop(p);
    core(p, config, &config->extra_pair, config->extra_transition_n, config->extra_c_hidden_opm, m, z, msa_mask,
         pair_mask);
    prog_block_end(p);
}
