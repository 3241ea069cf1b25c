#!/usr/bin/env bash
# Who may include whom: engine <- {model, kernels, data, analysis} <- {experiments, tests}; siblings never include one
# another.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0
allowed() { # folder of the file, folder of the header
    case "$1:$2" in
        engine:engine) ;;
        model:engine | model:model | kernels:engine | kernels:kernels | data:engine | data:data) ;;
        analysis:engine | analysis:analysis) ;;
        experiments:* | tests:*) ;;
        *) return 1 ;;
    esac
}
while IFS=: read -r file line include; do
    from=${file%%/*}
    to=$(sed -E 's/.*"([^"]+)".*/\1/' <<<"$include")
    [[ $to == */* ]] || continue
    if ! allowed "$from" "${to%%/*}"; then
        echo "$file:$line: $from may not include $to"
        bad=1
    fi
done < <(grep -nE '^#include "' --include='*.[ch]' --include='*.cu' --include='*.cuh' --include='*.def' -r engine model kernels data analysis experiments tests | sed -E 's/^([^:]+):([0-9]+):/\1:\2:/')
exit $bad
