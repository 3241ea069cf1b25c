#!/bin/sh
# Writes data/residue_tables.c and data/residue_lists.c from the CSV files beside this script into folder $1 (default:
# data/). Run it after a change of a table; tests/test_residue_tables.sh checks that the committed files are its output.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/..}
cd "$here"
LC_ALL=C
export LC_ALL
tables="restypes.csv atom37.csv atom14.csv rigid_group_atoms.csv rigid_group_default_frames.csv chi_angles.csv
ambiguous_atoms.csv van_der_waals.csv between_residue.csv msa_alphabet.csv bond_lengths.csv virtual_bonds.csv
three_to_one.csv"
for part in tables lists; do
    # shellcheck disable=SC2086
    awk -v part="$part" -f generate.awk $tables > "$out/residue_$part.c"
done
