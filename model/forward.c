/* The whole model (AlphaFold2 supplement algorithm 2): one iteration of recycling as one program. */
#include "model/modules.h"
#include "model/structure.h"

typedef struct Forward {
    Program *p;
    const ModelConfig *config;
    Val aatype, seq_mask, msa_mask, pair_mask; /* msa_mask: clusters and template rows */
    Val clusters, m, z, first_row;
} Forward;

static Val input(Forward *f, const char *name, DType dtype, int rank, int64_t d0, int64_t d1, int64_t d2, int64_t d3)
{
    return prog_input(f->p, name, dtype, rank, (int64_t[]){d0, d1, d2, d3});
}

static void embed_input(Forward *f)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    Val target = input(f, "target_feat", DT_F32, 2, c->n_res, 22, 0, 0);
    Val index = input(f, "residue_index", DT_I32, 1, c->n_res, 0, 0, 0);
    Val msa = input(f, "msa_feat", DT_F32, 3, c->n_clust, c->n_res, 49, 0);
    prog_scope_push(p, "input_embedder");
    input_embedder(p, c, target, index, msa, &f->m, &f->z);
    prog_scope_pop(p);
    prog_tap(p, f->m, "input_embedder.msa");
    prog_tap(p, f->z, "input_embedder.pair");
    /* 1 where both residues are real: the outer product of the sequence mask with itself */
    Val row = prog_add(p, OP_RESHAPE, 1, &f->seq_mask, &(OpAttr){.i = {2, 1, c->n_res}});
    f->pair_mask = prog_add(p, OP_PAIR_COUNT, 2, (Val[]){row, row}, NULL);
}

/* The last iteration's first MSA row, pair representation and pseudo-beta positions: zeros in the first iteration. */
static void embed_recycled(Forward *f)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    Val m0_prev = prog_state(p, "recycle.m", DT_F32, 2, (int64_t[]){c->n_res, c->c_m});
    Val z_prev = prog_state(p, "recycle.z", DT_F32, 3, (int64_t[]){c->n_res, c->n_res, c->c_z});
    Val positions = prog_state(p, "recycle.x", DT_F32, 3, (int64_t[]){c->n_res, 37, 3});
    Val x_prev = prog_add(p, OP_PSEUDO_BETA, 2, (Val[]){positions, f->aatype}, NULL), m0, z;
    prog_tap(p, x_prev, "recycling_embedder.in.x_prev");
    prog_tap(p, m0_prev, "recycling_embedder.in.m0_prev");
    prog_tap(p, z_prev, "recycling_embedder.in.z_prev");
    prog_scope_push(p, "recycling_embedder");
    recycling_embedder(p, c, m0_prev, z_prev, x_prev, &m0, &z);
    prog_scope_pop(p);
    prog_tap(p, m0, "recycling_embedder.m0_update");
    prog_tap(p, z, "recycling_embedder.z_update");
    Val first = prog_add(p, OP_RESHAPE, 1, &m0, &(OpAttr){.i = {3, 1, c->n_res, c->c_m}});
    Val spread = prog_add(p, OP_PAD, 1, &first, &(OpAttr){.i = {0, 0, c->n_clust}}); /* row 0 alone */
    f->m = layer_add(p, f->m, spread);
    f->z = layer_add(p, f->z, z);
}

