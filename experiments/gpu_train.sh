#!/usr/bin/env bash
# 500 steps of MLPerf initial training at full size (93.2 M parameters) on packed data, the real chains of data/examples
# plus synthetic ones, in bf16 with every switch on, and the same samples in f32: is the loss finite throughout, does it
# fall, do the two curves agree? Also the step's phases and the wait for data. On one GPU.
#
#   experiments/gpu_train.sh [OUT] [SECONDS]        (default experiments/results/DEVICE-train, 420: shared 2 : 1)
#   experiments/gpu_train.sh --plot OUT             (where gnuplot is, if the GPU machine has none)
#
# Started again with the same OUT it goes on from the checkpoints until both runs have their steps. Writes
# OUT/bf16/{run.json,steps.csv,losses.csv}, OUT/f32/..., summary.txt, loss.csv, loss.png.
# Environment: FOLDSCALE (build/foldscale), STEPS (500), STEPS_F32 (STEPS), RUNS ("bf16 f32": which of the two), CHAINS (60
# synthetic), SET (further "--set A.B=C"), SET_F32 (the same for the f32 run alone), CHECKPOINT_LAST (on), WORK (OUT/work:
# the pack); BACKEND=cpu PRESET=tiny rehearses it anywhere.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
foldscale=${FOLDSCALE:-$root/build/foldscale}
steps=${STEPS:-500}
steps_f32=${STEPS_F32:-$steps}
backend=${BACKEND:-cuda}
preset=${PRESET:-initial_training}

fail() { echo "gpu_train: $1" >&2; exit 1; }

# step, loss of each run and its mean over the last 25 steps
join_losses() { # OUT
    local kind
    for kind in bf16 f32; do
        [ -f "$1/$kind/steps.csv" ] || continue
        awk -F, -v kind=$kind 'NR == 1 { for (i = 1; i <= NF; i++) c[$i] = i; next }
            { n++; loss[n] = $c["loss"]; sum += $c["loss"]; if (n > 25) sum -= loss[n - 25]
              printf "%s,%d,%d,%s,%.9g,%s\n", kind, $c["step"], $c["recycling"], $c["loss"], sum / (n < 25 ? n : 25), $c["gradient_norm"] }' \
            "$1/$kind/steps.csv"
    done | { echo "run,step,recycling,loss,loss_mean25,gradient_norm"; cat; } >"$1/loss.csv"
}

plot() { # OUT
    join_losses "$1"
    command -v gnuplot >/dev/null || { echo "no gnuplot here: gpu_train.sh --plot $1 draws the curves elsewhere"; return 0; }
    gnuplot <<PLOT
set terminal pngcairo size 1000,600 font "DejaVu Sans,11"
set output "$1/loss.png"
set datafile separator ","
set xlabel "step"
set ylabel "training loss"
set grid
set key top right
plot "$1/loss.csv" using 2:(strcol(1) eq "bf16" ? column(4) : NaN) with points pt 7 ps 0.4 lc rgb "#9ecae1" notitle, \
     "$1/loss.csv" using 2:(strcol(1) eq "f32" ? column(4) : NaN) with points pt 7 ps 0.4 lc rgb "#fdae6b" notitle, \
     "$1/loss.csv" using 2:(strcol(1) eq "bf16" ? column(5) : NaN) with lines lw 2 lc rgb "#08519c" title "bf16, mean of 25 steps", \
     "$1/loss.csv" using 2:(strcol(1) eq "f32" ? column(5) : NaN) with lines lw 2 lc rgb "#d94801" title "f32, mean of 25 steps"
PLOT
    echo "$1/loss.png"
}

if [ "${1:-}" = --plot ]; then
    [ -n "${2:-}" ] || fail "--plot takes the folder of a run"
    plot "$2"
    exit
fi

[ -x "$foldscale" ] || fail "no $foldscale (build it: ninja -C build foldscale)"
device=cpu
if [ "$backend" = cuda ]; then
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
    [ -n "$device" ] || fail "no GPU here (nvidia-smi lists none)"
fi
out=${1:-$root/experiments/results/$(tr ' ' '_' <<<"$device")-train}
budget=${2:-420}
mkdir -p "$out"
started=$SECONDS
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cores=$(nproc)
workers=$((cores > 3 ? cores - 2 : 1))

