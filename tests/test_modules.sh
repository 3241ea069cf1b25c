#!/bin/bash
# Modules of the structure module, heads and losses against committed golden files (tests/golden/modules: outputs and
# gradients of the MLPerf HPC OpenFold reference in float64), in float64 and float32.
set -u
golden=${FOLDSCALE_SOURCE:?}/tests/golden/modules
status=0
for dtype in f64 f32; do
    "${FOLDSCALE_BUILD:?}/tests/parity" "$golden" --dtype $dtype || status=1
done
exit $status
