#!/usr/bin/env bash
# What each optimization is worth on one GPU: the full-size step (crop 256, 124 + 4 MSA rows, 1024 extra rows, 4
# templates, batch 1, dropout on, optimizer included; mean over recycling 0 to 3), each switch left out, each alone, and
# cumulatively, 5 repeats with their spread, phases, number of ops and memory; one Evoformer block alone; every op
# against its floor; block checkpointing; the local compute of DAP 2, 4 and 8 (collectives left out). About 4 minutes.
#
#   experiments/gpu_ablation.sh [OUT] [SECONDS]     (default experiments/results/DEVICE-ablation, 300)
#
# Writes OUT/ablation.csv, step.csv, dap_local.csv, ops.csv, block_ops.csv (a row of the first three has its commit,
# device and time), provenance.txt, log.txt. Environment: BENCH (build/tests/bench_step), PRESET and BACKEND
# (initial_training, cuda; "tiny" and "cpu" rehearse it anywhere), REPEATS (5).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
preset=${PRESET:-initial_training}
backend=${BACKEND:-cuda}
repeats=${REPEATS:-5}
budget=${2:-300}

fail() { echo "gpu_ablation: $1" >&2; exit 1; }
[ -x "$bench" ] || fail "no $bench (build it: ninja -C build tests/bench_step)"
device=cpu
if [ "$backend" = cuda ]; then
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
    [ -n "$device" ] || fail "no GPU here (nvidia-smi lists none)"
fi
out=${1:-$root/experiments/results/$(tr ' ' '_' <<<"$device")-ablation}
mkdir -p "$out"
rm -f "$out"/{ablation,step,dap_local}.csv
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

{
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "command: $0 $*"
    echo "commit: $(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)"
    uname -sr
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv 2>/dev/null || true
} >"$out/provenance.txt"

started=$SECONDS
run() { "$bench" --backend "$backend" --preset "$preset" --tune-cache "$out/tune.txt" "$@" 2>&1 | tee -a "$out/log.txt"; }
: >"$out/log.txt"

run --repeats "$repeats" --block --ops --ops-csv "$out/ops.csv" --csv "$out/step.csv"
run --repeats "$repeats" --no-step --block --ops --ops-csv "$out/block_ops.csv"
run --repeats "$repeats" --checkpoint block --csv "$out/step.csv"
run --repeats "$repeats" --checkpoint selective --csv "$out/step.csv"
for dap in 1 2 4 8; do
    run --repeats "$repeats" --dap "$dap" --no-comm --block --csv "$out/dap_local.csv"
done
left=$((budget - (SECONDS - started)))
[ "$left" -gt 20 ] || left=20
# settings that exceed the device's memory without checkpointing run with it; their rows say so
run --repeats "$repeats" --study cumulative,alone,leave-out --fit --budget "$left" --csv "$out/ablation.csv"

echo
echo "$device, ${repeats} repeats, $((SECONDS - started)) s; step of all switches on = 1"
awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) c[$i] = i; next }
    NR == 2 { all = $c["step_s"] }
    { printf "%-44s %9.1f ms  sd %6.2f  %5.2fx  forward-only %8.1f  forward %8.1f  backward %8.1f  optimizer %7.2f  ops %6d  kernels %6d  %6.1f GiB  %s\n",
      $c["setting"], 1e3 * $c["step_s"], 1e3 * $c["step_sd_s"], $c["step_s"] / all, 1e3 * $c["nograd_s"], 1e3 * $c["forward_s"],
      1e3 * $c["backward_s"], 1e3 * $c["optimizer_s"], $c["grad_ops"], $c["grad_kernels"], ($c["store_bytes"] + $c["workspace_bytes"]) / 2^30,
      $c["checkpoint"] }' "$out/ablation.csv" | tee "$out/ablation.txt"