static void embed_template_pairs(Forward *f, Val aatype, Val template_mask)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    Val beta = input(f, "template_pseudo_beta", DT_F32, 3, c->n_templ, c->n_res, 3, 0);
    Val beta_mask = input(f, "template_pseudo_beta_mask", DT_F32, 2, c->n_templ, c->n_res, 0, 0);
    Val atom_mask = input(f, "template_all_atom_mask", DT_F32, 3, c->n_templ, c->n_res, 37, 0);
    OpAttr bins = {.i = {39}, .f = {3.25, 50.75, 1e5}};
    Val t = prog_add(p, OP_TEMPLATE_PAIR_FEAT, 4, (Val[]){beta, beta_mask, aatype, atom_mask}, &bins);
    prog_tap(p, t, "template.pair_feat");
    prog_scope_push(p, "template_pair_embedder");
    t = template_pair_embedder(p, c, t);
    prog_scope_pop(p);
    prog_tap(p, t, "template.pair_embedding");
    prog_scope_push(p, "template_pair_stack");
    t = template_pair_stack(p, c, t, f->pair_mask);
    prog_scope_pop(p);
    prog_tap(p, t, "template.pair_stack");
    prog_scope_push(p, "template_pointwise_attention");
    Val update = template_pointwise_attention(p, c, t, f->z, template_mask);
    prog_scope_pop(p);
    prog_tap(p, update, "template.pointwise_attention");
    Val any = prog_add(p, OP_MASK_ANY, 1, &template_mask, NULL); /* 0 without any template */
    f->z = layer_add(p, f->z, prog_add(p, OP_MASK_MUL, 2, (Val[]){update, any}, NULL));
}

/* Template torsion angles become MSA rows behind the clusters (supplement 1.7.1), masked where psi is unknown. */
static void embed_template_angles(Forward *f, Val aatype)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    Val angles = input(f, "template_torsion_angles_sin_cos", DT_F32, 4, c->n_templ, c->n_res, 7, 2);
    Val alternative = input(f, "template_alt_torsion_angles_sin_cos", DT_F32, 4, c->n_templ, c->n_res, 7, 2);
    Val mask = input(f, "template_torsion_angles_mask", DT_F32, 3, c->n_templ, c->n_res, 7, 0);
    Val feat = prog_add(p, OP_TEMPLATE_ANGLE_FEAT, 4, (Val[]){aatype, angles, alternative, mask}, NULL);
    prog_tap(p, feat, "template.angle_feat");
    prog_scope_push(p, "template_angle_embedder");
    Val rows = template_angle_embedder(p, c, feat);
    prog_scope_pop(p);
    prog_tap(p, rows, "template.angle_embedding");
    f->m = prog_add(p, OP_CONCAT, 2, (Val[]){f->m, rows}, &(OpAttr){.i = {0}});
    bool former = prog_full_precision(p, true);
    enum { PSI = 2 };
    Val psi = prog_add(p, OP_SLICE, 1, &mask, &(OpAttr){.i = {2, PSI, 1}});
    psi = prog_add(p, OP_RESHAPE, 1, &psi, &(OpAttr){.i = {2, c->n_templ, c->n_res}});
    Val clusters = input(f, "msa_mask", DT_F32, 2, c->n_clust, c->n_res, 0, 0);
    f->msa_mask = prog_add(p, OP_CONCAT, 2, (Val[]){clusters, psi}, &(OpAttr){.i = {0}});
    prog_full_precision(p, former);
}

static void run_extra_msa_stack(Forward *f)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    Val msa = input(f, "extra_msa", DT_I32, 2, c->n_extra, c->n_res, 0, 0);
    Val has = input(f, "extra_has_deletion", DT_F32, 2, c->n_extra, c->n_res, 0, 0);
    Val deletions = input(f, "extra_deletion_value", DT_F32, 2, c->n_extra, c->n_res, 0, 0);
    Val mask = input(f, "extra_msa_mask", DT_F32, 2, c->n_extra, c->n_res, 0, 0);
    Val feat = prog_add(p, OP_EXTRA_MSA_FEAT, 3, (Val[]){msa, has, deletions}, NULL);
    prog_tap(p, feat, "extra_msa_feat");
    prog_scope_push(p, "extra_msa_embedder");
    Val a = extra_msa_embedder(p, c, feat);
    prog_scope_pop(p);
    prog_tap(p, a, "extra_msa_embedding");
    prog_tap(p, f->z, "extra_msa_stack.in.pair");
    prog_scope_push(p, "extra_msa_stack");
    a = layer_reshard(p, a, 0);
    Val z = layer_reshard(p, f->z, 0);
    for (int i = 0; i < c->extra_blocks; i++) {
        prog_scope_push(p, "blocks.%d", i);
        extra_msa_block(p, c, &a, &z, mask, f->pair_mask);
        prog_scope_pop(p);
        prog_tap(p, a, "extra_msa_stack.%d.msa", i);
        prog_tap(p, z, "extra_msa_stack.%d.pair", i);
    }
    prog_scope_pop(p);
    f->z = z; /* stays sharded on rows: the Evoformer takes it so */
}

