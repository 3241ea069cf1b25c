#!/usr/bin/env bash
# Ranks on GPUs, two by default (with one GPU they take turns): ops that send and collectives against the same apart,
# the tiny model's goldens split over them, and how a job ends in which a rank fails or is killed: with a message, within 30 s.
#
#   tests/gpu_ranks.sh [OUT]     (default /tmp/gpu_ranks; about a minute)
#
# Writes OUT/NAME.txt of each run and OUT/summary.txt; exit code 1 if one did not end as it should. Environment: RANKS (2),
# BACKEND (cuda; "cpu" rehearses it anywhere), COMM, PARITY (build/tests/test_comm, parity), FOLDSCALE_SHARED (the goldens;
# left out, visibly, where they are not there), SPREAD_F32, SPREAD_BF16 (files of parity --spread: in f32 for what the golden
# README has no figure for; without the second bf16 is left out).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-/tmp/gpu_ranks}
ranks=${RANKS:-2}
backend=${BACKEND:-cuda}
comm=${COMM:-$root/build/tests/test_comm}
parity=${PARITY:-$root/build/tests/parity}
golden=${FOLDSCALE_SHARED:-$root/../shared}/golden/tiny
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
[[ -x $comm && -x $parity ]] || { echo "gpu_ranks: no $comm or $parity (build them: ninja -C build)" >&2; exit 2; }
mkdir -p "$out"
: >"$out/summary.txt"
failures=0

# How it should end (0: well), seconds that it may take, name, command.
run() {
    local wanted=$1 limit=$2 name=$3 begin=$SECONDS code took verdict=ok
    shift 3
    timeout -k 5 "$limit" mpirun --oversubscribe -np "$ranks" "$@" >"$out/$name.txt" 2>&1
    code=$? took=$((SECONDS - begin))
    if [ $took -ge "$limit" ]; then
        verdict="NOT ENDED after $limit s"
    elif [ $code -eq 0 ]; then
        [ "$wanted" = 0 ] || verdict="ENDED WELL, though a rank did not"
    elif [ "$wanted" = 0 ]; then
        verdict=FAILED
    elif [ ! -s "$out/$name.txt" ]; then
        verdict="ENDED without a message"
    fi
    [ "$verdict" = ok ] || failures=$((failures + 1))
    echo "$name: $verdict, exit code $code, $took s: $(grep -E ' passed, |rank 1|FAIL' "$out/$name.txt" | head -n 1 | cut -c1-150)" |
        tee -a "$out/summary.txt"
}

run 0 120 worker "$comm" worker "$ranks" "$backend"
for dap in 1 "$ranks"; do # gradients are added over all ranks, or the model is shared out
    run 1 30 "fail.dap$dap" "$comm" fail "$dap" "$backend"
    run 1 30 "die.dap$dap" "$comm" die "$dap" "$backend"
done
if [ -f "$golden/config.json" ]; then
    spread=(${SPREAD_F32:+--spread "$SPREAD_F32"})
    run 0 120 parity.f32 "$parity" "$golden" --backend "$backend" --dtype f32 --switches all --dap "$ranks" "${spread[@]}"
    [ -z "${SPREAD_BF16:-}" ] || run 0 120 parity.bf16 "$parity" "$golden" --backend "$backend" --dtype bf16 \
        --switches all --dap "$ranks" --spread "$SPREAD_BF16"
else
    echo "parity: left out, no $golden (FOLDSCALE_SHARED)" | tee -a "$out/summary.txt"
fi
[ $failures -eq 0 ]
