#!/usr/bin/env bash
# compute-sanitizer over the CUDA backend. memcheck, initcheck and synccheck: a whole step of the tiny model (forward
# without gradient, gradient step, optimizer; as graphs) in bf16 with all switches, in f32 with all and with none.
# racecheck, which is slower by far: every kernel of these steps, and those that only the full widths have (one block, a
# small crop), in its first launches, a run for each kernel, several at a time.
#
#   tests/gpu_sanitize.sh [OUT] [SECONDS]     (default /tmp/gpu_sanitize, 120: limit of each run)
#
# Writes OUT/NAME.log of each run and OUT/summary.txt. Exit code 1 if a run found something, failed or was cut off.
# Environment: BENCH, TIMELINE (build/tests/bench_step, libgpu_timeline.so, which lists the kernels), TOOLS (memcheck
# initcheck synccheck racecheck), AT_ONCE (8 runs of racecheck a GPU), LAUNCHES (4 of a kernel, the first), KERNELS
# (an expression: only those whose mangled name has it), CUDA_VISIBLE_DEVICES (all).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
timeline=${TIMELINE:-$root/build/tests/libgpu_timeline.so}
tools=${TOOLS:-memcheck initcheck synccheck racecheck}
launches=${LAUNCHES:-4}
fail() { echo "gpu_sanitize: $1" >&2; exit 2; }
command -v compute-sanitizer >/dev/null || fail "no compute-sanitizer (it comes with the CUDA toolkit)"
[ -x "$bench" ] && [ -f "$timeline" ] || fail "no $bench or $timeline (build them: ninja -C build)"
read -r -a gpus <<<"$(tr ',' ' ' <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ' ')}")"
[ ${#gpus[@]} -gt 0 ] || fail "no GPU here (nvidia-smi lists none)"
out=${1:-/tmp/gpu_sanitize}
limit=${2:-120}
mkdir -p "$out" && rm -f "$out"/*.log "$out"/*.status "$out"/kernels*

one() { # TOOL NAME ARGUMENTS...: on the GPU of this lane
    local tool=$1 log=$out/$1.$2.log begin=$SECONDS
    shift 2
    timeout -k 10 "$limit" compute-sanitizer --tool "$tool" --print-limit 10 --error-exitcode 9 "$@" >"$log" 2>&1
    echo "$? $((SECONDS - begin))" >"${log%.log}.status"
}
tiny="$bench --backend cuda --repeats 1 --preset tiny"
# One line a run: tool, name, arguments; a blank at its end would join the next one to it (xargs).
steps() {
    local tool
    for tool in $tools; do
        [ "$tool" = racecheck ] && continue
        echo "$tool bf16 $tiny"
        echo "$tool f32 $tiny --precision f32"
        echo "$tool f32_none $tiny --precision f32 --switches none"
    done
}
# Kernels of our own that a command launches, but for those listed before: one line of racecheck each. Without graphs, as
# launches are counted.
races_of() { # NAME COMMAND...
    local name=$1 kernel short
    shift
    CUDA_INJECTION64_PATH=$timeline GPU_TIMELINE=$out/kernels.$name "$@" >"$out/kernels.$name.log" 2>&1 ||
        fail "the benchmark failed (see $out/kernels.$name.log)"
    awk '{ print $7 }' "$out/kernels.$name".[0-9]* | grep '^_Z' | grep -E "${KERNELS:-.}" | grep -v -e cutlass -e cublas |
        sort -u | grep -vxF -f "$out/kernels" >"$out/kernels.new"
    cat "$out/kernels.new" >>"$out/kernels"
    while read -r kernel; do
        short=$(sed -E 's/.*[0-9]([a-z][a-z0-9_]*_kernel).*/\1/' <<<"$kernel")
        echo "racecheck $name.$short.$((++number)) --kernel-name kne=$kernel --launch-count $launches --racecheck-num-workers 2 $*"
    done <"$out/kernels.new"
}
races() {
    [[ " $tools " = *" racecheck "* ]] || return 0
    local number=0
    echo none >"$out/kernels"
    races_of bf16 $tiny --leave-out cuda_graph
    races_of f32 $tiny --precision f32 --leave-out cuda_graph
    races_of f32_none $tiny --precision f32 --switches none
    races_of full "$bench" --backend cuda --repeats 1 --n-res 64 --evo-blocks 1 --leave-out cuda_graph
}
side_by_side() { # RUNS-A-GPU
    xargs -r -P $((${#gpus[@]} * $1)) -L 1 --process-slot-var=LANE \
        bash -c 'gpus=($list); CUDA_VISIBLE_DEVICES=${gpus[$((LANE % ${#gpus[@]}))]} one "$@"' _
}
export -f one
export out limit
list="${gpus[*]}"
export list
steps | side_by_side 2 || exit 2
races | side_by_side "${AT_ONCE:-8}" || exit 2

for status in "$out"/*.status; do
    read -r code seconds <"$status"
    log=${status%.status}.log
    what=$(basename "${log%.log}")
    case $code in 124 | 137) verdict="cut off after $limit s" ;; *) verdict=$(tail -n 1 "$log") ;; esac
    echo "$what: exit code $code, $seconds s: $verdict"
done | sort -V | tee "$out/summary.txt"
! grep -qv 'exit code 0,' "$out/summary.txt"
