#include "data/mmcif_write.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/residue.h"
#include "engine/output.h"

enum { NAME_SIZE = 64 };

/* A name that needs no quotes in mmCIF. */
static void plain_name(const char *name, char out[NAME_SIZE])
{
    size_t used = 0;
    for (; *name && used + 1 < NAME_SIZE; ++name)
        out[used++] = isalnum((unsigned char)*name) || *name == '-' || *name == '_' ? *name : '_';
    if (!used) out[used++] = 'X';
    if (out[0] == '_' || out[0] == '-') out[0] = 'X'; /* a leading underscore would be a tag */
    out[used] = '\0';
}

static int type_of(const MmcifChain *s, int64_t i)
{
    return s->aatype[i] < 0 || s->aatype[i] > RESTYPE_UNKNOWN ? RESTYPE_UNKNOWN : s->aatype[i];
}

static void write_head(FILE *file, const char *name, const MmcifChain *s)
{
    const ResidueTables *tables = residue_tables();
    fprintf(file, "data_%s\n#\n_entry.id %s\n#\n_exptl.entry_id %s\n_exptl.method 'THEORETICAL MODEL'\n#\n", name, name,
            name);
    if (s->release_date)
        fprintf(file, "_pdbx_audit_revision_history.ordinal 1\n_pdbx_audit_revision_history.revision_date %.10s\n#\n",
                s->release_date);
    if (s->resolution > 0.0) fprintf(file, "_refine.entry_id %s\n_refine.ls_d_res_high %.2f\n#\n", name, s->resolution);
    fprintf(file, "loop_\n_chem_comp.id\n_chem_comp.type\n");
    for (int type = 0; type < RESIDUE_TYPES; ++type)
        fprintf(file, "%s %s\n", tables->restype_name[type],
                type == 7 ? "'peptide linking'" : "'L-peptide linking'"); /* 7: glycine has no hand */
    fprintf(file, "#\n_entity.id 1\n_entity.type polymer\n#\n_struct_asym.id A\n_struct_asym.entity_id 1\n#\n");
    fprintf(file, "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n"
                  "_entity_poly_seq.hetero\n");
    for (int64_t i = 0; i < s->length; ++i)
        fprintf(file, "1 %lld %s n\n", (long long)i + 1, tables->restype_name[type_of(s, i)]);
}

static void write_scheme(FILE *file, const char *chain, const MmcifChain *s)
{
    const ResidueTables *tables = residue_tables();
    fprintf(file, "#\nloop_\n_pdbx_poly_seq_scheme.asym_id\n_pdbx_poly_seq_scheme.entity_id\n"
                  "_pdbx_poly_seq_scheme.seq_id\n_pdbx_poly_seq_scheme.mon_id\n_pdbx_poly_seq_scheme.pdb_seq_num\n"
                  "_pdbx_poly_seq_scheme.pdb_strand_id\n");
    for (int64_t i = 0; i < s->length; ++i)
        fprintf(file, "A 1 %lld %s %lld %s\n", (long long)i + 1, tables->restype_name[type_of(s, i)], (long long)i + 1,
                chain);
}

static Status write_atoms(FILE *file, const char *path, const char *chain, const MmcifChain *s)
{
    const ResidueTables *tables = residue_tables();
    const float limit = 99999.0f;
    long long serial = 0;
    fprintf(file, "#\nloop_\n_atom_site.group_PDB\n_atom_site.id\n_atom_site.type_symbol\n_atom_site.label_atom_id\n"
                  "_atom_site.label_alt_id\n_atom_site.label_comp_id\n_atom_site.label_asym_id\n"
                  "_atom_site.label_entity_id\n_atom_site.label_seq_id\n_atom_site.pdbx_PDB_ins_code\n"
                  "_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\n_atom_site.occupancy\n"
                  "_atom_site.B_iso_or_equiv\n_atom_site.auth_seq_id\n_atom_site.auth_comp_id\n"
                  "_atom_site.auth_asym_id\n_atom_site.auth_atom_id\n_atom_site.pdbx_PDB_model_num\n");
    for (int64_t i = 0; i < s->length; ++i) {
        const char *residue = tables->restype_name[type_of(s, i)];
        for (int a = 0; a < ATOM37_COUNT; ++a) {
            const float *x = s->positions + (i * ATOM37_COUNT + a) * 3;
            const char *atom = tables->atom37_name[a];
            if (s->atom_exists[i * ATOM37_COUNT + a] == 0.0f) continue;
            for (int k = 0; k < 3; ++k)
                if (!(fabsf(x[k]) <= limit))
                    return status_fail_at(ERR_NUMERIC, path, 0, "coordinate %g of atom %s of residue %lld",
                                          (double)x[k], atom, (long long)i + 1);
            fprintf(file, "ATOM %lld %c %s . %s A 1 %lld ? %.3f %.3f %.3f 1.00 %.2f %lld %s %s %s 1\n", ++serial,
                    atom[0], atom, residue, (long long)i + 1, (double)x[0], (double)x[1], (double)x[2],
                    s->plddt ? (double)s->plddt[i] : 0.0, (long long)i + 1, residue, chain, atom);
        }
    }
    fprintf(file, "#\n");
    return OK;
}

static Status write_all(FILE *file, const char *path, const MmcifChain *s)
{
    char name[NAME_SIZE], chain[NAME_SIZE];
    plain_name(s->name, name);
    plain_name(s->chain_id, chain);
    write_head(file, name, s);
    write_scheme(file, chain, s);
    return write_atoms(file, path, chain, s);
}

Status mmcif_write_chain(const char *path, const MmcifChain *structure)
{
    Output output;
    TRY(output_open(path, "data_", &output));
    Status status = write_all(output.file, path, structure);
    if (status == OK) return output_close(&output);
    output_abandon(&output);
    return status;
}
