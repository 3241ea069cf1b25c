#!/usr/bin/env bash
# What each optimization is worth on one GPU: the full-size step (crop 256, 124 + 4 MSA rows, 1024 extra rows, 4
# templates, batch 1, dropout on, optimizer included; mean over recycling 0 to 3), each switch left out; from bf16 alone
# ("base") each further switch alone and all of them one after the other; nothing at all in f32. Every row has REPEATS
# repeats with their spread, phases, ops, kernels and memory. Also one Evoformer block alone; every op against its floor;
# block checkpointing; the local compute of DAP 2, 4 and 8 (collectives left out).
#
#   experiments/gpu_ablation.sh [OUT] [SECONDS]     (default experiments/results/DEVICE-ablation, 300)
#
# Started again with the same OUT it measures what is missing of this build. No setting starts after SECONDS. A repeat of
# a setting is one forward without gradient, one gradient step and one optimizer step (0.26 s with all switches, 1.5 s
# without fused attention, 1.7 s with bf16 alone, 3.5 s in f32 without any), and each takes one or two more to warm up:
# about 55 s for what is left out, 100 s for alone and cumulative, 30 s for f32 without switches, 60 s for the rest, by
# the step times of an H200 at commit b69352a. Two GPUs share the two long parts.
#
# Writes OUT/ablation.csv, step.csv, dap_local.csv, ops.csv, block_ops.csv (a row of the first three has its commit,
# device and time), ablation.txt, provenance.txt, log.GPU.txt. Environment: BENCH (build/tests/bench_step), PRESET and BACKEND
# (initial_training, cuda; "tiny" and "cpu" rehearse it anywhere), REPEATS (5), PARTS ("step local left_out build_up none"),
# GPUS (all; 1: the first one alone, the others being busy).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
preset=${PRESET:-initial_training}
backend=${BACKEND:-cuda}
repeats=${REPEATS:-5}
parts=${PARTS:-step local left_out build_up none}
budget=${2:-300}

fail() { echo "gpu_ablation: $1" >&2; exit 1; }
[ -x "$bench" ] || fail "no $bench (build it: ninja -C build tests/bench_step)"
device=cpu gpus=1
if [ "$backend" = cuda ]; then
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
    [ "${gpus:-0}" -gt 0 ] || fail "no GPU here (nvidia-smi lists none)"
    gpus=${GPUS:-$gpus}
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
fi
out=${1:-$root/experiments/results/$(tr ' ' '_' <<<"$device")-ablation}
mkdir -p "$out/parts"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

{
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "command: $0 $*"
    echo "commit: $(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)"
    uname -sr
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv 2>/dev/null || true
} >>"$out/provenance.txt"

started=$SECONDS
left() { echo $((budget - (SECONDS - started))); }
wanted() { [[ " $parts " = *" $1 "* ]]; }
measure() { # GPU, arguments of the benchmark
    local gpu=$1
    shift
    CUDA_VISIBLE_DEVICES=$gpu timeout -k 10 $(($(left) + 60)) "$bench" --backend "$backend" --preset "$preset" \
        --tune-cache "$out/parts/tune$gpu.txt" --repeats "$repeats" --resume --budget "$(left)" "$@" >>"$out/log.$gpu.txt" 2>&1
}
# GPU, further arguments of the benchmark. One that hangs or fails does not take the others with it; what a study lacks
# then is tried once more, by a process that holds nothing of the settings before.
run() {
    local gpu=$1 begin=$SECONDS status=0
    shift
    [ "$(left)" -gt 0 ] || { echo "left for another run: $*"; return 0; }
    measure "$gpu" "$@" || status=$?
    if [ $status -gt 0 ] && [[ " $* " = *" --study "* ]] && [ "$(left)" -gt 0 ]; then
        echo "status $status, once more: $* (see $out/log.$gpu.txt)"
        status=0
        measure "$gpu" "$@" || status=$?
    fi
    [ $status -eq 0 ] || echo "failed with status $status: $* (see $out/log.$gpu.txt)"
    echo "GPU $gpu, $((SECONDS - begin)) s: $*"
}

if wanted step; then
    # the tables of ops are there once: those of the first build
    ops=(--csv "$out/step.csv")
    [ -s "$out/ops.csv" ] || run 0 --block --ops --ops-csv "$out/ops.csv" "${ops[@]}"
    [ -s "$out/block_ops.csv" ] || run 0 --no-step --block --ops --ops-csv "$out/block_ops.csv"
    run 0 --checkpoint block "${ops[@]}"
    run 0 --checkpoint selective "${ops[@]}"
fi
if wanted local; then
    for dap in 1 2 4 8; do run 0 --dap "$dap" --no-comm --block --csv "$out/dap_local.csv"; done
fi
# settings that exceed the device's memory without checkpointing run with it; their rows say so
left_out() { ! wanted left_out || run "$1" --study leave-out --fit --csv "$out/parts/left_out.csv"; }
build_up() {
    ! wanted build_up || run "$1" --study cumulative,alone --keep bf16 --fit --csv "$out/parts/build_up.csv"
    ! wanted none || run "$1" --switches none --precision f32 --fit --csv "$out/parts/none.csv"
}
if [ "$gpus" -gt 1 ]; then
    left_out 0 &
    build_up 1
    wait
else
    left_out 0
    build_up 0
fi
for part in left_out build_up none; do cat "$out/parts/$part.csv" 2>/dev/null || true; done |
    awk '/^commit,/ && NR > 1 { next } { print }' >"$out/ablation.csv"

echo
echo "$device, ${repeats} repeats, $((SECONDS - started)) s; step of all switches on = 1; share of a mean step in its phases"
awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) c[$i] = i; next }
    NR == 2 { all = $c["step_s"] }
    { step = $c["step_s"]; rest = step - 1.5 * $c["nograd_s"] - $c["forward_s"] - $c["backward_s"] - $c["optimizer_s"]
      printf "%-42s %8.1f ms  sd %5.2f  %5.2fx  forward-only %4.1f %%  forward %4.1f %%  backward %4.1f %%  optimizer %4.1f %%  rest %4.1f %%  ops %6d  kernels %6d  %5.1f GiB  %s, %d repeats\n",
      $c["setting"], 1e3 * step, 1e3 * $c["step_sd_s"], step / all, 150 * $c["nograd_s"] / step, 100 * $c["forward_s"] / step,
      100 * $c["backward_s"] / step, 100 * $c["optimizer_s"] / step, 100 * rest / step,
      1.5 * $c["nograd_ops"] + $c["grad_ops"] + $c["optimizer_ops"], 1.5 * $c["nograd_kernels"] + $c["grad_kernels"] + $c["optimizer_kernels"],
      ($c["store_bytes"] + $c["workspace_bytes"]) / 2^30, $c["checkpoint"] == "none" ? "nothing recomputed" : $c["checkpoint"] " recomputed", $c["repeats"] }' \
    "$out/ablation.csv" | tee "$out/ablation.txt"
