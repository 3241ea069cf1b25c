/* The machine files of the tree, for tests of what is computed from them. */
#ifndef FOLDSCALE_TESTS_MACHINE_HELPERS_H
#define FOLDSCALE_TESTS_MACHINE_HELPERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>

#include "analysis/machine.h"
#include "tests/source_dir.h"

/* experiments/machines/NAME.yaml; a test that cannot read it fails. */
static inline Machine *open_machine(const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/experiments/machines/%s.yaml", source_dir(), name);
    Machine *m = NULL;
    if (machine_read(path, &m) != OK) fail_msg("%s", status_text());
    return m;
}

#endif
