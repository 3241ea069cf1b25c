#!/bin/bash
# The whole step of the tiny model (outputs, losses, gradients, three optimizer steps) and every module against the
# golden files of the MLPerf HPC OpenFold reference: in float64 with and without switches, split over two ranks, and in
# float32, where gradients that differ from float64 by design are compared between the switches.
set -u
golden=${FOLDSCALE_SHARED:-../shared}/golden
parity=${FOLDSCALE_BUILD:?}/tests/parity
if [ ! -f "$golden/tiny/config.json" ]; then
    echo "SKIP: no $golden/tiny (FOLDSCALE_SHARED names the folder that has it)"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
run() { # what, arguments of parity
    local what=$1
    shift
    "$parity" "$@" >"$work/lines.txt" 2>&1 || status=1
    echo "$what: $(tail -n 1 "$work/lines.txt")"
    grep -E ' FAIL$|^foldscale: |^parity: ' "$work/lines.txt"
}
for switches in none all; do
    run "tiny, f64, $switches" "$golden/tiny" --dtype f64 --switches $switches
    run "tiny, f32, $switches" "$golden/tiny" --dtype f32 --switches $switches
    run "modules, f64, $switches" "$golden/modules" --dtype f64 --switches $switches
done
run "tiny, f64, all, DAP 2" "$golden/tiny" --dtype f64 --switches all --dap 2
run "modules, f32, none" "$golden/modules" --dtype f32 --switches none --save "$work/modules.safetensors"
run "modules, f32, all" "$golden/modules" --dtype f32 --switches all --beside "$work/modules.safetensors"
exit $status
