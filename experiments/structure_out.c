#include "experiments/structure_out.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/residue.h"
#include "experiments/files.h"
#include "experiments/version.h"

static void put_sequence(FILE *out, const PredictedChain *c)
{
    fputs("_entity.id 1\n_entity.type polymer\n#\nloop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n"
          "_entity_poly_seq.mon_id\n_entity_poly_seq.hetero\n",
          out);
    for (int64_t i = 0; i < c->length; i++)
        fprintf(out, "1 %lld %s n\n", (long long)i + 1, residue_tables()->restype_name[c->aatype[i]]);
    fputs("#\nloop_\n_chem_comp.id\n_chem_comp.type\n", out);
    for (int type = 0; type < RESIDUE_TYPES; type++) {
        bool used = false;
        for (int64_t i = 0; i < c->length && !used; i++) used = c->aatype[i] == type;
        if (used)
            fprintf(out, "%s %s\n", residue_tables()->restype_name[type],
                    strcmp(residue_tables()->restype_name[type], "GLY") == 0 ? "'peptide linking'"
                                                                             : "'L-peptide linking'");
    }
}

static void put_atoms(FILE *out, const PredictedChain *c, const char *chain_id)
{
    static const char *const columns[] = {"group_PDB",      "id",
                                          "type_symbol",    "label_atom_id",
                                          "label_alt_id",   "label_comp_id",
                                          "label_asym_id",  "label_entity_id",
                                          "label_seq_id",   "pdbx_PDB_ins_code",
                                          "Cartn_x",        "Cartn_y",
                                          "Cartn_z",        "occupancy",
                                          "B_iso_or_equiv", "auth_seq_id",
                                          "auth_asym_id",   "pdbx_PDB_model_num"};
    const ResidueTables *t = residue_tables();
    int64_t serial = 0;
    fputs("#\nloop_\n", out);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) fprintf(out, "_atom_site.%s\n", columns[i]);
    for (int64_t i = 0; i < c->length; i++)
        for (int a = 0; a < ATOM37_COUNT; a++) {
            const float *x = c->positions + (i * ATOM37_COUNT + a) * 3;
            if (c->atom_exists[i * ATOM37_COUNT + a] < 0.5f) continue;
            fprintf(out, "ATOM %lld %c %s . %s %s 1 %lld ? %.3f %.3f %.3f 1.00 %.2f %lld %s 1\n", (long long)++serial,
                    t->atom37_name[a][0], t->atom37_name[a], t->restype_name[c->aatype[i]], chain_id, (long long)i + 1,
                    x[0], x[1], x[2], c->plddt[i], (long long)i + 1, chain_id);
        }
    fputs("#\n", out);
}

Status structure_write(const char *path, const PredictedChain *chain)
{
    char *text = NULL;
    size_t size = 0;
    const char *underscore = strrchr(chain->name, '_'), *chain_id = underscore && underscore[1] ? underscore + 1 : "A";
    for (int64_t i = 0; i < chain->length; i++)
        if (chain->aatype[i] < 0 || chain->aatype[i] >= RESIDUE_TYPES)
            return status_fail(ERR_INTERNAL, "%s: residue %lld has type %d", chain->name, (long long)i,
                               chain->aatype[i]);
    FILE *out = open_memstream(&text, &size);
    if (!out) return status_fail(ERR_MEMORY, "%s: out of memory", path);
    fprintf(out,
            "data_%s\n#\n_entry.id %s\n#\n_software.name foldscale\n_software.version %s\n#\n"
            "_exptl.entry_id %s\n_exptl.method 'THEORETICAL MODEL'\n#\n_struct_asym.id %s\n"
            "_struct_asym.entity_id 1\n#\n",
            chain->name, chain->name, FOLDSCALE_VERSION, chain->name, chain_id);
    put_sequence(out, chain);
    put_atoms(out, chain, chain_id);
    Status status = OK;
    if (fclose(out) != 0) status = status_fail(ERR_MEMORY, "%s: out of memory", path);
    if (status == OK) status = file_write_whole(path, text, size);
    free(text);
    return status;
}
