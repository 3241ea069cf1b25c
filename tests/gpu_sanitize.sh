#!/usr/bin/env bash
# compute-sanitizer over the CUDA backend: memcheck, initcheck and synccheck of a whole step of the tiny model (forward
# without gradient, gradient step, optimizer; as graphs) in bf16 with all switches, in f32 with all and with none;
# racecheck, which is slower by far, of the same steps with one Evoformer block (launched one by one, in slices of so
# many launches) and of every op's check cases (bench_cuda_trunk --checks, in parts), several runs at a time.
#
#   tests/gpu_sanitize.sh [OUT] [SECONDS]     (default /tmp/gpu_sanitize, 120: limit of each run)
#
# Writes OUT/NAME.log of each run and OUT/summary.txt. Exit code 1 if a run found something, failed, was cut off or not
# begun, or racecheck was left out because the tool is too old: it wants compute-sanitizer 2026.3, of CUDA 13.4, or
# later (before 2026.1 it reported barriers of a warpgroup as hazards).
# Environment: BENCH, CHECKS (build/tests/bench_step, bench_cuda_trunk), SANITIZER (compute-sanitizer), TOOLS (memcheck
# initcheck synccheck racecheck), RACES (steps cases), SLICE (40 launches of a step), PARTS (120: runs that share the
# cases), ONLY (numbers of parts: only those), NAMES (parts of names of cases, without blanks: only those), AT_ONCE (8
# runs of racecheck a GPU), UNTIL (seconds after which no further run begins), RESUME (1: what OUT has of the same
# command and build without a finding is not repeated), CUDA_VISIBLE_DEVICES (all).
#
# Racecheck (2026.4) does not carry what __syncwarp() orders on into what one lane does for its warp, and reports some
# cases for it. With CHECKS of a build with CMAKE_CUDA_FLAGS=-DFOLDSCALE_LANES_ARRIVE, in which every lane arrives where
# else one does for its warp, all but one of those reports are gone (experiments/results/h200/sanitize.txt).
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
only_words() { # NAME GIVEN KNOWN
    local word
    for word in $2; do [[ " $3 " = *" $word "* ]] || fail "$1 has \"$word\" (expected some of: $3)"; done
}
only_words TOOLS "$tools" "memcheck initcheck synccheck racecheck"
only_words RACES "$kinds" "steps cases"
command -v "$sanitizer" >/dev/null || fail "no $sanitizer (it comes with the CUDA toolkit)"
[[ -x $bench && -x $checks ]] || fail "no $bench or $checks (build them: ninja -C build)"
read -r -a gpus <<<"$(tr ',' ' ' <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ' ')}")"
[ ${#gpus[@]} -gt 0 ] || fail "no GPU here (nvidia-smi lists none)"
out=${1:-/tmp/gpu_sanitize}
limit=${2:-120}
until=${UNTIL:-1000000}
begun=$(date +%s)
left_out=""
mkdir -p "$out"
[ -n "${RESUME:-}" ] || rm -f "$out"/{memcheck,initcheck,synccheck,racecheck}.*.{log,status}
if [[ " $tools " = *" racecheck "* && $("$sanitizer" --help) != *--dump-kernel-launches* ]]; then
    left_out="racecheck: left out, $sanitizer is too old (it takes 2026.3, of CUDA 13.4, or later)"
    tools=${tools//racecheck/}
fi

# A result counts for the same command and the same binaries.
built=$(cksum "$bench" "$checks" | cksum)
one() { # TOOL NAME ARGUMENTS...: on the GPU of this lane
    local tool=$1 log=$out/$1.$2.log status begin=$SECONDS made made_before made_code=-
    shift 2
    status=${log%.log}.status made="$sanitizer $tool $* $built"
    { read -r made_code _ && read -r made_before; } 2>/dev/null <"$status" || made_code=-
    [ "$made_code" = 0 ] && [ "$made_before" = "$made" ] && return 0
    rm -f "$status"
    [ $(($(date +%s) - begun)) -lt "$until" ] || return 0
    timeout -k 10 "$limit" "$sanitizer" --tool "$tool" --print-limit 10 --error-exitcode 9 "$@" >"$log" 2>&1
    printf '%s\n' "$? $((SECONDS - begin))" "$made" >"$status"
}
side_by_side() { # RUNS-A-GPU; one line a run: tool, name, arguments (a blank at its end would join the next one to it)
    # shellcheck disable=SC2016 # for the inner shell
    tee -a "$out/runs.txt" | xargs -r -P $((${#gpus[@]} * $1)) -L 1 --process-slot-var=LANE \
        bash -c 'gpus=($list); CUDA_VISIBLE_DEVICES=${gpus[$((LANE % ${#gpus[@]}))]} one "$@"' _
}
export -f one
export out limit begun until sanitizer built
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
        step="$bench --backend cuda --preset tiny --evo-blocks 1 --repeats 0 --leave-out cuda_graph"
        step+=$(grep -o ' .*' <<<"$setting")
        # shellcheck disable=SC2086 # words
        timeout -k 10 "$limit" "$sanitizer" --tool memcheck --launch-count 1 --dump-kernel-launches --print-limit 0 \
            --show-backtrace no $step >"$out/launches.$name.log" 2>&1 || fail "a step failed: $out/launches.$name.log"
        count=$(grep -c 'Launch #' "$out/launches.$name.log") || fail "no launch in $out/launches.$name.log"
        for ((first = 0; first < count; first += slice)); do
            echo "racecheck $name.$first --racecheck-num-workers 2 --launch-skip $first --launch-count $slice $step"
        done
    done
}
# Without the kernels of the library, which take most of the time.
race_cases() {
    local part ours="--kernel-name-exclude regex=cutlass|cublas|nvjet|xmma|gemm|gemv"
    for part in ${ONLY:-$(seq 0 $((parts - 1)))}; do
        echo "racecheck part$part --racecheck-num-workers 2 $ours $checks --checks --part $part/$parts${NAMES:+ $NAMES}"
    done
}
rm -f "$out/runs.txt"
steps | side_by_side 2
if [[ " $tools " = *" racecheck "* ]]; then
    runs=""
    [[ " $kinds " != *" steps "* ]] || runs+=$(race_steps)$'\n' || exit 2
    [[ " $kinds " != *" cases "* ]] || runs+=$(race_cases)
    side_by_side "${AT_ONCE:-8}" <<<"$runs"
fi

verdict() { # TOOL NAME
    local log=$out/$1.$2.log status=$out/$1.$2.status code=- seconds=0 says="not begun" fine=no
    if [ -f "$status" ]; then
        read -r code seconds <"$status"
        says=$(tail -n 1 "$log")
        [ "$code" = 0 ] && [[ $1 != racecheck || $says = *" 0 hazards "* ]] && fine=yes
        case $code in 124 | 137) says="cut off after $limit s" ;; esac
        [[ $2 != part* ]] || says+=", $(grep -c ' ok$' "$log") results compared"
    fi
    [ $fine = yes ] || touch "$out/found"
    echo "$1.$2: exit code $code, $seconds s: $says"
}
rm -f "$out/found"
{
    [ -z "$left_out" ] || { echo "$left_out"; touch "$out/found"; }
    grep . "$out/runs.txt" | while read -r tool name _; do verdict "$tool" "$name"; done | sort -V
} | tee "$out/summary.txt"
[ -s "$out/summary.txt" ] || fail "nothing to do"
[ ! -e "$out/found" ]
