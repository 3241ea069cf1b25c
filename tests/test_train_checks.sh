#!/usr/bin/env bash
# train: one rank's share of a model-parallel step without its collectives, and the first op that is not finite.
set -u
foldscale=${FOLDSCALE_BUILD:?}/foldscale
examples=${FOLDSCALE_SOURCE:?}/data/examples
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
cd "$out" || exit 1
failed=0
expect() { # NAME STATUS PATTERN COMMAND...
    local name=$1 wanted=$2 pattern=$3 status
    shift 3
    timeout 120 "$@" >log 2>&1
    status=$?
    if [ "$status" -ne "$wanted" ] || ! grep -qE -- "$pattern" log; then
        echo "FAIL $name: status $status (expected $wanted), expected \"$pattern\" in:"
        head -n 20 log
        failed=1
    else
        echo "PASS $name"
    fi
}

cat >tiny.yaml <<YAML
model: {preset: tiny}
data: {mmcif: $examples/mmcif, alignments: $examples/alignments, chains: [1ubq_A, 1a7g_E], workers: 1}
train: {steps: 2, recycling: 1}
parallel: {threads: 1}
YAML

expect "a share of DAP 8 on one process" 0 '2 steps, loss [0-9]' \
    "$foldscale" train tiny.yaml --out null --set parallel.ranks=8 --set parallel.dap=8 --set parallel.comm=null
expect "steps without recycling" 0 '2 steps, loss [0-9]' "$foldscale" train tiny.yaml --out once --set train.recycling=0
expect "an unknown mode of communication" 2 'expected one of all, null' "$foldscale" train tiny.yaml --set parallel.comm=some

# a broken chain among good ones: skipped and counted on all ranks of a group, or the end; nothing but broken ones: the end
cp -r "$examples/alignments" alignments
chmod -R u+w alignments
printf '>short\nACD\n' >>alignments/1ubq_A/homologs.a3m
broken=("$foldscale" train tiny.yaml --out broken --replace --set data.alignments="$out/alignments" --set train.steps=6)
expect "a broken chain is skipped" 0 'sample [0-9]+ skipped \(1 so far\): .*homologs.a3m:44: row 22 has 3 columns' \
    "${broken[@]}" --set data.on_error=skip
expect "a broken chain is skipped by a group" 0 '6 steps, loss [0-9]' \
    "${broken[@]}" --set data.on_error=skip --ranks 2 --dap 2 --set switches.nonblocking_loader=off
expect "a broken chain stops" 1 'homologs.a3m:44: row 22 has 3 columns, expected 76' "${broken[@]}" --set data.on_error=stop
# one replica fails, the other one waits for its gradients
expect "a broken chain stops all ranks" 1 'homologs.a3m:44: row 22 has 3 columns, expected 76' \
    "${broken[@]}" --set data.on_error=stop --ranks 2
printf '>short\nACD\n' >>alignments/1a7g_E/homologs.a3m
expect "nothing but broken chains" 1 '64 samples in a row could not be prepared' "${broken[@]}" --set data.on_error=skip

# one weight of the checkpoint becomes NaN, in its place in the file
expect "a run with a checkpoint" 0 '2 steps' "$foldscale" train tiny.yaml --out run
cp -r run term
file=run/ckpt_2.safetensors
[ -f "$file" ] || file=$(ls run/ckpt_*.safetensors)
place() { # NAME of a parameter: where it begins in $file
    local length
    length=$(od -An -tu8 -N8 "$file" | tr -d ' ')
    head -c $((8 + length)) "$file" | tail -c "$length" | grep -ao "\"[a-z_.]*$1\":{[^}]*}" | grep -v '"adam\|"swa' |
        sed -E 's/.*"data_offsets":\[([0-9]+),.*/\1/' | { read -r offset && echo $((8 + length + offset)); }
}
spoil() { # FILE PLACE
    printf '\x00\x00\xc0\x7f' | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
    # with no checksum, as other tools write them
    printf '"crc--"' | dd of="$1" bs=1 seek="$(grep -abo '"crc32"' "$1" | head -n 1 | cut -d: -f1)" conv=notrunc status=none
}
weight=$(place evoformer_stack.blocks.1.core.tri_mul_out.linear_a_p.weight)
expect "a checkpoint with a damaged tensor" 1 'the tensors are damaged: their CRC-32 is [0-9a-f]{8}' \
    bash -c "cp -r run damaged && printf x | dd of=damaged/${file##*/} bs=1 seek=$weight conv=notrunc status=none &&
        '$foldscale' train tiny.yaml --out damaged --resume"
expect "data check of it" 1 "${file##*/}: the tensors are damaged: their CRC-32 is [0-9a-f]{8}" \
    "$foldscale" data check "damaged/${file##*/}"
expect "data check of a whole checkpoint" 0 '^0 errors' "$foldscale" data check "$file"
spoil "$file" "$weight"
expect "a step that is not finite is skipped" 0 'step 3: .* the update is skipped' \
    "$foldscale" train tiny.yaml --out run --resume --set train.steps=3 --set train.checkpoint_last=off
expect "its first op is named" 1 'evoformer_stack.blocks.1.core.tri_mul_out/linear.*has the value -?nan' \
    "$foldscale" train tiny.yaml --out run --resume --check-finite --set train.steps=4

# one term of the loss: left out of the total, from which all gradients would be finite
spoil "term/${file##*/}" "$(place plddt.linear_3.bias)"
expect "a term that is not finite skips the update" 0 \
    'step 3: rank 0: loss [0-9.]+ without plddt_loss -?nan, gradient norm -?nan: the update is skipped' \
    "$foldscale" train tiny.yaml --out term --resume --set train.steps=3 --set train.checkpoint_last=off
grep -q '^3,0,[0-9.]*,.*,,' term/losses.csv || { echo "FAIL losses.csv has no total without an empty term" && failed=1; }
expect "its first op is named too" 1 'plddt.*has the value -?nan' \
    "$foldscale" train tiny.yaml --out term --resume --check-finite --set train.steps=3
exit $failed
