#!/usr/bin/env bash
# Kernels are launched behind one another (launch() in kernels/cuda/device.cuh): each has to wait for the one before it,
# and none is launched in another way. In front of stage_wait() none lets the next one start, and a line that loads
# something says by the word early that it may.
cd "$(dirname "$0")/.."
failed=0
awk '
    /__global__/ && !/^ *(\/)?\*/ { kernel = FILENAME ":" FNR; open = 1; waits = 0 }
    open && /stage_wait\(\);/ { waits = 1 }
    open && !waits && /stage_release\(\);/ { print FILENAME ":" FNR ": stage_release() before stage_wait()"; bad = 1 }
    open && !waits && /(load|fetch|weights|feed|__ld|copy)[a-z_]*[(<{]/ && !/early|_kernel[(<]|prefetch(_box)?\(/ {
        print FILENAME ":" FNR ": loads before stage_wait()"; bad = 1
    }
    open && /^}/ { if (!waits) { print kernel ": a kernel without stage_wait()"; bad = 1 } open = 0 }
    open && /^[^ ].*;$/ { open = 0 }
    END { exit bad }' kernels/cuda/*.cu kernels/cuda/*.cuh || failed=1
if grep -nE '<<<' kernels/cuda/*.cu kernels/cuda/*.cuh; then
    echo "launched without launch()"
    failed=1
fi
exit $failed
