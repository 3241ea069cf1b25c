#!/bin/bash
# Every broken or unusual file of the malformed set is refused or accepted as its table says.
set -u
shared=${FOLDSCALE_SHARED:?}
build=${FOLDSCALE_BUILD:?}
if [ ! -f "$shared/golden/malformed/malformed.csv" ]; then
    echo "SKIP: no $shared/golden/malformed"
    exit 77
fi
exec "$build/tests/malformed" "$shared/golden/malformed" "$shared/realdata"