static Val run_evoformer_stack(Forward *f)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    prog_tap(p, f->m, "evoformer_stack.in.msa");
    prog_tap(p, f->msa_mask, "evoformer_stack.in.msa_mask");
    prog_tap(p, f->pair_mask, "evoformer_stack.in.pair_mask");
    prog_scope_push(p, "evoformer_stack");
    Val m = layer_reshard(p, f->m, 0);
    for (int i = 0; i < c->evo_blocks; i++) {
        prog_scope_push(p, "blocks.%d", i);
        evoformer_block(p, c, &m, &f->z, f->msa_mask, f->pair_mask);
        prog_scope_pop(p);
        prog_tap(p, m, "evoformer_stack.%d.msa", i);
        prog_tap(p, f->z, "evoformer_stack.%d.pair", i);
    }
    f->m = layer_reshard(p, m, SHARD_NONE);
    f->z = layer_reshard(p, f->z, SHARD_NONE);
    Val row = prog_add(p, OP_SLICE, 1, &f->m, &(OpAttr){.i = {0, 0, 1}});
    row = prog_add(p, OP_RESHAPE, 1, &row, &(OpAttr){.i = {2, c->n_res, c->c_m}});
    Val single = layer_linear(p, "linear", row, c->c_s, LINEAR_LECUN, true);
    prog_scope_pop(p);
    f->clusters = prog_add(p, OP_SLICE, 1, &f->m, &(OpAttr){.i = {0, 0, c->n_clust}});
    prog_tap(p, f->clusters, "out.msa");
    prog_tap(p, f->z, "out.pair");
    prog_tap(p, single, "out.single");
    f->first_row = row;
    return single;
}

/* For the next iteration. The program with the loss is the last one and leaves the states alone: its backward pass
 * reads them again. */
static void store_recycled(Forward *f, Val positions)
{
    Program *p = f->p;
    const ModelConfig *c = f->config;
    Val m = prog_state(p, "recycle.m", DT_F32, 2, (int64_t[]){c->n_res, c->c_m});
    Val z = prog_state(p, "recycle.z", DT_F32, 3, (int64_t[]){c->n_res, c->n_res, c->c_z});
    Val x = prog_state(p, "recycle.x", DT_F32, 3, (int64_t[]){c->n_res, 37, 3});
    prog_add_into(p, OP_COPY, 1, &f->first_row, NULL, 1, &m);
    prog_add_into(p, OP_COPY, 1, &f->z, NULL, 1, &z);
    prog_add_into(p, OP_COPY, 1, &positions, NULL, 1, &x);
}

Status model_record_forward(const ModelConfig *config, bool loss, Program *program)
{
    TRY(model_config_check(config));
    const ModelConfig *c = config;
    Forward f = {.p = program, .config = config};
    f.aatype = input(&f, "aatype", DT_I32, 1, c->n_res, 0, 0, 0);
    f.seq_mask = input(&f, "seq_mask", DT_F32, 1, c->n_res, 0, 0, 0);
    embed_input(&f);
    embed_recycled(&f);
    Val template_aatype = input(&f, "template_aatype", DT_I32, 2, c->n_templ, c->n_res, 0, 0);
    Val template_mask = input(&f, "template_mask", DT_F32, 1, c->n_templ, 0, 0, 0);
    embed_template_pairs(&f, template_aatype, template_mask);
    embed_template_angles(&f, template_aatype);
    run_extra_msa_stack(&f);
    Val single = run_evoformer_stack(&f);
    StructureOut structure;
    HeadsOut heads;
    prog_scope_push(program, "structure_module");
    structure_module(program, c, single, f.z, f.aatype, f.seq_mask, "out.", &structure);
    prog_scope_pop(program);
    model_heads(program, c, &structure, single, f.clusters, f.z, &heads);
    if (loss)
        model_losses(program, c, &structure, &heads);
    else
        store_recycled(&f, heads.final_atom_positions);
    return prog_status(program);
}
