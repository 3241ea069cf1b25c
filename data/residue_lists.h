/* Lists behind data/residue.c, generated with the tables. */
#ifndef FOLDSCALE_DATA_RESIDUE_LISTS_H
#define FOLDSCALE_DATA_RESIDUE_LISTS_H

/* bond_lengths.csv, then virtual_bonds.csv: atom14 slots, Angstrom. */
typedef struct ResidueBond {
    int residue, atom1, atom2;
    double length, std;
} ResidueBond;

extern const ResidueBond residue_bonds[];
extern const int residue_bond_count;

/* three_to_one.csv: three letters of the code, then its letter; sorted by code. */
extern const char residue_monomer_codes[];
extern const int residue_monomer_count;

#endif
