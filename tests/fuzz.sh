#!/bin/bash
# tests/fuzz.sh [SECONDS [BUILD]]: builds the fuzz targets with clang under the address and undefined-behaviour
# sanitizers and runs each for SECONDS (30) from its corpus in tests/corpus. New inputs stay in BUILD/corpus; a finding
# is written to BUILD/findings and makes the exit status 1.
set -u
seconds=${1:-30}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
build=${2:-$source_dir/build-fuzz}
CC=clang cmake -G Ninja -S "$source_dir" -B "$build" -DFOLDSCALE_FUZZ=ON -DFOLDSCALE_SANITIZE=ON \
    -DFOLDSCALE_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null || exit 1
targets=()
for file in "$source_dir"/tests/fuzz_*.c; do targets+=("$(basename "$file" .c)"); done
ninja -C "$build" "${targets[@]}" >/dev/null || exit 1
mkdir -p "$build/findings"
status=0
for target in "${targets[@]}"; do
    name=${target#fuzz_}
    mkdir -p "$build/corpus/$name"
    log=$build/$target.log
    dictionary=()
    [ -f "$source_dir/tests/corpus/$name.dict" ] && dictionary=("-dict=$source_dir/tests/corpus/$name.dict")
    if "$build/tests/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=20000 \
        "${dictionary[@]}" \
        -artifact_prefix="$build/findings/$name-" "$build/corpus/$name" "$source_dir/tests/corpus/$name" >"$log" 2>&1; then
        echo "PASS $target $(grep -o 'Done [0-9]* runs.*' "$log"), $(grep -o 'cov: [0-9]*' "$log" | tail -1)"
    else
        echo "FAIL $target: see $log"
        status=1
    fi
done
exit $status
