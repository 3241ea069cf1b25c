#!/bin/bash
# The data pipeline against the golden data, where they are.
set -u
shared=${FOLDSCALE_SHARED:?}
build=${FOLDSCALE_BUILD:?}
if [ ! -d "$shared/golden/data" ] || [ ! -d "$shared/realdata" ]; then
    echo "SKIP: no $shared/golden/data and $shared/realdata"
    exit 77
fi
exec "$build/tests/data_golden" "$shared/golden/data" "$shared/realdata"
