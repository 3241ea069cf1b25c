/* Rows of the module goldens: layers, embedders and stacks. */
#include <stdio.h>
#include <string.h>

#include "model/modules.h"
#include "tests/parity.h"

static ModelConfig sizes(ModuleCase *c)
{
    ModelConfig m;
    model_config_preset("initial_training", &m);
    bool dropout = strstr(c->name, "dropout") != NULL;
    if (!dropout) {
        m.template_pair.dropout = m.extra_pair.dropout = m.evo_pair.dropout = 0;
        m.extra_msa_dropout = m.evo_msa_dropout = 0;
    }
    m.sm_dropout = 0;
    m.explicit_dropout = dropout;
    return m;
}

static void linear(ModuleCase *c)
{
    int out = module_dim(c, "param.weight", 0), in = module_dim(c, "param.weight", 1);
    Val x = module_in(c, "x");
    Val w = prog_param(c->p, "weight", 2, (int64_t[]){out, in}, INIT_ZERO, 0);
    Val b = prog_param(c->p, "bias", 1, (int64_t[]){out}, INIT_ZERO, 0);
    module_out(c, "y", prog_add(c->p, OP_LINEAR, 3, (Val[]){x, w, b}, NULL), PARITY_REPRESENTATION, "");
}

static void norm(ModuleCase *c)
{
    int64_t n = module_dim(c, "param.weight", 0);
    Val x = module_in(c, "x");
    Val gamma = prog_param(c->p, "weight", 1, &n, INIT_ONE, 0), beta = prog_param(c->p, "bias", 1, &n, INIT_ZERO, 0);
    Val y = prog_add(c->p, OP_LAYER_NORM, 3, (Val[]){x, gamma, beta}, &(OpAttr){.f = {1e-5}});
    module_out(c, "y", y, PARITY_REPRESENTATION, "");
}

static void row_attention(ModuleCase *c)
{
    Val m = module_in(c, "m"), z = module_in(c, "z"), mask = module_in(c, "mask");
    Val y = msa_row_attention(c->p, m, z, mask, module_int(c, "num_heads"), module_int(c, "c_hidden"));
    module_out(c, "m_update", y, PARITY_REPRESENTATION, "SR");
}

static void column_attention(ModuleCase *c)
{
    Val m = module_in(c, "m"), mask = module_in(c, "mask");
    Val y = msa_column_attention(c->p, m, mask, module_int(c, "num_heads"), module_int(c, "c_hidden"));
    module_out(c, "m_update", y, PARITY_REPRESENTATION, "SR");
}

static void global_attention(ModuleCase *c)
{
    Val m = module_in(c, "m"), mask = module_in(c, "mask");
    Val y = msa_global_column_attention(c->p, m, mask, module_int(c, "num_heads"), module_int(c, "c_hidden"));
    module_out(c, "m_update", y, PARITY_REPRESENTATION, "SR");
}

static void msa_transition(ModuleCase *c)
{
    module_out(c, "m_update", transition(c->p, module_in(c, "m"), module_int(c, "n")), PARITY_REPRESENTATION, "");
}

static void pair_transition(ModuleCase *c)
{
    module_out(c, "z_update", transition(c->p, module_in(c, "z"), module_int(c, "n")), PARITY_REPRESENTATION, "");
}

static void opm(ModuleCase *c)
{
    int c_z = module_dim(c, "param.linear_out.weight", 0);
    Val m = module_in(c, "m"), mask = module_in(c, "mask");
    module_out(c, "z_update", outer_product_mean(c->p, m, mask, module_int(c, "c_hidden"), c_z), PARITY_REPRESENTATION,
               "");
}

static void multiplication(ModuleCase *c)
{
    Val z = module_in(c, "z"), mask = module_in(c, "mask");
    int hidden = module_dim(c, "param.linear_a_p.weight", 0);
    Val y = triangle_multiplication(c->p, z, mask, strstr(c->name, "incoming") != NULL, hidden);
    module_out(c, "z_update", y, PARITY_REPRESENTATION, "");
}

static void pair_attention(ModuleCase *c)
{
    Val z = module_in(c, "z"), mask = module_in(c, "mask");
    Val y = triangle_attention(c->p, z, mask, strstr(c->name, "ending") != NULL, module_int(c, "num_heads"),
                               module_int(c, "c_hidden"));
    module_out(c, "z_update", y, PARITY_REPRESENTATION, "RR");
}

