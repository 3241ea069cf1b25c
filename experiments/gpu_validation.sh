#!/usr/bin/env bash
# Everything that `foldscale validate --own OUT` needs, on one or two GPUs in about 2 minutes: op times of three
# settings on one GPU each (all switches, none, one rank's share of DAP 8), from which the rest is predicted; whole steps under other
# switches; the local compute of DAP 2 and 4; with a second GPU also collectives, DAP 2 and DP 2.
#
#   experiments/gpu_validation.sh [OUT]     (default experiments/results/DEVICE-validation)
#
# Writes OUT/op_table.csv, step.csv, ablation.csv, dap_local.csv, two_gpus.csv, machine.yaml, collectives.csv, log_*.txt.
# Environment: BENCH (build/tests/bench_step), FOLDSCALE (build/foldscale), BACKEND and PRESET (cuda, initial_training;
# "cpu" and "tiny" rehearse it anywhere, as two ranks), EXPERIMENT (experiments/initial_training.yaml), REPEATS (5),
# PARTS ("single pairs": what runs on one GPU, what needs two; one after the other with the same OUT they leave all),
# GPUS (all; 1: the first one alone, the others being busy).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
foldscale=${FOLDSCALE:-$root/build/foldscale}
backend=${BACKEND:-cuda}
preset=${PRESET:-initial_training}
experiment=${EXPERIMENT:-$root/experiments/initial_training.yaml}
repeats=${REPEATS:-5}
parts=${PARTS:-single pairs}
wanted() { [[ " $parts " = *" $1 "* ]]; }
export NCCL_NVLS_ENABLE=0 # NVLink multicast stays off: not every machine allows it
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

fail() { echo "gpu_validation: $1" >&2; exit 1; }
[ -x "$bench" ] || fail "no $bench (build it: ninja -C build tests/bench_step)"
[ -x "$foldscale" ] || fail "no $foldscale (build it: ninja -C build foldscale)"
gpus=2 device=cpu
if [ "$backend" = cuda ]; then
    gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
    [ "$gpus" -gt 0 ] || fail "no GPU here (nvidia-smi lists none)"
    gpus=${GPUS:-$gpus}
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
fi
out=${1:-$root/experiments/results/$(tr ' ' '_' <<<"$device")-validation}
rm -rf "$out/work" && mkdir -p "$out/work"
! wanted single || rm -f "$out"/{op_table,step,ablation,dap_local}.csv "$out"/log_gpu*.txt
! wanted pairs || rm -f "$out"/{two_gpus,collectives}.csv "$out"/log_pair.txt
failures=0

# The tables of both GPUs as one each; also when a signal ends the measurement: what it has cost is kept.
join_tables() {
    local table part
    wanted single || return 0
    for table in op_table step ablation dap_local; do
        rm -f "$out/$table.csv"
        for part in "$out/work/$table".*.csv; do
            [ -s "$part" ] || continue
            if [ -s "$out/$table.csv" ]; then tail -n +2 "$part" >>"$out/$table.csv"; else cp "$part" "$out/$table.csv"; fi
        done
    done
}
trap join_tables EXIT
trap 'exit 1' TERM INT

# GPU, name of the table, limit in seconds, further arguments of the benchmark
step() {
    local gpu=$1 table=$2 limit=$3 begin=$SECONDS status
    shift 3
    CUDA_VISIBLE_DEVICES=$gpu timeout "$limit" "$bench" --backend "$backend" --preset "$preset" --repeats "$repeats" \
        --tune-cache "$out/work/tune$gpu.txt" --csv "$out/work/$table.$gpu.csv" "$@" >>"$out/log_gpu$gpu.txt" 2>&1
    status=$?
    echo "GPU $gpu, status $status, $((SECONDS - begin)) s: $*"
    return $status
}

# settings whose op times are fitted: GPU, limit in seconds, further arguments
fitted() {
    local gpu=$1 table=$2 limit=$3
    shift 3
    step "$gpu" "$table" "$limit" --op-table "$out/work/op_table.$gpu.csv" "$@" || touch "$out/work/failed"
}

first_lane() {
    fitted 0 step 40
    fitted 0 dap_local 40 --dap 8 --no-comm
    step 0 dap_local 30 --dap 2 --no-comm
    step 0 dap_local 30 --dap 4 --no-comm
}

second_lane() {
    fitted "$1" step 60 --switches none --precision bf16
    step "$1" ablation 40 --leave-out fused_attention
}

pair() {
    local limit=$1 begin=$SECONDS status
    shift
    timeout "$limit" mpirun -np 2 "$@" >>"$out/log_pair.txt" 2>&1
    status=$?
    echo "two ranks, status $status, $((SECONDS - begin)) s: $*"
    [ $status = 0 ] || failures=$((failures + 1))
}

pairs() {
    local steps=("$bench" --backend "$backend" --preset "$preset" --repeats "$repeats" --csv "$out/two_gpus.csv")
    pair 40 "${steps[@]}" --tune-cache "$out/work/tune1.txt" --dap 2
    pair 40 "$foldscale" calibrate "$experiment" --ranks 2 --no-profile --set "backend=$backend" --out "$out"
    pair 40 "${steps[@]}" --tune-cache "$out/work/tune1.txt" --dap 2 --leave-out comm_overlap
    pair 40 "${steps[@]}" --tune-cache "$out/work/tune0.txt" --dap 1
}

left_out() {
    for switch in gemm_batching fused_layernorm fused_pointwise overlap_clip; do step 0 ablation 20 --leave-out $switch; done
}

others() {
    local gpu=$1
    cp "$out/work/tune0.txt" "$out/work/tune$gpu.txt" 2>/dev/null
    for switch in fused_optimizer cuda_graph; do step "$gpu" ablation 20 --leave-out $switch; done
    step "$gpu" ablation 20 # the first setting again: how far runs of one setting differ
    step "$gpu" ablation 30 --precision bf16 --only gemm_batching --only fused_attention --only fused_layernorm \
        --only fused_pointwise
    step "$gpu" ablation 30 --precision bf16 --only gemm_batching --only fused_attention --only fused_layernorm \
        --only fused_pointwise --only fused_optimizer
}

second=$((gpus > 1 ? 1 : 0))
if [ "$second" = 0 ]; then
    first_lane
    second_lane 0
    left_out
    others 0
else
    command -v mpirun >/dev/null || fail "no mpirun for two ranks"
    ! wanted single || { first_lane & second_lane 1 & wait; }
    ! wanted pairs || pairs
    ! wanted single || { left_out & others 1 & wait; }
fi
[ ! -e "$out/work/failed" ] || fail "a setting that is fitted did not run: see $out/log_gpu*.txt"
join_tables
trap - EXIT
rm -r "$out/work"
echo "$SECONDS s; foldscale validate --own $out"
[ $failures = 0 ] || fail "$failures runs of two ranks failed: see $out/log_pair.txt"
