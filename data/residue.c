#include "data/residue.h"

#include <string.h>

#include "data/residue_lists.h"

/* van der Waals radii and bonds are summed in double and rounded once, as the reference does. */
static double element_radius(char element)
{
    switch (element) {
    case 'C':
        return 1.7;
    case 'N':
        return 1.55;
    case 'O':
        return 1.52;
    default:
        return 1.8; /* S */
    }
}

void residue_atom14_bounds(double overlap, double factor, float *lower_out, float *upper_out, float *stddev_out)
{
    const ResidueTables *tables = residue_tables();
    const size_t total = (size_t)RESIDUE_TYPES * ATOM14_COUNT * ATOM14_COUNT;
    memset(lower_out, 0, total * sizeof *lower_out);
    memset(upper_out, 0, total * sizeof *upper_out);
    memset(stddev_out, 0, total * sizeof *stddev_out);
    for (size_t residue = 0; residue < RESTYPE_COUNT; residue++)
        for (size_t i = 0; i < ATOM14_COUNT; i++)
            for (size_t j = 0; j < ATOM14_COUNT; j++) {
                const char *first = tables->atom14_name[residue][i], *second = tables->atom14_name[residue][j];
                if (i == j || !*first || !*second) continue;
                size_t at = (residue * ATOM14_COUNT + i) * ATOM14_COUNT + j;
                lower_out[at] = (float)(element_radius(*first) + element_radius(*second) - overlap);
                upper_out[at] = 1e10f; /* unbounded, as in the reference */
            }
    for (int k = 0; k < residue_bond_count; k++) {
        const ResidueBond *bond = &residue_bonds[k];
        for (int turn = 0; turn < 2; turn++) {
            int i = turn ? bond->atom2 : bond->atom1, j = turn ? bond->atom1 : bond->atom2;
            size_t at = ((size_t)bond->residue * ATOM14_COUNT + (size_t)i) * ATOM14_COUNT + (size_t)j;
            lower_out[at] = (float)(bond->length - factor * bond->std);
            upper_out[at] = (float)(bond->length + factor * bond->std);
            stddev_out[at] = (float)bond->std;
        }
    }
}

int residue_letter_index(char letter)
{
    const char *letters = residue_tables()->restype_letter;
    const char *found = letter ? strchr(letters, letter) : NULL;
    return found ? (int)(found - letters) : RESTYPE_UNKNOWN;
}

int residue_atom37_index(const char *name, size_t length)
{
    const ResidueTables *tables = residue_tables();
    if (length == 0 || length > 3) return -1;
    for (int i = 0; i < ATOM37_COUNT; i++) {
        const char *known = tables->atom37_name[i];
        if (strncmp(known, name, length) == 0 && known[length] == '\0') return i;
    }
    return -1;
}

char residue_letter_of_monomer(const char *code, size_t length)
{
    if (length != 3) return 'X';
    int low = 0, high = residue_monomer_count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const char *entry = residue_monomer_codes + 4 * middle;
        int order = memcmp(entry, code, 3);
        if (order == 0) return entry[3];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return 'X';
}
