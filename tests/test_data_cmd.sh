#!/bin/bash
# foldscale data check, show and index over the examples: what they print, what they return.
set -u
source_dir=${FOLDSCALE_SOURCE:?}
foldscale=${FOLDSCALE_BUILD:?}/foldscale
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
examples=$source_dir/data/examples
failed=0
expect() { # NAME EXPECTED-STATUS STATUS FILE PATTERN
    if [ "$3" -ne "$2" ] || ! grep -q -- "$5" "$4"; then
        echo "FAIL $1: status $3, expected $2 and \"$5\" in:"
        cat "$4"
        failed=1
    else
        echo "PASS $1"
    fi
}

"$foldscale" data check "$examples" --mmcif "$examples/mmcif" >"$out/log" 2>&1
expect "check of the examples" 0 $? "$out/log" "0 errors"

cp "$examples/mmcif/1ubq.cif" "$out/broken.cif"
sed -i 's/^ATOM   10 /ATOM /' "$out/broken.cif"
"$foldscale" data check "$out/broken.cif" >"$out/log" 2>&1
expect "check of a broken file" 1 $? "$out/log" "broken.cif:[0-9]*:"

whole=$(grep -c . "$examples/mmcif/1ubq.cif")
head -n $((whole - 40)) "$examples/mmcif/1ubq.cif" >"$out/cut.cif"
"$foldscale" data check "$out/cut.cif" >"$out/log" 2>&1
expect "a structure cut between two rows" 0 $? "$out/log" "cut.cif:$((whole - 40)): the last category is not closed"
printf '{"1abc_A": {"release_date": "2000-01-01", "seq": "ACD",\n "resolution": 1},\n"2abc_A": {"release_date": 3}}' \
    >"$out/chain.json"
"$foldscale" data check "$out/chain.json" >"$out/log" 2>&1
expect "a cache with a wrong value" 1 $? "$out/log" 'chain.json:3: "2abc_A": release_date is 3, expected a day'

cp "$examples/alignments/1ubq_A/homologs.a3m" "$out/other.a3m"
"$foldscale" data check "$out/other.a3m" --mmcif "$examples/mmcif" --chain 2q2k_A >"$out/log" 2>&1
expect "check of an alignment of another chain" 1 $? "$out/log" "expected the 70 of chain 2q2k_A"

mkdir -p "$out/loop/below"
cp "$examples/mmcif/1ubq.cif" "$out/loop"
ln -s .. "$out/loop/below/back"
timeout 20 "$foldscale" data check "$out/loop" >"$out/log" 2>&1
expect "links that lead back are followed once" 0 $? "$out/log" "back: the same folder as one before"
grep -q '^1 files read' "$out/log" || { echo "FAIL a file was read twice"; cat "$out/log"; failed=1; }
touch "$out/data.xyz"
"$foldscale" data check "$out/data.xyz" "$out/nothing" "$out/loop" >"$out/log" 2>&1
expect "a file whose name tells no kind" 1 $? "$out/log" "data.xyz: the name tells no kind"
expect "a missing file does not hide the others" 1 1 "$out/log" "nothing: no such file"
expect "what can be read is read" 1 1 "$out/log" "^1 files read"

"$foldscale" data show 1ubq_A --mmcif "$examples/mmcif" --alignments "$examples/alignments" >"$out/log" 2>&1
expect "show of a chain" 0 $? "$out/log" "21 rows of 76 columns"

"$foldscale" data show 1UBQ_A --mmcif "$examples/mmcif" >"$out/log" 2>&1
expect "show of an entry in capitals" 0 $? "$out/log" "entry  *1ubq, chain A"
"$foldscale" data show 9zzz_A --mmcif "$examples/mmcif" >"$out/log" 2>&1
expect "show of a chain that is nowhere" 1 $? "$out/log" "9zzz_A: neither a structure nor an alignment"