static void input(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    Val msa, pair;
    m.c_m = module_dim(c, "out.msa", 2);
    m.c_z = module_dim(c, "out.pair", 2);
    m.relpos_k = (module_dim(c, "param.linear_relpos.weight", 1) - 1) / 2;
    Val target = module_in(c, "target_feat"), index = module_in(c, "residue_index"), feat = module_in(c, "msa_feat");
    input_embedder(c->p, &m, target, index, feat, &msa, &pair);
    module_out(c, "msa", msa, PARITY_REPRESENTATION, "");
    module_out(c, "pair", pair, PARITY_REPRESENTATION, "");
}

static void recycling(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    Val m0, z;
    m.c_z = module_dim(c, "in.z_prev", 2);
    Val m0_prev = module_in(c, "m0_prev"), z_prev = module_in(c, "z_prev"), x_prev = module_in(c, "x_prev");
    recycling_embedder(c->p, &m, m0_prev, z_prev, x_prev, &m0, &z);
    module_out(c, "m0_update", m0, PARITY_REPRESENTATION, "");
    module_out(c, "z_update", z, PARITY_REPRESENTATION, "");
}

static void angle_embedder(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_m = module_dim(c, "out.y", 2);
    module_out(c, "y", template_angle_embedder(c->p, &m, module_in(c, "template_angle_feat")), PARITY_REPRESENTATION,
               "");
}

static void pair_embedder(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_t = module_dim(c, "out.y", 2);
    module_out(c, "y", template_pair_embedder(c->p, &m, module_in(c, "template_pair_feat")), PARITY_REPRESENTATION, "");
}

static void template_stack(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.n_templ = module_dim(c, "in.t", 0);
    m.c_t = module_dim(c, "in.t", 3);
    m.template_blocks = module_int(c, "num_blocks");
    m.template_pair = (PairStackConfig){.c_hidden_mul = module_int(c, "c_hidden_tri_mul"),
                                        .c_hidden_att = module_int(c, "c_hidden_tri_att"),
                                        .heads = module_int(c, "num_heads_tri"),
                                        .transition_n = module_int(c, "pair_transition_n")};
    Val t = module_in(c, "t"), mask = module_in(c, "mask");
    module_out(c, "t", template_pair_stack(c->p, &m, t, mask), PARITY_REPRESENTATION, ".RR");
}

static void pointwise_attention(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.pointwise_heads = module_int(c, "num_heads");
    m.pointwise_c_hidden = module_int(c, "c_hidden");
    Val t = module_in(c, "t"), z = module_in(c, "z"), mask = module_in(c, "template_mask");
    module_out(c, "z_update", template_pointwise_attention(c->p, &m, t, z, mask), PARITY_REPRESENTATION, "");
}

static void extra_embedder(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    m.c_e = module_dim(c, "out.y", 2);
    Val msa = module_in(c, "extra_msa"), has = module_in(c, "extra_has_deletion");
    Val feat = prog_add(c->p, OP_EXTRA_MSA_FEAT, 3, (Val[]){msa, has, module_in(c, "extra_deletion_value")}, NULL);
    module_out(c, "extra_msa_feat", feat, PARITY_REPRESENTATION, "");
    module_out(c, "y", extra_msa_embedder(c->p, &m, feat), PARITY_REPRESENTATION, "");
}

static ModelConfig block_sizes(ModuleCase *c)
{
    ModelConfig m = sizes(c);
    PairStackConfig pair = {.c_hidden_mul = module_int(c, "c_hidden_tri_mul"),
                            .c_hidden_att = module_int(c, "c_hidden_tri_att"),
                            .heads = module_int(c, "num_heads_tri"),
                            .transition_n = module_int(c, "transition_n"),
                            .dropout = m.evo_pair.dropout};
    m.c_z = module_dim(c, "in.z", 2);
    m.evo_pair = m.extra_pair = pair;
    m.evo_c_hidden_att = m.extra_c_hidden_att = module_int(c, "c_hidden_msa_att");
    m.evo_heads = m.extra_heads = module_int(c, "num_heads_msa");
    m.evo_c_hidden_opm = m.extra_c_hidden_opm = module_int(c, "c_hidden_opm");
    m.evo_transition_n = m.extra_transition_n = module_int(c, "transition_n");
    return m;
}

