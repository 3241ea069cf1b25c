#!/usr/bin/env bash
# The whole test run: installs what is missing, checks formatting and include rules, builds plain and with sanitizers,
# runs ctest on both, then every fuzz target for 30 s. Where a CUDA compiler is, the CUDA backend is compiled (for
# sm_90a) as part of the plain build.
# Usage: tests/run.sh [plain|sanitize|fuzz|all]      (default all)
set -uo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
source experiments/packages.sh
install_packages "${build_packages[@]}" "${test_packages[@]}" || exit 1
failed=0
say() { printf '\n== %s\n' "$1"; }

say "format"
git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs -r clang-format --dry-run --Werror || failed=1
say "include rules"
tests/check_includes.sh || failed=1
say "kernel rules"
tests/check_kernels.sh || failed=1

run() { # NAME BUILD CMAKE-OPTIONS...
    local name=$1 build=$2
    shift 2
    say "build: $name"
    cmake -G Ninja -B "$build" . "$@" >"$build.log" 2>&1 || { cat "$build.log"; return 1; }
    ninja -C "$build" >"$build.log" 2>&1 || { grep -E 'error|FAILED' "$build.log" | head -n 40; return 1; }
    rm -f "$build.log"
    say "tests: $name"
    ctest --test-dir "$build" --output-on-failure -j2 "${select[@]}" 2>&1 | tee "$build/ctest.txt" | grep -vE '^ *Start ' || true
    grep -q '100% tests passed' "$build/ctest.txt"
}

select=()
if [[ $what = plain || $what = all ]]; then run plain build || failed=1; fi
# the end-to-end scripts start MPI ranks, which the sanitizer build would only slow down: it runs the units
select=(-LE slow)
if [[ $what = sanitize || $what = all ]]; then
    export ASAN_OPTIONS=detect_leaks=0 # Open MPI and gnuplot keep what they allocate
    run "address and undefined-behaviour sanitizers" build-sanitize -DFOLDSCALE_SANITIZE=ON -DFOLDSCALE_CUDA=OFF \
        -DCMAKE_BUILD_TYPE=RelWithDebInfo || failed=1
fi

if [[ $what = fuzz || $what = all ]]; then
    say "fuzz targets, 30 s each"
    ASAN_OPTIONS= tests/fuzz.sh 30 || failed=1 # leaks count here
fi

say "summary"
for build in build build-sanitize; do
    [ -f "$build/ctest.txt" ] && { echo "$build:"; sed -n '/tests passed/,$p' "$build/ctest.txt"; }
done
[ $failed -eq 0 ] && echo "all passed" || echo "FAILED"
exit $failed
