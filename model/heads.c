/* Auxiliary heads (AlphaFold2 supplement 1.9.6, 1.9.8 to 1.9.10) and the atom37 positions. */
#include "model/layers.h"
#include "model/structure.h"

enum { LDDT_BINS = 50, DISTANCE_BINS = 64, MSA_CLASSES = 23, ATOMS37 = 37 };

Val head_plddt(Program *p, const ModelConfig *config, Val single)
{
    bool former = prog_full_precision(p, true);
    Val x = layer_norm(p, "layer_norm", single);
    x = layer_linear(p, "linear_1", x, config->plddt_hidden, LINEAR_HE, true);
    x = layer_linear(p, "linear_2", prog_add(p, OP_RELU, 1, &x, NULL), config->plddt_hidden, LINEAR_HE, true);
    x = layer_linear(p, "linear_3", prog_add(p, OP_RELU, 1, &x, NULL), LDDT_BINS, LINEAR_FINAL, true);
    prog_full_precision(p, former);
    return x;
}

Val head_distogram(Program *p, const ModelConfig *config, Val z)
{
    (void)config;
    bool former = prog_full_precision(p, true);
    Val x = layer_linear(p, "linear", z, DISTANCE_BINS, LINEAR_FINAL, true);
    x = layer_add(p, x, layer_transpose(p, x));
    prog_full_precision(p, former);
    return x;
}

Val head_masked_msa(Program *p, const ModelConfig *config, Val m)
{
    (void)config;
    bool former = prog_full_precision(p, true);
    Val x = layer_linear(p, "linear", m, MSA_CLASSES, LINEAR_FINAL, true);
    prog_full_precision(p, former);
    return x;
}

Val head_resolved(Program *p, const ModelConfig *config, Val single)
{
    (void)config;
    bool former = prog_full_precision(p, true);
    Val x = layer_linear(p, "linear", single, ATOMS37, LINEAR_FINAL, true);
    prog_full_precision(p, former);
    return x;
}

void model_heads(Program *p, const ModelConfig *config, const StructureOut *structure, Val single, Val m_clusters,
                 Val z, HeadsOut *out)
{
    bool former = prog_full_precision(p, true);
    prog_scope_push(p, "auxiliary_heads");
    prog_scope_push(p, "plddt");
    out->lddt_logits = head_plddt(p, config, structure->single);
    prog_scope_pop(p);
    prog_scope_push(p, "distogram");
    out->distogram_logits = head_distogram(p, config, z);
    prog_scope_pop(p);
    prog_scope_push(p, "masked_msa");
    out->masked_msa_logits = head_masked_msa(p, config, m_clusters);
    prog_scope_pop(p);
    prog_scope_push(p, "experimentally_resolved");
    out->resolved_logits = head_resolved(p, config, single);
    prog_scope_pop(p);
    prog_scope_pop(p);
    out->plddt = prog_add(p, OP_PLDDT_SCORE, 1, &out->lddt_logits, NULL);
    const int64_t atoms[2] = {config->n_res, ATOMS37};
    Val index = prog_input(p, "residx_atom37_to_atom14", DT_I32, 2, atoms);
    Val exists = prog_input(p, "atom37_atom_exists", DT_F32, 2, atoms);
    out->final_atom_positions =
        prog_add(p, OP_ATOM14_TO_ATOM37, 3, (Val[]){structure->last_positions, index, exists}, NULL);
    prog_tap(p, out->lddt_logits, "out.lddt_logits");
    prog_tap(p, out->plddt, "out.plddt");
    prog_tap(p, out->distogram_logits, "out.distogram_logits");
    prog_tap(p, out->masked_msa_logits, "out.masked_msa_logits");
    prog_tap(p, out->resolved_logits, "out.experimentally_resolved_logits");
    prog_tap(p, out->final_atom_positions, "out.final_atom_positions");
    prog_full_precision(p, former);
}
