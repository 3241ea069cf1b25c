#!/usr/bin/env bash
# compute-sanitizer over the CUDA backend: memcheck, initcheck and synccheck of a whole step of the tiny model (forward
# without gradient, gradient step, optimizer; as graphs) in bf16 with all switches, in f32 with all and with none;
# racecheck, which is slower by far, of every op's check cases (bench_cuda_trunk --checks), several runs at a time.
#
#   tests/gpu_sanitize.sh [OUT] [SECONDS]     (default /tmp/gpu_sanitize, 120: limit of each run)
#
# Writes OUT/NAME.log of each run and OUT/summary.txt. Exit code 1 if a run found something, failed or was cut off.
# Environment: BENCH, CHECKS (build/tests/bench_step, bench_cuda_trunk), TOOLS (memcheck initcheck synccheck racecheck),
# PARTS (64: runs that share the cases of racecheck), AT_ONCE (8 of these a GPU), RACE (parts of names of cases, without
# blanks: only those), CUDA_VISIBLE_DEVICES (all). One H200 needs 10 s for a step, but minutes for a part of racecheck,
# more with many at once.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
checks=${CHECKS:-$root/build/tests/bench_cuda_trunk}
tools=${TOOLS:-memcheck initcheck synccheck racecheck}
parts=${PARTS:-64}
fail() { echo "gpu_sanitize: $1" >&2; exit 2; }
command -v compute-sanitizer >/dev/null || fail "no compute-sanitizer (it comes with the CUDA toolkit)"
[ -x "$bench" ] && [ -x "$checks" ] || fail "no $bench or $checks (build them: ninja -C build)"
read -r -a gpus <<<"$(tr ',' ' ' <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ' ')}")"
[ ${#gpus[@]} -gt 0 ] || fail "no GPU here (nvidia-smi lists none)"
out=${1:-/tmp/gpu_sanitize}
limit=${2:-120}
mkdir -p "$out" && rm -f "$out"/*.log "$out"/*.status

one() { # TOOL NAME COMMAND...: on the GPU of this lane
    local tool=$1 log=$out/$1.$2.log begin=$SECONDS
    shift 2
    timeout -k 10 "$limit" compute-sanitizer --tool "$tool" --print-limit 10 --error-exitcode 9 "$@" >"$log" 2>&1
    echo "$? $((SECONDS - begin))" >"${log%.log}.status"
}
# One line a run: tool, name, command; a blank at its end would join the next one to it (xargs).
steps() {
    local tool
    for tool in $tools; do
        [ "$tool" = racecheck ] && continue
        echo "$tool bf16 $bench --backend cuda --preset tiny --repeats 1"
        echo "$tool f32 $bench --backend cuda --preset tiny --repeats 1 --precision f32"
        echo "$tool f32_none $bench --backend cuda --preset tiny --repeats 1 --precision f32 --switches none"
    done
}
races() {
    [[ " $tools " = *" racecheck "* ]] || return 0
    for ((part = 0; part < parts; part++)); do echo "racecheck part$part $checks --checks --part $part/$parts${RACE:+ $RACE}"; done
}
side_by_side() { # RUNS-A-GPU
    xargs -r -P $((${#gpus[@]} * $1)) -L 1 --process-slot-var=LANE \
        bash -c 'gpus=($list); CUDA_VISIBLE_DEVICES=${gpus[$((LANE % ${#gpus[@]}))]} one "$@"' _
}
export -f one
export out limit
list="${gpus[*]}"
export list
steps | side_by_side 2
races | side_by_side "${AT_ONCE:-8}"

for status in "$out"/*.status; do
    read -r code seconds <"$status"
    log=${status%.status}.log
    what=$(basename "${log%.log}")
    case $code in 124 | 137) verdict="cut off after $limit s" ;; *) verdict=$(tail -n 1 "$log") ;; esac
    case $what in racecheck*) what+=", $(grep -c ' ok$' "$log") results compared" ;; esac
    echo "$what: exit code $code, $seconds s: $verdict"
done | sort -V | tee "$out/summary.txt"
! grep -qv 'exit code 0,' "$out/summary.txt"
