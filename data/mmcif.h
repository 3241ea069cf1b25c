/* mmCIF files -> protein chains.
 *
 * As the golden data define it: the sequence is _entity_poly_seq in order of `num`; residue i is label_seq_id minus the
 * smallest `num` of the entity; first model only; per atom the alternative location of highest occupancy, the first on
 * a tie; MSE is M with its SE in SD; hydrogens and unknown atoms are ignored; OXT is kept. A polymer is a protein if
 * any monomer's _chem_comp.type contains "peptide" (any case).
 *
 * Where the reference is strict or wrong, this reader does the following instead:
 *  - microheterogeneity (several monomers at one `num`): one residue, the first monomer listed (as in the PDB's own
 *    one-letter sequence) and that monomer's atoms; the reference appends every monomer, which shifts all that follow;
 *  - a protein chain without atoms, or with the author id of a longer one, is left out with a remark; the
 *    reference rejects the whole file;
 *  - entry ids of any length are accepted;
 *  - a file without _pdbx_audit_revision_history takes the earliest _database_PDB_rev.date, else the date is unknown
 *    (""), with a remark; the reference rejects it;
 *  - a resolution that is not a number counts as unknown.
 * Damage is an error with file and line: rows that do not fill their loop (also a file that ends in mid-row), open
 * quotes and text blocks, doubled columns or categories, a second data block, NUL bytes, missing categories,
 * coordinates that are not finite, dates that do not exist, label_seq_id outside the sequence, doubled atoms. */
#ifndef FOLDSCALE_DATA_MMCIF_H
#define FOLDSCALE_DATA_MMCIF_H

#include "data/log.h"
#include "data/text.h"
#include "data/types.h"

typedef struct Structure {
    char *entry_id;        /* lower case */
    char release_date[11]; /* YYYY-MM-DD, "" when unknown */
    float resolution;      /* Angstrom, NaN when unknown */
    char *method;          /* all _exptl.method as in the file, joined by ','; "" when absent */
    int64_t models;        /* number of different pdbx_PDB_model_num; 0 when only the header was read */
    int64_t chain_count;
    Chain *chain; /* protein chains in order of _struct_asym */
} Structure;

/* Everything. Errors: ERR_INPUT, ERR_IO, ERR_MEMORY. `log` may be NULL. */
Status mmcif_parse(const Text *text, const DataLog *log, Arena *arena, Structure **structure_out);
Status mmcif_read(const char *path, const DataLog *log, Arena *arena, Structure **structure_out);

/* Header and sequences only: chains have no positions and no mask (NULL), and may turn out to have no atoms. Atom rows
 * are skipped by line, not checked. */
Status mmcif_parse_header(const Text *text, const DataLog *log, Arena *arena, Structure **structure_out);
Status mmcif_read_header(const char *path, const DataLog *log, Arena *arena, Structure **structure_out);

/* By author chain id; NULL when there is none. */
const Chain *structure_find_chain(const Structure *structure, const char *chain_id);

#endif
