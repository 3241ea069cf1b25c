#!/bin/bash
# tests/fuzz.sh [SECONDS [BUILD]]: builds the fuzz targets with clang under the address and undefined-behaviour
# sanitizers and runs each for SECONDS (30), one to a core, from its corpus in tests/corpus. New inputs stay in
# BUILD/corpus; a finding is written to BUILD/findings and makes the exit status 1.
set -u
export seconds=${1:-30}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
export build=${2:-$source_dir/build-fuzz} corpora=$source_dir/tests/corpus
CC=clang cmake -G Ninja -S "$source_dir" -B "$build" -DFOLDSCALE_FUZZ=ON -DFOLDSCALE_SANITIZE=ON \
    -DFOLDSCALE_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo >"$build.log" || { cat "$build.log"; exit 1; }
targets=()
for file in "$source_dir"/tests/fuzz_*.c; do targets+=("$(basename "$file" .c)"); done
ninja -C "$build" "${targets[@]}" >"$build.log" || { cat "$build.log"; exit 1; }
rm -f "$build.log"
mkdir -p "$build/findings"

run_target() { # fuzz_NAME
    local name=${1#fuzz_} log=$build/$1.log dictionary=()
    mkdir -p "$build/corpus/$name"
    [ -f "$corpora/$name.dict" ] && dictionary=("-dict=$corpora/$name.dict")
    if "$build/tests/$1" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=20000 "${dictionary[@]}" \
        -artifact_prefix="$build/findings/$name-" "$build/corpus/$name" "$corpora/$name" >"$log" 2>&1; then
        echo "PASS $1 $(grep -o 'Done [0-9]* runs.*' "$log"), $(grep -o 'cov: [0-9]*' "$log" | tail -1)"
    else
        tail -n 40 "$log"
        echo "FAIL $1: see $log"
        return 1
    fi
}
export -f run_target
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run_target {}' # 123 if one failed
