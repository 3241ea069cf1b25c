#include "model/model.h"

#include <stddef.h>
#include <string.h>

/* MLPerf HPC v3.0 OpenFold, initial training (workload.md) */
static const ModelConfig initial_training = {
    .n_res = 256,
    .n_clust = 124,
    .n_extra = 1024,
    .n_templ = 4,
    .c_m = 256,
    .c_z = 128,
    .c_s = 384,
    .c_e = 64,
    .c_t = 64,
    .relpos_k = 32,
    .template_pair = {.c_hidden_mul = 64, .c_hidden_att = 16, .heads = 4, .transition_n = 2, .dropout = 0.25},
    .template_blocks = 2,
    .pointwise_c_hidden = 16,
    .pointwise_heads = 4,
    .extra_pair = {.c_hidden_mul = 128, .c_hidden_att = 32, .heads = 4, .transition_n = 4, .dropout = 0.25},
    .extra_blocks = 4,
    .extra_c_hidden_att = 8,
    .extra_heads = 8,
    .extra_c_hidden_opm = 32,
    .extra_transition_n = 4,
    .extra_msa_dropout = 0.15,
    .evo_pair = {.c_hidden_mul = 128, .c_hidden_att = 32, .heads = 4, .transition_n = 4, .dropout = 0.25},
    .evo_blocks = 48,
    .evo_c_hidden_att = 32,
    .evo_heads = 8,
    .evo_c_hidden_opm = 32,
    .evo_transition_n = 4,
    .evo_msa_dropout = 0.15,
    .sm_blocks = 8,
    .sm_c_hidden_ipa = 16,
    .sm_heads = 12,
    .sm_qk_points = 4,
    .sm_v_points = 8,
    .sm_c_hidden_resnet = 128,
    .sm_resnet_blocks = 2,
    .sm_dropout = 0.1,
    .plddt_hidden = 128,
    .w_fape = 1.0,
    .w_chi = 1.0,
    .w_distogram = 0.3,
    .w_masked_msa = 2.0,
    .w_plddt = 0.01,
    .w_resolved = 0.0,
    .w_violation = 0.0,
};

/* The real modules at sizes that a laptop trains in seconds per step; every extent divides by 8, so that DAP 8 runs. */
static const ModelConfig tiny = {
    .n_res = 32,
    .n_clust = 14,
    .n_extra = 32,
    .n_templ = 2,
    .c_m = 32,
    .c_z = 16,
    .c_s = 32,
    .c_e = 16,
    .c_t = 16,
    .relpos_k = 32,
    .template_pair = {.c_hidden_mul = 16, .c_hidden_att = 8, .heads = 2, .transition_n = 2, .dropout = 0.25},
    .template_blocks = 1,
    .pointwise_c_hidden = 8,
    .pointwise_heads = 2,
    .extra_pair = {.c_hidden_mul = 16, .c_hidden_att = 8, .heads = 2, .transition_n = 2, .dropout = 0.25},
    .extra_blocks = 1,
    .extra_c_hidden_att = 8,
    .extra_heads = 2,
    .extra_c_hidden_opm = 8,
    .extra_transition_n = 2,
    .extra_msa_dropout = 0.15,
    .evo_pair = {.c_hidden_mul = 16, .c_hidden_att = 8, .heads = 2, .transition_n = 2, .dropout = 0.25},
    .evo_blocks = 2,
    .evo_c_hidden_att = 8,
    .evo_heads = 4,
    .evo_c_hidden_opm = 8,
    .evo_transition_n = 2,
    .evo_msa_dropout = 0.15,
    .sm_blocks = 4,
    .sm_c_hidden_ipa = 8,
    .sm_heads = 4,
    .sm_qk_points = 4,
    .sm_v_points = 4,
    .sm_c_hidden_resnet = 32,
    .sm_resnet_blocks = 2,
    .sm_dropout = 0.1,
    .plddt_hidden = 32,
    .w_fape = 1.0,
    .w_chi = 1.0,
    .w_distogram = 0.3,
    .w_masked_msa = 2.0,
    .w_plddt = 0.01,
    .w_resolved = 0.0,
    .w_violation = 0.0,
};

