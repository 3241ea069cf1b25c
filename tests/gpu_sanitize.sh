#!/usr/bin/env bash
# compute-sanitizer over the CUDA backend: memcheck, initcheck and synccheck of a whole step of the tiny model (forward
# without gradient, gradient step, optimizer; as graphs) in bf16 with all switches, in f32 with all and with none;
# racecheck, which is slower by far, of the same steps with one Evoformer block (launched one by one, in slices of so
# many launches) and of every op's check cases (bench_cuda_trunk --checks, in parts), several runs at a time.
#
#   tests/gpu_sanitize.sh [OUT] [SECONDS]     (default /tmp/gpu_sanitize, 120: limit of each run)
#
# Writes OUT/NAME.log of each run and OUT/summary.txt; runs that ended without a finding in OUT are not repeated.
# Exit code 1 if a run found something, failed or was cut off.
# Environment: BENCH, CHECKS (build/tests/bench_step, bench_cuda_trunk), SANITIZER (compute-sanitizer; racecheck wants
# 2026.3, of CUDA 13.4, or later: before 2026.1 it reported barriers of a warpgroup as hazards), TOOLS (memcheck
# initcheck synccheck racecheck), RACES (steps cases), SLICE (40 launches of a step), PARTS (120: runs that share the
# cases), NAMES (parts of names of cases, without blanks: only those), AT_ONCE (8 runs of racecheck a GPU), UNTIL
# (seconds after which no further run begins), CUDA_VISIBLE_DEVICES (all).
#
# Racecheck (2026.4) does not carry what __syncwarp() orders on into what one lane does for its warp, and reports some
# cases for it. With CHECKS of a build with CMAKE_CUDA_FLAGS=-DFOLDSCALE_LANES_ARRIVE, in which every lane arrives at
# barriers by itself, those reports are gone (experiments/results/h200/sanitize.txt).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
checks=${CHECKS:-$root/build/tests/bench_cuda_trunk}
sanitizer=${SANITIZER:-compute-sanitizer}
tools=${TOOLS:-memcheck initcheck synccheck racecheck}
kinds=${RACES:-steps cases}
slice=${SLICE:-40}
parts=${PARTS:-120}
fail() { echo "gpu_sanitize: $1" >&2; exit 2; }
command -v "$sanitizer" >/dev/null || fail "no $sanitizer (it comes with the CUDA toolkit)"
[ -x "$bench" ] && [ -x "$checks" ] || fail "no $bench or $checks (build them: ninja -C build)"
[[ " $tools " != *" racecheck "* || $("$sanitizer" --help) = *--dump-kernel-launches* ]] ||
    fail "$sanitizer is too old for racecheck (2026.3 or later is needed; TOOLS leaves racecheck out)"
read -r -a gpus <<<"$(tr ',' ' ' <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ' ')}")"
[ ${#gpus[@]} -gt 0 ] || fail "no GPU here (nvidia-smi lists none)"
out=${1:-/tmp/gpu_sanitize}
limit=${2:-120}
until=${UNTIL:-1000000}
begun=$(date +%s)
mkdir -p "$out"

one() { # TOOL NAME ARGUMENTS...: on the GPU of this lane
    local tool=$1 log=$out/$1.$2.log begin=$SECONDS
    shift 2
    grep -qs '^0 ' "${log%.log}.status" && return 0
    [ $(($(date +%s) - begun)) -lt "$until" ] || return 0
    rm -f "${log%.log}.status"
    timeout -k 10 "$limit" "$sanitizer" --tool "$tool" --print-limit 10 --error-exitcode 9 "$@" >"$log" 2>&1
    echo "$? $((SECONDS - begin))" >"${log%.log}.status"
}
side_by_side() { # RUNS-A-GPU; one line a run: tool, name, arguments (a blank at its end would join the next one to it)
    xargs -r -P $((${#gpus[@]} * $1)) -L 1 --process-slot-var=LANE \
        bash -c 'gpus=($list); CUDA_VISIBLE_DEVICES=${gpus[$((LANE % ${#gpus[@]}))]} one "$@"' _
}
export -f one
export out limit begun until sanitizer
list="${gpus[*]}"
export list

settings=("bf16" "f32 --precision f32" "f32_none --precision f32 --switches none")
steps() {
    local tool setting
    for tool in $tools; do
        [ "$tool" = racecheck ] && continue
        for setting in "${settings[@]}"; do
            echo "$tool ${setting%% *} $bench --backend cuda --preset tiny --repeats 1$(grep -o ' .*' <<<"$setting")"
        done
    done
}
# Launches outside of a slice run unwatched; how many there are is counted in a run that watches the first alone.
race_steps() {
    local setting name step count first
    for setting in "${settings[@]}"; do
        name=${setting%% *}
        step="$bench --backend cuda --preset tiny --evo-blocks 1 --repeats 0 --leave-out cuda_graph$(grep -o ' .*' <<<"$setting")"
        count=$($sanitizer --tool memcheck --launch-count 1 --dump-kernel-launches --print-limit 0 --show-backtrace no $step | tee "$out/launches.$name.log" |
            grep -c 'Launch #')
        [ "$count" -gt 0 ] || fail "no launch in $step (see $out/launches.$name.log)"
        for ((first = 0; first < count; first += slice)); do
            echo "racecheck $name.$first --racecheck-num-workers 2 --launch-skip $first --launch-count $slice $step"
        done
    done
}
# Without the kernels of the library, which take most of the time.
race_cases() {
    local part ours="--kernel-name-exclude regex=cutlass|cublas|nvjet|xmma|gemm|gemv"
    for ((part = 0; part < parts; part++)); do
        echo "racecheck part$part --racecheck-num-workers 2 $ours $checks --checks --part $part/$parts${NAMES:+ $NAMES}"
    done
}
steps | side_by_side 2
if [[ " $tools " = *" racecheck "* ]]; then
    runs=""
    [[ " $kinds " != *" steps "* ]] || runs+=$(race_steps)$'\n' || exit 2
    [[ " $kinds " != *" cases "* ]] || runs+=$(race_cases)
    side_by_side "${AT_ONCE:-8}" <<<"$runs"
fi

for status in "$out"/*.status; do
    read -r code seconds <"$status"
    log=${status%.status}.log
    what=$(basename "${log%.log}")
    case $code in 124 | 137) verdict="cut off after $limit s" ;; *) verdict=$(tail -n 1 "$log") ;; esac
    case $what in racecheck.part*) what+=", $(grep -c ' ok$' "$log") results compared" ;; esac
    echo "$what: exit code $code, $seconds s: $verdict"
done | sort -V | tee "$out/summary.txt"
! grep -qv 'exit code 0,' "$out/summary.txt"
