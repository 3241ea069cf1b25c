#!/bin/bash
# The committed C tables are exactly what data/residue/generate.sh makes of the CSV files.
set -u
source_dir=${FOLDSCALE_SOURCE:-$(cd "$(dirname "$0")/.." && pwd)}
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
sh "$source_dir/data/residue/generate.sh" "$out" || exit 1
status=0
for name in residue_tables.c residue_lists.c; do
    if cmp "$out/$name" "$source_dir/data/$name"; then
        echo "PASS $name"
    else
        echo "FAIL $name is not what data/residue/generate.sh writes"
        status=1
    fi
done
exit $status
