#!/bin/bash
# The data pipeline against golden numbers: those in the tree for the examples, and the whole set where it is.
set -u
shared=${FOLDSCALE_SHARED:?}
build=${FOLDSCALE_BUILD:?}
source_dir=${FOLDSCALE_SOURCE:?}
"$build/tests/data_golden" "$source_dir/tests/golden/data" "$source_dir/data/examples" mmcif parsers || exit 1
if [ ! -d "$shared/golden/data" ] || [ ! -d "$shared/realdata" ]; then
    echo "SKIP the whole set: no $shared/golden/data and $shared/realdata"
    exit 0
fi
exec "$build/tests/data_golden" "$shared/golden/data" "$shared/realdata"
