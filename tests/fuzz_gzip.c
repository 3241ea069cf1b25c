#include <stddef.h>
#include <stdint.h>

#include "tests/reader_trials.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    return trial_of_bytes(trial_gzip, bytes, size);
}
