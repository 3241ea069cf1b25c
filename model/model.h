/* AlphaFold2 as recording functions. Sizes as in Jumper et al. 2021 (supplement) and the MLPerf HPC OpenFold reference.
 */
#ifndef FOLDSCALE_MODEL_MODEL_H
#define FOLDSCALE_MODEL_MODEL_H

#include "engine/program.h"

typedef struct PairStackConfig {
    int c_hidden_mul, c_hidden_att, heads, transition_n;
    double dropout; /* of pair updates */
} PairStackConfig;

/* The weights of the losses (workload.md), each as DO(with, name). */
#define MODEL_LOSS_WEIGHTS(DO, with)                                                                                   \
    DO(with, w_fape)                                                                                                   \
    DO(with, w_chi)                                                                                                    \
    DO(with, w_distogram)                                                                                              \
    DO(with, w_masked_msa)                                                                                             \
    DO(with, w_plddt)                                                                                                  \
    DO(with, w_resolved)                                                                                               \
    DO(with, w_violation)

typedef struct ModelConfig {
    /* batch sizes */
    int n_res, n_clust, n_extra, n_templ;
    /* channels */
    int c_m, c_z, c_s, c_e, c_t;
    int relpos_k; /* 32 */
    /* template pair stack, template pointwise attention */
    PairStackConfig template_pair;
    int template_blocks, pointwise_c_hidden, pointwise_heads;
    /* extra MSA stack */
    PairStackConfig extra_pair;
    int extra_blocks, extra_c_hidden_att, extra_heads, extra_c_hidden_opm, extra_transition_n;
    double extra_msa_dropout;
    /* Evoformer */
    PairStackConfig evo_pair;
    int evo_blocks, evo_c_hidden_att, evo_heads, evo_c_hidden_opm, evo_transition_n;
    double evo_msa_dropout;
    /* structure module */
    int sm_blocks, sm_c_hidden_ipa, sm_heads, sm_qk_points, sm_v_points, sm_c_hidden_resnet, sm_resnet_blocks;
    double sm_dropout;
    /* heads */
    int plddt_hidden;
#define MEMBER(type, name) type name;
    MODEL_LOSS_WEIGHTS(MEMBER, double)
#undef MEMBER
    /* golden files with explicit masks: dropout multiplies by inputs "dropout_mask.NAME" instead of drawing */
    bool explicit_dropout;
} ModelConfig;

/* Presets: "initial_training" (the defaults of workload.md), "fine_tuning", "tiny". ERR_USAGE listing the names. */
Status model_config_preset(const char *name, ModelConfig *config_out);
/* ERR_USAGE naming the field: sizes that are not positive, crop and rows that do not fit ... */
Status model_config_check(const ModelConfig *config);

/* A whole forward pass (recording): inputs and recycled states by name, taps for parity, outputs. With `loss`, the loss
 * terms and Program.loss are recorded as well. Stores the recycled tensors into their states. */
Status model_record_forward(const ModelConfig *config, bool loss, Program *program);

typedef struct OptimizerConfig {
    double beta1, beta2, eps, max_norm, swa_decay;
} OptimizerConfig;
/* The optimizer step: clip to max_norm, Adam, SWA (what changes per step comes from the buffer "hyper"). */
Status model_record_optimizer(const OptimizerConfig *config, Program *program);

#endif