Status model_config_preset(const char *name, ModelConfig *config_out)
{
    if (!strcmp(name, "initial_training")) {
        *config_out = initial_training;
    } else if (!strcmp(name, "fine_tuning")) {
        /* AlphaFold2 supplement table 4, fine-tuning column: larger crop and MSA, violation and resolved terms on */
        *config_out = initial_training;
        config_out->n_res = 384;
        config_out->n_clust = 508;
        config_out->n_extra = 5120;
        config_out->w_resolved = 0.01;
        config_out->w_violation = 1.0;
    } else if (!strcmp(name, "tiny")) {
        *config_out = tiny;
    } else {
        return status_fail(ERR_USAGE, "unknown model preset '%s' (expected initial_training, fine_tuning or tiny)",
                           name);
    }
    return OK;
}

typedef struct SizeField {
    const char *name;
    size_t offset;
    int least;
} SizeField;

#define SIZE(field, least)                                                                                             \
    {                                                                                                                  \
#field, offsetof(ModelConfig, field), least                                                                    \
    }
static const SizeField sizes[] = {
    SIZE(n_res, 2),
    SIZE(n_clust, 1),
    SIZE(n_extra, 1),
    SIZE(n_templ, 1),
    SIZE(c_m, 1),
    SIZE(c_z, 1),
    SIZE(c_s, 1),
    SIZE(c_e, 1),
    SIZE(c_t, 1),
    SIZE(relpos_k, 1),
    SIZE(template_pair.c_hidden_mul, 1),
    SIZE(template_pair.c_hidden_att, 1),
    SIZE(template_pair.heads, 1),
    SIZE(template_pair.transition_n, 1),
    SIZE(template_blocks, 1),
    SIZE(pointwise_c_hidden, 1),
    SIZE(pointwise_heads, 1),
    SIZE(extra_pair.c_hidden_mul, 1),
    SIZE(extra_pair.c_hidden_att, 1),
    SIZE(extra_pair.heads, 1),
    SIZE(extra_pair.transition_n, 1),
    SIZE(extra_blocks, 1),
    SIZE(extra_c_hidden_att, 1),
    SIZE(extra_heads, 1),
    SIZE(extra_c_hidden_opm, 1),
    SIZE(extra_transition_n, 1),
    SIZE(evo_pair.c_hidden_mul, 1),
    SIZE(evo_pair.c_hidden_att, 1),
    SIZE(evo_pair.heads, 1),
    SIZE(evo_pair.transition_n, 1),
    SIZE(evo_blocks, 1),
    SIZE(evo_c_hidden_att, 1),
    SIZE(evo_heads, 1),
    SIZE(evo_c_hidden_opm, 1),
    SIZE(evo_transition_n, 1),
    SIZE(sm_blocks, 1),
    SIZE(sm_c_hidden_ipa, 1),
    SIZE(sm_heads, 1),
    SIZE(sm_qk_points, 1),
    SIZE(sm_v_points, 1),
    SIZE(sm_c_hidden_resnet, 1),
    SIZE(sm_resnet_blocks, 1),
    SIZE(plddt_hidden, 1),
};
#undef SIZE

#define RATE(field)                                                                                                    \
    {                                                                                                                  \
#field, offsetof(ModelConfig, field), 0                                                                        \
    }
static const SizeField rates[] = {RATE(template_pair.dropout), RATE(extra_pair.dropout), RATE(extra_msa_dropout),
                                  RATE(evo_pair.dropout),      RATE(evo_msa_dropout),    RATE(sm_dropout)};
#undef RATE

Status model_config_check(const ModelConfig *config)
{
    enum { LARGEST = 1 << 20 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int value;
        memcpy(&value, (const char *)config + sizes[i].offset, sizeof value);
        if (value < sizes[i].least || value > LARGEST)
            return status_fail(ERR_USAGE, "model.%s is %d (expected %d to %d)", sizes[i].name, value, sizes[i].least,
                               LARGEST);
    }
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        double value;
        memcpy(&value, (const char *)config + rates[i].offset, sizeof value);
        if (!(value >= 0 && value < 1))
            return status_fail(ERR_USAGE, "model.%s is %g (expected 0 <= rate < 1)", rates[i].name, value);
    }
#define VALUE(config, name) config->name,
    const double weights[] = {MODEL_LOSS_WEIGHTS(VALUE, config)};
#undef VALUE
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        if (!(weights[i] >= 0 && weights[i] <= 1e6))
            return status_fail(ERR_USAGE, "a loss weight is %g (expected 0 to 1e6)", weights[i]);
    return OK;
}