static void block(ModuleCase *c)
{
    ModelConfig m = block_sizes(c);
    Val msa = module_in(c, "m"), z = module_in(c, "z"), msa_mask = module_in(c, "msa_mask");
    Val pair_mask = module_in(c, "pair_mask");
    if (!strncmp(c->name, "extra", 5))
        extra_msa_block(c->p, &m, &msa, &z, msa_mask, pair_mask);
    else
        evoformer_block(c->p, &m, &msa, &z, msa_mask, pair_mask);
    module_out(c, "m", msa, PARITY_REPRESENTATION, "SR");
    module_out(c, "z", z, PARITY_REPRESENTATION, "RR");
}

/* The golden's mask is [B,1,1,N] and its bias [1,H,N,N]; ours are [B,N] and [N,N,H]. */
static void gated_attention(ModuleCase *c)
{
    Program *p = c->p;
    int rows = module_dim(c, "in.x", 0), n = module_dim(c, "in.x", 1), heads = module_int(c, "num_heads");
    Val x = module_in(c, "x"), mask = module_in(c, "mask"), bias = module_in(c, "bias");
    mask = prog_add(p, OP_RESHAPE, 1, &mask, &(OpAttr){.i = {2, rows, n}});
    bias = prog_add(p, OP_RESHAPE, 1, &bias, &(OpAttr){.i = {3, heads, n, n}});
    bias = prog_add(p, OP_TRANSPOSE, 1, &bias, &(OpAttr){.i = {1, 2, 0, 3, 4, 5}});
    Val y = attention_heads(p, x, mask, bias, heads, module_int(c, "c_hidden"), 1e9);
    c->fully_masked = true;
    module_out(c, "y", y, PARITY_REPRESENTATION, "");
    c->no_output = true;
}

/* Pair features of single templates are stored; the variant with unit vectors is not what the benchmark trains. */
static void template_features(ModuleCase *c)
{
    Program *p = c->p;
    int n = module_dim(c, "in.template_aatype", 1);
    Val aatype = module_in(c, "template_aatype");
    Val pair = prog_add(p, OP_TEMPLATE_PAIR_FEAT, 4,
                        (Val[]){module_in(c, "template_pseudo_beta"), module_in(c, "template_pseudo_beta_mask"), aatype,
                                module_in(c, "template_all_atom_mask")},
                        &(OpAttr){.i = {39}, .f = {3.25, 50.75, 1e5}});
    for (int t = 1; t <= 2; t++) {
        char name[64];
        snprintf(name, sizeof name, "template_pair_feat_%d", t);
        Val one = prog_add(p, OP_SLICE, 1, &pair, &(OpAttr){.i = {0, t, 1}});
        one = prog_add(p, OP_RESHAPE, 1, &one, &(OpAttr){.i = {3, n, n, 88}});
        module_out(c, name, one, PARITY_REPRESENTATION, "");
    }
    Val angle = prog_add(p, OP_TEMPLATE_ANGLE_FEAT, 4,
                         (Val[]){aatype, module_in(c, "template_torsion_angles_sin_cos"),
                                 module_in(c, "template_alt_torsion_angles_sin_cos"),
                                 module_in(c, "template_torsion_angles_mask")},
                         NULL);
    module_out(c, "template_angle_feat", angle, PARITY_REPRESENTATION, "");
}

const ModuleRow parity_trunk_rows[] = {
    {"gated_attention", gated_attention},
    {"template_features", template_features},
    {"linear", linear},
    {"layer_norm", norm},
    {"msa_row_attention", row_attention},
    {"msa_column_attention", column_attention},
    {"msa_column_global_attention", global_attention},
    {"msa_transition", msa_transition},
    {"pair_transition", pair_transition},
    {"outer_product_mean", opm},
    {"triangle_multiplication", multiplication},
    {"triangle_attention", pair_attention},
    {"input_embedder", input},
    {"recycling_embedder", recycling},
    {"template_angle_embedder", angle_embedder},
    {"template_pair_embedder", pair_embedder},
    {"template_pair_stack", template_stack},
    {"template_pointwise_attention", pointwise_attention},
    {"extra_msa_embedder", extra_embedder},
    {"evoformer_block", block},
    {"extra_msa_block", block},
    {NULL, NULL},
};
