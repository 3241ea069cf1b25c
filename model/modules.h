/* Trunk modules as recording functions, one file per module. Each works in the current scope: parameters are named
 * relative to it as in a checkpoint (parameters.csv), so that a module can be recorded alone. No batch axis. Masks are
 * inputs without gradient. Values enter a stack whole and leave it whole; inside, RESHARD marks say how a
 * model-parallel (DAP) group holds them: MSA [S,R,c] by rows, pair [N,N,c] by its first axis, unless a comment says
 * otherwise. */
#ifndef FOLDSCALE_MODEL_MODULES_H
#define FOLDSCALE_MODEL_MODULES_H

#include "model/layers.h"

/* ---- attention.c
 * -------------------------------------------------------------------------------------------------------- */

/* Gated multi-head attention of every row of x [G?,B,N,C] (linear_q, linear_k, linear_v, linear_g, linear_o in the
 * current scope); mask [G?,B,N] or [N], bias [G?,N,N,H] or VAL_NONE. */
Val attention_heads(Program *p, Val x, Val mask, Val bias, int heads, int c_hidden, double inf);
/* Algorithm 7: MSA row attention with pair bias; m by rows, z by either axis; returns the update. */
Val msa_row_attention(Program *p, Val m, Val z, Val mask, int heads, int c_hidden);
/* Algorithm 8: MSA column attention; m sharded on residues. */
Val msa_column_attention(Program *p, Val m, Val mask, int heads, int c_hidden);
/* Algorithm 19: global column attention of the extra stack; m sharded on residues. */
Val msa_global_column_attention(Program *p, Val m, Val mask, int heads, int c_hidden);
/* Algorithms 13 and 14: z [G?,N,N,C] with mask [G?,N,N]; z sharded on the row axis (starting) or the column axis
 * (ending). */
Val triangle_attention(Program *p, Val z, Val mask, bool ending, int heads, int c_hidden);

/* ---- pair.c, transition.c, outer_product_mean.c
 * --------------------------------------------------------------------------- */

/* Algorithms 11 and 12: z [G?,N,N,C] with mask [G?,N,N]; z sharded on rows. */
Val triangle_multiplication(Program *p, Val z, Val mask, bool incoming, int c_hidden);
/* Algorithms 9 and 15: LN, linear to n C, ReLU, linear. */
Val transition(Program *p, Val x, int n);
/* Algorithm 10: m sharded on residues -> pair update sharded on the first axis. */
Val outer_product_mean(Program *p, Val m, Val mask, int c_hidden, int c_z);

/* Triangle multiplications, triangle attentions, transition with their residuals (Algorithm 6 lines 6 to 10); template
 * order: attention first (Algorithm 16). z [G?,N,N,C] sharded on rows before and, with attention first, after; else on
 * columns. */
typedef enum PairOrder { PAIR_MULTIPLICATION_FIRST, PAIR_ATTENTION_FIRST } PairOrder;
Val pair_stack_block(Program *p, const ModelConfig *config, const PairStackConfig *pair, Val z, Val mask,
                     PairOrder order);

/* ---- embedders
 * ----------------------------------------------------------------------------------------------------------- */

/* Algorithms 3 to 5: target_feat [N,22], residue_index [N], msa_feat [S,N,49] -> m [S,N,c_m], z [N,N,c_z]. */
void input_embedder(Program *p, const ModelConfig *config, Val target_feat, Val residue_index, Val msa_feat, Val *m_out,
                    Val *z_out);
/* Algorithm 32: updates of MSA row 0 [N,c_m] and of the pair [N,N,c_z]. x_prev: pseudo-beta [N,3]. */
void recycling_embedder(Program *p, const ModelConfig *config, Val m0_prev, Val z_prev, Val x_prev, Val *m0_out,
                        Val *z_out);
Val template_angle_embedder(Program *p, const ModelConfig *config, Val feat); /* [T,N,57] -> [T,N,c_m] */
Val template_pair_embedder(Program *p, const ModelConfig *config, Val feat);  /* [T,N,N,88] -> [T,N,N,c_t] */
/* Algorithm 16: t [T,N,N,c_t], mask [N,N]; t whole before and after. */
Val template_pair_stack(Program *p, const ModelConfig *config, Val t, Val mask);
/* Algorithm 17: t [T,N,N,c_t], z [N,N,c_z], template_mask [T] -> update [N,N,c_z]. */
Val template_pointwise_attention(Program *p, const ModelConfig *config, Val t, Val z, Val template_mask);
Val extra_msa_embedder(Program *p, const ModelConfig *config, Val feat); /* [S,N,25] -> [S,N,c_e] */

/* ---- stacks
 * ---------------------------------------------------------------------------------------------------------------- */

/* One block (Algorithm 6; Algorithm 18 for the extra stack). m by rows; z by rows or columns before, by columns after;
 * masks whole. */
void evoformer_block(Program *p, const ModelConfig *config, Val *m, Val *z, Val msa_mask, Val pair_mask);
void extra_msa_block(Program *p, const ModelConfig *config, Val *m, Val *z, Val msa_mask, Val pair_mask);

#endif
