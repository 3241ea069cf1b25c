#!/usr/bin/env bash
# Strong scaling on one host with 2, 4 or 8 GPUs: the full-size step at every DP x DAP that fits (1x1, 2x1, 1x2, 4x1, 2x2,
# 1x4, 8x1, 4x2, 2x4, 1x8; all switches on), each switch left out at the largest DAP (overlap among them), step times of
# every rank, latency and bandwidth of every collective on 2, 4, 8 ranks, one, two and four groups at a time, and the
# errors of the prediction for 4 and 8 GPUs that was made from one and two GPUs before anything larger ran: times of all
# ops of one rank's share of DAP 1, 2, 4 and 8 (each on one GPU, collectives left out), collectives of two ranks, and the
# steps of 1x1, 2x1 and 1x2.
#
#   experiments/strong_scaling.sh [OUT] [SECONDS]            (default experiments/results/DEVICE-scaling, 600)
#   experiments/strong_scaling.sh --rehearse [OUT] [SECONDS] (8 MPI ranks on the CPU, tiny model)
#
# Every point is a run of its own; started again with the same OUT it goes on where it stopped, and with more GPUs it
# fills in what an earlier run left. No run takes longer than 150 s, the budget is never exceeded by more than 30 s. Writes
# OUT/runs.csv (a row a point), points/*/steps.csv (a row a step and rank), machine/, ops/, collectives.csv, prediction/
# (fit.json, predictions.csv, made_at.txt), errors.csv, scaling.txt, log.txt.
# Environment: FOLDSCALE (build/foldscale), BENCH (build/tests/bench_step), REPEATS (1), SET (further "--set A.B=C").
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
foldscale=${FOLDSCALE:-$root/build/foldscale}
bench=${BENCH:-$root/build/tests/bench_step}
fail() { echo "strong_scaling: $1" >&2; exit 1; }

rehearse=0
if [ "${1:-}" = --rehearse ]; then rehearse=1; shift; fi
[ -x "$foldscale" ] || fail "no $foldscale (build it: ninja -C build foldscale)"
[ -x "$bench" ] || fail "no $bench (build it: ninja -C build tests/bench_step)"
command -v mpirun >/dev/null || fail "no mpirun (Debian: apt-get install openmpi-bin)"
if [ $rehearse = 1 ]; then
    device=rehearsal
    gpus=8
else
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' ' '_') || true
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
    [ "${gpus:-0}" -ge 2 ] || fail "this needs 2, 4 or 8 GPUs of one host (found ${gpus:-0}); --rehearse runs on CPU ranks"
fi
out=${1:-$root/experiments/results/$device-scaling}
budget=${2:-600}
most=1
while [ $((most * 2)) -le "$gpus" ] && [ $most -lt 8 ]; do most=$((most * 2)); done
mkdir -p "$out/prediction" "$out/work"
started=$SECONDS
log=$out/log.txt
say() { printf '%s  %4d s  %s\n' "$(date -u +%H:%M:%S)" $((SECONDS - started)) "$1" | tee -a "$log"; }
over() { [ $((SECONDS - started)) -ge "$budget" ]; }
bounded() { # what is left of the budget, at least 30 s, at most 150 s; a run that hangs leaves nothing behind
    local left=$((budget - (SECONDS - started)))
    timeout -k 10 $((left < 30 ? 30 : left < 150 ? left : 150)) "$@" >>"$log" 2>&1
}

export NCCL_NVLS_ENABLE=0 # NVLink multicast stays off: not every lent machine allows it
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
read -r -a common <<<"${SET:-}"
repeats=${REPEATS:-1}
common+=(--set "study.repeats=$repeats" --set eval.every=0 --set switches.async_eval=off --set train.seed=11)
experiment=$root/experiments/initial_training.yaml
if [ $rehearse = 1 ]; then
    common+=(--set model.preset=tiny --set backend=cpu --set switches.bf16=off --set parallel.threads=1 --set data.workers=1)
    switches=gemm_batching,fused_attention,fused_layernorm,fused_pointwise,fused_optimizer,comm_overlap,overlap_clip,nonblocking_loader
    timed=(--backend cpu --preset tiny --precision f32 --threads 1)
    at_once=1
else
    timed=(--backend cuda)
    at_once=$gpus
    switches=gemm_batching,fused_attention,fused_layernorm,fused_pointwise,fused_optimizer,bf16,comm_overlap,overlap_clip,cuda_graph,nonblocking_loader
    workers=$out/work/workers # a study keeps them, with however many GPUs it goes on
    [ -f "$workers" ] || echo $(($(nproc) / gpus > 2 ? $(nproc) / gpus - 1 : 1)) >"$workers"
    common+=(--set "data.workers=$(cat "$workers")" --set "parallel.tune_cache=$out/work/tune.txt")