# one folder with the real chains and synthetic ones of training length, packed once
work=${WORK:-$out/work}
mkdir -p "$work"
if [ ! -f "$work/train.pack" ]; then
    "$foldscale" data synth "$work/chains" --chains "${CHAINS:-60}" --seed 7 --length-median 220 --length-min 64 \
        --length-max 600 --depth-median 800 --depth-max 4000 --hits 8 --threads "$cores"
    cp -n "$root"/data/examples/mmcif/*.cif "$work/chains/mmcif/"
    cp -rn "$root"/data/examples/alignments/* "$work/chains/alignments/"
    "$foldscale" data pack "$work/train.pack" --mmcif "$work/chains/mmcif" --alignments "$work/chains/alignments" --threads "$cores"
    rm -rf "$work/chains"
fi
echo "data ready after $((SECONDS - started)) s: $(du -h "$work/train.pack" | cut -f1)"

{
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "command: $0 $*"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null || true
    echo "cores: $cores"
} >>"$out/provenance.txt"

read -r -a further <<<"${SET:-}"
train() { # NAME STEPS SECONDS SWITCH...
    local name=$1 count=$2 seconds=$3
    shift 3
    [ "$seconds" -ge 10 ] || { echo "$name: no time left; start again to go on"; return 0; }
    # train.max_seconds counts what earlier runs took
    local until
    until=$({ cat "$out/$name.seconds" 2>/dev/null || true; } | awk -v now="$seconds" '{ now += $1 } END { print now }')
    "$foldscale" train "$root/experiments/initial_training.yaml" --out "$out/$name" --resume \
        --set "model.preset=$preset" --set "backend=$backend" --set "data.pack=$work/train.pack" --set data.mmcif= \
        --set data.alignments= --set "data.workers=$workers" --set data.queue=16 --set "train.steps=$count" \
        --set train.seed=7 --set "train.max_seconds=$until" --set train.checkpoint_every=0 \
        --set "train.checkpoint_last=${CHECKPOINT_LAST:-on}" --set train.keep=1 --set eval.every=0 \
        --set switches.async_eval=off --set "parallel.tune_cache=$out/tune.txt" "${further[@]}" "$@" | tee "$out/$name.last"
    sed -nE 's/.*, ([0-9.]+) s -> .*/\1/p' "$out/$name.last" >"$out/$name.seconds"
    rm "$out/$name.last"
}
runs=${RUNS:-bf16 f32}
share=$((${#runs} > 4 ? budget * 2 / 3 : budget))
case $runs in *bf16*) train bf16 "$steps" $((share - (SECONDS - started))) ;; esac
# in f32 blocks are recomputed, as 127 GiB would be needed else (SET_F32="--set switches.checkpoint=none" where they are)
read -r -a further_f32 <<<"${SET_F32:-}"
case $runs in *f32*)
    train f32 "$steps_f32" $((budget - (SECONDS - started))) --set switches.bf16=off --set switches.checkpoint=block "${further_f32[@]}"
    ;;
esac

for kind in bf16 f32; do
    [ -f "$out/$kind/steps.csv" ] || continue
    awk -F, -v kind=$kind 'NR == 1 { for (i = 1; i <= NF; i++) c[$i] = i; next }
        { n++; step = $c["step_s"]; if (tolower($c["loss"] $c["gradient_norm"]) ~ /nan|inf/) bad++
          if (n <= 25) { first += $c["loss"]; firsts++ }
          last[n % 25] = $c["loss"]
          if (n > 4) { all += step; m++; wait += $c["data_wait_s"]; forward += $c["forward_nograd_s"] + $c["forward_s"]
                       backward += $c["backward_s"]; opt += $c["optimizer_s"]; other += $c["other_s"] } }
        END { for (i in last) { tail += last[i]; tails++ }
              printf "%s: %d steps, %d not finite, loss of the first 25 %.4f, of the last 25 %.4f", kind, n, bad, first / firsts, tail / tails
              if (m) printf "; step %.1f ms: data wait %.3f %%, forward %.1f, backward %.1f, optimizer %.2f, other %.2f", 1e3 * all / m, 100 * wait / all,
                     1e3 * forward / m, 1e3 * backward / m, 1e3 * opt / m, 1e3 * other / m
              printf "\n" }' "$out/$kind/steps.csv"
done | tee "$out/summary.txt"
plot "$out"
[ "${CHECKPOINT_LAST:-on}" = on ] || rm -rf "$work"
