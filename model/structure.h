/* Structure module, heads and losses as recording functions. Every function works in the current scope, so that a
 * module can be recorded alone: parameters are named relative to it as in the checkpoint (spec/parameters.csv). All of
 * it runs in the real type under bf16 (the functions open a full-precision region themselves). Masks are inputs without
 * gradient. */
#ifndef FOLDSCALE_MODEL_STRUCTURE_H
#define FOLDSCALE_MODEL_STRUCTURE_H

#include "model/constants.h"
#include "model/model.h"

/* Algorithm 22, line 3: z[N,N,c_z] -> b[N,N,H], the same in all blocks, as they share z and weights; linear_b. */
Val structure_pair_bias(Program *p, const ModelConfig *config, Val z);

/* Invariant point attention, algorithm 22: s[N,c_s] z[N,N,c_z] pair_bias[N,N,H] frames[N,7] mask[N] -> update of s
 * [N,c_s]. Parameters linear_q, linear_kv, linear_q_points, linear_kv_points, head_weights, linear_out. */
Val structure_ipa(Program *p, const ModelConfig *config, Val s, Val z, Val pair_bias, Val frames, Val mask);

/* Algorithm 21: s -> s [N,c_s], with dropout before the layer norm. Explicit dropout input: "dropout_mask" + suffix. */
Val structure_transition(Program *p, const ModelConfig *config, Val s, const char *mask_suffix);

/* Algorithm 23, first half: s[N,c_s] -> update[N,6] = (b, c, d, translation); parameters linear.*. Apply with
 * OP_FRAME_UPDATE. */
Val structure_backbone_update(Program *p, const ModelConfig *config, Val s);

/* Algorithm 20, lines 11 to 14: s[B?,N,c_s], s_initial[N,c_s] -> raw and normalised angles [B?,N,7,2] (sin, cos). */
void structure_angle_resnet(Program *p, const ModelConfig *config, Val s, Val s_initial, Val *raw_out, Val *angles_out);

/* [*] per block stacked on axis 0; B = sm_blocks. Positions and translations in A. */
typedef struct StructureOut {
    Val single;                /* [N,c_s] after the last block */
    Val frames;                /* [B,N,7] */
    Val sidechain_frames;      /* [B,N,8,4,4] */
    Val raw_angles;            /* [B,N,7,2] */
    Val angles;                /* [B,N,7,2] */
    Val positions;             /* [B,N,14,3] */
    Val states;                /* [B,N,c_s] */
    Val last_sidechain_frames; /* [N,8,4,4] */
    Val last_positions;        /* [N,14,3] */
} StructureOut;

/* Algorithm 20: s[N,c_s] z[N,N,c_z] aatype[N] mask[N]. Parameters relative to the current scope (layer_norm_s ...).
 * Names the outputs of the program "sm_frames", "sm_sidechain_frames", "sm_unnormalized_angles", "sm_angles",
 * "sm_positions", "sm_states", "sm_single" as taps with `tap_prefix` in front ("out." in a whole model, "" alone). */
void structure_module(Program *p, const ModelConfig *config, Val s, Val z, Val aatype, Val mask, const char *tap_prefix,
                      StructureOut *out);

/* Heads (scope "auxiliary_heads.plddt" etc. pushed by the caller). */
Val head_plddt(Program *p, const ModelConfig *config, Val single);    /* [N,50] */
Val head_distogram(Program *p, const ModelConfig *config, Val z);     /* [N,N,64], symmetric */
Val head_masked_msa(Program *p, const ModelConfig *config, Val m);    /* [S,N,23]; clusters alone */
Val head_resolved(Program *p, const ModelConfig *config, Val single); /* [N,37] */

typedef struct HeadsOut {
    Val lddt_logits, plddt; /* [N,50], [N] in 0..100 */
    Val distogram_logits, masked_msa_logits, resolved_logits;
    Val final_atom_positions; /* [N,37,3] */
} HeadsOut;

/* All heads in the scope "auxiliary_heads" and the atom37 positions (inputs residx_atom37_to_atom14,
 * atom37_atom_exists). single[N,c_s] is the Evoformer's (the resolved head reads it, the pLDDT
 * head reads the structure module's); m_clusters[n_clust,N,c_m] is the MSA without the template rows. The
 * experimentally resolved head is always recorded; its parameters get a zero gradient when its weight is zero. Taps:
 * "out.lddt_logits" ... as in the golden files. */
void model_heads(Program *p, const ModelConfig *config, const StructureOut *structure, Val single, Val m_clusters,
                 Val z, HeadsOut *out);

/* Symmetric renaming, algorithm 26 (inputs of the batch by name). */
typedef struct RenameOut {
    Val alt_is_better, positions, exists; /* [N], [N,14,3], [N,14] */
} RenameOut;
void loss_rename(Program *p, const ModelConfig *config, Val positions, RenameOut *out);

/* One term each; the values are rank 0. Other inputs come from the batch by name. */
Val loss_fape_backbone(Program *p, const ModelConfig *config, Val frames);
Val loss_fape_sidechain(Program *p, const ModelConfig *config, Val sidechain_frames, Val positions,
                        const RenameOut *rename);
Val loss_torsion(Program *p, const ModelConfig *config, Val angles, Val raw_angles);
Val loss_distogram(Program *p, const ModelConfig *config, Val logits);
Val loss_masked_msa(Program *p, const ModelConfig *config, Val logits);
Val loss_plddt(Program *p, const ModelConfig *config, Val logits, Val final_atom_positions);
Val loss_resolved(Program *p, const ModelConfig *config, Val logits);
Val loss_violation(Program *p, const ModelConfig *config, Val positions);

/* All terms, their parts as outputs "loss.NAME" (names of golden/tiny/loss_r0.json), and Program.loss = scaled total.
 */
void model_losses(Program *p, const ModelConfig *config, const StructureOut *structure, const HeadsOut *heads);

#endif