fi
# the recycling counts 0..3 come in shuffled fours: one four to warm up, two to measure
common+=(--set "study.switches=[$switches]" --set study.steps=12 --set study.warmup=4 --set train.recycling=3)

{
    say "$device, $gpus GPUs, points up to $most ranks; $(uname -sr); commit $(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)"
    [ $rehearse = 1 ] || nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv >>"$log"
    [ $rehearse = 1 ] || nvidia-smi topo -m >>"$log" 2>/dev/null || true
}

# --- data: chains of training length, so that the step and not the features are measured
pack=$out/work/train.pack
if [ ! -f "$pack" ]; then
    "$foldscale" data synth "$out/work/chains" --chains 24 --seed 7 --length-median 280 --length-min 256 --length-max 400 \
        --depth-median 800 --depth-max 2000 --hits 4 --threads "$(nproc)" >>"$log" 2>&1
    "$foldscale" data pack "$pack" --mmcif "$out/work/chains/mmcif" --alignments "$out/work/chains/alignments" \
        --threads "$(nproc)" >>"$log" 2>&1
    rm -rf "$out/work/chains"
fi
common+=(--set "data.pack=$pack" --set data.mmcif= --set data.alignments=)

done_rows() { # PREFIX of the run id: how many rows runs.csv has
    if [ -f "$out/runs.csv" ]; then cut -d, -f1 "$out/runs.csv" | grep -c "^$1" || true; else echo 0; fi
}

# --- one DP x DAP point with all switches on, or with "leave_one_out" the settings around it; sweep skips what runs.csv
# has
point() { # RANKS DAP [ABLATION]
    local name
    name="DP $(($1 / $2)) x DAP $2${3:+, $3}"
    if [ -z "${3:-}" ] && [ "$(done_rows "n$1_dap$2_")" -ge "$repeats" ]; then return 0; fi
    if over; then
        say "left for the next run: $name"
        return 0
    fi
    say "point $name"
    bounded "$foldscale" sweep "$experiment" --out "$out" --keep-going "${common[@]}" --set "study.ranks=[$1]" \
        --set "study.dap=[$2]" --set "study.ablations=[${3:-}]" || say "failed: $name (see $log)"
}

