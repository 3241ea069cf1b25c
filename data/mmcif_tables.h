/* Inside of the mmCIF reader: the rows it keeps of each category, before they become chains. */
#ifndef FOLDSCALE_DATA_MMCIF_TABLES_H
#define FOLDSCALE_DATA_MMCIF_TABLES_H

#include "data/cif.h"
#include "data/log.h"
#include "data/mmcif.h"

/* A growing list; freed by mmcif_tables_free. */
#define LIST(TYPE)                                                                                                     \
    struct {                                                                                                           \
        TYPE *item;                                                                                                    \
        size_t count, capacity;                                                                                        \
    }

typedef struct Monomer { /* _entity_poly_seq */
    CifValue entity, code;
    int32_t num;
} Monomer;

typedef struct Component { /* _chem_comp */
    CifValue id;
    bool peptide;
} Component;

typedef struct Asym { /* _struct_asym */
    CifValue id, entity;
} Asym;

typedef struct Strand { /* _pdbx_poly_seq_scheme, one per run of equal asym_id */
    CifValue asym, author;
} Strand;

typedef struct AtomRow { /* _atom_site, polymers of the first model */
    CifValue asym, author, component, name, alternative;
    int32_t seq;
    float x, y, z;
    float occupancy;
    const char *at;
} AtomRow;

enum { RESOLUTION_SOURCES = 3 };

typedef struct MmcifTables {
    const Text *text;
    const DataLog *log;
    Arena *arena; /* of the result */
    CifValue entry_id;
    char revision_date[11], old_revision_date[11];
    double resolution[RESOLUTION_SOURCES]; /* NaN: not given */
    bool odd_resolution;                   /* told already */
    char *method;
    LIST(Monomer) monomers;
    LIST(Component) components;
    LIST(Asym) asyms;
    LIST(Strand) strands;
    LIST(AtomRow) atoms;
    CifValue first_model, last_model;
    int64_t models;
    bool has_atoms;
} MmcifTables;

Status mmcif_tables_read(const Text *text, const DataLog *log, bool header_only, Arena *arena, MmcifTables *tables);
void mmcif_tables_free(MmcifTables *tables);

/* Chains of the tables. *unnamed_out: a protein chain of which only the atoms could tell the author's id. */
Status mmcif_chains_build(MmcifTables *tables, bool header_only, Structure *structure, bool *unnamed_out);

#endif
