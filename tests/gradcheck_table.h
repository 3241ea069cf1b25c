/* All gradient checks: one header per group of families. */
#ifndef FOLDSCALE_TESTS_GRADCHECK_TABLE_H
#define FOLDSCALE_TESTS_GRADCHECK_TABLE_H

#include "tests/gradcheck_structure.h"
#include "tests/gradcheck_trunk.h"

#define GRAD_FAMILY(cases)                                                                                             \
    {                                                                                                                  \
#cases, cases, (int)(sizeof(cases) / sizeof(cases[0]))                                                         \
    }

static const GradFamily gradcheck_families[] = {
    GRAD_FAMILY(gradcheck_trunk),
    GRAD_FAMILY(gradcheck_structure),
};

#endif
