#!/usr/bin/env bash
# From a fresh Debian 12 machine to a report: installs what is missing, builds, trains a small AlphaFold2 on real chains,
# calibrates, ablates, scales over MPI ranks, fits, predicts to 2,048 GPUs, writes the report. Needs no GPU.
# Usage: experiments/quickstart.sh [DIR]     (default runs/quickstart)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/quickstart}
source experiments/packages.sh

started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

say "packages"
install_packages "${build_packages[@]}"

say "build"
cmake -G Ninja -B build . >/dev/null
ninja -C build foldscale | tail -n 1
foldscale=build/foldscale
study_started=$SECONDS

say "training one chain from random parameters"
"$foldscale" train experiments/overfit.yaml --out "$out/overfit" --replace --set train.max_seconds=60 --set train.checkpoint_every=0
"$foldscale" eval "$out/overfit" --structures "$out/overfit/predicted"

say "calibration of this machine"
"$foldscale" calibrate experiments/quickstart.yaml --ranks 2 --out "$out/machine"

say "study: switches x ranks x repeats"
"$foldscale" sweep experiments/quickstart.yaml --out "$out"

say "fit and predictions"
"$foldscale" fit "$out/runs.csv" >/dev/null
# the step with all switches on, as the measured ranks ran it; the first point of the study, the default, has them off
"$foldscale" predict "$out" --target experiments/quickstart.yaml --machine "$out/machine/machine.yaml" --gpus 1,2,4,8 --dap 1,2
"$foldscale" predict "$out" --append --target experiments/initial_training.yaml --machine h100_sxm

say "report"
"$foldscale" report "$out" --run "$out/overfit" --title "foldscale quickstart"
printf '\nstudy %d s, everything %d s; open %s\n' $((SECONDS - study_started)) $((SECONDS - started)) "$out/report/report.html"