mkdir "$out/mmcif"
cp "$examples"/mmcif/*.cif "$out/broken.cif" "$out/mmcif"
"$foldscale" data index --mmcif "$out/mmcif" --mmcif-cache "$out/m.json" --chain-cache "$out/c_chain.json" \
    --threads 2 >"$out/log" 2>&1
expect "index leaves out what is broken" 0 $? "$out/log" "of 7 structures (1 left out)"
mv "$out/m.json" "$out/mmcif_cache.json"
"$foldscale" data check "$out/mmcif_cache.json" "$out/c_chain.json" >"$out/log" 2>&1
expect "the caches can be read" 0 $? "$out/log" "0 errors"
printf '2Q2K_2\n1UBQ_1 1A7G_1\n' >"$out/clusters.txt"
"$foldscale" data index --mmcif "$out/mmcif" --mmcif-cache "$out/m.json" --chain-cache "$out/c_chain.json" \
    --clusters "$out/clusters.txt" >"$out/log" 2>&1
grep -A4 '"2q2k_B"' "$out/c_chain.json" >"$out/log"
expect "a cluster of one entity has the size of its chains" 0 0 "$out/log" '"cluster_size": *2'
"$foldscale" data index --mmcif "$out/mmcif" --mmcif-cache "$out/one.json" --chain-cache "$out/mmcif/../one.json" >"$out/log" 2>&1
expect "two caches in one file" 2 $? "$out/log" "--mmcif-cache and --chain-cache are one file"
mkdir "$out/empty"
cp "$out/m.json" "$out/kept.json"
"$foldscale" data index --mmcif "$out/empty" --mmcif-cache "$out/m.json" --chain-cache "$out/c_chain.json" >"$out/log" 2>&1
expect "index of an empty folder" 1 $? "$out/log" "empty: no structure in it could be read"
cmp "$out/m.json" "$out/kept.json" || failed=1
"$foldscale" data index --mmcif "$out/mmcif" --mmcif-cache "$out/m.json" --chain-cache "$out/mmcif/1ubq.cif" >"$out/log" 2>&1
expect "a cache over a structure" 1 $? "$out/log" "1ubq.cif: not replaced"
printf '{\n\t"experiment": {"release": 1}\n}\n' >"$out/run.json"
"$foldscale" data index --mmcif "$out/mmcif" --mmcif-cache "$out/run.json" --chain-cache "$out/c_chain.json" >"$out/log" 2>&1
expect "a cache over other JSON" 1 $? "$out/log" "run.json: not replaced"
"$foldscale" data index --mmcif "$out/mmcif" --mmcif-cache "$out/m.json" --chain-cache "$out/c_chain.json" >"$out/log" 2>&1
expect "a cache over a cache" 0 $? "$out/log" "of 7 structures (1 left out)"
"$foldscale" data index --mmcif "$out/mmcif" --clusters "$out/clusters.txt" --mmcif-cache "$out/m.json" \
    --chain-cache "$out/clusters.txt" >"$out/log" 2>&1
expect "a cache over the clusters" 2 $? "$out/log" "--chain-cache is the input .*clusters.txt"
"$foldscale" data pack "$out/mmcif/1ubq.cif" --mmcif "$out/mmcif" --alignments "$examples/alignments" >"$out/log" 2>&1
expect "a pack over a structure" 1 $? "$out/log" '1ubq.cif: not replaced: it does not begin with "FSPACK"'
cmp "$out/mmcif/1ubq.cif" "$examples/mmcif/1ubq.cif" || failed=1
mkfifo "$out/pipe"
"$foldscale" data pack "$out/pipe" --mmcif "$out/mmcif" --alignments "$examples/alignments" >"$out/log" 2>&1
expect "a pack into a pipe" 1 $? "$out/log" "pipe: cannot write a pack: not a file"
"$foldscale" data index >"$out/log" 2>&1
expect "index without a folder" 2 $? "$out/log" "--mmcif DIR is missing"

"$foldscale" data synth "$out/synthetic" --chains 40 --length-median 80 --depth-median 300 >/dev/null 2>&1
pack=("$foldscale" data pack "$out/x.pack" --mmcif "$out/synthetic/mmcif" --alignments "$out/synthetic/alignments")
for seconds in 0.03 0.05 0.07 0.04 0.06; do timeout -s KILL $seconds "${pack[@]}" >/dev/null 2>&1; done 2>/dev/null
"${pack[@]}" >"$out/log" 2>&1
expect "a pack killed five times is finished" 0 $? "$out/log" "40 chains, 40 structures, 0 left out"
"$foldscale" data check "$out/x.pack" >"$out/log" 2>&1
expect "and is whole" 0 $? "$out/log" "0 errors"
ln -s x.pack "$out/link.pack"
"${pack[@]/x.pack/link.pack}" >"$out/log" 2>&1
expect "a pack is replaced behind a link" 0 $? "$out/log" "40 chains"
[ -L "$out/link.pack" ] || { echo "FAIL the link was replaced"; failed=1; }
printf 'x' | dd of="$out/x.pack" bs=1 seek=5000 conv=notrunc 2>/dev/null
"$foldscale" data check "$out/x.pack" >"$out/log" 2>&1
expect "a changed byte is found" 1 $? "$out/log" "x.pack: .*checksum"
exit $failed