# --- op times of one rank's share of every DAP degree, one GPU each
tables() {
    local at=0 dap part
    [ -f "$out/ops/op_table.csv" ] && return 0
    say "op times of DAP 1, 2, 4, 8 on one GPU each"
    rm -rf "$out/work/ops" && mkdir -p "$out/work/ops" "$out/ops"
    for dap in 1 2 4 8; do
        part=$out/work/ops/$dap
        CUDA_VISIBLE_DEVICES=$((at % at_once)) timeout -k 10 120 "$bench" "${timed[@]}" --repeats 3 --dap $dap \
            $([ $dap = 1 ] || echo --no-comm) --tune-cache "$part.tune" --csv "$part.step" --op-table "$part.table" >"$part.log" 2>&1 &
        at=$((at + 1))
        [ $((at % at_once)) = 0 ] && wait
    done
    wait
    cat "$out"/work/ops/*.log >>"$log"
    for dap in 1 2 4 8; do
        [ -s "$out/work/ops/$dap.table" ] && [ -s "$out/work/ops/$dap.step" ] || fail "no op times of DAP $dap (see $log)"
    done
    join step step && join table op_table
}
join() { # files of all degrees with one header; the second name last, which marks the end
    awk 'FNR == 1 && NR > 1 { next } { print }' "$out"/work/ops/[1248]."$1" >"$out/ops/$2.part" && mv "$out/ops/$2.part" "$out/ops/$2.csv"
}

collectives() { # RANKS GROUPS
    local folder=$out/machine/collectives_$1_$2
    [ -f "$folder/collectives.csv" ] && return 0
    over && { say "left for the next run: collectives on $1 ranks, $2 groups"; return 0; }
    say "collectives on $1 ranks, $2 groups at a time"
    if bounded "$foldscale" calibrate "$experiment" --ranks "$1" --groups "$2" --collectives --out "$folder.part" "${common[@]}"; then
        mv "$folder.part" "$folder"
    else
        say "failed: collectives on $1 ranks, $2 groups (see $log)"
    fi
}

# --- one and two GPUs, and the prediction from them
if [ ! -f "$out/machine/machine.yaml" ]; then
    say "calibration on 2 ranks"
    bounded "$foldscale" calibrate "$experiment" --ranks 2 --devices 8 --no-profile --out "$out/machine" "${common[@]}" ||
        fail "calibrate failed (see $log)"
fi
tables
point 1 1
point 2 1
point 2 2
if [ ! -f "$out/prediction/made_at.txt" ]; then
    larger=$( (done_rows n4_; done_rows n8_) | awk '{ n += $1 } END { print n + 0 }')
    [ "$larger" -eq 0 ] || fail "runs.csv has 4 or 8 ranks already, but there is no prediction made before them: use another OUT"
    [ $(($(done_rows n1_) > 0 && $(done_rows n2_) > 1)) = 1 ] || fail "the points on one and two GPUs are not there (see $log)"
    say "prediction for 4 and 8 ranks from one and two"
    machine=$out/machine/machine.yaml
    cp "$out/runs.csv" "$out/prediction/runs_before.csv"
    "$foldscale" fit "$out/runs.csv" --machine "$machine" --ops "$out/ops" --out "$out/prediction/fit.json" >>"$log" 2>&1 ||
        fail "fit failed (see $log)"
    "$foldscale" predict "$out" --fit "$out/prediction/fit.json" --measured-machine "$machine" --ops "$out/ops" \
        --machine "$machine" --gpus 1,2,4,8 --dap 1,2,4,8 --out "$out/prediction/predictions.csv" >>"$log" 2>&1 || fail "predict failed (see $log)"
    { date -u +%Y-%m-%dT%H:%M:%SZ; sha256sum "$out/prediction/predictions.csv"; } >"$out/prediction/made_at.txt"
fi

# --- the matrix, the most telling points first
[ $most -ge 8 ] && { point 8 8; point 8 1; }
[ $most -ge 4 ] && { point 4 4; point 4 1; }
[ $most -ge 8 ] && { point 8 4; point 8 2; }
[ $most -ge 4 ] && point 4 2
for ranks in 2 4 8; do
    [ $ranks -le $most ] || continue
    for groups in 1 2 4; do
        [ $((ranks / groups)) -ge 2 ] && collectives $ranks $groups
    done
done
point "$most" "$most" leave_one_out

# --- tables
plain() { sed -E ':again; s/"([^",]*),([^"]*)"/"\1;\2"/; t again' "$1"; } # device names may have commas
awk 'FNR == 1 && NR > 1 { next } { print }' "$out"/machine/collectives_*_*/collectives.csv >"$out/collectives.csv" 2>/dev/null || true
awk -F, 'FNR == 1 { file++; for (i = 1; i <= NF; i++) c[file, $i] = i; next }
    file == 1 { if (!(($c[1, "gpus"], $c[1, "dap"]) in step)) { step[$c[1, "gpus"], $c[1, "dap"]] = $c[1, "step_s"]
                low[$c[1, "gpus"], $c[1, "dap"]] = $c[1, "lo90_s"]; high[$c[1, "gpus"], $c[1, "dap"]] = $c[1, "hi90_s"] } next }
    { split($c[2, "run_id"], id, "_"); setting = id[3]; if (!first) first = setting
      if (setting != first) next # the first point has all switches on
      key = $c[2, "ranks"] SUBSEP $c[2, "dap"]; n[key]++; sum[key] += $c[2, "step_s_mean"] }
    END { print "ranks,dp,dap,predicted_s,lo90_s,hi90_s,measured_s,repeats,error_percent,inside"
          for (key in n) { split(key, k, SUBSEP); m = sum[key] / n[key]
              printf "%d,%d,%d,%.6g,%.6g,%.6g,%.6g,%d,%.2f,%s\n", k[1], k[1] / k[2], k[2], step[key], low[key], high[key], m, n[key],
                     100 * (step[key] / m - 1), (m >= low[key] && m <= high[key]) ? "yes" : "no" } }' \
    <(plain "$out/prediction/predictions.csv") <(plain "$out/runs.csv") | { read -r header; echo "$header"; sort -t, -k1,1n -k3,3n; } >"$out/errors.csv"
{
    echo "measured step, speed-up of the step for DAP, samples per second for DP (one GPU = 1)"
    awk -F, 'NR > 1 { measured[$1, $3] = $7; line[++n] = $0 }
        END { base = measured[1, 1]
              for (i = 1; i <= n; i++) { split(line[i], f, ",")
                  printf "DP %d x DAP %d: %8.1f ms  step %5.2fx faster, samples/s %5.2fx; predicted %8.1f ms (%+.1f %%, 90 %% interval %.1f to %.1f: %s)\n",
                         f[2], f[3], 1e3 * f[7], base / f[7], base / f[7] * f[2], 1e3 * f[4], f[9], 1e3 * f[5], 1e3 * f[6], f[10] } }' "$out/errors.csv"
    echo "marks: DAP 8 at least 3x (goal 4.5x), DP 8 at least 7.6x in samples/s, DAP 2 at least 1.5x (goal 1.7x), DP 2 at least 1.9x,"
    echo "prediction error at most 8 % and inside the interval, for 4 and 8 GPUs"
} | tee "$out/scaling.txt"
missing=0
for ranks in 1 2 4 8; do
    for dap in 1 2 4 8; do
        [ $dap -le $ranks ] && [ "$(done_rows "n${ranks}_dap${dap}_")" -eq 0 ] &&
            { missing=$((missing + 1)); say "not measured: DP $((ranks / dap)) x DAP $dap"; }
    done
done
say "$missing points of the matrix missing"
