/* Constant tables of the residues, generated from data/residue/NAME.csv (data/residue/README.md gives the origin of
 * each) by data/residue/generate.sh; the derived ones are computed there too.
 *
 * Index 20 of a residue axis is UNK. Shapes are in the comments; all arrays are plain row-major. */
#ifndef FOLDSCALE_DATA_RESIDUE_H
#define FOLDSCALE_DATA_RESIDUE_H

#include "data/types.h"

enum { RESIDUE_TYPES = 21, CHI_COUNT = 4, HHBLITS_IDS = 22, RESIDUE_BASE_ATOMS = 3 };

typedef struct ResidueTables {
    const char *restype_letter;   /* "ARNDCQEGHILKMFPSTWYVX" */
    const char *restype_name[21]; /* "ALA" ... "UNK" */
    const char *atom37_name[37];
    const char *atom14_name[21][14]; /* "" where there is no atom */

    int32_t atom14_to_atom37[21][14]; /* 0 where there is no atom: multiply by atom14_mask */
    int32_t atom37_to_atom14[21][37]; /* 0 where there is no atom: multiply by atom37_mask */
    float atom14_mask[21][14];
    float atom37_mask[21][37];

    int32_t atom14_group[21][14]; /* rigid group of each atom, 0 where there is none */
    int32_t atom37_group[21][37];
    float atom14_group_position[21][14][3]; /* ideal position in its group; Angstrom */
    float atom37_group_position[21][37][3];
    float default_frames[21][8][4][4];   /* each group to its parent; zero for groups a residue lacks */
    int32_t group_base_atom37[21][8][3]; /* atoms that define each frame, 0 where group_exists is 0 */
    float group_exists[21][8];           /* backbone, psi and existing chi groups (as the reference's mask) */

    int32_t chi_atom37[21][4][4]; /* four atoms of each chi, 0 where chi_mask is 0 */
    int32_t chi_atom14[21][4][4];
    float chi_mask[21][4];
    float chi_pi_periodic[21][4];

    int32_t atom14_swap[21][14];    /* partner under the symmetry, itself if none */
    float atom14_ambiguous[21][14]; /* 1 for atoms that have a partner */

    double atom37_vdw_radius[37]; /* Angstrom, by the first letter of the name; double as in the reference */
    float atom14_vdw_radius[21][14];
    /* Peptide bond: [0] general, [1] before proline */
    double between_c_n_length[2], between_c_n_length_std[2];
    double between_cos_c_n_ca[2], between_cos_ca_c_n[2]; /* mean, std */

    uint8_t letter_to_hhblits[256]; /* letters in either case and '-'; 255 otherwise */
    int32_t hhblits_to_model[22];   /* HHblits id -> restype id */
} ResidueTables;

const ResidueTables *residue_tables(void);

/* Distance bounds of the violation loss (AlphaFold2 supplement 1.9.11): covalently bonded pairs mean -+
 * factor x std, others from the radii minus `overlap`; [21, 14, 14] each. The reference trains with overlap 1.5 and
 * factor 12. */
void residue_atom14_bounds(double overlap, double factor, float *lower_out, float *upper_out, float *stddev_out);

/* Index of a letter (X for anything unknown), of an atom name in atom37 (-1 if unknown). */
int residue_letter_index(char letter);
int residue_atom37_index(const char *name, size_t length);

/* Monomer code (of any length) -> one letter, 'X' for unknown. */
char residue_letter_of_monomer(const char *code, size_t length);

#endif
