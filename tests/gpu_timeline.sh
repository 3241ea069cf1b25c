#!/usr/bin/env bash
# What the time of a replayed step is spent on: every kernel with the time by which it made the step longer (its end minus
# the latest end before it), so that what runs beside something longer counts nothing. Of the last replay of each graph:
# forward without gradient, gradient step.
#
#   tests/gpu_timeline.sh [OUT] [ARGUMENTS of bench_step]   (default /tmp/gpu_timeline, none: one GPU, all switches)
#   RANKS=2 tests/gpu_timeline.sh OUT --dap 2
#   tests/gpu_timeline.sh --list FILE GRAPH [FROM [UNTIL]]  a graph's last replay, kernel by kernel; microseconds of it
#
# Writes OUT/timeline.PID (a line per kernel, see gpu_timeline.c), OUT/bench.txt, OUT/summary.txt. Environment: BENCH
# (build/tests/bench_step), TIMELINE (build/tests/libgpu_timeline.so), RANKS (1), MOST (30: kernels of a graph).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bench=${BENCH:-$root/build/tests/bench_step}
library=${TIMELINE:-$root/build/tests/libgpu_timeline.so}
fail() { echo "gpu_timeline: $1" >&2; exit 2; }
readable() { if command -v c++filt >/dev/null; then c++filt; else cat; fi; }

# The last run of every node of graph `graph`, in the order of time: start, end, stream, blocks, name.
last_replay() { # FILE GRAPH
    awk -v graph="$2" '$4 == graph { line[$5] = $0 } END { for (n in line) print line[n] }' "$1" | sort -n |
        awk '{ name = $7; for (i = 8; i <= NF; i++) name = name " " $i; print $1, $2, $3, $6, name }'
}
list() { # FILE GRAPH FROM UNTIL
    last_replay "$1" "$2" | readable | awk -v from="${3:-0}" -v until="${4:-1e9}" '
        NR == 1 { zero = $1 }
        { a = ($1 - zero) / 1e3; b = ($2 - zero) / 1e3; name = $5; for (i = 6; i <= NF; i++) name = name " " $i
          if (a >= from && a <= until) printf "%10.1f %10.1f %8.1f  stream %-4d %8d  %s\n", a, b, b - a, $3, $4, name }'
}
graphs() { # those replayed more than once, of a hundred nodes or more
    awk '$4 > 0 { runs[$4]++; if (!(($4, $5) in seen)) { seen[$4, $5]; nodes[$4]++ } }
        END { for (g in nodes) if (nodes[g] >= 100 && runs[g] >= 2 * nodes[g]) print g }' "$1" | sort -n
}
summary() { # FILE GRAPH
    last_replay "$1" "$2" | readable | awk -v most="${MOST:-30}" '
        NR == 1 { first = last = $1 }
        { name = $5; for (i = 6; i <= NF; i++) name = name " " $i
          sub(/^void /, "", name); sub(/\([^()]*\)$/, "", name)
          calls[name]++; if ($2 > last) { ms[name] += ($2 - last) / 1e6; last = $2 } }
        END { printf "%.3f ms, %d kernels and copies\n", (last - first) / 1e6, NR
              for (n in calls) printf "%9.3f ms %6d x %8.1f us  %s\n", ms[n], calls[n], 1e3 * ms[n] / calls[n], n | "sort -rn | head -n " most }'
}

if [ "${1:-}" = --list ]; then
    [ -f "${2:-}" ] && [ -n "${3:-}" ] || fail "--list takes a file and the number of a graph"
    list "${@:2}"
    exit
fi
[ -x "$bench" ] && [ -f "$library" ] || fail "no $bench or $library (build them: ninja -C build)"
nvidia-smi -L >/dev/null 2>&1 || fail "no GPU here (nvidia-smi lists none)"
out=${1:-/tmp/gpu_timeline}
[ $# -eq 0 ] || shift
mkdir -p "$out" && rm -f "$out"/timeline.*
export GPU_TIMELINE=$out/timeline OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
run=("$bench" --backend cuda --repeats 2 "$@")
if [ "${RANKS:-1}" -gt 1 ]; then
    run=(mpirun --oversubscribe -np "$RANKS" --bind-to none -x CUDA_INJECTION64_PATH="$library" -x GPU_TIMELINE "${run[@]}")
    "${run[@]}" >"$out/bench.txt" 2>&1 || fail "the benchmark failed (see $out/bench.txt)"
else
    CUDA_INJECTION64_PATH=$library "${run[@]}" >"$out/bench.txt" 2>&1 || fail "the benchmark failed (see $out/bench.txt)"
fi
for file in "$out"/timeline.*; do
    for graph in $(graphs "$file"); do
        echo "$(basename "$file"), graph $graph: $(summary "$file" "$graph")"
    done
done | tee "$out/summary.txt"
